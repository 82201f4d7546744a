//! `oncache down`.

use std::{
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    coherence::own_tables::OwnTables,
    control::client::Client,
    daemon::{Lock, teardown, until_free},
    datapath::PIN_ROOT,
    netlink::Netlink,
    slow_path::own::OwnSlowPath,
    state::Store,
};

/// How long a daemon may take to end once it has removed the overlay.
const UNTIL_DAEMON_ENDS: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Down {}

impl Down {
    pub async fn run(self, client: &Client, socket: &Path, state: PathBuf) -> anyhow::Result<()> {
        match client.down().await {
            Err(error) if error.is_no_daemon() => without_daemon(socket, state).await,
            outcome => {
                outcome?;
                // What comes after this command may be the next start.
                if !until_free(UNTIL_DAEMON_ENDS)? {
                    anyhow::bail!(
                        "the overlay is removed, but its daemon still runs after {} s; see its log",
                        UNTIL_DAEMON_ENDS.as_secs()
                    );
                }
                Ok(())
            }
        }
    }
}

/// Removes what a dead daemon left.
async fn without_daemon(socket: &Path, state: PathBuf) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!(
            "remove the overlay: no daemon answers, and only root may do it without one; run as root"
        );
    }
    // Refuses if a daemon lives that only did not answer.
    let _lock = Lock::take()?;
    let store = Store::new(state);
    let (state, _) = store.load_present()?;
    let netlink = Netlink::new()?;
    teardown::down(
        &netlink,
        &OwnSlowPath::new(netlink.clone(), OwnTables::default()),
        &store,
        &state,
        Path::new(PIN_ROOT),
    )
    .await?;
    // A dead daemon's socket answers nobody.
    if std::fs::symlink_metadata(socket).is_ok_and(|found| found.file_type().is_socket()) {
        let _ = std::fs::remove_file(socket);
    }
    // Ours only if nobody put anything else there.
    let _ = socket.parent().map(std::fs::remove_dir);
    Ok(())
}
