//! Offsets and constants of the headers that the programs read and write.

/// Length of an Ethernet header.
pub const ETH_LEN: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of a UDP header.
pub const UDP_LEN: usize = 8;
/// Length of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// Length of a VXLAN header (RFC 7348, section 5).
pub const VXLAN_LEN: usize = 8;
/// What VXLAN encapsulation adds to a frame: outer IPv4, UDP, VXLAN and inner Ethernet.
pub const OVERHEAD: usize = IPV4_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN;

/// EtherType of IPv4, host byte order.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// First byte of an IPv4 header without options.
pub const IPV4_PLAIN: u8 = 0x45;
/// Fragment offset and "more fragments" in the IPv4 flags word, host byte order: a packet with any
/// of these set is a fragment (RFC 791, section 3.1).
pub const FRAGMENT: u16 = 0x3fff;
/// "Don't fragment" in the IPv4 flags word, host byte order.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// FIN, SYN and RST in the TCP flags byte: they change conntrack's state.
pub const TCP_STATE_FLAGS: u8 = 0x07;
/// URG in the TCP flags byte.
pub const TCP_URG: u8 = 0x20;
/// First four bytes of a VXLAN header with a VNI and nothing else (RFC 7348, section 5).
pub const VXLAN_FLAGS: [u8; 4] = [0x08, 0, 0, 0];

/// The ECN bits of a TOS byte (RFC 3168, section 5).
pub const ECN_MASK: u8 = 3;
/// ECT(1).
pub const ECN_ECT1: u8 = 1;
/// ECT(0).
pub const ECN_ECT0: u8 = 2;
/// Congestion experienced.
pub const ECN_CE: u8 = 3;

/// The outer TOS byte for an inner one: ECN copied, congestion shown as ECT(0), DSCP zero.
///
/// What the kernel does for a VXLAN device with tos 0 (include/net/inet_ecn.h,
/// `INET_ECN_encapsulate`; RFC 6040, section 4.1 compatibility mode leaves CE to the inner header).
#[inline(always)]
pub const fn outer_tos(inner: u8) -> u8 {
    let ecn = inner & ECN_MASK;
    if ecn == ECN_CE { ECN_ECT0 } else { ecn }
}

/// Whether decapsulation writes what the outer header says of congestion into the inner one, or
/// drops the packet for it: congestion experienced, or ECT(1) over ECT(0) (RFC 6040, section 4.2;
/// include/net/inet_ecn.h, `INET_ECN_decapsulate`).
#[inline(always)]
pub const fn outer_ecn_matters(outer: u8, inner: u8) -> bool {
    let outer = outer & ECN_MASK;
    outer == ECN_CE || outer == ECN_ECT1 && inner & ECN_MASK == ECN_ECT0
}

/// The outer UDP source port for a flow hash: what `udp_flow_src_port` (include/net/udp.h) gives
/// for the range `min..=max` (host byte order).
#[inline(always)]
pub const fn source_port(hash: u32, min: u16, max: u16) -> u16 {
    let hash = hash ^ (hash << 16);
    let span = (max - min) as u64;
    ((hash as u64 * span) >> 32) as u16 + min
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_tos_carries_ecn_and_no_dscp() {
        assert_eq!(outer_tos(0b1011_1000), 0);
        assert_eq!(outer_tos(0b1011_1001), 1);
        assert_eq!(outer_tos(0b1011_1010), 2);
        assert_eq!(outer_tos(0b1011_1011), 2);
    }

    #[test]
    fn only_ce_and_ect1_over_ect0_change_the_inner_header() {
        let matters = |outer: u8| [0, 1, 2, 3].map(|inner| outer_ecn_matters(outer, inner));
        assert_eq!(matters(0b1011_1000), [false; 4]);
        assert_eq!(matters(0b1011_1001), [false, false, true, false]);
        assert_eq!(matters(0b1011_1010), [false; 4]);
        assert_eq!(matters(0b1011_1011), [true; 4]);
    }

    #[test]
    fn source_port_stays_in_its_range() {
        for hash in [0, 1, 0x8000_0000, 0xdead_beef, u32::MAX] {
            let port = source_port(hash, 32768, 60999);
            assert!((32768..=60999).contains(&port), "{hash:#x} gives {port}");
        }
        assert_eq!(source_port(u32::MAX, 5000, 5000), 5000);
    }
}
