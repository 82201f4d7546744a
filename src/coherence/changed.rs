//! A change of the host, for which an epoch may be owed.

use super::Cause;
use crate::datapath::epoch::Tuning;

/// What was changed, and why; perhaps nothing.
///
/// Whoever changes what results are learned from says so by such a value, and whoever gets one
/// commits it ([`Coherence::commit`](super::Coherence::commit)) or says why nothing is owed for it.
#[must_use = "the epoch is owed for a change: commit it, or say why not"]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub(super) causes: Vec<Reason>,
    pub(super) settings: Option<Told>,
    /// Nobody waits for the new epoch, and what has come was not looked at.
    pub(super) heard: bool,
}

/// A cause with its object, which is empty if the cause says it all.
pub(super) type Reason = (Cause, String);

/// Other settings for the programs. Whether an epoch is owed for them shows when they are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Ahead of the programs' attachment: the fingerprint is not noted yet. Until the programs of
    /// this load are attached, those of an earlier one may still learn; a start that ends in between
    /// leaves it to the next to see that the fingerprint is another.
    Ahead(Tuning),
    /// To the programs that run.
    InForce(Tuning),
}

impl Changed {
    /// Nothing.
    pub const fn nothing() -> Self {
        Self {
            causes: Vec::new(),
            settings: None,
            heard: false,
        }
    }

    /// A change for which an epoch is owed.
    pub fn new(cause: Cause, object: &str) -> Self {
        Self {
            causes: vec![(cause, object.to_owned())],
            ..Self::nothing()
        }
    }

    /// The difference between the host and the wanted state, if one was found and mended.
    pub fn mended(any: bool) -> Self {
        if any {
            Self::new(Cause::Mended, "")
        } else {
            Self::nothing()
        }
    }

    /// The programs are to go by this from now on.
    pub fn tuned(tuning: Tuning) -> Self {
        Self {
            settings: Some(Told::InForce(tuning)),
            ..Self::nothing()
        }
    }

    /// As [`Changed::tuned`], ahead of the attachment of programs, after which that follows.
    pub fn announced(tuning: Tuning) -> Self {
        Self {
            settings: Some(Told::Ahead(tuning)),
            ..Self::nothing()
        }
    }

    /// The same change as one that was heard of: nobody waits until no packet is judged by the old
    /// state, and what has come was not looked at ([`Cause::holds`]).
    pub(super) fn heard(self) -> Self {
        Self {
            heard: true,
            ..self
        }
    }

    /// Whether there is nothing to commit.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.causes.is_empty() && self.settings.is_none()
    }

    /// Both: one epoch is enough. Of settings the later ones hold.
    pub fn and(mut self, other: Self) -> Self {
        for reason in other.causes {
            self.add(reason);
        }
        self.settings = other.settings.or(self.settings);
        self
    }

    /// The same change by the name of what it was a part of.
    pub fn told_as(mut self, cause: Cause, object: &str) -> Self {
        if !self.causes.is_empty() {
            self.causes = vec![(cause, object.to_owned())];
        }
        self
    }

    /// This change, of which `part` was a part.
    pub fn covering(self, part: Self) -> Self {
        let Self {
            causes, settings, ..
        } = part;
        drop(causes);
        Self {
            settings: settings.or(self.settings),
            ..self
        }
    }

    /// No epoch: nothing that was learned can depend on this change. The caller says why.
    pub fn owes_nothing(self) {
        drop(self);
    }

    /// Notes one more cause, if it is one more.
    pub(super) fn add(&mut self, reason: Reason) {
        if !self.causes.contains(&reason) {
            self.causes.push(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(changed: Changed) -> Vec<(Cause, String)> {
        changed.causes
    }

    #[test]
    fn what_is_done_together_is_told_together_and_once() {
        let both = Changed::mended(true)
            .and(Changed::nothing())
            .and(Changed::new(Cause::Policy, "web"))
            .and(Changed::mended(true));
        assert_eq!(
            causes(both),
            [
                (Cause::Mended, String::new()),
                (Cause::Policy, "web".into())
            ]
        );
    }

    #[test]
    fn nothing_stays_nothing_by_whatever_name() {
        assert!(Changed::mended(false).is_nothing());
        let nothing = Changed::nothing().and(Changed::mended(false));
        assert!(nothing.told_as(Cause::Reload, "").is_nothing());
        let mended = Changed::mended(true).told_as(Cause::Underlay, "eth1 is a new device");
        let expected = [(Cause::Underlay, "eth1 is a new device".to_owned())];
        assert_eq!(causes(mended), expected);
        let whole = Changed::new(Cause::Start, "").covering(Changed::mended(true));
        assert_eq!(causes(whole), [(Cause::Start, String::new())]);
    }
}
