//! `oncache down`.

use std::path::{Path, PathBuf};

use crate::{
    control::client::Client,
    daemon::{Lock, teardown},
    datapath::PIN_ROOT,
    netlink::Netlink,
    overlay::sysctl::Sysctls,
    state::Store,
};

#[derive(Debug, clap::Args)]
pub struct Down {}

impl Down {
    pub async fn run(self, client: &Client, socket: &Path, state: PathBuf) -> anyhow::Result<()> {
        match client.down().await {
            Err(error) if error.is_no_daemon() => without_daemon(socket, state).await,
            outcome => Ok(outcome?),
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
        &Sysctls::default(),
        &store,
        &state,
        Path::new(PIN_ROOT),
    )
    .await?;
    // A dead daemon's socket answers nobody.
    let _ = std::fs::remove_file(socket);
    // Ours only if nobody put anything else there.
    let _ = socket.parent().map(std::fs::remove_dir);
    Ok(())
}
