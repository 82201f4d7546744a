//! The network policy: kept in force, and what its rules have counted.

use std::collections::HashMap;

use tracing::{info, warn};

use super::DaemonError;
use crate::{
    coherence::{Changed, own_tables::OwnTables},
    control::api::{Policy, PolicyRule},
    netlink::{Netlink, ruleset_generation},
    network::Network,
    policy::{
        TABLES,
        compile::{Bridging, SameHost, UNJUDGED},
        kernel,
        order::{Local, Locals, Placed, absent, effective},
    },
    slow_path::SlowPath,
};

/// What the daemon knows of the tables of the network policy without looking.
#[derive(Debug, Default)]
pub struct PolicyTables {
    /// How packets between containers of this host are judged; asked once.
    same_host: Option<SameHost>,
    /// This kernel can keep who opened a flow; asked once.
    labels: bool,
    /// The bridge is known to hand nothing to the hooks of `inet` for our sake.
    hooks_off: bool,
    /// The last failure of tables that no rule needs, which is said once.
    unremembered: Option<String>,
    /// How many rules there were when the tables were last as wanted.
    in_force: usize,
    /// The last comparison that found nothing to do.
    settled: Option<Settled>,
}

/// What was compared and found the same. As long as the ruleset is of that generation, and the same
/// is wanted, it still is: nft takes half a second to list a thousand rules.
#[derive(Debug, PartialEq)]
struct Settled {
    /// The ruleset's, read before it was listed.
    generation: u32,
    rules: Vec<Placed>,
    locals: Locals,
    bridging: Bridging,
}

impl PolicyTables {
    /// Makes the kernel's rules those that are wanted. `slow_path` is what they are for.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub async fn mend(
        &mut self,
        netlink: &Netlink,
        network: &Network,
        slow_path: &impl SlowPath,
        own_tables: &OwnTables,
    ) -> Result<Changed, DaemonError> {
        let rules = rules_of(network);
        let none = rules.is_empty();
        match self
            .try_mend(netlink, network, slow_path, own_tables, rules)
            .await
        {
            // Without rules the tables remember who opens flows for rules to come, and no more.
            Err(DaemonError::Policy(reason)) if none => {
                let reason = reason.to_string();
                if self.unremembered.as_ref() != Some(&reason) {
                    warn!("who opens flows is not kept for rules to come: {reason}");
                    self.unremembered = Some(reason);
                }
                Ok(Changed::nothing())
            }
            outcome => outcome,
        }
    }

    async fn try_mend(
        &mut self,
        netlink: &Netlink,
        network: &Network,
        slow_path: &impl SlowPath,
        own_tables: &OwnTables,
        rules: Vec<Placed>,
    ) -> Result<Changed, DaemonError> {
        let count = rules.len();
        if !self.labels {
            kernel::labels().await?;
            self.labels = true;
        }
        let same_host = match self.same_host {
            Some(same_host) => Some(same_host),
            None if count == 0 => None,
            None => Some(kernel::same_host().await?),
        };
        self.same_host = same_host;
        let bridge = slow_path.bridge();
        let mut changed = Changed::nothing();
        let by_hooks = count > 0 && same_host == Some(SameHost::InetHooks);
        if by_hooks && netlink.bridge_netfilter(bridge).await? != Some(true) {
            self.hooks_off = false;
            netlink.set_bridge_netfilter(bridge, true).await?;
            changed = Changed::mended(true);
        }
        let had_rules = self.in_force > 0;
        let bridging = Bridging {
            same_host: same_host.unwrap_or(SameHost::InetHooks),
            bridge: bridge.to_owned(),
            mac: slow_path.facts(network.config()).gateway_mac,
            group: slow_path.group(),
        };
        let replaced = self.compare(network, own_tables, rules, bridging).await?;
        if !by_hooks && !self.hooks_off {
            if netlink.bridge_netfilter(bridge).await? == Some(true) {
                netlink.set_bridge_netfilter(bridge, false).await?;
            }
            self.hooks_off = true;
        }
        self.in_force = count;
        let news = !replaced.is_nothing();
        changed = changed.and(replaced);
        if !changed.is_nothing() && count > 0 {
            info!("policy: {count} rules in force");
        } else if news && had_rules {
            info!("policy: no rules any more");
        }
        Ok(changed)
    }

    /// Whether there may be flows between containers of this host that conntrack has not seen: those
    /// that it does not know though it looked on are new.
    pub fn may_be_unwatched(&self, network: &Network) -> bool {
        let watched = self.in_force > 0 && self.same_host == Some(SameHost::BridgeTable);
        !network.containers().is_empty() && !watched
    }

    async fn compare(
        &mut self,
        network: &Network,
        own_tables: &OwnTables,
        rules: Vec<Placed>,
        bridging: Bridging,
    ) -> Result<Changed, DaemonError> {
        let locals = locals_of(network);
        let running = self.may_be_unwatched(network);
        let Some(generation) = ruleset_generation() else {
            own_tables.forget_all();
            let changed = kernel::reconcile(&rules, &locals, &bridging, running).await?;
            return Ok(Changed::mended(changed));
        };
        let now = Settled {
            generation,
            rules,
            locals,
            bridging,
        };
        if self.settled.as_ref() == Some(&now) {
            return Ok(Changed::nothing());
        }
        self.settled = None;
        let source = (&now.rules, &now.locals, &now.bridging);
        own_tables.make_from(&TABLES, &source);
        let changed = kernel::reconcile(&now.rules, &now.locals, &now.bridging, running).await?;
        // What was changed is looked at once more: nft may have been told otherwise meanwhile.
        self.settled = (!changed).then_some(now);
        Ok(Changed::mended(changed))
    }
}

/// The rules of the network policy, in the order in which they are tried.
fn rules_of(network: &Network) -> Vec<Placed> {
    effective(&network.record().state().policy, &network.config().policy)
}

/// The containers as rules name them.
fn locals_of(network: &Network) -> Locals {
    let containers = network.containers().iter();
    containers
        .map(|(name, container)| {
            let local = Local {
                ip: container.ip,
                device: container.device.clone(),
            };
            (name.clone(), local)
        })
        .collect()
}

/// The rules in force with what they have counted.
///
/// # Errors
///
/// [`DaemonError`].
pub async fn counted(network: &Network) -> Result<Policy, DaemonError> {
    let mut counted: HashMap<String, u64> = HashMap::new();
    for (name, packets) in kernel::counts().await? {
        *counted.entry(name).or_default() += packets;
    }
    let count = |name: &str| counted.get(name).copied().unwrap_or(0);
    let locals = locals_of(network);
    let rules = rules_of(network).into_iter().map(|placed| PolicyRule {
        origin: placed.origin,
        packets: count(&placed.counter),
        absent: absent(&placed.rule, &locals)
            .into_iter()
            .map(str::to_owned)
            .collect(),
        rule: placed.rule,
    });
    Ok(Policy {
        rules: rules.collect(),
        unjudged: count(UNJUDGED),
    })
}
