//! Network policy on real hosts.

mod forgotten_openers;
mod hurt_tables;
mod policy;
mod policy_life;

/// The binary under test.
const ONCACHE: &str = env!("CARGO_BIN_EXE_oncache");
