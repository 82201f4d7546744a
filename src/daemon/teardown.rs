//! `oncache down`: removes every trace from the host. Needs no configuration and no running daemon,
//! only the state.

use std::{fmt, path::Path};

use crate::{
    container::{
        devices::{is_host_device, remove_device},
        namespace,
    },
    datapath::{attach, pins},
    netlink::Netlink,
    policy::kernel,
    slow_path::SlowPath,
    state::{State, Store},
};

/// What could not be removed; everything else was.
#[derive(Debug, thiserror::Error)]
pub struct TeardownErrors(pub Vec<String>);

impl fmt::Display for TeardownErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; mend that and run `oncache down` again",
            self.0.join("; ")
        )
    }
}

/// Removes containers, programs, maps, rules, devices and kernel settings, and at last the state,
/// which stays while anything else does.
///
/// # Errors
///
/// [`TeardownErrors`] with all that failed, after all was tried.
pub async fn down(
    netlink: &Netlink,
    slow_path: &impl SlowPath,
    store: &Store,
    state: &State,
    pins_root: &Path,
) -> Result<(), TeardownErrors> {
    let mut failures: Vec<String> = Vec::new();
    let mut note = |outcome: Result<(), String>| failures.extend(outcome.err());
    let text = |error: &dyn fmt::Display| error.to_string();

    for (name, container) in &state.containers {
        let removed = remove_device(netlink, &container.device).await;
        note(removed.map_err(|error| format!("container {name}: {error}")));
        if let Some(inode) = container.owned_netns {
            note(namespace::remove(&container.netns, inode).map_err(|error| text(&error)));
        }
    }
    match netlink.links().await {
        Ok(links) => {
            for link in links.iter().filter(|link| is_host_device(link)) {
                note(
                    remove_device(netlink, &link.name)
                        .await
                        .map_err(|error| text(&error)),
                );
            }
        }
        Err(error) => note(Err(text(&error))),
    }
    if let Some(underlay) = &state.underlay {
        note(attach::detach(pins_root, underlay).map_err(|error| text(&error)));
    }
    for device in &state.clsact {
        note(
            netlink
                .delete_clsact(device)
                .await
                .map_err(|error| text(&error)),
        );
    }
    note(pins::remove_all(pins_root).map_err(|error| text(&error)));
    let policy = kernel::remove().await.map(|_| ());
    note(policy.map_err(|error| text(&error)));
    let removed = slow_path.tear_down(state.tcp_be_liberal).await;
    note(removed.map_err(|error| text(&error)));
    if failures.is_empty() {
        failures.extend(store.remove().err().map(|error| text(&error)));
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(TeardownErrors(failures))
    }
}
