//! `oncache.toml`: schema, defaults, validation with line-precise errors.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// What the host is like, as far as defaults and validation need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The host's name: the default of `node.name`.
    pub hostname: String,
    /// The device of the IPv4 default route with the lowest metric: the default of
    /// `node.underlay`.
    pub default_route_device: Option<String>,
    /// Every network device of the host's namespace.
    pub devices: Vec<DeviceFacts>,
}

/// One network device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The device's name.
    pub name: String,
    /// The kernel's interface index.
    pub index: u32,
    /// MTU in bytes, without the link layer's header.
    pub mtu: u32,
    /// Link-layer address in transmission order; zeroes for a device that has none of six bytes.
    pub mac: [u8; 6],
    /// IPv4 addresses with their prefix lengths, in the kernel's order.
    pub ipv4: Vec<Ipv4Net>,
}

/// The whole, validated configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This host.
    pub node: Node,
    /// The overlay as this host sees it.
    pub overlay: Overlay,
    /// The other hosts.
    pub peers: Vec<Peer>,
}

/// This host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The host's name.
    pub name: String,
    /// The underlay device's name.
    pub underlay: String,
    /// The underlay device's interface index.
    pub underlay_index: u32,
    /// The underlay device's link-layer address, in transmission order.
    pub underlay_mac: [u8; 6],
    /// The host's address in the underlay.
    pub address: Ipv4Addr,
}

/// The overlay as this host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// This host's containers.
    pub subnet: Ipv4Net,
    /// All hosts' containers.
    pub network: Ipv4Net,
    /// VXLAN network identifier, 24 bits (RFC 7348 section 5).
    pub vni: u32,
    /// Outer UDP destination port, host byte order.
    pub port: u16,
    /// MTU of the containers' devices, in bytes.
    pub mtu: u32,
}

impl Overlay {
    /// The address of the host in its own containers' subnet: the first usable one.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits().wrapping_add(1))
    }
}

/// Another host of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The host's name.
    pub name: String,
    /// The host's address in the underlay.
    pub address: Ipv4Addr,
    /// The host's containers.
    pub subnet: Ipv4Net,
}
