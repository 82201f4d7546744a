//! What hangs on the way of packets and would not be met by the fast path.
//!
//! Judged by what a thing is and not by what it does: an unknown kind may do anything. Which devices and hooks
//! the fast path skips, and why a thing there is harmless, is in docs/adr/036.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use crate::{
    datapath::{attach::CLSACT_PRIORITY, foreign::Foreign},
    netlink::{DeviceChain, Direction, Filter, Hook, IpsecPolicy, OnDevice},
};

/// What the names of oncache's own nftables tables begin with.
const OWN_TABLES: &str = "oncache";

/// Where a device is on the way of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The host-side device of a container's veth pair, by the container's name.
    Container(String),
    /// The same of a netkit pair: what `egress` carries does not come to it.
    Netkit(String),
    /// Bridge or VXLAN device: nothing of the fast path passes it.
    Skipped,
    /// The underlay device: the fast path ends and begins within it.
    Underlay,
}

/// Whose flows are not carried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flows {
    /// Everybody's.
    All,
    /// A container's, by its name.
    Container(String),
    /// Those from and to a peer.
    Peer(Ipv4Addr),
}

impl fmt::Display for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all flows"),
            Self::Container(name) => write!(f, "container {name}"),
            Self::Peer(address) => write!(f, "peer {address}"),
        }
    }
}

/// Something that may drop, shape, mirror or rewrite what the fast path would carry past it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hindrance {
    /// The device, or `ipsec`.
    pub device: String,
    /// What it is.
    pub reason: String,
    /// Whose flows it is in the way of.
    pub flows: Flows,
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            device,
            reason,
            flows,
        } = self;
        write!(f, "{device}: {reason}: not carried ({flows})")
    }
}

/// All of them; none known before the first look, when everything may be in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hindrances(Option<BTreeSet<Hindrance>>);

impl Hindrances {
    /// What a look has found.
    #[must_use]
    pub fn found(all: impl IntoIterator<Item = Hindrance>) -> Self {
        Self(Some(all.into_iter().collect()))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Hindrance> {
        self.0.iter().flatten()
    }

    /// Those in the way of a container's flows to whichever peer.
    pub fn of_container(&self, name: &str) -> impl Iterator<Item = &Hindrance> {
        self.iter().filter(move |it| match &it.flows {
            Flows::All => true,
            Flows::Container(container) => container == name,
            Flows::Peer(_) => false,
        })
    }

    /// Whether nothing of a container's flows is to be learned.
    #[must_use]
    pub fn withholds_container(&self, name: &str) -> bool {
        self.0.is_none() || self.of_container(name).next().is_some()
    }

    /// Whether nothing of a peer's flows is to be learned.
    #[must_use]
    pub fn withholds_peer(&self, address: Ipv4Addr) -> bool {
        self.iter().any(|it| it.flows == Flows::Peer(address))
    }

    /// Whether this is one of them.
    #[must_use]
    pub fn has(&self, hindrance: &Hindrance) -> bool {
        self.0.as_ref().is_some_and(|all| all.contains(hindrance))
    }

    /// Whether there has been a look.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.0.is_some()
    }
}

/// What is in the way on one device. `ours` are the ids of oncache's programs, which are no hindrance.
#[must_use]
pub fn on_device(
    way: &Way,
    on: &OnDevice,
    programs: &[Foreign],
    chains: &[&DeviceChain],
    ours: &HashSet<u32>,
) -> BTreeSet<String> {
    let mut reasons = BTreeSet::new();
    if *way != Way::Underlay {
        let roots = on.qdiscs.iter().filter(|it| it.root && !it.is_hook());
        let roots = roots.filter(|it| it.kind != "noqueue");
        reasons.extend(roots.map(|it| format!("{} qdisc", it.kind)));
    }
    let filters = on.filters.iter().filter(|it| !is_ours(it, ours));
    let filters = filters.filter(|it| !(*way == Way::Underlay && is_met(it)));
    reasons.extend(filters.map(named));
    reasons.extend(
        programs
            .iter()
            .map(|it| format!("program {} at {}", it.program, it.hook)),
    );
    let chains = chains.iter().filter(|it| !it.table.starts_with(OWN_TABLES));
    reasons.extend(chains.map(|it| format!("chain {} of table {}", it.name, it.table)));
    // Elsewhere a packet has met it before it reaches `egress` or `ingress`.
    if on.xdp && matches!(way, Way::Skipped | Way::Netkit(_)) {
        reasons.insert("XDP program".to_owned());
    }
    if on.xdp_at_other_end && matches!(way, Way::Container(_)) {
        reasons.insert("XDP program inside the container".to_owned());
    }
    reasons
}

