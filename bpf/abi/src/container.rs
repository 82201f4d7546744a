//! Containers of this host: where each is, and its MAC address.

use crate::plain_data;

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

/// An entry of `CONTAINERS`: how a packet reaches a container of this host.
///
/// The daemon makes and removes entries and alone writes `ifindex` and `withheld`; `ingress_init` writes the word, by
/// one store into the element it looked up. When the daemon replaces an element
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
    pub mac: MacWord,
}

impl LocalContainer {
    /// What the daemon writes for a container that no packet has reached yet.
    pub const fn unlearned(ifindex: u32) -> Self {
        Self {
            ifindex,
            withheld: 0,
            mac: MacWord(0),
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

plain_data!(MacWord, LocalContainer);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_no_padding() {
        assert_eq!(size_of::<LocalContainer>(), 16);
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
        assert_eq!(LocalContainer::unlearned(3).mac, MacWord(0));
    }
}
