//! The node's fast path: when it is loaded, what it is told, when it forgets.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    path::Path,
};

use oncache_abi::settings::Constants;
use tracing::{error, info, warn};

use super::{DaemonError, Node};
use crate::{
    coherence::{Cause, effective_lease, fingerprint},
    config::{Attach, Config},
    container::devices::HostDevice,
    datapath::{
        AttachMode, Datapath, DatapathError, PIN_ROOT, Present, Sizes,
        attach::{self, Role},
        clock,
        epoch::Tuning,
        pins,
    },
    netlink::{PairKind, Timeout, object_timeouts},
    overlay::names::{gateway_mac, vtep_mac},
};

/// Whose a connection timeout is if it is no object's.
const SYSCTL: &str = "the shortest of sysctl net.netfilter.nf_conntrack_*";

impl Node {
    /// Loads and attaches the programs, over what an earlier daemon has pinned; or takes everything
    /// away where the fast path is switched off or can't be had. The overlay works without it.
    pub(super) fn start_fast_path(&mut self) {
        self.fast_path_failure = None;
        if self.config.cache.enabled {
            match self.try_start_fast_path() {
                Ok(()) => return,
                Err(reason) => {
                    error!("no fast path, the overlay runs without: {reason}");
                    self.fast_path_failure = Some(reason.to_string());
                }
            }
        }
        // Programs that no daemon of this configuration could invalidate must not run on.
        if let Err(reason) = self.stop_fast_path() {
            error!("remove the fast path: {reason}");
        }
    }

    /// Whether programs are loaded.
    pub(super) const fn has_fast_path(&self) -> bool {
        self.datapath.is_some()
    }

    /// Takes the fast path away until [`Node::start_fast_path`].
    pub(super) fn leave_fast_path(&mut self) {
        if let Err(reason) = self.stop_fast_path() {
            error!("remove the fast path: {reason}");
        }
    }

    /// Tells the programs who the peers are: packets from and to those that are gone miss at once.
    pub(super) fn sync_peers(&mut self) -> Result<bool, DaemonError> {
        let peers = self.config.peers.iter().map(|peer| peer.address);
        let peers: HashSet<Ipv4Addr> = peers
            .filter(|peer| !self.hindrances.withholds_peer(*peer))
            .collect();
        match &mut self.datapath {
            Some(datapath) => Ok(datapath.set_peers(&peers)?),
            None => Ok(false),
        }
    }

    fn try_start_fast_path(&mut self) -> Result<(), DaemonError> {
        let former = match &self.datapath {
            Some(datapath) => Some(datapath.settings()?.epoch),
            None => None,
        };
        let root = Path::new(PIN_ROOT);
        let sizes = Sizes {
            flows: self.config.cache.flows,
        };
        let mode = attach_mode(self.config.cache.attach);
        let datapath = Datapath::load(root, &constants(&self.config), sizes, mode)?;
        if let Some(former) = former {
            // Packets may be on their way that missed under the former maps: new ones must not take
            // their marks for their own.
            datapath.count_on_from(former)?;
        }
        // Where other maps are pinned, the programs that run may use those: then nobody has told
        // ours of what happened since they were in use last.
        let maps = pins::maps(root, sizes);
        let outdated = !pins::other_maps(root, &maps)?.is_empty();
        // Before any program of it can learn.
        self.invalidator.take_charge_of(Some(datapath.epoch()));
        self.datapath = Some(datapath);
        self.sync_peers()?;
        self.sync_containers()?;
        // What was learned under another configuration dies before these programs see it, and what
        // the programs before them may have learned meanwhile dies after.
        let tuning = self.tuning()?;
        if let Some(datapath) = &mut self.datapath {
            let renewed = datapath.announce(&tuning)?;
            if outdated && !renewed {
                datapath.raise_epoch()?;
            }
        }
        self.mend_attachments()?;
        let renewed = self.tune_fast_path()?;
        if let Some(datapath) = &self.datapath
            && outdated
            && !renewed
        {
            let epoch = datapath.raise_epoch()?;
            self.invalidator.count(Cause::Configuration);
            info!("epoch {epoch}: maps of another version or size were in use");
        }
        self.remove_garbage(&maps);
        Ok(())
    }

