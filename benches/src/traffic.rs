//! The workloads: threads on one CPU that count what they have done until told to stop.

use std::{
    fmt, io,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use oncache_testbed::Container;

use crate::{
    cpu::{SoftirqDaemon, ThreadClock, pin},
    crowd, spread,
};

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// One byte each way over one connection.
    TcpRounds,
    /// The same by datagrams.
    UdpRounds,
    /// A connection for each byte asked and answered.
    TcpConnections,
    /// Datagrams of a size, one way.
    Datagrams(usize),
    /// So many connections at once, one way.
    TcpStreams(usize),
    /// Small datagrams, each of another of so many flows, one way; their entries have to be in the
    /// filter caches before, see `entries.rs`.
    Spread(u32),
    /// An exchange of each of so many flows in turn, see `crowd.rs`.
    Crowd(u32),
}

impl Workload {
    /// All of `make bench`.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::TcpRounds,
            Self::UdpRounds,
            Self::TcpConnections,
            Self::Datagrams(64),
            Self::Datagrams(1400),
        ];
        all.extend([1, 2, 4, 8, 16, 32].map(Self::TcpStreams));
        all
    }

    /// What `make bench-quick` takes of them.
    pub fn quick() -> Vec<Self> {
        vec![
            Self::TcpRounds,
            Self::UdpRounds,
            Self::TcpConnections,
            Self::Datagrams(64),
            Self::TcpStreams(1),
            Self::TcpStreams(8),
        ]
    }

    /// What the rate counts.
    pub const fn rate_unit(self) -> &'static str {
        match self {
            Self::TcpRounds | Self::UdpRounds | Self::TcpConnections | Self::Crowd(_) => {
                "thousand/s"
            }
            Self::Datagrams(64) | Self::Spread(_) => "thousand packets/s",
            Self::Datagrams(_) | Self::TcpStreams(_) => "Gbit/s",
        }
    }

    /// What the CPU time is per.
    pub const fn cost_unit(self) -> &'static str {
        match self {
            Self::TcpRounds | Self::UdpRounds | Self::TcpConnections | Self::Crowd(_) => {
                "us per transaction"
            }
            Self::Datagrams(_) | Self::Spread(_) => "us per packet",
            Self::TcpStreams(_) => "us per MB",
        }
    }

    /// Units in `cost_unit` per counted one.
    fn units(self, counted: u64) -> f64 {
        match self {
            Self::TcpStreams(_) => counted as f64 / 1e6,
            _ => counted as f64,
        }
    }

    fn rate(self, counted: u64, seconds: f64) -> f64 {
        let counted = counted as f64 / seconds;
        match self {
            Self::Datagrams(64) => counted / 1e3,
            Self::Datagrams(size) => counted * size as f64 * 8.0 / 1e9,
            Self::TcpStreams(_) => counted * 8.0 / 1e9,
            _ => counted / 1e3,
        }
    }

    /// The least share of the packets that the caches must have carried. A connection of a
    /// transaction or two is never established long enough.
    pub const fn least_hit_ratio(self) -> Option<f64> {
        match self {
            Self::TcpConnections | Self::Crowd(_) => None,
            _ => Some(0.99),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TcpRounds => f.write_str("TCP_RR"),
            Self::UdpRounds => f.write_str("UDP_RR"),
            Self::TcpConnections => f.write_str("TCP_CRR"),
            Self::Datagrams(size) => write!(f, "UDP {size} B"),
            Self::TcpStreams(1) => f.write_str("TCP stream"),
            Self::TcpStreams(flows) => write!(f, "TCP {flows} streams"),
            Self::Spread(flows) => write!(f, "UDP over {flows} flows"),
            Self::Crowd(flows) => write!(f, "UDP_RR of {flows} flows"),
        }
    }
}

/// What one run gave.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// In `rate_unit`, by the clock on the wall: true only where nobody else wants the CPU.
    pub rate: f64,
    /// In `cost_unit`, of both ends and all that is between them.
    pub cost: f64,
    /// The share of the wall's time in which the ends ran: below one, others had the CPU.
    pub share: f64,
}

/// What the threads share.
#[derive(Default)]
pub struct Run {
    stop: AtomicBool,
    counted: AtomicU64,
    clocks: Mutex<Vec<ThreadClock>>,
    failure: Mutex<Option<String>>,
}

/// How long a call may block before it looks whether the run is over.
pub const TURN: Duration = Duration::from_millis(100);

