//! The node's containers: added, deleted, adopted, mended.

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path};

use tracing::{info, warn};

use super::{DaemonError, Node, own_tables::Own};
use crate::{
    coherence::Cause,
    config::check_name,
    container::{
        ContainerError,
        addresses::{claim, next_free},
        devices::{self, HostDevice, Uplink, bring_up, connect, container_mac, host_device},
        namespace,
    },
    control::api::{AddContainer, ContainerInfo},
    datapath::{PIN_ROOT, attach},
    netlink::{Link, NetlinkError, forget_connections},
    overlay::{
        names::BRIDGE,
        source_guard::{self, Source},
    },
    policy::opener::forget_openers,
    shown::{PATH, VALUE, cut},
    state::Container,
};

/// The longest device name (include/uapi/linux/if.h, `IFNAMSIZ` less the NUL).
const IFNAME_LENGTH: usize = 15;

impl Node {
    /// Adds a container to the overlay.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]; nothing is left behind.
    pub async fn add_container(
        &mut self,
        request: AddContainer,
    ) -> Result<ContainerInfo, DaemonError> {
        let name = request.name.clone();
        let make_netns = request.netns.is_none();
        let mut container = self.plan(request)?;
        if !make_netns {
            let holder_of = |ip| {
                let mut all = self.state.containers.iter();
                all.find(|(_, it)| it.ip == ip)
                    .map(|(name, _)| name.clone())
            };
            let network = self.config.overlay.network;
            devices::check_namespace(&name, &container, network, holder_of).await?;
        }
        if make_netns {
            let inode = namespace::create(&container.netns).map_err(ContainerError::from)?;
            container.owned_netns = Some(inode);
        }
        // Noted before its devices are made: a crash leaves a record to clean up by.
        self.state.containers.insert(name.clone(), container);
        let made = self.make(&name).await;
        if made.is_err() {
            for failure in self.unmake(&name).await {
                warn!("undo adding container {name}: {failure}");
            }
        }
        made
    }

    /// The container that a request describes, with its address.
    fn plan(&self, request: AddContainer) -> Result<Container, ContainerError> {
        let name = request.name;
        let bad = |reason: String| ContainerError::BadName {
            // A bad name may be a long one.
            name: cut(&name, VALUE),
            reason,
        };
        check_name(&name).map_err(&bad)?;
        if self.state.containers.contains_key(&name) {
            return Err(ContainerError::Exists(name));
        }
        check_ifname(&request.ifname).map_err(&bad)?;
        if let Some(path) = request.netns.as_ref().filter(|path| !path.is_absolute()) {
            return Err(bad(format!(
                "network namespace {}: give an absolute path",
                cut(&path.to_string_lossy(), PATH)
            )));
        }
        // Known before anything is made: to undo it would take the other one's programs away.
        let device = host_device(&name);
        let mut others = self.state.containers.iter();
        if let Some((holder, _)) = others.find(|(_, it)| it.device == device) {
            return Err(ContainerError::SameDevice {
                name,
                device,
                holder: holder.clone(),
            });
        }
        let overlay = &self.config.overlay;
        let held = || {
            self.state
                .containers
                .iter()
                .map(|(name, it)| (it.ip, name.as_str()))
        };
        let ip = match request.ip {
            Some(wish) => claim(&self.config, held(), wish)?,
            None => {
                let here = held().map(|(ip, _)| ip);
                let taken = here.chain(self.config.away()).collect();
                let last = self.state.last_address;
                next_free(overlay.subnet, &taken, last)?
            }
        };
        Ok(Container {
            ip,
            owned_netns: None,
            netns: request.netns.unwrap_or_else(|| namespace::path(&name)),
            ifname: request.ifname,
            device,
            route: request.route,
            pending: true,
        })
    }

