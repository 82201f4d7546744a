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
const READ_LEN: usize = HEADER_LEN + IPV4_LEN + TCP_LEN;

/// The outer headers and the inner Ethernet header, as they lie in the packet.
#[repr(C, packed(2))]
struct Frame {
    ethernet: [u8; ETH_LEN],
    ip: Ipv4,
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

/// The outer headers of a packet, for as long as nothing moves its bytes (the verifier sees to that). All in
/// network byte order, as in the packet.
#[derive(Clone, Copy)]
pub struct Outer {
    /// Invariant: the whole frame lies within the packet.
    frame: *const Frame,
}

/// One field, read where it lies: copied, most of the headers would go to the stack and back.
macro_rules! field {
    ($(#[$doc:meta])* $name:ident: $type:ty = $($place:tt)+) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(self) -> $type {
            // SAFETY: the type's invariant; BPF loads need no alignment.
            unsafe { (*self.frame).$($place)+ }
        }
    };
}

impl Outer {
    field!(source: u32 = ip.source);
    field!(destination: u32 = ip.destination);
    field!(tos: u8 = ip.tos);
    field!(checksum: u16 = checksum);
    field!(
        /// The VNI in its place, shifted left by 8; the reserved byte below it is zero.
        vni: u32 = vni
    );
    field!(inner_ethertype: u16 = inner_ethertype);

    /// UDP source port, host byte order.
    #[inline(always)]
    pub fn source_port(self) -> u16 {
        // SAFETY: as in `field!`.
        u16::from_be(unsafe { (*self.frame).source_port })
    }

    /// Destination of the inner frame, see `packet::mac_at`.
    #[inline(always)]
    pub fn inner_destination(self) -> u64 {
        // SAFETY: as in `field!`.
        unsafe { mac_at((&raw const (*self.frame).inner_destination).cast()) }
    }

    /// Source of the inner frame, see `packet::mac_at`.
    #[inline(always)]
    pub fn inner_source(self) -> u64 {
        // SAFETY: as in `field!`.
        unsafe { mac_at((&raw const (*self.frame).inner_source).cast()) }
    }
}

/// Reads the outer headers of a VXLAN packet of our UDP port whose lengths are true.
///
/// `NotOverlay` for everything that is not VXLAN on our port between whichever hosts.
#[inline(always)]
pub fn parse(skb: &Skb) -> Result<Outer, Reason> {
    let frame = match skb.at::<[u8; READ_LEN]>(0) {
        Ok(bytes) => bytes.cast::<Frame>(),
        Err(_) => pulled(skb)?,
    };
    // SAFETY: `at` has shown the frame to lie within the packet; (of `constant!`) see `maps::volatile`.
    unsafe {
        let ip = &raw const (*frame).ip;
        // Other traffic of the NIC leaves by the first test, before anything is summed.
        if !is_to_port(ip, (*frame).port) {
            return Err(Reason::NotOverlay);
        }
        inner::check_sum(ip)?;
        if u16::from_be((*ip).fragment) & FRAGMENT != 0 {
            return Err(Reason::Fragment);
        }
        let total_length = u32::from(u16::from_be((*ip).total_length));
        let length = u32::from(u16::from_be((*frame).length));
        if total_length + ETH_LEN as u32 != skb.len()
            || length + IPV4_LEN as u32 != total_length
            || length < UDP_LEN as u32
        {
            return Err(Reason::BadHeader);
        }
        if (*frame).flags != VXLAN_FLAGS {
            return Err(Reason::OtherVni);
        }
    }
    Ok(Outer { frame })
}

/// The frame of a packet that is short, or whose headers the driver has left in pages: those are made
/// linear, if it is one for us.
#[inline(always)]
fn pulled(skb: &Skb) -> Result<*mut Frame, Reason> {
    let header: *mut Ipv4 = skb.at(ETH_LEN).map_err(|_| Reason::NotOverlay)?;
    let ports: *mut [u16; 2] = skb.at(ETH_LEN + IPV4_LEN).map_err(|_| Reason::NotOverlay)?;
    // SAFETY: `at` has shown both to lie within the packet.
    if !unsafe { is_to_port(header, (*ports)[1]) } {
        return Err(Reason::NotOverlay);
    }
    skb.ensure_linear(READ_LEN as u32);
    skb.at(0)
}

/// Whether the packet is UDP to our port, in IPv4 without options; `port` as in the packet.
///
/// # Safety
///
/// `ip` is a header within the packet.
#[inline(always)]
unsafe fn is_to_port(ip: *const Ipv4, port: u16) -> bool {
    // SAFETY: the caller's; (of `constant!`) see `maps::volatile`.
    unsafe { (*ip).protocol == UDP && (*ip).version_ihl == IPV4_PLAIN && port == constant!(port) }
}
