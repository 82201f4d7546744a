//! The inner packet: what all four programs must know of it, and the rules that make it fit for
//! the fast path at all.

use oncache_abi::{
    container::LocalContainer,
    flow::FlowKey,
    headers::{TCP, TCP_ACK, TCP_LEN, TCP_STATE_FLAGS, TCP_SYN, UDP, UDP_LEN},
    reason::Reason,
};

use crate::{family::Family, packet::Skb};

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
pub struct Inner<F: Family> {
    addresses: F::Addresses,
    /// Source port in the low half, destination port in the high one, each in network byte order.
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

/// Reads the inner packet whose IP header is at `offset`.
#[inline(always)]
pub fn parse<F: Family>(skb: &Skb, offset: usize) -> Result<Inner<F>, Reason> {
    let ip = F::read(skb, offset)?;
    // A packet longer or shorter than it says is trimmed or dropped by the slow path.
    if u32::from(ip.total_length) + offset as u32 != skb.len() {
        return Err(Reason::BadHeader);
    }
    let payload = u32::from(ip.total_length).wrapping_sub(F::LEN as u32);
    let (ports, transport_length, tcp_flags) = match ip.protocol {
        UDP => {
            let udp: *mut UdpHeader = skb.at(offset + F::LEN)?;
            // SAFETY: `at` has shown the header to lie within the packet; BPF loads need no alignment.
            unsafe {
                if u32::from(u16::from_be((*udp).length)) != payload {
                    return Err(Reason::BadHeader);
                }
                (&raw const (*udp).ports, UDP_LEN as u16, TCP_ACK)
            }
        }
        TCP => {
            let tcp: *mut TcpHeader = skb.at(offset + F::LEN)?;
            // SAFETY: as of UDP.
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
    // SAFETY: `ports` is the start of a header that lies within the packet; BPF loads need no alignment.
    let ports = unsafe { *ports.cast::<u32>() };
    Ok(Inner {
        addresses: ip.addresses,
        ports,
        protocol: ip.protocol,
        tos: ip.tos,
        ttl: ip.ttl,
        total_length: ip.total_length,
        transport_length,
        changes_state: tcp_flags != TCP_ACK,
        accepts: tcp_flags == TCP_SYN | TCP_ACK,
    })
}

impl<F: Family> Inner<F> {
    /// Whether there is anything behind the TCP or UDP header.
    #[inline(always)]
    pub const fn has_payload(&self) -> bool {
        self.total_length > F::LEN as u16 + self.transport_length
    }

    /// See [`Family::key_from_local`].
    #[inline(always)]
    pub fn key_from_local(&self) -> FlowKey {
        F::key_from_local(self.addresses, self.ports, self.protocol)
    }

    /// See [`Family::key_to_local`].
    #[inline(always)]
    pub fn key_to_local(&self) -> FlowKey {
        F::key_to_local(self.addresses, self.ports, self.protocol)
    }

    /// The sender, if it is a container of this host.
    #[inline(always)]
    pub fn sender(&self) -> Option<*mut LocalContainer> {
        F::sender(self.addresses)
    }

    /// The receiver, if it is a container of this host.
    #[inline(always)]
    pub fn receiver(&self) -> Option<*mut LocalContainer> {
        F::receiver(self.addresses)
    }

    /// Whether it is for an address of the containers' network.
    #[inline(always)]
    pub fn is_to_network(&self) -> bool {
        F::is_to_network(self.addresses)
    }

    /// Whether it is for the bridge.
    #[inline(always)]
    pub fn is_to_gateway(&self) -> bool {
        F::is_to_gateway(self.addresses)
    }

    /// Length of the packet, or of the largest segment of the aggregate, as an IP packet
    /// (net/ipv4/ip_forward.c, `ip_exceeds_mtu`).
    #[inline(always)]
    pub fn segment_length(&self, skb: &Skb) -> u32 {
        let segment = skb.gso_size();
        if segment == 0 {
            u32::from(self.total_length)
        } else {
            F::LEN as u32 + u32::from(self.transport_length) + segment
        }
    }

    /// Whether the packet, or each segment of the aggregate, fits `mtu`.
    #[inline(always)]
    pub fn fits(&self, skb: &Skb, mtu: u32) -> bool {
        self.segment_length(skb) <= mtu
    }
}
