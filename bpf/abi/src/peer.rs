//! Peers: what entries know them by, and which headers lead to them.

use crate::{plain_data, vxlan::HEADER_LEN};

/// What a peer is known by in flows' entries, and the key of its own entry. Never zero.
///
/// A host with an IPv4 underlay address has that address as its number, in network byte order as it stands in the
/// packet: it is at hand where the outer headers were read, without a look-up. What the number means is known to the
/// tunnel of the programs (`Tunnel::sender`, `Tunnel::receiver`) and to who enters the peers, to no entry.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerNumber(pub u32);

/// An entry of `PEERS`: the outer headers that lead to a peer.
///
/// The daemon makes one for each configured peer, with nothing learned, and takes it away with the peer; `egress_init`
/// replaces the value (never makes one). So the map's keys are the set of peers, which `ingress` checks senders against.
/// The map allocates elements singly (`BPF_F_NO_PREALLOC`): a replaced element stays intact for its readers until they
/// are done.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHeaders {
    /// The template, [`HEADER_LEN`] bytes as they stand in the frame. Zero in it: IPv4 TOS, total
    /// length, ID and checksum, UDP source port, length and checksum.
    pub template: [u64; HEADER_LEN / 8],
    /// Underlay device the template was learned on; zero until learned.
    pub ifindex: u32,
    /// Epoch it was learned in.
    pub epoch: u32,
    /// The template's IPv4 header summed and folded, see [`crate::checksum`].
    pub ip_sum: u32,
    /// Always zero.
    pub reserved: u32,
}

impl PeerHeaders {
    /// What the daemon writes for a peer that no packet has gone to yet.
    pub const UNLEARNED: Self = Self {
        template: [0; HEADER_LEN / 8],
        ifindex: 0,
        epoch: 0,
        ip_sum: 0,
        reserved: 0,
    };

    /// Whether a packet can be sent by the template in `epoch`.
    #[inline(always)]
    pub const fn is_current(&self, epoch: u32) -> bool {
        self.ifindex != 0 && self.epoch == epoch
    }
}

plain_data!(PeerNumber, PeerHeaders);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_no_padding() {
        assert_eq!(size_of::<PeerHeaders>(), HEADER_LEN + 16);
    }
}