    /// Removes pins that other builds, other sizes and crashed runs have left. Only once all that
    /// has to run is attached: until then, packets may still go by them.
    fn remove_garbage(&self, maps: &Path) {
        let root = Path::new(PIN_ROOT);
        match pins::remove_other_maps(root, maps) {
            Ok(stale) => stale
                .iter()
                .for_each(|name| info!("removed maps of another version or size: {name}")),
            // In nobody's way; the next start tries again.
            Err(reason) => warn!("remove maps of another version or size: {reason}"),
        }
        let Some(datapath) = &self.datapath else {
            return;
        };
        let containers = self.state.containers.iter();
        let wanted: Vec<_> = containers
            .map(|(name, container)| (&*container.device, role_of(self.devices.get(name))))
            .chain([(&*self.config.node.underlay, Role::Underlay)])
            .collect();
        match datapath.remove_other_links(&wanted) {
            Ok(stale) => stale
                .iter()
                .for_each(|name| info!("removed a program's leftover link: {name}")),
            Err(reason) => warn!("remove leftover links: {reason}"),
        }
    }

    /// Puts the programs on every device that has to have them, where they are not: somebody may
    /// have removed a qdisc or a link.
    pub(super) fn mend_attachments(&mut self) -> Result<(), DaemonError> {
        let Some(datapath) = &mut self.datapath else {
            return Ok(());
        };
        let underlay = self.config.node.underlay.clone();
        let attached = datapath.attach(&underlay, Role::Underlay)?;
        if attached.fresh {
            info!("attached programs to {underlay}");
        }
        for (name, container) in &self.state.containers {
            let role = role_of(self.devices.get(name));
            if datapath.attach(&container.device, role)?.fresh {
                info!("attached programs to {}", container.device);
            }
        }
        let before = (self.state.underlay.clone(), self.state.clsact.len());
        if attached.made_clsact && !self.state.clsact.contains(&underlay) {
            self.state.clsact.push(underlay.clone());
        }
        self.state.underlay = Some(underlay);
        if before != (self.state.underlay.clone(), self.state.clsact.len()) {
            self.store.save(&self.state)?;
        }
        Ok(())
    }

