//! VXLAN over IPv4 (RFC 7348).

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO,
};
use oncache_abi::{
    checksum::{fold, sum_header},
    headers::{
        ETH_LEN, ETHERTYPE_IPV4, FRAGMENT, IPV4_LEN, IPV4_PLAIN, TCP_LEN, UDP, UDP_LEN, outer_tos,
    },
    peer::{PeerHeaders, PeerNumber},
    reason::Reason,
    vxlan::{FLAGS, HEADER_LEN, OVERHEAD, varying},
};

use super::{Tunnel, Varying};
use crate::{
    family::{Family, Ipv4, check_sum},
    maps::{constant, mac_constant},
    packet::{Skb, mac_at},
};

/// Bytes that the programs read of a packet that holds one of the family `F`.
const fn read_len<F: Family>() -> usize {
    HEADER_LEN + F::LEN + TCP_LEN
}

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

const _: () = assert!(size_of::<Frame>() == HEADER_LEN);

/// The outer headers of a packet. All in network byte order, as in the packet.
#[derive(Clone, Copy)]
pub struct Vxlan {
    /// Invariant: the whole frame lies within the packet.
    frame: *const Frame,
}

/// One field, read where it lies: copied, most of the headers would go to the stack and back.
macro_rules! field {
    ($outer:ident, $($place:tt)+) => {
        // SAFETY: the type's invariant; BPF loads need no alignment.
        unsafe { (*$outer.frame).$($place)+ }
    };
}

impl Tunnel for Vxlan {
    const HEADER_LEN: usize = HEADER_LEN;
    /// Keep an aggregate an aggregate: its segment size stays, and the kernel learns of the tunnel
    /// headers that every segment needs (net/core/filter.c, `bpf_skb_net_grow`).
    const ENCAP_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
        | (ETH_LEN as u64) << 56;

    /// `NotOverlay` for everything that is not VXLAN on our UDP port between whichever hosts.
    #[inline(always)]
    fn parse<F: Family>(skb: &Skb) -> Result<Self, Reason> {
        if !skb.is_plain(ETHERTYPE_IPV4) {
            return Err(Reason::NotIpv4);
        }
        let frame = match skb.bytes(0, read_len::<F>()) {
            Ok(bytes) => bytes.cast::<Frame>(),
            Err(_) => pulled::<F>(skb)?,
        };
        // SAFETY: `bytes` has shown the frame to lie within the packet; (of `constant!`) see `maps::volatile`.
        unsafe {
            let ip = &raw const (*frame).ip;
            // Other traffic of the NIC leaves by the first test, before anything is summed.
            if !is_to_port(ip, (*frame).port) {
                return Err(Reason::NotOverlay);
            }
            check_sum(ip)?;
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
            if (*frame).flags != FLAGS {
                return Err(Reason::OtherVni);
            }
        }
        Ok(Self { frame })
    }

    #[inline(always)]
    fn check_sent<F: Family>(self) -> Result<(), Reason> {
        // SAFETY (of `constant!`): see `maps::volatile`.
        let (vni, host) = unsafe { (constant!(vni), constant!(host)) };
        if field!(self, ip.source) != host || !self.holds::<F>() {
            return Err(Reason::NotOverlay);
        }
        if self.has_checksum() {
            return Err(Reason::OuterChecksum);
        }
        if field!(self, vni) != vni {
            return Err(Reason::OtherVni);
        }
        Ok(())
    }

    #[inline(always)]
    fn check_received<F: Family>(self, skb: &Skb) -> Result<(), Reason> {
        // SAFETY (of `constant!`): see `maps::volatile`.
        let (host, vni, vtep) = unsafe { (constant!(host), constant!(vni), mac_constant!(vtep)) };
        // A packet for another host that came by our MAC address is routed on, not decapsulated.
        if !skb.is_to_host() || field!(self, ip.destination) != host {
            return Err(Reason::NotOverlay);
        }
        if field!(self, vni) != vni {
            return Err(Reason::OtherVni);
        }
        // SAFETY: the type's invariant.
        let (destination, source) = unsafe {
            (
                mac_at((&raw const (*self.frame).inner_destination).cast()),
                mac_at((&raw const (*self.frame).inner_source).cast()),
            )
        };
        // The VXLAN device drops what seems to come from itself (drivers/net/vxlan/vxlan_core.c,
        // `vxlan_set_mac`).
        if destination != vtep || source == vtep {
            return Err(Reason::NotVtep);
        }
        if !self.holds::<F>() {
            return Err(Reason::NotIpv4);
        }
        Ok(())
    }

