//! The mount namespace in which paths of network namespaces mean what they mean to everybody else.
//!
//! A service that is confined (systemd's `ProtectSystem=` and the like) has a mount namespace of its
//! own, and nothing mounted there reaches the host: systemd makes all of it a slave
//! (src/core/namespace.c, `setup_namespace`). A namespace that it named at `/run/netns` would be
//! seen by nobody else. So the daemon steps into the host's mount namespace for that alone.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use thiserror::Error;

use crate::shown::{PATH, cut};

/// Another mount namespace can't be used.
#[derive(Debug, Error)]
#[error(
    "enter mount namespace {}: {source}; give a file such as /proc/1/ns/mnt, and the capabilities SYS_ADMIN, SYS_CHROOT and SYS_PTRACE",
    cut(&path.to_string_lossy(), PATH)
)]
pub struct MountNamespaceError {
    path: PathBuf,
    source: io::Error,
}

/// The other mount namespace; empty while this process's own is meant. One for the process: that a
/// path means the same in every request is the point of it.
static ELSEWHERE: OnceLock<File> = OnceLock::new();

/// From now on paths of network namespaces are those of the mount namespace at `path`, such as
/// `/proc/1/ns/mnt`. Takes effect once in the life of a process.
///
/// It takes `CAP_SYS_ADMIN` and `CAP_SYS_CHROOT` (fs/namespace.c, `mntns_install`), and
/// `CAP_SYS_PTRACE` where the process that `path` belongs to may do more than this one
/// (security/commoncap.c, `cap_ptrace_access_check`).
///
/// # Errors
///
/// [`MountNamespaceError`]: `path` is no mount namespace, or it can't be entered.
pub fn use_paths_of(path: &Path) -> Result<(), MountNamespaceError> {
    // Entered now rather than at the first container: a daemon that may not does not get ready.
    let file = open_other(path).and_then(|other| match other {
        Some(file) => enter(&file, || ()).map(|()| Some(file)),
        None => Ok(None),
    });
    match file {
        Ok(Some(file)) => {
            let _ = ELSEWHERE.set(file);
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(source) => Err(MountNamespaceError {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Opens a mount namespace; none where it is this process's own.
fn open_other(path: &Path) -> io::Result<Option<File>> {
    let file = File::open(path)?;
    // SAFETY: the request takes no argument and touches no memory; other files refuse it
    // (ioctl_ns(2)).
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind != libc::CLONE_NEWNS {
        return Err(io::Error::other("it is something else"));
    }
    let own = fs::metadata("/proc/self/ns/mnt")?.ino();
    Ok((file.metadata()?.ino() != own).then_some(file))
}

/// Does something in the mount namespace of [`use_paths_of`]; without one, here.
///
/// # Errors
///
/// It can't be entered.
pub(super) fn there<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    match ELSEWHERE.get() {
        Some(namespace) => enter(namespace, work),
        None => Ok(work()),
    }
}

/// On a thread of its own, which ends here: setns() changes the calling thread only.
fn enter<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let inside = || {
        // The kernel refuses another mount namespace to a thread that shares root and working
        // directory with others (fs/namespace.c, `mntns_install`).
        unshare(CloneFlags::CLONE_FS)?;
        setns(namespace, CloneFlags::CLONE_NEWNS)?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that entered it died")))
}
