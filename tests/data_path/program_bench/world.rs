//! The world of the bench: this host, a peer, their containers, and what was learned of them.

use std::{net::Ipv4Addr, time::Duration};

use oncache_abi::{
    container::{LocalContainer, MacWord},
    entry::{FlowEntry, FlowWord},
    flow::{EGRESS, FlowKey, INGRESS},
    mark::{ESTABLISHED, MarkField},
    peer::PeerHeaders,
    settings::Constants,
};

use super::{
    Ends, Frame, Maps,
    frame::ETHERNET,
    maps::{flow_word, key, peer},
    tick_in,
};

pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 11);
pub const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 12);
/// Another peer, to which no packet has gone.
pub const OTHER_PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 13);
/// A host that is no peer.
pub const NO_PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 99);
/// A container of this host.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 1);
pub const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 2);
/// Another one.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 3);
/// A container of the peer.
pub const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 42, 2, 3);

/// An address of the overlay that is no container's.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 9);
/// An address outside the overlay.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 43, 2, 3);

pub const UNDERLAY: u32 = 20;
pub const DEVICE: u32 = 30;
pub const NEIGHBOUR_DEVICE: u32 = 31;

pub const UNDERLAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const NEXT_HOP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const VTEP_MAC: [u8; 6] = [0x0a, 0x6f, 192, 168, 50, 11];
pub const PEER_VTEP_MAC: [u8; 6] = [0x0a, 0x6f, 192, 168, 50, 12];
pub const GATEWAY_MAC: [u8; 6] = [0x0a, 0x62, 10, 42, 1, 1];
pub const LOCAL_MAC: [u8; 6] = [0x0a, 0x63, 10, 42, 1, 2];

/// The devices, their numbers and MAC addresses.
pub const DEVICES: [(&str, u32, [u8; 6]); 3] = [
    ("underlay", UNDERLAY, UNDERLAY_MAC),
    ("container", DEVICE, GATEWAY_MAC),
    ("neighbour", NEIGHBOUR_DEVICE, GATEWAY_MAC),
];

/// An underlay device that takes no more than [`NARROW_MTU`] bytes, and one that is not there.
pub const NARROW: u32 = 21;
pub const NARROW_MTU: u32 = 1400;
pub const NOWHERE: u32 = 99;

/// An epoch of more than sixteen bits, so that a comparison of too few or too many shows.
pub const EPOCH: u32 = 0x0001_2345;
pub const LEASE: Duration = Duration::from_secs(30);
pub const VNI: u32 = 42;
pub const PORT: u16 = 4789;
/// Outer UDP source port that the slow path gave all flows; and which there are to choose from.
pub const SOURCE_PORT: u16 = 50000;
pub const PORTS: (u16, u16) = (32768, 60999);
pub const MTU: u16 = 1450;
pub const MASK: u32 = 0x0fff_0000;

/// Bits of a packet's mark that are none of ours.
pub const FOREIGN_MARK: u32 = 0xa000_1234;

pub fn constants() -> Constants {
    Constants {
        host: key(HOST),
        network: key(Ipv4Addr::new(10, 42, 0, 0)),
        netmask: key(Ipv4Addr::new(255, 255, 0, 0)),
        vni: (VNI << 8).to_be(),
        mark_mask: MASK,
        mtu: u32::from(MTU),
        port: PORT.to_be(),
        vtep: VTEP_MAC,
        gateway: GATEWAY_MAC,
        gateway_address: key(GATEWAY),
        flows: u32::MAX,
        reserved: [0; 2],
    }
}

/// The mark of a packet that missed, with foreign bits.
pub fn missed(miss: u32, epoch: u32) -> u32 {
    FOREIGN_MARK | ((miss | epoch << 3) << 16 & MASK)
}

/// The mark of a packet that missed in this epoch and whose flow conntrack holds established.
pub fn established(miss: u32) -> u32 {
    let field = MarkField::new(MASK).expect("a good mask");
    assert_eq!(field.established_bit(), ESTABLISHED << 16);
    missed(miss, EPOCH) | field.established_bit()
}

/// What the container sends: its frame goes to the gateway.
pub const OUTBOUND: Ends = Ends {
    macs: [LOCAL_MAC, GATEWAY_MAC],
    addresses: [LOCAL, REMOTE],
    ports: [40000, 5000],
};

/// What the container gets by the slow path.
pub const DELIVERED: Ends = Ends {
    macs: [GATEWAY_MAC, LOCAL_MAC],
    addresses: [REMOTE, LOCAL],
    ports: [5000, 40000],
};

/// Inner frames on the wire to the peer, and from it.
const INNER_OUT: Ends = Ends {
    macs: [VTEP_MAC, PEER_VTEP_MAC],
    ..OUTBOUND
};
const INNER_IN: Ends = Ends {
    macs: [PEER_VTEP_MAC, VTEP_MAC],
    ..DELIVERED
};

