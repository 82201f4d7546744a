//! The node's fast path: when it is loaded, what it is told, when it forgets.

use std::{collections::HashSet, net::Ipv4Addr, path::Path};

use oncache_abi::{mark::MarkField, settings::Constants};
use tracing::{error, info, warn};

use super::{DaemonError, Node};
use crate::{
    coherence::{effective_lease, fingerprint},
    config::{Attach, Config},
    datapath::{
        AttachMode, Datapath, DatapathError, PIN_ROOT, Sizes,
        attach::{self, CONTAINER, UNDERLAY},
        clock,
        epoch::Tuning,
        pins,
    },
    overlay::names::{gateway_mac, vtep_mac},
};

impl Node {
    /// The bits of `skb->mark` that are ours.
    pub(super) fn mark_field(&self) -> MarkField {
        MarkField::trusted(self.config.cache.mark_mask.bits())
    }

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

    fn try_start_fast_path(&mut self) -> Result<(), DaemonError> {
        let root = Path::new(PIN_ROOT);
        let sizes = Sizes {
            flows: self.config.cache.flows,
        };
        let mode = attach_mode(self.config.cache.attach);
        let mut datapath = Datapath::load(root, &constants(&self.config), sizes, mode)?;
        let peers: HashSet<Ipv4Addr> = self.config.peers.iter().map(|peer| peer.address).collect();
        datapath.set_peers(&peers)?;
        self.datapath = Some(datapath);
        self.sync_containers()?;
        self.attach_underlay()?;
        for container in self.state.containers.values() {
            if let Some(datapath) = &mut self.datapath {
                datapath.attach(&container.device, CONTAINER)?;
            }
        }
        self.tune_fast_path()?;
        let stale = pins::remove_other_maps(root, &pins::maps(root, sizes))?;
        for name in stale {
            info!("removed maps of another version or size: {name}");
        }
        Ok(())
    }

    fn attach_underlay(&mut self) -> Result<(), DaemonError> {
        let underlay = self.config.node.underlay.clone();
        let Some(datapath) = &mut self.datapath else {
            return Ok(());
        };
        let made_clsact = datapath.attach(&underlay, UNDERLAY)?;
        if made_clsact && !self.state.clsact.contains(&underlay) {
            self.state.clsact.push(underlay.clone());
        }
        self.state.underlay = Some(underlay);
        self.store.save(&self.state)?;
        Ok(())
    }

    /// Takes the programs off an underlay device that is one no more.
    pub(super) fn leave_underlay(&self, device: &str) {
        if let Err(reason) = attach::detach(Path::new(PIN_ROOT), device) {
            error!("leave the underlay device: {reason}");
        }
    }

    fn stop_fast_path(&mut self) -> Result<(), DatapathError> {
        self.datapath = None;
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
        let Some(datapath) = &mut self.datapath else {
            return Ok(false);
        };
        let present: Vec<(Ipv4Addr, u32)> = self
            .devices
            .iter()
            .filter_map(|(name, index)| Some((self.state.containers.get(name)?.ip, *index)))
            .collect();
        datapath.set_containers(&present)
    }

    /// Sets lease and ports as the host's settings ask for; a new epoch where what was learned
    /// under another configuration does not hold.
    pub(super) fn tune_fast_path(&mut self) -> Result<(), DaemonError> {
        let timeouts = self.sysctls.conntrack_timeouts()?;
        let seconds: Vec<u64> = timeouts.map_or_else(Vec::new, |timeouts| {
            [
                timeouts.udp,
                timeouts.udp_stream,
                timeouts.tcp_established,
                timeouts.tcp_fin_wait,
                timeouts.tcp_close_wait,
            ]
            .map(u64::from)
            .to_vec()
        });
        let ports = self.sysctls.local_port_range()?;
        let tuning = Tuning {
            lease: effective_lease(self.config.cache.lease, &seconds),
            ports: (*ports.start(), *ports.end()),
            fingerprint: fingerprint(&self.config),
        };
        if let Some(datapath) = &mut self.datapath
            && datapath.tune(&tuning)?
        {
            info!("new epoch: what was learned belongs to another configuration");
        }
        Ok(())
    }

    /// Makes everything learned so far dead, after a change in the slow path.
    pub fn invalidate(&mut self, cause: &str) {
        let Some(datapath) = &mut self.datapath else {
            return;
        };
        match datapath.raise_epoch() {
            Ok(epoch) => info!("epoch {epoch}: {cause}"),
            Err(reason) => {
                // What can't be invalidated must not be used.
                error!("raise the epoch: {reason}; the fast path is switched off");
                self.fast_path_failure = Some(reason.to_string());
                if let Err(reason) = self.stop_fast_path() {
                    error!("remove the fast path: {reason}");
                }
            }
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

fn attach_mode(wanted: Attach) -> AttachMode {
    match wanted {
        Attach::Auto => AttachMode::detect(),
        Attach::Tcx => AttachMode::Tcx,
        Attach::Clsact => AttachMode::Clsact,
    }
}

/// The programs' constants under `config`.
fn constants(config: &Config) -> Constants {
    let network = config.overlay.network;
    Constants {
        host: u32::from(config.node.address).to_be(),
        underlay: config.node.underlay_index,
        network: u32::from(network.network()).to_be(),
        netmask: u32::from(network.netmask()).to_be(),
        vni: (config.overlay.vni << 8).to_be(),
        mark_mask: config.cache.mark_mask.bits(),
        mtu: config.overlay.mtu,
        port: config.overlay.port.to_be(),
        vtep: vtep_mac(config.node.address),
        gateway: gateway_mac(config.overlay.gateway()),
        reserved: [0; 2],
    }
}
