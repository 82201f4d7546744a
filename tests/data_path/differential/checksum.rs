//! The Internet checksum (RFC 1071), computed by other means than the programs do.

use std::net::Ipv4Addr;

use crate::differential::packet::{Checksum, Offload};

pub fn put_checksum(bytes: &mut [u8], at: usize, pseudo: u64, wanted: Checksum, offload: Offload) {
    let right = match !fold(sum(bytes) + pseudo) {
        0 => 0xffff,
        checksum => checksum,
    };
    let checksum = match (offload, wanted) {
        // What the device has to start from.
        (Offload::Checksum | Offload::Segments(_), _) => fold(pseudo),
        (_, Checksum::Right) => right,
        (_, Checksum::Wrong) => right ^ 0x5555,
        (_, Checksum::Zero) => 0,
    };
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

pub fn pseudo(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: usize) -> u64 {
    let length = u64::try_from(length).unwrap_or(0);
    sum(&source.octets()) + sum(&destination.octets()) + u64::from(protocol) + length
}

/// The sum of the 16-bit words (RFC 1071).
pub fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let mut total = 0_u128;
    for word in &mut words {
        let word: [u8; 8] = word.try_into().unwrap_or_default();
        total += u128::from(u64::from_be_bytes(word));
    }
    let mut rest = [0; 8];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    total += u128::from(u64::from_be_bytes(rest));
    // Modulo 2^16 - 1 words of all sizes sum up alike; only a sum of nothing is zero.
    match u64::try_from(total % 0xffff) {
        Ok(0) if total > 0 => 0xffff,
        sum => sum.unwrap_or(0),
    }
}

/// A sum in 16 bits, carries added.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}
