//! This host's part of the overlay, as the daemon holds it.

use std::{collections::BTreeMap, path::Path};

use tracing::{error, info};

use super::{
    DaemonError,
    teardown::{self, TeardownErrors},
};
use crate::{
    coherence::next_hop_has_moved,
    config::Config,
    container::devices,
    datapath::{Datapath, PIN_ROOT},
    netlink::{Mac, Netlink},
    overlay::{
        names::{BRIDGE, VXLAN},
        nftables::Marks,
        reconcile::reconcile,
        sysctl::Sysctls,
        wanted::WantedOverlay,
    },
    state::{State, Store},
};

/// What the daemon knows and holds.
pub struct Node {
    pub(super) netlink: Netlink,
    pub(super) sysctls: Sysctls,
    pub(super) store: Store,
    pub(super) state: State,
    pub(super) config: Config,
    /// Ifindexes of the containers' host-side devices, by container name.
    pub(super) devices: BTreeMap<String, u32>,
    /// Ifindexes of bridge and VXLAN device, as last seen.
    overlay_devices: Vec<u32>,
    /// The loaded programs; none where the fast path is off.
    pub(super) datapath: Option<Datapath>,
    /// Why the fast path is off though it is configured.
    pub(super) fast_path_failure: Option<String>,
    /// The last failure of a reconciliation: said once, not every few seconds.
    last_failure: Option<String>,
}

impl Node {
    /// A node that has touched nothing yet.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]: the state can't be read.
    pub fn new(netlink: Netlink, store: Store, config: Config) -> Result<Self, DaemonError> {
        let state = store.load()?;
        Ok(Self {
            netlink,
            sysctls: Sysctls::default(),
            store,
            state,
            config,
            devices: BTreeMap::new(),
            overlay_devices: Vec::new(),
            datapath: None,
            fast_path_failure: None,
            last_failure: None,
        })
    }

