//! The bits of `skb->mark` that belong to oncache.

use std::fmt;

use serde::{Serialize, Serializer};

/// A contiguous run of bits of `skb->mark` that oncache may use for its own.
///
/// Two of the bits say who missed, one says that conntrack holds the flow established, and all the
/// others carry the low bits of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MarkMask(u32);

/// Why a number is no usable mark mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkMaskError {
    /// No bit is set.
    #[error("has no bit set")]
    Zero,
    /// The set bits are not one run.
    #[error("is not one contiguous run of bits")]
    Gap,
    /// One run, but of fewer than [`MarkMask::MIN_WIDTH`] bits; holds the width found.
    #[error("is {0} bits wide, fewer than {min}", min = MarkMask::MIN_WIDTH)]
    Narrow(u32),
}

impl MarkMask {
    /// Bits that are not epoch: egress missed, ingress missed, established.
    const FLAG_BITS: u32 = 3;

    /// The fewest bits a mask may have: the three flags and five bits of epoch. With fewer the
    /// epoch could wrap round while a packet is on the slow path, and a verdict of a dead epoch
    /// would pass for a current one.
    pub const MIN_WIDTH: u32 = Self::FLAG_BITS + 5;

    /// Takes `bits` as a mask.
    ///
    /// # Errors
    /// [`MarkMaskError`] if `bits` is not one contiguous run of at least [`Self::MIN_WIDTH`] bits.
    pub fn new(bits: u32) -> Result<Self, MarkMaskError> {
        if bits == 0 {
            return Err(MarkMaskError::Zero);
        }
        let width = bits.count_ones();
        if bits.leading_zeros() + width + bits.trailing_zeros() != u32::BITS {
            return Err(MarkMaskError::Gap);
        }
        if width < Self::MIN_WIDTH {
            return Err(MarkMaskError::Narrow(width));
        }
        Ok(Self(bits))
    }

    /// The mask itself, in host byte order as `skb->mark` is.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Position of the lowest bit of the mask, 0 to 24.
    #[must_use]
    pub fn shift(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// Number of bits in the mask, 8 to 32.
    #[must_use]
    pub fn width(self) -> u32 {
        self.0.count_ones()
    }

    /// Number of bits that carry the epoch, 5 to 29.
    #[must_use]
    pub fn epoch_bits(self) -> u32 {
        self.width() - Self::FLAG_BITS
    }
}

impl Default for MarkMask {
    /// `0x0fff0000`: nine bits of epoch, clear of the low half that most programs mark with.
    fn default() -> Self {
        Self(0x0fff_0000)
    }
}

impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl Serialize for MarkMask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_run_of_eight_bits_or_more_is_a_mask() {
        assert_eq!(MarkMask::new(0), Err(MarkMaskError::Zero));
        assert_eq!(MarkMask::new(0x0ff0_ff00), Err(MarkMaskError::Gap));
        assert_eq!(MarkMask::new(0x8000_0001), Err(MarkMaskError::Gap));
        assert_eq!(MarkMask::new(0x0000_007f), Err(MarkMaskError::Narrow(7)));
        for bits in [0x0000_00ff, 0xff00_0000, 0x0fff_0000, 0xffff_ffff] {
            assert_eq!(MarkMask::new(bits).map(MarkMask::bits), Ok(bits));
        }
    }

    #[test]
    fn the_default_would_pass_its_own_check() {
        let mask = MarkMask::default();
        assert_eq!(MarkMask::new(mask.bits()), Ok(mask));
        assert_eq!((mask.shift(), mask.width(), mask.epoch_bits()), (16, 12, 9));
        assert_eq!(mask.to_string(), "0x0fff0000");
    }
}
