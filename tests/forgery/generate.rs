//! What an attacker sends, by chance: every dimension is honest as a rule and anything else now and then.

use std::{collections::BTreeSet, net::Ipv4Addr};

use crate::{
    packet::{self, Ip, TUNNEL_PORT, ethernet, ip, payload, typed, udp, vxlan},
    reference::{Packet, may_arrive},
    watch::Spot,
    world::{FLOW, ON_LO, SERVICE_PORT, SERVICES, World},
};

/// The port at which nobody minds datagrams.
pub const PLAIN_PORT: u16 = 7000;

/// What is sent under one number.
pub struct Item {
    pub number: u32,
    pub frames: Vec<Vec<u8>>,
    pub may: BTreeSet<Spot>,
    /// Nothing about it is out of order: it must arrive wherever it may.
    pub honest: bool,
    /// For a message: what it is.
    pub what: String,
}

impl Item {
    /// Whether it is of the flow that the fast path carries.
    pub fn is_of_flow(&self) -> bool {
        self.what.contains(&format!("port Some({})", FLOW.1))
    }
}

/// Numbers that are the same with every run (xorshift64).
pub struct Chance(pub u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("a small number");
        usize::try_from((self.next() >> 16) % limit).expect("a small number")
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// The honest one, but for one time in `odd`.
    fn rather<T: Clone>(&mut self, honest: &T, odd: usize, others: &[T]) -> T {
        if self.below(odd) == 0 {
            self.of(others)
        } else {
            honest.clone()
        }
    }

    fn word(&mut self) -> u16 {
        u16::try_from(self.next() >> 48).expect("sixteen bits")
    }
}

const ODD: usize = 5;

pub fn item(world: &World, chance: &mut Chance, number: u32) -> Item {
    let own = world.own_mac();
    let vteps = world.vteps();
    let random = [2, 0, 0, 9, 9, 9];
    let from = chance.rather(
        &own,
        ODD,
        &[
            world.mate_mac(),
            world.gateway_mac(),
            vteps[0],
            vteps[1],
            world.port_macs()[0],
            random,
        ],
    );
    let reserved = [
        1,
        0x80,
        0xc2,
        0,
        0,
        u8::try_from(chance.below(16)).expect("small"),
    ];
    let to = chance.rather(
        &world.gateway_mac(),
        3,
        &[
            world.mate_mac(),
            world.mate_mac(),
            [0xff; 6],
            [1, 0, 0x5e, 0, 0, 1],
            [0x33, 0x33, 0, 0, 0, 1],
            reserved,
            reserved,
            random,
            world.port_macs()[0],
            world.port_macs()[1],
            vteps[0],
        ],
    );
    let tags: Vec<u16> = (0..chance.rather(&0, ODD, &[1, 1, 2, 2, 3]))
        .map(|_| chance.of(&[0x8100, 0x8100, 0x88a8, 0x88a8, 0x9100, 0x9200]))
        .collect();
    let (bodies, ethertype, packet, mut what) = body(world, chance, number);
    let frames: Vec<Vec<u8>> = bodies
        .iter()
        .map(|body| {
            let mut rest = typed(ethertype, body);
            for tag in &tags {
                // The VLANs 0, 1 and 42.
                let vlan = [0_u16, 1, 42][usize::from(*tag >> 4) % 3];
                rest = [&tag.to_be_bytes()[..], &vlan.to_be_bytes(), &rest].concat();
            }
            ethernet(to, from, &rest)
        })
        .collect();
    let may = may_arrive(world, &frames[0], packet.as_ref());
    let honest = packet.is_some_and(|packet| {
        let ports = [Some(PLAIN_PORT), Some(FLOW.1)];
        let end = [
            world.mate,
            world.victim,
            world.hosts[0],
            world.hosts[1],
            world.gateways[0],
        ];
        to == world.gateway_mac()
            && packet.protocol == 17
            && ports.contains(&packet.port)
            && packet.next.is_none()
            && packet.whole
            && end.contains(&packet.to)
    }) && !may.is_empty();
    what.push_str(&format!(" from {from:02x?} to {to:02x?} tags {tags:04x?}"));
    Item {
        number,
        frames,
        may,
        honest,
        what,
    }
}

type Body = (Vec<Vec<u8>>, u16, Option<Packet>, String);

