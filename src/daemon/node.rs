//! This host's part of the overlay, as the daemon holds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
};

use tracing::{debug, error, info, warn};

use super::{
    DaemonError,
    invalidation::Invalidator,
    own_tables::{Own, OwnTables},
    policy::PolicyTables,
    preflight,
    teardown::{self, TeardownErrors},
};
use crate::{
    coherence::{self, Cause, Scope, hindrance::Hindrances, next_hop_has_moved},
    config::{Chosen, Config, ConfigFile, HostFacts},
    container::devices::{self, HostDevice},
    datapath::{Datapath, PIN_ROOT, epoch::Hold},
    log,
    netlink::{
        Mac, Netlink, NetlinkError, Timeout, format_mac, ruleset_generation, underlay_facts,
    },
    overlay::{
        names::{BRIDGE, VXLAN},
        network_route,
        reconcile::reconcile,
        sysctl::Sysctls,
    },
    peers,
    state::{State, StateError, Store},
};

/// How many changes of one comparison are logged singly.
const STEPS_LOGGED: usize = 100;

/// What the daemon knows and holds.
pub struct Node {
    pub(super) netlink: Netlink,
    pub(super) sysctls: Sysctls,
    pub(super) store: Store,
    pub(super) state: State,
    /// The configuration as written: what the host decides of it may change.
    pub(super) file: ConfigFile,
    pub(super) config: Config,
    pub(super) invalidator: Invalidator,
    /// The containers' host-side devices, by container name.
    pub(super) devices: BTreeMap<String, HostDevice>,
    /// Whether the kernel has netkit devices.
    pub(super) has_netkit: bool,
    /// Containers whose device has no carrier: they have set it down inside.
    pub(super) silent: BTreeSet<String>,
    /// The loaded programs; none where the fast path is off.
    pub(super) datapath: Option<Datapath>,
    /// Why the fast path is off though it is configured.
    pub(super) fast_path_failure: Option<String>,
    /// What hangs where the fast path does not pass.
    pub(super) hindrances: Hindrances,
    /// The connection timeout that the lease is cut to, if it is.
    pub(super) lease_bound: Option<Timeout>,
    /// Copies of the tables, for the watcher.
    pub(super) own_tables: OwnTables,
    /// What is known of the tables of the network policy.
    pub(super) policy_tables: PolicyTables,
    /// Why the state on disk is not the present one.
    pub(super) unsaved: Option<String>,
    /// The underlay device has lost this host's address.
    pub(super) address_away: bool,
    /// Somebody else's route for the overlay's network, in a line.
    pub(super) network_route_taken: Option<String>,
    /// The last failure of a reconciliation: said once, not every few seconds.
    last_failure: Option<String>,
}

impl Node {
    /// A node that has touched nothing yet.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]: the state can't be read.
    pub fn new(
        netlink: Netlink,
        store: Store,
        file: ConfigFile,
        config: Config,
        invalidator: Invalidator,
        own_tables: OwnTables,
        has_netkit: bool,
    ) -> Result<Self, DaemonError> {
        let (state, gone) = store.load_present()?;
        for name in gone {
            warn!(
                "container {name}: gone with the host's last boot; add it again, or by a unit at each boot"
            );
        }
        Ok(Self {
            netlink,
            sysctls: Sysctls::default(),
            store,
            state,
            file,
            config,
            invalidator,
            own_tables,
            devices: BTreeMap::new(),
            has_netkit,
            silent: BTreeSet::new(),
            datapath: None,
            fast_path_failure: None,
            hindrances: Hindrances::default(),
            lease_bound: None,
            policy_tables: PolicyTables::default(),
            unsaved: None,
            address_away: false,
            network_route_taken: None,
            last_failure: None,
        })
    }

