//! Two labs that are alike but for the cache, and sequences that go through both.

use std::{collections::BTreeSet, thread};

use oncache_testbed::Counters;

use crate::differential::{
    bench::Bench,
    compare::{Comparison, Fate, compare},
    craft::Crafter,
    packet::{FLOWS, Packet, Transport, Way},
};

/// IP protocol of the packets that end a sequence (RFC 3692, "for experimentation").
const MARK: u8 = 254;

/// One lab without the cache and one with it.
pub struct Pair {
    slow: Bench,
    fast: Bench,
    /// The next sequence's first IP identification.
    identification: u16,
    /// TCP flows whose state the last sequence has changed.
    unsettled: BTreeSet<u8>,
    before: [Counters; 2],
    /// Frames that went by the fast path, out of the containers' hosts and into them.
    carried: [u64; 2],
}

impl Pair {
    /// Builds both and opens all flows.
    pub fn new() -> Self {
        let (slow, fast) = thread::scope(|scope| {
            let slow = scope.spawn(|| Bench::new(false));
            let fast = Bench::new(true);
            (slow.join().expect("a lab without the cache"), fast)
        });
        let before = fast.counters();
        let mut pair = Self {
            slow,
            fast,
            identification: 1,
            unsettled: BTreeSet::new(),
            before,
            carried: [0; 2],
        };
        let udp = |flow| Packet::opening(Transport::OpenUdp, flow);
        pair.resettle();
        let comparison = pair.run(&(0..FLOWS).map(udp).collect::<Vec<_>>());
        assert!(
            comparison.differences.is_empty(),
            "opening: {:?}",
            comparison.differences
        );
        pair
    }

    /// Has every TCP flow opened anew before the next sequence.
    pub fn resettle(&mut self) {
        self.unsettled = (0..FLOWS).collect();
    }

    /// Sends the packets through both labs, flows that were unsettled being opened before.
    pub fn run(&mut self, packets: &[Packet]) -> Comparison {
        let tcp = |flow| Packet::opening(Transport::OpenTcp, flow);
        let mut sequence: Vec<_> = std::mem::take(&mut self.unsettled)
            .into_iter()
            .map(tcp)
            .collect();
        let opened = sequence.len();
        sequence.extend_from_slice(packets);
        for way in [Way::Forth, Way::Back] {
            sequence.push(Packet {
                way,
                transport: Transport::Other(MARK),
                ..Packet::default()
            });
        }
        let end = sequence.len();
        let mut crafter = Crafter::new(self.identification);
        for (index, packet) in sequence.iter().enumerate() {
            crafter.add(index, packet);
        }
        self.identification = crafter.next_identification();
        let unsettling = packets.iter().filter(|packet| packet.unsettles());
        self.unsettled = unsettling.map(|packet| packet.flow).collect();

        let marks = [end - 2, end - 1];
        let slow = self.slow.run(&crafter, marks);
        let fast = self.fast.run(&crafter, marks);
        let mut comparison = compare(&sequence, &crafter, &slow, &fast);
        let sum = |part: fn(&Fate) -> usize| -> u64 {
            comparison.fates.iter().map(|fate| part(fate) as u64).sum()
        };
        self.carried[0] += sum(|fate| fate.fast_out);
        self.carried[1] += sum(|fate| fate.fast_in);
        comparison.fates = comparison.fates[opened..opened + packets.len()].to_vec();
        for difference in &mut comparison.differences {
            if let Some(index) = difference.index {
                difference.index = index
                    .checked_sub(opened)
                    .filter(|index| *index < packets.len());
            }
        }
        comparison
    }

    /// Whether the programs have counted what was seen: hits of `egress` and of `ingress`, as
    /// counted and as recorded.
    pub fn hits(&self) -> [(u64, u64); 2] {
        let now = self.fast.counters();
        let hits = |program| -> u64 {
            let pairs = now.iter().zip(&self.before);
            pairs
                .map(|(now, before)| now.since(before).get(program, "hit"))
                .sum()
        };
        [
            (hits("egress"), self.carried[0]),
            (hits("ingress"), self.carried[1]),
        ]
    }

    /// TCP connections of which conntrack thinks otherwise with the cache than without: of each what
    /// it thinks without and with it.
    pub fn estranged(&self) -> Vec<String> {
        let [slow, fast] = [&self.slow, &self.fast].map(Bench::connections);
        let flows = usize::from(FLOWS);
        assert_eq!(slow.len(), 2 * flows, "each host knows each flow: {slow:?}");
        let keys: BTreeSet<_> = slow.keys().chain(fast.keys()).collect();
        let differ = keys
            .into_iter()
            .filter(|key| slow.get(key) != fast.get(key));
        differ
            .map(|key| format!("{key:?}: {:?} and {:?}", slow.get(key), fast.get(key)))
            .collect()
    }

    /// What the hosts with the cache have counted.
    pub fn counted(&self) -> String {
        let [alpha, beta] = self.fast.counters();
        format!(
            "alpha: {}\nbeta: {}",
            alpha.since(&self.before[0]),
            beta.since(&self.before[1])
        )
    }

    /// Ends the recordings; how many frames they lost.
    pub fn finish(self) -> usize {
        self.slow.finish() + self.fast.finish()
    }
}
