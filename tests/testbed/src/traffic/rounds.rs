//! Requests and responses, one after the other, over one TCP connection or UDP flow.

use std::{
    fmt, io,
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{connect, float, quantiles};
use crate::{container::Container, patience::bound, socket::timed_out};

/// How many rounds, and with what.
#[derive(Debug, Clone)]
pub struct Rounds {
    /// How many rounds at most.
    pub count: u64,
    /// How long at most.
    pub at_most: Duration,
    /// Bytes of each request, at least 8.
    pub request: usize,
    /// Bytes of each response, at least 8.
    pub response: usize,
    /// How long a response may take; over UDP it then counts as lost, over TCP it is the end.
    pub patience: Duration,
    /// A pause after each round.
    pub pause: Duration,
}

impl Rounds {
    /// `count` rounds with requests and responses of 64 bytes, for a minute at most.
    #[must_use]
    pub fn new(count: u64) -> Self {
        Self {
            count,
            at_most: Duration::from_secs(60),
            request: 64,
            response: 64,
            patience: Duration::from_secs(1),
            pause: Duration::ZERO,
        }
    }

    /// As many rounds as there are in a time.
    #[must_use]
    pub fn lasting(time: Duration) -> Self {
        Self {
            count: u64::MAX,
            at_most: time,
            ..Self::new(0)
        }
    }

    /// Does the rounds over one TCP connection from `from` to `to`; port 0 is any.
    #[must_use]
    pub fn tcp(&self, from: &Container, to: &Container, port: u16) -> RoundsReport {
        // Over TCP a lost packet is only late: the patience is that of the connection.
        match connect(from, to, port, self.patience.max(Duration::from_secs(10))) {
            Ok((mut client, server)) => thread::scope(|scope| {
                scope.spawn(|| self.answer_tcp(server));
                let report = self.ask(&AtomicBool::new(true), |request, response| {
                    client.write_all(request)?;
                    client.read_exact(response)
                });
                drop(client); // the server's end of file
                report
            }),
            Err(error) => RoundsReport::failed(error.to_string()),
        }
    }

    /// Does the rounds with UDP datagrams from `from` to `to`; port 0 is any.
    #[must_use]
    pub fn udp(&self, from: &Container, to: &Container, port: u16) -> RoundsReport {
        self.udp_while(from, to, port, &AtomicBool::new(true))
    }

    /// As [`Rounds::udp`], but no longer than `going` is set.
    #[must_use]
    pub fn udp_while(
        &self,
        from: &Container,
        to: &Container,
        port: u16,
        going: &AtomicBool,
    ) -> RoundsReport {
        let sockets = || {
            let server = to.enter(|| bound(|| UdpSocket::bind((to.ip, port))))?;
            let client = from.enter(|| UdpSocket::bind((from.ip, 0)))?;
            client.connect((to.ip, server.local_addr()?.port()))?;
            server.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok((client, server))
        };
        let (client, server) = match sockets() {
            Ok(sockets) => sockets,
            Err(error) => {
                let error: io::Error = error;
                return RoundsReport::failed(format!("{} to {}: {error}", from.name, to.name));
            }
        };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.answer_udp(&server, &done));
            let report = self.ask(going, |request, response| {
                client.send(request)?;
                let deadline = Instant::now() + self.patience;
                loop {
                    let left = deadline.saturating_duration_since(Instant::now());
                    client.set_read_timeout(Some(left.max(Duration::from_micros(1))))?;
                    let length = client.recv(response)?;
                    // The answer to an earlier request, given up on, is late and not wrong.
                    if response[..8] == request[..8] || length != response.len() {
                        return Ok(());
                    }
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
            });
            done.store(true, Ordering::Relaxed);
            report
        })
    }

    fn ask(
        &self,
        going: &AtomicBool,
        mut exchange: impl FnMut(&[u8], &mut [u8]) -> io::Result<()>,
    ) -> RoundsReport {
        let started = Instant::now();
        let mut request = vec![0x5a; self.request.max(8)];
        let mut response = vec![0; self.response.max(8)];
        let mut report = RoundsReport::failed(String::new());
        report.error = None;
        let mut times = Vec::new();
        while report.asked < self.count
            && started.elapsed() < self.at_most
            && going.load(Ordering::Relaxed)
        {
            request[..8].copy_from_slice(&report.asked.to_be_bytes());
            report.asked += 1;
            response.fill(0);
            let begun = Instant::now();
            match exchange(&request, &mut response) {
                Ok(()) if response[..8] == request[..8] && filler(&response) => {
                    times.push(begun.elapsed());
                }
                Ok(()) => report.wrong += 1,
                Err(error) if timed_out(&error) => report.lost += 1,
                Err(error) => {
                    report.error = Some(format!("round {}: {error}", report.asked));
                    break;
                }
            }
            if !self.pause.is_zero() {
                thread::sleep(self.pause);
            }
        }
        report.seconds = started.elapsed().as_secs_f64();
        report.completed = times.len() as u64;
        [report.median, report.p99, report.slowest] = quantiles(times);
        report
    }

    fn answer_tcp(&self, mut server: TcpStream) {
        let mut request = vec![0; self.request.max(8)];
        let mut response = vec![0xa5; self.response.max(8)];
        while server.read_exact(&mut request).is_ok() {
            response[..8].copy_from_slice(&request[..8]);
            if server.write_all(&response).is_err() {
                break;
            }
        }
    }

    fn answer_udp(&self, server: &UdpSocket, done: &AtomicBool) {
        let mut request = vec![0; self.request.max(8) + 1];
        let mut response = vec![0xa5; self.response.max(8)];
        while !done.load(Ordering::Relaxed) {
            let Ok((length, client)) = server.recv_from(&mut request) else {
                continue;
            };
            let whole = length == self.request.max(8)
                && request[8..length].iter().all(|byte| *byte == 0x5a);
            if whole {
                response[..8].copy_from_slice(&request[..8]);
                server.send_to(&response, client).ok();
            }
        }
    }
}

fn filler(response: &[u8]) -> bool {
    response[8..].iter().all(|byte| *byte == 0xa5)
}

/// How the rounds went.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundsReport {
    /// Requests made.
    pub asked: u64,
    /// Requests with their right response.
    pub completed: u64,
    /// Requests without a response in time.
    pub lost: u64,
    /// Responses with another content than expected.
    pub wrong: u64,
    /// The median round.
    pub median: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The slowest round that was completed.
    pub slowest: Duration,
    /// All together.
    pub seconds: f64,
    /// What ended the rounds early, if anything did.
    pub error: Option<String>,
}

impl RoundsReport {
    fn failed(error: String) -> Self {
        Self {
            asked: 0,
            completed: 0,
            lost: 0,
            wrong: 0,
            median: Duration::ZERO,
            p99: Duration::ZERO,
            slowest: Duration::ZERO,
            seconds: 0.0,
            error: Some(error),
        }
    }

    /// Completed rounds per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        float(self.completed) / self.seconds.max(1e-9)
    }
}

impl fmt::Display for RoundsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            asked,
            completed,
            lost,
            wrong,
            median,
            p99,
            slowest,
            ..
        } = self;
        write!(
            f,
            "{completed} of {asked} rounds, {lost} lost, {wrong} wrong, "
        )?;
        write!(f, "{:.0} per second, ", self.rate())?;
        write!(f, "median {median:?}, 99% {p99:?}, slowest {slowest:?}")?;
        match &self.error {
            Some(error) => write!(f, "; {error}"),
            None => Ok(()),
        }
    }
}
