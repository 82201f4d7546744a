//! Which way the packets really went. A figure whose traffic went another way is an error.

use std::fmt;

use oncache_testbed::{Host, UNDERLAY};

use crate::{
    column::{Bed, Kind},
    traffic::Workload,
};

/// Counters of one moment, of both hosts together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    /// Packets that the underlay devices sent.
    wire: u64,
    /// Packets that the VXLAN devices sent.
    vxlan: u64,
    /// Bytes of both: a wire that segments counts an aggregate many times.
    wire_bytes: u64,
    vxlan_bytes: u64,
    /// Packets that `egress` and `ingress` carried.
    hits: u64,
    /// Packets of the overlay that they left to the slow path.
    misses: u64,
    /// Packets that the floor's programs redirected.
    redirected: u64,
    /// Connections that conntrack holds, not a counter.
    tracked: u64,
}

/// Left to others because it is not the overlay's IPv4: no miss of the cache.
const NOT_OURS: [&str; 2] = ["not-overlay", "not-ipv4"];

impl Passed {
    /// As it is now.
    pub fn of(bed: &Bed) -> Result<Self, String> {
        let mut sum = Self::default();
        for host in bed.hosts() {
            let sent = |device, what| transmitted(host, device, what).unwrap_or(0);
            sum.wire += sent(UNDERLAY, "packets");
            sum.vxlan += sent("oncache-vx0", "packets");
            sum.wire_bytes += sent(UNDERLAY, "bytes");
            sum.vxlan_bytes += sent("oncache-vx0", "bytes");
            let tracked = host.sysctl("net.netfilter.nf_conntrack_count");
            sum.tracked += tracked
                .and_then(|text| text.parse::<u64>().ok())
                .unwrap_or(0);
            if bed.column.kind == Kind::Oncache {
                let (hits, misses) = judged(host)?;
                sum.hits += hits;
                sum.misses += misses;
            }
        }
        if let Some(floor) = &bed.floor {
            sum.redirected = floor.redirected()?;
        }
        Ok(sum)
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            wire: self.wire - earlier.wire,
            vxlan: self.vxlan - earlier.vxlan,
            wire_bytes: self.wire_bytes - earlier.wire_bytes,
            vxlan_bytes: self.vxlan_bytes - earlier.vxlan_bytes,
            hits: self.hits - earlier.hits,
            misses: self.misses - earlier.misses,
            redirected: self.redirected - earlier.redirected,
            tracked: self.tracked,
        }
    }

    /// Whether what went over the wire came from a VXLAN device, but for address resolution. Of
    /// aggregates the bytes are compared, less what each segment's headers may make of them.
    fn all_by_vxlan(&self, aggregates: bool) -> bool {
        let packets = self.vxlan * 100 >= self.wire * 99;
        packets || aggregates && self.vxlan_bytes * 100 >= self.wire_bytes * 85
    }

    /// The hit ratio since `earlier`, where the column has caches.
    ///
    /// # Errors
    /// What went another way than the column's.
    pub fn check(
        self,
        earlier: Self,
        bed: &Bed,
        workload: Workload,
    ) -> Result<Option<f64>, String> {
        let aggregates = matches!(workload, Workload::TcpStreams(_));
        let least = workload.least_hit_ratio();
        self.check_of(earlier, bed, &workload, (aggregates, least))
    }

    /// As [`Passed::check`], for any traffic: whether it has aggregates, and the least hit ratio.
    pub fn check_of(
        self,
        earlier: Self,
        bed: &Bed,
        traffic: &dyn fmt::Display,
        (aggregates, least): (bool, Option<f64>),
    ) -> Result<Option<f64>, String> {
        let passed = self.since(earlier);
        let wrong = |what: &str| {
            let name = &bed.column.name;
            Err(format!(
                "{name}, {traffic}: {what}, so this is no figure of {name}: {passed:?}"
            ))
        };
        if passed.wire == 0 {
            return wrong("nothing went over the wire");
        }
        match bed.column.kind {
            Kind::BareHost if passed.tracked > 0 => wrong("conntrack was in the way"),
            Kind::Host if passed.tracked == 0 => wrong("conntrack was not in the way"),
            Kind::BareHost | Kind::Host => Ok(None),
            Kind::Overlay if !passed.all_by_vxlan(aggregates) => {
                wrong("not all went by the VXLAN device")
            }
            Kind::Overlay if passed.tracked == 0 => wrong("conntrack was not in the way"),
            Kind::Overlay => Ok(None),
            // Each is redirected on both sides. The hosts have no route to these containers, so an
            // aggregate cannot have gone another way.
            Kind::Floor if passed.redirected == 0 => wrong("nothing was redirected"),
            Kind::Floor if !aggregates && passed.redirected * 100 < passed.wire * 2 * 98 => {
                wrong("not all was redirected")
            }
            Kind::Floor => Ok(None),
            Kind::Oncache => {
                let all = passed.hits + passed.misses;
                if all == 0 {
                    return wrong("no packet met the programs");
                }
                let ratio = passed.hits as f64 / all as f64;
                match least {
                    Some(least) if ratio < least => {
                        wrong(&format!("the caches carried {:.2} % only", ratio * 100.0))
                    }
                    _ => Ok(Some(ratio)),
                }
            }
        }
    }
}

fn transmitted(host: &Host, device: &str, what: &str) -> Option<u64> {
    let path = format!("/sys/class/net/{device}/statistics/tx_{what}");
    let text = host.enter(|| std::fs::read_to_string(path)).ok()?;
    text.trim().parse().ok()
}

/// Hits and misses of `egress` and `ingress`.
fn judged(host: &Host) -> Result<(u64, u64), String> {
    let stats = host.oncache_json(&["stats", "--json"]);
    let counters = stats["counters"]
        .as_array()
        .ok_or_else(|| format!("{}: `oncache stats --json` lists no counters", host.name))?;
    let (mut hits, mut misses) = (0, 0);
    for counter in counters {
        let packets = counter["packets"].as_u64().unwrap_or(0);
        let (program, reason) = (counter["program"].as_str(), counter["reason"].as_str());
        match (program, reason) {
            (Some("egress" | "ingress"), Some("hit")) => hits += packets,
            (Some("egress" | "ingress"), Some(reason)) if !NOT_OURS.contains(&reason) => {
                misses += packets;
            }
            _ => {}
        }
    }
    Ok((hits, misses))
}
