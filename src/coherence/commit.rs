//! Raising the epoch: the one place that does, for whoever has changed something.
//!
//! The node commits what it has done itself, and the watcher what the kernel tells of, as soon as it
//! does. Neither waits for the other's work.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{error, info};

use super::{
    Cause, CauseCount, CauseCounts, Changed, Scope,
    changed::{Reason, Told},
};
use crate::datapath::{
    DatapathError, Epoch,
    epoch::{Hold, Outlived, wait_for_running_programs},
};

/// How many causes of one new epoch are named in the log.
const NAMED: usize = 4;

/// A handle; its clones are one.
#[derive(Clone)]
pub struct Coherence(Arc<Mutex<Shared>>);

struct Shared {
    /// None where there is no fast path: nothing is learned, and nothing has to die.
    epoch: Option<Epoch>,
    scope: Arc<Scope>,
    counts: CauseCounts,
    since: Instant,
    failure: Option<String>,
}

impl Default for Coherence {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Shared {
            epoch: None,
            scope: Arc::default(),
            counts: CauseCounts::default(),
            since: Instant::now(),
            failure: None,
        })))
    }
}

impl Coherence {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes charge of this epoch, before any program of its data path is attached. It goes on
    /// behind the one that it takes the place of.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]: the settings can't be read or written; the former epoch stays.
    pub fn take_charge_of(&self, epoch: Epoch) -> Result<(), DatapathError> {
        let mut shared = self.lock();
        if let Some(former) = &shared.epoch {
            // Packets may be on their way that missed under the former maps: new ones must not take
            // their marks for their own.
            epoch.count_on_from(former.settings()?.epoch)?;
        }
        shared.epoch = Some(epoch);
        Ok(())
    }

    /// There is no fast path any more, and what has failed with it is of no concern.
    pub fn give_up_epoch(&self) {
        let mut shared = self.lock();
        shared.epoch = None;
        shared.failure = None;
    }

    /// What cached results depend on from now on.
    pub fn set_scope(&self, scope: Scope) {
        self.lock().scope = Arc::new(scope);
    }

    /// The containers' host-side devices from now on, by index.
    pub fn set_containers(&self, containers: HashMap<u32, String>) {
        let mut shared = self.lock();
        if shared.scope.containers != containers {
            Arc::make_mut(&mut shared.scope).containers = containers;
        }
    }

    /// What cached results depend on.
    #[must_use]
    pub fn scope(&self) -> Arc<Scope> {
        self.lock().scope.clone()
    }

    /// Lets nothing be learned while rules may be missing: it would pass by the fast path before they
    /// are back.
    pub fn hold(&self, why: Hold) {
        let mut shared = self.lock();
        if let Some(Err(reason)) = shared.epoch.as_ref().map(|epoch| epoch.hold(why)) {
            error!("hold back what is learned: {reason}");
            shared.failure = Some(reason.to_string());
        }
    }

    /// The hold that is on learning, if there is one.
    #[must_use]
    pub fn held(&self, why: Hold) -> Option<u64> {
        self.lock().epoch.as_ref().and_then(|epoch| epoch.held(why))
    }

    /// Lets programs learn again, unless something else has come since this hold.
    ///
    /// # Errors
    ///
    /// As [`Epoch::release`].
    pub fn release(&self, why: Hold, hold: u64) -> Result<(), DatapathError> {
        match &self.lock().epoch {
            Some(epoch) => epoch.release(why, hold),
            None => Ok(()),
        }
    }

    /// Ends a hold for the sake of tables that are back.
    pub fn release_tables(&self, hold: Option<u64>) {
        let released = hold.map_or(Ok(()), |hold| self.release(Hold::Tables, hold));
        if let Err(reason) = released {
            error!("learn again: {reason}");
            self.lock().failure = Some(reason.to_string());
        }
    }

