//! Changes that others make to the host: that they are heard, and that nothing learned outlives them.

mod foreign_changes;
mod foreign_rule;
mod netlink_watch;
mod others_churn;
mod owed_epochs;
mod underlay_changes;

/// The binary under test.
const ONCACHE: &str = env!("CARGO_BIN_EXE_oncache");
