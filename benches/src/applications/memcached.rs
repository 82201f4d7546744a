//! memcached, and a load of one set to ten gets as memtier makes it: Debian 12 has no such
//! generator, and a closed loop is short.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use oncache_testbed::Container;

use super::{Load, Server, quantiles};
use crate::cpu::{ThreadClock, pin};

const PORT: u16 = 5211;
const CONNECTIONS: usize = 8;
const KEYS: usize = 10_000;
const VALUE: usize = 1024;
const GETS_PER_SET: usize = 10;

/// Starts it, with all keys set.
pub fn start(place: &Container, cpu: usize) -> Result<Server, String> {
    let (port, ip) = (PORT.to_string(), place.ip.to_string());
    let command = [
        "memcached",
        "-p",
        &port,
        "-l",
        &ip,
        "-U",
        "0",
        "-t",
        "1",
        "-m",
        "64",
    ];
    let end = (cpu, PORT, Signal::SIGTERM);
    let server = Server::start("memcached", place, "nobody", &command, end)?;
    place
        .enter(|| {
            let mut connection = Connection::new(place)?;
            (0..KEYS).try_for_each(|key| connection.set(key))
        })
        .map_err(|error| format!("memcached: set the keys: {error}"))?;
    Ok(server)
}

/// Asks for a while over some connections at once, each as soon as it has its answer.
pub fn load(
    client: &Container,
    server: &Container,
    cpu: usize,
    time: Duration,
) -> Result<Load, String> {
    let (stop, begin) = (AtomicBool::new(false), Barrier::new(CONNECTIONS + 1));
    let failed = |error: io::Error| format!("memcached: {error}");
    let connections = client.enter(|| {
        (0..CONNECTIONS)
            .map(|_| Connection::new(server))
            .collect::<io::Result<Vec<_>>>()
    });
    let begun = Instant::now();
    let (latencies, used, wall) = thread::scope(|scope| -> Result<_, String> {
        let askers: Vec<_> = connections
            .map_err(failed)?
            .into_iter()
            .enumerate()
            .map(|(number, connection)| {
                let (stop, begin) = (&stop, &begin);
                scope.spawn(move || {
                    pin(cpu);
                    begin.wait();
                    ask(connection, number, stop)
                })
            })
            .collect();
        begin.wait();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        let (mut latencies, mut used) = (Vec::new(), Duration::ZERO);
        for asker in askers {
            let (own, clock) = asker.join().expect("an asker").map_err(failed)?;
            latencies.extend(own);
            used += clock;
        }
        Ok((latencies, used, begun.elapsed()))
    })?;
    let requests = latencies.len() as f64;
    let [median, high] = quantiles(latencies)?;
    Ok(Load {
        requests,
        rate: requests / wall.as_secs_f64(),
        median,
        high,
        used,
    })
}

/// Latencies in microseconds, and the thread's CPU time.
fn ask(
    mut connection: Connection,
    number: usize,
    stop: &AtomicBool,
) -> io::Result<(Vec<f64>, Duration)> {
    let mut latencies = Vec::new();
    // Another order on every connection; coprime to the number of keys, so that all are asked for.
    let mut key = number * 997;
    while !stop.load(Ordering::Relaxed) {
        for turn in 0..=GETS_PER_SET {
            key = (key + 7919) % KEYS;
            let begun = Instant::now();
            if turn == 0 {
                connection.set(key)?;
            } else {
                connection.get(key)?;
            }
            latencies.push(begun.elapsed().as_nanos() as f64 / 1e3);
        }
    }
    Ok((latencies, ThreadClock::own().read()))
}

struct Connection {
    stream: TcpStream,
    value: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    fn new(server: &Container) -> io::Result<Self> {
        let stream = TcpStream::connect((server.ip, PORT))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self {
            stream,
            value: vec![b'v'; VALUE],
            buffer: vec![0; 2 * VALUE],
        })
    }

    fn set(&mut self, key: usize) -> io::Result<()> {
        let mut request = format!("set key{key:08} 0 0 {VALUE}\r\n").into_bytes();
        request.extend(&self.value);
        request.extend(b"\r\n");
        self.stream.write_all(&request)?;
        self.answer(|answer| answer == b"STORED\r\n", b"STORED\r\n".len())
    }

    fn get(&mut self, key: usize) -> io::Result<()> {
        self.stream
            .write_all(format!("get key{key:08}\r\n").as_bytes())?;
        let length =
            format!("VALUE key{key:08} 0 {VALUE}\r\n").len() + VALUE + b"\r\nEND\r\n".len();
        self.answer(|answer| answer.ends_with(b"\r\nEND\r\n"), length)
    }

    /// Reads an answer of a length, and refuses any other.
    fn answer(&mut self, right: impl Fn(&[u8]) -> bool, length: usize) -> io::Result<()> {
        let mut filled = 0;
        while filled < length {
            match self.stream.read(&mut self.buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
            if self.buffer[..filled].starts_with(b"END") {
                return Err(io::Error::other("a key is not there"));
            }
        }
        if filled == length && right(&self.buffer[..filled]) {
            Ok(())
        } else {
            let said = String::from_utf8_lossy(&self.buffer[..filled.min(60)]).into_owned();
            Err(io::Error::other(format!("another answer: {said}")))
        }
    }
}
