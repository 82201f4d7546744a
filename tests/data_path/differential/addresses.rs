//! Who is where: the same in both labs.

use std::net::Ipv4Addr;

use crate::differential::packet::Way;

/// A container and all that leads to it.
#[derive(Debug)]
pub struct End {
    pub ip: Ipv4Addr,
    pub mac: [u8; 6],
    pub gateway_ip: Ipv4Addr,
    pub gateway: [u8; 6],
    pub host: Ipv4Addr,
    pub underlay: [u8; 6],
    pub vtep: [u8; 6],
}

const fn on_host(number: u8) -> End {
    let host = [192, 168, 50, 10 + number];
    End {
        ip: Ipv4Addr::new(10, 42, number, 2),
        mac: [0x0a, 0x63, 10, 42, number, 2],
        gateway_ip: Ipv4Addr::new(10, 42, number, 1),
        gateway: [0x0a, 0x62, 10, 42, number, 1],
        host: Ipv4Addr::new(host[0], host[1], host[2], host[3]),
        underlay: [0x52, 0x54, 0, 0x32, 0, host[3]],
        vtep: [0x0a, 0x6f, host[0], host[1], host[2], host[3]],
    }
}

/// The container on alpha.
pub const CLIENT: End = on_host(1);
/// The container on beta.
pub const SERVER: End = on_host(2);

/// An address on each host's subnet that no container has, but a MAC address answers for.
pub const NOBODY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 42, 1, 77), Ipv4Addr::new(10, 42, 2, 77)];

/// Who sends.
pub const fn end(way: Way) -> &'static End {
    match way {
        Way::Forth => &CLIENT,
        Way::Back => &SERVER,
    }
}

/// Who receives.
pub const fn other_end(way: Way) -> &'static End {
    match way {
        Way::Forth => &SERVER,
        Way::Back => &CLIENT,
    }
}

/// The sender's and the receiver's port.
pub fn ports(way: Way, flow: u8) -> [u16; 2] {
    let [client, server] = [40_000 + u16::from(flow), 5_000 + u16::from(flow)];
    match way {
        Way::Forth => [client, server],
        Way::Back => [server, client],
    }
}
