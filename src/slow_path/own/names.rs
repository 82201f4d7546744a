//! What oncache's own devices and tables are called, and which link-layer addresses the devices have.
//!
//! All addresses here are locally administered unicast ones (the two low bits of the first byte are
//! 10, IEEE 802 section 8.2.2) and made of the IPv4 address that they stand for, so that two hosts
//! agree on them without telling each other.

use std::net::Ipv4Addr;

use crate::{
    netlink::Mac,
    nft::{Family, TableName},
};

/// The bridge that the containers' devices are ports of.
const BRIDGE: &str = "oncache0";
/// The VXLAN device. Not a port of the bridge: routes lead from one to the other.
const VXLAN: &str = "oncache-vx0";
/// A device that never carries a packet: a VXLAN port of the bridge, down, for whose sake the kernel
/// leaves headroom for outer headers before what containers send (docs/adr/030).
const HEADROOM: &str = "oncache-room0";

/// The device group of bridge and VXLAN device (`ip link set group`): rules find by it whether a packet is the
/// overlay's. nft compares a name in about 45 ns, looks one up in a set in 110, and compares a group in 15; a packet of
/// the slow path is asked some twenty times (docs/adr/041).
pub(super) const GROUP: u32 = 28_526;

/// The table of the slow path, see [`ruleset`](super::ruleset).
pub const TABLE: TableName = TableName {
    family: Family::Inet,
    name: "oncache",
};

/// The table of the guard at the containers' devices, see [`source_guard`](super::source_guard).
pub const SOURCE_TABLE: TableName = TableName {
    family: Family::Bridge,
    name: "oncache",
};

/// One of oncache's own devices, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OwnDevice {
    /// The bridge that the containers' devices are ports of.
    Bridge,
    /// The VXLAN device.
    Vxlan,
    /// The one that keeps headroom before what containers send.
    Headroom,
}

/// What a network's own devices are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNames {
    /// That of [`OwnDevice::Bridge`].
    pub bridge: String,
    /// That of [`OwnDevice::Vxlan`].
    pub vxlan: String,
    /// That of [`OwnDevice::Headroom`].
    pub headroom: String,
}

impl DeviceNames {
    /// Those of the only network that a host has so far.
    #[must_use]
    pub fn of_only_network() -> Self {
        Self {
            bridge: BRIDGE.to_owned(),
            vxlan: VXLAN.to_owned(),
            headroom: HEADROOM.to_owned(),
        }
    }

    /// What this device is called.
    #[must_use]
    pub fn of(&self, device: OwnDevice) -> &str {
        match device {
            OwnDevice::Bridge => &self.bridge,
            OwnDevice::Vxlan => &self.vxlan,
            OwnDevice::Headroom => &self.headroom,
        }
    }
}

/// The address of the VXLAN device of the host with this underlay address.
#[must_use]
pub fn vtep_mac(underlay: Ipv4Addr) -> Mac {
    derived(0x6f, underlay)
}

/// The address of the device of that host that carries nothing.
#[must_use]
pub fn headroom_mac(underlay: Ipv4Addr) -> Mac {
    derived(0x72, underlay)
}

/// The address of the bridge of the host that is this gateway to its containers.
#[must_use]
pub fn gateway_mac(gateway: Ipv4Addr) -> Mac {
    derived(0x62, gateway)
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
            headroom_mac(address),
        ];
        assert_eq!(macs[0], [0x0a, 0x6f, 10, 42, 1, 7]);
        assert_eq!(macs[1], [0x0a, 0x62, 10, 42, 1, 7]);
        assert_eq!(macs[2], [0x0a, 0x72, 10, 42, 1, 7]);
        for mac in macs {
            assert_eq!(mac[0] & 0b11, 0b10);
        }
    }

    #[test]
    fn names_fit_the_kernel() {
        let names = DeviceNames::of_only_network();
        for device in [OwnDevice::Bridge, OwnDevice::Vxlan, OwnDevice::Headroom] {
            // IFNAMSIZ counts the terminating NUL.
            assert!(names.of(device).len() < 16);
        }
    }
}
