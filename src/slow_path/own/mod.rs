//! The slow path of oncache's own making: VXLAN device, bridge, routes, neighbours and FDB to peers, nftables.
//!
//! [`wanted`] says what it should be, [`diff`](mod@diff) what is to be done about the difference,
//! and [`reconcile`](mod@reconcile) does it; [`teardown`](mod@teardown) undoes it. [`OwnSlowPath`] is all of it
//! for the daemon.

pub mod conflicts;
pub mod diff;
mod matches;
pub mod names;
pub mod network_route;
mod ports;
pub mod reconcile;
pub mod refused;
pub mod ruleset;
mod slow_path;
pub mod source_guard;
pub mod step;
pub mod sysctl;
pub mod teardown;
pub mod tunnel_guard;
pub mod wanted;

pub use slow_path::{OwnSlowPath, TABLES, facts};
