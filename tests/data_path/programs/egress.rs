//! `egress`: from a container.

use oncache_abi::{
    container::LocalContainer,
    entry::FlowWord,
    peer::PeerHeaders,
    reason::{Program, Reason::*},
};

use super::{
    case::{Case, check},
    entries::{EGRESS, closed, other_flow},
    program_bench::{Frame, key, peer, world::*},
};

/// Offset of the IPv4 header, and of the header behind it.
const IP: usize = 14;
const TRANSPORT: usize = 34;

fn case(name: impl Into<String>, frame: Frame) -> Case {
    Case::new(Program::Egress, name, frame)
}

fn ip(edit: impl FnOnce(&mut [u8])) -> Frame {
    sent_udp(100).ip(IP, edit)
}

/// With the headers to the peer learned on another device.
fn by(ifindex: u32, case: Case) -> Case {
    case.given(|maps| {
        maps.peers.insert(peer(PEER), headers_on(ifindex));
    })
}

/// The MTU's worth of UDP payload.
const FULL: usize = MTU as usize - 28;

fn unfit() -> Vec<Case> {
    let mut cases = vec![
        case("ARP", sent_udp(100).bytes(12, &[8, 6])).refused(NotIpv4),
        case("IPv6", sent_udp(100).bytes(12, &[0x86, 0xdd])).refused(NotIpv4),
        case("tagged frame", sent_udp(100).bytes(12, &[0x81, 0])).refused(NotIpv4),
        case("IPv4 options", ip(|ip| ip[0] = 0x46)).refused(IpOptions),
        case("IPv6 inside the IPv4 EtherType", ip(|ip| ip[0] = 0x65)).refused(IpOptions),
        case(
            "wrong header checksum",
            sent_udp(100).bytes(IP + 10, &[0, 1]),
        )
        .refused(BadHeader),
        case("cut short", sent_udp(100).cut(100)).refused(BadHeader),
        case("padded", sent_udp(100).trailed(1)).refused(BadHeader),
        case("length beyond the frame", ip(|ip| ip[2] = 1)).refused(BadHeader),
        case(
            "length below its header",
            ip(|ip| ip[2..4].copy_from_slice(&[0, 19])),
        )
        .refused(BadHeader),
        case(
            "UDP length too long",
            sent_udp(100).bytes(TRANSPORT + 4, &[0, 109]),
        )
        .refused(BadHeader),
        case(
            "UDP length too short",
            sent_udp(100).bytes(TRANSPORT + 4, &[0, 107]),
        )
        .refused(BadHeader),
        case(
            "TCP header beyond the packet",
            sent_tcp(DATA, 10).bytes(TRANSPORT + 12, &[0x80]),
        )
        .refused(BadHeader),
        case(
            "TCP header below its least",
            sent_tcp(DATA, 10).bytes(TRANSPORT + 12, &[0x40]),
        )
        .refused(BadHeader),
        case("no room for a UDP header", short(sent_udp(0), 27)).refused(Truncated),
        case("no room for a TCP header", short(sent_tcp(DATA, 0), 39)).refused(Truncated),
        case("first fragment", ip(|ip| ip[6] = 0x20)).refused(Fragment),
        case("later fragment", ip(|ip| ip[7] = 1)).refused(Fragment),
        case("ICMP", ip(|ip| ip[9] = 1)).refused(OtherProtocol),
        case("SCTP", ip(|ip| ip[9] = 132)).refused(OtherProtocol),
        case("to the internet", ip(|ip| ip[16] = 8)).refused(OutsideNetwork),
        case("to a neighbouring network", ip(|ip| ip[17] = 43)).refused(OutsideNetwork),
        case("TTL 1", ip(|ip| ip[8] = 1)).refused(TtlExpires),
        case("TTL 0", ip(|ip| ip[8] = 0)).refused(TtlExpires),
        case("one byte over the MTU", sent_udp(FULL + 1)).refused(OverMtu),
        case("segments over the MTU", sent_tcp(DATA, 3000).ip(IP, |_| ()))
            .aggregate(1411)
            .refused(OverMtu),
        // Its headers were learned when the device was another, or its MTU larger.
        by(NOWHERE, case("by a device that is gone", sent_udp(100))).refused(OverUnderlay),
        by(
            NARROW,
            case("one byte over the device's MTU", sent_udp(1323)),
        )
        .refused(OverUnderlay),
        by(NARROW, case("the device's MTU", sent_udp(1322))).hits_the_wire(),
        by(
            NARROW,
            case("segments over the device's MTU", sent_tcp(DATA, 3000)),
        )
        .aggregate(1311)
        .refused(OverUnderlay),
        case(
            "from an address that is no container's",
            ip(|ip| ip[15] = 9),
        )
        .refused(NoContainer),
        case("from another container's device", sent_udp(100))
            .on(NEIGHBOUR_DEVICE)
            .refused(SourceMismatch),
        case("from a neighbour's address", ip(|ip| ip[15] = 3)).refused(SourceMismatch),
        case("from another MAC address", sent_udp(100).bytes(6, &[2])).refused(SourceMismatch),
        case("not to the gateway", sent_udp(100).bytes(5, &[9])).refused(NotGateway),
        case("broadcast", sent_udp(100).bytes(0, &[0xff; 6])).refused(NotGateway),
        // The kernel lets nobody grow an aggregate whose kind it does not know.
        case("aggregate of no kind", sent_tcp(DATA, 1000))
            .aggregate(500)
            .refused(HelperFailed),
    ];
    // What begins or ends a connection, and what conntrack calls invalid.
    for (name, flags) in [
        ("SYN", 0x02),
        ("FIN ACK", 0x11),
        ("RST", 0x04),
        ("RST ACK", 0x14),
        ("no flags", 0),
        ("PSH alone", 0x08),
        ("URG PSH", 0x28),
        ("all flags", 0xff),
    ] {
        cases.push(
            case(name, sent_tcp(flags, 0))
                .refused(TcpState)
                .then(closed),
        );
    }
    cases.push(
        case("SYN to an unknown flow", sent_tcp(0x02, 0))
            .given(|maps| {
                maps.flows.remove(&flow(6));
            })
            .refused(TcpState),
    );
    cases.push(
        case("FIN of a closed flow", sent_tcp(0x11, 0))
            .given(closed)
            .refused(TcpState),
    );
    cases
}

