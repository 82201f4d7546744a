//! The slow path: VXLAN device, bridge, routes, neighbours and FDB to peers, nftables.
//!
//! [`wanted`] says what it should be, [`diff`](mod@diff) what is to be done about the difference,
//! and [`reconcile`](mod@reconcile) does it; [`teardown`](mod@teardown) undoes it.

pub mod conflicts;
pub mod diff;
pub mod matches;
pub mod names;
pub mod network_route;
pub mod reconcile;
pub mod refused;
pub mod ruleset;
pub mod source_guard;
pub mod step;
pub mod sysctl;
pub mod teardown;
pub mod tunnel_guard;
pub mod wanted;
