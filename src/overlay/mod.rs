//! The slow path: VXLAN device, bridge, routes, neighbours and FDB to peers, nftables.
//!
//! [`wanted`] says what it should be, [`diff`](mod@diff) what is to be done about the difference,
//! and [`reconcile`](mod@reconcile) does it; [`teardown`](mod@teardown) undoes it.

pub mod conflicts;
pub mod diff;
pub mod names;
pub mod network_route;
pub mod nftables;
pub mod reconcile;
pub mod refused;
mod ruleset;
pub mod source_guard;
pub mod step;
pub mod sysctl;
pub mod teardown;
mod tunnel_guard;
pub mod wanted;
