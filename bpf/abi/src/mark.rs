//! What oncache's bits of `skb->mark` say.
//!
//! A mark is written where a packet enters the slow path and read where it leaves it. It survives
//! encapsulation and decapsulation within one network namespace and is scrubbed at the crossing
//! into another one (net/core/skbuff.c, `skb_scrub_packet`), so a container can't forge it.

use crate::settings::Settings;

/// Which program missed: bits of the field, counted from the mask's lowest bit.
pub const EGRESS_MISS: u32 = 1 << 0;
/// See [`EGRESS_MISS`].
pub const INGRESS_MISS: u32 = 1 << 1;
/// Set by the slow path's netfilter rule when conntrack holds the flow established.
pub const ESTABLISHED: u32 = 1 << 2;
/// Position of the epoch's low bits in the field.
pub const EPOCH_SHIFT: u32 = 3;
/// The least width of a mask: three flags and five bits of the epoch. An epoch that wraps in fewer
/// steps could come round while a packet waits in a queue of the slow path.
pub const MIN_WIDTH: u32 = 8;

/// What an init program makes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// The other program missed, or none: nothing to do with this one.
    NotOurs,
    /// The slow path did not find its flow established.
    NotEstablished,
    /// It missed in another epoch, or epochs follow each other too fast to tell.
    Stale,
    /// The slow path passed it by the rules of the epoch.
    Learn,
}

/// The mark field: a contiguous run of bits of `skb->mark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkField {
    mask: u32,
}

impl MarkField {
    /// The field of a mask; none if the mask is not one run of at least [`MIN_WIDTH`] bits.
    pub const fn new(mask: u32) -> Option<Self> {
        if mask == 0 {
            return None;
        }
        let run = mask >> mask.trailing_zeros();
        let contiguous = run == u32::MAX || (run & (run + 1)) == 0;
        if contiguous && run.count_ones() >= MIN_WIDTH {
            Some(Self { mask })
        } else {
            None
        }
    }

    /// The field of a mask that [`MarkField::new`] has accepted before.
    #[inline(always)]
    pub const fn trusted(mask: u32) -> Self {
        Self { mask }
    }

    #[inline(always)]
    const fn shift(self) -> u32 {
        self.mask.trailing_zeros()
    }

    #[inline(always)]
    const fn place(self, value: u32) -> u32 {
        (value << self.shift()) & self.mask
    }

    /// `mark` without oncache's bits.
    #[inline(always)]
    pub const fn clear(self, mark: u32) -> u32 {
        mark & !self.mask
    }

    /// `mark` with the miss of one program (`EGRESS_MISS` or `INGRESS_MISS`) and the epoch at which
    /// it missed; all other bits of the field are cleared.
    #[inline(always)]
    pub const fn missed(self, mark: u32, miss: u32, epoch: u32) -> u32 {
        self.clear(mark) | self.place(miss | (epoch << EPOCH_SHIFT))
    }

    /// Whether `mark` has any of oncache's bits.
    #[inline(always)]
    pub const fn is_marked(self, mark: u32) -> bool {
        mark & self.mask != 0
    }

    /// Whether the packet missed in the program that `miss` names.
    #[inline(always)]
    pub const fn has_missed(self, mark: u32, miss: u32) -> bool {
        mark & self.place(EGRESS_MISS | INGRESS_MISS) == self.place(miss)
    }

    /// Whether the slow path found the packet's flow established.
    #[inline(always)]
    pub const fn is_established(self, mark: u32) -> bool {
        mark & self.place(ESTABLISHED) != 0
    }

    /// Whether the packet missed in `epoch`, as far as the field's width tells.
    #[inline(always)]
    pub const fn is_of_epoch(self, mark: u32, epoch: u32) -> bool {
        (mark & self.mask) >> (self.shift() + EPOCH_SHIFT)
            == self.place(epoch << EPOCH_SHIFT) >> (self.shift() + EPOCH_SHIFT)
    }

    /// How many of the epoch's low bits a mark holds.
    pub const fn epoch_bits(self) -> u32 {
        self.mask.count_ones() - EPOCH_SHIFT
    }

