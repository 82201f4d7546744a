//! How many packets took which path.

use std::fs::read_to_string;

use oncache_testbed::{Host, Lab};

use crate::paths::Path;

/// Packets between containers, of both hosts together. The kernel's and oncache's counters alike
/// count an aggregate once.
#[derive(Default)]
pub struct Packets {
    pub vxlan_out: u64,
    pub vxlan_in: u64,
    pub egress_hits: u64,
    pub egress_misses: u64,
    pub ingress_hits: u64,
    pub ingress_misses: u64,
}

impl Packets {
    /// The counters as they are now.
    pub fn of(lab: &Lab, path: Path) -> Result<Self, String> {
        let mut packets = Self::default();
        for host in lab.all() {
            packets.vxlan_out += device_counter(host, "tx_packets")?;
            packets.vxlan_in += device_counter(host, "rx_packets")?;
            if path == Path::Cached {
                packets.add_programs(host)?;
            }
        }
        Ok(packets)
    }

    /// Adds what has been counted from one time to another.
    pub fn add(&mut self, before: &Self, after: &Self) {
        self.vxlan_out += after.vxlan_out - before.vxlan_out;
        self.vxlan_in += after.vxlan_in - before.vxlan_in;
        self.egress_hits += after.egress_hits - before.egress_hits;
        self.egress_misses += after.egress_misses - before.egress_misses;
        self.ingress_hits += after.ingress_hits - before.ingress_hits;
        self.ingress_misses += after.ingress_misses - before.ingress_misses;
    }

    fn add_programs(&mut self, host: &Host) -> Result<(), String> {
        let stats = host.oncache_json(&["stats", "--json"]);
        let unknown = || format!("{}: `oncache stats` is not understood: {stats}", host.name);
        for counter in stats["counters"].as_array().ok_or_else(unknown)? {
            let packets = counter["packets"].as_u64().ok_or_else(unknown)?;
            let text = |field: &str| counter[field].as_str().unwrap_or_default();
            match (text("program"), text("reason")) {
                // No packets between containers: ARP, the world outside, the NIC's other packets.
                (_, "not-ipv4" | "not-overlay" | "outside-network") => {}
                ("egress", "hit") => self.egress_hits += packets,
                ("egress", _) => self.egress_misses += packets,
                ("ingress", "hit") => self.ingress_hits += packets,
                ("ingress", _) => self.ingress_misses += packets,
                _ => {}
            }
        }
        Ok(())
    }
}

fn device_counter(host: &Host, counter: &str) -> Result<u64, String> {
    let path = format!("/sys/class/net/oncache-vx0/statistics/{counter}");
    let text = host.enter(|| read_to_string(&path));
    let number = text.map(|text| text.trim().parse().ok());
    match number {
        Ok(Some(number)) => Ok(number),
        Ok(None) => Err(format!("{}: {path} holds no number", host.name)),
        Err(error) => Err(format!("{}: {path}: {error}", host.name)),
    }
}
