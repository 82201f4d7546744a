//! The fast path: when it is loaded, what it is told, when it forgets.

mod hindrances;
mod tuning;

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use oncache_abi::settings::Constants;
use tracing::{error, info, warn};

use super::{DaemonError, host::Host};
use crate::{
    coherence::{Cause, Changed, Coherence, hindrance::Hindrances, next_hop_has_moved},
    config::{Attach, Config},
    container::devices::HostDevice,
    datapath::{
        AttachMode, Datapath, DatapathError, Present, Sizes,
        attach::{self, Role},
        clock, pins,
    },
    netlink::{Mac, PairKind, Timeout},
    network::Network,
    slow_path::{Encapsulation, Facts},
};

/// The fast path, as far as there is one.
pub struct FastPath {
    /// Where programs and maps are pinned.
    pins: PathBuf,
    coherence: Coherence,
    /// The loaded programs; none where the fast path is off.
    datapath: Option<Datapath>,
    /// Why the fast path is off though it is configured.
    failure: Option<String>,
    /// What hangs where the fast path does not pass.
    hindrances: Hindrances,
    /// The connection timeout that the lease is cut to, if it is.
    lease_bound: Option<Timeout>,
}

impl FastPath {
    /// None yet, to be pinned at `pins`; `coherence` will have charge of its epoch.
    pub fn new(pins: PathBuf, coherence: Coherence) -> Self {
        Self {
            pins,
            coherence,
            datapath: None,
            failure: None,
            hindrances: Hindrances::default(),
            lease_bound: None,
        }
    }

    /// Where programs and maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The loaded programs, to be read.
    pub const fn datapath(&self) -> Option<&Datapath> {
        self.datapath.as_ref()
    }

    /// Why the fast path is off though it is configured.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// What hangs where the fast path does not pass.
    pub const fn hindrances(&self) -> &Hindrances {
        &self.hindrances
    }

    /// The connection timeout that the lease is cut to, if it is.
    pub const fn lease_bound(&self) -> Option<&Timeout> {
        self.lease_bound.as_ref()
    }

    /// How programs are attached, where there are any.
    pub fn mode(&self) -> Option<AttachMode> {
        self.datapath.as_ref().map(Datapath::mode)
    }

    /// Loads and attaches the programs, over what an earlier daemon has pinned; or takes everything
    /// away where the fast path is switched off or can't be had. The overlay works without it.
    /// `facts` are the slow path's.
    pub fn start(&mut self, host: &Host, network: &mut Network, facts: &Facts) -> Changed {
        self.failure = None;
        if network.config().cache.enabled {
            match self.try_start(host, network, facts) {
                Ok(changed) => return changed,
                Err(reason) => {
                    error!("no fast path, the overlay runs without: {reason}");
                    self.failure = Some(reason.to_string());
                }
            }
        }
        // Programs that no daemon of this configuration could invalidate must not run on.
        self.leave(network);
        Changed::nothing()
    }

    /// Whether programs are loaded.
    pub const fn is_on(&self) -> bool {
        self.datapath.is_some()
    }

    /// Takes the fast path away until [`FastPath::start`].
    pub fn leave(&mut self, network: &Network) {
        if let Err(reason) = self.stop(network) {
            error!("remove the fast path: {reason}");
        }
    }

