//! What only shows under load: many flows, many containers, many deaths. Apart from the others, whose patience it would try.

mod daemon_chaos;
mod lru_pressure;
mod policy_load;
mod scale;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One at a time of those that fill the wire and of those that count what is lost: each CPU has one queue for all
/// namespaces (net/core/dev.c, `enqueue_to_backlog`: `netdev_max_backlog`, a thousand packets), and what overflows
/// it belongs to anybody.
fn with_the_queues_alone() -> MutexGuard<'static, ()> {
    static QUEUES: Mutex<()> = Mutex::new(());
    QUEUES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The binary under test.
const ONCACHE: &str = env!("CARGO_BIN_EXE_oncache");
