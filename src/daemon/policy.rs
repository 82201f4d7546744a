//! The node's network policy: applied, listed, kept in force.

use std::collections::HashMap;

use tracing::{error, info};

use super::{DaemonError, Node};
use crate::{
    coherence::Cause,
    config::Rule,
    control::api::{Applied, Policy, PolicyRule},
    netlink::ruleset_generation,
    overlay::names::BRIDGE,
    policy::{
        compile::{SameHost, UNJUDGED},
        kernel,
        order::{Local, Locals, Placed, absent, effective},
    },
};

/// What the daemon knows of the tables of the network policy without looking.
#[derive(Debug, Default)]
pub(super) struct PolicyTables {
    /// How packets between containers of this host are judged; asked once.
    same_host: Option<SameHost>,
    /// There are none, as long as there are no rules.
    none: bool,
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
    same_host: SameHost,
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
        if rules.is_empty() {
            return self.remove_policy().await;
        }
        let count = rules.len();
        let same_host = match self.policy_tables.same_host {
            Some(same_host) => same_host,
            None => kernel::same_host().await?,
        };
        self.policy_tables.same_host = Some(same_host);
        self.policy_tables.none = false;
        let mut changed = false;
        if same_host == SameHost::InetHooks
            && self.netlink.bridge_netfilter(BRIDGE).await? != Some(true)
        {
            self.netlink.set_bridge_netfilter(BRIDGE, true).await?;
            changed = true;
        }
        changed |= self.compare_policy(rules, same_host).await?;
        if changed {
            info!("policy: {count} rules in force");
        }
        Ok(changed)
    }

    async fn compare_policy(
        &mut self,
        rules: Vec<Placed>,
        same_host: SameHost,
    ) -> Result<bool, DaemonError> {
        let locals = self.locals();
        let Some(generation) = ruleset_generation() else {
            return Ok(kernel::reconcile(&rules, &locals, same_host).await?);
        };
        let now = Settled {
            generation,
            rules,
            locals,
            same_host,
        };
        if self.policy_tables.settled.as_ref() == Some(&now) {
            return Ok(false);
        }
        self.policy_tables.settled = None;
        let changed = kernel::reconcile(&now.rules, &now.locals, same_host).await?;
        // What was changed is looked at once more: nft may have been told otherwise meanwhile.
        self.policy_tables.settled = (!changed).then_some(now);
        Ok(changed)
    }

    async fn remove_policy(&mut self) -> Result<bool, DaemonError> {
        if self.policy_tables.none {
            return Ok(false);
        }
        let changed = kernel::remove().await?;
        if self.netlink.bridge_netfilter(BRIDGE).await? == Some(true) {
            self.netlink.set_bridge_netfilter(BRIDGE, false).await?;
        }
        self.policy_tables.none = true;
        self.policy_tables.settled = None;
        if changed {
            info!("policy: no rules any more");
        }
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
