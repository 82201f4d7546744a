//! Values for the fields that the classes are about.

use proptest::{
    collection::vec,
    option::{of, weighted},
    prelude::*,
    sample::select,
};

use crate::differential::{
    addresses::{CLIENT, NOBODY, SERVER},
    packet::{Checksum, Outer, Tcp, Transport, Way},
};

pub fn way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Forth), Just(Way::Back)]
}

pub fn checksum() -> impl Strategy<Value = Checksum> {
    select(vec![Checksum::Right, Checksum::Wrong, Checksum::Zero])
}

pub fn tos() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0), any::<u8>()]
}

/// Every combination of flags, and now and then a new beginning of the flow.
pub fn tcp_flags() -> impl Strategy<Value = Transport> {
    let any_flags = (any::<u8>(), 0..16_u8).prop_map(|(flags, reserved)| {
        Transport::Tcp(Tcp {
            flags,
            reserved,
            ..Tcp::default()
        })
    });
    let steady = any::<u8>().prop_map(|flags| {
        Transport::Tcp(Tcp {
            flags: flags & !Tcp::STATE,
            ..Tcp::default()
        })
    });
    prop_oneof![2 => any_flags, 3 => steady, 2 => Just(Transport::OpenTcp)]
}

/// TCP without SYN, FIN and RST, and seldom without ACK, which no established flow does; with false header lengths where `odd` says so.
pub fn tcp(odd: impl Strategy<Value = bool>) -> impl Strategy<Value = Transport> {
    let words = prop_oneof![Just(0_usize), 0..=10_usize];
    let options = words.prop_flat_map(|words| vec(any::<u8>(), words * 4));
    (
        odd,
        any::<u8>(),
        options,
        weighted(0.2, 0..16_u8),
        any::<[u32; 2]>(),
        any::<[u16; 2]>(),
        checksum(),
    )
        .prop_map(
            |(
                odd,
                flags,
                options,
                offset,
                [sequence, acknowledgement],
                [window, urgent],
                checksum,
            )| {
                let acknowledges = if sequence % 16 == 0 { 0 } else { Tcp::ACK };
                Transport::Tcp(Tcp {
                    flags: flags & !Tcp::STATE | acknowledges,
                    options,
                    data_offset: offset.filter(|_| odd),
                    sequence,
                    acknowledgement,
                    window,
                    urgent,
                    checksum,
                    ..Tcp::default()
                })
            },
        )
}

/// No timestamps (68): what they are filled with is the time.
pub fn ip_options() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![1, 1, 1, 0]),
        Just(vec![148, 4, 0, 0]),
        (0..4_usize).prop_map(|hops| {
            let mut route = vec![7, u8::try_from(3 + 4 * hops).unwrap_or(3), 4];
            route.resize(4 + 4 * hops, 0);
            route
        }),
        Just(vec![131, 7, 4, 10, 42, 2, 2, 0]),
        (1..=10_usize).prop_flat_map(|words| vec(any::<u8>(), words * 4)),
    ]
    .prop_map(|mut options| {
        for byte in &mut options {
            if *byte == 68 {
                *byte = 1;
            }
        }
        options
    })
}

pub fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![
        select(vec![
            0, 2, 4, 33, 41, 46, 47, 50, 51, 103, 108, 112, 132, 136, 253, 255
        ]),
        any::<u8>(),
    ]
    // TCP, UDP and ICMP have classes of their own; with 254 the test marks a sequence's end.
    .prop_filter("has its own class", |protocol| {
        ![1, 6, 17, 254].contains(protocol)
    })
}

pub fn ethertype() -> impl Strategy<Value = u16> {
    prop_oneof![
        select(vec![0x0806, 0x86dd, 0x88cc, 0x8847, 0x0000, 0x05dc]),
        any::<u16>()
    ]
    .prop_filter("IPv4 and VLAN have their own classes", |ethertype| {
        ![0x0800, 0x8100, 0x88a8].contains(ethertype)
    })
}

