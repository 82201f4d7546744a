//! TCP segments made by hand.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use oncache_testbed::Container;

use super::stamped::record;

/// A TCP segment of a connection, stamped, as it stands behind the IP header. Its sequence number is
/// beyond the window: whoever has the connection answers and takes nothing.
pub fn segment(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), round: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.1.to_be_bytes());
    bytes.extend(to.1.to_be_bytes());
    bytes.extend([0x40, 0, 0, 0, 0x40, 0, 0, 0]);
    // Five words of header; PSH and ACK; window; checksum and urgent pointer to come.
    bytes.extend([0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(record(round));
    let length = u16::try_from(bytes.len()).expect("a short segment");
    let pseudo = [
        &from.0.octets()[..],
        &to.0.octets()[..],
        &[0, 6],
        &length.to_be_bytes()[..],
    ];
    let words = pseudo.concat();
    let sum: u32 = [&words[..], &bytes[..]]
        .concat()
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let checksum = !u16::try_from(folded).expect("folded");
    bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// Sends segments of connections that no socket of its own speaks for.
pub struct RawTcp(OwnedFd);

impl RawTcp {
    pub fn new(remote: &Container) -> Self {
        // SAFETY: no memory is involved; the descriptor is checked and then owned.
        let fd = remote
            .enter(|| unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP) });
        assert!(fd >= 0, "a raw socket: {}", std::io::Error::last_os_error());
        // SAFETY: as above.
        Self(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub fn send(&self, to: Ipv4Addr, segment: &[u8]) {
        let receiver = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from(to).to_be(),
            },
            sin_zero: [0; 8],
        };
        let length = libc::socklen_t::try_from(size_of_val(&receiver)).expect("a small structure");
        // SAFETY: the pointers and lengths describe `segment` and `receiver`. Refused where the address is
        // nobody's at the moment, which is no failure here.
        unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                segment.as_ptr().cast(),
                segment.len(),
                0,
                (&raw const receiver).cast(),
                length,
            )
        };
    }
}
