//! The outer headers of an encapsulated packet.

use oncache_abi::{
    cache::HEADER_LEN,
    headers::{ETH_LEN, FRAGMENT, IPV4_LEN, IPV4_PLAIN, TCP_LEN, UDP, UDP_LEN, VXLAN_FLAGS},
    reason::Reason,
};

use crate::{
    inner::{self, Ipv4},
    maps::constant,
    packet::{Skb, mac_at},
};

/// Bytes that the programs read of an encapsulated packet.
const READ_LEN: u32 = (HEADER_LEN + IPV4_LEN + TCP_LEN) as u32;

/// UDP, VXLAN and inner Ethernet headers, as they lie in the packet.
#[repr(C, packed(2))]
#[derive(Clone, Copy)]
struct Tunnel {
    source_port: u16,
    port: u16,
    length: u16,
    checksum: u16,
    flags: [u8; 4],
    vni: u32,
    inner_destination: [u8; 6],
    inner_source: [u8; 6],
    inner_ethertype: u16,
}

/// What the programs need of the outer headers. All as in the packet: network byte order.
pub struct Outer {
    pub source: u32,
    pub destination: u32,
    pub tos: u8,
    pub checksum: u16,
    /// The VNI in its place, shifted left by 8; the reserved byte below it is zero.
    pub vni: u32,
    /// MAC addresses of the inner frame, see `packet::mac_at`.
    pub inner_destination: u64,
    pub inner_source: u64,
    pub inner_ethertype: u16,
}

/// Reads the outer headers of a VXLAN packet of our UDP port whose lengths are true.
///
/// `NotOverlay` for everything that is not VXLAN on our port between whichever hosts.
#[inline(always)]
pub fn parse(skb: &Skb) -> Result<Outer, Reason> {
    // Other traffic of the NIC leaves by the first test, before anything is pulled or summed.
    if !is_to_port(skb)? {
        return Err(Reason::NotOverlay);
    }
    skb.ensure_linear(READ_LEN);
    let header = inner::ipv4(skb, ETH_LEN)?;
    let tunnel: *mut Tunnel = skb.at(ETH_LEN + IPV4_LEN)?;
    // SAFETY: `at` has shown both headers to lie within the packet.
    let (ip, inner_destination, inner_source) = unsafe {
        (
            *header,
            mac_at((&raw const (*tunnel).inner_destination).cast()),
            mac_at((&raw const (*tunnel).inner_source).cast()),
        )
    };
    // SAFETY: likewise.
    let tunnel = unsafe { *tunnel };
    if u16::from_be(ip.fragment) & FRAGMENT != 0 {
        return Err(Reason::Fragment);
    }
    let total_length = u32::from(u16::from_be(ip.total_length));
    if total_length + ETH_LEN as u32 != skb.len()
        || u32::from(u16::from_be(tunnel.length)) + IPV4_LEN as u32 != total_length
        || usize::from(u16::from_be(tunnel.length)) < UDP_LEN
    {
        return Err(Reason::BadHeader);
    }
    if tunnel.flags != VXLAN_FLAGS {
        return Err(Reason::OtherVni);
    }
    Ok(Outer {
        source: ip.source,
        destination: ip.destination,
        tos: ip.tos,
        checksum: tunnel.checksum,
        vni: tunnel.vni,
        inner_destination,
        inner_source,
        inner_ethertype: tunnel.inner_ethertype,
    })
}

/// Whether the packet is UDP to our port, in IPv4 without options.
#[inline(always)]
fn is_to_port(skb: &Skb) -> Result<bool, Reason> {
    let header: *mut Ipv4 = skb.at(ETH_LEN).map_err(|_| Reason::NotOverlay)?;
    let ports: *mut [u16; 2] = skb.at(ETH_LEN + IPV4_LEN).map_err(|_| Reason::NotOverlay)?;
    // SAFETY: `at` has shown both to lie within the packet; (of `constant!`) see `maps::volatile`.
    unsafe {
        Ok((*header).protocol == UDP
            && (*header).version_ihl == IPV4_PLAIN
            && (*ports)[1] == constant!(port))
    }
}
