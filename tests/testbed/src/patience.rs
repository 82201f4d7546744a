//! Waiting for what happens by itself.

use std::{
    io, thread,
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

/// Binds, and waits where the address is still taken: a child of another test's thread holds a socket that has been closed
/// for a moment, between fork and exec.
///
/// # Errors
/// Why it can't be had, after [`PATIENCE`] where it stays taken.
pub fn bound<S>(bind: impl Fn() -> io::Result<S>) -> io::Result<S> {
    let until = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}
