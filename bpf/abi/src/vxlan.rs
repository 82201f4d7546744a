//! The tunnel's headers: VXLAN over IPv4 (RFC 7348, section 5). Whoever needs their length has it from here.

use crate::headers::{ETH_LEN, IPV4_LEN, UDP_LEN};

/// Length of a VXLAN header.
const VXLAN_LEN: usize = 8;
/// First four bytes of a VXLAN header with a VNI and nothing else.
pub const FLAGS: [u8; 4] = [0x08, 0, 0, 0];

/// What encapsulation adds to a frame: outer IPv4, UDP, VXLAN and inner Ethernet.
pub const OVERHEAD: usize = IPV4_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN;
/// Bytes that encapsulation puts before the inner IP packet: the outer Ethernet header and [`OVERHEAD`].
pub const HEADER_LEN: usize = ETH_LEN + OVERHEAD;
/// Where the inner frame begins, its destination first.
pub const INNER_FRAME: usize = HEADER_LEN - ETH_LEN;

/// Offsets, from the frame's start, of the outer fields that differ from packet to packet.
pub mod varying {
    use super::{ETH_LEN, IPV4_LEN};

    /// IPv4 TOS, one byte.
    pub const TOS: usize = ETH_LEN + 1;
    /// IPv4 total length, two bytes.
    pub const TOTAL_LENGTH: usize = ETH_LEN + 2;
    /// IPv4 ID, two bytes.
    pub const ID: usize = ETH_LEN + 4;
    /// IPv4 header checksum, two bytes.
    pub const CHECKSUM: usize = ETH_LEN + 10;
    /// UDP source port, two bytes.
    pub const SOURCE_PORT: usize = ETH_LEN + IPV4_LEN;
    /// UDP length, two bytes.
    pub const UDP_LENGTH: usize = ETH_LEN + IPV4_LEN + 4;
}