/// A frame whose IPv4 packet is `length` bytes, and says so.
fn short(frame: Frame, length: u8) -> Frame {
    frame
        .cut(IP + usize::from(length))
        .ip(IP, |ip| ip[2..4].copy_from_slice(&[0, length]))
}

fn uncached() -> Vec<Case> {
    let miss = |name, reason| case(name, sent_udp(100)).misses(reason);
    vec![
        miss("unknown flow", NoFlow).given(|maps| maps.flows.clear()),
        case("unknown flow, withheld", sent_udp(100))
            .given(|maps| {
                maps.flows.clear();
                withhold(maps);
            })
            .refused(Withheld),
        // What is learned goes on until the epoch is raised.
        case("known flow, withheld", sent_udp(100))
            .given(withhold)
            .hits_the_wire(),
        case("another source port", sent_udp(100).bytes(TRANSPORT, &[1])).misses(NoFlow),
        case(
            "another destination port",
            sent_udp(100).bytes(TRANSPORT + 2, &[1]),
        )
        .misses(NoFlow),
        case("another destination", ip(|ip| ip[19] = 99)).misses(NoFlow),
        case("TCP where UDP is known", sent_tcp(DATA, 100))
            .given(|maps| {
                maps.flows.remove(&flow(6));
            })
            .misses(NoFlow),
        EGRESS.but("another MAC address learned", ContainerUnlearned, |entry| {
            entry.mac.0 ^= 1;
        }),
        EGRESS.but("another device learned", ContainerUnlearned, |entry| {
            entry.device = FlowWord::new(&flow(17), NEIGHBOUR_DEVICE, EPOCH);
        }),
        EGRESS.but("outer source port unknown", NoHost, |entry| {
            entry.port = FlowWord(0);
        }),
        EGRESS.but("outer source port of another epoch", NoHost, |entry| {
            entry.port = flow_entry(&flow(17), 3, EPOCH + 1, 0).port;
        }),
        EGRESS.but("outer source port of another flow", NoHost, |entry| {
            entry.port = flow_entry(&other_flow(), 3, EPOCH, 0).port;
        }),
        miss("host no longer a peer", HostUnlearned).given(|maps| {
            maps.peers.remove(&peer(PEER));
        }),
        miss("no headers yet", HostUnlearned).given(|maps| {
            maps.peers.insert(peer(PEER), PeerHeaders::UNLEARNED);
        }),
        miss("headers of another epoch", HostUnlearned).given(|maps| {
            maps.peers.insert(
                peer(PEER),
                PeerHeaders {
                    epoch: EPOCH + 1,
                    ..headers()
                },
            );
        }),
        miss(
            "headers whose epoch differs in the high half",
            HostUnlearned,
        )
        .given(|maps| {
            maps.peers.insert(
                peer(PEER),
                PeerHeaders {
                    epoch: EPOCH & 0xffff,
                    ..headers()
                },
            );
        }),
        // Until its own MAC is known, a container is known by its device.
        case(
            "another MAC while none is learned",
            sent_udp(100).bytes(6, &[2]),
        )
        .misses(ContainerUnlearned)
        .given(|maps| {
            maps.containers
                .insert(key(LOCAL), LocalContainer::unlearned(DEVICE));
        }),
        // A hit does not ask for its container: its entry has what that had.
        case("nothing but the flow and the headers", sent_udp(100))
            .given(|maps| {
                maps.containers.clear();
            })
            .hits_the_wire(),
    ]
}

