//! Whoever is in a container forges nothing: not with an ordinary socket, not with a raw one, not by what the
//! bridge could learn from it.

#[path = "../cached_flow/mod.rs"]
mod cached_flow;
#[allow(dead_code, reason = "not every test needs everything")]
#[path = "../data_path/differential/inject.rs"]
mod inject;
#[path = "../lab/mod.rs"]
mod lab;

mod bridge;
mod everything;
mod generate;
mod packet;
mod reference;
mod tunnel;
mod watch;
mod world;
