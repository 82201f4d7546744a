//! What only shows under load: many flows, many containers, many deaths. Apart from the others, whose patience it would try.

mod daemon_chaos;
mod lru_pressure;
mod policy_load;
mod scale;

/// The binary under test.
const ONCACHE: &str = env!("CARGO_BIN_EXE_oncache");
