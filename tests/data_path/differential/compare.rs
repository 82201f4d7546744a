//! What two passes of one sequence have in common, and what not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use oncache_testbed::CapturedFrame;

use crate::differential::{
    bench::{Pass, Point},
    craft::Crafter,
    packet::{Packet, Transport, Way},
    permitted,
};

/// Something that the two passes do not agree on.
#[derive(Debug)]
pub struct Difference {
    /// Which packet of the sequence; none for what no packet can be named for.
    pub index: Option<usize>,
    pub what: String,
}

/// What became of one packet where the cache is on, in frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    pub sent: usize,
    pub arrived: usize,
    /// Put on the wire by the fast path.
    pub fast_out: usize,
    /// Delivered by the fast path.
    pub fast_in: usize,
}

impl Fate {
    pub const fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.arrived += other.arrived;
        self.fast_out += other.fast_out;
        self.fast_in += other.fast_in;
    }
}

/// What came of comparing.
#[derive(Debug, Default)]
pub struct Comparison {
    pub differences: Vec<Difference>,
    /// For each packet of the sequence.
    pub fates: Vec<Fate>,
    /// How often packets of one flow arrived in another order because they took other paths.
    pub overtakings: usize,
}

/// Frames by place, direction and packet.
type Seen = BTreeMap<(Point, bool, Option<usize>), Vec<CapturedFrame>>;

/// Compares what was recorded without the cache and with it.
pub fn compare(packets: &[Packet], crafter: &Crafter, slow: &Pass, fast: &Pass) -> Comparison {
    let mut comparison = Comparison::default();
    for ((one, other), injection) in slow
        .refused
        .iter()
        .zip(&fast.refused)
        .zip(&crafter.injections)
    {
        if one != other {
            comparison.differences.push(Difference {
                index: Some(injection.index),
                what: format!("the kernel took it once and once not: {one:?}, {other:?}"),
            });
        }
    }
    let seen = [slow, fast].map(|pass| sort(pass, crafter));
    let keys: BTreeSet<_> = seen.iter().flat_map(BTreeMap::keys).collect();
    for key @ (point, outgoing, index) in keys {
        // By the tunnel devices nothing is judged: they only tell the paths apart.
        if matches!(point, Point::AlphaTunnel | Point::BetaTunnel) {
            continue;
        }
        let [one, other] =
            [&seen[0], &seen[1]].map(|seen| seen.get(key).map_or(&[][..], Vec::as_slice));
        if one == other || are_same_fragments(*point, one, other) {
            continue;
        }
        // Of what one packet has become on its way, parts may have taken the one path and parts the
        // other.
        if is_mixed(packets, *index, &seen[1]) && in_any_order(one) == in_any_order(other) {
            comparison.overtakings += 1;
            continue;
        }
        let direction = if *outgoing { "leaving" } else { "arriving" };
        comparison.differences.push(Difference {
            index: *index,
            what: format!("{direction} at {point:?}: {}", describe(one, other)),
        });
    }
    comparison.fates = fates(packets, crafter, fast, &seen[1]);
    compare_order(packets, crafter, [slow, fast], &seen[1], &mut comparison);
    comparison
}

fn are_same_fragments(point: Point, one: &[CapturedFrame], other: &[CapturedFrame]) -> bool {
    matches!(point, Point::AlphaWire | Point::BetaWire)
        && match permitted::without_fragments_headers(one, other) {
            Some(bared) => permitted::without_fragments_headers(other, one) == Some(bared),
            None => false,
        }
}

/// Whether some frames of the packet have passed the receiver's tunnel device and some have not.
fn is_mixed(packets: &[Packet], index: Option<usize>, seen: &Seen) -> bool {
    let Some(packet) = index.and_then(|index| packets.get(index)) else {
        return false;
    };
    let (_, [container, _, tunnel]) = points(packet.way);
    let count = |point| seen.get(&(point, false, index)).map_or(0, Vec::len);
    count(tunnel) > 0 && count(container) > count(tunnel)
}

fn in_any_order(frames: &[CapturedFrame]) -> Vec<&CapturedFrame> {
    let mut frames: Vec<_> = frames.iter().collect();
    frames.sort_by(|one, other| one.bytes.cmp(&other.bytes));
    frames
}

fn sort(pass: &Pass, crafter: &Crafter) -> Seen {
    let mut seen = Seen::new();
    for (point, frames) in Point::ALL.iter().zip(&pass.frames) {
        for frame in frames {
            // What a container sends is what the test has sent.
            if Point::CONTAINERS.contains(point) && frame.outgoing {
                continue;
            }
            let key = (
                *point,
                frame.outgoing,
                permitted::owner(*point, &frame.bytes, crafter),
            );
            seen.entry(key)
                .or_default()
                .push(permitted::normalised(*point, frame));
        }
    }
    seen
}

