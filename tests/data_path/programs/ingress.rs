//! `ingress`: from the wire.

use oncache_abi::reason::{Program, Reason::*};

use super::{
    case::{Case, check},
    entries::{INGRESS, closed},
    program_bench::{Frame, world::*},
};

/// Offsets of the headers in a packet from the wire.
const IP: usize = 14;
const UDP: usize = 34;
const VXLAN: usize = 42;
const INNER: usize = 50;
const INNER_IP: usize = 64;
const TRANSPORT: usize = 84;

fn case(name: impl Into<String>, frame: Frame) -> Case {
    Case::new(Program::Ingress, name, frame)
}

fn outer(edit: impl FnOnce(&mut [u8])) -> Frame {
    arriving_udp(100).ip(IP, edit)
}

fn inner(edit: impl FnOnce(&mut [u8])) -> Frame {
    arriving_udp(100).ip(INNER_IP, edit)
}

/// The MTU's worth of UDP payload.
const FULL: usize = MTU as usize - 28;

fn foreign() -> Vec<Case> {
    let bytes = |name: &str, at, bytes: &[u8], reason| {
        case(name, arriving_udp(100).bytes(at, bytes)).refused(reason)
    };
    vec![
        bytes("ARP", 12, &[8, 6], NotIpv4),
        bytes("IPv6", 12, &[0x86, 0xdd], NotIpv4),
        bytes("tagged frame", 12, &[0x81, 0], NotIpv4),
        bytes("other UDP port", UDP + 2, &[0, 53], NotOverlay),
        case("TCP to the port", outer(|ip| ip[9] = 6)).refused(NotOverlay),
        case("outer options", outer(|ip| ip[0] = 0x46)).refused(NotOverlay),
        case("outer IPv6 version", outer(|ip| ip[0] = 0x65)).refused(NotOverlay),
        case("no room for ports", arriving_udp(100).cut(37)).refused(NotOverlay),
        bytes("for another station", 5, &[9], NotOverlay),
        bytes("broadcast", 0, &[0xff; 6], NotOverlay),
        bytes("multicast", 0, &[1, 0, 0x5e, 0, 0, 1], NotOverlay),
        case("to another address, by our MAC", outer(|ip| ip[19] = 99)).refused(NotOverlay),
        case("to a multicast group, by our MAC", outer(|ip| ip[16] = 239)).refused(NotOverlay),
        bytes("wrong outer checksum", IP + 10, &[0, 1], BadHeader),
        case("cut short", arriving_udp(100).cut(150)).refused(BadHeader),
        case("padded", arriving_udp(100).trailed(4)).refused(BadHeader),
        bytes("outer UDP too long", UDP + 4, &[1, 0], BadHeader),
        bytes("outer UDP too short", UDP + 4, &[0, 8], BadHeader),
        case("no room for a tunnel header", arriving_udp(0).cut(60)).refused(Truncated),
        case("first outer fragment", outer(|ip| ip[6] = 0x20)).refused(Fragment),
        case("later outer fragment", outer(|ip| ip[7] = 1)).refused(Fragment),
        bytes("no VNI flag", VXLAN, &[0], OtherVni),
        bytes("reserved flags", VXLAN, &[0x0c], OtherVni),
        bytes("GBP policy", VXLAN, &[0x88, 0, 0, 1], OtherVni),
        bytes("reserved bytes", VXLAN + 3, &[1], OtherVni),
        bytes("other VNI", VXLAN + 6, &[43], OtherVni),
        bytes("other VNI by its highest byte", VXLAN + 4, &[1], OtherVni),
        bytes("reserved byte behind the VNI", VXLAN + 7, &[1], OtherVni),
        bytes("outer UDP checksum", UDP + 6, &[0xbe, 0xef], OuterChecksum),
        // Neither verified by anybody, nor left to anybody to be computed.
        case(
            "outer UDP checksum of an aggregate",
            arriving_tcp(DATA, 2000).bytes(UDP + 6, &[0xbe, 0xef]),
        )
        .aggregate(1000)
        .refused(OuterChecksum),
        case("congested on the way", outer(|ip| ip[1] = 3)).refused(OuterCongestion),
        case("from a host that is no peer", outer(|ip| ip[15] = 99)).refused(NotPeer),
        case("from ourselves", outer(|ip| ip[15] = 11)).refused(NotPeer),
        bytes("not for our VTEP", INNER + 5, &[9], NotVtep),
        bytes("inner broadcast", INNER, &[0xff; 6], NotVtep),
        bytes(
            "our own VTEP's frame come back",
            INNER + 6,
            &VTEP_MAC,
            NotVtep,
        ),
        bytes("inner ARP", INNER + 12, &[8, 6], NotIpv4),
        bytes("inner tag", INNER + 12, &[0x81, 0], NotIpv4),
    ]
}