    #[inline(always)]
    fn sender(self) -> PeerNumber {
        PeerNumber(field!(self, ip.source))
    }

    #[inline(always)]
    fn receiver(self) -> PeerNumber {
        PeerNumber(field!(self, ip.destination))
    }

    #[inline(always)]
    fn tos(self) -> u8 {
        field!(self, ip.tos)
    }

    #[inline(always)]
    fn has_checksum(self) -> bool {
        field!(self, checksum) != 0
    }

    #[inline(always)]
    fn source_port(self) -> u16 {
        u16::from_be(field!(self, source_port))
    }

    #[inline(always)]
    fn template(skb: &Skb) -> Result<PeerHeaders, Reason> {
        let frame: *mut [u64; HEADER_LEN / 8] = skb.at(0)?;
        let mut headers = PeerHeaders::UNLEARNED;
        // SAFETY: the whole template lies within the packet, and all that is written within its copy.
        unsafe {
            headers.template = *frame;
            let bytes = (&raw mut headers.template).cast::<u8>();
            *bytes.add(varying::TOS) = 0;
            *bytes.add(varying::TOTAL_LENGTH).cast::<u16>() = 0;
            *bytes.add(varying::ID).cast::<u16>() = 0;
            *bytes.add(varying::CHECKSUM).cast::<u16>() = 0;
            *bytes.add(varying::SOURCE_PORT).cast::<u16>() = 0;
            *bytes.add(varying::UDP_LENGTH).cast::<u16>() = 0;
            headers.ip_sum = u32::from(fold(sum_header(&*bytes.add(ETH_LEN).cast::<[u32; 5]>())));
        }
        Ok(headers)
    }

    #[inline(always)]
    unsafe fn write(frame: *mut u8, headers: &PeerHeaders, varying: &Varying) {
        let tos = outer_tos(varying.inner_tos);
        let total_length = (varying.inner_length + OVERHEAD as u16).to_be();
        let sum = u64::from(headers.ip_sum)
            + u64::from(u16::from_ne_bytes([0, tos]))
            + u64::from(total_length)
            + u64::from(varying.id);
        let port = varying.source_port.to_be();
        let udp_length = (varying.inner_length + (OVERHEAD - IPV4_LEN) as u16).to_be();
        // SAFETY: the caller's.
        unsafe {
            *frame.cast::<[u64; HEADER_LEN / 8]>() = headers.template;
            *frame.add(varying::TOS) = tos;
            *frame.add(varying::TOTAL_LENGTH).cast::<u16>() = total_length;
            *frame.add(varying::ID).cast::<u16>() = varying.id;
            *frame.add(varying::CHECKSUM).cast::<u16>() = !fold(sum);
            *frame.add(varying::SOURCE_PORT).cast::<u16>() = port;
            *frame.add(varying::UDP_LENGTH).cast::<u16>() = udp_length;
        }
    }
}

impl Vxlan {
    /// Whether the inner frame says that its packet is of the family.
    #[inline(always)]
    fn holds<F: Family>(self) -> bool {
        field!(self, inner_ethertype) == F::ETHERTYPE.to_be()
    }
}

/// The frame of a packet that is short, or whose headers the driver has left in pages: those are made
/// linear, if it is one for us.
#[inline(always)]
fn pulled<F: Family>(skb: &Skb) -> Result<*mut Frame, Reason> {
    let header: *mut Ipv4 = skb.at(ETH_LEN).map_err(|_| Reason::NotOverlay)?;
    let ports: *mut [u16; 2] = skb.at(ETH_LEN + IPV4_LEN).map_err(|_| Reason::NotOverlay)?;
    // SAFETY: `at` has shown both to lie within the packet.
    if !unsafe { is_to_port(header, (*ports)[1]) } {
        return Err(Reason::NotOverlay);
    }
    skb.ensure_linear(read_len::<F>() as u32);
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
