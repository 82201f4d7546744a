//! Which packets are made for each class.

use proptest::{
    collection::vec,
    option::{of, weighted},
    prelude::*,
    sample::select,
    strategy::BoxedStrategy,
};

use crate::differential::{
    packet::{
        Class, FLOWS, Fragments, Ip, Link, Offload, Packet, STEADY_FLOWS, Tcp, Transport, Udp,
    },
    values::{
        checksum, destination, ethertype, ip_options, outer, protocol, source, station, tcp,
        tcp_flags, tos, way,
    },
};

/// The largest payload that the overlay's MTU of 1,450 leaves to UDP; TCP has twelve bytes less.
const FULL: u16 = 1450 - 28;

/// A packet of the class.
pub fn packets(class: Class) -> BoxedStrategy<Packet> {
    let ordinary = || ordinary(class);
    match class {
        Class::Size => (ordinary(), 0..=FULL + 6, any::<bool>())
            .prop_map(|(packet, payload, dont_fragment)| Packet {
                payload,
                ip: Ip {
                    dont_fragment,
                    ..Ip::default()
                },
                ..packet
            })
            .boxed(),
        Class::TcpFlags => (tcp_flags(), STEADY_FLOWS..FLOWS, 0..40_u16, way())
            .prop_map(move |(transport, flow, payload, way)| Packet {
                class,
                way,
                flow,
                transport,
                payload,
                ..Packet::default()
            })
            .boxed(),
        Class::TcpOptions => with(ordinary(), tcp(any::<bool>()), |packet, transport| {
            packet.transport = transport;
        }),
        Class::UdpChecksum => with(ordinary(), checksum(), |packet, checksum| {
            packet.transport = Transport::Udp(Udp {
                checksum,
                length_error: 0,
            });
        }),
        Class::PendingChecksum => with(ordinary(), tos(), |packet, tos| {
            packet.ip.tos = tos;
            packet.offload = Offload::Checksum;
        }),
        Class::TcpAggregate => aggregate(class, Transport::Tcp(Tcp::default()), 40),
        Class::UdpAggregate => aggregate(class, Transport::default(), 28),
        Class::Tos => with(ordinary(), any::<u8>(), |packet, tos| packet.ip.tos = tos),
        Class::Ttl => with(
            ordinary(),
            prop_oneof![0..5_u8, any::<u8>()],
            |packet, ttl| packet.ip.ttl = ttl,
        ),
        Class::Flags => with(
            ordinary(),
            any::<[bool; 2]>(),
            |packet, [reserved, dont]| {
                packet.ip.reserved_flag = reserved;
                packet.ip.dont_fragment = dont;
            },
        ),
        Class::Fragments => (
            ordinary(),
            100..400_u16,
            1..12_u8,
            any::<bool>(),
            weighted(0.3, 0..4_u8),
        )
            .prop_map(|(packet, payload, units, backwards, lost)| Packet {
                payload,
                ip: Ip {
                    fragments: Some(Fragments {
                        units,
                        backwards,
                        lost,
                    }),
                    dont_fragment: false,
                    ..Ip::default()
                },
                ..packet
            })
            .boxed(),
        Class::Options => with(ordinary(), ip_options(), |packet, options| {
            packet.ip.options = options;
        }),
        Class::Echo => with(ordinary(), select(vec![0, 8, 13, 17]), |packet, kind| {
            packet.transport = Transport::Icmp(kind, 0);
        }),
        Class::Error => with(
            ordinary(),
            (select(vec![3, 4, 5, 11, 12]), 0..16_u8),
            |packet, (kind, code)| {
                packet.transport = Transport::Icmp(kind, code);
            },
        ),
        Class::Protocol => with(ordinary(), protocol(), |packet, protocol| {
            packet.transport = Transport::Other(protocol);
        }),
        Class::Vlan => with(
            ordinary(),
            vec(
                prop_oneof![select(vec![0, 0x2000, 0xe000]), any::<u16>()],
                1..3,
            ),
            |packet, vlans| packet.link.vlans = vlans,
        ),
        Class::Ethertype => with(ordinary(), ethertype(), |packet, ethertype| {
            packet.link.ethertype = Some(ethertype);
        }),
        Class::Destination => with(ordinary(), destination(), |packet, (ip, mac)| {
            packet.ip.destination = Some(ip.into());
            packet.link.destination = mac;
        }),
        Class::Source => with(ordinary(), source(), |packet, (ip, mac)| {
            packet.ip.source = ip.map(Into::into);
            packet.link.source = mac;
        }),
        Class::IpChecksum => with(ordinary(), 1..=u16::MAX, |packet, error| {
            packet.ip.checksum_error = error;
        }),
        Class::Length => lengths(class),
        Class::Station => with(
            ordinary(),
            (of(station()), of(station())),
            |packet, (destination, source)| {
                packet.link = Link {
                    destination,
                    source,
                    ..Link::default()
                };
            },
        ),
        Class::Outer => with(ordinary(), (outer(), tos()), |packet, (outer, tos)| {
            packet.ip.ttl = 63;
            packet.ip.tos = tos;
            packet.outer = Some(outer);
        }),
        Class::Mixture => mixture(class),
        Class::Opening => Just(Packet::default()).boxed(),
    }
}

