//! Hosts, containers, wires, traffic and captures for tests, made of network namespaces.
//!
//! Everything here needs root.

mod bpf;
mod capture;
mod conntrack;
mod frame;
mod namespace;
mod process;
mod snapshot;
mod socket;

pub use capture::{Capture, CapturedFrame, Recording, RunningCapture};
pub use conntrack::{ConntrackEntry, Tuple, conntrack};
pub use frame::{Frame, Ipv4, Mac, Tcp, TcpFlags, Udp, Vxlan};
pub use namespace::Place;
pub use process::{Process, output_within, spawn};
pub use snapshot::Snapshot;
