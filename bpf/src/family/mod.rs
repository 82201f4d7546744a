//! Address families of inner packets: all that the programs do with an IP header, its addresses and what the daemon
//! has told of them. The programs are generic over it, and there is one: nothing is decided while they run.

mod v4;

use oncache_abi::{container::LocalContainer, flow::FlowKey, reason::Reason};

pub use v4::{Ipv4, V4, check_sum};

use crate::{inner::Inner, packet::Skb};

/// An address family.
pub trait Family: Sized {
    /// Length of a header that the programs touch: one without options.
    const LEN: usize;
    /// EtherType, host byte order.
    const ETHERTYPE: u16;
    /// Source and destination.
    type Addresses: Copy;

    /// Reads the header at `offset` and refuses what no program may touch: options, fragments, a header whose
    /// checksum is wrong.
    fn read(skb: &Skb, offset: usize) -> Result<Header<Self>, Reason>;

    /// The flow's key where the sender is the local container. `ports`: source in the low half, destination in the
    /// high one, in network byte order.
    fn key_from_local(addresses: Self::Addresses, ports: u32, protocol: u8) -> FlowKey;

    /// The flow's key where the receiver is the local container.
    fn key_to_local(addresses: Self::Addresses, ports: u32, protocol: u8) -> FlowKey;

    /// The sender, if it is a container of this host. The element stays its key's until the program is done.
    fn sender(addresses: Self::Addresses) -> Option<*mut LocalContainer>;

    /// Likewise the receiver.
    fn receiver(addresses: Self::Addresses) -> Option<*mut LocalContainer>;

    /// Whether the destination is of the containers' network.
    fn is_to_network(addresses: Self::Addresses) -> bool;

    /// Whether the destination is the bridge.
    fn is_to_gateway(addresses: Self::Addresses) -> bool;

    /// Does to the packet's header what a router does: lowers the TTL by one; and writes the TOS, if it is another.
    ///
    /// # Safety
    ///
    /// `header` is the header that `inner` was read from, within the packet. BPF needs no alignment.
    unsafe fn forward(header: *mut u8, inner: &Inner<Self>, tos: u8);
}

/// What the programs need of an IP header.
pub struct Header<F: Family> {
    pub addresses: F::Addresses,
    pub protocol: u8,
    pub tos: u8,
    pub ttl: u8,
    /// Length of the packet with this header.
    pub total_length: u16,
}