    /// What may be learned from a packet with this `mark` by the init program whose own miss is
    /// `miss`, at tick `now`. `settings` is one reading: what is learned is of its epoch, and a
    /// later reading could be of an epoch whose rules the packet has not seen.
    #[inline(always)]
    pub const fn lesson(self, mark: u32, miss: u32, settings: &Settings, now: u64) -> Lesson {
        if !self.has_missed(mark, miss) {
            Lesson::NotOurs
        } else if !self.is_established(mark) {
            Lesson::NotEstablished
        } else if !self.is_of_epoch(mark, settings.epoch) || now < settings.learn_from {
            Lesson::Stale
        } else {
            Lesson::Learn
        }
    }

    /// The bits that say that any program missed, for the netfilter rule.
    pub const fn miss_bits(self) -> u32 {
        self.place(EGRESS_MISS | INGRESS_MISS)
    }

    /// The bit that the netfilter rule sets.
    pub const fn established_bit(self) -> u32 {
        self.place(ESTABLISHED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field() -> MarkField {
        MarkField::new(0x0fff_0000).expect("the default mask is good")
    }

    #[test]
    fn masks_must_be_one_run_of_eight_bits() {
        for bad in [0, 1, 0x7f, 0x0f0f_0000, 0x8000_0001, 0xff00_0001] {
            assert_eq!(MarkField::new(bad), None, "{bad:#x}");
        }
        for good in [0xff, 0xff00_0000, 0x0fff_0000, u32::MAX] {
            assert!(MarkField::new(good).is_some(), "{good:#x}");
        }
    }

    #[test]
    fn a_miss_keeps_foreign_bits_and_drops_old_ones_of_ours() {
        let mark = field().missed(0xffff_ffff, EGRESS_MISS, 0);
        assert_eq!(mark, 0xf001_ffff);
        assert!(!field().is_established(mark));
    }

    #[test]
    fn the_two_misses_are_told_apart() {
        let mark = field().missed(0, INGRESS_MISS, 5);
        assert!(field().has_missed(mark, INGRESS_MISS));
        assert!(!field().has_missed(mark, EGRESS_MISS));
        assert!(!field().has_missed(0, EGRESS_MISS));
        assert!(
            !field().has_missed(u32::MAX, EGRESS_MISS),
            "both bits are nobody's miss"
        );
    }

    #[test]
    fn the_epoch_is_compared_by_the_bits_that_fit() {
        let mark = field().missed(0, EGRESS_MISS, 0x1234) | field().established_bit();
        assert!(field().is_of_epoch(mark, 0x1234));
        assert!(!field().is_of_epoch(mark, 0x1235));
        // Nine bits are left for the epoch in the default mask.
        assert!(field().is_of_epoch(mark, 0x1234 + 512));
        assert!(!field().is_of_epoch(mark, 0x1234 + 256));
    }

    #[test]
    fn a_lesson_takes_the_own_miss_established_in_this_epoch() {
        let settings = Settings {
            epoch: 0x1234,
            lease: 1,
            port_min: 0,
            port_max: 0,
            fingerprint: 0,
            learn_from: 100,
            half_began: 0,
        };
        let missed = field().missed(0, EGRESS_MISS, 0x1234);
        let mark = missed | field().established_bit();
        let lesson = |mark, miss, now| field().lesson(mark, miss, &settings, now);
        assert_eq!(lesson(mark, EGRESS_MISS, 100), Lesson::Learn);
        assert_eq!(lesson(mark, INGRESS_MISS, 100), Lesson::NotOurs);
        assert_eq!(lesson(missed, EGRESS_MISS, 100), Lesson::NotEstablished);
        assert_eq!(lesson(mark, EGRESS_MISS, 99), Lesson::Stale);
        let old = field().missed(0, EGRESS_MISS, 0x1233) | field().established_bit();
        assert_eq!(lesson(old, EGRESS_MISS, 100), Lesson::Stale);
    }

    #[test]
    fn a_narrow_mask_at_the_top_works() {
        let field = MarkField::new(0xff00_0000).expect("eight bits");
        let mark = field.missed(7, EGRESS_MISS, 33);
        assert!(field.is_of_epoch(mark, 33) && field.is_of_epoch(mark, 1));
        assert!(!field.is_of_epoch(mark, 34));
        assert_eq!(field.clear(mark), 7);
    }
}