/// What follows the tags: one body, or one for each fragment.
fn body(world: &World, chance: &mut Chance, number: u32) -> Body {
    let inner = || {
        ip(
            world.mate,
            world.victim,
            17,
            &udp(1, PLAIN_PORT, &payload(number)),
        )
    };
    match chance.below(10) {
        0 => {
            let ethertype = chance.of(&[
                0x86dd, 0x8035, 0x8847, 0x8848, 0x8863, 0x8864, 0x88cc, 0x88e5, 0x894f, 0x6558,
                0x9000, 0x88f5, 0x8915, 0x22f0, 0x0805, 0x0807, 0x88e3, 0x8902,
            ]);
            let body = match ethertype {
                0x86dd => {
                    packet::ipv6(17, packet::ALL_NODES, &udp(1, PLAIN_PORT, &payload(number)))
                }
                // A session's header and PPP's word for IPv4 (RFC 2516), and a label (RFC 3032).
                0x8864 => [&[0x11, 0, 0, 1, 0, 62, 0, 0x21][..], &inner()].concat(),
                0x8847 | 0x8848 => [&[0, 0x10, 1, 64][..], &inner()].concat(),
                _ => inner(),
            };
            (
                vec![body],
                ethertype,
                None,
                format!("ethertype {ethertype:04x}"),
            )
        }
        1 => {
            // A length: LLC, of 802.2 and with SNAP around IPv4, and of Novell.
            let header = chance.of(&[
                &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..],
                &[0x42, 0x42, 3],
                &[0xff, 0xff],
            ]);
            let body = [header, &inner()].concat();
            let length = u16::try_from(body.len()).expect("short");
            let ethertype = chance.of(&[length, 0, 1, 0x05dc, 0x05ff]);
            (
                vec![body],
                ethertype,
                None,
                format!("a length of {ethertype}"),
            )
        }
        2 => {
            let ethertype = chance.word();
            // Those with a meaning have their turn elsewhere.
            let ethertype = if [0x0800, 0x0806].contains(&ethertype) {
                0x1234
            } else {
                ethertype
            };
            (
                vec![inner()],
                ethertype,
                None,
                format!("ethertype {ethertype:04x}"),
            )
        }
        3 => {
            let mac = chance.rather(
                &world.own_mac(),
                3,
                &[world.mate_mac(), world.gateway_mac(), [0; 6]],
            );
            let claimed = [
                world.mate,
                world.gateways[0],
                world.victim,
                Ipv4Addr::UNSPECIFIED,
            ];
            let ip = chance.rather(&world.attacker, 3, &claimed);
            let operation = chance.rather(&chance_of_two(number), ODD, &[0, 3, 4, 8, 9]);
            let about = chance.of(&[world.mate, world.gateways[0], ip]);
            let mut body = packet::arp(operation, mac, ip, about);
            if chance.below(ODD) == 0 {
                // Of another hardware, protocol or length of address.
                body[chance.below(6)] ^= 1;
            }
            body.extend(payload(number));
            let what = format!("arp {operation} {mac:02x?} {ip}");
            (vec![body], 0x0806, None, what)
        }
        _ => ipv4(world, chance, number),
    }
}

/// A request or an answer.
fn chance_of_two(number: u32) -> u16 {
    1 + u16::from(number.is_multiple_of(2))
}

fn ipv4(world: &World, chance: &mut Chance, number: u32) -> Body {
    let outside = Ipv4Addr::new(203, 0, 113, 9);
    let from = chance.rather(
        &world.attacker,
        ODD,
        &[
            world.mate,
            world.victim,
            world.gateways[0],
            world.hosts[0],
            world.hosts[1],
            Ipv4Addr::new(8, 8, 8, 8),
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::BROADCAST,
        ],
    );
    let to = chance.of(&[
        world.mate,
        world.victim,
        world.victim,
        world.victim,
        world.victim,
        world.hosts[0],
        world.hosts[0],
        world.hosts[1],
        world.hosts[1],
        world.gateways[0],
        world.gateways[1],
        ON_LO,
        SERVICES[0],
        SERVICES[1],
        outside,
        world.attacker,
        Ipv4Addr::new(10, 42, 1, 255),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::LOCALHOST,
    ]);
    let forged = forged_frame(world, chance, number);
    let tunnelled = vxlan(chance.rather(&42, ODD, &[0, 43, 0xff_ffff]), &forged);
    let to_tunnel = udp(
        chance.of(&[TUNNEL_PORT, 50_000, 33_333]),
        TUNNEL_PORT,
        &tunnelled,
    );
    let (protocol, port, body) = match chance.below(8) {
        0 => (6, Some(chance.of(&[TUNNEL_PORT, PLAIN_PORT])), Vec::new()),
        1 => (1, None, packet::icmp(&payload(number))),
        2 => encapsulated(world, chance, number, &to_tunnel),
        3 | 4 => (17, Some(TUNNEL_PORT), to_tunnel),
        5 => {
            let other = chance.of(&[SERVICE_PORT, 8472, 6081, 53, 1, 5555]);
            (17, Some(other), udp(50_000, other, &tunnelled))
        }
        _ if to == world.victim && chance.below(3) != 0 => {
            (17, Some(FLOW.1), udp(FLOW.0, FLOW.1, &payload(number)))
        }
        _ => (
            17,
            Some(PLAIN_PORT),
            udp(50_000, PLAIN_PORT, &payload(number)),
        ),
    };
    let body = match (protocol, port) {
        (6, Some(port)) => packet::tcp(50_000, port, &payload(number)),
        _ => body,
    };
    let (options, next) = match chance.below(12) {
        0 => (vec![1, 1, 1, 0], None),
        // Loose source routing (RFC 791, section 3.1).
        1 => {
            let next = chance.of(&[world.hosts[1], world.hosts[0], world.gateways[1]]);
            let [a, b, c, d] = next.octets();
            (vec![131, 7, 4, a, b, c, d, 0], Some(next))
        }
        _ => (Vec::new(), None),
    };
    let header = Ip {
        from,
        to,
        protocol,
        id: u16::try_from(number % 0xffff).expect("sixteen bits") + 1,
        fragment: 0,
        options,
    };
    let (bodies, whole) = fragments(chance, &header, &body);
    let what = format!(
        "{from} > {to} protocol {protocol} port {port:?} options {:?} in {} parts, whole: {whole}",
        header.options,
        bodies.len(),
    );
    let packet = Packet {
        from,
        to,
        next,
        protocol,
        port,
        whole,
    };
    (bodies, 0x0800, Some(packet), what)
}

