//! Hosts, containers, wires, traffic and captures for tests, made of network namespaces.
//!
//! Everything here needs root.

mod namespace;
mod process;

pub use namespace::Place;
pub use process::{Process, output_within, spawn};
