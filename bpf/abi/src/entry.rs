//! An entry of `FLOWS`: all that the programs need of a flow, found by one look-up.

use crate::{
    container::MacWord,
    flow::{EGRESS, FlowKey, INGRESS, Verdict, VerdictWord},
    peer::PeerNumber,
    plain_data,
};

/// Thirty-two bits known of a flow, in one word with the marks of what they were learned for.
///
/// | bits | meaning |
/// | --- | --- |
/// | 0-31 | the value, which is never zero |
/// | 32-47 | low 16 bits of the epoch it was learned in |
/// | 48-63 | wide tag of the flow's key |
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowWord(pub u64);

impl FlowWord {
    /// The word of a flow that `value` was learned of in `epoch`.
    #[inline(always)]
    pub const fn new(key: &FlowKey, value: u32, epoch: u32) -> Self {
        Self(value as u64 | (epoch as u64 & 0xffff) << 32 | key.wide_tag() << 48)
    }

    /// The value, if the word was written for `key` in `epoch`.
    #[inline(always)]
    pub const fn value(self, key: &FlowKey, epoch: u32) -> Option<u32> {
        let value = self.raw();
        if self.0 ^ value as u64 == Self::new(key, 0, epoch).0 && value != 0 {
            Some(value)
        } else {
            None
        }
    }

    /// The value, whosever it is.
    #[inline(always)]
    const fn raw(self) -> u32 {
        self.0 as u32
    }
}

/// What is known of a flow: whether it may pass, and how.
///
/// Five words, each whole whenever it is read or written and each with marks of its own of the key
/// and the epoch it was written for, for the reason given at [`VerdictWord`]: an element of an LRU
/// hash may be given to another key while it is read, and what is read then is part one flow's, part
/// another's. A word of another flow, or of another epoch, counts as not there.
///
/// Invariants:
/// - The verdict allows the direction from the container only if `peer` and `port` were learned with it, and
///   the one to it only if `device` and `mac` were.
/// - What is learned anew starts from nothing: no word outlives the lease or the epoch of the verdict
///   that it was learned with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// Whether the flow may pass.
    pub verdict: VerdictWord,
    /// The peer that the remote container is behind: a [`PeerNumber`].
    pub peer: FlowWord,
    /// Ifindex of the local container's host-side device.
    pub device: FlowWord,
    /// The local container's MAC address: as [`MacWord`], with the key's wide tag over the epoch.
    pub mac: MacWord,
    /// Outer UDP source port of the flow's encapsulated packets, host byte order.
    pub port: FlowWord,
}

plain_data!(FlowWord, FlowEntry);

/// The way to the local container of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEnd {
    /// Host-side device.
    pub ifindex: u32,
    /// MAC address in the low 48 bits, first byte lowest.
    pub mac: u64,
}

impl LocalEnd {
    /// What an entry's words tell of it; none if they are not both of this flow in `epoch`.
    #[inline(always)]
    pub const fn told(device: FlowWord, mac: MacWord, key: &FlowKey, epoch: u32) -> Option<Self> {
        let Some(ifindex) = device.value(key, epoch) else {
            return None;
        };
        let bits = mac.bits();
        if mac.0 >> 48 != Self::seal(key, epoch) || bits == 0 {
            return None;
        }
        Some(Self { ifindex, mac: bits })
    }

    const fn seal(key: &FlowKey, epoch: u32) -> u64 {
        (epoch as u64 ^ key.wide_tag()) & 0xffff
    }
}

impl FlowEntry {
    /// The entry after the slow path passed a packet of `key` to `peer`, from the outer UDP source port `port` (host
    /// byte order).
    #[inline(always)]
    pub const fn learn_egress(
        old: Option<Self>,
        key: &FlowKey,
        (peer, port): (PeerNumber, u16),
        now: u64,
        lease: u64,
        epoch: u32,
    ) -> Self {
        Self {
            peer: FlowWord::new(key, peer.0, epoch),
            port: FlowWord::new(key, port as u32, epoch),
            ..Self::learn(old, key, EGRESS, now, lease, epoch)
        }
    }

    /// The entry after the slow path delivered a packet of `key` to the container at `mac` (frame
    /// byte order) behind the device `ifindex`.
    #[inline(always)]
    pub const fn learn_ingress(
        old: Option<Self>,
        key: &FlowKey,
        (ifindex, mac): (u32, [u8; 6]),
        now: u64,
        lease: u64,
        epoch: u32,
    ) -> Self {
        let mac = MacWord::new(mac, 0).0 | LocalEnd::seal(key, epoch) << 48;
        Self {
            device: FlowWord::new(key, ifindex, epoch),
            mac: MacWord(mac),
            ..Self::learn(old, key, INGRESS, now, lease, epoch)
        }
    }

    /// The peer that it tells of, whatever flow and epoch it was learned for: for listings, and to clear away.
    pub const fn leads_to(&self) -> Option<PeerNumber> {
        match self.peer.raw() {
            0 => None,
            peer => Some(PeerNumber(peer)),
        }
    }

