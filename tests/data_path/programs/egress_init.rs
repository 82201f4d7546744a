//! `egress_init`: what is learned from packets that the slow path has encapsulated.

use oncache_abi::{
    entry::FlowWord,
    mark::{EGRESS_MISS, INGRESS_MISS},
    peer::PeerHeaders,
    reason::{Program, Reason::*},
};

use super::{
    case::{Case, check},
    program_bench::{Frame, Maps, peer, tick_in, world::*},
};

const IP: usize = 14;
const UDP: usize = 34;
const VXLAN: usize = 42;
const INNER: usize = 50;
const INNER_IP: usize = 64;
const TRANSPORT: usize = 84;

fn case(name: impl Into<String>, frame: Frame) -> Case {
    Case::new(Program::EgressInit, name, frame).given(|maps| *maps = cold())
}

fn outer(edit: impl FnOnce(&mut [u8])) -> Frame {
    encapsulated_udp(100).ip(IP, edit)
}

fn inner(edit: impl FnOnce(&mut [u8])) -> Frame {
    encapsulated_udp(100).ip(INNER_IP, edit)
}

fn unfit() -> Vec<Case> {
    let bytes = |name: &str, at, bytes: &[u8], reason| {
        case(name, encapsulated_udp(100).bytes(at, bytes)).refused(reason)
    };
    vec![
        bytes("ARP", 12, &[8, 6], NotIpv4),
        bytes("tagged frame", 12, &[0x81, 0], NotIpv4),
        bytes("other UDP port", UDP + 2, &[0, 53], NotOverlay),
        case("outer TCP", outer(|ip| ip[9] = 6)).refused(NotOverlay),
        case("outer options", outer(|ip| ip[0] = 0x46)).refused(NotOverlay),
        case("not from this host", outer(|ip| ip[15] = 99)).refused(NotOverlay),
        bytes("inner ARP", INNER + 12, &[8, 6], NotOverlay),
        case("a container's own packet, not encapsulated", sent_udp(100)).refused(NotOverlay),
        bytes("wrong outer checksum", IP + 10, &[0, 1], BadHeader),
        case("cut short", encapsulated_udp(100).cut(150)).refused(BadHeader),
        bytes("wrong inner checksum", INNER_IP + 10, &[0, 1], BadHeader),
        bytes("inner UDP too long", TRANSPORT + 4, &[0, 109], BadHeader),
        case("no room for a tunnel header", encapsulated_udp(0).cut(60)).refused(Truncated),
        case("outer fragment", outer(|ip| ip[6] = 0x20)).refused(Fragment),
        case("inner fragment", inner(|ip| ip[6] = 0x20)).refused(Fragment),
        bytes("reserved flags", VXLAN, &[0x0c], OtherVni),
        bytes("other VNI", VXLAN + 6, &[43], OtherVni),
        bytes("outer UDP checksum", UDP + 6, &[0xbe, 0xef], OuterChecksum),
        case("inner options", inner(|ip| ip[0] = 0x46)).refused(IpOptions),
        case("inner ICMP", inner(|ip| ip[9] = 1)).refused(OtherProtocol),
        case("to the internet", inner(|ip| ip[16] = 8)).refused(OutsideNetwork),
        case("withheld", encapsulated_udp(100))
            .given(withhold)
            .refused(Withheld),
        case("from no container of ours", inner(|ip| ip[15] = 9)).refused(NoContainer),
        case("to a host that is no peer", outer(|ip| ip[19] = 99)).refused(NotPeer),
    ]
}

/// Nothing is learned from a packet whose mark does not say all three: missed in `egress`, in this
/// epoch, and established.
fn unproven() -> Vec<Case> {
    let marked = |name: &str, mark| case(name, encapsulated_udp(100)).marked(mark);
    let est = established(0) & !missed(0, EPOCH);
    vec![
        marked("no mark", 0).ignored(),
        marked("foreign mark", FOREIGN_MARK).ignored(),
        marked("established, not missed", established(0)).ignored(),
        marked("missed in ingress", established(INGRESS_MISS)).ignored(),
        marked("missed in both", established(EGRESS_MISS | INGRESS_MISS)).ignored(),
        marked("not established", missed(EGRESS_MISS, EPOCH)).refused(NotEstablished),
        marked("missed an epoch ago", missed(EGRESS_MISS, EPOCH - 1) | est).refused(StaleMark),
        marked(
            "missed in an epoch to come",
            missed(EGRESS_MISS, EPOCH + 1) | est,
        )
        .refused(StaleMark),
        marked("stale and not established", missed(EGRESS_MISS, EPOCH - 1)).refused(NotEstablished),
    ]
}

