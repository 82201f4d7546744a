//! From a failing sequence to the few packets that it takes.

use std::time::{Duration, Instant};

use proptest::strategy::ValueTree;

use crate::differential::{packet::Packet, pair::Pair};

/// How long a failing sequence is made smaller.
const PATIENCE: Duration = Duration::from_secs(60);

type Tree = Box<dyn ValueTree<Value = Packet>>;

/// Makes a failing sequence smaller: first fewer packets, then simpler ones.
pub fn shrink(pair: &mut Pair, mut trees: Vec<Tree>) -> Vec<Packet> {
    let deadline = Instant::now() + PATIENCE;
    let mut chunk = trees.len().div_ceil(2);
    while chunk > 0 && Instant::now() < deadline {
        let mut at = 0;
        while at < trees.len() && trees.len() > 1 {
            let end = (at + chunk).min(trees.len());
            let rest: Vec<_> = trees[..at]
                .iter()
                .chain(&trees[end..])
                .map(|tree| tree.current())
                .collect();
            if !rest.is_empty() && fails(pair, &rest) {
                trees.drain(at..end);
            } else {
                at = end;
            }
        }
        chunk /= 2;
    }
    for at in 0..trees.len() {
        while Instant::now() < deadline && trees[at].simplify() {
            while !fails(pair, &current(&trees)) {
                if !trees[at].complicate() {
                    break;
                }
            }
        }
    }
    current(&trees)
}

/// Whether the passes differ, from the same beginning each time.
pub fn fails(pair: &mut Pair, packets: &[Packet]) -> bool {
    pair.resettle();
    !pair.run(packets).differences.is_empty()
}

pub fn current(trees: &[Tree]) -> Vec<Packet> {
    trees.iter().map(|tree| tree.current()).collect()
}
