//! The permitted differences between the two paths, and the conditions under which there are no
//! others: all of them are here.
//!
//! 1. **The outer IP identification**, and with it the outer IP checksum (DESIGN, invariant 1).
//!    The slow path counts, the fast path draws lots. Only a right checksum is forgiven.
//! 2. **The identification of packets that a host makes itself** (ICMP errors): the kernel takes it
//!    from counters that are seeded per network namespace.
//! 3. **Overtaking**: where packets of one flow take different paths, a fast one may overtake a slow
//!    one. Packets that take the same path stay in order. Counted, and printed at the end.
//! 4. **What the receiving host writes into memory that a recording on the wire has yet to read.**
//!    The two share it, and in these cases the kernel does not make a copy first. What arrives in
//!    the container is compared whole.
//!    - The inner headers of fragments, which are put together and on the way out get new headers
//!      (net/ipv4/ip_output.c, `ip_fraglist_prepare`; include/net/neighbour.h,
//!      `neigh_hh_output`).
//!    - The inner ECN bits, where decapsulation takes over those of the outer header
//!      (include/net/inet_ecn.h, `INET_ECN_decapsulate`): compared as if it had happened.
//!
//! The outer UDP source port could be another one with reason, but is not: both paths take it from the
//! same hash of the inner flow.
//!
//! What a recording cannot show, how the kernel would cut a packet up, is made visible behind the
//! containers: see `Point::BehindClient`.
//!
//! What follows depends on time or on the machine, not on the path, and is made equal by
//! [`SETTINGS`] and by how a bench is built:
//!
//! - Generic receive offload merges what happens to wait in a queue at one moment; the slow path has
//!   such a queue behind its VXLAN device. It is off on that device.
//! - ICMP errors and redirects are limited in rate: no limit, no redirects. That there is no route is
//!   told at a rate that cannot be changed (net/ipv4/route.c, `ip_error`): there are routes, one to
//!   nobody and one that swallows.
//! - Flows of UDP are forgotten by conntrack after a time without packets, which the fast path does
//!   not show it: the time is longer than the test.
//! - Reassembly gives up after a time: short, so that identifications can be used again.
//! - IP timestamp options are filled with the time: not generated.
//! - Addresses that nobody answers for are asked for, and given up, at times of their own: all next
//!   hops are permanent neighbours.
//! - First fragments of outer packets that are never complete make the host complain when reassembly
//!   gives up: not generated.
//! - The hosts' own IPv6 speaks when it likes, and so does IGMP about a new bridge's groups: off.

use oncache_testbed::CapturedFrame;

use crate::differential::{
    addresses::{CLIENT, SERVER},
    bench::Point,
    checksum::{fold, sum},
    craft::Crafter,
};

