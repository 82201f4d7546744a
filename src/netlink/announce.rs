//! Telling stations on a device's link where an address is: a gratuitous ARP request.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::{Mac, NetlinkError};

const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_ARP: u16 = 0x0806;
/// Length of an Ethernet header and an ARP packet for IPv4.
const FRAME: usize = 14 + 28;

/// Tells every station on `device`, which has the link-layer address `sender`, that `address` is at
/// `mac`. Those that have it in their neighbour tables take it over at once, whatever they had
/// before; the others learn nothing (net/ipv4/arp.c, `arp_process`: `is_garp`).
///
/// # Errors
/// [`NetlinkError::Announce`] when it cannot be sent.
pub fn announce(device: u32, sender: Mac, address: Ipv4Addr, mac: Mac) -> Result<(), NetlinkError> {
    send(device, &frame(sender, address, mac))
        .map_err(|source| NetlinkError::Announce { address, source })
}

/// An ARP request for an address by its holder (RFC 5227, section 3: an announcement).
fn frame(sender: Mac, address: Ipv4Addr, mac: Mac) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let parts: [&[u8]; 8] = [
        &BROADCAST,
        &sender,
        &ETHERTYPE_ARP.to_be_bytes(),
        // Ethernet, IPv4, their address lengths, request.
        &[0, 1, 8, 0, 6, 4, 0, 1],
        &mac,
        &address.octets(),
        &[0; 6],
        &address.octets(),
    ];
    let mut at = 0;
    for part in parts {
        frame[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    frame
}

fn send(device: u32, frame: &[u8]) -> io::Result<()> {
    // Protocol 0: the socket receives nothing.
    // SAFETY: the call takes three integers; the descriptor is checked and then owned.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: any bytes are a valid `sockaddr_ll`, zeroes too.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = AF_PACKET;
    to.sll_protocol = ETHERTYPE_ARP.to_be();
    to.sll_ifindex = i32::try_from(device).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of_val(&to)).map_err(io::Error::other)?;
    // SAFETY: the pointers and lengths describe `frame` and `to`, which the kernel only reads.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The family of packet sockets, as an address holds it (include/linux/socket.h).
const AF_PACKET: u16 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_a_request_for_the_holders_own_address() {
        let mac = [0x0a, 0x63, 10, 42, 1, 7];
        let frame = frame([2, 0, 0, 0, 0, 1], Ipv4Addr::new(10, 42, 1, 7), mac);
        assert_eq!(
            frame[..14],
            [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6]
        );
        assert_eq!(frame[20..22], [0, 1]);
        assert_eq!(frame[22..28], mac);
        assert_eq!(frame[28..32], [10, 42, 1, 7]);
        assert_eq!(frame[38..], [10, 42, 1, 7]);
    }
}
