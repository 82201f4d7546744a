//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).

/// Folds a sum of 16-bit words (or of 32-bit words taken as two) to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Sum over an IPv4 header without options, given as its five 32-bit words in memory order.
/// A header whose checksum is right folds to `0xffff`.
#[inline(always)]
pub const fn sum_header(words: &[u32; 5]) -> u64 {
    words[0] as u64 + words[1] as u64 + words[2] as u64 + words[3] as u64 + words[4] as u64
}

/// Whether [`sum_header`] is that of a header whose checksum is right.
#[inline(always)]
pub const fn is_right(sum: u64) -> bool {
    // Five 32-bit words: what is above them is four at most, and this below three times 0xffff.
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    sum == 0xffff || sum == 2 * 0xffff
}

/// The checksum field after the TTL was lowered by one (include/net/ip.h, `ip_decrease_ttl`), as read
/// from memory.
#[inline(always)]
pub const fn after_hop(checksum: u16) -> u16 {
    let sum = checksum as u32 + 0x0100_u16.to_be() as u32;
    (sum + (sum >= 0xffff) as u32) as u16
}

/// The checksum field after one 16-bit word of the covered data changed from `old` to `new`. All
/// three as read from memory: the sum is the same in either byte order (RFC 1071, section 2(B)).
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum) as u64 + (!old) as u64 + new as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example header of RFC 1071's many commentaries: 45 00 00 73 ... b8 61.
    const HEADER: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];

    fn words(header: &[u8; 20]) -> [u32; 5] {
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(header.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        words
    }

    #[test]
    fn a_right_header_folds_to_ones_and_a_wrong_one_does_not() {
        assert!(is_right(sum_header(&words(&HEADER))));
        assert_eq!(fold(sum_header(&words(&HEADER))), 0xffff);
        let mut wrong = HEADER;
        wrong[15] ^= 1;
        assert!(!is_right(sum_header(&words(&wrong))));
        assert_ne!(fold(sum_header(&words(&wrong))), 0xffff);
    }

    #[test]
    fn a_sum_is_right_where_it_folds_to_ones() {
        let greatest = 5 * u64::from(u32::MAX);
        let edges = [
            0,
            0xffff,
            0x1_0000,
            0x1_fffe,
            0xffff_0000,
            0xffff_ffff,
            0x1_0000_0000,
        ];
        let near = edges.iter().flat_map(|edge| edge - edge.min(&3)..edge + 4);
        let last = greatest - 0x3_0000..=greatest;
        let mut seed = 1_u64;
        let random = core::iter::repeat_with(move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Half of them right ones.
            let sum = (seed >> 24) % greatest;
            if seed & 1 == 0 {
                sum
            } else {
                sum - sum % 0xffff
            }
        });
        for sum in near.chain(last).chain(random.take(1_000_000)) {
            assert_eq!(is_right(sum), fold(sum) == 0xffff, "{sum:#x}");
        }
    }

    #[test]
    fn an_update_equals_a_recomputation_for_every_ttl() {
        for ttl in 2..=255u8 {
            let mut header = HEADER;
            header[8] = ttl;
            header[10] = 0;
            header[11] = 0;
            let checksum = !fold(sum_header(&words(&header)));
            let old = u16::from_ne_bytes([ttl, header[9]]);
            let new = u16::from_ne_bytes([ttl - 1, header[9]]);
            header[8] = ttl - 1;
            header[10..12].copy_from_slice(&update(checksum, old, new).to_ne_bytes());
            assert_eq!(fold(sum_header(&words(&header))), 0xffff, "ttl {ttl}");
            assert_eq!(after_hop(checksum), update(checksum, old, new), "ttl {ttl}");
        }
    }
}