impl Run {
    pub fn going(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    pub fn count(&self, by: u64) {
        self.counted.fetch_add(by, Ordering::Relaxed);
    }

    /// Runs an end of the traffic on the CPU and keeps its thread, and so its clock, to the end.
    fn end(&self, cpu: usize, work: impl FnOnce() -> io::Result<()>) {
        pin(cpu);
        self.clocks
            .lock()
            .expect("no holder panics")
            .push(ThreadClock::own());
        if let Err(error) = work()
            && self.going()
        {
            let mut failure = self.failure.lock().expect("no holder panics");
            failure.get_or_insert_with(|| error.to_string());
        }
        while self.going() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().expect("no holder panics").clone()
    }

    /// Time of all threads, and of ksoftirqd.
    fn used(&self, softirqs: &SoftirqDaemon) -> Duration {
        let clocks = self.clocks.lock().expect("no holder panics");
        clocks.iter().map(|clock| clock.read()).sum::<Duration>() + softirqs.read()
    }
}

pub fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Reads, and looks from time to time whether the run is over.
fn read(run: &Run, from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if again(&error) && run.going() => {}
            other => return other,
        }
    }
}

fn bounded(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TURN))?;
    stream.set_write_timeout(Some(TURN))
}

/// Runs a workload for `warm` and then `time`, and measures the latter.
pub fn measure(
    workload: Workload,
    client: &Container,
    server: &Container,
    cpu: usize,
    warm: Duration,
    time: Duration,
) -> Result<Figure, String> {
    let run = Run::default();
    let softirqs = SoftirqDaemon::of(cpu)?;
    let said = |error: io::Error| format!("{workload}: sockets: {error}");
    let figure = thread::scope(|scope| {
        let begun = start(workload, client, server, cpu, &run, scope);
        let measured = begun
            .map_err(said)
            .and_then(|ends| observe(workload, &run, ends, &softirqs, warm, time));
        run.stop.store(true, Ordering::Relaxed);
        measured
    })?;
    match run.failure() {
        Some(error) => Err(format!("{workload}: {error}")),
        None => Ok(figure),
    }
}

fn observe(
    workload: Workload,
    run: &Run,
    ends: usize,
    softirqs: &SoftirqDaemon,
    warm: Duration,
    time: Duration,
) -> Result<Figure, String> {
    let begun = Instant::now();
    while run.clocks.lock().expect("no holder panics").len() < ends {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(warm.saturating_sub(begun.elapsed()));
    let snapshot = || {
        (
            Instant::now(),
            run.counted.load(Ordering::Relaxed),
            run.used(softirqs),
        )
    };
    let (at, counted, used) = snapshot();
    thread::sleep(time);
    let (end, counted_then, used_then) = snapshot();
    let counted = counted_then - counted;
    if counted == 0 {
        let why = run
            .failure()
            .unwrap_or_else(|| "no error was reported".to_owned());
        return Err(format!("{workload}: nothing arrived in {time:?}: {why}"));
    }
    let (wall, used) = ((end - at).as_secs_f64(), (used_then - used).as_secs_f64());
    Ok(Figure {
        rate: workload.rate(counted, wall),
        cost: used * 1e6 / workload.units(counted),
        share: used / wall,
    })
}

/// Starts the ends, and says how many threads they are.
fn start<'scope>(
    workload: Workload,
    client: &Container,
    server: &Container,
    cpu: usize,
    run: &'scope Run,
    scope: &'scope thread::Scope<'scope, '_>,
) -> io::Result<usize> {
    match workload {
        Workload::UdpRounds => {
            let (here, there) = datagram_ends(client, server)?;
            scope.spawn(move || run.end(cpu, || ask_by_datagram(run, &here)));
            scope.spawn(move || run.end(cpu, || answer_datagrams(run, &there)));
            Ok(2)
        }
        Workload::Datagrams(size) => {
            let (here, there) = datagram_ends(client, server)?;
            scope.spawn(move || run.end(cpu, || bursts(run, &here, &there, size)));
            Ok(1)
        }
        Workload::TcpRounds => {
            let (here, there) = connection(client, server)?;
            scope.spawn(move || run.end(cpu, || ask(run, here)));
            scope.spawn(move || run.end(cpu, || answer(run, there)));
            Ok(2)
        }
        Workload::TcpStreams(flows) => {
            for _ in 0..flows {
                let (here, there) = connection(client, server)?;
                scope.spawn(move || run.end(cpu, || send(run, here)));
                scope.spawn(move || run.end(cpu, || receive(run, there)));
            }
            Ok(2 * flows)
        }
        Workload::Spread(flows) => {
            let ends = spread::Ends::new(client, server, flows)?;
            scope.spawn(move || run.end(cpu, || ends.bursts(run)));
            Ok(1)
        }
        Workload::Crowd(flows) => {
            let ends = crowd::Ends::new(client, server, flows)?;
            scope.spawn(move || run.end(cpu, || ends.exchange(run)));
            Ok(1)
        }
        Workload::TcpConnections => {
            let listener = server.enter(|| TcpListener::bind((server.ip, PORT)))?;
            let address = listener.local_addr()?;
            let place = client.clone();
            scope.spawn(move || place.enter(|| run.end(cpu, || connect_and_ask(run, address))));
            scope.spawn(move || run.end(cpu, || accept_and_answer(run, &listener)));
            Ok(2)
        }
    }
}

