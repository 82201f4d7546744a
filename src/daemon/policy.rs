//! The node's network policy: applied, listed, kept in force.

use std::collections::HashMap;

use tracing::{error, info, warn};

use super::{DaemonError, Node, own_tables::Own};
use crate::{
    coherence::Cause,
    config::Rule,
    control::api::{Applied, Policy, PolicyRule},
    netlink::ruleset_generation,
    overlay::names::{BRIDGE, gateway_mac},
    policy::{
        compile::{Bridging, SameHost, UNJUDGED},
        kernel,
        order::{Local, Locals, Placed, absent, effective},
    },
};

/// What the daemon knows of the tables of the network policy without looking.
#[derive(Debug, Default)]
pub(super) struct PolicyTables {
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

impl Node {
    fn rules(&self) -> Vec<Placed> {
        effective(&self.state.policy, &self.config.policy)
    }

    fn locals(&self) -> Locals {
        let containers = self.state.containers.iter();
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

    /// Makes the kernel's rules those that are wanted. Returns whether that took a change; the epoch
    /// is to be raised after one.
    pub(super) async fn mend_policy(&mut self) -> Result<bool, DaemonError> {
        let rules = self.rules();
        let none = rules.is_empty();
        match self.try_mend_policy(rules).await {
            // Without rules the tables remember who opens flows for rules to come, and no more.
            Err(DaemonError::Policy(reason)) if none => {
                let reason = reason.to_string();
                if self.policy_tables.unremembered.as_ref() != Some(&reason) {
                    warn!("who opens flows is not kept for rules to come: {reason}");
                    self.policy_tables.unremembered = Some(reason);
                }
                Ok(false)
            }
            outcome => outcome,
        }
    }

    async fn try_mend_policy(&mut self, rules: Vec<Placed>) -> Result<bool, DaemonError> {
        let count = rules.len();
        if !self.policy_tables.labels {
            kernel::labels().await?;
            self.policy_tables.labels = true;
        }
        let same_host = match self.policy_tables.same_host {
            Some(same_host) => Some(same_host),
            None if count == 0 => None,
            None => Some(kernel::same_host().await?),
        };
        self.policy_tables.same_host = same_host;
        let mut changed = false;
        let by_hooks = count > 0 && same_host == Some(SameHost::InetHooks);
        if by_hooks && self.netlink.bridge_netfilter(BRIDGE).await? != Some(true) {
            self.policy_tables.hooks_off = false;
            self.netlink.set_bridge_netfilter(BRIDGE, true).await?;
            changed = true;
        }
        let had_rules = self.policy_tables.in_force > 0;
        let bridging = Bridging {
            same_host: same_host.unwrap_or(SameHost::InetHooks),
            mac: gateway_mac(self.config.overlay.gateway()),
        };
        let replaced = self.compare_policy(rules, bridging).await?;
        if !by_hooks && !self.policy_tables.hooks_off {
            if self.netlink.bridge_netfilter(BRIDGE).await? == Some(true) {
                self.netlink.set_bridge_netfilter(BRIDGE, false).await?;
            }
            self.policy_tables.hooks_off = true;
        }
        self.policy_tables.in_force = count;
        changed |= replaced;
        if changed && count > 0 {
            info!("policy: {count} rules in force");
        } else if replaced && had_rules {
            info!("policy: no rules any more");
        }
        Ok(changed)
    }

    /// Whether there may be flows between containers of this host that conntrack has not seen: those
    /// that it does not know though it looked on are new.
    pub(super) fn may_be_unwatched(&self) -> bool {
        let tables = &self.policy_tables;
        let watched = tables.in_force > 0 && tables.same_host == Some(SameHost::BridgeTable);
        !self.state.containers.is_empty() && !watched
    }

    async fn compare_policy(
        &mut self,
        rules: Vec<Placed>,
        bridging: Bridging,
    ) -> Result<bool, DaemonError> {
        let locals = self.locals();
        let running = self.may_be_unwatched();
        let Some(generation) = ruleset_generation() else {
            self.own_tables.forget_all();
            return Ok(kernel::reconcile(&rules, &locals, bridging, running).await?);
        };
        let now = Settled {
            generation,
            rules,
            locals,
            bridging,
        };
        if self.policy_tables.settled.as_ref() == Some(&now) {
            return Ok(false);
        }
        self.policy_tables.settled = None;
        let source = (&now.rules, &now.locals, now.bridging);
        let tables = [Own::Policy, Own::BridgePolicy];
        self.own_tables.make_from(&tables, &source);
        let changed = kernel::reconcile(&now.rules, &now.locals, bridging, running).await?;
        // What was changed is looked at once more: nft may have been told otherwise meanwhile.
        self.policy_tables.settled = (!changed).then_some(now);
        Ok(changed)
    }

    /// Replaces the run-time rules, all of them. When this returns, no packet is judged by the old
    /// ones.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]; the rules in force and on disk are what they were.
    pub async fn apply_policy(&mut self, rules: Vec<Rule>) -> Result<Applied, DaemonError> {
        let old = std::mem::replace(&mut self.state.policy, rules);
        // On disk before it is in force: a daemon that dies in between leaves rules that the next
        // one brings into force, never the old ones to return to.
        let outcome = match self.store.save(&self.state) {
            Ok(()) => self.mend_policy().await,
            Err(failure) => Err(failure.into()),
        };
        match outcome {
            Ok(changed) => {
                if changed {
                    self.invalidate(Cause::Policy, "");
                }
                Ok(Applied {
                    runtime: self.state.policy.len(),
                    file: self.config.policy.len(),
                })
            }
            Err(failure) => {
                self.state.policy = old;
                if let Err(reason) = self.store.save(&self.state) {
                    error!("put the policy back: {reason}");
                }
                Err(failure)
            }
        }
    }

    /// The rules in force with what they have counted.
    pub(super) async fn policy(&self) -> Result<Policy, DaemonError> {
        let mut counted: HashMap<String, u64> = HashMap::new();
        for (name, packets) in kernel::counts().await? {
            *counted.entry(name).or_default() += packets;
        }
        let count = |name: &str| counted.get(name).copied().unwrap_or(0);
        let locals = self.locals();
        let rules = self.rules().into_iter().map(|placed| PolicyRule {
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
}