    /// The connection to rtnetlink.
    #[must_use]
    pub const fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// One line for the log and the service manager.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} at {} on {}, {} peers, {} containers, fast path {}",
            self.config.node.name,
            self.config.node.address,
            self.config.node.underlay,
            self.config.peers.len(),
            self.state.containers.len(),
            if self.datapath.is_some() { "on" } else { "off" },
        )
    }

    /// Brings the host to the wanted state and takes over what an earlier daemon left running.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]: the slow path can't be had. A fast path that can't be had is only logged:
    /// the overlay works without.
    pub async fn start(&mut self) -> Result<(), DaemonError> {
        // Kept before it is changed, and never overwritten by our own value.
        if self.state.tcp_be_liberal.is_none() {
            self.state.tcp_be_liberal = self.sysctls.tcp_be_liberal()?;
        }
        self.store.save(&self.state)?;
        let changed = self.mend_overlay().await?;
        if let Some(former) = self.state.underlay.clone()
            && former != self.config.node.underlay
        {
            self.leave_underlay(&former).await;
        }
        self.adopt_containers().await?;
        self.note_clsact().await?;
        self.start_fast_path();
        self.leave_clsact().await;
        if changed {
            self.invalidate("the overlay was set up");
        }
        Ok(())
    }

    /// Takes a new configuration into force.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]: the new configuration can't be had; the old one is back in force.
    pub async fn reconfigure(&mut self, config: Config) -> Result<(), DaemonError> {
        if config.overlay.subnet != self.config.overlay.subnet && !self.state.containers.is_empty()
        {
            return Err(DaemonError::SubnetInUse {
                wanted: config.overlay.subnet,
                present: self.config.overlay.subnet,
                count: self.state.containers.len(),
            });
        }
        let old = std::mem::replace(&mut self.config, config);
        if let Err(failure) = self.take_over(&old).await {
            self.config = old;
            if let Err(reason) = self.mend_overlay().await {
                error!("return to the old configuration: {reason}");
            }
            return Err(failure);
        }
        self.note_clsact().await?;
        self.start_fast_path();
        self.leave_clsact().await;
        self.invalidate("the configuration was reloaded");
        Ok(())
    }

    /// Brings slow path and containers from the configuration `old` to the present one.
    async fn take_over(&mut self, old: &Config) -> Result<(), DaemonError> {
        self.mend_overlay().await?;
        self.adopt_containers().await?;
        if old.node.underlay != self.config.node.underlay {
            self.leave_underlay(&old.node.underlay).await;
        }
        Ok(())
    }

    /// Compares the host with the wanted state and mends the difference.
    pub async fn reconcile(&mut self) {
        match self.try_reconcile().await {
            Ok(changed) => {
                self.last_failure = None;
                if changed {
                    self.invalidate("the overlay was mended");
                }
            }
            Err(failure) => {
                let line = failure.to_string();
                if self.last_failure.as_ref() != Some(&line) {
                    error!("reconcile: {line}");
                    self.last_failure = Some(line);
                }
                // Part of it may have been done.
                self.invalidate("the overlay was mended in part");
            }
        }
    }

    async fn try_reconcile(&mut self) -> Result<bool, DaemonError> {
        let mut changed = self.mend_overlay().await?;
        changed |= self.mend_containers().await?;
        self.mend_attachments()?;
        self.tune_fast_path()?;
        if self.next_hop_has_moved().await? {
            self.invalidate("a next hop on the underlay has another MAC address");
        }
        Ok(changed)
    }

    async fn next_hop_has_moved(&self) -> Result<bool, DaemonError> {
        let Some(datapath) = &self.datapath else {
            return Ok(false);
        };
        let learned = datapath.next_hops()?;
        if learned.is_empty() {
            return Ok(false);
        }
        let underlay = self.config.node.underlay_index;
        let neighbours = self.netlink.neighbours().await?;
        let present: Vec<Mac> = neighbours
            .iter()
            .filter(|neighbour| neighbour.device == underlay)
            .filter_map(|neighbour| neighbour.mac)
            .collect();
        Ok(next_hop_has_moved(&learned, &present))
    }

    /// Applies what the slow path lacks. Returns whether anything was done.
    async fn mend_overlay(&mut self) -> Result<bool, DaemonError> {
        let field = self.mark_field();
        let marks = Marks {
            miss: field.miss_bits(),
            est: field.established_bit(),
        };
        let wanted = WantedOverlay::new(&self.config, marks);
        let (done, failure) = match reconcile(&self.netlink, &self.sysctls, &wanted).await {
            Ok(done) => (done, None),
            Err(mut failure) => (std::mem::take(&mut failure.done), Some(failure)),
        };
        for step in &done {
            info!("{step}");
            if self.state.tcp_be_liberal.is_none() {
                self.state.tcp_be_liberal = step.previous_tcp_be_liberal();
                self.store.save(&self.state)?;
            }
        }
        if !done.is_empty() || self.overlay_devices.is_empty() {
            let links = self.netlink.links().await?;
            let ours = links
                .iter()
                .filter(|link| [BRIDGE, VXLAN].contains(&&*link.name));
            self.overlay_devices = ours.map(|link| link.index).collect();
        }
        match failure {
            Some(failure) => Err(failure.into()),
            None => Ok(!done.is_empty()),
        }
    }

    /// Whether a notification about this device concerns the overlay.
    #[must_use]
    pub fn owns_device(&self, device: u32) -> bool {
        device == self.config.node.underlay_index || self.overlay_devices.contains(&device)
    }

    /// Removes every trace from the host.
    ///
    /// # Errors
    ///
    /// [`TeardownErrors`] with all that stayed.
    pub async fn down(&mut self) -> Result<(), TeardownErrors> {
        self.datapath = None;
        self.devices.clear();
        let root = Path::new(PIN_ROOT);
        teardown::down(&self.netlink, &self.sysctls, &self.store, &self.state, root).await?;
        self.state = State::default();
        Ok(())
    }

    /// Devices that are named like ours, but that no record knows: leftovers of a crash.
    pub(super) async fn remove_leftovers(&self) -> Result<(), DaemonError> {
        let known: Vec<&str> = self
            .state
            .containers
            .values()
            .map(|container| &*container.device)
            .collect();
        for link in self.netlink.links().await? {
            if devices::is_host_device(&link) && !known.contains(&&*link.name) {
                info!("delete leftover device {}", link.name);
                self.netlink.delete_link(link.index).await?;
            }
        }
        Ok(())
    }
}
