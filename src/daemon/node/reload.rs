//! A new configuration while everything runs: as little as the change asks for, and all of it or
//! nothing.

use std::time::Duration;

use tracing::{error, info, warn};

use super::Node;
use crate::{
    coherence::{Cause, Changed},
    config::{Config, ConfigFile},
    container::devices,
    daemon::{DaemonError, clsact, fast_path::constants},
    log,
    slow_path::{Facts, SlowPath as _, Wanted},
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

/// `facts` are the slow path's under a configuration.
fn effect(old: &Config, new: &Config, facts: impl Fn(&Config) -> Facts) -> Effect {
    let loaded = |config: &Config| {
        (
            constants(config, &facts(config)),
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
        self.network.set_file(file);
        let chosen = self.chosen();
        if self.network.record().state().chosen.as_ref() != Some(&chosen) {
            // A file that names another one than was in force.
            self.network.record_mut().choose(chosen);
            self.host.take_another_address();
            if let Err(reason) = self.network.record().save() {
                error!("note the address of this host: {reason}");
            }
        }
        Ok(())
    }

    /// Refuses a configuration that wants what is somebody else's, before anything is given up for it: a
    /// VXLAN device has to go before one with another VNI can come.
    async fn refuse_taken(&self, config: &Config) -> Result<(), DaemonError> {
        let wanted = Wanted::new(config, self.network.endpoints());
        let taken = self.slow_path.obstacles(&wanted).await?;
        if taken.is_empty() {
            return Ok(());
        }
        Err(DaemonError::Host(taken))
    }

    /// As [`Node::reconfigure`], for whatever `cause`; `object` says of what.
    pub(super) async fn change_to(
        &mut self,
        config: Config,
        cause: Cause,
        object: &str,
    ) -> Result<(), DaemonError> {
        self.network.check_change(&config)?;
        let facts = |config: &Config| self.slow_path.facts(config);
        let mut effect = effect(self.network.config(), &config, facts);
        if config.cache.enabled && !self.fast_path.is_on() {
            // What kept it away may be mended.
            effect = effect.max(Effect::Load);
        }
        if effect == Effect::Restart {
            self.fast_path.leave(&self.network);
            tokio::time::sleep(MARKS_SETTLE).await;
        }
        let old = self.network.replace_config(config);
        self.own_tables.forget_all();
        let changed = match self.take_over(&old).await {
            Ok(changed) => changed,
            Err(failure) => {
                self.network.replace_config(old);
                self.return_to_old(effect).await;
                return Err(failure);
            }
        };
        log::set_level(self.network.config().log.level);
        let uplink = self.network.uplink(self.slow_path.bridge());
        let network = old.overlay.network;
        for (name, container) in self.network.containers() {
            let told = devices::change_network(name, container, uplink, network).await;
            if let Err(reason) = told {
                warn!("{reason}; it has no route to {}", uplink.network);
            }
        }
        let news = self.network.newly_away(&old);
        self.forget_in_containers(&news).await;
        if let Err(reason) = clsact::note(&self.host, &mut self.network).await {
            error!("note the qdisc that filters will be on: {reason}");
        }
        self.apply_to_fast_path(effect, changed, (cause, object));
        if let Err(reason) = self.fast_path.look_at_devices(&self.network) {
            error!("{reason}");
        }
        clsact::leave(&self.host, &mut self.network, self.fast_path.mode()).await;
        Ok(())
    }

    /// Brings slow path and containers from the configuration `old` to the present one.
    async fn take_over(&mut self, old: &Config) -> Result<Changed, DaemonError> {
        let mut changed = self.mend_overlay().await?;
        changed = changed.and(self.mend_policy().await?);
        changed = changed.and(self.adopt_containers().await?);
        if old.node.underlay != self.network.config().node.underlay {
            self.leave_underlay(&old.node.underlay).await;
        }
        Ok(changed)
    }

    async fn return_to_old(&mut self, effect: Effect) {
        // Packets went by the new one for a moment, whatever of it has to be taken back.
        let mut taken_back = Changed::new(Cause::Reload, "taken back");
        self.own_tables.forget_all();
        match self.mend_overlay().await {
            Ok(changed) => taken_back = taken_back.covering(changed),
            Err(reason) => error!("return to the old configuration: {reason}"),
        }
        match self.mend_policy().await {
            Ok(changed) => taken_back = taken_back.covering(changed),
            Err(reason) => error!("return to the old policy: {reason}"),
        }
        if effect == Effect::Restart {
            taken_back = taken_back.covering(self.start_fast_path());
        }
        self.commit(taken_back);
    }

    /// Tells the programs, after the slow path was changed.
    fn apply_to_fast_path(
        &mut self,
        effect: Effect,
        changed: Changed,
        (cause, object): (Cause, &str),
    ) {
        let changed = changed.told_as(cause, object);
        if effect >= Effect::Load {
            return self.load_anew(changed, cause, object);
        }
        let told = match effect {
            Effect::Peers => self.fast_path.sync_peers(&self.network),
            _ => Ok(Changed::nothing()),
        };
        let told = told.map_err(DaemonError::from).and_then(|told| {
            let tuned = self.fast_path.tuned(&self.host, &self.network)?;
            Ok((told, tuned))
        });
        match told {
            Ok((told, tuned)) => {
                let changed = changed.and(told.told_as(cause, object));
                let only_settings = changed.is_nothing();
                if !self.commit(changed.and(tuned)) && only_settings {
                    info!("nothing that was learned depends on what has changed");
                }
            }
            Err(reason) => {
                error!("tell the programs of the new configuration: {reason}; loading them anew");
                self.load_anew(changed, cause, object);
            }
        }
    }

    /// Loads the programs after `changed`, all of which is told as `cause`.
    fn load_anew(&mut self, changed: Changed, cause: Cause, object: &str) {
        let changed = changed.and(self.start_fast_path());
        self.commit(Changed::new(cause, object).covering(changed));
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
        slow_path::own,
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
            assert_eq!(effect(&old, &new, own::facts), expected, "{from} -> {to}");
        }
    }
}
