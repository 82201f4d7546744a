//! This host's part of the overlay: its owners, and what is done by all of them together.

mod adoption;
mod containers;
mod policy;
mod reload;
mod status;

use tracing::error;

use super::{
    DaemonError, clsact,
    fast_path::FastPath,
    host::Host,
    policy::PolicyTables,
    preflight,
    teardown::{self, TeardownErrors},
};
use crate::{
    coherence::{Cause, Changed, Coherence, Hold, own_tables::OwnTables},
    config::{Chosen, Config, HostFacts},
    log,
    netlink::{Netlink, format_mac, ruleset_generation},
    network::Network,
    peers,
    policy::kernel,
    slow_path::{SlowPath, own::OwnSlowPath},
};

/// What the daemon knows and holds.
pub struct Node {
    host: Host,
    network: Network,
    slow_path: OwnSlowPath,
    fast_path: FastPath,
    /// What is known of the tables of the network policy.
    policy_tables: PolicyTables,
    /// Copies of slow path's and policy's tables, for the watcher.
    own_tables: OwnTables,
    coherence: Coherence,
    /// The last failure of a reconciliation: said once, not every few seconds.
    last_failure: Option<String>,
}

impl Node {
    /// A node that has touched nothing yet.
    pub fn new(
        host: Host,
        network: Network,
        slow_path: OwnSlowPath,
        fast_path: FastPath,
        own_tables: OwnTables,
        coherence: Coherence,
    ) -> Self {
        Self {
            host,
            network,
            slow_path,
            fast_path,
            policy_tables: PolicyTables::default(),
            own_tables,
            coherence,
            last_failure: None,
        }
    }

    /// The connection to rtnetlink.
    #[must_use]
    pub const fn netlink(&self) -> &Netlink {
        self.host.netlink()
    }

    /// The address that this host is at.
    #[must_use]
    pub fn chosen(&self) -> Chosen {
        self.network.chosen()
    }

    /// One line for the log and the service manager.
    #[must_use]
    pub fn summary(&self) -> String {
        let config = self.network.config();
        format!(
            "{} at {} on {}, {} peers, {} containers, fast path {}",
            config.node.name,
            config.node.address,
            config.node.underlay,
            config.peers.len(),
            self.network.containers().len(),
            if self.fast_path.is_on() { "on" } else { "off" },
        )
    }

