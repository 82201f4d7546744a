//! The egress and ingress caches: where a container lives and which headers lead there.

use crate::plain_data;

/// Bytes that encapsulation puts before the inner IP packet: outer Ethernet, IPv4, UDP, VXLAN and
/// inner Ethernet.
pub const HEADER_LEN: usize = 64;

/// Egress cache, first level: the host a container address was last seen behind, in one word.
///
/// | bits | meaning |
/// | --- | --- |
/// | 0-31 | host (underlay) address, network byte order as read from the packet |
/// | 32-47 | low 16 bits of the epoch it was learned in |
/// | 48-63 | tag of the container address |
///
/// One word and a tag for the same reasons as [`crate::flow::FilterWord`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostWord(pub u64);

impl HostWord {
    /// The word for `container` behind `host`, learned in `epoch`.
    #[inline(always)]
    pub const fn new(container: u32, host: u32, epoch: u32) -> Self {
        Self(host as u64 | ((epoch as u64 & 0xffff) << 32) | (Self::tag(container) << 48))
    }

    const fn tag(container: u32) -> u64 {
        ((container ^ (container >> 16)) & 0xffff) as u64
    }

    /// The host, if the word was written for `container` in `epoch`.
    #[inline(always)]
    pub const fn host(self, container: u32, epoch: u32) -> Option<u32> {
        let expected = Self::new(container, 0, epoch).0;
        if self.0 & !0xffff_ffff == expected {
            Some(self.0 as u32)
        } else {
            None
        }
    }

    /// The host whatever the epoch, for listings.
    pub const fn address(self) -> u32 {
        self.0 as u32
    }

    /// Low 16 bits of the epoch the word was learned in.
    pub const fn epoch(self) -> u16 {
        (self.0 >> 32) as u16
    }
}

/// Egress cache, second level: the outer headers that lead to a host.
///
/// The daemon makes one entry for each configured peer, with `learned` zero, and takes it away
/// with the peer; `egress_init` replaces the value (never makes one). So the map's keys are the
/// set of peers, which `ingress` checks senders against. The map allocates elements singly
/// (`BPF_F_NO_PREALLOC`): a replaced element stays intact for its readers until they are done.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostHeaders {
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

impl HostHeaders {
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

/// A MAC address and the epoch it was learned in, in one word.
///
/// Bits 0-47 hold the address's bytes in the order in which they stand in the frame (first byte
/// lowest), bits 48-63 the epoch's low 16 bits.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacWord(pub u64);

impl MacWord {
    /// The word for `mac` (frame byte order) learned in `epoch`.
    #[inline(always)]
    pub const fn new(mac: [u8; 6], epoch: u32) -> Self {
        let mut word = (epoch as u64 & 0xffff) << 48;
        word |= mac[0] as u64 | (mac[1] as u64) << 8 | (mac[2] as u64) << 16;
        word |= (mac[3] as u64) << 24 | (mac[4] as u64) << 32 | (mac[5] as u64) << 40;
        Self(word)
    }

    /// Whether the word was learned in `epoch`. An unlearned word (all zero) never was: its address
    /// is zero, which is no station's.
    #[inline(always)]
    pub const fn is_current(self, epoch: u32) -> bool {
        self.0 >> 48 == epoch as u64 & 0xffff && self.bits() != 0
    }

    /// The address in the low 48 bits, first byte lowest.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0 & 0xffff_ffff_ffff
    }

    /// The address, in frame byte order.
    #[inline(always)]
    pub const fn mac(self) -> [u8; 6] {
        let b = self.0.to_le_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }
}

/// Ingress cache: how a packet reaches a container of this host.
///
/// The daemon makes and removes entries and alone writes `ifindex` and `withheld`; `ingress_init` writes the two
/// words, each by one store into the element it looked up. When the daemon replaces an element
/// (`BPF_F_NO_PREALLOC`), a store still under way lands in the old one and is lost with it: what
/// was learned for a former holder of the address can't reach the entry of the next.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalContainer {
    /// Host-side device of the container.
    pub ifindex: u32,
    /// Not zero: nothing is learned of its flows, which then all take the slow path. The daemon sets it
    /// first and raises the epoch after.
    pub withheld: u32,
    /// The container's own MAC address; zero until learned.
    pub destination: MacWord,
    /// The MAC address of the bridge, as the container sees it; zero until learned.
    pub source: MacWord,
}

impl LocalContainer {
    /// What the daemon writes for a container that no packet has reached yet.
    pub const fn unlearned(ifindex: u32) -> Self {
        Self {
            ifindex,
            withheld: 0,
            destination: MacWord(0),
            source: MacWord(0),
        }
    }

    /// The same with nothing learned.
    #[must_use]
    pub const fn forgotten(self) -> Self {
        Self {
            withheld: self.withheld,
            ..Self::unlearned(self.ifindex)
        }
    }
}

plain_data!(HostWord, HostHeaders, MacWord, LocalContainer);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_no_padding() {
        assert_eq!(size_of::<HostHeaders>(), HEADER_LEN + 16);
        assert_eq!(size_of::<LocalContainer>(), 24);
    }

    #[test]
    fn host_word_is_bound_to_container_and_epoch() {
        let word = HostWord::new(0x0302_2a0a, 0x0c32_a8c0, 9);
        assert_eq!(word.host(0x0302_2a0a, 9), Some(0x0c32_a8c0));
        assert_eq!(word.host(0x0402_2a0a, 9), None);
        assert_eq!(word.host(0x0302_2a0a, 10), None);
        assert_eq!(word.address(), 0x0c32_a8c0);
        assert_eq!(word.epoch(), 9);
    }

    #[test]
    fn mac_word_round_trips_and_knows_its_epoch() {
        let mac = [0x0a, 0x63, 10, 42, 1, 2];
        let word = MacWord::new(mac, 0x1_ffff);
        assert_eq!(word.mac(), mac);
        assert!(word.is_current(0xffff));
        assert!(!word.is_current(0xfffe));
    }

    #[test]
    fn unlearned_is_never_current() {
        assert!(!MacWord(0).is_current(0));
        assert_eq!(LocalContainer::unlearned(3).destination, MacWord(0));
    }
}
