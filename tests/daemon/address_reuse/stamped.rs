//! Packets that carry the number of the round they belong to, and a look at which of them come in.

use std::{
    collections::HashMap,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// What every packet of the conversations carries, with the number of the round.
const STAMP: &[u8; 8] = b"oncache!";
/// Bytes of what is sent at once.
pub const RECORD: usize = 64;

/// What is sent in a round.
pub fn record(round: u64) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(STAMP);
    bytes[8..16].copy_from_slice(&round.to_be_bytes());
    bytes
}

/// The round that a packet or frame belongs to.
pub fn round_of(bytes: &[u8]) -> Option<u64> {
    let at = bytes
        .windows(STAMP.len())
        .position(|found| found == STAMP)?;
    let number = bytes.get(at + 8..at + 16)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

/// Stamped frames seen by round and whether they were TCP's.
pub type Seen = Arc<Mutex<HashMap<(u64, bool), u64>>>;

/// A socket that sees every frame of every device of the namespace, those that are yet to come
/// included.
pub fn packet_socket() -> OwnedFd {
    let every = i32::from(u16::to_be(libc::ETH_P_ALL as u16));
    // SAFETY: no memory is involved; the descriptor is checked and then owned.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, every);
        assert!(
            fd >= 0,
            "a packet socket: {}",
            std::io::Error::last_os_error()
        );
        let socket = OwnedFd::from_raw_fd(fd);
        let patience = libc::timeval {
            tv_sec: 0,
            tv_usec: 100_000,
        };
        let length = libc::socklen_t::try_from(size_of_val(&patience)).expect("a small structure");
        let set = libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            length,
        );
        assert_eq!(set, 0, "a time-out: {}", std::io::Error::last_os_error());
        socket
    }
}

pub fn sniff(socket: &OwnedFd, seen: &Seen, over: &AtomicBool) {
    /// `PACKET_OUTGOING` of include/uapi/linux/if_packet.h.
    const OUTGOING: u8 = 4;
    const TCP: u8 = 6;
    let mut bytes = [0_u8; 65536];
    while !over.load(Ordering::Relaxed) {
        // SAFETY: any bytes are a valid `sockaddr_ll`.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = libc::socklen_t::try_from(size_of_val(&from)).expect("a small structure");
        // SAFETY: the pointers and lengths describe `bytes` and `from`.
        let received = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        let Ok(received) = usize::try_from(received) else {
            continue;
        };
        let frame = &bytes[..received];
        if from.sll_pkttype == OUTGOING || frame.len() < 34 {
            continue;
        }
        if let Some(round) = round_of(frame) {
            let mut seen = seen.lock().expect("nobody has panicked");
            *seen.entry((round, frame[23] == TCP)).or_default() += 1;
        }
    }
}
