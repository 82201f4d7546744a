//! The node's containers: added, deleted, listed.

use std::net::Ipv4Addr;

use tracing::{info, warn};

use super::Node;
use crate::{
    coherence::{Cause, Changed},
    container::{
        ContainerError,
        devices::{self, HostDevice, bring_up, connect},
        namespace,
    },
    control::api::ContainerInfo,
    daemon::DaemonError,
    datapath::DatapathError,
    netlink::forget_connections,
    network::NewContainer,
    policy::opener::forget_openers,
    slow_path::{Endpoint, SlowPath as _},
    state::Container,
};

impl Node {
    /// Adds a container to the overlay.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]; nothing is left behind.
    pub async fn add_container(
        &mut self,
        request: NewContainer,
    ) -> Result<ContainerInfo, DaemonError> {
        let name = request.name.clone();
        let make_netns = request.netns.is_none();
        let mut container = self.network.plan(request)?;
        if !make_netns {
            let holder_of = |ip| {
                let mut all = self.network.containers().iter();
                all.find(|(_, it)| it.ip == ip)
                    .map(|(name, _)| name.clone())
            };
            let network = self.network.config().overlay.network;
            devices::check_namespace(&name, &container, network, holder_of).await?;
        }
        if make_netns {
            let inode = namespace::create(&container.netns).map_err(ContainerError::from)?;
            container.owned_netns = Some(inode);
        }
        // Noted before its devices are made: a crash leaves a record to clean up by.
        self.network.record_mut().admit(&name, container);
        let made = self.make(&name).await;
        if made.is_err() {
            for failure in self.unmake(&name).await {
                warn!("undo adding container {name}: {failure}");
            }
        }
        made
    }

    async fn make(&mut self, name: &str) -> Result<ContainerInfo, DaemonError> {
        let container = self.network.container(name)?.clone();
        self.network.record().save()?;
        let bridge = self.slow_path.bridge().to_owned();
        let uplink = self.network.uplink(&bridge);
        let kind = uplink.kind;
        let index = connect(self.netlink(), name, &container, uplink).await?;
        self.network.connect(name, HostDevice { index, kind });
        // Its address was nobody's: what was learned of an earlier holder has died with that one, and
        // if it was another host's container's, that is told of below.
        self.sync_containers()?.owes_nothing();
        // All of it before the device is up: its first frame finds its source known, the rules
        // that name it in force, the programs there, and nothing left of whoever had the address before.
        let endpoint = Endpoint::of(&container);
        let programs = async { self.fast_path.attach_to_container(&container.device, kind) };
        let (allowed, forgotten, openers, attached) = tokio::join!(
            self.slow_path.allow(&endpoint),
            forget_connections(container.ip),
            forget_openers(container.ip),
            programs,
        );
        attached?;
        forgotten?;
        openers?;
        let guarded = match allowed {
            Ok(()) => Changed::nothing(),
            // The table is not as it should be: look, and mend it.
            Err(_) => self.guard_sources().await?,
        };
        let policy = self.mend_policy().await?.told_as(Cause::Policy, name);
        self.commit(guarded.and(policy));
        let moved = if self.network.is_visitor(container.ip) {
            // Its own route, or what is for it would go on leaving for where it was.
            let overlay = self.mend_overlay().await?;
            // What was learned of it as a remote container is wrong now.
            Changed::new(Cause::ContainerMoved, name).covering(overlay)
        } else {
            Changed::nothing()
        };
        bring_up(self.netlink(), name, &container, uplink).await?;
        self.slow_path.announce(&endpoint).await?;
        self.commit(moved);
        let given_out = !self.network.is_visitor(container.ip);
        let record = self.network.record_mut();
        record.settle(name, given_out.then_some(container.ip));
        record.save()?;
        info!(
            "container {name} added: {} in {}",
            container.ip,
            container.netns.display()
        );
        Ok(self.describe(name, &container))
    }

    /// Deletes a container, whatever is left of it.
    ///
    /// # Errors
    ///
    /// [`DaemonError`] of the first step that failed, after all were tried.
    pub async fn delete_container(&mut self, name: &str) -> Result<(), DaemonError> {
        self.network.container(name)?;
        let mut failures = self.unmake(name).await.into_iter();
        match failures.next() {
            None => {
                info!("container {name} deleted");
                Ok(())
            }
            Some(first) => {
                failures.for_each(|failure| warn!("delete container {name}: {failure}"));
                Err(first)
            }
        }
    }

