//! What oncache's own devices are called and which link-layer addresses they have.
//!
//! All addresses here are locally administered unicast ones (the two low bits of the first byte are
//! 10, IEEE 802 section 8.2.2) and made of the IPv4 address that they stand for, so that two hosts
//! agree on them without telling each other.

use std::{fmt, net::Ipv4Addr};

use crate::netlink::Mac;

/// The bridge that the containers' devices are ports of.
pub const BRIDGE: &str = "oncache0";
/// The VXLAN device. Not a port of the bridge: routes lead from one to the other.
pub const VXLAN: &str = "oncache-vx0";
/// A device that never carries a packet: a VXLAN port of the bridge, down, for whose sake the kernel
/// leaves room for outer headers before what containers send (docs/adr/030).
pub const ROOM: &str = "oncache-room0";

/// The device group of bridge and VXLAN device (`ip link set group`): rules find by it whether a packet is the
/// overlay's. nft compares a name in about 45 ns, looks one up in a set in 110, and compares a group in 15; a packet of
/// the slow path is asked some twenty times (docs/adr/041).
pub const GROUP: u32 = 28_526;

/// One of oncache's own devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// [`BRIDGE`].
    Bridge,
    /// [`VXLAN`].
    Vxlan,
    /// [`ROOM`].
    Room,
}

impl Device {
    /// The device's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bridge => BRIDGE,
            Self::Vxlan => VXLAN,
            Self::Room => ROOM,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The address of the VXLAN device of the host with this underlay address.
#[must_use]
pub fn vtep_mac(underlay: Ipv4Addr) -> Mac {
    derived(0x6f, underlay)
}

/// The address of the device of that host that carries nothing.
#[must_use]
pub fn room_mac(underlay: Ipv4Addr) -> Mac {
    derived(0x72, underlay)
}

/// The address of the bridge of the host that is this gateway to its containers.
#[must_use]
pub fn gateway_mac(gateway: Ipv4Addr) -> Mac {
    derived(0x62, gateway)
}

/// The address of the container with this IP address.
#[must_use]
pub fn container_mac(address: Ipv4Addr) -> Mac {
    derived(0x63, address)
}

fn derived(role: u8, address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, role, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_local_unicast_and_differ_by_role() {
        let address = Ipv4Addr::new(10, 42, 1, 7);
        let macs = [
            vtep_mac(address),
            gateway_mac(address),
            container_mac(address),
        ];
        assert_eq!(macs[0], [0x0a, 0x6f, 10, 42, 1, 7]);
        assert_eq!(macs[1], [0x0a, 0x62, 10, 42, 1, 7]);
        assert_eq!(macs[2], [0x0a, 0x63, 10, 42, 1, 7]);
        for mac in macs {
            assert_eq!(mac[0] & 0b11, 0b10);
        }
    }

    #[test]
    fn names_fit_the_kernel() {
        for device in [Device::Bridge, Device::Vxlan, Device::Room] {
            // IFNAMSIZ counts the terminating NUL.
            assert!(device.name().len() < 16);
        }
    }
}
