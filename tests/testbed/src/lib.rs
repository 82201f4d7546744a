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
mod builds;
mod cached_flow;
mod capture;
mod command_line;
mod config;
mod conntrack;
mod container;
mod control_socket;
mod counters;
mod daemon;
mod fast_path;
mod frame;
pub mod hanging;
mod host;
mod injector;
mod invalidations;
mod lab;
mod namespace;
mod patience;
pub mod policy;
mod process;
mod random;
mod snapshot;
mod socket;
pub mod traffic;

pub use builds::{Build, Builds};
pub use cached_flow::CachedFlow;
pub use capture::{Capture, CapturedFrame, Recording, RunningCapture};
pub use command_line::complaint;
pub use config::{Config, Peer};
pub use conntrack::{ConntrackEntry, Tuple, conntrack};
pub use container::Container;
pub use control_socket::Answer;
pub use counters::Counters;
pub use fast_path::{Hits, until_fast, until_fast_again};
pub use frame::{Frame, Ipv4, Mac, Tcp, TcpFlags, Udp, Vxlan};
pub use host::{Host, UNDERLAY};
pub use injector::Injector;
pub use lab::Lab;
pub use namespace::Place;
pub use patience::{PATIENCE, bound, eventually};
pub use process::{Process, output_within, spawn};
pub use random::Random;
pub use snapshot::{Snapshot, assert_same, until_same};
pub use socket::set_ip_option;
