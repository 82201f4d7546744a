//! One daemon a socket.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// Another daemon runs, or it can't be known.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another daemon holds the lock.
    #[error("another daemon serves {0}; stop it first, or give this one another --socket")]
    Held(PathBuf),
    /// The lock file can't be used.
    #[error("open lock file {path}: {source}{}", advice(.source))]
    File {
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as root",
        _ => "",
    }
}

/// Held while the daemon of a socket lives; the kernel frees it with the process.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock of the daemon at `socket`.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn take(socket: &Path) -> Result<Self, LockError> {
        let path = socket.with_extension("lock");
        let failed = |source| LockError::File {
            path: path.clone(),
            source,
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { path, _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(LockError::Held(socket.to_owned())),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Removes the lock's file, on the way out for good.
    pub fn remove(self) {
        // A file that stays does no harm: the lock is on its content, not its presence.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn the_second_is_refused_while_the_first_lives() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("oncache.sock");
        let first = Lock::take(&socket).unwrap();
        assert!(matches!(Lock::take(&socket), Err(LockError::Held(_))));
        drop(first);
        Lock::take(&socket).unwrap();
    }
}