    /// Raises the epoch, once, if one is owed for `changed`, which has been made before; returns
    /// whether one was. When this returns, no packet is judged by the old state any more, but for
    /// changes that were only heard of: those who made them do not wait for this, and a packet that
    /// a program is judging already may still pass.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]: what can't be invalidated must not be used. See also
    /// [`Coherence::take_failure`].
    pub fn commit(&self, changed: Changed) -> Result<bool, DatapathError> {
        let Changed {
            mut causes,
            settings,
            heard,
        } = changed;
        let outcome = match self.raise(&mut causes, settings, heard) {
            Ok(true) if !heard => wait_for_running_programs().map(|()| true),
            outcome => outcome,
        };
        if let Err(reason) = &outcome {
            error!("raise the epoch ({}): {reason}", line(&causes));
            self.lock().failure = Some(reason.to_string());
        }
        outcome
    }

    /// Puts the settings in force, with the new epoch if one is owed. What they ask one for is added
    /// to the causes.
    fn raise(
        &self,
        causes: &mut Vec<Reason>,
        settings: Option<Told>,
        heard: bool,
    ) -> Result<bool, DatapathError> {
        let mut shared = self.lock();
        let Some(epoch) = &shared.epoch else {
            return Ok(false);
        };
        let tuning = match settings {
            None => None,
            Some(told) => {
                let old = epoch.settings()?;
                let (Told::Ahead(tuning) | Told::InForce(tuning)) = told;
                if let Some(outlived) = tuning.outlives(&old) {
                    name(causes, outlived.into());
                }
                Some(match told {
                    Told::Ahead(_) => tuning.unnoted(&old),
                    Told::InForce(_) => tuning,
                })
            }
        };
        if causes.is_empty() {
            if let Some(tuning) = tuning {
                epoch.tune(&tuning)?;
            }
            return Ok(false);
        }
        let unseen = heard && causes.iter().any(|(cause, _)| cause.holds());
        let number = epoch.raise(tuning.as_ref(), unseen.then_some(Hold::Devices))?;
        // The one that follows the attachment is counted.
        if !matches!(settings, Some(Told::Ahead(_))) {
            for (cause, _) in causes.iter() {
                shared.counts.add(*cause);
            }
            drop(shared);
            info!("epoch {number}: {}", line(causes));
        }
        Ok(true)
    }

    /// Why the epoch could not be raised, once.
    #[must_use]
    pub fn take_failure(&self) -> Option<String> {
        self.lock().failure.take()
    }

    /// How often each cause has raised the epoch, and for how long that was counted.
    #[must_use]
    pub fn counts(&self) -> (Vec<CauseCount>, Duration) {
        let shared = self.lock();
        (shared.counts.list(), shared.since.elapsed())
    }
}

impl From<Outlived> for Cause {
    fn from(outlived: Outlived) -> Self {
        match outlived {
            Outlived::Fingerprint => Self::Configuration,
            Outlived::Lease => Self::Lease,
        }
    }
}

/// Adds what the settings ask an epoch for, unless it is among the causes.
fn name(causes: &mut Vec<Reason>, cause: Cause) {
    if !causes.iter().any(|(known, _)| *known == cause) {
        causes.push((cause, String::new()));
    }
}

fn line(causes: &[Reason]) -> String {
    let named = causes.iter().take(NAMED).map(|(cause, object)| {
        if object.is_empty() {
            cause.to_string()
        } else {
            format!("{cause}: {object}")
        }
    });
    let mut words: Vec<String> = named.collect();
    if let Some(more) = causes.len().checked_sub(NAMED).filter(|more| *more > 0) {
        words.push(format!("and {more} more changes"));
    }
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_causes_and_objects_but_not_hundreds() {
        let route = |last: u8| (Cause::Route, format!("10.42.{last}.0/24"));
        let both = [(Cause::Ruleset, String::new()), route(2)];
        assert_eq!(
            line(&both),
            "the nftables ruleset changed; a route changed: 10.42.2.0/24"
        );
        let many: Vec<_> = (0..200).map(route).collect();
        assert!(line(&many).ends_with("10.42.3.0/24; and 196 more changes"));
    }

    #[test]
    fn without_a_fast_path_nothing_is_raised_nor_counted() {
        let coherence = Coherence::default();
        let raised = coherence.commit(Changed::new(Cause::Flush, ""));
        assert!(!raised.expect("nothing is written"));
        assert_eq!(coherence.counts().0, []);
        assert_eq!(coherence.take_failure(), None);
    }
}
