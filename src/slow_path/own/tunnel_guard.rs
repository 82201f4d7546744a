//! The tunnel's guard: nothing that comes from a container gets to the tunnel's port, and what comes
//! out of the tunnel comes from where it says.
//!
//! Rules of the table `inet oncache` that drop, in chains of their own:
//!
//! - `reception` (input) and `departure` (forward) judge what a container sends to this host or to outside the
//!   overlay. They stand behind every other rule of the usual priorities and behind all rewriting of destinations,
//!   so they see what a packet has become: by which address it was sent for is all one. Conntrack has put fragments
//!   together before (net/ipv4/netfilter/nf_defrag_ipv4.c), and reception of IP does it anyway
//!   (net/ipv4/ip_input.c, `ip_local_deliver`).
//! - The tunnel's port is refused whatever the destination: which addresses other hosts have, and what lies on the
//!   way there, this host cannot know. Within the overlay the port is free: what goes from container to container
//!   is carried in the tunnel.
//! - Protocols pass that end at their receiver. Others may carry a packet that the receiving host would unpack
//!   and take for one of its own.
//! - `arrival` (prerouting, behind the putting together of fragments) refuses what leaves the tunnel with a source
//!   that no peer has. And what a container's device hands to the host
//!   past the bridge, where nobody has looked at its source.
//! - `reception` refuses tunnel packets that no peer has sent.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{
    matches::{from_overlay, to_overlay},
    refused::Refused,
};
use crate::{
    container::devices::PATTERNS,
    nft::{
        Expression, Hook, Statement, Table,
        expression::{and, any_of, meta, payload, raw_payload, set_of},
        statement::{accept, equal, goto, unequal},
    },
};

/// `NF_IP_PRI_RAW`: before conntrack, behind its putting together of fragments.
const EARLY: i32 = -300;
/// Behind all filters and all rewriting of the usual priorities (include/uapi/linux/netfilter_ipv4.h,
/// `enum nf_ip_hook_priorities`), and behind our own chain that learns by.
const LATE: i32 = 200;

/// The protocols that end at their receiver, besides IGMP.
const PLAIN: [&str; 6] = ["icmp", "tcp", "udp", "udplite", "sctp", "dccp"];
/// Its number, since nft asks /etc/protocols for the name, which not every host has.
const IGMP: u32 = 2;

/// More fragments follow, or an offset (RFC 791, section 3.1).
const FRAGMENT: u32 = 0x3fff;

/// The tunnel, as far as it is guarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The UDP port of all hosts, host byte order.
    pub port: u16,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The other hosts' underlay addresses.
    pub peers: Vec<Ipv4Addr>,
    /// What is behind them: their subnets, and addresses that have moved to them.
    pub behind: Vec<Ipv4Net>,
}

/// What has come out of the tunnel.
const DECAPSULATED: &str = "decapsulated";
/// What comes by a device that is called like a container's.
const PAST_BRIDGE: &str = "past-bridge";
/// What is for the tunnel's port on this host.
const TO_TUNNEL: &str = "to-tunnel";

/// Adds the guard's chains and rules. The commonest packets come by the fewest rules: those of the tunnel, outside and
/// inside.
pub(super) fn add_to(table: &mut Table, bridge: &str, tunnel: &Tunnel) {
    table.base_chain("arrival", Hook::filter("prerouting", EARLY));
    table.base_chain("reception", Hook::filter("input", LATE));
    table.base_chain("departure", Hook::filter("forward", LATE));
    for chain in [DECAPSULATED, PAST_BRIDGE, TO_TUNNEL] {
        table.chain(chain);
    }

    let by = |device| equal(meta("iifname"), device);
    table.rule("arrival", [from_overlay(), goto(DECAPSULATED)]);
    table.rule("arrival", [by("onc*"), goto(PAST_BRIDGE)]);
    table.rule(DECAPSULATED, [by(bridge), accept()]);
    let behind = Refused::Behind.name();
    table.refusal(DECAPSULATED, [behind_no_peer(tunnel)], behind);
    let past_bridge = Refused::PastBridge.name();
    for devices in PATTERNS {
        table.refusal(PAST_BRIDGE, [by(devices)], past_bridge);
    }

    let to_port = || equal(payload("udp", "dport"), tunnel.port);
    let opaque = || {
        let plain = PLAIN.map(Expression::from).into_iter();
        unequal(meta("l4proto"), set_of(plain.chain([IGMP.into()])))
    };
    let tunnel_port = Refused::TunnelPort.name();
    let encapsulation = Refused::Encapsulation.name();
    table.rule("reception", [to_port(), goto(TO_TUNNEL)]);
    table.refusal("reception", [from_overlay(), opaque()], encapsulation);
    table.refusal(TO_TUNNEL, [from_overlay()], tunnel_port);
    table.refusal(TO_TUNNEL, no_peer(tunnel), Refused::NotPeer.name());

    // First, since it is most of what is forwarded: within the overlay nothing is judged here.
    table.rule("departure", [to_overlay(), accept()]);
    table.refusal("departure", [from_overlay(), to_port()], tunnel_port);
    table.refusal("departure", [from_overlay(), opaque()], encapsulation);
    let fragment = unequal(and(payload("ip", "frag-off"), FRAGMENT), 0_u32);
    let reason = Refused::Fragment.name();
    table.refusal("departure", [from_overlay(), fragment], reason);
}

/// Refuses what leaves the tunnel with the address of a container that is here, though the address is of a peer's subnet.
pub(super) fn refuse_visitors(table: &mut Table, visitors: &[Ipv4Addr]) {
    let visitors: BTreeSet<_> = visitors.iter().copied().collect();
    if let Some(visitors) = any_of(visitors) {
        let here = equal(payload("ip", "saddr"), visitors);
        table.refusal(DECAPSULATED, [here], Refused::Behind.name());
    }
}

/// The source is nobody's behind the tunnel. By what is configured, not by the host's routes: its policy rules may
/// lead its own packets elsewhere than those that it forwards, and `fib` asks as for its own
/// (net/ipv4/netfilter/nft_fib_ipv4.c, `nft_fib4_eval`: `flowi4_iif`).
fn behind_no_peer(tunnel: &Tunnel) -> Statement {
    // Those within others are left out: intervals of a set may not overlap.
    match any_of(Ipv4Net::aggregate(&tunnel.behind)) {
        Some(nets) => unequal(payload("ip", "saddr"), nets),
        None => equal(meta("nfproto"), "ipv4"),
    }
}

/// Of this tunnel's VNI, and no peer's. Other VXLAN devices may share the port, and have other peers.
fn no_peer(tunnel: &Tunnel) -> Vec<Statement> {
    // Behind the UDP header's 8 bytes and 4 of the VXLAN header (RFC 7348, section 5).
    let vni = raw_payload("th", 96, 24);
    let mut matches = vec![equal(vni, tunnel.vni)];
    let peers: BTreeSet<_> = tunnel.peers.iter().copied().collect();
    // Without peers every sender is none.
    if let Some(peers) = any_of(peers) {
        matches.push(unequal(payload("ip", "saddr"), peers));
    }
    matches
}
