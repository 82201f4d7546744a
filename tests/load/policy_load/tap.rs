//! What leaves and enters a container while it is looked at, with the moment it left.

use std::{
    collections::HashSet,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::Duration,
};

use oncache_testbed::{Container, Frame, PATIENCE, eventually};

use super::now;

/// What the kernel may hold of one look.
const BUFFER: libc::c_int = 256 << 20;
/// How much of a frame is kept: all headers and the beginning of the payload.
const SNAP: u32 = 128;

/// What tells a packet from every other: addresses, ports, the IP identification (each TCP socket
/// counts its own, retransmissions too), TCP's numbers or the first bytes of the payload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    id: u16,
    ports: [u16; 2],
    rest: [u8; 18],
}

/// A packet that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    pub identity: Identity,
    /// Whether the container sent it.
    pub outgoing: bool,
    /// When it passed, since the epoch of `CLOCK_REALTIME`, by the kernel; of outgoing packets only.
    pub at: Duration,
}

/// A packet socket on a container's `eth0` that hears only while it is told to.
pub struct Tap(OwnedFd);

impl Tap {
    pub fn on(container: &Container) -> Self {
        let opened = container.enter(open);
        Self(opened.unwrap_or_else(|error| panic!("a tap in {}: {error}", container.name)))
    }

    /// Begins to look.
    pub fn look(&self) {
        self.filter(SNAP);
    }

    /// Waits until packets are stamped when they pass. The kernel begins to some time after it is asked to, by a
    /// work queue (net/core/dev.c, `net_enable_timestamp`), and until then stamps them when they are read (net/socket.c,
    /// `__sock_recv_timestamp`). Packets have to pass meanwhile.
    pub fn until_stamping(&self) {
        eventually("packets are stamped when they pass", PATIENCE, || {
            self.look();
            thread::sleep(Duration::from_millis(5));
            let (seen, stamped) = self.hear();
            stamped && seen.iter().any(|it| it.outgoing)
        });
    }

    /// Ends to look; returns the TCP and UDP packets that passed meanwhile.
    ///
    /// # Panics
    /// If the kernel had to throw any away, or did not stamp one.
    pub fn seen(&self) -> Vec<Seen> {
        let (seen, stamped) = self.hear();
        assert!(stamped, "packets are stamped when they pass");
        seen
    }

    /// As [`Tap::seen`]; and whether what went out was stamped before it was read.
    fn hear(&self) -> (Vec<Seen>, bool) {
        self.filter(0);
        let ended = now();
        let mut seen = Vec::new();
        while let Some(packet) = self.next().expect("a packet socket is read") {
            seen.extend(packet);
        }
        let mut statistics = [0_u32; 2];
        let mut length = libc::socklen_t::try_from(size_of_val(&statistics)).expect("small");
        // SAFETY: the option is a structure of two integers, `tpacket_stats`; both pointers live
        // through the call.
        let read = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        assert_eq!((read, statistics[1]), (0, 0), "nothing was thrown away");
        let stamped = seen.iter().all(|it: &Seen| !it.outgoing || it.at <= ended);
        (seen, stamped)
    }

    /// Lets so many bytes of every frame through; none at all for 0.
    fn filter(&self, bytes: u32) {
        let mut verdict = libc::sock_filter {
            code: u16::try_from(libc::BPF_RET | libc::BPF_K).expect("an instruction code"),
            jt: 0,
            jf: 0,
            k: bytes,
        };
        let program = libc::sock_fprog {
            len: 1,
            filter: &raw mut verdict,
        };
        set(&self.0, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program).expect("a filter");
    }

    /// The next frame that was heard; none if there is none. What is neither TCP nor UDP is empty.
    fn next(&self) -> io::Result<Option<Option<Seen>>> {
        let mut frame = [0_u8; SNAP as usize];
        let mut control = [0_u64; 16];
        // SAFETY: zeroes are valid values of these C structures; all pointers live through the call.
        let (length, from, at) = unsafe {
            let mut from: libc::sockaddr_ll = std::mem::zeroed();
            let mut part = libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: frame.len(),
            };
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_name = (&raw mut from).cast();
            message.msg_namelen = libc::socklen_t::try_from(size_of_val(&from)).expect("small");
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            let length = libc::recvmsg(self.0.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
            if length < 0 {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(None),
                    _ => Err(error),
                };
            }
            let mut at = None;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            if !header.is_null() && (*header).cmsg_type == libc::SCM_TIMESTAMPNS {
                at = Some(std::ptr::read_unaligned(
                    libc::CMSG_DATA(header).cast::<libc::timespec>(),
                ));
            }
            (length, from, at)
        };
        let length = usize::try_from(length).expect("a length").min(frame.len());
        let at = at.expect("the kernel stamps what it hands over");
        Ok(Some(identity(&frame[..length]).map(|identity| Seen {
            identity,
            outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
            at: Duration::new(
                u64::try_from(at.tv_sec).expect("after 1970"),
                u32::try_from(at.tv_nsec).expect("nanoseconds"),
            ),
        })))
    }
}

fn identity(frame: &[u8]) -> Option<Identity> {
    let frame = Frame(frame);
    let packet = frame.ipv4()?;
    let mut rest = [0; 18];
    let ports = if let Some(tcp) = packet.tcp() {
        rest[..4].copy_from_slice(&tcp.sequence().to_be_bytes());
        rest[4..8].copy_from_slice(&tcp.acknowledgement().to_be_bytes());
        [tcp.source_port(), tcp.destination_port()]
    } else {
        let udp = packet.udp()?;
        rest.copy_from_slice(udp.payload().get(..18)?);
        [udp.source_port(), udp.destination_port()]
    };
    Some(Identity {
        from: packet.source(),
        to: packet.destination(),
        protocol: packet.protocol(),
        id: packet.id(),
        ports,
        rest,
    })
}

/// What `sender` saw leave after `moment`, and how many of those `receiver` saw arrive.
pub fn crossed_after(moment: Duration, sender: &[Seen], receiver: &[Seen]) -> (usize, usize) {
    let late = |seen: &&Seen| seen.outgoing && seen.at > moment;
    let sent: HashSet<&Identity> = sender.iter().filter(late).map(|it| &it.identity).collect();
    let arrived = receiver
        .iter()
        .filter(|seen| !seen.outgoing && sent.contains(&seen.identity));
    (sent.len(), arrived.count())
}

fn set<T: Copy>(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: T,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length describe `value`, which lives through the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            length,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: plain system calls; the name and the address live longer than the calls, and the
    // descriptor is new and nobody else's.
    unsafe {
        let index = match libc::if_nametoindex(c"eth0".as_ptr()) {
            0 => return Err(io::Error::last_os_error()),
            index => libc::c_int::try_from(index).map_err(io::Error::other)?,
        };
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let tap = Tap(OwnedFd::from_raw_fd(fd));
        tap.filter(0);
        set(&tap.0, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        set::<libc::c_int>(&tap.0, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        let all = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?;
        address.sll_protocol = all.to_be();
        address.sll_ifindex = index;
        let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
        match libc::bind(fd, (&raw const address).cast(), length) {
            0 => Ok(tap.0),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