/// The server's; open in the firewall of the `host` column.
const PORT: u16 = 5000;

fn datagram_ends(client: &Container, server: &Container) -> io::Result<(UdpSocket, UdpSocket)> {
    let there = server.enter(|| UdpSocket::bind((server.ip, PORT)))?;
    let here = client.enter(|| UdpSocket::bind((client.ip, 0)))?;
    here.connect((server.ip, PORT))?;
    there.connect(here.local_addr()?)?;
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(TURN))?;
    }
    Ok((here, there))
}

fn connection(client: &Container, server: &Container) -> io::Result<(TcpStream, TcpStream)> {
    let listener = server.enter(|| TcpListener::bind((server.ip, PORT)))?;
    let address = listener.local_addr()?;
    let here = client.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))?;
    let (there, _) = listener.accept()?;
    bounded(&here)?;
    bounded(&there)?;
    Ok((here, there))
}

fn ask(run: &Run, mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [1];
    while run.going() {
        stream.write_all(&byte)?;
        if read(run, &mut stream, &mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        run.count(1);
    }
    Ok(())
}

fn answer(run: &Run, mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while run.going() && read(run, &mut stream, &mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ask_by_datagram(run: &Run, socket: &UdpSocket) -> io::Result<()> {
    let mut byte = [1];
    while run.going() {
        socket.send(&byte)?;
        match socket.recv(&mut byte) {
            Ok(_) => run.count(1),
            // One was lost: ask again.
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn answer_datagrams(run: &Run, socket: &UdpSocket) -> io::Result<()> {
    let mut byte = [0];
    while run.going() {
        match socket.recv(&mut byte) {
            Ok(_) => drop(socket.send(&byte)?),
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends some and then receives them, by one thread: each has arrived before the next is sent, so
/// nothing is lost and nobody waits for the scheduler. An answer from time to time, as flows have.
fn bursts(run: &Run, here: &UdpSocket, there: &UdpSocket, size: usize) -> io::Result<()> {
    const BURST: usize = 32;
    const BURSTS_PER_ANSWER: usize = 32;
    let packet = vec![0x5a; size];
    let mut buffer = vec![0; size];
    let answered = |there: &UdpSocket, here: &UdpSocket, buffer: &mut [u8]| -> io::Result<()> {
        there.send(&buffer[..1])?;
        match here.recv(buffer) {
            Err(error) if !again(&error) => Err(error),
            _ => Ok(()),
        }
    };
    // So that both directions are known before anything is counted.
    for _ in 0..20 {
        here.send(&packet)?;
        there.recv(&mut buffer)?;
        answered(there, here, &mut buffer)?;
    }
    while run.going() {
        for _ in 0..BURSTS_PER_ANSWER {
            for _ in 0..BURST {
                here.send(&packet)?;
            }
            for _ in 0..BURST {
                match there.recv(&mut buffer) {
                    Ok(_) => run.count(1),
                    Err(error) if again(&error) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        answered(there, here, &mut buffer)?;
    }
    Ok(())
}

/// What is written and read by one call.
const CHUNK: usize = 64 * 1024;

fn send(run: &Run, mut stream: TcpStream) -> io::Result<()> {
    let bytes = vec![0x5a; CHUNK];
    while run.going() {
        match stream.write(&bytes) {
            Err(error) if !again(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn receive(run: &Run, mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    while run.going() {
        match read(run, &mut stream, &mut bytes) {
            Ok(0) => return Ok(()),
            Ok(length) => run.count(length as u64),
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn connect_and_ask(run: &Run, address: SocketAddr) -> io::Result<()> {
    let mut byte = [1];
    while run.going() {
        let mut stream = TcpStream::connect(address)?;
        bounded(&stream)?;
        stream.write_all(&byte)?;
        if read(run, &mut stream, &mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        run.count(1);
    }
    Ok(())
}

fn accept_and_answer(run: &Run, listener: &TcpListener) -> io::Result<()> {
    let mut byte = [0];
    nix::sys::socket::setsockopt(
        listener,
        nix::sys::socket::sockopt::ReceiveTimeout,
        &nix::sys::time::TimeVal::new(0, 100_000),
    )?;
    while run.going() {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if again(&error) => continue,
            Err(error) => return Err(error),
        };
        bounded(&stream)?;
        if read(run, &mut stream, &mut byte)? == 1 {
            stream.write_all(&byte)?;
            // The client closes first.
            read(run, &mut stream, &mut byte)?;
        }
    }
    Ok(())
}