/// Which point is the sender's or receiver's container, wire and tunnel.
fn points(way: Way) -> ([Point; 3], [Point; 3]) {
    let alpha = [Point::Client, Point::AlphaWire, Point::AlphaTunnel];
    let beta = [Point::Server, Point::BetaWire, Point::BetaTunnel];
    match way {
        Way::Forth => (alpha, beta),
        Way::Back => (beta, alpha),
    }
}

fn fates(packets: &[Packet], crafter: &Crafter, pass: &Pass, seen: &Seen) -> Vec<Fate> {
    let mut fates = vec![Fate::default(); packets.len()];
    for (injection, refused) in crafter.injections.iter().zip(&pass.refused) {
        fates[injection.index].sent += usize::from(refused.is_none());
    }
    let count = |point, outgoing, index| {
        let frames = seen.get(&(point, outgoing, Some(index)));
        frames.map_or(0, Vec::len)
    };
    for (index, (fate, packet)) in fates.iter_mut().zip(packets).enumerate() {
        let ways = match packet.transport {
            Transport::OpenTcp | Transport::OpenUdp => vec![Way::Forth, Way::Back],
            _ => vec![packet.way],
        };
        for way in ways {
            let ([_, wire_out, tunnel_out], [container, _, tunnel_in]) = points(way);
            let arrived = count(container, false, index);
            fate.arrived += arrived;
            fate.fast_in += arrived.saturating_sub(count(tunnel_in, false, index));
            // One packet takes one path out, and counts as one, though a large aggregate is cut up
            // before the wire.
            let out = count(wire_out, true, index);
            let slow = count(tunnel_out, true, index);
            if matches!(packet.transport, Transport::OpenTcp | Transport::OpenUdp) {
                fate.fast_out += out.saturating_sub(slow);
            } else if packet.outer.is_none() && slow == 0 {
                fate.fast_out += out.min(1);
            }
        }
    }
    fates
}

/// Within a flow, those that take the same path have to be in the same order in both passes.
fn compare_order(
    packets: &[Packet],
    crafter: &Crafter,
    passes: [&Pass; 2],
    fast: &Seen,
    comparison: &mut Comparison,
) {
    let path = |index: usize| {
        [Point::AlphaTunnel, Point::BetaTunnel].map(|tunnel| {
            [true, false].map(|outgoing| fast.contains_key(&(tunnel, outgoing, Some(index))))
        })
    };
    for (at, point) in Point::ALL.iter().enumerate() {
        if matches!(point, Point::AlphaTunnel | Point::BetaTunnel) {
            continue;
        }
        let [one, other] = passes.map(|pass| {
            let mut flows: BTreeMap<_, Vec<usize>> = BTreeMap::new();
            for frame in &pass.frames[at] {
                if let Some(index) = permitted::owner(*point, &frame.bytes, crafter) {
                    let flow = packets.get(index).map(|packet| packet.flow);
                    flows.entry((frame.outgoing, flow)).or_default().push(index);
                }
            }
            flows
        });
        for (flow, one) in &one {
            let Some(other) = other.get(flow) else {
                continue;
            };
            if one == other {
                continue;
            }
            let paths: BTreeSet<_> = other.iter().map(|index| path(*index)).collect();
            let on = |order: &[usize], wanted| -> Vec<usize> {
                order
                    .iter()
                    .copied()
                    .filter(|index| path(*index) == wanted)
                    .collect()
            };
            match paths
                .into_iter()
                .find(|path| on(one, *path) != on(other, *path))
            {
                None => comparison.overtakings += 1,
                Some(path) => comparison.differences.push(Difference {
                    index: None,
                    what: format!(
                        "the order at {point:?}, {flow:?}: {:?} and {:?}",
                        on(one, path),
                        on(other, path)
                    ),
                }),
            }
        }
    }
}

/// What differs between two lists of frames.
fn describe(slow: &[CapturedFrame], fast: &[CapturedFrame]) -> String {
    if slow.len() != fast.len() {
        let shown = slow.first().or(fast.first()).map(show).unwrap_or_default();
        return format!(
            "{} frames by the slow path, {} with the cache; the first: {shown}",
            slow.len(),
            fast.len()
        );
    }
    let Some((slow, fast)) = slow.iter().zip(fast).find(|(slow, fast)| slow != fast) else {
        return "nothing".into();
    };
    let differ = slow.bytes.iter().zip(&fast.bytes).enumerate();
    let mut text = String::from("bytes");
    for (at, (slow, fast)) in differ.filter(|(_, (slow, fast))| slow != fast).take(12) {
        let _ = write!(text, " {at}: {slow:02x}/{fast:02x}");
    }
    let _ = write!(text, "\n  slow {}\n  fast {}", show(slow), show(fast));
    text
}

fn show(frame: &CapturedFrame) -> String {
    let mut text = format!(
        "length {} segments {} pending {}:",
        frame.length, frame.segment_size, frame.checksum_pending
    );
    for byte in frame.bytes.iter().take(120) {
        let _ = write!(text, " {byte:02x}");
    }
    text
}
