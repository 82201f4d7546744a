//! The inner packet: what all four programs must know of it, and the rules that make it fit for
//! the fast path at all.

use oncache_abi::{
    checksum::{after_hop, is_right, sum_header, update},
    flow::FlowKey,
    headers::{
        FRAGMENT, IPV4_LEN, IPV4_PLAIN, TCP, TCP_ACK, TCP_LEN, TCP_STATE_FLAGS, TCP_SYN, UDP,
        UDP_LEN,
    },
    reason::Reason,
};

use crate::packet::Skb;

/// An IPv4 header without options, as it lies in the packet.
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

#[repr(C, packed(2))]
struct Ports {
    source: u16,
    destination: u16,
}

#[repr(C, packed(2))]
struct UdpHeader {
    ports: Ports,
    length: u16,
    checksum: u16,
}

#[repr(C, packed(2))]
struct TcpHeader {
    ports: Ports,
    sequence: u32,
    acknowledgement: u32,
    data_offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

/// What the programs need of an inner packet.
pub struct Inner {
    /// Source address in the low half, destination in the high one, each in network byte order.
    addresses: u64,
    /// Likewise the ports.
    ports: u32,
    pub protocol: u8,
    pub tos: u8,
    pub ttl: u8,
    /// Host byte order.
    pub total_length: u16,
    /// Length of the TCP or UDP header.
    pub transport_length: u16,
    /// SYN, FIN or RST is set, or ACK is not: conntrack calls that invalid, and rules may refuse it
    /// (net/netfilter/nf_conntrack_proto_tcp.c, `tcp_valid_flags`).
    pub changes_state: bool,
    /// It is a SYN-ACK: it changes the connection's state, and conntrack holds the connection
    /// established by it, for a packet has now passed each way
    /// (net/netfilter/nf_conntrack_core.c, `resolve_normal_ct`).
    pub accepts: bool,
}

/// Reads the IPv4 header at `offset` and refuses what no program may touch: options, and a header
/// whose checksum is wrong (the slow path drops it: net/ipv4/ip_input.c, `ip_rcv_core`).
#[inline(always)]
fn ipv4(skb: &Skb, offset: usize) -> Result<*mut Ipv4, Reason> {
    let header: *mut Ipv4 = skb.at(offset)?;
    // SAFETY: `at` has shown the header to lie within the packet; BPF loads need no alignment.
    unsafe {
        if (*header).version_ihl != IPV4_PLAIN {
            return Err(Reason::IpOptions);
        }
        check_sum(header)?;
    }
    Ok(header)
}

/// Refuses a header whose checksum is wrong.
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

/// Reads the inner packet whose IPv4 header is at `offset`.
#[inline(always)]
pub fn parse(skb: &Skb, offset: usize) -> Result<Inner, Reason> {
    let header = ipv4(skb, offset)?;
    // SAFETY: as in `ipv4`.
    let ip = unsafe { *header };
    if u16::from_be(ip.fragment) & FRAGMENT != 0 {
        return Err(Reason::Fragment);
    }
    let total_length = u16::from_be(ip.total_length);
    // A packet longer or shorter than it says is trimmed or dropped by the slow path.
    if u32::from(total_length) + offset as u32 != skb.len() {
        return Err(Reason::BadHeader);
    }
    let payload = u32::from(total_length).wrapping_sub(IPV4_LEN as u32);
    let (ports, transport_length, tcp_flags) = match ip.protocol {
        UDP => {
            let udp: *mut UdpHeader = skb.at(offset + IPV4_LEN)?;
            // SAFETY: as in `ipv4`.
            unsafe {
                if u32::from(u16::from_be((*udp).length)) != payload {
                    return Err(Reason::BadHeader);
                }
                (&raw const (*udp).ports, UDP_LEN as u16, TCP_ACK)
            }
        }
        TCP => {
            let tcp: *mut TcpHeader = skb.at(offset + IPV4_LEN)?;
            // SAFETY: as in `ipv4`.
            unsafe {
                let length = u16::from((*tcp).data_offset >> 4) * 4;
                if length < TCP_LEN as u16 || u32::from(length) > payload {
                    return Err(Reason::BadHeader);
                }
                (
                    &raw const (*tcp).ports,
                    length,
                    (*tcp).flags & (TCP_STATE_FLAGS | TCP_ACK),
                )
            }
        }
        _ => return Err(Reason::OtherProtocol),
    };
    // SAFETY: `ports` is the start of a header that lies within the packet, and the addresses are
    // side by side in theirs; BPF loads need no alignment.
    let (addresses, ports) = unsafe {
        (
            *(&raw const (*header).source).cast::<u64>(),
            *ports.cast::<u32>(),
        )
    };
    Ok(Inner {
        addresses,
        ports,
        protocol: ip.protocol,
        tos: ip.tos,
        ttl: ip.ttl,
        total_length,
        transport_length,
        changes_state: tcp_flags != TCP_ACK,
        accepts: tcp_flags == TCP_SYN | TCP_ACK,
    })
}

impl Inner {
    /// Whether there is anything behind the TCP or UDP header.
    #[inline(always)]
    pub const fn has_payload(&self) -> bool {
        self.total_length > IPV4_LEN as u16 + self.transport_length
    }

    /// The flow's key where the sender is the local container.
    #[inline(always)]
    pub fn key_from_local(&self) -> FlowKey {
        key(self.addresses, self.ports, self.protocol)
    }

    /// The flow's key where the receiver is the local container.
    #[inline(always)]
    pub fn key_to_local(&self) -> FlowKey {
        key(
            self.addresses.rotate_left(32),
            self.ports.rotate_left(16),
            self.protocol,
        )
    }

    /// Source address, network byte order.
    #[inline(always)]
    pub const fn source(&self) -> u32 {
        self.addresses as u32
    }

    /// Destination address, network byte order.
    #[inline(always)]
    pub const fn destination(&self) -> u32 {
        (self.addresses >> 32) as u32
    }

    /// Length of the packet, or of the largest segment of the aggregate, as an IP packet
    /// (net/ipv4/ip_forward.c, `ip_exceeds_mtu`).
    #[inline(always)]
    pub fn segment_length(&self, skb: &Skb) -> u32 {
        let segment = skb.gso_size();
        if segment == 0 {
            u32::from(self.total_length)
        } else {
            IPV4_LEN as u32 + u32::from(self.transport_length) + segment
        }
    }

    /// Whether the packet, or each segment of the aggregate, fits `mtu`.
    #[inline(always)]
    pub fn fits(&self, skb: &Skb, mtu: u32) -> bool {
        self.segment_length(skb) <= mtu
    }
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

/// Does to the packet's header what a router does: lowers the TTL by one; and writes the TOS, if it is
/// another. Checksum included (include/net/ip.h, `ip_decrease_ttl`; include/net/inet_ecn.h,
/// `IP_ECN_set_ce`).
///
/// # Safety
///
/// `header` is the packet's IPv4 header, within the packet. BPF needs no alignment.
#[inline(always)]
pub unsafe fn forward(header: *mut Ipv4, inner: &Inner, tos: u8) {
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