/// Their outer headers.
pub const OUTER_OUT: Ends = Ends {
    macs: [UNDERLAY_MAC, NEXT_HOP_MAC],
    addresses: [HOST, PEER],
    ports: [SOURCE_PORT, PORT],
};
pub const OUTER_IN: Ends = Ends {
    macs: [NEXT_HOP_MAC, UNDERLAY_MAC],
    addresses: [PEER, HOST],
    ports: [SOURCE_PORT, PORT],
};

/// The flags of a segment in the middle of a connection: ACK, PSH.
pub const DATA: u8 = 0x18;

/// A container's datagram and segment, and the same as delivered.
pub fn sent_udp(payload: usize) -> Frame {
    Frame::udp(&OUTBOUND, payload)
}
pub fn sent_tcp(flags: u8, payload: usize) -> Frame {
    Frame::tcp(&OUTBOUND, flags, payload)
}
pub fn delivered_udp(payload: usize) -> Frame {
    Frame::udp(&DELIVERED, payload)
}
pub fn delivered_tcp(flags: u8, payload: usize) -> Frame {
    Frame::tcp(&DELIVERED, flags, payload)
}

/// What leaves by the underlay device, and what comes in.
pub fn encapsulated_udp(payload: usize) -> Frame {
    one_hop(Frame::udp(&INNER_OUT, payload)).in_tunnel(&OUTER_OUT, VNI)
}
pub fn encapsulated_tcp(flags: u8, payload: usize) -> Frame {
    one_hop(Frame::tcp(&INNER_OUT, flags, payload)).in_tunnel(&OUTER_OUT, VNI)
}
pub fn arriving_udp(payload: usize) -> Frame {
    one_hop(Frame::udp(&INNER_IN, payload)).in_tunnel(&OUTER_IN, VNI)
}
pub fn arriving_tcp(flags: u8, payload: usize) -> Frame {
    one_hop(Frame::tcp(&INNER_IN, flags, payload)).in_tunnel(&OUTER_IN, VNI)
}

fn one_hop(frame: Frame) -> Frame {
    frame.ip(ETHERNET, |ip| ip[8] -= 1)
}

/// The flow of all those packets, by protocol number.
pub fn flow(protocol: u8) -> FlowKey {
    FlowKey {
        local: key(LOCAL),
        remote: key(REMOTE),
        local_port: 40000_u16.to_be(),
        remote_port: 5000_u16.to_be(),
        protocol,
        reserved: [0; 3],
    }
}

/// The entry of a flow to the peer that passed in `directions`, each of which has taught its own.
pub fn flow_entry(flow: &FlowKey, directions: u64, epoch: u32, expiry: u64) -> FlowEntry {
    let device = match flow.local {
        local if local == key(NEIGHBOUR) => NEIGHBOUR_DEVICE,
        _ => DEVICE,
    };
    let tag = u32::try_from(flow.wide_tag()).expect("sixteen bits");
    let seal = MacWord::new(LOCAL_MAC, epoch ^ tag);
    let learned = |direction, word| match directions & direction {
        0 => 0,
        _ => word,
    };
    FlowEntry {
        verdict: flow_word(flow, directions, epoch, expiry),
        peer: FlowWord(learned(EGRESS, FlowWord::new(flow, key(PEER), epoch).0)),
        device: FlowWord(learned(INGRESS, FlowWord::new(flow, device, epoch).0)),
        mac: MacWord(learned(INGRESS, seal.0)),
        port: FlowWord(learned(
            EGRESS,
            FlowWord::new(flow, SOURCE_PORT.into(), epoch).0,
        )),
    }
}

/// The same, long before its lease ends.
pub fn live(key: &FlowKey, directions: u64) -> FlowEntry {
    flow_entry(key, directions, EPOCH, tick_in(Duration::from_secs(3600)))
}

/// Stands for the end of a lease that began just now.
pub const FRESH: u64 = 1;

/// The same, learned just now.
pub fn fresh(key: &FlowKey, directions: u64) -> FlowEntry {
    flow_entry(key, directions, EPOCH, FRESH)
}

/// Before any packet: two peers and two containers.
pub fn cold() -> Maps {
    Maps::default().but(|maps| {
        for address in [PEER, OTHER_PEER] {
            maps.peers.insert(peer(address), PeerHeaders::UNLEARNED);
        }
        for (container, device) in [(LOCAL, DEVICE), (NEIGHBOUR, NEIGHBOUR_DEVICE)] {
            let entry = LocalContainer::unlearned(device);
            maps.containers.insert(key(container), entry);
        }
    })
}

/// With the flow over UDP and TCP carried by the fast path.
pub fn warm() -> Maps {
    cold().but(|maps| {
        for protocol in [6, 17] {
            let flow = flow(protocol);
            maps.flows.insert(flow, live(&flow, 3));
        }
        maps.peers.insert(peer(PEER), headers());
        maps.containers.insert(key(LOCAL), reachable());
    })
}

