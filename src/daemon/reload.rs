//! A new configuration while everything runs: as little as the change asks for, and all of it or
//! nothing.

use std::{net::Ipv4Addr, time::Duration};

use tracing::{error, info, warn};

use super::{DaemonError, Node, fast_path::constants, preflight};
use crate::{
    coherence::Cause,
    config::{Config, ConfigFile},
    container::{addresses, devices},
    log,
    overlay::conflicts::conflicts,
};

/// How long packets with marks of another meaning may still be on the slow path.
const MARKS_SETTLE: Duration = Duration::from_millis(200);

/// What a change of the configuration means to the programs. Ordered: each includes what the
/// earlier ones do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    /// Lease and source ports are written; no flow notices.
    Tune,
    /// Hosts come and go; everything is learned anew.
    Peers,
    /// The programs are loaded anew, over new maps if their sizes differ, and replaced one by one.
    Load,
    /// The programs are taken away first: their marks would mean something else to the new ones.
    Restart,
}

fn effect(old: &Config, new: &Config) -> Effect {
    let loaded = |config: &Config| {
        (
            constants(config),
            config.node.underlay.clone(),
            config.node.underlay_index,
            config.cache.enabled,
            config.cache.flows,
            config.cache.attach,
        )
    };
    if old.cache.mark_mask != new.cache.mark_mask {
        Effect::Restart
    } else if loaded(old) != loaded(new) {
        Effect::Load
    } else if (&old.node, &old.overlay, &old.peers) != (&new.node, &new.overlay, &new.peers) {
        Effect::Peers
    } else {
        Effect::Tune
    }
}

impl Node {
    /// Takes a new configuration into force. What it does not change goes on undisturbed.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]: the new configuration can't be had; the old one is back in force.
    pub async fn reconfigure(
        &mut self,
        file: ConfigFile,
        config: Config,
    ) -> Result<(), DaemonError> {
        self.refuse_taken(&config).await?;
        self.change_to(config, Cause::Reload, "").await?;
        self.file = file;
        let chosen = Some(self.chosen());
        if self.state.chosen != chosen {
            // A file that names another one than was in force.
            self.state.chosen = chosen;
            self.address_away = false;
            if let Err(reason) = self.store.save(&self.state) {
                error!("note the address of this host: {reason}");
            }
        }
        Ok(())
    }

    /// Refuses a configuration that wants what is somebody else's, before anything is given up for it: a
    /// VXLAN device has to go before one with another VNI can come.
    async fn refuse_taken(&self, config: &Config) -> Result<(), DaemonError> {
        let wanted = preflight::wanted(config, &self.state);
        let taken = conflicts(&self.netlink, &wanted).await?;
        if taken.is_empty() {
            return Ok(());
        }
        let lines = taken.iter().map(ToString::to_string);
        Err(DaemonError::Host(lines.collect()))
    }

    /// As [`Node::reconfigure`], for whatever `cause`; `object` says of what.
    pub(super) async fn change_to(
        &mut self,
        config: Config,
        cause: Cause,
        object: &str,
    ) -> Result<(), DaemonError> {
        if config.overlay.subnet != self.config.overlay.subnet && !self.state.containers.is_empty()
        {
            return Err(DaemonError::SubnetInUse {
                wanted: config.overlay.subnet,
                present: self.config.overlay.subnet,
                count: self.state.containers.len(),
            });
        }
        self.check_addresses(&config)?;
        let mut effect = effect(&self.config, &config);
        if config.cache.enabled && !self.has_fast_path() {
            // What kept it away may be mended.
            effect = effect.max(Effect::Load);
        }
        if effect == Effect::Restart {
            self.leave_fast_path();
            tokio::time::sleep(MARKS_SETTLE).await;
        }
        let old = std::mem::replace(&mut self.config, config);
        self.own_tables.forget_all();
        let changed = match self.take_over(&old).await {
            Ok(changed) => changed,
            Err(failure) => {
                self.config = old;
                self.return_to_old(effect).await;
                return Err(failure);
            }
        };
        log::set_level(self.config.log.level);
        for (name, container) in &self.state.containers {
            let network = old.overlay.network;
            let told = devices::change_network(name, container, self.uplink(), network).await;
            if let Err(reason) = told {
                warn!(
                    "{reason}; it has no route to {}",
                    self.config.overlay.network
                );
            }
        }
        let news = self.newly_away(&old);
        self.forget_in_containers(&news).await;
        if let Err(reason) = self.note_clsact().await {
            error!("note the qdisc that filters will be on: {reason}");
        }
        self.apply_to_fast_path(effect, changed, (cause, object));
        if let Err(reason) = self.look_at_devices().await {
            error!("{reason}");
        }
        self.leave_clsact().await;
        Ok(())
    }