    /// What a container is connected to.
    pub(super) fn uplink(&self) -> Uplink<'static> {
        let overlay = &self.config.overlay;
        Uplink {
            bridge: BRIDGE,
            subnet: overlay.subnet,
            network: overlay.network,
            gateway: overlay.gateway(),
            mtu: overlay.mtu,
            kind: self.config.container.pair_kind(),
        }
    }

    async fn make(&mut self, name: &str) -> Result<ContainerInfo, DaemonError> {
        let container = self.record(name)?.clone();
        self.store.save(&self.state)?;
        let uplink = self.uplink();
        let kind = uplink.kind;
        let index = connect(&self.netlink, name, &container, uplink).await?;
        self.devices
            .insert(name.to_owned(), HostDevice { index, kind });
        self.sync_containers()?;
        // All of it before the device is up: its first frame finds its source known, the rules
        // that name it in force, the programs there, and nothing left of whoever had the address before.
        let source = source_of(&container);
        self.own_tables.forget(&[Own::Sources]);
        let programs = async { self.attach_to_container(&container.device, kind) };
        let (allowed, forgotten, openers, attached) = tokio::join!(
            source_guard::allow(&source),
            forget_connections(container.ip),
            forget_openers(container.ip),
            programs,
        );
        attached?;
        forgotten?;
        openers?;
        if allowed.is_err() {
            // The table is not as it should be: look, and mend it.
            self.guard_sources().await?;
        }
        if self.mend_policy().await? {
            self.invalidate(Cause::Policy, name);
        }
        if self.is_visitor(container.ip) {
            // Its own route, or what is for it would go on leaving for where it was.
            self.mend_overlay().await?;
        }
        bring_up(&self.netlink, name, &container, uplink).await?;
        self.greet(&container).await?;
        if self.is_visitor(container.ip) {
            // What was learned of it as a remote container is wrong now.
            self.invalidate(Cause::ContainerMoved, name);
        }
        if let Some(record) = self.state.containers.get_mut(name) {
            record.pending = false;
        }
        if !self.is_visitor(container.ip) {
            self.state.last_address = Some(container.ip);
        }
        self.store.save(&self.state)?;
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
        self.record(name)?;
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

    fn record(&self, name: &str) -> Result<&Container, ContainerError> {
        let unknown = || ContainerError::Unknown(name.to_owned());
        self.state.containers.get(name).ok_or_else(unknown)
    }

    /// Removes all that belongs to a container, ending with its record and address, which stay if
    /// anything else does: the address must not be given out again while something answers to it.
    async fn unmake(&mut self, name: &str) -> Vec<DaemonError> {
        let Some(container) = self.state.containers.get(name).cloned() else {
            return Vec::new();
        };
        let mut failures: Vec<DaemonError> = Vec::new();
        let root = Path::new(PIN_ROOT);
        // The device first: it takes its programs along, each of which by itself takes a grace
        // period to detach (kernel/bpf/tcx.c, `tcx_link_release`).
        let source = source_of(&container);
        self.own_tables.forget(&[Own::Sources]);
        let (removed, forbidden) = tokio::join!(
            devices::remove(&self.netlink, name, &container),
            source_guard::forbid(&source),
        );
        failures.extend(removed.err().map(DaemonError::from));
        if forbidden.is_err() {
            // It may have gone with the table, or never have been in it: look, and mend it.
            let sources = self.sources(Some(container.ip));
            failures.extend(self.guard(&sources).await.err());
        }
        failures.extend(
            attach::detach(root, &container.device)
                .err()
                .map(DaemonError::from),
        );
        if let Some(inode) = container.owned_netns {
            let removed = namespace::remove(&container.netns, inode).map_err(ContainerError::from);
            failures.extend(removed.err().map(DaemonError::from));
        }
        let was_connected = self.devices.remove(name).is_some();
        self.silent.remove(name);
        failures.extend(self.sync_containers().err().map(DaemonError::from));
        // The slow path forgets who had the address, as a neighbour and as an end of connections.
        let (forgotten, openers, neighbour) = tokio::join!(
            forget_connections(container.ip),
            forget_openers(container.ip),
            self.forget_neighbour(container.ip),
        );
        failures.extend(forgotten.err().map(DaemonError::from));
        failures.extend(openers.err().map(DaemonError::from));
        failures.extend(neighbour.err().map(DaemonError::from));
        // Last: whatever is learned in the new epoch was judged without all of that. Nothing was
        // learned of one that never had a device.
        if was_connected {
            self.invalidate(Cause::ContainerGone, name);
        }
        if failures.is_empty() {
            self.state.containers.remove(name);
            // Before the address can be another's.
            match self.mend_policy().await {
                Ok(true) => self.invalidate(Cause::Policy, name),
                Ok(false) => {}
                Err(failure) => failures.push(failure),
            }
            if self.is_visitor(container.ip) {
                failures.extend(self.mend_overlay().await.err());
                self.invalidate(Cause::ContainerMoved, name);
            }
        }
        // What is gone is gone, whether that can be noted or not.
        if let Err(reason) = self.store.save(&self.state) {
            self.note_unsaved(&reason);
        }
        failures
    }

    /// Tells the host's own neighbour table where an address is. It asks nobody: whoever answers first would
    /// be believed.
    async fn greet(&self, container: &Container) -> Result<(), NetlinkError> {
        let bridge = self.netlink.index_of(BRIDGE).await?;
        let mac = container_mac(container.ip);
        self.netlink
            .replace_neighbour(bridge, container.ip, mac)
            .await
    }

    /// What is for the container would be sent to where nobody is.
    async fn forget_neighbour(&self, ip: Ipv4Addr) -> Result<(), NetlinkError> {
        let gone = async {
            let bridge = self.netlink.index_of(BRIDGE).await?;
            self.netlink.delete_neighbour(bridge, ip).await
        };
        match gone.await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the containers here ask anew where these addresses are: their neighbour tables would go
    /// on leading to somebody who is gone, until the kernel finds out (net/ipv4/arp.c: `delay_probe_time`
    /// and three probes, some 8 s). A container that can't be entered waits that long.
    pub(super) async fn forget_in_containers(&self, addresses: &[Ipv4Addr]) {
        if addresses.is_empty() {
            return;
        }
        for (name, container) in &self.state.containers {
            if let Err(reason) = devices::forget_neighbours(name, container, addresses).await {
                warn!("{reason}");
            }
        }
    }

    /// All containers.
    #[must_use]
    pub fn list_containers(&self) -> Vec<ContainerInfo> {
        self.state
            .containers
            .iter()
            .map(|(name, container)| self.describe(name, container))
            .collect()
    }

    fn describe(&self, name: &str, container: &Container) -> ContainerInfo {
        let hindrances = self.hindrances.of_container(name);
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

    /// Takes over the containers of an earlier daemon, and removes what it left half made.
    /// Returns whether anything had to be changed.
    pub(super) async fn adopt_containers(&mut self) -> Result<bool, DaemonError> {
        let halves: Vec<String> = self
            .state
            .containers
            .iter()
            .filter(|(_, container)| container.pending)
            .map(|(name, _)| name.clone())
            .collect();
        for name in halves {
            info!("container {name}: was being added when the daemon ended; removing it");
            for failure in self.unmake(&name).await {
                warn!("remove container {name}: {failure}");
            }
        }
        self.remove_leftovers().await?;
        self.mend_containers().await
    }

    /// Lets every container send from its own addresses, and from no others. Returns whether that
    /// took a change.
    async fn guard_sources(&self) -> Result<bool, DaemonError> {
        self.guard(&self.sources(None)).await
    }

    async fn guard(&self, sources: &BTreeSet<Source>) -> Result<bool, DaemonError> {
        self.own_tables.make_from(&[Own::Sources], sources);
        let done = source_guard::reconcile(sources).await?;
        for line in &done {
            info!("{line}");
        }
        Ok(!done.is_empty())
    }

    /// Who may send, but for the holder of an address that is being taken away.
    fn sources(&self, but: Option<Ipv4Addr>) -> BTreeSet<Source> {
        let containers = self.state.containers.values();
        containers
            .filter(|container| Some(container.ip) != but)
            .map(source_of)
            .collect()
    }

    /// The containers' devices that a list of all devices lacks though they are there: it may, where
    /// others' devices came and went while it was made, and no container is given up for that.
    async fn unlisted(&self, listed: &[Link]) -> Result<Vec<Link>, DaemonError> {
        let mut found = Vec::new();
        for (name, container) in &self.state.containers {
            if devices::find(listed, name, container).is_some() {
                continue;
            }
            let mut candidates = Vec::new();
            candidates.extend(self.netlink.link_by_name(&container.device).await?);
            if let Some(device) = self.devices.get(name) {
                candidates.extend(self.netlink.link(device.index).await?);
            }
            found.extend(devices::find(&candidates, name, container).cloned());
        }
        Ok(found)
    }

    /// Puts the containers' host-side devices right and notices those that vanished. Returns
    /// whether anything changed.
    pub(super) async fn mend_containers(&mut self) -> Result<bool, DaemonError> {
        let uplink = self.uplink();
        let mut changed = false;
        let mut vanished = Vec::new();
        let mut links = self.netlink.links().await?;
        links.extend(self.unlisted(&links).await?);
        let mut silent = BTreeSet::new();
        for (name, container) in &self.state.containers {
            match devices::mend(&self.netlink, &links, name, container, uplink).await? {
                Some(end) => {
                    // One that was not known before was adopted as it is.
                    let before = self.devices.insert(name.clone(), end.device);
                    changed |= end.mended | before.is_some_and(|before| before != end.device);
                    if !end.carrier {
                        silent.insert(name.clone());
                    }
                }
                None => vanished.push(name.clone()),
            }
        }
        for name in vanished {
            warn!("container {name}: its device is gone, and with it the container; removing it");
            for failure in self.unmake(&name).await {
                warn!("remove container {name}: {failure}");
            }
            changed = true;
        }
        changed |= self.guard_sources().await?;
        // A container that sets its own device down or up is nobody else's concern: its entry goes or
        // comes, and no rule has changed.
        let its_own = self.silent != silent;
        self.silent = silent;
        let told = self.sync_containers()? | self.mend_ports().await?;
        changed |= told && !its_own;
        Ok(changed)
    }
}

/// What the container may send from.
fn source_of(container: &Container) -> Source {
    Source {
        device: container.device.clone(),
        mac: container_mac(container.ip),
        ip: container.ip,
    }
}

/// What the kernel takes for a device name (net/core/dev.c, `dev_valid_name`).
fn check_ifname(ifname: &str) -> Result<(), String> {
    let valid = !ifname.is_empty()
        && ifname.len() <= IFNAME_LENGTH
        && ![".", "..", "lo"].contains(&ifname)
        && ifname
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if valid {
        Ok(())
    } else {
        Err(format!(
            "device name {:?}: give 1 to {IFNAME_LENGTH} letters, digits or signs, without '/' and ':'",
            cut(ifname, VALUE)
        ))
    }
}
