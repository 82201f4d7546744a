//! Network policy on real hosts.

#[path = "../data_path/differential/inject.rs"]
mod inject;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../policy_probe/mod.rs"]
mod policy_probe;

mod forgotten_openers;
mod hurt_tables;
mod policy;
mod policy_life;
