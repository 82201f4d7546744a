//! TCP transfers, in one go or in the background.

use std::{
    net::TcpStream,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use super::{
    connect,
    tcp::{Direction, RunningLane, TransferReport},
};
use crate::container::Container;

/// How long nothing may happen until a transfer counts as stalled.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a transfer may take.
const AT_MOST: Duration = Duration::from_secs(300);

/// Sends `bytes` bytes over one connection (in each direction, if both) and waits for the end.
#[must_use]
pub fn transfer(
    from: &Container,
    to: &Container,
    port: u16,
    bytes: u64,
    direction: Direction,
) -> TransferReport {
    Transfer::new(from, to, port)
        .bytes(bytes)
        .direction(direction)
        .start()
        .wait()
}

/// A TCP transfer to be started: forward only, until it is stopped, as fast as it can.
#[derive(Debug, Clone)]
pub struct Transfer {
    from: Container,
    to: Container,
    port: u16,
    bytes: Option<u64>,
    direction: Direction,
    pace: Option<u64>,
    patience: Duration,
    at_most: Duration,
    seed: u64,
}

impl Transfer {
    /// A transfer over one connection from `from` to a listener in `to`; port 0 is any.
    #[must_use]
    pub fn new(from: &Container, to: &Container, port: u16) -> Self {
        Self {
            from: from.clone(),
            to: to.clone(),
            port,
            bytes: None,
            direction: Direction::Forward,
            pace: None,
            patience: PATIENCE,
            at_most: AT_MOST,
            seed: 0x0bca_c4e0,
        }
    }

    /// How many bytes each direction carries.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Which way they go.
    #[must_use]
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Sends so many bytes per second instead of as many as possible.
    #[must_use]
    pub fn pace(mut self, bytes_per_second: u64) -> Self {
        self.pace = Some(bytes_per_second);
        self
    }

    /// How long nothing may happen, and a connection may take; 20 seconds unless told otherwise.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long the whole may take; 300 seconds unless told otherwise.
    #[must_use]
    pub fn at_most(mut self, time: Duration) -> Self {
        self.at_most = time;
        self
    }

    /// What the pseudo-random payload begins with.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Connects and starts. Where there is no connection, the report says why.
    #[must_use]
    pub fn start(&self) -> TransferHandle {
        let started = Instant::now();
        let lanes = connect(&self.from, &self.to, self.port, self.patience)
            .and_then(|(client, server)| self.lanes(&client, &server, started + self.at_most));
        let (lanes, error) = match lanes {
            Ok(lanes) => (lanes, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        TransferHandle {
            lanes,
            error,
            bytes: self.bytes,
            started,
        }
    }

    fn lanes(
        &self,
        client: &TcpStream,
        server: &TcpStream,
        deadline: Instant,
    ) -> std::io::Result<Vec<RunningLane>> {
        let lane =
            |from, to, seed| RunningLane::start(from, to, seed, self.bytes, self.pace, deadline);
        let mut lanes = vec![lane(client, server, self.seed)?];
        if self.direction == Direction::Both {
            lanes.push(lane(server, client, !self.seed)?);
        }
        Ok(lanes)
    }
}

/// A transfer that runs in the background; dropping it breaks it off.
#[derive(Debug)]
pub struct TransferHandle {
    lanes: Vec<RunningLane>,
    error: Option<String>,
    bytes: Option<u64>,
    started: Instant,
}

impl TransferHandle {
    /// Bytes received so far, both directions together.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.lanes
            .iter()
            .map(|lane| lane.shared.received.load(Ordering::Relaxed))
            .sum()
    }

    /// Waits until `bytes` more bytes were received than now.
    #[must_use]
    pub fn wait_progress(&self, bytes: u64, patience: Duration) -> bool {
        let (goal, deadline) = (self.progress() + bytes, Instant::now() + patience);
        while self.progress() < goal {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Waits for the end of a transfer with a number of bytes. One without is stopped when its
    /// time is up, which is an error.
    #[must_use]
    pub fn wait(mut self) -> TransferReport {
        let mut lanes = std::mem::take(&mut self.lanes).into_iter();
        let forward = lanes.next().map(RunningLane::finish);
        let backward = lanes.next().map(RunningLane::finish);
        let seconds = self.started.elapsed().as_secs_f64();
        TransferReport {
            bytes: self.bytes,
            forward,
            backward,
            seconds,
            error: self.error.take(),
        }
    }

    /// Sends no more, and waits until what was sent has arrived. The report is about what was
    /// sent, be it less than was asked for.
    #[must_use]
    pub fn stop(mut self) -> TransferReport {
        for lane in &self.lanes {
            lane.stop();
        }
        self.bytes = None;
        self.wait()
    }
}

impl Drop for TransferHandle {
    fn drop(&mut self) {
        for lane in self.lanes.drain(..) {
            lane.abort();
            lane.finish();
        }
    }
}
