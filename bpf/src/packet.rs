//! Access to a packet: the `__sk_buff` fields and bounds-checked header reads.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_CSUM_LEVEL_INC, BPF_CSUM_LEVEL_QUERY, BPF_CSUM_LEVEL_RESET},
    helpers::{bpf_csum_level, bpf_csum_update, bpf_skb_adjust_room, bpf_skb_pull_data},
};
use oncache_abi::{mark::MarkField, reason::Reason};

use crate::maps::constant;

/// A packet on its hook.
pub struct Skb {
    raw: *mut __sk_buff,
}

/// Reads one field of the context. Volatile: a masked read of a context field narrows to a width
/// that the verifier refuses.
macro_rules! field {
    ($self:ident, $name:ident) => {
        // SAFETY: `raw` is the context that the kernel passed to the program; the verifier checks
        // every access to it.
        unsafe { core::ptr::read_volatile(&raw const (*$self.raw).$name) }
    };
}

impl Skb {
    /// Wraps the context of a program.
    #[inline(always)]
    pub const fn new(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }

    /// The context, for helpers.
    #[inline(always)]
    pub const fn raw(&self) -> *mut __sk_buff {
        self.raw
    }

    /// Length in bytes from the Ethernet header on.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        field!(self, len)
    }

    /// Device the packet is on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        field!(self, ifindex)
    }

    /// Segment size of an aggregate, zero for a single packet.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        field!(self, gso_size)
    }

    /// The hash of the packet's flow, if it has one, from which the slow path makes the outer UDP source port
    /// (include/net/udp.h, `udp_flow_src_port`). TCP's packets and those of connected UDP sockets have it
    /// from their socket; for all others the slow path would calculate it (net/core/flow_dissector.c,
    /// `__skb_get_hash_net`).
    #[inline(always)]
    pub fn flow_hash(&self) -> Option<u32> {
        match field!(self, hash) {
            0 => None,
            hash => Some(hash),
        }
    }

    /// `skb->mark`.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        field!(self, mark)
    }

    /// Sets `skb->mark`.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // SAFETY: see `field!`; volatile for the same reason.
        unsafe { core::ptr::write_volatile(&raw mut (*self.raw).mark, mark) };
    }

    /// Whether the frame is untagged and of this type (host byte order).
    #[inline(always)]
    pub fn is_plain(&self, ethertype: u16) -> bool {
        field!(self, protocol) == u32::from(ethertype.to_be()) && field!(self, vlan_present) == 0
    }

    /// Whether the frame is addressed to the device it came in by (`PACKET_HOST`).
    #[inline(always)]
    pub fn is_to_host(&self) -> bool {
        field!(self, pkt_type) == 0
    }

    /// Writes the miss of a program in `epoch` into the mark: the packet may be learned from.
    #[inline(always)]
    pub fn mark_missed(&self, miss: u32, epoch: u32) {
        self.set_mark(marks().missed(self.mark(), miss, epoch));
    }

    /// Takes oncache's bits off the mark.
    #[inline(always)]
    pub fn clear_mark(&self) {
        let mark = self.mark();
        if mark != 0 && marks().is_marked(mark) {
            self.set_mark(marks().clear(mark));
        }
    }

    /// The `T` at `offset`; `Truncated` where the linear data end before it does.
    #[inline(always)]
    pub fn at<T>(&self, offset: usize) -> Result<*mut T, Reason> {
        Ok(self.bytes(offset, size_of::<T>())?.cast())
    }

    /// The `len` bytes at `offset`, as [`Self::at`]; for lengths that follow from a type parameter.
    #[inline(always)]
    pub fn bytes(&self, offset: usize, len: usize) -> Result<*mut u8, Reason> {
        let start = field!(self, data) as usize;
        let end = field!(self, data_end) as usize;
        if start + offset + len > end {
            return Err(Reason::Truncated);
        }
        Ok((start + offset) as *mut u8)
    }

    /// Makes the first `len` bytes linear, where they are not and the packet has them. Drivers may
    /// leave all but the outer headers in pages. Pointers got before are void after.
    #[inline(always)]
    pub fn ensure_linear(&self, len: u32) {
        let linear = field!(self, data_end).wrapping_sub(field!(self, data));
        if linear < len && self.len() > linear {
            let wanted = if self.len() < len { self.len() } else { len };
            // A failure shows as `Truncated` at the next read.
            // SAFETY: the context is the program's own.
            unsafe { bpf_skb_pull_data(self.raw, wanted) };
        }
    }

    /// Whether the packet's first checksum has been verified (`CHECKSUM_UNNECESSARY`): of UDP that has
    /// one, it is that of the outermost header.
    #[inline(always)]
    pub fn is_checksum_verified(&self) -> bool {
        self.checksum_level(BPF_CSUM_LEVEL_QUERY) >= 0
    }

    /// Whether a checksum within the packet is yet to be computed (`CHECKSUM_PARTIAL`), of one that
    /// [`Self::is_checksum_verified`] is not true of. No helper tells, but each of the two other states is
    /// told by what a helper does to it and to no other; both are left as they were.
    #[inline(always)]
    pub fn is_checksum_pending(&self) -> bool {
        // SAFETY: the context is the program's own. Nothing is added to a sum of the whole packet
        // (`CHECKSUM_COMPLETE`), and there is an error where there is none.
        if unsafe { bpf_csum_update(self.raw, 0) } >= 0 {
            return false;
        }
        // Of the two that are left this makes `CHECKSUM_NONE` a verified one (include/linux/skbuff.h,
        // `__skb_incr_checksum_unnecessary`).
        self.checksum_level(BPF_CSUM_LEVEL_INC);
        if !self.is_checksum_verified() {
            return true;
        }
        self.checksum_level(BPF_CSUM_LEVEL_RESET);
        false
    }

    #[inline(always)]
    fn checksum_level(&self, what: u32) -> i64 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_csum_level(self.raw, u64::from(what)) }
    }

    /// Inserts or removes bytes behind the Ethernet header. Pointers got before are void after.
    #[inline(always)]
    pub fn adjust_room(&self, len: i32, flags: u64) -> Result<(), Reason> {
        /// `BPF_ADJ_ROOM_MAC`.
        const MAC: u32 = 1;
        // SAFETY: the context is the program's own.
        match unsafe { bpf_skb_adjust_room(self.raw, len, MAC, flags) } {
            0 => Ok(()),
            _ => Err(Reason::HelperFailed),
        }
    }
}

/// The MAC address at `bytes`: in the low 48 bits, first byte lowest.
///
/// # Safety
///
/// The six bytes lie within the packet. BPF loads need no alignment.
#[inline(always)]
pub unsafe fn mac_at(bytes: *const u8) -> u64 {
    // SAFETY: the caller's.
    unsafe { u64::from(*bytes.cast::<u32>()) | u64::from(*bytes.add(4).cast::<u16>()) << 32 }
}

/// The mark field of the configuration.
#[inline(always)]
pub fn marks() -> MarkField {
    // SAFETY (of `constant!`): see `maps::volatile`.
    MarkField::trusted(unsafe { constant!(mark_mask) })
}