fn is_ours(filter: &Filter, ours: &HashSet<u32>) -> bool {
    let by_id = filter.program.is_some_and(|id| ours.contains(&id));
    filter.priority == CLSACT_PRIORITY && filter.hook != Hook::Queue && by_id
}

/// Whether a packet of the fast path meets the underlay's filter as one of the slow path does: `bpf_redirect`
/// enters the device as everybody does (net/core/filter.c, `__bpf_tx_skb`), and the bytes are the same. What
/// else a filter may look at is not: marks, priorities, sockets.
fn is_met(filter: &Filter) -> bool {
    filter.hook != Hook::Ingress && filter.plain
}

fn named(filter: &Filter) -> String {
    let Filter { kind, hook, .. } = filter;
    match hook {
        Hook::Ingress => format!("{kind} filter at ingress"),
        Hook::Egress => format!("{kind} filter at egress"),
        Hook::Queue => format!("{kind} filter of a qdisc"),
    }
}

/// What IPsec's policies are for.
#[derive(Clone, Debug)]
pub struct Ends<'a> {
    /// This host's underlay address.
    pub host: Ipv4Addr,
    /// The peers'.
    pub peers: Vec<Ipv4Addr>,
    /// The network of all containers.
    pub network: Ipv4Net,
    /// The containers here.
    pub containers: Vec<(&'a str, Ipv4Addr)>,
}