    /// Puts the programs on the device of a container that is being added.
    pub(super) fn attach_to_container(
        &mut self,
        device: &str,
        kind: PairKind,
    ) -> Result<(), DatapathError> {
        match &mut self.datapath {
            Some(datapath) => datapath.attach(device, role(kind)).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Notes that the underlay's clsact qdisc is going to be ours to remove, where there will be one
    /// and is none now. Ahead of its making: a crash in between leaves no qdisc without an owner.
    pub(super) async fn note_clsact(&mut self) -> Result<(), DaemonError> {
        let underlay = &self.config.node.underlay;
        let will_be = self.config.cache.enabled
            && attach_mode(self.config.cache.attach) == AttachMode::Clsact
            && !self.state.clsact.contains(underlay);
        if will_be && !self.netlink.has_clsact(underlay).await? {
            self.state.clsact.push(underlay.clone());
            self.store.save(&self.state)?;
        }
        Ok(())
    }

    /// Removes the clsact qdiscs that were made for filters where links have taken their place, or
    /// nothing has. Those that others use stay.
    pub(super) async fn leave_clsact(&mut self) {
        let mode = self.datapath.as_ref().map(Datapath::mode);
        if mode == Some(AttachMode::Clsact) {
            return;
        }
        let with = match self.netlink.with_clsact().await {
            Ok(with) => with,
            Err(reason) => {
                warn!("look for qdiscs that filters were on: {reason}");
                return;
            }
        };
        let containers = self.state.containers.iter();
        let devices: Vec<String> = containers
            // Most have none, and there may be hundreds of them.
            .filter(|(name, _)| {
                let device = self.devices.get(*name);
                device.is_some_and(|device| with.contains(&device.index))
            })
            .map(|(_, container)| container.device.clone())
            .chain(self.state.clsact.iter().cloned())
            .collect();
        let noted = self.state.clsact.len();
        for device in &devices {
            match self.netlink.delete_clsact(device).await {
                Ok(()) => self.state.clsact.retain(|made| made != device),
                // In nobody's way; the next start tries again.
                Err(reason) => warn!("remove the qdisc that filters were on: {reason}"),
            }
        }
        if noted != self.state.clsact.len()
            && let Err(reason) = self.store.save(&self.state)
        {
            warn!("{reason}");
        }
    }

    /// Takes the programs off an underlay device that is one no more.
    pub(super) async fn leave_underlay(&mut self, device: &str) {
        if let Err(reason) = attach::detach(Path::new(PIN_ROOT), device) {
            error!("leave the underlay device: {reason}");
        }
        if self.state.clsact.iter().any(|made| made == device) {
            match self.netlink.delete_clsact(device).await {
                Ok(()) => self.state.clsact.retain(|made| made != device),
                Err(reason) => error!("leave the underlay device: {reason}"),
            }
        }
    }

    fn stop_fast_path(&mut self) -> Result<(), DatapathError> {
        self.datapath = None;
        self.invalidator.take_charge_of(None);
        let root = Path::new(PIN_ROOT);
        let underlay = self.state.underlay.iter();
        let devices = underlay.chain(
            self.state
                .containers
                .values()
                .map(|container| &container.device),
        );
        let mut first = Ok(());
        for device in devices {
            first = first.and(attach::detach(root, device));
        }
        first.and(pins::remove_all(root))
    }

    /// Tells the programs which containers are here. Returns whether that was news to them.
    pub(super) fn sync_containers(&mut self) -> Result<bool, DatapathError> {
        self.invalidator.set_containers(self.device_names());
        let Some(datapath) = &mut self.datapath else {
            return Ok(false);
        };
        let present: Vec<Present> = self
            .devices
            .iter()
            // The kernel would drop what is redirected to a device that is down inside; the slow path
            // tells the sender that there is nobody.
            .filter(|(name, _)| !self.silent.contains(*name))
            .filter_map(|(name, it)| {
                Some(Present {
                    ip: self.state.containers.get(name)?.ip,
                    ifindex: it.index,
                    withheld: self.hindrances.withholds_container(name),
                })
            })
            .collect();
        datapath.set_containers(&present)
    }

    /// The containers' host-side devices, by index.
    pub(super) fn device_names(&self) -> HashMap<u32, String> {
        let devices = self.devices.iter();
        devices
            .filter_map(|(name, device)| {
                let container = self.state.containers.get(name)?;
                Some((device.index, container.device.clone()))
            })
            .collect()
    }

    /// Lease and ports as the host's settings ask for, and what learned results depend on.
    fn tuning(&mut self) -> Result<Tuning, DaemonError> {
        let mut timeouts = object_timeouts()?;
        timeouts.extend(
            self.sysctls
                .conntrack_timeouts()?
                .into_iter()
                .map(|seconds| {
                    let object = SYSCTL.to_owned();
                    Timeout { seconds, object }
                }),
        );
        let seconds: Vec<u64> = timeouts.iter().map(|timeout| timeout.seconds).collect();
        let lease = effective_lease(self.config.cache.lease, &seconds);
        let shortest = timeouts
            .into_iter()
            .filter(|timeout| timeout.seconds > 0)
            .min();
        let bound = shortest.filter(|_| lease < self.config.cache.lease);
        if bound != self.lease_bound {
            let is_object = |bound: &Option<Timeout>| {
                bound.as_ref().is_some_and(|bound| bound.object != SYSCTL)
            };
            let told = is_object(&bound) || is_object(&self.lease_bound);
            match bound.as_ref().filter(|_| told) {
                Some(Timeout { seconds, object }) => {
                    info!("lease {lease:?}: half of {object}, {seconds} s");
                }
                None if told => info!("lease {lease:?}, as configured"),
                None => {}
            }
            self.lease_bound = bound;
        }
        let ports = self.sysctls.local_port_range()?;
        Ok(Tuning {
            lease,
            is_cut: self.lease_bound.is_some(),
            ports: (*ports.start(), *ports.end()),
            fingerprint: fingerprint(&self.config),
        })
    }

    /// Applies [`Node::tuning`]; a new epoch where what was learned under another configuration
    /// does not hold. Returns whether the epoch was raised.
    pub(super) fn tune_fast_path(&mut self) -> Result<bool, DaemonError> {
        let tuning = self.tuning()?;
        let Some(datapath) = &self.datapath else {
            return Ok(false);
        };
        let cause = if datapath.settings()?.fingerprint == tuning.fingerprint {
            Cause::Lease
        } else {
            Cause::Configuration
        };
        let raised = datapath.tune(&tuning)?;
        if raised {
            info!("new epoch: {cause}");
            self.invalidator.count(cause);
        }
        Ok(raised)
    }

    /// Makes everything learned so far dead, after a change in the slow path; `object` says of
    /// what, and is empty if the cause says it all. When this returns, no packet is judged by the
    /// old state.
    pub fn invalidate(&mut self, cause: Cause, object: &str) {
        self.invalidator.raise_and_wait(cause, object);
        self.heed_failure();
    }

    /// Ends the fast path if the epoch could not be raised: what can't be invalidated must not be
    /// used.
    pub fn heed_failure(&mut self) {
        let Some(reason) = self.invalidator.take_failure() else {
            return;
        };
        error!("the fast path is switched off: its epoch can't be raised");
        self.fast_path_failure = Some(reason);
        if let Err(reason) = self.stop_fast_path() {
            error!("remove the fast path: {reason}");
        }
    }

    /// Removes dead entries from the caches.
    pub fn sweep(&mut self) {
        let grace = u64::from(clock::to_ticks(self.config.cache.lease)) * 2;
        if let Some(datapath) = &mut self.datapath
            && let Err(reason) = datapath.sweep(grace)
        {
            warn!("sweep the caches: {reason}");
        }
    }
}

/// What a container's device is to the data path.
const fn role(kind: PairKind) -> Role {
    match kind {
        PairKind::Veth => Role::Veth,
        PairKind::Netkit => Role::Netkit,
    }
}

/// The same of a device that may not have been seen yet.
fn role_of(device: Option<&HostDevice>) -> Role {
    device.map_or(Role::Veth, |device| role(device.kind))
}

fn attach_mode(wanted: Attach) -> AttachMode {
    match wanted {
        Attach::Auto => AttachMode::detect(),
        Attach::Tcx => AttachMode::Tcx,
        Attach::Clsact => AttachMode::Clsact,
    }
}

/// The programs' constants under `config`.
pub(super) fn constants(config: &Config) -> Constants {
    let network = config.overlay.network;
    Constants {
        host: u32::from(config.node.address).to_be(),
        network: u32::from(network.network()).to_be(),
        netmask: u32::from(network.netmask()).to_be(),
        vni: (config.overlay.vni << 8).to_be(),
        mark_mask: config.cache.mark_mask.bits(),
        mtu: config.overlay.mtu,
        port: config.overlay.port.to_be(),
        vtep: vtep_mac(config.node.address),
        gateway: gateway_mac(config.overlay.gateway()),
        gateway_address: u32::from(config.overlay.gateway()).to_be(),
        flows: config.cache.flows,
        reserved: [0; 2],
    }
}
