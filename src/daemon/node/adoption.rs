//! Containers that are there already: taken over from an earlier daemon, and put right.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::Node;
use crate::{
    coherence::Changed, container::devices, daemon::DaemonError, netlink::Link,
    slow_path::SlowPath as _,
};

impl Node {
    /// Takes over the containers of an earlier daemon, and removes what it left half made.
    pub(super) async fn adopt_containers(&mut self) -> Result<Changed, DaemonError> {
        for name in self.network.half_made() {
            info!("container {name}: was being added when the daemon ended; removing it");
            for failure in self.unmake(&name).await {
                warn!("remove container {name}: {failure}");
            }
        }
        self.remove_leftovers().await?;
        self.mend_containers().await
    }

    /// Removes devices that are marked as ours, that no record knows, and whose far end is in no
    /// namespace of its own: leftovers. What carries a namespace stays: a start has refused to be, and
    /// one that has come since is somebody else's to judge.
    async fn remove_leftovers(&self) -> Result<(), DaemonError> {
        for link in self.netlink().links().await? {
            let unknown = devices::container_of(&link)
                .is_some_and(|name| !self.network.containers().contains_key(name));
            if !unknown || !devices::is_host_device(&link) {
                continue;
            }
            if devices::carries_a_namespace(&link) {
                warn!(
                    "device {} is marked as a container's that is not known here, and carries a network namespace; it stays",
                    link.name
                );
                continue;
            }
            info!("delete leftover device {}", link.name);
            self.netlink().delete_link(link.index).await?;
        }
        Ok(())
    }

    /// The containers' devices that a list of all devices lacks though they are there: it may, where
    /// others' devices came and went while it was made, and no container is given up for that.
    async fn unlisted(&self, listed: &[Link]) -> Result<Vec<Link>, DaemonError> {
        let mut found = Vec::new();
        for (name, container) in self.network.containers() {
            if devices::find(listed, name, container).is_some() {
                continue;
            }
            let mut candidates = Vec::new();
            candidates.extend(self.netlink().link_by_name(&container.device).await?);
            if let Some(device) = self.network.device(name) {
                candidates.extend(self.netlink().link(device.index).await?);
            }
            found.extend(devices::find(&candidates, name, container).cloned());
        }
        Ok(found)
    }

    /// Puts the containers' host-side devices right and notices those that vanished.
    pub(super) async fn mend_containers(&mut self) -> Result<Changed, DaemonError> {
        let uplink = self.network.uplink(self.slow_path.bridge());
        let mut changed = false;
        let mut vanished = Vec::new();
        let mut links = self.netlink().links().await?;
        links.extend(self.unlisted(&links).await?);
        let mut silent = BTreeSet::new();
        for (name, container) in self.network.containers().clone() {
            let mended = devices::mend(self.netlink(), &links, &name, &container, uplink).await?;
            let Some(end) = mended else {
                vanished.push(name);
                continue;
            };
            let before = self.network.connect(&name, end.device);
            changed |= end.mended | before.is_some_and(|before| before != end.device);
            if !end.carrier {
                // One that was not known before is adopted as it is.
                if before.is_none() {
                    self.network.note_silent(&name);
                }
                silent.insert(name);
            }
        }
        for name in vanished {
            warn!("container {name}: its device is gone, and with it the container; removing it");
            for failure in self.unmake(&name).await {
                warn!("remove container {name}: {failure}");
            }
            changed = true;
        }
        let mut changed = Changed::mended(changed).and(self.guard_sources().await?);
        changed = changed.and(self.tell_of_containers().await?);
        if self.network.set_silent(silent) {
            // A container that sets its own device down or up is nobody else's concern: its entry
            // goes or comes, and no rule has changed. By itself, so that nothing else is taken for it.
            self.tell_of_containers().await?.owes_nothing();
        }
        Ok(changed)
    }

    /// Tells programs and bridge which containers are here.
    async fn tell_of_containers(&mut self) -> Result<Changed, DaemonError> {
        let told = self.fast_path.sync_containers(&self.network)?;
        let ports = self.slow_path.place(&self.network.endpoints()).await?;
        Ok(told.and(ports))
    }
}