fn hits() -> Vec<Case> {
    let mut cases = vec![
        case("datagram", sent_udp(100)).hits_the_wire(),
        case("empty datagram", sent_udp(0)).hits_the_wire(),
        case("datagram of an odd length", sent_udp(333)).hits_the_wire(),
        case("datagram as large as fits", sent_udp(FULL)).hits_the_wire(),
        case("segment", sent_tcp(DATA, 100)).hits_the_wire(),
        case("bare ACK", sent_tcp(0x10, 0)).hits_the_wire(),
        case("ACK with ECE and CWR", sent_tcp(0xd0, 10)).hits_the_wire(),
        case("DF clear", ip(|ip| ip[6] = 0)).hits_the_wire(),
        case("least TTL", ip(|ip| ip[8] = 2)).hits_the_wire(),
        case("greatest TTL", ip(|ip| ip[8] = 255)).hits_the_wire(),
        case(
            "segment with TCP options",
            sent_tcp(DATA, 12).bytes(TRANSPORT + 12, &[0x80]),
        )
        .hits_the_wire(),
    ];
    for tos in [0x01, 0x02, 0x03, 0xb8, 0xbb] {
        cases.push(case(format!("TOS {tos:#x}"), ip(|ip| ip[1] = tos)).hits_the_wire());
    }
    // Header checksums next to the two forms of zero.
    for id in 0..=255 {
        cases.push(
            case(
                format!("ID {id:02x}{id:02x}"),
                ip(|ip| ip[4..6].copy_from_slice(&[id, id])),
            )
            .hits_the_wire(),
        );
    }
    cases
}

pub fn cases() -> Vec<Case> {
    let all = [
        unfit(),
        EGRESS.connections(),
        EGRESS.entries(),
        uncached(),
        hits(),
    ];
    all.into_iter().flatten().collect()
}

#[test]
fn every_reason_of_egress() {
    check(&cases());
}