/// A frame as one of the hosts would put into the tunnel, with a source that is not the attacker's.
fn forged_frame(world: &World, chance: &mut Chance, number: u32) -> Vec<u8> {
    let [here, there] = world.vteps();
    let (to, from) = chance.of(&[(here, there), (there, here)]);
    let source = chance.of(&[
        world.mate,
        world.victim,
        world.gateways[1],
        Ipv4Addr::new(10, 42, 2, 77),
        Ipv4Addr::new(8, 8, 8, 8),
    ]);
    let target = chance.of(&[world.mate, world.victim, world.gateways[0], world.hosts[0]]);
    let datagram = udp(FLOW.0, PLAIN_PORT, &payload(number));
    ethernet(to, from, &typed(0x0800, &ip(source, target, 17, &datagram)))
}

/// A packet to the tunnel's port inside another protocol.
fn encapsulated(
    world: &World,
    chance: &mut Chance,
    number: u32,
    to_tunnel: &[u8],
) -> (u8, Option<u16>, Vec<u8>) {
    let inner = ip(world.hosts[1], world.hosts[0], 17, to_tunnel);
    let protocol = chance.of(&[
        4, 41, 47, 47, 50, 51, 94, 97, 103, 115, 137, 132, 136, 33, 2,
    ]);
    let body = match protocol {
        // GRE of IPv4, and of Ethernet (RFC 2784).
        47 if chance.below(2) == 0 => [&[0, 0, 8, 0][..], &inner].concat(),
        47 => [
            &[0, 0, 0x65, 0x58][..],
            &forged_frame(world, chance, number),
        ]
        .concat(),
        41 => packet::ipv6(17, packet::ALL_NODES, to_tunnel),
        // Ethernet in IP (RFC 3378), a label (RFC 4023), and an authentication header (RFC 4302).
        97 => [&[0x30, 0][..], &forged_frame(world, chance, number)].concat(),
        137 => [&[0, 0x10, 1, 64][..], &inner].concat(),
        51 => [&[4, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1][..], &inner].concat(),
        4 | 94 => inner,
        _ => [&[0; 8][..], &payload(number)].concat(),
    };
    (protocol, None, body)
}

/// The packet whole as a rule; in two fragments in one order or the other; or one of the two alone.
fn fragments(chance: &mut Chance, header: &Ip, body: &[u8]) -> (Vec<Vec<u8>>, bool) {
    /// More fragments follow.
    const MORE: u16 = 0x2000;
    if chance.below(4) != 0 || body.len() < 24 {
        return (vec![header.packet(body)], true);
    }
    // The first ends behind the ports, or in the middle of what they are for.
    let cut = chance.of(&[8, 8, 16, body.len() / 16 * 8]);
    let part = |fragment, body: &[u8]| {
        let header = Ip {
            fragment,
            ..header.clone()
        };
        header.packet(body)
    };
    let offset = u16::try_from(cut / 8).expect("a small offset");
    let (first, last) = (part(MORE, &body[..cut]), part(offset, &body[cut..]));
    match chance.below(5) {
        0 | 1 => (vec![first, last], true),
        2 => (vec![last, first], true),
        3 => (vec![first], false),
        _ => (vec![last], false),
    }
}
