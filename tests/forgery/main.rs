//! Whoever is in a container forges nothing: not with an ordinary socket, not with a raw one, not by what the
//! bridge could learn from it.

mod bridge;
mod everything;
mod generate;
mod packet;
mod reference;
mod tunnel;
mod watch;
mod world;

/// The binary under test.
const ONCACHE: &str = env!("CARGO_BIN_EXE_oncache");