fn unfit() -> Vec<Case> {
    let bytes = |name: &str, at, bytes: &[u8], reason| {
        case(name, arriving_udp(100).bytes(at, bytes)).refused(reason)
    };
    let tcp = |name: &str, at, bytes: &[u8], reason| {
        case(name, arriving_tcp(DATA, 10).bytes(at, bytes)).refused(reason)
    };
    let mut cases = vec![
        case("inner options", inner(|ip| ip[0] = 0x46)).refused(IpOptions),
        bytes("wrong inner checksum", INNER_IP + 10, &[0, 1], BadHeader),
        case("inner length too long", inner(|ip| ip[3] += 1)).refused(BadHeader),
        case("inner length too short", inner(|ip| ip[3] -= 1)).refused(BadHeader),
        case(
            "inner length below its header",
            inner(|ip| ip[2..4].copy_from_slice(&[0, 19])),
        )
        .refused(BadHeader),
        bytes("inner UDP too long", TRANSPORT + 4, &[0, 109], BadHeader),
        bytes("inner UDP too short", TRANSPORT + 4, &[0, 107], BadHeader),
        tcp(
            "TCP header beyond the packet",
            TRANSPORT + 12,
            &[0x80],
            BadHeader,
        ),
        tcp(
            "TCP header below its least",
            TRANSPORT + 12,
            &[0x40],
            BadHeader,
        ),
        case("no room for an inner IPv4 header", short(0)).refused(Truncated),
        case("no room for an inner UDP header", short(27)).refused(Truncated),
        case("first inner fragment", inner(|ip| ip[6] = 0x20)).refused(Fragment),
        case("later inner fragment", inner(|ip| ip[7] = 1)).refused(Fragment),
        case("inner ICMP", inner(|ip| ip[9] = 1)).refused(OtherProtocol),
        case("TTL 1", inner(|ip| ip[8] = 1)).refused(TtlExpires),
        case("TTL 0", inner(|ip| ip[8] = 0)).refused(TtlExpires),
        case("one byte over the MTU", arriving_udp(FULL + 1)).refused(OverMtu),
        case("segments over the MTU", arriving_tcp(DATA, 3000))
            .aggregate(1411)
            .refused(OverMtu),
        case("aggregate of datagrams", arriving_udp(1000))
            .aggregate(500)
            .refused(UdpAggregate),
        case(
            "to an address that is no container's",
            inner(|ip| ip[19] = 9),
        )
        .refused(NoContainer),
        // The kernel lets nobody shrink an aggregate whose kind it does not know: what was changed
        // before is changed back.
        case("aggregate of no kind", arriving_tcp(DATA, 1000))
            .aggregate(500)
            .refused(HelperFailed),
    ];
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
            case(name, arriving_tcp(flags, 0))
                .refused(TcpState)
                .then(closed),
        );
    }
    cases.push(
        case("SYN to an unknown flow", arriving_tcp(0x02, 0))
            .given(|maps| {
                maps.flows.remove(&flow(6));
            })
            .refused(TcpState),
    );
    cases.push(
        case("FIN of a closed flow", arriving_tcp(0x11, 0))
            .given(closed)
            .refused(TcpState),
    );
    cases
}

/// A packet whose inner IPv4 packet is `length` bytes, and all of whose lengths say so.
fn short(length: u8) -> Frame {
    let bytes = |value: u8| u16::from(value).to_be_bytes();
    let frame = arriving_udp(100).ip(INNER_IP, |ip| ip[2..4].copy_from_slice(&bytes(length)));
    frame
        .cut(INNER_IP + usize::from(length))
        .bytes(UDP + 4, &bytes(length + 30))
        .ip(IP, |ip| ip[2..4].copy_from_slice(&bytes(length + 50)))
}

