//! Tunnels: the headers that stand before an inner packet on the wire. The programs are generic over the tunnel, and
//! there is one: nothing is decided while they run.

mod vxlan;

use oncache_abi::{
    headers::ETH_LEN,
    peer::{PeerHeaders, PeerNumber},
    reason::Reason,
};

pub use vxlan::Vxlan;

use crate::{family::Family, packet::Skb};

/// The outer headers of a packet, inner Ethernet header included, for as long as nothing moves its bytes (the
/// verifier sees to that).
pub trait Tunnel: Copy {
    /// Bytes before the inner packet.
    const HEADER_LEN: usize;
    /// Bytes that encapsulation adds to a frame.
    const OVERHEAD: usize = Self::HEADER_LEN - ETH_LEN;
    /// What `bpf_skb_adjust_room` has to be told of the headers that it makes room for.
    const ENCAP_FLAGS: u64;

    /// Reads the outer headers of a packet of this tunnel, between whichever hosts, whose lengths are true, and which
    /// holds a packet of the family `F`, as far as it tells before [`Tunnel::check_sent`] or
    /// [`Tunnel::check_received`].
    fn parse<F: Family>(skb: &Skb) -> Result<Self, Reason>;

    /// Refuses what is not of our network, or not from this host.
    fn check_sent<F: Family>(self) -> Result<(), Reason>;

    /// What the slow path's tunnel device would check, and what it leaves to others.
    fn check_received<F: Family>(self, skb: &Skb) -> Result<(), Reason>;

    /// The peer that the packet comes from.
    fn sender(self) -> PeerNumber;

    /// The peer that it goes to.
    fn receiver(self) -> PeerNumber;

    /// Outer TOS.
    fn tos(self) -> u8;

    /// Whether there is a checksum over the whole packet, which nobody has verified yet.
    fn has_checksum(self) -> bool;

    /// UDP source port, host byte order.
    fn source_port(self) -> u16;

    /// The packet's headers with all that differs from packet to packet set to zero.
    fn template(skb: &Skb) -> Result<PeerHeaders, Reason>;

    /// Writes the learned headers at `frame`, where there is room for them.
    ///
    /// # Safety
    ///
    /// [`Tunnel::HEADER_LEN`] bytes lie within the packet. BPF needs no alignment.
    unsafe fn write(frame: *mut u8, headers: &PeerHeaders, varying: &Varying);
}

/// What differs from packet to packet in the headers to one peer.
pub struct Varying {
    /// TOS of the inner packet.
    pub inner_tos: u8,
    /// Length of the inner packet, from its IP header on.
    pub inner_length: u16,
    /// ID of the outer packet, where its family has one in every packet.
    pub id: u16,
    /// Outer UDP source port, host byte order.
    pub source_port: u16,
}