    /// Brings slow path and containers from the configuration `old` to the present one. Returns
    /// whether that took a change.
    async fn take_over(&mut self, old: &Config) -> Result<bool, DaemonError> {
        let mut changed = self.mend_overlay().await?;
        changed |= self.mend_policy().await?;
        changed |= self.adopt_containers().await?;
        if old.node.underlay != self.config.node.underlay {
            self.leave_underlay(&old.node.underlay).await;
        }
        Ok(changed)
    }

    async fn return_to_old(&mut self, effect: Effect) {
        self.own_tables.forget_all();
        if let Err(reason) = self.mend_overlay().await {
            error!("return to the old configuration: {reason}");
        }
        if let Err(reason) = self.mend_policy().await {
            error!("return to the old policy: {reason}");
        }
        if effect == Effect::Restart {
            self.start_fast_path();
        }
        // Packets went by the new one for a moment.
        self.invalidate(Cause::Reload, "taken back");
    }

    /// Tells the programs, after the slow path was changed.
    fn apply_to_fast_path(
        &mut self,
        effect: Effect,
        changed: bool,
        (cause, object): (Cause, &str),
    ) {
        let told = match effect {
            Effect::Tune => self.tune_fast_path(),
            Effect::Peers => self.sync_peers().and_then(|_| self.tune_fast_path()),
            Effect::Load | Effect::Restart => {
                self.start_fast_path();
                self.invalidate(cause, object);
                return;
            }
        };
        match told {
            // The new epoch came after the change.
            Ok(true) => {}
            Ok(false) if changed => self.invalidate(cause, object),
            Ok(false) => info!("nothing that was learned depends on what has changed"),
            Err(reason) => {
                error!("tell the programs of the new configuration: {reason}; loading them anew");
                self.start_fast_path();
                self.invalidate(cause, object);
            }
        }
    }

    /// Addresses of this host's subnet that were not away before.
    fn newly_away(&self, old: &Config) -> Vec<Ipv4Addr> {
        let before: Vec<Ipv4Addr> = old.away().collect();
        let now = self.config.away();
        now.filter(|address| !before.contains(address)).collect()
    }

    /// Refuses a configuration under which a container can't have the address that it has.
    pub(super) fn check_addresses(&self, config: &Config) -> Result<(), DaemonError> {
        for (name, container) in &self.state.containers {
            addresses::check(config, container.ip).map_err(|reason| DaemonError::AddressInUse {
                name: name.clone(),
                reason,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use std::path::Path;

    use super::*;
    use crate::{
        config::{DeviceFacts, HostFacts, parse},
        peers,
    };

    const TEXT: &str = r#"
        [node]
        name = "alpha"
        [overlay]
        subnet = "10.42.1.0/24"
        network = "10.42.0.0/16"
        vni = 42
        [[peers]]
        name = "beta"
        address = "192.168.50.12"
        subnet = "10.42.2.0/24"
        [cache]
        flows = 65536
        lease = "30s"
        mark_mask = "0x0fff0000"
        [log]
        level = "info"
    "#;

    fn config(text: &str) -> Config {
        let device = DeviceFacts {
            name: "eth1".into(),
            index: 3,
            mtu: 1500,
            mac: [2, 0, 0, 0, 0, 1],
            ipv4: vec!["192.168.50.11/24".parse().unwrap()],
            ..DeviceFacts::default()
        };
        let facts = HostFacts {
            hostname: "alpha".into(),
            default_route_device: Some("eth1".into()),
            devices: vec![device],
            chosen: None,
        };
        let file = parse(Path::new("config.toml"), text).unwrap();
        peers::resolve(&file, &facts).unwrap()
    }

    #[test]
    fn no_more_is_done_than_the_change_asks_for() {
        let old = config(TEXT);
        for (from, to, expected) in [
            ("", "", Effect::Tune),
            ("\"30s\"", "\"5s\"", Effect::Tune),
            ("\"info\"", "\"debug\"", Effect::Tune),
            ("192.168.50.12", "192.168.50.13", Effect::Peers),
            ("10.42.2.0/24", "10.42.3.0/24", Effect::Peers),
            (
                "name = \"beta\"",
                "name = \"beta\"\nmoved = [\"10.42.1.7\"]",
                Effect::Peers,
            ),
            ("flows = 65536", "flows = 1024", Effect::Load),
            ("flows = 65536", "enabled = false", Effect::Load),
            ("flows = 65536", "attach = \"clsact\"", Effect::Load),
            ("vni = 42", "vni = 43", Effect::Load),
            ("vni = 42", "vni = 42\nmtu = 1400", Effect::Load),
            ("0x0fff0000", "0x00ffff00", Effect::Restart),
        ] {
            let new = config(&TEXT.replacen(from, to, 1));
            assert_eq!(effect(&old, &new), expected, "{from} -> {to}");
        }
    }
}
