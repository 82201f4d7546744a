//! Raising the epoch, by whoever has a cause: the node after what it has done itself, and the
//! watcher as soon as the kernel tells of somebody else's change. Neither waits for the other's work.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{error, info};

use crate::{
    coherence::{Cause, CauseCount, CauseCounts, Scope},
    datapath::{
        DatapathError, Epoch,
        epoch::{Hold, wait_for_running_programs},
    },
};

/// How many causes of one new epoch are named in the log.
const NAMED: usize = 4;

/// A handle; its clones are one.
#[derive(Clone)]
pub struct Invalidator(Arc<Mutex<Shared>>);

struct Shared {
    /// None where there is no fast path: nothing is learned, and nothing has to die.
    epoch: Option<Epoch>,
    scope: Arc<Scope>,
    counts: CauseCounts,
    since: Instant,
    failure: Option<String>,
}

impl Default for Invalidator {
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

impl Invalidator {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts this epoch in charge, before any program of its data path is attached.
    pub(super) fn take_charge_of(&self, epoch: Option<Epoch>) {
        self.lock().epoch = epoch;
    }

    /// What cached results depend on from now on.
    pub(super) fn set_scope(&self, scope: Scope) {
        self.lock().scope = Arc::new(scope);
    }

    /// The containers' host-side devices from now on, by index.
    pub(super) fn set_containers(&self, containers: HashMap<u32, String>) {
        let mut shared = self.lock();
        if shared.scope.containers != containers {
            Arc::make_mut(&mut shared.scope).containers = containers;
        }
    }

    /// Lets nothing be learned while rules may be missing: it would pass by the fast path before they
    /// are back.
    pub(super) fn hold(&self, why: Hold) {
        let mut shared = self.lock();
        if let Some(Err(reason)) = shared.epoch.as_ref().map(|epoch| epoch.hold(why)) {
            error!("hold back what is learned: {reason}");
            shared.failure = Some(reason.to_string());
        }
    }

    /// The hold that is on learning, if there is one.
    pub(super) fn held(&self, why: Hold) -> Option<u64> {
        self.lock().epoch.as_ref().and_then(|epoch| epoch.held(why))
    }

    /// Lets programs learn again, unless something else has come since this hold.
    ///
    /// # Errors
    ///
    /// As [`Epoch::release`].
    pub(super) fn release(&self, why: Hold, hold: u64) -> Result<(), DatapathError> {
        match &self.lock().epoch {
            Some(epoch) => epoch.release(why, hold),
            None => Ok(()),
        }
    }

    /// Ends a hold for the sake of tables that are back.
    pub(super) fn release_tables(&self, hold: Option<u64>) {
        let released = hold.map_or(Ok(()), |hold| self.release(Hold::Tables, hold));
        if let Err(reason) = released {
            error!("learn again: {reason}");
            self.lock().failure = Some(reason.to_string());
        }
    }

    pub(super) fn scope(&self) -> Arc<Scope> {
        self.lock().scope.clone()
    }

    /// Raises the epoch for causes with their objects (empty if the cause says it all). A packet
    /// that a program is judging already may still pass when this returns.
    ///
    /// # Errors
    ///
    /// As [`Epoch::raise`]. What can't be invalidated must not be used: see
    /// [`Invalidator::take_failure`].
    pub(super) fn raise(&self, causes: &[(Cause, String)]) -> Result<(), DatapathError> {
        self.raise_by(causes, Epoch::raise)
    }

    /// As [`Invalidator::raise`], for what was heard of and not looked at yet: see [`Cause::holds`].
    ///
    /// # Errors
    ///
    /// As [`Invalidator::raise`].
    pub(super) fn raise_unseen(&self, causes: &[(Cause, String)]) -> Result<(), DatapathError> {
        if causes.iter().any(|(cause, _)| cause.holds()) {
            self.raise_by(causes, |epoch| epoch.raise_and_hold(Hold::Devices))
        } else {
            self.raise(causes)
        }
    }

    fn raise_by(
        &self,
        causes: &[(Cause, String)],
        raise: impl FnOnce(&Epoch) -> Result<u32, DatapathError>,
    ) -> Result<(), DatapathError> {
        let mut shared = self.lock();
        let Some(epoch) = &shared.epoch else {
            return Ok(());
        };
        match raise(epoch) {
            Ok(epoch) => {
                for (cause, _) in causes {
                    shared.counts.add(*cause);
                }
                drop(shared);
                info!("epoch {epoch}: {}", line(causes));
                Ok(())
            }
            Err(reason) => {
                error!("raise the epoch ({}): {reason}", line(causes));
                shared.failure = Some(reason.to_string());
                Err(reason)
            }
        }
    }

    /// As [`Invalidator::raise`]; when it returns, no packet is judged by the old state any more.
    pub(super) fn raise_and_wait(&self, cause: Cause, object: &str) {
        if self.raise(&[(cause, object.to_owned())]).is_ok()
            && self.lock().epoch.is_some()
            && let Err(reason) = wait_for_running_programs()
        {
            error!("raise the epoch ({cause}): {reason}");
            self.lock().failure = Some(reason.to_string());
        }
    }

    /// Counts an epoch that was raised with other settings.
    pub(super) fn count(&self, cause: Cause) {
        self.lock().counts.add(cause);
    }

    /// Why the epoch could not be raised, once.
    pub(super) fn take_failure(&self) -> Option<String> {
        self.lock().failure.take()
    }

    /// How often each cause has raised the epoch, and for how long that was counted.
    pub(super) fn counts(&self) -> (Vec<CauseCount>, Duration) {
        let shared = self.lock();
        (shared.counts.list(), shared.since.elapsed())
    }
}

fn line(causes: &[(Cause, String)]) -> String {
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
        let invalidator = Invalidator::default();
        invalidator.raise_and_wait(Cause::Flush, "");
        assert_eq!(invalidator.counts().0, []);
        assert_eq!(invalidator.take_failure(), None);
    }
}