/// An address and the MAC address that goes with it.
pub fn destination() -> impl Strategy<Value = ([u8; 4], Option<[u8; 6]>)> {
    prop_oneof![
        Just(([224, 0, 0, 251], Some([1, 0, 0x5e, 0, 0, 251]))),
        Just(([224, 0, 0, 1], Some([1, 0, 0x5e, 0, 0, 1]))),
        Just(([239, 1, 2, 3], None)),
        Just(([255; 4], Some([255; 6]))),
        Just(([255; 4], None)),
        Just(([10, 42, 1, 255], Some([255; 6]))),
        Just(([10, 42, 2, 255], None)),
        Just((NOBODY[0].octets(), None)),
        Just((NOBODY[1].octets(), None)),
        Just(([10, 42, 9, 9], None)),
        Just(([203, 0, 113, 9], None)),
        Just(([0; 4], None)),
        Just(([127, 0, 0, 1], None)),
    ]
}

pub fn source() -> impl Strategy<Value = (Option<[u8; 4]>, Option<[u8; 6]>)> {
    let others = [
        CLIENT.ip.octets(),
        SERVER.ip.octets(),
        NOBODY[0].octets(),
        NOBODY[1].octets(),
    ];
    let odd = [
        [0; 4],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [255; 4],
        [198, 51, 100, 9],
    ];
    let address = select([others.as_slice(), odd.as_slice()].concat());
    (of(address), of(station()))
}

pub fn station() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![
        select(vec![
            CLIENT.mac,
            SERVER.mac,
            CLIENT.gateway,
            SERVER.gateway,
            CLIENT.vtep,
            SERVER.vtep
        ]),
        select(vec![
            [0; 6],
            [255; 6],
            [1, 0, 0x5e, 0, 0, 5],
            [0x33, 0x33, 0, 0, 0, 1]
        ]),
        any::<[u8; 6]>(),
    ]
}

/// Outer headers: most of them with one thing wrong or unusual.
pub fn outer() -> impl Strategy<Value = Outer> {
    let error = || select(vec![-9_i16, -1, 1, 9]);
    let change = prop_oneof![
        any::<u8>().prop_map(|tos| Outer {
            tos,
            ..Outer::default()
        }),
        any::<u8>().prop_map(|ttl| Outer {
            ttl,
            ..Outer::default()
        }),
        select(vec![0x4000, 0x8000, 0x0001, 0x1000]).prop_map(|fragment| Outer {
            fragment,
            ..Outer::default()
        }),
        Just(Outer {
            options: vec![1, 1, 1, 0],
            ..Outer::default()
        }),
        error().prop_map(|length_error| Outer {
            length_error,
            ..Outer::default()
        }),
        error().prop_map(|udp_length_error| Outer {
            udp_length_error,
            ..Outer::default()
        }),
        any::<u16>().prop_map(|checksum_error| Outer {
            checksum_error,
            ..Outer::default()
        }),
        checksum().prop_map(|udp_checksum| Outer {
            udp_checksum,
            ..Outer::default()
        }),
        any::<u16>().prop_map(|source_port| Outer {
            source_port,
            ..Outer::default()
        }),
        select(vec![4788, 8472, 9]).prop_map(|port| Outer {
            port,
            ..Outer::default()
        }),
        (0..32_u32).prop_map(|bit| {
            let flags = (0x0800_0000_u32 ^ 1 << bit).to_be_bytes();
            Outer {
                flags,
                ..Outer::default()
            }
        }),
        (0..0x0100_0000_u32).prop_map(|vni| Outer {
            vni,
            ..Outer::default()
        }),
        any::<u8>().prop_map(|reserved| Outer {
            reserved,
            ..Outer::default()
        }),
        station().prop_map(|mac| Outer {
            inner_destination: Some(mac),
            ..Outer::default()
        }),
        station().prop_map(|mac| Outer {
            destination_mac: Some(mac),
            ..Outer::default()
        }),
        Just(Outer {
            source: Some(99),
            ..Outer::default()
        }),
        Just(Outer {
            destination: Some(255),
            ..Outer::default()
        }),
    ];
    (change, tos()).prop_map(|(outer, tos)| {
        if outer == Outer::default() {
            Outer { tos, ..outer }
        } else {
            outer
        }
    })
}
