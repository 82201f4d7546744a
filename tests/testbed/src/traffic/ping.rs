//! ICMP echo, spoken here: ping(8) is not on every machine, and its output differs.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{FromRawFd, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{payload::Payload, quantiles};
use crate::{
    container::Container,
    frame::{Frame, sum16},
    socket::{set, timed_out},
};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// The bytes of an Ethernet header, for the parser of frames.
const ETHERNET: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0];

/// How many echo requests, and which.
#[derive(Debug, Clone)]
pub struct Ping {
    /// How many.
    pub count: u16,
    /// Bytes of data in each.
    pub size: usize,
    /// The time from one reply, or its absence, to the next request.
    pub interval: Duration,
    /// How long a reply may take.
    pub patience: Duration,
    /// Whether "don't fragment" is set.
    pub dont_fragment: bool,
    /// The time to live of the requests.
    pub ttl: u8,
}

impl Ping {
    /// `count` requests with 56 bytes of data, 10 ms apart, a second for each reply.
    #[must_use]
    pub fn new(count: u16) -> Self {
        Self {
            count,
            size: 56,
            interval: Duration::from_millis(10),
            patience: Duration::from_secs(1),
            dont_fragment: false,
            ttl: 64,
        }
    }

    /// Sends them, one after the other.
    #[must_use]
    pub fn run(&self, from: &Container, to: Ipv4Addr) -> PingReport {
        let mut report = PingReport::default();
        let socket = match from.enter(|| self.socket(to)) {
            Ok(socket) => socket,
            Err(error) => {
                report
                    .errors
                    .push(format!("{} to {to}: {error}", from.name));
                return report;
            }
        };
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let identity = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut times = Vec::new();
        for number in 0..self.count {
            if number > 0 {
                thread::sleep(self.interval);
            }
            let request = self.message(ECHO_REQUEST, identity, number);
            report.sent += 1;
            let begun = Instant::now();
            match self.exchange(&socket, &request, identity, number) {
                Ok(true) => times.push(begun.elapsed()),
                Ok(false) => report.wrong += 1,
                Err(error) if timed_out(&error) => {}
                Err(error) => report.errors.push(format!("request {number}: {error}")),
            }
        }
        report.received = u16::try_from(times.len()).expect("as many replies as requests at most");
        [report.median, _, report.slowest] = quantiles(times);
        report
    }

    fn socket(&self, to: Ipv4Addr) -> io::Result<UdpSocket> {
        // SAFETY: a plain system call; the descriptor is new and nobody else's.
        let socket = unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            match libc::socket(libc::AF_INET, kind, libc::IPPROTO_ICMP) {
                fd if fd < 0 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        let discovery = if self.dont_fragment {
            libc::IP_PMTUDISC_DO
        } else {
            libc::IP_PMTUDISC_DONT
        };
        set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discovery)?;
        set(
            &socket,
            libc::IPPROTO_IP,
            libc::IP_TTL,
            libc::c_int::from(self.ttl),
        )?;
        // Errors that routers report are errors of the socket.
        set::<libc::c_int>(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
        // Datagrams of whatever protocol are sent and received alike.
        let socket = UdpSocket::from(socket);
        socket.connect(SocketAddrV4::new(to, 0))?;
        Ok(socket)
    }

    /// Whether the reply came and is the request's echo; an error if it came not in time.
    fn exchange(
        &self,
        socket: &UdpSocket,
        request: &[u8],
        identity: u16,
        number: u16,
    ) -> io::Result<bool> {
        let wanted = self.message(ECHO_REPLY, identity, number);
        let deadline = Instant::now() + self.patience;
        let mut packet = [&ETHERNET[..], &[0; 65536]].concat();
        socket.send(request)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_micros(1))))?;
            let length = socket.recv(&mut packet[ETHERNET.len()..])?;
            let reply = Frame(&packet[..ETHERNET.len() + length]).ipv4();
            let reply = reply.map_or(&[][..], |packet| packet.payload());
            // Every raw socket hears every ICMP message to the host.
            if reply.first() == Some(&ECHO_REPLY) && reply.get(4..8) == wanted.get(4..8) {
                return Ok(reply == wanted);
            }
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn message(&self, kind: u8, identity: u16, number: u16) -> Vec<u8> {
        let mut message = vec![0; 8 + self.size];
        message[0] = kind;
        message[4..6].copy_from_slice(&identity.to_be_bytes());
        message[6..8].copy_from_slice(&number.to_be_bytes());
        Payload::new(u64::from(number)).fill(&mut message[8..]);
        let checksum = !sum16(&message, 0);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        message
    }
}

/// Sends `count` echo requests from a container to an address.
#[must_use]
pub fn ping(from: &Container, to: Ipv4Addr, count: u16) -> PingReport {
    Ping::new(count).run(from, to)
}

/// How the echo requests went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u16,
    /// Replies that came in time, with the request's data.
    pub received: u16,
    /// Replies with other data.
    pub wrong: u16,
    /// The median time to the reply.
    pub median: Duration,
    /// The longest.
    pub slowest: Duration,
    /// What the kernel or a router refused, such as a message that is too long.
    pub errors: Vec<String>,
}

impl PingReport {
    /// Whether every request was replied to.
    #[must_use]
    pub fn lossless(&self) -> bool {
        self.sent > 0 && self.sent == self.received
    }
}

impl fmt::Display for PingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            received,
            wrong,
            median,
            slowest,
            errors,
        } = self;
        write!(f, "{sent} sent, {received} received, {wrong} wrong, ")?;
        write!(f, "median {median:?}, slowest {slowest:?}")?;
        match errors.first() {
            Some(first) => write!(f, "; {first}"),
            None => Ok(()),
        }
    }
}
