//! What becomes of packets: the programs one by one, and whole hosts with real traffic.

#[path = "../cached_flow/mod.rs"]
mod cached_flow;
#[path = "../hanging/mod.rs"]
mod hanging;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../namespaces/mod.rs"]
mod namespaces;
#[path = "../program_bench/mod.rs"]
mod program_bench;

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
mod program_fuzz;
mod programs;
mod short_connections;
mod slow_path;
mod traffic_control;