/// Whose packets IPsec's policies would not let pass as they are: outside, between this host and a peer, or
/// inside, where they are forwarded between bridge and VXLAN device.
#[must_use]
pub fn by_ipsec(policies: &[IpsecPolicy], ends: &Ends<'_>) -> Vec<Hindrance> {
    let overlaps = |net: &Ipv4Net| net.contains(&ends.network) || ends.network.contains(net);
    let mut found = Vec::new();
    for policy in policies {
        let (from, to) = (&policy.source, &policy.destination);
        let outside = |peer: &Ipv4Addr| match policy.direction {
            Direction::Out => from.contains(&ends.host) && to.contains(peer),
            Direction::In => from.contains(peer) && to.contains(&ends.host),
            Direction::Forward => false,
        };
        let inside = |ip: &Ipv4Addr| {
            policy.direction != Direction::In
                && ((from.contains(ip) && overlaps(to)) || (to.contains(ip) && overlaps(from)))
        };
        let peers = ends.peers.iter().filter(|peer| policy.udp && outside(peer));
        let containers = ends.containers.iter().filter(|(_, ip)| inside(ip));
        let flows = peers.map(|peer| Flows::Peer(*peer));
        let flows = flows.chain(containers.map(|(name, _)| Flows::Container((*name).to_owned())));
        let way = match policy.direction {
            Direction::In => "in",
            Direction::Out => "out",
            Direction::Forward => "fwd",
        };
        found.extend(flows.map(|flows| Hindrance {
            device: "ipsec".to_owned(),
            reason: format!("policy {from} to {to} ({way})"),
            flows,
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Qdisc;

    const OURS: u32 = 5;

    fn ways() -> [Way; 3] {
        [Way::Container("web".into()), Way::Skipped, Way::Underlay]
    }

    /// For which of [`ways`] something is a hindrance.
    fn hinders(on: &OnDevice, programs: &[Foreign]) -> [bool; 3] {
        ways().map(|way| !on_device(&way, on, programs, &[], &HashSet::from([OURS])).is_empty())
    }

    #[test]
    fn nothing_that_is_skipped_is_harmless_unless_known_to_be() {
        let qdisc = |kind: &str| OnDevice {
            qdiscs: vec![Qdisc {
                kind: kind.into(),
                handle: 1 << 16,
                root: true,
            }],
            ..OnDevice::default()
        };
        assert_eq!(hinders(&OnDevice::default(), &[]), [false; 3]);
        for harmless in ["noqueue", "clsact", "ingress"] {
            assert_eq!(hinders(&qdisc(harmless), &[]), [false; 3], "{harmless}");
        }
        // The underlay's own is passed by all packets.
        for kind in ["tbf", "fq_codel", "pfifo_fast", "mq", "whatever"] {
            assert_eq!(hinders(&qdisc(kind), &[]), [true, true, false], "{kind}");
        }
        let program = Foreign {
            program: "drop".into(),
            hook: "tcx egress",
        };
        assert_eq!(hinders(&OnDevice::default(), &[program]), [true; 3]);
        let xdp = OnDevice {
            xdp: true,
            ..OnDevice::default()
        };
        assert_eq!(hinders(&xdp, &[]), [false, true, false]);
        let netkit = Way::Netkit("web".into());
        assert!(!on_device(&netkit, &xdp, &[], &[], &HashSet::new()).is_empty());
        let inside = OnDevice {
            xdp_at_other_end: true,
            ..OnDevice::default()
        };
        assert_eq!(hinders(&inside, &[]), [true, false, false]);
    }

    #[test]
    fn a_filter_is_harmless_where_it_is_ours_or_met_by_all() {
        let filter = |hook, plain, priority, program| OnDevice {
            filters: vec![Filter {
                kind: "bpf".into(),
                hook,
                priority,
                program,
                plain,
            }],
            ..OnDevice::default()
        };
        for (on, expected) in [
            (
                filter(Hook::Ingress, false, CLSACT_PRIORITY, Some(OURS)),
                [false; 3],
            ),
            (
                filter(Hook::Ingress, false, CLSACT_PRIORITY, Some(9)),
                [true; 3],
            ),
            (filter(Hook::Ingress, false, 1, Some(OURS)), [true; 3]),
            (filter(Hook::Ingress, true, 1, None), [true; 3]),
            (filter(Hook::Egress, true, 1, None), [true, true, false]),
            (filter(Hook::Egress, false, 1, None), [true; 3]),
            (filter(Hook::Queue, true, 1, None), [true, true, false]),
            (filter(Hook::Queue, false, 1, Some(9)), [true; 3]),
        ] {
            assert_eq!(hinders(&on, &[]), expected, "{on:?}");
        }
    }

    #[test]
    fn ipsec_is_in_the_way_of_whom_a_policy_is_for() {
        let net = |text: &str| text.parse().expect("a network");
        let ip = |text: &str| text.parse().expect("an address");
        let ends = Ends {
            host: ip("192.168.50.11"),
            peers: vec![ip("192.168.50.12"), ip("192.168.50.13")],
            network: net("10.42.0.0/16"),
            containers: vec![("a", ip("10.42.1.2")), ("b", ip("10.42.1.3"))],
        };
        let whose = |direction, source, destination| {
            let policy = IpsecPolicy {
                direction,
                source: net(source),
                destination: net(destination),
                udp: true,
            };
            let found = by_ipsec(&[policy], &ends);
            found
                .iter()
                .map(|it| it.flows.to_string())
                .collect::<Vec<_>>()
        };
        use Direction::{Forward, In, Out};
        let both = ["peer 192.168.50.12", "peer 192.168.50.13"];
        assert_eq!(
            whose(Out, "192.168.50.11/32", "192.168.50.12/32"),
            both[..1]
        );
        assert_eq!(whose(In, "192.168.50.12/32", "192.168.50.0/24"), both[..1]);
        assert_eq!(whose(In, "192.168.50.11/32", "192.168.50.12/32"), [""; 0]);
        assert_eq!(
            whose(Forward, "192.168.50.0/24", "192.168.50.0/24"),
            [""; 0]
        );
        assert_eq!(whose(Out, "10.42.1.2/32", "10.42.2.0/24"), ["container a"]);
        assert_eq!(
            whose(Forward, "10.42.2.7/32", "10.42.1.3/32"),
            ["container b"]
        );
        assert_eq!(whose(Out, "10.42.1.2/32", "8.8.8.8/32"), [""; 0]);
        let all = [&both[..], &["container a", "container b"]].concat();
        assert_eq!(whose(Out, "0.0.0.0/0", "0.0.0.0/0"), all);
    }

    #[test]
    fn what_is_not_known_is_withheld() {
        let hindrance = |flows| Hindrance {
            device: "d".into(),
            reason: "r".into(),
            flows,
        };
        let unknown = Hindrances::default();
        assert!(unknown.withholds_container("web") && !unknown.is_known());
        let none = Hindrances::found([]);
        assert!(!none.withholds_container("web"));
        let web = Hindrances::found([hindrance(Flows::Container("web".into()))]);
        assert!(web.withholds_container("web") && !web.withholds_container("db"));
        assert!(
            web.iter()
                .all(|it| web.has(it) && !none.has(it) && !unknown.has(it))
        );
        assert!(Hindrances::found([hindrance(Flows::All)]).withholds_container("db"));
        let peer = Ipv4Addr::new(192, 168, 50, 12);
        let peers = Hindrances::found([hindrance(Flows::Peer(peer))]);
        assert!(peers.withholds_peer(peer) && !peers.withholds_container("web"));
    }
}
