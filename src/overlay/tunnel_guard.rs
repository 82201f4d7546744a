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
use nftables::{
    expr::{Expression, MetaKey, NamedExpression, Payload, PayloadBase, PayloadRaw},
    schema::{Chain, Rule},
    stmt::{Operator, Statement},
    types::{NfChainType, NfHook},
};

use super::{
    names::BRIDGE,
    refused::Refused,
    ruleset::{
        accept, and, chain, compare, field, from_overlay, goto, iifname, inner_chain, meta, one_of,
        prefix, refuse, rule, text, to_overlay,
    },
    source_guard::DEVICES,
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

/// The guard's chains.
pub(super) fn chains() -> [Chain<'static>; 6] {
    let filter = Some(NfChainType::Filter);
    [
        chain("arrival", filter, NfHook::Prerouting, EARLY),
        chain("reception", filter, NfHook::Input, LATE),
        chain("departure", filter, NfHook::Forward, LATE),
        inner_chain(DECAPSULATED),
        inner_chain(PAST_BRIDGE),
        inner_chain(TO_TUNNEL),
    ]
}

/// What has come out of the tunnel.
const DECAPSULATED: &str = "decapsulated";
/// What comes by a device that is called like a container's.
const PAST_BRIDGE: &str = "past-bridge";
/// What is for the tunnel's port on this host.
const TO_TUNNEL: &str = "to-tunnel";

/// The guard's rules. The commonest packets come by the fewest rules: those of the tunnel, outside and inside.
pub(super) fn rules(tunnel: &Tunnel) -> Vec<Rule<'static>> {
    let to_port = || {
        let port = Expression::Number(u32::from(tunnel.port));
        compare(field("udp", "dport"), Operator::EQ, port)
    };
    let opaque = || {
        let plain = one_of(
            PLAIN
                .map(text)
                .into_iter()
                .chain([Expression::Number(IGMP)]),
        );
        compare(meta(MetaKey::L4proto), Operator::NEQ, plain)
    };
    let fragment = compare(
        and(field("ip", "frag-off"), Expression::Number(FRAGMENT)),
        Operator::NEQ,
        Expression::Number(0),
    );
    let mut rules = vec![
        rule("arrival", vec![from_overlay(), goto(DECAPSULATED)]),
        rule("arrival", vec![iifname("onc*"), goto(PAST_BRIDGE)]),
        rule(DECAPSULATED, vec![iifname(BRIDGE), accept()]),
        refuse(DECAPSULATED, vec![behind_no_peer(tunnel)], Refused::Behind),
    ];
    rules.extend(
        DEVICES.map(|devices| refuse(PAST_BRIDGE, vec![iifname(devices)], Refused::PastBridge)),
    );
    rules.extend([
        rule("reception", vec![to_port(), goto(TO_TUNNEL)]),
        refuse(
            "reception",
            vec![from_overlay(), opaque()],
            Refused::Encapsulation,
        ),
        refuse(TO_TUNNEL, vec![from_overlay()], Refused::TunnelPort),
        refuse(TO_TUNNEL, no_peer(tunnel), Refused::NotPeer),
        // First, since it is most of what is forwarded: within the overlay nothing is judged here.
        rule("departure", vec![to_overlay(), accept()]),
        refuse(
            "departure",
            vec![from_overlay(), to_port()],
            Refused::TunnelPort,
        ),
        refuse(
            "departure",
            vec![from_overlay(), opaque()],
            Refused::Encapsulation,
        ),
        refuse(
            "departure",
            vec![from_overlay(), fragment],
            Refused::Fragment,
        ),
    ]);
    rules
}

/// What leaves the tunnel with the address of a container that is here, though the address is of a peer's subnet.
pub(super) fn refuse_visitors(visitors: &[Ipv4Addr]) -> Option<Rule<'static>> {
    let visitors: BTreeSet<_> = visitors.iter().collect();
    let here = compare(
        field("ip", "saddr"),
        Operator::EQ,
        any_of(visitors.into_iter().map(address))?,
    );
    Some(refuse(DECAPSULATED, vec![here], Refused::Behind))
}

/// The source is nobody's behind the tunnel. By what is configured, not by the host's routes: its policy rules may
/// lead its own packets elsewhere than those that it forwards, and `fib` asks as for its own
/// (net/ipv4/netfilter/nft_fib_ipv4.c, `nft_fib4_eval`: `flowi4_iif`).
fn behind_no_peer(tunnel: &Tunnel) -> Statement<'static> {
    // Those within others are left out: intervals of a set may not overlap.
    let nets = Ipv4Net::aggregate(&tunnel.behind);
    match any_of(nets.into_iter().map(prefix)) {
        Some(nets) => compare(field("ip", "saddr"), Operator::NEQ, nets),
        None => compare(meta(MetaKey::Nfproto), Operator::EQ, text("ipv4")),
    }
}

/// Of this tunnel's VNI, and no peer's. Other VXLAN devices may share the port, and have other peers.
fn no_peer(tunnel: &Tunnel) -> Vec<Statement<'static>> {
    // Behind the UDP header's 8 bytes and 4 of the VXLAN header (RFC 7348, section 5).
    let vni = Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw {
        base: PayloadBase::TH,
        offset: 96,
        len: 24,
    })));
    let mut matches = vec![compare(vni, Operator::EQ, Expression::Number(tunnel.vni))];
    let peers: BTreeSet<_> = tunnel.peers.iter().collect();
    // Without peers every sender is none.
    if let Some(peers) = any_of(peers.into_iter().map(address)) {
        matches.push(compare(field("ip", "saddr"), Operator::NEQ, peers));
    }
    matches
}

fn address(address: &Ipv4Addr) -> Expression<'static> {
    Expression::String(address.to_string().into())
}

/// To be compared with: one is cheaper to compare than to look up, and there is no empty set.
fn any_of(elements: impl Iterator<Item = Expression<'static>>) -> Option<Expression<'static>> {
    let mut elements: Vec<_> = elements.collect();
    match elements.len() {
        0 | 1 => elements.pop(),
        _ => Some(one_of(elements)),
    }
}
