//! Spoiling frames.

use super::program_bench::{Frame, world::*};

/// A generator of numbers: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift
/// generators, scrambled", 2016). The same seed gives the same numbers for ever.
pub struct Rng(u64);

impl Rng {
    /// The generator of one input: neighbouring numbers give unlike generators.
    pub fn new(seed: u64, input: u64) -> Self {
        let mixed =
            (seed ^ input.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mut rng = Self((mixed ^ mixed >> 31) | 1);
        for _ in 0..4 {
            rng.next();
        }
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % end
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[5]
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// The kernel runs no packet without an Ethernet header, nor one of an IP EtherType that has no room
/// for an IP header (net/bpf/test_run.c, `bpf_prog_test_run_skb`); nor one larger than a page.
pub const SHORTEST: usize = 34;
const SHORTEST_IPV6: usize = 54;
const LONGEST: usize = 3000;

/// Spoils a valid frame in up to four ways, or not at all, and mostly makes the header checksums
/// right again, for they hide every other fault.
pub fn mutate(rng: &mut Rng, valid: Frame, is_tunnel: bool) -> Vec<u8> {
    let mut frame = valid.0;
    if rng.once_in(4) {
        // Any DSCP and ECN, which all are good by themselves.
        for at in headers(is_tunnel) {
            frame = Frame(frame).ip(*at, |ip| ip[1] = rng.byte()).0;
        }
    }
    for _ in 0..rng.below(5) {
        spoil(rng, &mut frame, is_tunnel);
        frame.resize(frame.len().clamp(SHORTEST, LONGEST), 0);
    }
    if frame[12..14] == [0x86, 0xdd] {
        frame.resize(frame.len().max(SHORTEST_IPV6), 0);
    }
    for at in headers(is_tunnel) {
        if !rng.once_in(6) && frame.len() >= at + 20 {
            frame = Frame(frame).ip(*at, |_| ()).0;
        }
    }
    frame
}

/// A frame of noise.
pub fn noise(rng: &mut Rng) -> Vec<u8> {
    let length = SHORTEST_IPV6 + rng.below(200);
    (0..length).map(|_| rng.byte()).collect()
}

/// Where the IPv4 headers are, innermost first: the outer one does not cover the inner one.
fn headers(is_tunnel: bool) -> &'static [usize] {
    if is_tunnel { &[64, 14] } else { &[14] }
}

fn spoil(rng: &mut Rng, frame: &mut Vec<u8>, is_tunnel: bool) {
    let length = frame.len();
    // Half of all in the headers.
    let reach = if rng.once_in(2) {
        length
    } else {
        length.min(118)
    };
    let at = rng.below(reach);
    match rng.below(8) {
        0 => frame[at] = rng.byte(),
        1 => frame[at] ^= 1 << rng.below(8),
        2 => frame.truncate(at),
        3 => frame.extend((0..1 + rng.below(64)).map(|_| 0)),
        4 => {
            let width = rng.pick(&[2, 4, 6]).min(length - at);
            let value = rng.pick(&[0, 0xff, 1]);
            frame[at..at + width].fill(value);
        }
        5 => lie(rng, frame, is_tunnel),
        _ => swap(rng, frame, is_tunnel),
    }
}

/// A length field that is wrong by a little or a lot, or all of them right for another length.
fn lie(rng: &mut Rng, frame: &mut Vec<u8>, is_tunnel: bool) {
    // Length fields of IPv4 and UDP, and the headers that they count from.
    let lengths: &[(usize, usize)] = if is_tunnel {
        &[(16, 14), (38, 34), (66, 64), (88, 84)]
    } else {
        &[(16, 14), (38, 34)]
    };
    if rng.once_in(2) {
        frame.truncate(SHORTEST + rng.below(frame.len() - SHORTEST + 1));
        for (at, header) in lengths {
            let is_tcp = at - header == 4 && frame.get(header - 11) != Some(&17);
            if frame.len() >= at + 2 && !is_tcp {
                let rest = u16::try_from(frame.len() - header).unwrap_or(u16::MAX);
                frame[*at..at + 2].copy_from_slice(&rest.to_be_bytes());
            }
        }
        return;
    }
    let data_offset = if is_tunnel { 96 } else { 46 };
    let (at, _) = rng.pick(&[lengths, &[(data_offset, 0)]].concat());
    if frame.len() >= at + 2 {
        let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
        let noise = u16::from_be_bytes([rng.byte(), rng.byte()]);
        let near = [old.wrapping_add(1), old.wrapping_sub(1), old ^ 0x100, noise];
        let new = rng.pick(&[&[0, 1, 7, 8, 19, 20, 28, 0xffff], &near[..]].concat());
        frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
    }
}

/// A field with another value that means something there.
fn swap(rng: &mut Rng, frame: &mut [u8], is_tunnel: bool) {
    let addresses: Vec<Vec<u8>> = [
        HOST, PEER, OTHER_PEER, LOCAL, NEIGHBOUR, REMOTE, STRANGER, OUTSIDE,
    ]
    .map(|address| address.octets().to_vec())
    .to_vec();
    let macs: Vec<Vec<u8>> = [
        UNDERLAY_MAC,
        NEXT_HOP_MAC,
        VTEP_MAC,
        PEER_VTEP_MAC,
        GATEWAY_MAC,
        LOCAL_MAC,
        [0xff; 6],
        [0; 6],
    ]
    .map(|mac| mac.to_vec())
    .to_vec();
    let types = vec![vec![8, 0], vec![8, 6], vec![0x81, 0], vec![0x86, 0xdd]];
    let small = |values: &[u8]| values.iter().map(|value| vec![*value]).collect::<Vec<_>>();
    let start = rng.pick(if is_tunnel { &[0, 0, 50] } else { &[0] });
    let (at, values) = match rng.below(14) {
        0 => (0, macs),
        1 => (6, macs),
        2 => (12, types),
        3 => (14, small(&[0x45, 0x46, 0x44, 0x65, 0x4f, 0])),
        4 => (15, small(&[0, 1, 2, 3, 0xb8, 0xb9])),
        5 => (20, small(&[0, 0x20, 0x40, 0x80, 0x60, 0x1f])),
        6 => (22, small(&[0, 1, 2, 3, 255])),
        7 => (23, small(&[6, 17, 1, 132, 0])),
        8 => (26, addresses),
        9 => (30, addresses),
        10 => (
            34,
            vec![
                PORT.to_be_bytes().to_vec(),
                vec![0, 0],
                vec![0x9c, 0x40],
                vec![0x13, 0x88],
            ],
        ),
        11 => (
            36,
            vec![
                PORT.to_be_bytes().to_vec(),
                vec![0, 0],
                vec![0x9c, 0x40],
                vec![0x13, 0x88],
            ],
        ),
        12 => (
            47,
            small(&[0, 0x02, 0x10, 0x11, 0x14, 0x18, 0x08, 0x38, 0xd0]),
        ),
        _ if is_tunnel && start == 0 => {
            let header = vec![
                vec![8, 0, 0, 0, 0, 0, 42, 0],
                vec![8, 0, 0, 0, 0, 0, 43, 0],
                vec![8, 0, 0, 0, 0, 0, 42, 1],
                vec![0; 8],
                vec![0x0c, 0, 0, 0, 0, 0, 42, 0],
                vec![0x88, 0, 0, 1, 0, 0, 42, 0],
            ];
            (42, header)
        }
        _ => (40, vec![vec![0, 0], vec![0xff, 0xff], vec![0, 1]]),
    };
    let value = rng.pick(&values);
    if let Some(field) = frame.get_mut(start + at..start + at + value.len()) {
        field.copy_from_slice(&value);
    }
}
