//! UDP datagrams one way, and which of them arrived whole.

use std::{
    fmt, io,
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::payload::Payload;
use crate::{
    container::Container,
    patience::bound,
    socket::{force_receive_buffer, set},
};

/// What the receiver's kernel may hold.
const RECEIVE_BUFFER: usize = 64 << 20;

/// How many bytes may be on their way: the sender waits for the receiver beyond that.
const WINDOW: u64 = 4 << 20;

/// What a datagram takes in a socket's buffer besides its data, roughly.
const OVERHEAD: u64 = 1024;

/// How long nothing may arrive, after the last was sent, until the rest counts as lost.
const QUIET: Duration = Duration::from_millis(500);

/// How many datagrams, and which.
#[derive(Debug, Clone)]
pub struct Datagrams {
    /// How many in all.
    pub count: u64,
    /// Bytes of each, at least 8.
    pub size: usize,
    /// How many the sender hands to the kernel at once, to be cut apart as late as possible
    /// (`UDP_SEGMENT`); 1 is one by one.
    pub segments: usize,
    /// Whether routers and the sender may fragment a datagram: `None` leaves it to the kernel,
    /// which discovers the path's MTU; `Some(true)` sets "don't fragment", `Some(false)` clears.
    pub dont_fragment: Option<bool>,
    /// A pause between two sends, besides the pacing by what has arrived.
    pub pause: Duration,
    /// How long the whole may take.
    pub at_most: Duration,
}

impl Datagrams {
    /// `count` datagrams of `size` bytes of data, one by one.
    #[must_use]
    pub fn new(count: u64, size: usize) -> Self {
        Self {
            count,
            size,
            segments: 1,
            dont_fragment: None,
            pause: Duration::ZERO,
            at_most: Duration::from_secs(60),
        }
    }

    /// The same, cut out of sends of `segments` datagrams each.
    #[must_use]
    pub fn segmented(count: u64, size: usize, segments: usize) -> Self {
        Self {
            segments,
            ..Self::new(count, size)
        }
    }

    /// Sends them from `from` to `to`; port 0 is any.
    #[must_use]
    pub fn run(&self, from: &Container, to: &Container, port: u16) -> DatagramReport {
        let started = Instant::now();
        let (client, server) = match self.sockets(from, to, port) {
            Ok(sockets) => sockets,
            Err(error) => {
                let error = format!("{} to {}: {error}", from.name, to.name);
                return DatagramReport {
                    errors: vec![error],
                    ..DatagramReport::default()
                };
            }
        };
        let (arrived, sending) = (AtomicU64::new(0), AtomicBool::new(true));
        let mut report = thread::scope(|scope| {
            let receiver = scope.spawn(|| self.receive(&server, &arrived, &sending));
            let (sent, errors) = self.send(&client, &arrived, started);
            sending.store(false, Ordering::Relaxed);
            let arrivals = receiver
                .join()
                .expect("a receiver reports instead of panicking");
            DatagramReport {
                sent,
                errors,
                ..arrivals
            }
        });
        report.seconds = started.elapsed().as_secs_f64();
        report
    }

    fn sockets(
        &self,
        from: &Container,
        to: &Container,
        port: u16,
    ) -> io::Result<(UdpSocket, UdpSocket)> {
        let server = to.enter(|| bound(|| UdpSocket::bind((to.ip, port))))?;
        let client = from.enter(|| UdpSocket::bind((from.ip, 0)))?;
        client.connect((to.ip, server.local_addr()?.port()))?;
        force_receive_buffer(&server, RECEIVE_BUFFER)?;
        server.set_read_timeout(Some(Duration::from_millis(20)))?;
        client.set_write_timeout(Some(Duration::from_secs(5)))?;
        if let Some(dont) = self.dont_fragment {
            let value = if dont {
                libc::IP_PMTUDISC_DO
            } else {
                libc::IP_PMTUDISC_DONT
            };
            set(&client, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)?;
        }
        if self.segments > 1 {
            let size = libc::c_int::try_from(self.size()).map_err(io::Error::other)?;
            set(&client, libc::SOL_UDP, libc::UDP_SEGMENT, size)?;
        }
        Ok((client, server))
    }

    fn size(&self) -> usize {
        self.size.max(8)
    }

    fn send(
        &self,
        client: &UdpSocket,
        arrived: &AtomicU64,
        started: Instant,
    ) -> (u64, Vec<String>) {
        let (mut sent, mut given_up, mut errors) = (0, 0, Vec::new());
        let mut next = 0;
        let window = (WINDOW / (self.size() as u64 + OVERHEAD)).max(self.segments as u64 * 2);
        while next < self.count && started.elapsed() < self.at_most {
            let together = (self.segments.max(1) as u64).min(self.count - next);
            let mut bytes = Vec::with_capacity(self.size() * self.segments.max(1));
            for number in next..next + together {
                bytes.extend(self.datagram(number));
            }
            next += together;
            match client.send(&bytes) {
                Ok(_) => sent += together,
                Err(error) => {
                    if errors.len() < 100 {
                        errors.push(format!("datagram {}: {error}", next - together));
                    }
                }
            }
            thread::sleep(self.pause);
            let waiting = Instant::now();
            let on_the_way = |given_up: u64| {
                u64::saturating_sub(sent, arrived.load(Ordering::Relaxed) + given_up)
            };
            while on_the_way(given_up) > window {
                if waiting.elapsed() > Duration::from_millis(50) {
                    given_up += on_the_way(given_up); // those are lost
                }
                thread::sleep(Duration::from_micros(50));
            }
        }
        (sent, errors)
    }

    fn receive(
        &self,
        server: &UdpSocket,
        arrived: &AtomicU64,
        sending: &AtomicBool,
    ) -> DatagramReport {
        let mut report = DatagramReport::default();
        let mut seen = vec![false; usize::try_from(self.count).expect("as many as memory holds")];
        let mut bytes = vec![0; 65536];
        let mut highest = None;
        let mut last = Instant::now();
        while report.whole < self.count {
            let Ok(length) = server.recv(&mut bytes) else {
                if sending.load(Ordering::Relaxed) {
                    last = Instant::now();
                } else if last.elapsed() > QUIET {
                    break;
                }
                continue;
            };
            last = Instant::now();
            arrived.fetch_add(1, Ordering::Relaxed);
            let number = bytes[..length]
                .first_chunk()
                .map(|number| u64::from_be_bytes(*number));
            let number = number
                .filter(|number| *number < self.count && bytes[..length] == self.datagram(*number));
            let Some(number) = number else {
                report.damaged += 1;
                continue;
            };
            let slot = &mut seen[usize::try_from(number).expect("checked against the count")];
            if std::mem::replace(slot, true) {
                report.duplicated += 1;
                continue;
            }
            report.whole += 1;
            if highest.is_some_and(|highest| number < highest) {
                report.reordered += 1;
            }
            highest = highest.max(Some(number));
        }
        report.missing = (0..)
            .zip(seen)
            .filter(|(_, seen)| !seen)
            .map(|(number, _)| number)
            .collect();
        report
    }

    /// The number, then bytes that belong to it.
    fn datagram(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.size()];
        let (head, rest) = bytes.split_at_mut(8);
        head.copy_from_slice(&number.to_be_bytes());
        Payload::new(!number).fill(rest);
        bytes
    }
}

/// What arrived.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DatagramReport {
    /// Datagrams that the sender's kernel took.
    pub sent: u64,
    /// Different datagrams that arrived with their length and content.
    pub whole: u64,
    /// Datagrams that arrived with another length or content.
    pub damaged: u64,
    /// Datagrams that arrived once more.
    pub duplicated: u64,
    /// Datagrams that arrived after one with a higher number.
    pub reordered: u64,
    /// The numbers of those that never arrived whole.
    pub missing: Vec<u64>,
    /// What went wrong in sending, at most a hundred times.
    pub errors: Vec<String>,
    /// All together.
    pub seconds: f64,
}

impl fmt::Display for DatagramReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            whole,
            damaged,
            duplicated,
            reordered,
            missing,
            errors,
            seconds,
        } = self;
        write!(
            f,
            "{sent} sent, {whole} whole, {damaged} damaged, {duplicated} duplicated, "
        )?;
        write!(
            f,
            "{reordered} reordered, {} missing in {seconds:.3} s",
            missing.len()
        )?;
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            write!(f, " (from {first} to {last})")?;
        }
        match errors.first() {
            Some(first) => write!(f, "; {first}"),
            None => Ok(()),
        }
    }
}
