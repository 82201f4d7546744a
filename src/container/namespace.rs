//! Named network namespaces, as `ip netns` makes them: a bind mount of the namespace on a file
//! below `/run/netns`. Their paths are those of the mount namespace that
//! [`mount_namespace`](super::mount_namespace) names.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use thiserror::Error;

use super::mount_namespace::there;
use crate::shown::{PATH, cut};

/// Where named namespaces are.
pub const DIRECTORY: &str = "/run/netns";

/// A named namespace could not be made or removed.
#[derive(Debug, Error)]
#[error("{action} network namespace {}: {source}{advice}", cut(&path.to_string_lossy(), PATH))]
pub struct NamespaceError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
    advice: &'static str,
}

fn failed(
    action: &'static str,
    path: &Path,
    advice: &'static str,
) -> impl Fn(io::Error) -> NamespaceError {
    move |source| NamespaceError {
        action,
        path: path.to_owned(),
        source,
        advice,
    }
}

/// The path of the namespace called `name`.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes a namespace at `path` and returns its inode number, which tells it from others.
///
/// # Errors
///
/// [`NamespaceError`]; nothing is left behind. A file that is there already is an error: the
/// namespace is somebody else's.
pub fn create(path: &Path) -> Result<u64, NamespaceError> {
    there(|| create_here(path)).map_err(failed("create", path, ""))?
}

fn create_here(path: &Path) -> Result<u64, NamespaceError> {
    share_directory().map_err(failed("prepare the directory of", path, ""))?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed("create", path, "; name an existing one by --netns"))?;
    let target = path.to_owned();
    // A thread of its own: unshare() moves the calling thread for good.
    let made = thread::spawn(move || -> io::Result<u64> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let own = Path::new("/proc/thread-self/ns/net");
        mount(
            Some(own),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Ok(fs::metadata(own)?.ino())
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the thread that makes it died")));
    made.map_err(|error| {
        // The file is ours, made above, and nothing is mounted on it.
        let _ = fs::remove_file(path);
        failed("create", path, "")(error)
    })
}

/// Removes the namespace at `path`, if it is the one with this inode number: after a reboot it may
/// be somebody else's by the same name. No error where it is gone already. Processes in it keep it
/// alive, nameless.
///
/// # Errors
///
/// [`NamespaceError`].
pub fn remove(path: &Path, inode: u64) -> Result<(), NamespaceError> {
    there(|| remove_here(path, inode)).map_err(failed("remove", path, ""))?
}

fn remove_here(path: &Path, inode: u64) -> Result<(), NamespaceError> {
    if fs::metadata(path).is_ok_and(|present| present.ino() != inode) {
        return Ok(());
    }
    // Not mounted (EINVAL) or not there (ENOENT) is as wanted.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", path, "")(error))
        }
        _ => Ok(()),
    }
}

/// Opens the namespace at `path`.
///
/// # Errors
///
/// [`NamespaceError`].
pub fn open(path: &Path) -> Result<File, NamespaceError> {
    let file = there(|| File::open(path))
        .and_then(|opened| opened)
        .map_err(failed("open", path, "; does the container still run?"))?;
    if is_network_namespace(&file) {
        Ok(file)
    } else {
        let other = io::Error::other("it is something else");
        Err(failed(
            "open",
            path,
            "; give a file such as /run/netns/NAME",
        )(other))
    }
}

/// Whose namespace an open one is, if it is the host's: the one that this process is in, with the
/// underlay device and all of oncache's, or the one that the system was started in. By identity, not by
/// path: `/proc/PID/ns/net` of a container on the host's network is the host's (namespaces(7): the
/// device and inode number tell).
#[must_use]
pub fn of_the_host(namespace: &File) -> Option<&'static str> {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let this = namespace.metadata().map(identity).ok()?;
    // Where process 1 can't be looked at, it is another user's, and nobody could have given it to us.
    [
        ("/proc/thread-self/ns/net", "the daemon's own, the host's"),
        ("/proc/1/ns/net", "that of process 1, the system's"),
    ]
    .into_iter()
    .find(|(path, _)| fs::metadata(path).map(identity).is_ok_and(|it| it == this))
    .map(|(_, whose)| whose)
}

/// Whether an open file stands for a network namespace, and for nothing else (ioctl_ns(2)).
fn is_network_namespace(file: &File) -> bool {
    // SAFETY: the request takes no argument and touches no memory; other files refuse it.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

/// Makes [`DIRECTORY`] a shared mount, as `ip netns` does (iproute2, ip/ipnetns.c, `netns_add`): a
/// namespace made here then shows in mount namespaces that were copied before.
fn share_directory() -> io::Result<()> {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory)?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, directory, None::<&str>, flags, None::<&str>)
    };
    if share().is_err() {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(
            Some(directory),
            directory,
            None::<&str>,
            flags,
            None::<&str>,
        )?;
        share()?;
    }
    Ok(())
}
