//! Offsets and constants of the headers that the programs read and write.

/// Length of an Ethernet header.
pub const ETH_LEN: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of a UDP header.
pub const UDP_LEN: usize = 8;
/// Length of a TCP header without options.
pub const TCP_LEN: usize = 20;

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
/// SYN in the TCP flags byte.
pub const TCP_SYN: u8 = 0x02;
/// FIN, SYN and RST in the TCP flags byte: they change conntrack's state.
pub const TCP_STATE_FLAGS: u8 = 0x07;
/// ACK in the TCP flags byte: every segment of an established connection has it.
pub const TCP_ACK: u8 = 0x10;
/// URG in the TCP flags byte.
pub const TCP_URG: u8 = 0x20;

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

/// The inner TOS byte after decapsulation from an outer header: a mark of congestion and ECT(1) are
/// carried inside. None where the kernel drops the packet: congestion marked on one whose sender
/// does not know of ECN (include/net/inet_ecn.h, `INET_ECN_decapsulate`; RFC 6040, section 4.2).
#[inline(always)]
pub const fn decapsulated_tos(outer: u8, inner: u8) -> Option<u8> {
    match (outer & ECN_MASK, inner & ECN_MASK) {
        (ECN_CE, 0) => None,
        (ECN_CE, _) => Some(inner | ECN_CE),
        (ECN_ECT1, ECN_ECT0) => Some((inner & !ECN_MASK) | ECN_ECT1),
        _ => Some(inner),
    }
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
    fn marks_of_the_wire_are_carried_inside() {
        // Rows: outer Not-ECT, ECT(1), ECT(0), CE; columns: inner, likewise. RFC 6040, figure 4.
        const DROPPED: u8 = 0xff;
        let carried = [[0, 1, 2, 3], [0, 1, 1, 3], [0, 1, 2, 3], [DROPPED, 3, 3, 3]];
        for (outer, row) in carried.iter().enumerate() {
            for (inner, ecn) in row.iter().enumerate() {
                let (outer, inner) = (outer as u8 | 0x54, inner as u8 | 0xa8);
                let expected = (*ecn != DROPPED).then_some(*ecn | 0xa8);
                assert_eq!(
                    decapsulated_tos(outer, inner),
                    expected,
                    "{outer:#x} over {inner:#x}"
                );
            }
        }
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
