//! Netlink sockets in other network namespaces.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::{runtime::Handle, sync::oneshot};

use super::{Netlink, NetlinkError};

impl Netlink {
    /// Opens a socket in the network namespace behind a descriptor (`/run/netns/NAME`,
    /// `/proc/PID/ns/net`). The descriptor may be closed afterwards: the socket keeps the namespace
    /// alive.
    ///
    /// # Errors
    /// [`NetlinkError::Namespace`] when it cannot be entered, [`NetlinkError::Open`] when it gives
    /// no socket.
    pub async fn in_namespace(namespace: BorrowedFd<'_>) -> Result<Self, NetlinkError> {
        let described = format!("behind descriptor {namespace:?}");
        let failed = |source: io::Error| NetlinkError::Namespace {
            namespace: described.clone(),
            source,
        };
        let namespace = namespace.try_clone_to_owned().map_err(failed)?;
        let runtime = Handle::current();
        let (answer, opened) = oneshot::channel();
        // A thread of its own, which ends here: setns() changes the calling thread only, and one
        // of the runtime's threads would carry the namespace into whatever it runs next.
        thread::Builder::new()
            .name("oncache-netns".into())
            .spawn(move || {
                let _runtime = runtime.enter();
                let outcome = match setns(&namespace, CloneFlags::CLONE_NEWNET) {
                    Ok(()) => Ok(Self::new()),
                    Err(errno) => Err(io::Error::from(errno)),
                };
                // Nobody waits any more if the caller was cancelled; the socket closes with it.
                let _ = answer.send(outcome);
            })
            .map_err(failed)?;
        match opened.await {
            Ok(outcome) => outcome.map_err(failed)?,
            Err(_) => Err(failed(io::Error::other("the thread that entered it died"))),
        }
    }

    /// Like [`Netlink::in_namespace`], by path.
    ///
    /// # Errors
    /// As there; a path that cannot be opened is [`NetlinkError::Namespace`].
    pub async fn in_namespace_at(path: &Path) -> Result<Self, NetlinkError> {
        let named = |source: io::Error| NetlinkError::Namespace {
            namespace: path.display().to_string(),
            source,
        };
        let file = File::open(path).map_err(named)?;
        match Self::in_namespace(file.as_fd()).await {
            Err(NetlinkError::Namespace { source, .. }) => Err(named(source)),
            outcome => outcome,
        }
    }
}