    /// Removes all that belongs to a container, ending with its record and address, which stay if
    /// anything else does: the address must not be given out again while something answers to it.
    pub(super) async fn unmake(&mut self, name: &str) -> Vec<DaemonError> {
        let Some(container) = self.network.containers().get(name).cloned() else {
            return Vec::new();
        };
        let mut failures: Vec<DaemonError> = Vec::new();
        // The device first: it takes its programs along, each of which by itself takes a grace
        // period to detach (kernel/bpf/tcx.c, `tcx_link_release`).
        let endpoint = Endpoint::of(&container);
        let (removed, forbidden) = tokio::join!(
            devices::remove(self.netlink(), name, &container),
            self.slow_path.forbid(&endpoint),
        );
        failures.extend(removed.err().map(DaemonError::from));
        let mut changed = Changed::nothing();
        if forbidden.is_err() {
            // It may have gone with the table, or never have been in it: look, and mend it.
            let mut others = self.network.endpoints();
            others.retain(|other| other.ip != container.ip);
            match self.slow_path.guard(&others).await {
                Ok(guarded) => changed = guarded,
                Err(failure) => failures.push(failure.into()),
            }
        }
        failures.extend(
            self.fast_path
                .detach(&container.device)
                .err()
                .map(DaemonError::from),
        );
        if let Some(inode) = container.owned_netns {
            let removed = namespace::remove(&container.netns, inode).map_err(ContainerError::from);
            failures.extend(removed.err().map(DaemonError::from));
        }
        let was_connected = self.network.disconnect(name);
        match self.sync_containers() {
            Ok(told) => changed = changed.and(told),
            Err(failure) => failures.push(failure.into()),
        }
        // The slow path forgets who had the address, as a neighbour and as an end of connections.
        let (forgotten, openers, neighbour) = tokio::join!(
            forget_connections(container.ip),
            forget_openers(container.ip),
            self.slow_path.forget(container.ip),
        );
        failures.extend(forgotten.err().map(DaemonError::from));
        failures.extend(openers.err().map(DaemonError::from));
        failures.extend(neighbour.err().map(DaemonError::from));
        // Last: whatever is learned in the new epoch was judged without all of that. Nothing was
        // learned of one that never had a device.
        let gone = if was_connected {
            Changed::new(Cause::ContainerGone, name).covering(changed)
        } else {
            changed.told_as(Cause::ContainerGone, name)
        };
        self.commit(gone);
        if failures.is_empty() {
            self.network.record_mut().dismiss(name);
            // Before the address can be another's.
            match self.mend_policy().await {
                Ok(changed) => {
                    self.commit(changed.told_as(Cause::Policy, name));
                }
                Err(failure) => failures.push(failure),
            }
            if self.network.is_visitor(container.ip) {
                let mut moved = Changed::new(Cause::ContainerMoved, name);
                match self.mend_overlay().await {
                    Ok(overlay) => moved = moved.covering(overlay),
                    Err(failure) => failures.push(failure),
                }
                self.commit(moved);
            }
        }
        // What is gone is gone, whether that can be noted or not.
        self.network.record_mut().save_or_note();
        failures
    }

    fn sync_containers(&mut self) -> Result<Changed, DatapathError> {
        self.fast_path.sync_containers(&self.network)
    }

    /// Makes the containers here ask anew where these addresses are: their neighbour tables would go
    /// on leading to somebody who is gone, until the kernel finds out (net/ipv4/arp.c: `delay_probe_time`
    /// and three probes, some 8 s). A container that can't be entered waits that long.
    pub(super) async fn forget_in_containers(&self, addresses: &[Ipv4Addr]) {
        if addresses.is_empty() {
            return;
        }
        for (name, container) in self.network.containers() {
            if let Err(reason) = devices::forget_neighbours(name, container, addresses).await {
                warn!("{reason}");
            }
        }
    }

    /// All containers.
    #[must_use]
    pub fn list_containers(&self) -> Vec<ContainerInfo> {
        self.network
            .containers()
            .iter()
            .map(|(name, container)| self.describe(name, container))
            .collect()
    }

    fn describe(&self, name: &str, container: &Container) -> ContainerInfo {
        let hindrances = self.fast_path.hindrances().of_container(name);
        ContainerInfo {
            name: name.to_owned(),
            ip: container.ip,
            netns: container.netns.clone(),
            ifname: container.ifname.clone(),
            device: container.device.clone(),
            route: container.route,
            not_carried: hindrances
                .map(|it| format!("{}: {}", it.device, it.reason))
                .collect(),
        }
    }

    /// Lets every container send from its own addresses, and from no others.
    pub(super) async fn guard_sources(&self) -> Result<Changed, DaemonError> {
        Ok(self.slow_path.guard(&self.network.endpoints()).await?)
    }
}
