//! One daemon a host.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use thiserror::Error;

/// Name of the lock: an abstract Unix socket, of which each network namespace, and thus each host,
/// has its own (unix(7), "Abstract sockets"). It leaves no file, and the kernel frees it with the
/// process.
const DAEMON: &[u8] = b"oncache-daemon";
/// How long it may be held by a child of a killed daemon, which has it between fork and exec.
const BETWEEN_FORK_AND_EXEC: Duration = Duration::from_millis(500);

/// Another such lock, which the daemon's children inherit: an `nft` that a killed daemon has left at
/// work. What begins next must not meet its transaction.
const CHILDREN: &[u8] = b"oncache-children";
/// How long such a child may take to end.
const UNTIL_CHILDREN_END: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(10);

/// Another daemon runs, or it can't be known.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another daemon holds the lock.
    #[error("another oncache daemon runs on this host; stop it first")]
    Held,
    /// A child of a former daemon does not end.
    #[error(
        "a command that a former oncache daemon has started still runs; find it by `ss -xlp | grep oncache-children` and end it"
    )]
    Child,
    /// The lock can't be had for another reason.
    #[error("take the lock of the daemon: {0}")]
    Failed(io::Error),
}

/// Held while the host's daemon lives.
#[derive(Debug)]
pub struct Lock {
    _daemon: UnixListener,
    _children: UnixListener,
}

impl Lock {
    /// Takes the lock of the host, that is of this thread's network namespace. What a former daemon
    /// has left at work is waited for.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn take() -> Result<Self, LockError> {
        let daemon = bind_within(DAEMON, BETWEEN_FORK_AND_EXEC)?.ok_or(LockError::Held)?;
        let children = bind_within(CHILDREN, UNTIL_CHILDREN_END)?.ok_or(LockError::Child)?;
        fcntl(&children, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|errno| LockError::Failed(errno.into()))?;
        Ok(Self {
            _daemon: daemon,
            _children: children,
        })
    }
}

/// Waits until no daemon holds the lock, without taking it from one that is just starting: the name is
/// only called. Returns whether that came about within `patience`.
///
/// # Errors
///
/// [`LockError::Failed`].
pub fn until_free(patience: Duration) -> Result<bool, LockError> {
    // Nobody accepts these calls; far fewer than a queue takes (net/unix/af_unix.c,
    // `unix_stream_connect` waits where it is full).
    let pause = (patience / 50).max(PAUSE);
    let begun = Instant::now();
    let name = SocketAddr::from_abstract_name(DAEMON).map_err(LockError::Failed)?;
    loop {
        match UnixStream::connect_addr(&name) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(true),
            Err(error) => return Err(LockError::Failed(error)),
            Ok(_) if begun.elapsed() >= patience => return Ok(false),
            Ok(_) => thread::sleep(pause),
        }
    }
}

/// Binds the name; none if somebody else has it all the time.
fn bind_within(name: &[u8], patience: Duration) -> Result<Option<UnixListener>, LockError> {
    let begun = Instant::now();
    let name = SocketAddr::from_abstract_name(name).map_err(LockError::Failed)?;
    loop {
        match UnixListener::bind_addr(&name) {
            Ok(socket) => return Ok(Some(socket)),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                return Err(LockError::Failed(error));
            }
            Err(_) if begun.elapsed() >= patience => return Ok(None),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn the_second_is_refused_while_the_first_lives_and_waits_for_its_children() {
        // A daemon that really runs here would hold it.
        let Ok(first) = Lock::take() else {
            panic!("an oncache daemon runs on this machine")
        };
        assert!(matches!(Lock::take(), Err(LockError::Held)));
        assert!(!until_free(Duration::from_millis(200)).unwrap());
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(first);
        });
        assert!(until_free(Duration::from_secs(5)).unwrap());
        ending.join().unwrap();
        let second = Lock::take().unwrap();

        let mut child = std::process::Command::new("sleep")
            .arg("0.5")
            .spawn()
            .unwrap();
        drop(second);
        Lock::take().unwrap();
        assert!(child.try_wait().unwrap().is_some(), "not waited for");
    }
}
