//! Run-time rules of the network policy.

use tracing::error;

use super::Node;
use crate::{coherence::Cause, config::Rule, control::api::Applied, daemon::DaemonError};

impl Node {
    /// Replaces the run-time rules, all of them. When this returns, no packet is judged by the old
    /// ones.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]; the rules in force and on disk are what they were.
    pub async fn apply_policy(&mut self, rules: Vec<Rule>) -> Result<Applied, DaemonError> {
        let record = self.network.record_mut();
        let old = record.replace_policy(rules);
        // On disk before it is in force: a daemon that dies in between leaves rules that the next
        // one brings into force, never the old ones to return to.
        let outcome = match record.save() {
            Ok(()) => self.mend_policy().await,
            Err(failure) => Err(failure.into()),
        };
        match outcome {
            Ok(changed) => {
                self.commit(changed.told_as(Cause::Policy, ""));
                Ok(Applied {
                    runtime: self.network.record().state().policy.len(),
                    file: self.network.config().policy.len(),
                })
            }
            Err(failure) => {
                let record = self.network.record_mut();
                record.replace_policy(old);
                if let Err(reason) = record.save() {
                    error!("put the policy back: {reason}");
                }
                Err(failure)
            }
        }
    }
}
