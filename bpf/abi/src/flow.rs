//! Flows: the key of one, and the one word that says what the slow path allowed.

use crate::plain_data;

/// A flow as its local container sees it: the same key for both directions, on each host its own.
///
/// Addresses and ports are in network byte order, just as they stand in the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Address of the container on this host.
    pub local: u32,
    /// Address of the container on the other host.
    pub remote: u32,
    /// Port of the local container.
    pub local_port: u16,
    /// Port of the remote container.
    pub remote_port: u16,
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// Always zero; the kernel hashes these bytes too.
    pub reserved: [u8; 3],
}

impl FlowKey {
    /// Ten bits folded from the key, carried in its word (see [`VerdictWord`]).
    #[inline(always)]
    pub const fn tag(&self) -> u64 {
        self.mixed() >> 54
    }

    /// Sixteen bits folded from the key, for the words that have room for them (see
    /// [`crate::entry::FlowEntry`]).
    #[inline(always)]
    pub const fn wide_tag(&self) -> u64 {
        self.mixed() >> 48
    }

    /// From the key's two words, as the programs have it at hand. The shift parts the ports, which
    /// differ in the same bits as the addresses do.
    #[inline(always)]
    const fn mixed(&self) -> u64 {
        // SAFETY: a key is sixteen bytes of integers.
        let [addresses, ports] = unsafe { core::mem::transmute::<Self, [u64; 2]>(*self) };
        (addresses ^ (ports << 15)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// The slow path passed this flow's packets from the container to the NIC.
pub const EGRESS: u64 = 1;
/// The slow path passed this flow's packets from the NIC to the container.
pub const INGRESS: u64 = 2;
const BOTH: u64 = EGRESS | INGRESS;

const TAG_SHIFT: u32 = 2;
const TAG_BITS: u64 = 0x3ff;
const EPOCH_SHIFT: u32 = 12;
const EPOCH_BITS: u64 = 0xffff;
const EXPIRY_SHIFT: u32 = 28;

/// Nanoseconds of `CLOCK_MONOTONIC` to lease ticks: 2^22 ns, about 4.2 ms, near the resolution of
/// the coarse clock that the programs read.
pub const TICK_SHIFT: u32 = 22;

/// Lease ticks of a `CLOCK_MONOTONIC` time in nanoseconds.
#[inline(always)]
pub const fn ticks(nanoseconds: u64) -> u64 {
    nanoseconds >> TICK_SHIFT
}

/// What the slow path allowed of a flow, in one 64-bit word.
///
/// | bits | meaning |
/// | --- | --- |
/// | 0-1 | [`EGRESS`], [`INGRESS`] |
/// | 2-11 | tag of the key it was written for |
/// | 12-27 | low 16 bits of the epoch it was learned in |
/// | 28-63 | tick at which the lease ends (36 bits: nine years of uptime) |
///
/// One word, because it is read and written without a lock while other CPUs do the same: a reader
/// sees the whole of one state. The tag is there because an element of an LRU hash can be given to
/// another key between a lookup and the read of its value (kernel/bpf/hashtab.c,
/// `__htab_lru_map_delete_elem` and `prealloc_lru_pop`: freed elements are reused at once, without
/// waiting for readers); a word of another key then does not count.
///
/// Invariants:
/// - A word whose epoch is not the current one, or whose lease is over, allows nothing.
/// - A word without a direction allows nothing, whoever wrote it and wherever it lies.
/// - A lease is never prolonged by setting the other direction's bit: each direction shows itself
///   to the slow path once a lease.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictWord(pub u64);

plain_data!(FlowKey, VerdictWord);

/// Why a word allows the fast path, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both directions were allowed in this epoch and the lease runs.
    Fast,
    /// The word belongs to another flow.
    Unknown,
    /// Learned in another epoch.
    StaleEpoch,
    /// The lease is over.
    LeaseExpired,
    /// Only one direction was allowed so far.
    OneWay,
    /// The flow's connection ends, or begins anew: nothing was allowed since.
    Closed,
}

impl VerdictWord {
    /// Tick at which the lease ends.
    #[inline(always)]
    pub const fn expiry(self) -> u64 {
        self.0 >> EXPIRY_SHIFT
    }

    /// Low 16 bits of the epoch the word was learned in.
    #[inline(always)]
    pub const fn epoch(self) -> u16 {
        ((self.0 >> EPOCH_SHIFT) & EPOCH_BITS) as u16
    }

    /// [`EGRESS`] and [`INGRESS`] bits.
    #[inline(always)]
    pub const fn directions(self) -> u64 {
        self.0 & BOTH
    }

    /// Whether its flow's connection has ended since it was learned (see [`VerdictWord::close`]).
    #[inline(always)]
    pub const fn is_closed(self) -> bool {
        self.directions() == 0
    }

    /// Whether the word was written for `key`, as far as its tag tells.
    #[inline(always)]
    pub const fn is_of(self, key: &FlowKey) -> bool {
        (self.0 >> TAG_SHIFT) & TAG_BITS == key.tag()
    }

    /// The word after a packet of `key` that begins or ends a connection: it allows neither
    /// direction. None where there is nothing to take back.
    ///
    /// The word stays, to be learned into again by the next connection, and to tell an
    /// acknowledgement that still comes from one that is worth learning from.
    #[inline(always)]
    pub const fn close(self, key: &FlowKey) -> Option<Self> {
        if self.is_of(key) && !self.is_closed() {
            Some(Self(self.0 & !BOTH))
        } else {
            None
        }
    }

    /// Whether [`VerdictWord::judge`] says [`Verdict::Fast`]: the question of every packet that takes the
    /// fast path, in fewer steps.
    #[inline(always)]
    pub const fn is_fast(self, key: &FlowKey, now: u64, epoch: u32) -> bool {
        let expected = (epoch as u64 & EPOCH_BITS) << EPOCH_SHIFT | key.tag() << TAG_SHIFT | BOTH;
        self.0 & ((1 << EXPIRY_SHIFT) - 1) == expected && self.expiry() > now
    }

    /// Judges a word found under `key` at tick `now` in `epoch`.
    #[inline(always)]
    pub const fn judge(self, key: &FlowKey, now: u64, epoch: u32) -> Verdict {
        if !self.is_of(key) {
            Verdict::Unknown
        } else if self.epoch() != epoch as u16 {
            Verdict::StaleEpoch
        } else if self.expiry() <= now {
            Verdict::LeaseExpired
        } else if self.is_closed() {
            Verdict::Closed
        } else if self.directions() != BOTH {
            Verdict::OneWay
        } else {
            Verdict::Fast
        }
    }

    /// The word after the slow path passed a packet of `key` in `direction`.
    ///
    /// A live word gains the direction and keeps its lease; anything else starts anew with this
    /// direction alone and a lease of `lease` ticks.
    #[inline(always)]
    pub const fn learn(
        old: Option<Self>,
        key: &FlowKey,
        direction: u64,
        now: u64,
        lease: u64,
        epoch: u32,
    ) -> Self {
        if let Some(word) = old
            && matches!(word.judge(key, now, epoch), Verdict::OneWay | Verdict::Fast)
        {
            return Self(word.0 | direction);
        }
        Self(
            (now + lease) << EXPIRY_SHIFT
                | ((epoch as u64 & EPOCH_BITS) << EPOCH_SHIFT)
                | (key.tag() << TAG_SHIFT)
                | direction,
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const KEY: FlowKey = FlowKey {
        local: 0x0201_2a0a,
        remote: 0x0302_2a0a,
        local_port: 0x5000,
        remote_port: 0x9c40,
        protocol: 6,
        reserved: [0; 3],
    };

    fn fresh(direction: u64) -> VerdictWord {
        VerdictWord::learn(None, &KEY, direction, 1000, 100, 7)
    }

    #[test]
    fn key_has_no_padding() {
        assert_eq!(size_of::<FlowKey>(), 16);
        assert_eq!(size_of::<VerdictWord>(), 8);
    }

    #[test]
    fn one_direction_is_not_enough() {
        assert_eq!(fresh(EGRESS).judge(&KEY, 1000, 7), Verdict::OneWay);
        assert_eq!(fresh(INGRESS).judge(&KEY, 1000, 7), Verdict::OneWay);
    }

    #[test]
    fn both_directions_are_fast_until_the_lease_ends() {
        let word = VerdictWord::learn(Some(fresh(EGRESS)), &KEY, INGRESS, 1050, 100, 7);
        assert_eq!(word.judge(&KEY, 1099, 7), Verdict::Fast);
        assert_eq!(word.judge(&KEY, 1100, 7), Verdict::LeaseExpired);
    }

    #[test]
    fn the_second_direction_does_not_prolong_the_lease() {
        let word = VerdictWord::learn(Some(fresh(EGRESS)), &KEY, INGRESS, 1099, 100, 7);
        assert_eq!(word.expiry(), 1100);
    }

    #[test]
    fn an_expired_word_forgets_the_other_direction() {
        let both = VerdictWord::learn(Some(fresh(EGRESS)), &KEY, INGRESS, 1001, 100, 7);
        let renewed = VerdictWord::learn(Some(both), &KEY, EGRESS, 1100, 100, 7);
        assert_eq!(renewed.directions(), EGRESS);
        assert_eq!(renewed.expiry(), 1200);
    }

    #[test]
    fn a_word_of_another_epoch_is_dead_and_not_added_to() {
        let both = VerdictWord::learn(Some(fresh(EGRESS)), &KEY, INGRESS, 1001, 100, 7);
        assert_eq!(both.judge(&KEY, 1001, 8), Verdict::StaleEpoch);
        let relearned = VerdictWord::learn(Some(both), &KEY, EGRESS, 1001, 100, 8);
        assert_eq!(relearned.judge(&KEY, 1001, 8), Verdict::OneWay);
    }

    #[test]
    fn a_word_of_another_key_does_not_count() {
        let other = FlowKey {
            remote_port: 0x9c41,
            ..KEY
        };
        assert_ne!(other.tag(), KEY.tag());
        assert_eq!(fresh(EGRESS).judge(&other, 1000, 7), Verdict::Unknown);
        let both = VerdictWord::learn(Some(fresh(EGRESS)), &other, INGRESS, 1000, 100, 7);
        assert_eq!(both.directions(), INGRESS);
    }

    #[test]
    fn a_closed_flow_allows_nothing_and_is_learned_from_the_beginning() {
        let both = VerdictWord::learn(Some(fresh(EGRESS)), &KEY, INGRESS, 1001, 100, 7);
        for open in [fresh(EGRESS), fresh(INGRESS), both] {
            let closed = open.close(&KEY).expect("it was open");
            assert!(closed.is_closed() && closed.is_of(&KEY));
            assert_eq!(closed.judge(&KEY, 1001, 7), Verdict::Closed);
            assert_eq!(closed.close(&KEY), None);
            for direction in [EGRESS, INGRESS] {
                let word = VerdictWord::learn(Some(closed), &KEY, direction, 1050, 100, 7);
                assert_eq!(word.directions(), direction);
                assert_eq!(word.expiry(), 1150, "the lease is its own");
            }
            // Dead for another reason as well: nothing is to be made of it.
            assert_eq!(closed.judge(&KEY, 1001, 8), Verdict::StaleEpoch);
            assert_eq!(closed.judge(&KEY, 1100, 7), Verdict::LeaseExpired);
        }
    }

    #[test]
    fn another_keys_word_is_not_closed() {
        let other = FlowKey {
            remote_port: 0x9c41,
            ..KEY
        };
        assert_eq!(fresh(EGRESS).close(&other), None);
    }

    #[test]
    fn the_short_question_has_the_same_answer() {
        let both = VerdictWord::learn(Some(fresh(EGRESS)), &KEY, INGRESS, 1001, 100, 7);
        let flipped = (0..64).map(|bit| VerdictWord(both.0 ^ 1 << bit));
        let mut fast = 0;
        for word in flipped.chain([both, fresh(EGRESS), VerdictWord(0)]) {
            for now in [0, 1000, 1099, 1100, u64::from(u32::MAX)] {
                for epoch in [6, 7, 8, 0x1_0007] {
                    let is_fast = word.judge(&KEY, now, epoch) == Verdict::Fast;
                    assert_eq!(word.is_fast(&KEY, now, epoch), is_fast, "{word:x?} {now}");
                    fast += u32::from(is_fast);
                }
            }
        }
        assert!(fast > 0);
    }

    #[test]
    fn a_zero_word_allows_nothing() {
        assert_ne!(VerdictWord(0).judge(&KEY, 0, 0), Verdict::Fast);
    }

    #[test]
    fn epochs_are_compared_by_their_low_sixteen_bits() {
        let word = VerdictWord::learn(None, &KEY, EGRESS, 0, 10, 0x1_0007);
        assert_eq!(word.epoch(), 7);
        assert_eq!(word.judge(&KEY, 0, 0x1_0007), Verdict::OneWay);
    }
}
