//! Hosts, containers, wires, traffic and captures for tests, made of network namespaces.
//!
//! Everything here needs root.

mod capture;
mod frame;
mod namespace;
mod process;
mod socket;

pub use capture::{Capture, CapturedFrame, Recording, RunningCapture};
pub use frame::{Frame, Ipv4, Mac, Tcp, TcpFlags, Udp, Vxlan};
pub use namespace::Place;
pub use process::{Process, output_within, spawn};
