//! Changes that others make to the host: that they are heard, and that nothing learned outlives them.

#[path = "../cached_flow/mod.rs"]
mod cached_flow;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../namespaces/mod.rs"]
mod namespaces;

mod foreign_changes;
mod foreign_rule;
mod netlink_watch;
mod others_churn;
mod underlay_changes;