    /// The connection to rtnetlink.
    #[must_use]
    pub const fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// The address that this host is at.
    #[must_use]
    pub fn chosen(&self) -> Chosen {
        (&self.config.node).into()
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

    /// Refuses a host on which others are in the way, or living containers would be cut off. Touches
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Host`] with a line for each obstacle.
    pub async fn refuse_obstacles(&self) -> Result<(), DaemonError> {
        let wanted = preflight::wanted(&self.config, &self.state);
        let directory = self.store.directory();
        let obstacles =
            preflight::obstacles(&self.netlink, &wanted, &self.state, directory).await?;
        if !obstacles.is_empty() {
            return Err(DaemonError::Host(obstacles));
        }
        Ok(())
    }

    /// Brings the host to the wanted state and takes over what an earlier daemon left running.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]: the slow path can't be had. A fast path that can't be had is only logged:
    /// the overlay works without.
    pub async fn start(&mut self) -> Result<(), DaemonError> {
        log::set_level(self.config.log.level);
        // Kept before it is changed, and never overwritten by our own value.
        if self.state.tcp_be_liberal.is_none() {
            self.state.tcp_be_liberal = self.sysctls.tcp_be_liberal()?;
        }
        self.state.chosen = Some(self.chosen());
        self.store.save(&self.state)?;
        let _ = self.look_at_underlay().await?;
        // The file was changed while no daemon ran. It holds; what it strands is said.
        if let Err(reason) = self.check_addresses(&self.config) {
            error!("{reason}");
        }
        self.mend_overlay().await?;
        self.mend_policy().await?;
        if let Some(former) = self.state.underlay.clone()
            && former != self.config.node.underlay
        {
            self.leave_underlay(&former).await;
        }
        self.adopt_containers().await?;
        self.note_clsact().await?;
        self.start_fast_path();
        // Until this succeeds nothing is learned; the comparisons try again.
        if let Err(reason) = self.look_at_devices().await {
            error!("{reason}");
        }
        // Of what changed while no daemon ran, only part could be told: nftables counts its
        // transactions, but neither routes nor neighbours nor conntrack count theirs.
        self.invalidate(Cause::Start, "");
        self.leave_clsact().await;
        Ok(())
    }

    /// Compares the host with the wanted state and mends the difference.
    pub async fn reconcile(&mut self) {
        self.save_again();
        let generation = ruleset_generation();
        let hold = self.invalidator.held(Hold::Tables);
        match self.try_reconcile().await {
            Ok(changed) => {
                self.last_failure = None;
                if changed {
                    self.invalidate(Cause::Mended, "");
                } else {
                    self.own_tables.keep(generation, self.may_be_unwatched());
                }
                // What the watcher could not put back is back.
                self.invalidator.release_tables(hold);
            }
            Err(failure) => {
                let line = failure.to_string();
                if self.last_failure.as_ref() != Some(&line) {
                    error!("reconcile: {line}");
                    self.last_failure = Some(line);
                }
                // Part of it may have been done.
                self.invalidate(Cause::MendedInPart, "");
            }
        }
    }

    async fn try_reconcile(&mut self) -> Result<bool, DaemonError> {
        // What can be mended is mended although the underlay is not what it should be; but then
        // that is the reason of what else fails.
        let followed = self.follow_underlay().await;
        let mended = self.mend().await;
        let looked = self.look_at_devices().await;
        let mended = followed.and(mended)?;
        looked.map(|()| mended)
    }

    async fn mend(&mut self) -> Result<bool, DaemonError> {
        // Rules are mended even where a device can't be.
        let overlay = self.mend_overlay().await;
        let policy = self.mend_policy().await;
        let mut changed = overlay? | policy?;
        changed |= self.mend_containers().await?;
        self.mend_attachments()?;
        self.tune_fast_path()?;
        if self.next_hop_has_moved().await? {
            self.invalidate(Cause::NextHopMoved, "");
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
        let neighbours = self.netlink.neighbours_of(underlay).await?;
        let present: Vec<Mac> = neighbours
            .iter()
            .filter_map(|neighbour| neighbour.mac)
            .collect();
        Ok(next_hop_has_moved(&learned, &present))
    }

    /// Takes over what the configuration leaves to the host where it has changed: the underlay
    /// device's ifindex, MAC address and MTU. Not its address: that is what the peers know this host
    /// by, and one that has gone is waited for.
    async fn follow_underlay(&mut self) -> Result<(), DaemonError> {
        let facts = self.look_at_underlay().await?;
        let facts = facts.as_decided(&self.config.node);
        let config = peers::resolve(&self.file, &facts)?;
        if config == self.config {
            return Ok(());
        }
        let news = underlay_news(&self.config, &config);
        self.change_to(config, Cause::Underlay, &news).await
    }

    /// Notes that the state could not be written: what it tells of is so all the same.
    pub(super) fn note_unsaved(&mut self, reason: &StateError) {
        let line = format!(
            "the state is not written, a daemon that starts now would read the former one: {reason}"
        );
        if self.unsaved.as_ref() != Some(&line) {
            error!("{line}");
            self.unsaved = Some(line);
        }
    }

    /// Writes what could not be written before.
    fn save_again(&mut self) {
        if self.unsaved.is_none() {
            return;
        }
        match self.store.save(&self.state) {
            Ok(()) => {
                info!("the state is written");
                self.unsaved = None;
            }
            Err(reason) => self.note_unsaved(&reason),
        }
    }

    async fn look_at_underlay(&mut self) -> Result<HostFacts, DaemonError> {
        let facts = underlay_facts(&self.netlink, &self.config.node.underlay).await?;
        if let Some(device) = facts.device(&self.config.node.underlay) {
            self.note_address(device.has(self.config.node.address));
        }
        Ok(facts)
    }

    /// Says once that this host's address has gone, and that it has come back.
    fn note_address(&mut self, present: bool) {
        if self.address_away != present {
            return;
        }
        self.address_away = !present;
        match self.address_warning() {
            Some(line) => error!("{line}"),
            None => info!(
                "{} has {} again, this host's address",
                self.config.node.underlay, self.config.node.address
            ),
        }
    }

    /// What an operator has to know while this host's address is away.
    pub(super) fn address_warning(&self) -> Option<String> {
        let node = &self.config.node;
        let remedy = if self.file.names_address() {
            "add it to the device again, or change node.address and the peers' files"
        } else {
            "add it to the device again, or, if this host has moved, set node.address and change the peers' files"
        };
        self.address_away.then(|| {
            format!(
                "{} has lost {}, this host's address: nothing leaves by the tunnel until it is back; {remedy}",
                node.underlay, node.address
            )
        })
    }

    /// Applies what the slow path lacks. Returns whether anything was done.
    pub(super) async fn mend_overlay(&mut self) -> Result<bool, DaemonError> {
        let wanted = preflight::wanted(&self.config, &self.state);
        self.own_tables.make_from(&[Own::SlowPath], &wanted.table);
        let (done, failure) = match reconcile(&self.netlink, &self.sysctls, &wanted).await {
            Ok(done) => (done, None),
            Err(mut failure) => (std::mem::take(&mut failure.done), Some(failure)),
        };
        for (number, step) in done.iter().enumerate() {
            // Of thousands of peers each would be three lines.
            if number < STEPS_LOGGED {
                info!("{}", step.named(&wanted.names));
            } else {
                debug!("{}", step.named(&wanted.names));
            }
            if self.state.tcp_be_liberal.is_none() {
                self.state.tcp_be_liberal = step.previous_tcp_be_liberal();
                self.store.save(&self.state)?;
            }
        }
        if let Some(more) = done
            .len()
            .checked_sub(STEPS_LOGGED)
            .filter(|more| *more > 0)
        {
            info!("and {more} more changes to the overlay; log.level = \"debug\" shows them all");
        }
        let route = self.keep_network_route().await;
        self.invalidator.set_scope(self.scope().await?);
        match failure {
            Some(failure) => Err(failure.into()),
            None => Ok(route? | !done.is_empty()),
        }
    }

    /// Keeps what is for nobody from leaving by the default route. Returns whether anything was done.
    async fn keep_network_route(&mut self) -> Result<bool, DaemonError> {
        let wanted = network_route::wanted(&self.config.overlay);
        let kept = network_route::keep(&self.netlink, wanted).await?;
        for line in &kept.done {
            info!("{line}");
        }
        if let Some(line) = kept.taken.as_ref()
            && kept.taken != self.network_route_taken
        {
            warn!("{line}");
        }
        self.network_route_taken = kept.taken;
        Ok(!kept.done.is_empty())
    }

    /// Whether an address has come from elsewhere.
    pub(super) fn is_visitor(&self, ip: Ipv4Addr) -> bool {
        !self.config.overlay.subnet.contains(&ip)
    }

    /// What of the host cached results depend on.
    async fn scope(&self) -> Result<Scope, DaemonError> {
        let device = async |name: &str| {
            let link = self.netlink.link_by_name(name).await?;
            Ok::<_, NetlinkError>(coherence::Device {
                index: link.map_or(0, |link| link.index),
                name: name.to_owned(),
            })
        };
        Ok(Scope {
            underlay: device(&self.config.node.underlay).await?,
            bridge: device(BRIDGE).await?,
            vxlan: device(VXLAN).await?,
            containers: self.device_names(),
            peers: self.config.peers.iter().map(|peer| peer.address).collect(),
            networks: vec![self.config.node.address.into(), self.config.overlay.network],
        })
    }

    /// Removes every trace from the host.
    ///
    /// # Errors
    ///
    /// [`TeardownErrors`] with all that stayed.
    pub async fn down(&mut self) -> Result<(), TeardownErrors> {
        self.own_tables.forget_all();
        self.datapath = None;
        self.invalidator.take_charge_of(None);
        self.devices.clear();
        let root = Path::new(PIN_ROOT);
        teardown::down(&self.netlink, &self.sysctls, &self.store, &self.state, root).await?;
        self.state = State::default();
        Ok(())
    }

    /// Removes devices that are marked as ours, that no record knows, and whose far end is in no
    /// namespace of its own: leftovers. What carries a namespace stays: a start has refused to be, and
    /// one that has come since is somebody else's to judge.
    pub(super) async fn remove_leftovers(&self) -> Result<(), DaemonError> {
        for link in self.netlink.links().await? {
            let unknown = devices::container_of(&link)
                .is_some_and(|name| !self.state.containers.contains_key(name));
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
            self.netlink.delete_link(link.index).await?;
        }
        Ok(())
    }
}

/// What is another about the underlay, for the log.
fn underlay_news(old: &Config, new: &Config) -> String {
    let mut words = Vec::new();
    let name = &new.node.underlay;
    if old.node.underlay_index != new.node.underlay_index {
        words.push(format!("{name} is a new device"));
    }
    if old.node.underlay_mac != new.node.underlay_mac {
        words.push(format!(
            "{name} is at {}",
            format_mac(new.node.underlay_mac)
        ));
    }
    if old.overlay.mtu != new.overlay.mtu {
        words.push(format!("containers' MTU is {}", new.overlay.mtu));
    }
    words.join(", ")
}
