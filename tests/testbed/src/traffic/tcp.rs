//! One direction of a TCP transfer: a thread that sends and hashes, one that receives and hashes.

use std::{
    fmt,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{float, payload::Payload};
use crate::socket::{get, timed_out};

/// How much is written and read at once.
const PIECE: usize = 256 << 10;

/// Which way the bytes of a transfer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the connecting to the listening container.
    Forward,
    /// Both ways at once, each with the whole number of bytes.
    Both,
}

/// What came of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// Bytes that the sender could hand to its kernel.
    pub sent: u64,
    /// Bytes that the receiver has read.
    pub received: u64,
    /// SHA-256 of what was sent, in hexadecimal.
    pub sent_sha256: String,
    /// SHA-256 of what was received.
    pub received_sha256: String,
    /// Segments that the sender's kernel had to send again.
    pub retransmits: u32,
    /// The longest time in which nothing arrived.
    pub longest_pause: Duration,
    /// What went wrong, if anything did.
    pub error: Option<String>,
}

/// What came of a transfer.
#[derive(Debug, Clone, PartialEq)]
pub struct TransferReport {
    /// How many bytes each direction was to carry; `None` where it ran until it was stopped.
    pub bytes: Option<u64>,
    /// From the connecting to the listening container; none if there was no connection.
    pub forward: Option<Lane>,
    /// The other way, if asked for.
    pub backward: Option<Lane>,
    /// From the connection's start until all was received.
    pub seconds: f64,
    /// Why there was no connection, if there was none.
    pub error: Option<String>,
}

impl TransferReport {
    /// Whether each direction has received exactly what it was to carry, without an error.
    #[must_use]
    pub fn intact(&self) -> bool {
        let whole = |lane: &Lane| {
            lane.error.is_none()
                && lane.sent == lane.received
                && self.bytes.is_none_or(|bytes| bytes == lane.received)
                && lane.sent_sha256 == lane.received_sha256
        };
        self.error.is_none()
            && self.forward.as_ref().is_some_and(whole)
            && self.backward.as_ref().is_none_or(whole)
    }

    /// Received bytes of both directions.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.forward
            .iter()
            .chain(&self.backward)
            .map(|lane| lane.received)
            .sum()
    }

    /// Retransmitted segments of both directions.
    #[must_use]
    pub fn retransmits(&self) -> u32 {
        self.forward
            .iter()
            .chain(&self.backward)
            .map(|lane| lane.retransmits)
            .sum()
    }

    /// The longest pause of any direction.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        let lanes = self.forward.iter().chain(&self.backward);
        lanes
            .map(|lane| lane.longest_pause)
            .max()
            .unwrap_or_default()
    }

    /// Gigabits received per second, both directions together.
    #[must_use]
    pub fn gigabits_per_second(&self) -> f64 {
        float(self.received()) * 8.0 / 1e9 / self.seconds.max(1e-9)
    }
}

impl fmt::Display for TransferReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.error {
            return f.write_str(error);
        }
        write!(
            f,
            "{:.2} Gbit/s in {:.3} s",
            self.gigabits_per_second(),
            self.seconds
        )?;
        for (name, lane) in [("forward", &self.forward), ("backward", &self.backward)] {
            let Some(lane) = lane else { continue };
            let same = if lane.sent_sha256 == lane.received_sha256 {
                "same"
            } else {
                "different"
            };
            write!(
                f,
                "; {name}: {} sent, {} received, {same}",
                lane.sent, lane.received
            )?;
            write!(f, ", {} retransmits", lane.retransmits)?;
            write!(f, ", longest pause {:?}", lane.longest_pause)?;
            if let Some(error) = &lane.error {
                write!(f, ", {error}")?;
            }
        }
        Ok(())
    }
}

/// What both threads of a lane look at.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) received: AtomicU64,
    pub(super) stopping: AtomicBool,
    pub(super) deadline: Instant,
}

