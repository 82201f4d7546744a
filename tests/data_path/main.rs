//! What becomes of packets: the programs one by one, and whole hosts with real traffic.

#[path = "../overlay_hosts/mod.rs"] // It calls the library, which the test bed does not.
mod overlay_hosts;

mod caches;
mod clsact;
mod congestion_and_priority;
mod conntrack;
mod ct_timeout;
mod differential;
mod fast_path_tcp;
mod fast_path_udp;
mod ipsec;
mod netkit_link;
mod offloads;
mod outer_checksums;
mod overlay_traffic;
mod packet_classes;
mod program_bench;
mod program_fuzz;
mod programs;
mod short_connections;
mod slow_path;
mod traffic_control;

/// The binary under test.
const ONCACHE: &str = env!("CARGO_BIN_EXE_oncache");
