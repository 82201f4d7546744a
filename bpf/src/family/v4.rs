//! IPv4 (RFC 791), without options.

use oncache_abi::{
    checksum::{after_hop, is_right, sum_header, update},
    container::LocalContainer,
    flow::FlowKey,
    headers::{ETHERTYPE_IPV4, FRAGMENT, IPV4_LEN, IPV4_PLAIN},
    reason::Reason,
};

use super::{Family, Header};
use crate::{
    inner::Inner,
    maps::{CONTAINERS, constant},
    packet::Skb,
};

/// A header without options, as it lies in the packet.
#[repr(C, packed(2))]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}

/// Refuses a header whose checksum is wrong: the slow path drops it (net/ipv4/ip_input.c, `ip_rcv_core`).
///
/// # Safety
///
/// `header` is an IPv4 header without options within the packet.
#[inline(always)]
pub unsafe fn check_sum(header: *const Ipv4) -> Result<(), Reason> {
    // SAFETY: the caller's; BPF loads need no alignment.
    if is_right(sum_header(unsafe { &*header.cast::<[u32; 5]>() })) {
        Ok(())
    } else {
        Err(Reason::BadHeader)
    }
}

/// IPv4.
pub struct V4;

impl Family for V4 {
    const LEN: usize = IPV4_LEN;
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    /// Source address in the low half, destination in the high one, each in network byte order.
    type Addresses = u64;

    #[inline(always)]
    fn read(skb: &Skb, offset: usize) -> Result<Header<Self>, Reason> {
        let header: *mut Ipv4 = skb.at(offset)?;
        // SAFETY: `at` has shown the header to lie within the packet, and the addresses are side by side in it; BPF
        // loads need no alignment.
        unsafe {
            if (*header).version_ihl != IPV4_PLAIN {
                return Err(Reason::IpOptions);
            }
            check_sum(header)?;
            if u16::from_be((*header).fragment) & FRAGMENT != 0 {
                return Err(Reason::Fragment);
            }
            Ok(Header {
                addresses: *(&raw const (*header).source).cast::<u64>(),
                protocol: (*header).protocol,
                tos: (*header).tos,
                ttl: (*header).ttl,
                total_length: u16::from_be((*header).total_length),
            })
        }
    }

    #[inline(always)]
    fn key_from_local(addresses: u64, ports: u32, protocol: u8) -> FlowKey {
        key(addresses, ports, protocol)
    }

    #[inline(always)]
    fn key_to_local(addresses: u64, ports: u32, protocol: u8) -> FlowKey {
        key(addresses.rotate_left(32), ports.rotate_left(16), protocol)
    }

    #[inline(always)]
    fn sender(addresses: u64) -> Option<*mut LocalContainer> {
        CONTAINERS.get_ptr_mut(&(addresses as u32))
    }

    #[inline(always)]
    fn receiver(addresses: u64) -> Option<*mut LocalContainer> {
        CONTAINERS.get_ptr_mut(&destination(addresses))
    }

    #[inline(always)]
    fn is_to_network(addresses: u64) -> bool {
        // SAFETY (of `constant!`): see `maps::volatile`.
        let (network, netmask) = unsafe { (constant!(network), constant!(netmask)) };
        destination(addresses) & netmask == network
    }

    #[inline(always)]
    fn is_to_gateway(addresses: u64) -> bool {
        // SAFETY (of `constant!`): see `maps::volatile`.
        destination(addresses) == unsafe { constant!(gateway_address) }
    }

    /// Checksum included (include/net/ip.h, `ip_decrease_ttl`; include/net/inet_ecn.h, `IP_ECN_set_ce`).
    #[inline(always)]
    unsafe fn forward(header: *mut u8, inner: &Inner<Self>, tos: u8) {
        let header: *mut Ipv4 = header.cast();
        // SAFETY: the caller's.
        unsafe {
            (*header).ttl = inner.ttl - 1;
            let mut checksum = after_hop((*header).checksum);
            if tos != inner.tos {
                // A 16-bit word of the checksum.
                let word = |tos| u16::from_ne_bytes([IPV4_PLAIN, tos]);
                checksum = update(checksum, word(inner.tos), word(tos));
                (*header).tos = tos;
            }
            (*header).checksum = checksum;
        }
    }
}

#[inline(always)]
const fn destination(addresses: u64) -> u32 {
    (addresses >> 32) as u32
}

/// A flow's key from the packet's own words, in two stores. Stored field by field and then hashed and
/// compared by the kernel in wider words, each of those would wait for the narrow stores to reach the
/// cache (docs/experiments.md).
#[inline(always)]
fn key(addresses: u64, ports: u32, protocol: u8) -> FlowKey {
    let words = [addresses, u64::from(ports) | u64::from(protocol) << 32];
    // SAFETY: a key is sixteen bytes of integers; on a little-endian machine, which is all the
    // programs are built for, the words hold its fields in order and zeros behind them.
    unsafe { core::mem::transmute::<[u64; 2], FlowKey>(words) }
}