    /// Refuses a host on which others are in the way, or living containers would be cut off. Touches
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Host`] with a line for each obstacle.
    pub async fn refuse_obstacles(&self) -> Result<(), DaemonError> {
        let wanted = self.network.wanted();
        let record = self.network.record();
        let (state, directory) = (record.state(), record.directory());
        let mut obstacles =
            preflight::obstacles(self.netlink(), &self.slow_path, &wanted, state, directory)
                .await?;
        obstacles.extend(preflight::policy_obstacles(self.network.config(), state).await);
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
        log::set_level(self.network.config().log.level);
        // Kept before it is changed, and never overwritten by our own value.
        let liberal = self.host.sysctls().tcp_be_liberal()?;
        let chosen = self.chosen();
        let record = self.network.record_mut();
        record.note_tcp_be_liberal(liberal);
        record.choose(chosen);
        record.save()?;
        let _ = self.look_at_underlay().await?;
        // The file was changed while no daemon ran. It holds; what it strands is said.
        if let Err(reason) = self.network.check_addresses(self.network.config()) {
            error!("{reason}");
        }
        let mut changed = self.mend_overlay().await?;
        changed = changed.and(self.mend_policy().await?);
        let former = self.network.record().state().underlay.clone();
        if let Some(former) = former
            && former != self.network.config().node.underlay
        {
            self.leave_underlay(&former).await;
        }
        changed = changed.and(self.adopt_containers().await?);
        clsact::note(&self.host, &mut self.network).await?;
        changed = changed.and(self.start_fast_path());
        // Until this succeeds nothing is learned; the comparisons try again.
        if let Err(reason) = self.fast_path.look_at_devices(&self.network) {
            error!("{reason}");
        }
        // Of what changed while no daemon ran, only part could be told: nftables counts its
        // transactions, but neither routes nor neighbours nor conntrack count theirs.
        self.commit(Changed::new(Cause::Start, "").covering(changed));
        clsact::leave(&self.host, &mut self.network, self.fast_path.mode()).await;
        Ok(())
    }

    /// Raises the epoch if one is owed for `changed`, which has been made before. When this returns,
    /// no packet is judged by the old state. Returns whether the epoch was raised.
    fn commit(&mut self, changed: Changed) -> bool {
        self.fast_path.commit(changed, &self.network)
    }

    /// Ends the fast path if the epoch could not be raised: what can't be invalidated must not be
    /// used.
    pub fn heed_failure(&mut self) {
        self.fast_path.heed_failure(&self.network);
    }

    /// Removes dead entries from the caches.
    pub fn sweep(&mut self) {
        self.fast_path.sweep(self.network.config().cache.lease);
    }

    fn start_fast_path(&mut self) -> Changed {
        let facts = self.slow_path.facts(self.network.config());
        self.fast_path.start(&self.host, &mut self.network, &facts)
    }

    /// Compares the host with the wanted state and mends the difference.
    pub async fn reconcile(&mut self) {
        self.network.record_mut().save_again();
        let generation = ruleset_generation();
        let hold = self.coherence.held(Hold::Tables);
        match self.try_reconcile().await {
            Ok(changed) => {
                self.last_failure = None;
                if changed.is_nothing() {
                    let young = self.policy_tables.may_be_unwatched(&self.network);
                    self.own_tables.keep(generation, |table, copy| {
                        if young {
                            kernel::begin_young(table, copy);
                        }
                    });
                }
                self.commit(changed);
                // What the watcher could not put back is back.
                self.coherence.release_tables(hold);
            }
            Err(failure) => {
                let line = failure.to_string();
                if self.last_failure.as_ref() != Some(&line) {
                    error!("reconcile: {line}");
                    self.last_failure = Some(line);
                }
                // Part of it may have been done.
                self.commit(Changed::new(Cause::MendedInPart, ""));
            }
        }
    }

    async fn try_reconcile(&mut self) -> Result<Changed, DaemonError> {
        // What can be mended is mended although the underlay is not what it should be; but then
        // that is the reason of what else fails.
        let followed = self.follow_underlay().await;
        let mended = self.mend().await;
        let looked = self.fast_path.look_at_devices(&self.network);
        let mended = followed.and(mended)?;
        looked.map(|()| mended)
    }

    async fn mend(&mut self) -> Result<Changed, DaemonError> {
        // Rules are mended even where a device can't be.
        let overlay = self.mend_overlay().await;
        let policy = self.mend_policy().await;
        let changed = overlay?.and(policy?).and(self.mend_containers().await?);
        self.fast_path.mend_attachments(&mut self.network)?;
        // Neither is a difference from the wanted state.
        let tuned = self.fast_path.tuned(&self.host, &self.network)?;
        self.commit(tuned);
        let moved = self.fast_path.moved_next_hop(&self.host, &self.network);
        let moved = moved.await?;
        self.commit(moved);
        Ok(changed)
    }

    /// Takes over what the configuration leaves to the host where it has changed: the underlay
    /// device's ifindex, MAC address and MTU. Not its address: that is what the peers know this host
    /// by, and one that has gone is waited for.
    async fn follow_underlay(&mut self) -> Result<(), DaemonError> {
        let facts = self.look_at_underlay().await?;
        let present = self.network.config();
        let facts = facts.as_decided(&present.node);
        let config = peers::resolve(self.network.file(), &facts)?;
        if config == *present {
            return Ok(());
        }
        let news = underlay_news(present, &config);
        self.change_to(config, Cause::Underlay, &news).await
    }

    async fn look_at_underlay(&mut self) -> Result<HostFacts, DaemonError> {
        let remedy = self.network.address_remedy();
        let node = &self.network.config().node;
        Ok(self.host.look_at_underlay(node, remedy).await?)
    }

    /// Takes the programs off an underlay device that is one no more.
    async fn leave_underlay(&mut self, device: &str) {
        if let Err(reason) = self.fast_path.detach(device) {
            error!("leave the underlay device: {reason}");
        }
        clsact::leave_underlay(&self.host, &mut self.network, device).await;
    }

    /// Applies what the slow path lacks.
    async fn mend_overlay(&mut self) -> Result<Changed, DaemonError> {
        let mended = self.slow_path.reconcile(&self.network.wanted()).await;
        let record = self.network.record_mut();
        let news = record.note_tcp_be_liberal(self.slow_path.former_tcp_be_liberal());
        let noted = if news { record.save() } else { Ok(()) };
        let scope = self.slow_path.scope(&self.network.wanted()).await?;
        self.coherence.set_scope(scope);
        noted?;
        Ok(mended?)
    }

    /// Makes the kernel's rules those of the network policy.
    async fn mend_policy(&mut self) -> Result<Changed, DaemonError> {
        self.policy_tables
            .mend(
                self.host.netlink(),
                &self.network,
                &self.slow_path,
                &self.own_tables,
            )
            .await
    }

    /// Removes every trace from the host.
    ///
    /// # Errors
    ///
    /// [`TeardownErrors`] with all that stayed.
    pub async fn down(&mut self) -> Result<(), TeardownErrors> {
        self.own_tables.forget_all();
        self.fast_path.let_go();
        let record = self.network.record();
        teardown::down(
            self.host.netlink(),
            &self.slow_path,
            record.store(),
            record.state(),
            self.fast_path.pins(),
        )
        .await?;
        self.network.forget_all();
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
