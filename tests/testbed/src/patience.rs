//! Waiting for what happens by itself.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything may take that the daemon does by itself.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until something holds, and returns how long that took.
///
/// # Panics
/// If it does not within `patience`; `what` says what was waited for.
pub fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < patience, "not in {patience:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}