    /// Tells the programs who the peers are: packets from and to those that are gone miss at once.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn sync_peers(&mut self, network: &Network) -> Result<Changed, DatapathError> {
        let peers = network.config().peers.iter().map(|peer| peer.address);
        let peers: HashSet<Ipv4Addr> = peers
            .filter(|peer| !self.hindrances.withholds_peer(*peer))
            .collect();
        match &mut self.datapath {
            Some(datapath) => datapath.set_peers(&peers).map(Changed::mended),
            None => Ok(Changed::nothing()),
        }
    }

    fn try_start(
        &mut self,
        host: &Host,
        network: &mut Network,
        facts: &Facts,
    ) -> Result<Changed, DaemonError> {
        let config = network.config();
        let root = &*self.pins;
        let sizes = Sizes {
            flows: config.cache.flows,
        };
        let mode = attach_mode(config.cache.attach);
        let (datapath, epoch) = Datapath::load(root, &constants(config, facts), sizes, mode)?;
        // Where other maps are pinned, the programs that run may use those: then nobody has told
        // ours of what happened since they were in use last.
        let maps = pins::maps(root, sizes);
        let outdated = !pins::other_maps(root, &maps)?.is_empty();
        // Before any program of it can learn.
        self.coherence.take_charge_of(epoch)?;
        self.datapath = Some(datapath);
        let told = self
            .sync_peers(network)?
            .and(self.sync_containers(network)?);
        let outlived = || {
            if outdated {
                let object = "maps of another version or size were in use";
                Changed::new(Cause::Configuration, object)
            } else {
                Changed::nothing()
            }
        };
        // What was learned under another configuration dies before these programs see it, and what
        // the programs before them may have learned meanwhile dies after.
        let tuning = self.tuning(host, network.config())?;
        self.coherence
            .commit(outlived().and(Changed::announced(tuning)))?;
        self.mend_attachments(network)?;
        self.coherence
            .commit(outlived().and(Changed::tuned(tuning)))?;
        self.remove_garbage(network, &maps);
        Ok(told)
    }

    /// Removes pins that other builds, other sizes and crashed runs have left. Only once all that
    /// has to run is attached: until then, packets may still go by them.
    fn remove_garbage(&self, network: &Network, maps: &Path) {
        let root = &*self.pins;
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
        let containers = network.containers().iter();
        let wanted: Vec<_> = containers
            .map(|(name, container)| (&*container.device, role_of(network.device(name))))
            .chain([(&*network.config().node.underlay, Role::Underlay)])
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
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn mend_attachments(&mut self, network: &mut Network) -> Result<(), DaemonError> {
        let Some(datapath) = &mut self.datapath else {
            return Ok(());
        };
        let underlay = network.config().node.underlay.clone();
        let attached = datapath.attach(&underlay, Role::Underlay)?;
        if attached.fresh {
            info!("attached programs to {underlay}");
        }
        for (name, container) in network.containers() {
            let role = role_of(network.device(name));
            if datapath.attach(&container.device, role)?.fresh {
                info!("attached programs to {}", container.device);
            }
        }
        let record = network.record_mut();
        let mut news = record.note_underlay(&underlay);
        if attached.made_clsact {
            news |= record.note_clsact(&underlay);
        }
        if news {
            record.save()?;
        }
        Ok(())
    }

    /// Puts the programs on the device of a container that is being added.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn attach_to_container(
        &mut self,
        device: &str,
        kind: PairKind,
    ) -> Result<(), DatapathError> {
        match &mut self.datapath {
            Some(datapath) => datapath.attach(device, role(kind)).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Takes the programs off a device.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn detach(&self, device: &str) -> Result<(), DatapathError> {
        attach::detach(&self.pins, device)
    }

    /// Lets go of what is loaded, all of which goes on.
    pub fn let_go(&mut self) {
        self.datapath = None;
        self.coherence.give_up_epoch();
    }

    fn stop(&mut self, network: &Network) -> Result<(), DatapathError> {
        self.let_go();
        let root = &*self.pins;
        let underlay = network.record().state().underlay.iter();
        let containers = network.containers().values();
        let devices = underlay.chain(containers.map(|container| &container.device));
        let mut first = Ok(());
        for device in devices {
            first = first.and(attach::detach(root, device));
        }
        first.and(pins::remove_all(root))
    }

    /// Tells the programs which containers are here.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn sync_containers(&mut self, network: &Network) -> Result<Changed, DatapathError> {
        self.coherence.set_containers(network.device_names());
        let Some(datapath) = &mut self.datapath else {
            return Ok(Changed::nothing());
        };
        let present: Vec<Present> = network
            .connected()
            // The kernel would drop what is redirected to a device that is down inside; the slow path
            // tells the sender that there is nobody.
            .filter(|(name, ..)| !network.is_silent(name))
            .map(|(name, container, device)| Present {
                ip: container.ip,
                ifindex: device.index,
                withheld: self.hindrances.withholds_container(name),
            })
            .collect();
        datapath.set_containers(&present).map(Changed::mended)
    }

    /// Whether packets go by learned headers to where no next hop is any more.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub async fn moved_next_hop(
        &self,
        host: &Host,
        network: &Network,
    ) -> Result<Changed, DaemonError> {
        let learned = match &self.datapath {
            Some(datapath) => datapath.next_hops()?,
            None => Vec::new(),
        };
        if learned.is_empty() {
            return Ok(Changed::nothing());
        }
        let underlay = network.config().node.underlay_index;
        let neighbours = host.netlink().neighbours_of(underlay).await?;
        let present: Vec<Mac> = neighbours
            .iter()
            .filter_map(|neighbour| neighbour.mac)
            .collect();
        Ok(if next_hop_has_moved(&learned, &present) {
            Changed::new(Cause::NextHopMoved, "")
        } else {
            Changed::nothing()
        })
    }

    /// See [`Coherence::commit`]; where it fails, the fast path ends. Returns whether the epoch was
    /// raised.
    pub fn commit(&mut self, changed: Changed, network: &Network) -> bool {
        let raised = self.coherence.commit(changed);
        self.heed_failure(network);
        raised.unwrap_or(false)
    }

    /// Ends the fast path if the epoch could not be raised: what can't be invalidated must not be
    /// used.
    pub fn heed_failure(&mut self, network: &Network) {
        let Some(reason) = self.coherence.take_failure() else {
            return;
        };
        error!("the fast path is switched off: its epoch can't be raised");
        self.failure = Some(reason);
        self.leave(network);
    }

    /// Empties the learned caches, and returns how many flows that were; nothing without a fast path.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn flush(&mut self) -> Result<Option<(usize, Changed)>, DatapathError> {
        let flows = self.datapath.as_mut().map(Datapath::flush).transpose()?;
        Ok(flows.map(|flows| (flows, Changed::new(Cause::Flush, ""))))
    }

    /// Removes dead entries from the caches. `lease` is the configured one.
    pub fn sweep(&mut self, lease: Duration) {
        let grace = u64::from(clock::to_ticks(lease)) * 2;
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
fn role_of(device: Option<HostDevice>) -> Role {
    device.map_or(Role::Veth, |device| role(device.kind))
}

/// How programs are to be attached on this kernel.
pub fn attach_mode(wanted: Attach) -> AttachMode {
    match wanted {
        Attach::Auto => AttachMode::detect(),
        Attach::Tcx => AttachMode::Tcx,
        Attach::Clsact => AttachMode::Clsact,
    }
}

/// The programs' constants under `config`, where the slow path's facts are these.
pub fn constants(config: &Config, facts: &Facts) -> Constants {
    let network = config.overlay.network;
    let Encapsulation::Vxlan { vni, port } = facts.encapsulation;
    Constants {
        host: u32::from(facts.underlay).to_be(),
        network: u32::from(network.network()).to_be(),
        netmask: u32::from(network.netmask()).to_be(),
        vni: (vni << 8).to_be(),
        mark_mask: config.cache.mark_mask.bits(),
        mtu: facts.mtu,
        port: port.to_be(),
        vtep: facts.vtep,
        gateway: facts.gateway_mac,
        gateway_address: u32::from(facts.gateway).to_be(),
        flows: config.cache.flows,
        reserved: [0; 2],
    }
}
