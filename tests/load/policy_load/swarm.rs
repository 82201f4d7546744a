//! Many flows between pairs of containers, TCP and UDP, each sending all the time.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use oncache_testbed::Container;

/// How long one turn lasts in which every flow sends once.
const TURN: Duration = Duration::from_millis(1);
/// Bytes of a datagram.
const DATAGRAM: usize = 200;
/// What a TCP flow sends in a turn, if there is room.
const PIECE: usize = 1000;
/// The server sends a datagram of its own in one of so many turns, once it has heard the client.
const SPEAKS: u64 = 4;
/// The period of what a TCP flow sends: a prime, so that no segment's size hides a shift.
const PATTERN: usize = 65_521;

/// How far a flow has come. Both ends write to it.
#[derive(Debug, Default, Clone)]
pub struct Progress {
    /// Datagrams, or bytes, that were sent.
    pub sent: u64,
    /// Datagrams, each but once, or bytes that were received.
    pub received: u64,
    /// Datagrams received more than once.
    pub twice: u64,
    /// Datagrams that came after a later one.
    pub late: u64,
    /// Why a TCP flow ended, or what was wrong in it.
    pub error: Option<String>,
}

/// One flow: both of its ends.
struct Flow {
    from: Ends,
    progress: Arc<Mutex<Progress>>,
    number: u16,
}

enum Ends {
    Udp {
        client: UdpSocket,
        server: UdpSocket,
        /// One bit for each datagram that came.
        came: Vec<u64>,
        next: u64,
        /// The client, as the server heard of it.
        peer: Option<SocketAddr>,
        turns: u64,
    },
    Tcp {
        client: TcpStream,
        server: TcpStream,
    },
}

/// Flows that run until they are stopped.
pub struct Swarm {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
    progress: Vec<Arc<Mutex<Progress>>>,
}

impl Swarm {
    /// Starts `udp` and `tcp` flows between each of the pairs, to the ports from 20000 on.
    pub fn start(pairs: &[(&Container, &Container)], udp: u16, tcp: u16) -> Self {
        let mut flows = Vec::new();
        for (from, to) in pairs {
            for index in 0..udp {
                flows.push((datagrams(from, to, 20_000 + index), "UDP"));
            }
            for index in 0..tcp {
                flows.push((stream(from, to, 21_000 + index), "TCP"));
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let progress: Vec<_> = flows.iter().map(|_| Arc::default()).collect();
        let flows: Vec<Flow> = flows
            .into_iter()
            .zip(&progress)
            .enumerate()
            .map(|(number, ((from, _), progress))| Flow {
                from,
                progress: Arc::clone(progress),
                number: u16::try_from(number).expect("few flows"),
            })
            .collect();
        let pattern: Arc<[u8]> = (0..2 * PATTERN)
            .map(|at| u8::try_from((at % PATTERN) * 31 % 251).expect("a byte"))
            .collect();
        let flows = Arc::new(Mutex::new(flows));
        let run = {
            let stop = Arc::clone(&stop);
            move || turn(&flows, &pattern, &stop)
        };
        Self {
            stop,
            threads: vec![thread::spawn(run)],
            progress,
        }
    }

    /// How far each flow is, in the order of pairs, UDP before TCP.
    pub fn progress(&self) -> Vec<Progress> {
        let of = |progress: &Arc<Mutex<Progress>>| {
            progress
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        self.progress.iter().map(of).collect()
    }

    /// Stops sending, waits for what is on its way, and returns how far each flow came.
    pub fn stop(mut self) -> Vec<Progress> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("the flows end");
        }
        self.progress()
    }
}

fn datagrams(from: &Container, to: &Container, port: u16) -> Ends {
    let server = to.enter(|| UdpSocket::bind((to.ip, port)).expect("bind"));
    let client = from.enter(|| UdpSocket::bind((from.ip, port)).expect("bind"));
    client.connect((to.ip, port)).expect("connect");
    for socket in [&client, &server] {
        socket
            .set_nonblocking(true)
            .expect("a socket that does not wait");
        let bytes: libc::c_int = 4 << 20;
        // SAFETY: the option's value lives through the call and is as long as said.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const bytes).cast(),
                4,
            )
        };
        assert_eq!(done, 0, "a large buffer");
    }
    Ends::Udp {
        client,
        server,
        came: Vec::new(),
        next: 0,
        peer: None,
        turns: 0,
    }
}

