//! What the daemon tells the programs.

use crate::plain_data;

/// Constants of one load of the programs, in their read-only data. A change of any of them loads
/// the programs anew and replaces them in their links atomically.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constants {
    /// Underlay address of this host, network byte order.
    pub host: u32,
    /// Ifindex of the underlay device.
    pub underlay: u32,
    /// Network of all containers, network byte order.
    pub network: u32,
    /// Its mask, network byte order.
    pub netmask: u32,
    /// VXLAN network identifier, already in its place in the header: network byte order, shifted
    /// left by 8.
    pub vni: u32,
    /// The mark mask, see [`crate::mark::MarkField`].
    pub mark_mask: u32,
    /// Largest inner IP packet in bytes.
    pub mtu: u32,
    /// Address of the bridge, network byte order.
    pub gateway_address: u32,
    /// Room of the filter cache, in flows.
    pub flows: u32,
    /// UDP port of VXLAN, network byte order.
    pub port: u16,
    /// MAC address of this host's VTEP.
    pub vtep: [u8; 6],
    /// MAC address of the bridge: what containers send to.
    pub gateway: [u8; 6],
    /// Always zero.
    pub reserved: [u8; 2],
}

/// What changes while the programs run: one element in an array map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The current epoch. Entries of another one are dead.
    pub epoch: u32,
    /// Lease in ticks (see [`crate::flow::TICK_SHIFT`]).
    pub lease: u32,
    /// Lowest outer UDP source port, host byte order.
    pub port_min: u16,
    /// Highest outer UDP source port, host byte order.
    pub port_max: u16,
    /// Fingerprint of the [`Constants`] and rules that the cached results were learned under: a
    /// daemon that starts with another one raises the epoch.
    pub fingerprint: u32,
}

plain_data!(Constants, Settings);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_no_padding() {
        assert_eq!(size_of::<Constants>(), 9 * 4 + 2 + 6 + 6 + 2);
        assert_eq!(size_of::<Settings>(), 16);
    }
}