/// Kernel settings of both hosts of both labs.
pub const SETTINGS: [(&str, &str); 11] = [
    ("net.ipv6.conf.all.disable_ipv6", "1"),
    ("net.ipv6.conf.default.disable_ipv6", "1"),
    ("net.ipv4.icmp_ratemask", "0"),
    ("net.ipv4.icmp_ratelimit", "0"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
    ("net.ipv4.igmp_link_local_mcast_reports", "0"),
    ("net.ipv4.ipfrag_time", "1"),
    ("net.netfilter.nf_conntrack_udp_timeout", "3600"),
    ("net.netfilter.nf_conntrack_udp_timeout_stream", "3600"),
    ("net.netfilter.nf_conntrack_tcp_timeout_close", "3600"),
];

const ETHERNET: usize = 14;
const ID: usize = ETHERNET + 4;
const CHECKSUM: usize = ETHERNET + 10;
const SOURCE: usize = ETHERNET + 12;

/// A frame with all that may differ made equal.
pub fn normalised(point: Point, frame: &CapturedFrame) -> CapturedFrame {
    let mut frame = CapturedFrame {
        at: std::time::Duration::ZERO,
        ..frame.clone()
    };
    let on_wire = matches!(point, Point::AlphaWire | Point::BetaWire);
    if !is_ipv4(&frame.bytes) {
        return frame;
    }
    let inner = on_wire.then(|| inner_frame(&frame.bytes)).flatten();
    if on_wire || is_hosts_own(&frame.bytes) {
        forget_identification(&mut frame.bytes);
    }
    if let Some(inner) = inner {
        take_over_congestion(&mut frame.bytes, inner);
    }
    if let Some(inner) = inner
        && is_hosts_own(&frame.bytes[inner..])
    {
        forget_identification(&mut frame.bytes[inner..]);
    }
    frame
}

/// One packet's frames on the wire without the inner headers, if there are fragments among them or
/// among those of the other pass: any header may have been read while another one was written.
pub fn without_fragments_headers(
    frames: &[CapturedFrame],
    others: &[CapturedFrame],
) -> Option<Vec<CapturedFrame>> {
    let inner_is_fragment = |frame: &CapturedFrame| {
        inner_frame(&frame.bytes).is_some_and(|inner| is_fragment(&frame.bytes[inner..]))
    };
    if !frames.iter().chain(others).any(inner_is_fragment) {
        return None;
    }
    let mut frames = frames.to_vec();
    for frame in &mut frames {
        // Two bytes more than the Ethernet header: it is copied in sixteen.
        if let Some(inner) = inner_frame(&frame.bytes)
            && let Some(headers) = frame.bytes.get_mut(inner - 2..inner + ETHERNET + 20)
        {
            headers.fill(0);
        }
    }
    Some(frames)
}

/// Does to the inner header what decapsulation may have done already.
fn take_over_congestion(frame: &mut [u8], inner: usize) {
    const TOS: usize = ETHERNET + 1;
    if !is_ipv4(&frame[inner..]) {
        return;
    }
    let congestion = match (frame[TOS] & 3, frame[inner + TOS] & 3) {
        (3, 1..=3) => 3,
        (1, 1 | 2) => 1,
        _ => return,
    };
    frame[inner + TOS] = frame[inner + TOS] & !3 | congestion;
    frame[inner + CHECKSUM..inner + CHECKSUM + 2].fill(0);
}

/// Zeroes identification and checksum, if the checksum is right.
fn forget_identification(frame: &mut [u8]) {
    let header = ETHERNET..ETHERNET + usize::from(frame[ETHERNET] & 15) * 4;
    if frame
        .get(header)
        .is_some_and(|header| fold(sum(header)) == 0xffff)
    {
        frame[ID..ID + 2].fill(0);
        frame[CHECKSUM..CHECKSUM + 2].fill(0);
    }
}

/// Whether a host has made the packet, not a container.
fn is_hosts_own(frame: &[u8]) -> bool {
    let gateways = [CLIENT.gateway_ip, SERVER.gateway_ip].map(|ip| ip.octets());
    is_ipv4(frame) && gateways.iter().any(|ip| frame[SOURCE..SOURCE + 4] == *ip)
}

fn is_fragment(frame: &[u8]) -> bool {
    let flags = ETHERNET + 6;
    is_ipv4(frame) && u16::from_be_bytes([frame[flags], frame[flags + 1]]) & 0x3fff != 0
}

fn is_ipv4(frame: &[u8]) -> bool {
    frame.len() >= ETHERNET + 20 && frame[12..14] == [8, 0]
}

/// Where the frame inside a tunnel packet begins. The UDP port is not asked for: some are wrong.
fn inner_frame(frame: &[u8]) -> Option<usize> {
    let inner = ETHERNET + usize::from(frame[ETHERNET] & 15) * 4 + 16;
    (frame[ETHERNET + 9] == 17 && frame.len() >= inner + ETHERNET).then_some(inner)
}

/// The packet of the sequence that a recorded frame belongs to, by the identification of its inner
/// IPv4 header.
pub fn owner(point: Point, frame: &[u8], crafter: &Crafter) -> Option<usize> {
    if !is_ipv4(frame) {
        return None;
    }
    let inner = match point {
        Point::AlphaWire | Point::BetaWire => &frame[inner_frame(frame)?..],
        _ => frame,
    };
    if !is_ipv4(inner) || is_hosts_own(inner) {
        return None;
    }
    crafter.owner(u16::from_be_bytes([inner[ID], inner[ID + 1]]))
}