/// The way to the peer, as learned from any packet to it.
fn way(maps: &mut Maps) {
    maps.peers.insert(peer(PEER), headers());
}

fn learned() -> Vec<Case> {
    let learns = |name: &str, frame| case(name, frame).refused(Learned);
    let word = flow_entry(&flow(17), 2, EPOCH, tick_in(2 * LEASE));
    vec![
        learns("first datagram", encapsulated_udp(100)).then(|maps| {
            way(maps);
            maps.flows.insert(flow(17), fresh(&flow(17), 1));
        }),
        learns("first segment", encapsulated_tcp(DATA, 0)).then(|maps| {
            way(maps);
            maps.flows.insert(flow(6), fresh(&flow(6), 1));
        }),
        // What differs from packet to packet leaves no trace in the headers.
        learns(
            "other TOS, ID and port",
            encapsulated_udp(333)
                .bytes(UDP, &[0xab, 0xcd])
                .ip(IP, |ip| {
                    ip[1] = 2;
                    ip[4..6].copy_from_slice(&[0x77, 0x88]);
                }),
        )
        .then(|maps| {
            way(maps);
            let mut entry = fresh(&flow(17), 1);
            entry.port = FlowWord::new(&flow(17), 0xabcd, EPOCH);
            maps.flows.insert(flow(17), entry);
        }),
        learns("the other direction is known", encapsulated_udp(1))
            .given(|maps| {
                maps.flows.insert(flow(17), word);
            })
            .then(|maps| {
                way(maps);
                // The lease is the first direction's still.
                maps.flows.insert(
                    flow(17),
                    flow_entry(&flow(17), 3, EPOCH, word.verdict.expiry()),
                );
            }),
        learns("all is known", encapsulated_udp(1)).given(|maps| *maps = warm()),
        learns("lease over", encapsulated_udp(1))
            .given(|maps| {
                *maps = warm();
                maps.flows
                    .insert(flow(17), flow_entry(&flow(17), 3, EPOCH, 1000));
            })
            .then(|maps| {
                maps.flows.insert(flow(17), fresh(&flow(17), 1));
            }),
        learns("the connection before has ended", encapsulated_udp(1))
            .given(|maps| {
                *maps = warm();
                maps.flows.insert(flow(17), live(&flow(17), 0));
            })
            .then(|maps| {
                maps.flows.insert(flow(17), fresh(&flow(17), 1));
            }),
        learns("all is of another epoch", encapsulated_udp(1))
            .given(|maps| {
                *maps = warm();
                let old = flow_entry(&flow(17), 3, EPOCH - 1, tick_in(2 * LEASE));
                maps.flows.insert(flow(17), old);
                maps.peers.insert(
                    peer(PEER),
                    PeerHeaders {
                        epoch: EPOCH - 1,
                        ..headers()
                    },
                );
            })
            .then(|maps| {
                way(maps);
                maps.flows.insert(flow(17), fresh(&flow(17), 1));
            }),
        learns(
            "another port of a known flow",
            encapsulated_udp(1).bytes(UDP, &[0xab, 0xcd]),
        )
        .given(|maps| *maps = warm())
        .then(|maps| {
            let entry = maps.flows.get_mut(&flow(17)).expect("known");
            entry.port = FlowWord::new(&flow(17), 0xabcd, EPOCH);
        }),
        learns("another next hop", encapsulated_udp(1).bytes(5, &[77]))
            .given(|maps| *maps = warm())
            .then(|maps| {
                let mut learned = headers();
                let mut first = learned.template[0].to_ne_bytes();
                first[5] = 77;
                learned.template[0] = u64::from_ne_bytes(first);
                maps.peers.insert(peer(PEER), learned);
            }),
        learns("the container has moved", outer(|ip| ip[19] = 13))
            .given(|maps| *maps = warm())
            .then(|maps| {
                let mut learned = headers();
                let mut word = learned.template[4].to_ne_bytes();
                word[1] = 13; // the outer destination's last byte, 33
                learned.template[4] = u64::from_ne_bytes(word);
                // 192.168.50.13 for .12: the sum grows by one in its low byte.
                learned.ip_sum =
                    u32::from((u16::try_from(learned.ip_sum).expect("a sum").to_be() + 1).to_be());
                maps.peers.insert(peer(OTHER_PEER), learned);
                for (flow, entry) in &mut maps.flows {
                    if flow.protocol == 17 {
                        entry.peer = flow_behind(flow, OTHER_PEER);
                    }
                }
            }),
    ]
}

pub fn cases() -> Vec<Case> {
    let all = [unfit(), unproven(), learned()];
    all.into_iter().flatten().collect()
}

#[test]
fn every_reason_of_egress_init() {
    check(&cases());
}