impl Shared {
    fn late(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// One direction while it runs.
#[derive(Debug)]
pub(super) struct RunningLane {
    pub(super) shared: Arc<Shared>,
    sending_end: TcpStream,
    sender: thread::JoinHandle<End>,
    receiver: thread::JoinHandle<End>,
}

#[derive(Debug)]
struct End {
    bytes: u64,
    sha256: String,
    longest_pause: Duration,
    error: Option<String>,
}

impl RunningLane {
    /// Starts both threads.
    pub(super) fn start(
        sending_end: &TcpStream,
        receiving_end: &TcpStream,
        seed: u64,
        bytes: Option<u64>,
        pace: Option<u64>,
        deadline: Instant,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            received: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            deadline,
        });
        let sender = thread::spawn({
            let (mut socket, shared) = (sending_end.try_clone()?, Arc::clone(&shared));
            move || send(&mut socket, seed, bytes, pace, &shared)
        });
        let receiver = thread::spawn({
            let (mut socket, shared) = (receiving_end.try_clone()?, Arc::clone(&shared));
            move || receive(&mut socket, &shared)
        });
        Ok(Self {
            shared,
            sending_end: sending_end.try_clone()?,
            sender,
            receiver,
        })
    }

    /// Asks the sender to send no more; what was sent still arrives.
    pub(super) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// Breaks the connection off, so that both threads end.
    pub(super) fn abort(&self) {
        self.stop();
        self.sending_end.shutdown(Shutdown::Both).ok();
    }

    /// Waits for both threads, which end by themselves.
    pub(super) fn finish(self) -> Lane {
        let sent = self
            .sender
            .join()
            .expect("a sender reports instead of panicking");
        let received = self
            .receiver
            .join()
            .expect("a receiver reports instead of panicking");
        // SAFETY: the structure is made of integers.
        let info =
            unsafe { get::<libc::tcp_info>(&self.sending_end, libc::IPPROTO_TCP, libc::TCP_INFO) };
        Lane {
            sent: sent.bytes,
            received: received.bytes,
            sent_sha256: sent.sha256,
            received_sha256: received.sha256,
            retransmits: info.map_or(0, |info| info.tcpi_total_retrans),
            longest_pause: received.longest_pause,
            error: match (sent.error, received.error) {
                (Some(sender), Some(receiver)) => Some(format!("{sender}; {receiver}")),
                (one, other) => one.or(other),
            },
        }
    }
}

fn send(
    socket: &mut TcpStream,
    seed: u64,
    bytes: Option<u64>,
    pace: Option<u64>,
    shared: &Shared,
) -> End {
    let started = Instant::now();
    let mut payload = Payload::new(seed);
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    let (mut sent, mut error) = (0, None);
    while !shared.stopping.load(Ordering::Relaxed) {
        let left = bytes.map_or(u64::MAX, |bytes| bytes - sent);
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        if length == 0 {
            break;
        }
        if shared.late() {
            error = Some("sending: time is up".to_owned());
            break;
        }
        payload.fill(&mut piece[..length]);
        hash.update(&piece[..length]);
        if let Err(cause) = socket.write_all(&piece[..length]) {
            let stalled = if timed_out(&cause) { " (stalled)" } else { "" };
            error = Some(format!("sending after {sent} bytes{stalled}: {cause}"));
            break;
        }
        sent += length as u64;
        if let Some(pace) = pace {
            let due = Duration::from_secs_f64(float(sent) / float(pace.max(1)));
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    socket.shutdown(Shutdown::Write).ok();
    let sha256 = hexadecimal(hash);
    End {
        bytes: sent,
        sha256,
        longest_pause: Duration::ZERO,
        error,
    }
}

fn receive(socket: &mut TcpStream, shared: &Shared) -> End {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    let (mut received, mut error) = (0, None);
    let (mut last, mut longest_pause) = (Instant::now(), Duration::ZERO);
    loop {
        match socket.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => {
                longest_pause = longest_pause.max(last.elapsed());
                last = Instant::now();
                hash.update(&piece[..length]);
                received += length as u64;
                shared.received.store(received, Ordering::Relaxed);
            }
            Err(cause) => {
                let stalled = if timed_out(&cause) { " (stalled)" } else { "" };
                error = Some(format!(
                    "receiving after {received} bytes{stalled}: {cause}"
                ));
            }
        }
        if error.is_none() && shared.late() {
            error = Some("receiving: time is up".to_owned());
        }
        if error.is_some() {
            longest_pause = longest_pause.max(last.elapsed());
            socket.shutdown(Shutdown::Both).ok();
            break;
        }
    }
    End {
        bytes: received,
        sha256: hexadecimal(hash),
        longest_pause,
        error,
    }
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