fn stream(from: &Container, to: &Container, port: u16) -> Ends {
    let address = SocketAddr::from((to.ip, port));
    let listener = to.enter(|| TcpListener::bind(address).expect("listen"));
    let client = from.enter(|| TcpStream::connect(address).expect("connect"));
    let (server, _) = listener.accept().expect("accept");
    for end in [&client, &server] {
        end.set_nonblocking(true)
            .expect("a stream that does not wait");
        end.set_nodelay(true).expect("no delay");
    }
    Ends::Tcp { client, server }
}

/// Turn after turn every flow sends and hears once; after the stop they only hear until all is there
/// or time is up.
fn turn(flows: &Mutex<Vec<Flow>>, pattern: &[u8], stop: &AtomicBool) {
    let mut flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ending: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        if ending.is_none() && stop.load(Ordering::Relaxed) {
            ending = Some(begun);
        }
        let mut complete = true;
        for flow in flows.iter_mut() {
            let mut progress = flow.progress.lock().unwrap_or_else(PoisonError::into_inner);
            if ending.is_none() {
                send(&mut flow.from, flow.number, &mut progress, pattern);
            }
            hear(&mut flow.from, &mut progress, pattern);
            complete &= progress.received == progress.sent || progress.error.is_some();
        }
        if ending.is_some_and(|ending| complete || ending.elapsed() > Duration::from_secs(2)) {
            return;
        }
        thread::sleep(TURN.saturating_sub(begun.elapsed()));
    }
}

fn send(ends: &mut Ends, number: u16, progress: &mut Progress, pattern: &[u8]) {
    match ends {
        Ends::Udp {
            client,
            server,
            peer,
            turns,
            ..
        } => {
            *turns += 1;
            if let Some(peer) = peer
                && turns.is_multiple_of(SPEAKS)
            {
                let _ = server.send_to(&turns.to_be_bytes().repeat(4), *peer);
            }
            let mut datagram = [0; DATAGRAM];
            datagram[..2].copy_from_slice(&number.to_be_bytes());
            datagram[2..10].copy_from_slice(&progress.sent.to_be_bytes());
            // A host's rule may refuse it where it is sent; it is sent all the same.
            if client.send(&datagram).is_ok() {
                progress.sent += 1;
            }
        }
        Ends::Tcp { client, .. } => {
            let at = usize::try_from(progress.sent % PATTERN as u64).expect("small");
            match client.write(&pattern[at..at + PIECE]) {
                Ok(length) => progress.sent += length as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => progress.error = Some(format!("sending: {error}")),
            }
        }
    }
}

fn hear(ends: &mut Ends, progress: &mut Progress, pattern: &[u8]) {
    let mut buffer = [0; 16_384];
    match ends {
        Ends::Udp {
            client,
            server,
            came,
            next,
            peer,
            ..
        } => {
            while let Ok((length, from)) = server.recv_from(&mut buffer) {
                assert_eq!(length, DATAGRAM);
                let number = u64::from_be_bytes(buffer[2..10].try_into().expect("eight bytes"));
                let (word, bit) = (usize::try_from(number / 64).expect("few"), number % 64);
                came.resize(came.len().max(word + 1), 0);
                if came[word] & (1 << bit) == 0 {
                    came[word] |= 1 << bit;
                    progress.received += 1;
                } else {
                    progress.twice += 1;
                }
                progress.late += u64::from(number < *next);
                *next = (*next).max(number + 1);
                *peer = Some(from);
            }
            while client.recv(&mut buffer).is_ok() {}
        }
        Ends::Tcp { server, .. } => loop {
            match server.read(&mut buffer) {
                Ok(0) => {
                    progress.error = Some("the stream ended".to_owned());
                    break;
                }
                Ok(length) => {
                    let at = usize::try_from(progress.received % PATTERN as u64).expect("small");
                    // The pattern is there twice, so a piece never wraps.
                    if buffer[..length] != pattern[at..at + length] {
                        progress.error = Some(format!("wrong data at {}", progress.received));
                    }
                    progress.received += length as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    progress.error = Some(format!("receiving: {error}"));
                    break;
                }
            }
        },
    }
}