/// The flows of [`warm`], alone.
pub fn carried_flows() -> Maps {
    Maps::default().but(|maps| {
        for protocol in [6, 17] {
            let flow = flow(protocol);
            maps.flows.insert(flow, live(&flow, 3));
        }
    })
}

/// As [`warm`], with flows that one rule alone keeps from the fast path: a container that is none of
/// ours or was never reached, a remote end that is behind no peer.
pub fn warm_with_traps() -> Maps {
    warm().but(|maps| {
        trap(maps, (STRANGER, REMOTE), |_, entry| {
            entry.device = FlowWord(0);
            entry.mac = MacWord(0);
        });
        trap(maps, (NEIGHBOUR, REMOTE), |_, entry| entry.mac = MacWord(0));
        for remote in [OUTSIDE, STRANGER, NEIGHBOUR, LOCAL] {
            trap(maps, (LOCAL, remote), |_, entry| entry.peer = FlowWord(0));
        }
    })
}

/// With a way to an address outside the overlay too, and an end behind a host that is no peer. Only
/// `egress` asks for the network and for the host: neither is ever learned, and `ingress` goes by what
/// was learned.
pub fn warm_with_a_way_out() -> Maps {
    warm_with_traps().but(|maps| {
        trap(maps, (LOCAL, OUTSIDE), |_, _| ());
        trap(maps, (LOCAL, STRANGER), |flow, entry| {
            entry.peer = flow_behind(flow, NO_PEER);
        });
    })
}

fn trap(maps: &mut Maps, ends: (Ipv4Addr, Ipv4Addr), edit: impl Fn(&FlowKey, &mut FlowEntry)) {
    for protocol in [6, 17] {
        let flow = FlowKey {
            local: key(ends.0),
            remote: key(ends.1),
            ..flow(protocol)
        };
        let mut entry = live(&flow, 3);
        edit(&flow, &mut entry);
        maps.flows.insert(flow, entry);
    }
}

/// What a flow's entry says of the peer that its remote container is behind.
pub fn flow_behind(flow: &FlowKey, host: Ipv4Addr) -> FlowWord {
    FlowWord::new(flow, key(host), EPOCH)
}

/// The container that all packets are from or to is withheld.
pub fn withhold(maps: &mut Maps) {
    if let Some(local) = maps.containers.get_mut(&key(LOCAL)) {
        local.withheld = 1;
    }
}

/// The local container with its MAC address.
pub fn reachable() -> LocalContainer {
    LocalContainer {
        ifindex: DEVICE,
        withheld: 0,
        mac: MacWord::new(LOCAL_MAC, EPOCH),
    }
}

/// The headers to the peer, taken from what the slow path sends there.
pub fn headers() -> PeerHeaders {
    let mut bytes = encapsulated_udp(0).0;
    bytes.truncate(64);
    // What differs from packet to packet: TOS, length, ID, checksum; UDP source port and length.
    for range in [15..16, 16..20, 24..26, 34..36, 38..40] {
        bytes[range].fill(0);
    }
    let mut template = [0; 8];
    for (word, eight) in template.iter_mut().zip(bytes.chunks(8)) {
        *word = u64::from_ne_bytes(eight.try_into().expect("eight bytes"));
    }
    let sum = super::frame::sum16(&bytes[ETHERNET..ETHERNET + 20]);
    PeerHeaders {
        template,
        ifindex: UNDERLAY,
        epoch: EPOCH,
        ip_sum: u32::from(u16::from_ne_bytes(sum.to_be_bytes())),
        reserved: 0,
    }
}

/// The same, to go by another device.
pub fn headers_on(ifindex: u32) -> PeerHeaders {
    PeerHeaders {
        ifindex,
        ..headers()
    }
}

/// What the wire must carry for a container's frame: the slow path's own packet, but for the ID
/// and the source port, which are taken from `seen`.
pub fn on_the_wire(sent: &Frame, seen: &[u8]) -> Frame {
    let (id, port) = (&seen[18..20], &seen[34..36]);
    let inner = sent.clone().bytes(0, &PEER_VTEP_MAC).bytes(6, &VTEP_MAC);
    let tos = match sent.0[ETHERNET + 1] & 3 {
        3 => 2,
        other => other,
    };
    one_hop(inner)
        .in_tunnel(&OUTER_OUT, VNI)
        .bytes(34, port)
        .ip(ETHERNET, |ip| {
            ip[1] = tos;
            ip[4..6].copy_from_slice(id);
        })
}

/// What the container must get for a packet from the wire.
pub fn at_the_container(arriving: &Frame) -> Frame {
    let outer_ecn = arriving.0[15] & 3;
    let inner = Frame(arriving.0[50..].to_vec()).ip(14, |ip| match (outer_ecn, ip[1] & 3) {
        (3, _) => ip[1] |= 3,
        (1, 2) => ip[1] = (ip[1] & !3) | 1,
        _ => {}
    });
    one_hop(inner.bytes(0, &LOCAL_MAC).bytes(6, &GATEWAY_MAC))
}
