//! What no step may break.

use oncache_abi::flow::{Verdict, VerdictWord};

use super::{KEY, Seen, State};
use crate::scenario::Scenario;

impl State {
    /// A packet that is carried is carried by the rules that the last call has returned with, or by
    /// later ones.
    pub(super) fn judge_hit(
        &self,
        learned_by: impl Iterator<Item = u8>,
        entered: u64,
        scenario: &Scenario,
    ) -> Seen {
        let oldest = learned_by.min().unwrap_or(u8::MAX);
        if oldest < self.returned {
            return Seen::Broken(format!(
                "carried by rules of version {oldest} after the call for {} has returned",
                self.returned
            ));
        }
        if let Some(since) = self.unnoticed
            && oldest < self.rules
            // Learned at the last moment by a packet that had passed just before.
            && entered >= since + scenario.patience + u64::from(scenario.lease)
        {
            return Seen::Broken(format!(
                "carried {} ticks after an unnoticed change, after the lease",
                entered - since
            ));
        }
        Seen::Hit {
            by_last_rules: oldest == self.rules && self.rules != 0,
        }
    }

    /// What is entered from a packet of older rules must be dead already.
    pub(super) fn judge_lesson(&self, word: VerdictWord, rules: u8) -> Seen {
        let alive = matches!(
            word.judge(&KEY, self.now, self.epoch),
            Verdict::Fast | Verdict::OneWay
        );
        if alive && rules < self.returned {
            return Seen::Broken(format!(
                "learned by rules of version {rules} after the call for {} has returned",
                self.returned
            ));
        }
        Seen::Nothing
    }
}
