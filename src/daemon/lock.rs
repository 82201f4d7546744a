//! One daemon a host.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
};

use thiserror::Error;

/// Name of the lock: an abstract Unix socket, of which each network namespace, and thus each host,
/// has its own (unix(7), "Abstract sockets"). It leaves no file, and the kernel frees it with the
/// process.
const NAME: &[u8] = b"oncache-daemon";

/// Another daemon runs, or it can't be known.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another daemon holds the lock.
    #[error("another oncache daemon runs on this host; stop it first")]
    Held,
    /// The lock can't be had for another reason.
    #[error("take the lock @oncache-daemon: {0}")]
    Failed(io::Error),
}

/// Held while the host's daemon lives.
#[derive(Debug)]
pub struct Lock {
    _socket: UnixListener,
}

impl Lock {
    /// Takes the lock of the host, that is of this thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn take() -> Result<Self, LockError> {
        let taken =
            SocketAddr::from_abstract_name(NAME).and_then(|name| UnixListener::bind_addr(&name));
        match taken {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(LockError::Held),
            Err(error) => Err(LockError::Failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn the_second_is_refused_while_the_first_lives() {
        // A daemon that really runs here would hold it.
        let Ok(first) = Lock::take() else {
            panic!("an oncache daemon runs on this machine")
        };
        assert!(matches!(Lock::take(), Err(LockError::Held)));
        drop(first);
        Lock::take().unwrap();
    }
}