fn uncached() -> Vec<Case> {
    let miss = |name: &str, reason| case(name, arriving_udp(100)).misses(reason);
    vec![
        miss("unknown flow", NoFlow).given(|maps| maps.flows.clear()),
        case("unknown flow, withheld", arriving_udp(100))
            .given(|maps| {
                maps.flows.clear();
                withhold(maps);
            })
            .refused(Withheld),
        // What is learned goes on until the epoch is raised.
        case("known flow, withheld", arriving_udp(100))
            .given(withhold)
            .hits_the_container(),
        case(
            "another source port",
            arriving_udp(100).bytes(TRANSPORT, &[1]),
        )
        .misses(NoFlow),
        case(
            "another destination port",
            arriving_udp(100).bytes(TRANSPORT + 2, &[1]),
        )
        .misses(NoFlow),
        case("another sender", inner(|ip| ip[15] = 99)).misses(NoFlow),
        case("to another container", inner(|ip| ip[19] = 3)).misses(NoFlow),
        case("TCP where UDP is known", arriving_tcp(DATA, 100))
            .given(|maps| {
                maps.flows.remove(&flow(6));
            })
            .misses(NoFlow),
        INGRESS.but("sender behind another peer", WrongHost, |entry| {
            entry.peer = flow_behind(&flow(17), OTHER_PEER);
        }),
        case("from another peer", outer(|ip| ip[15] = 13)).misses(WrongHost),
    ]
}

fn hits() -> Vec<Case> {
    let mut cases = vec![
        case("datagram", arriving_udp(100)).hits_the_container(),
        case("empty datagram", arriving_udp(0)).hits_the_container(),
        case("datagram of an odd length", arriving_udp(333)).hits_the_container(),
        case("datagram as large as fits", arriving_udp(FULL)).hits_the_container(),
        case("segment", arriving_tcp(DATA, 100)).hits_the_container(),
        case("bare ACK", arriving_tcp(0x10, 0)).hits_the_container(),
        case("ACK with ECE and CWR", arriving_tcp(0xd0, 10)).hits_the_container(),
        case("outer DF", outer(|ip| ip[6] = 0x40)).hits_the_container(),
        case("outer DSCP", outer(|ip| ip[1] = 0xb8)).hits_the_container(),
        case("outer TTL used up", outer(|ip| ip[8] = 1)).hits_the_container(),
        case("least TTL", inner(|ip| ip[8] = 2)).hits_the_container(),
        case("greatest TTL", inner(|ip| ip[8] = 255)).hits_the_container(),
        case("no own mark bits", arriving_udp(100))
            .marked(FOREIGN_MARK)
            .hits_the_container(),
        // Headers to the peer are not needed to receive from it.
        case("no headers to the peer", arriving_udp(100))
            .given(|maps| {
                maps.peers.extend(cold().peers);
            })
            .hits_the_container(),
    ];
    // Every pair of RFC 6040, figure 4, that is not dropped.
    for (outer, inner) in [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 0),
        (2, 1),
        (2, 2),
        (2, 3),
        (3, 1),
        (3, 2),
        (3, 3),
    ] {
        let frame = arriving_udp(100)
            .ip(INNER_IP, |ip| ip[1] = inner)
            .ip(IP, |ip| ip[1] = outer);
        cases.push(case(format!("ECN {outer} over {inner}"), frame).hits_the_container());
    }
    // Header checksums next to the two forms of zero.
    for id in 0..=255 {
        let frame = inner(|ip| ip[4..6].copy_from_slice(&[id, id]));
        cases.push(case(format!("ID {id:02x}{id:02x}"), frame).hits_the_container());
    }
    cases
}

pub fn cases() -> Vec<Case> {
    let all = [
        foreign(),
        unfit(),
        INGRESS.connections(),
        INGRESS.entries(),
        uncached(),
        hits(),
    ];
    all.into_iter().flatten().collect()
}

#[test]
fn every_reason_of_ingress() {
    check(&cases());
}