/// What the fast path carries: data of an established flow.
fn ordinary(class: Class) -> impl Strategy<Value = Packet> {
    let transport = prop_oneof![
        Just(Transport::default()),
        Just(Transport::Tcp(Tcp::default())),
        tcp(Just(false)),
    ];
    let payload = prop_oneof![4 => 0..100_u16, 1 => 0..FULL - 52];
    (way(), 0..STEADY_FLOWS, transport, payload).prop_map(move |(way, flow, transport, payload)| {
        Packet {
            class,
            way,
            flow,
            transport,
            payload,
            ..Packet::default()
        }
    })
}

/// `packets`, each changed by what `values` yields.
fn with<V: std::fmt::Debug + 'static>(
    packets: impl Strategy<Value = Packet> + 'static,
    values: impl Strategy<Value = V> + 'static,
    change: fn(&mut Packet, V),
) -> BoxedStrategy<Packet> {
    (packets, values)
        .prop_map(move |(mut packet, value)| {
            change(&mut packet, value);
            packet
        })
        .boxed()
}

/// Aggregates of segments that fit, and a few that do not.
fn aggregate(class: Class, transport: Transport, headers: u16) -> BoxedStrategy<Packet> {
    let fits = 1450 - headers;
    let segment =
        prop_oneof![1 => 1..64_u16, 4 => 64..=fits, 2 => Just(fits), 1 => fits..fits + 60];
    let count = prop_oneof![6 => 2..24_u32, 1 => 2..200_u32];
    (
        way(),
        0..STEADY_FLOWS,
        segment,
        count,
        0..1000_u32,
        tos(),
        any::<bool>(),
    )
        .prop_map(
            move |(way, flow, segment, count, less, tos, dont_fragment)| {
                // A longer frame would be cut up before it leaves the container.
                let most = 65_535 - 14 - u32::from(headers);
                let payload = (u32::from(segment) * count).min(most);
                let payload = payload.saturating_sub(less % u32::from(segment));
                Packet {
                    class,
                    way,
                    flow,
                    transport: transport.clone(),
                    payload: u16::try_from(payload).unwrap_or(0),
                    offload: Offload::Segments(segment),
                    ip: Ip {
                        tos,
                        dont_fragment,
                        ..Ip::default()
                    },
                    ..Packet::default()
                }
            },
        )
        .boxed()
}

fn lengths(class: Class) -> BoxedStrategy<Packet> {
    let error = || prop_oneof![6 => Just(0_i16), 1 => -40..40_i16];
    let version = weighted(0.15, prop_oneof![any::<u8>(), 0x40..0x50_u8]);
    let trailing = prop_oneof![Just(0), 1..60_u8];
    (
        ordinary(class),
        error(),
        error(),
        version,
        trailing,
        weighted(0.2, 14..80_u16),
    )
        .prop_map(
            |(mut packet, length_error, udp_error, version_and_length, trailing, cut)| {
                packet.ip.length_error = length_error;
                packet.ip.version_and_length = version_and_length;
                packet.trailing = trailing;
                packet.cut = cut;
                if let Transport::Udp(udp) = &mut packet.transport {
                    udp.length_error = udp_error;
                }
                packet
            },
        )
        .boxed()
}

/// One packet has what several of the other classes are about.
fn mixture(class: Class) -> BoxedStrategy<Packet> {
    let parts = [
        Class::Size,
        Class::TcpOptions,
        Class::UdpChecksum,
        Class::PendingChecksum,
        Class::Tos,
        Class::Ttl,
        Class::Flags,
        Class::Options,
        Class::IpChecksum,
        Class::Length,
        Class::Outer,
    ];
    let one = || select(parts.to_vec()).prop_flat_map(packets);
    (one(), one(), one())
        .prop_map(move |(first, second, third)| {
            let tos = second.ip.tos | third.ip.tos;
            let mut packet = Packet { class, ..first };
            packet.ip.tos |= tos;
            packet.ip.ttl = packet.ip.ttl.min(second.ip.ttl).min(third.ip.ttl);
            packet.ip.dont_fragment &= second.ip.dont_fragment && third.ip.dont_fragment;
            packet.ip.reserved_flag |= second.ip.reserved_flag;
            if packet.ip.options.is_empty() {
                packet.ip.options = third.ip.options;
            }
            packet.outer = packet.outer.or(second.outer);
            if packet.outer.is_none() && packet.offload == Offload::Nothing {
                packet.offload = third.offload;
            }
            packet.trailing = packet.trailing.max(third.trailing);
            packet.payload = packet.payload.max(second.payload).min(FULL - 100);
            packet
        })
        .boxed()
}
