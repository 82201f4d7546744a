//! Hosts, containers, wires, traffic and captures for tests, made of network namespaces.
//!
//! Everything here needs root.

mod bpf;
mod capture;
mod config;
mod conntrack;
mod container;
mod daemon;
mod frame;
mod host;
mod lab;
mod namespace;
mod process;
mod snapshot;
mod socket;

pub use capture::{Capture, CapturedFrame, Recording, RunningCapture};
pub use config::{Config, Peer};
pub use conntrack::{ConntrackEntry, Tuple, conntrack};
pub use container::Container;
pub use frame::{Frame, Ipv4, Mac, Tcp, TcpFlags, Udp, Vxlan};
pub use host::{Host, UNDERLAY};
pub use lab::Lab;
pub use namespace::Place;
pub use process::{Process, output_within, spawn};
pub use snapshot::Snapshot;
