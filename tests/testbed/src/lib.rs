//! Hosts, containers, wires, traffic and captures for tests, made of network namespaces.
//!
//! A [`Lab`] is a handful of hosts on one underlay network. Each [`Host`] is an anonymous pair of
//! namespaces (network and mount) that only file descriptors of this process hold: nothing has a
//! name, so labs never collide, and nothing outlives the process, however it ends.
//!
//! ```no_run
//! use oncache_testbed::{Lab, traffic};
//!
//! let lab = Lab::two_hosts("target/debug/oncache");
//! lab.start();
//! let client = lab.alpha().add_container("client");
//! let server = lab.beta().add_container("server");
//! let report = traffic::transfer(&client, &server, 5000, 1 << 30, traffic::Direction::Both);
//! assert!(report.intact(), "{report}");
//! ```
//!
//! A test bed fails by panicking, with a message that says what was being done; what is *measured*
//! (traffic, captures, snapshots) is returned as a report and judged by the caller.
//!
//! Everything here needs root.

mod bpf;
mod capture;
mod config;
mod conntrack;
mod container;
mod counters;
mod daemon;
mod frame;
mod host;
mod invalidations;
mod lab;
mod namespace;
mod process;
mod snapshot;
mod socket;
pub mod traffic;

pub use capture::{Capture, CapturedFrame, Recording, RunningCapture};
pub use config::{Config, Peer};
pub use conntrack::{ConntrackEntry, Tuple, conntrack};
pub use container::Container;
pub use counters::Counters;
pub use frame::{Frame, Ipv4, Mac, Tcp, TcpFlags, Udp, Vxlan};
pub use host::{Host, UNDERLAY};
pub use lab::Lab;
pub use namespace::Place;
pub use process::{Process, output_within, spawn};
pub use snapshot::Snapshot;