    const fn learn(
        old: Option<Self>,
        key: &FlowKey,
        direction: u64,
        now: u64,
        lease: u64,
        epoch: u32,
    ) -> Self {
        if let Some(old) = old
            && matches!(
                old.verdict.judge(key, now, epoch),
                Verdict::OneWay | Verdict::Fast
            )
        {
            let verdict = VerdictWord::learn(Some(old.verdict), key, direction, now, lease, epoch);
            return Self { verdict, ..old };
        }
        Self {
            verdict: VerdictWord::learn(None, key, direction, now, lease, epoch),
            peer: FlowWord(0),
            device: FlowWord(0),
            mac: MacWord(0),
            port: FlowWord(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::KEY;

    const OTHER: FlowKey = FlowKey {
        local_port: 0x5100,
        ..KEY
    };
    const MAC: [u8; 6] = [2, 3, 4, 5, 6, 7];
    const PEER: PeerNumber = PeerNumber(0x0c32_a8c0);
    const PORT: u16 = 40000;

    // As the programs read them.
    fn peer(entry: &FlowEntry, key: &FlowKey, epoch: u32) -> Option<u32> {
        entry.peer.value(key, epoch)
    }

    fn port(entry: &FlowEntry, key: &FlowKey, epoch: u32) -> Option<u32> {
        entry.port.value(key, epoch)
    }

    fn local(entry: &FlowEntry, key: &FlowKey, epoch: u32) -> Option<LocalEnd> {
        LocalEnd::told(entry.device, entry.mac, key, epoch)
    }

    fn out(old: Option<FlowEntry>, now: u64, epoch: u32) -> FlowEntry {
        FlowEntry::learn_egress(old, &KEY, (PEER, PORT), now, 100, epoch)
    }

    fn delivered(old: Option<FlowEntry>, now: u64, epoch: u32) -> FlowEntry {
        FlowEntry::learn_ingress(old, &KEY, (9, MAC), now, 100, epoch)
    }

    #[test]
    fn an_entry_is_five_words_without_padding() {
        assert_eq!(size_of::<FlowEntry>(), 40);
    }

    #[test]
    fn each_direction_teaches_its_own() {
        let entry = out(None, 1000, 7);
        assert_eq!(peer(&entry, &KEY, 7), Some(PEER.0));
        assert_eq!(port(&entry, &KEY, 7), Some(PORT.into()));
        assert_eq!(local(&entry, &KEY, 7), None);
        assert_eq!(entry.verdict.judge(&KEY, 1000, 7), Verdict::OneWay);
        let entry = delivered(Some(entry), 1001, 7);
        let mac = 0x0706_0504_0302;
        assert_eq!(peer(&entry, &KEY, 7), Some(PEER.0));
        assert_eq!(port(&entry, &KEY, 7), Some(PORT.into()));
        assert_eq!(local(&entry, &KEY, 7), Some(LocalEnd { ifindex: 9, mac }));
        assert_eq!(entry.verdict.judge(&KEY, 1001, 7), Verdict::Fast);
    }

    #[test]
    fn nothing_is_known_of_another_flow_or_in_another_epoch() {
        assert_ne!(KEY.wide_tag(), OTHER.wide_tag());
        let entry = delivered(Some(out(None, 1000, 7)), 1000, 7);
        assert_eq!(local(&entry, &OTHER, 7), None);
        assert_eq!(
            (peer(&entry, &KEY, 8), local(&entry, &KEY, 8)),
            (None, None)
        );
        assert_eq!(
            (port(&entry, &OTHER, 7), port(&entry, &KEY, 8)),
            (None, None)
        );
        let elsewhere = FlowKey {
            remote: 0x0402_2a0a,
            ..KEY
        };
        assert_eq!(peer(&entry, &elsewhere, 7), None);
    }

    /// As if the element had been given to another flow while it was read.
    #[test]
    fn no_word_of_another_flow_counts() {
        let own = delivered(Some(out(None, 1000, 7)), 1000, 7);
        let other = FlowEntry::learn_ingress(None, &OTHER, (10, MAC), 1000, 100, 7);
        let torn = FlowEntry {
            mac: other.mac,
            ..own
        };
        assert_eq!(local(&torn, &KEY, 7), None);
        let torn = FlowEntry {
            device: other.device,
            ..own
        };
        assert_eq!(local(&torn, &KEY, 7), None);
    }

    #[test]
    fn what_is_learned_anew_starts_from_nothing() {
        let entry = delivered(Some(out(None, 1000, 7)), 1001, 7);
        // The lease is over: the way in has to show itself again.
        let renewed = out(Some(entry), 1100, 7);
        assert_eq!(local(&renewed, &KEY, 7), None);
        assert_eq!(renewed.verdict.directions(), EGRESS);
        // And in another epoch.
        let renewed = delivered(Some(entry), 1050, 8);
        assert_eq!(peer(&renewed, &KEY, 8), None);
        assert_eq!(renewed.verdict.directions(), INGRESS);
    }

    #[test]
    fn a_peer_that_changes_is_replaced() {
        let entry = delivered(Some(out(None, 1000, 7)), 1001, 7);
        let moved = FlowEntry::learn_egress(
            Some(entry),
            &KEY,
            (PeerNumber(PEER.0 + 1), PORT),
            1002,
            100,
            7,
        );
        assert_eq!(peer(&moved, &KEY, 7), Some(PEER.0 + 1));
        assert_eq!(local(&moved, &KEY, 7), local(&entry, &KEY, 7));
    }

    #[test]
    fn nothing_learned_is_nothing_known() {
        // A key whose tag is zero, in an epoch whose low bits are: all that a word of zeros says.
        let blank = FlowKey {
            local: 0,
            remote: 0,
            local_port: 0,
            remote_port: 0,
            protocol: 0,
            reserved: [0; 3],
        };
        assert_eq!(blank.wide_tag(), 0);
        let empty = FlowEntry {
            verdict: VerdictWord(0),
            peer: FlowWord(0),
            device: FlowWord(0),
            mac: MacWord(0),
            port: FlowWord(0),
        };
        assert_eq!(port(&empty, &blank, 0x1_0000), None);
        assert_eq!(local(&empty, &blank, 0x1_0000), None);
    }
}
