//! What only shows under load: many flows, many containers, many deaths. Apart from the others, whose patience it would try.

#[path = "../builds/mod.rs"]
mod builds;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../seed/mod.rs"]
#[allow(dead_code, reason = "no test takes everything")]
mod seed;

mod daemon_chaos;
mod lru_pressure;
mod policy_load;
mod scale;
