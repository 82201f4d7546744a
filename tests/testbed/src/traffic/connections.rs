//! Many short TCP connections: connect, one request, one response, close.

use std::{
    fmt, io,
    io::{Read, Write},
    net::{SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{float, listen, payload::Payload, quantiles};
use crate::{
    container::Container,
    socket::{accept_within, timed_out},
};

/// How many connections, how, and with what.
#[derive(Debug, Clone)]
pub struct Connections {
    /// How many in all.
    pub count: u64,
    /// How many at a time; 1 is one after the other.
    pub concurrent: usize,
    /// Bytes of each request, at least 8.
    pub request: usize,
    /// Bytes of each response.
    pub response: usize,
    /// How long each step of a connection may take.
    pub patience: Duration,
    /// How long the whole may take; what was not begun by then is missing in `attempted`.
    pub at_most: Duration,
}

impl Connections {
    /// `count` connections, `concurrent` at a time, with a request of 64 and a response of 1024
    /// bytes.
    #[must_use]
    pub fn new(count: u64, concurrent: usize) -> Self {
        Self {
            count,
            concurrent,
            request: 64,
            response: 1024,
            patience: Duration::from_secs(10),
            at_most: Duration::from_secs(120),
        }
    }

    /// Makes the connections, from `from` to a listener in `to`; port 0 is any.
    #[must_use]
    pub fn run(&self, from: &Container, to: &Container, port: u16) -> ConnectionReport {
        let started = Instant::now();
        let (listener, address) = match listen(to, port) {
            Ok(listening) => listening,
            Err(error) => return ConnectionReport::failed(format!("listening: {error}")),
        };
        let next = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        let outcomes = Mutex::new(Vec::new());
        let client = || {
            while started.elapsed() < self.at_most {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.count {
                    break;
                }
                let begun = Instant::now();
                let outcome = self.ask(address, number);
                let outcome = outcome.map(|()| begun.elapsed());
                let outcome = outcome.map_err(|error| {
                    format!("connection {number}, after {:?}: {error}", begun.elapsed())
                });
                outcomes
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(outcome);
            }
        };
        thread::scope(|scope| {
            for _ in 0..self.concurrent {
                scope.spawn(|| self.serve(&listener, &done));
            }
            // Each client makes its sockets inside; the scope ends when all clients are through.
            thread::scope(|clients| {
                for _ in 0..self.concurrent {
                    clients.spawn(|| from.enter(client));
                }
            });
            done.store(true, Ordering::Relaxed);
        });
        let seconds = started.elapsed().as_secs_f64();
        ConnectionReport::new(
            outcomes
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner),
            seconds,
        )
    }

    fn ask(&self, address: SocketAddrV4, number: u64) -> io::Result<()> {
        let mut socket = TcpStream::connect_timeout(&address.into(), self.patience)?;
        socket.set_read_timeout(Some(self.patience))?;
        socket.set_write_timeout(Some(self.patience))?;
        let mut request = vec![0; self.request.max(8)];
        request[..8].copy_from_slice(&number.to_be_bytes());
        socket.write_all(&request)?;
        let mut response = vec![0; self.response];
        socket.read_exact(&mut response)?;
        if response != self.response_to(number) {
            return Err(io::Error::other(
                "the response is not the one to this request",
            ));
        }
        Ok(())
    }

    fn serve(&self, listener: &TcpListener, done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) {
            // What fails here the client sees and reports.
            if let Ok(socket) = accept_within(listener, Duration::from_millis(50)) {
                self.answer(socket).ok();
            }
        }
    }

    fn answer(&self, mut socket: TcpStream) -> io::Result<()> {
        socket.set_read_timeout(Some(self.patience))?;
        socket.set_write_timeout(Some(self.patience))?;
        let mut request = vec![0; self.request.max(8)];
        socket.read_exact(&mut request)?;
        let (number, _) = request
            .split_first_chunk()
            .expect("a request begins with its number");
        socket.write_all(&self.response_to(u64::from_be_bytes(*number)))?;
        // The client closes first.
        match socket.read(&mut [0]) {
            Err(error) if timed_out(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn response_to(&self, number: u64) -> Vec<u8> {
        let mut response = vec![0; self.response];
        Payload::new(number).fill(&mut response);
        response
    }
}

/// How the connections went.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectionReport {
    /// How many were tried.
    pub attempted: u64,
    /// How many got the right response.
    pub completed: u64,
    /// What happened to the others, at most a hundred of them.
    pub failures: Vec<String>,
    /// The median of the completed ones, from connect to the response's last byte.
    pub median: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The slowest; a lost SYN shows as a second.
    pub slowest: Duration,
    /// All together.
    pub seconds: f64,
}

impl ConnectionReport {
    fn new(outcomes: Vec<Result<Duration, String>>, seconds: f64) -> Self {
        let attempted = outcomes.len() as u64;
        let (mut times, mut failures) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(time) => times.push(time),
                Err(failure) => failures.push(failure),
            }
        }
        failures.truncate(100);
        let completed = times.len() as u64;
        let [median, p99, slowest] = quantiles(times);
        Self {
            attempted,
            completed,
            failures,
            median,
            p99,
            slowest,
            seconds,
        }
    }

    fn failed(why: String) -> Self {
        Self {
            failures: vec![why],
            ..Self::new(Vec::new(), 0.0)
        }
    }

    /// Completed connections per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        float(self.completed) / self.seconds.max(1e-9)
    }
}

impl fmt::Display for ConnectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            attempted,
            completed,
            median,
            p99,
            slowest,
            ..
        } = self;
        write!(
            f,
            "{completed} of {attempted} connections, {:.0} per second, ",
            self.rate()
        )?;
        write!(f, "median {median:?}, 99% {p99:?}, slowest {slowest:?}")?;
        match self.failures.first() {
            Some(first) => write!(f, "; {first}"),
            None => Ok(()),
        }
    }
}
