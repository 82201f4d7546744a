//! A flow whose ends speak by turns, and whether they are heard.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use oncache_testbed::{Container, bound};

/// The port that is asked at.
pub const PORT: u16 = 5432;
/// How long is waited for what must not come.
pub const NEVER: Duration = Duration::from_millis(40);
/// How long is waited for what must come: TCP sends again what was stopped, after waiting.
pub const SURELY: Duration = Duration::from_secs(20);
/// The ends of a flow.
pub const CLIENT: usize = 0;
pub const SERVER: usize = 1;

/// A flow that the client has opened, and what was said in it.
pub enum Flow {
    Tcp([Speaker; 2]),
    Udp([UdpSocket; 2], [SocketAddr; 2]),
}

/// One end of a connection: it reads all the time, so the bytes that came are counted.
pub struct Speaker {
    stream: TcpStream,
    said: u64,
    heard: u64,
}

impl Speaker {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("no delay");
        stream.set_nonblocking(true).expect("no waiting");
        Self {
            stream,
            said: 0,
            heard: 0,
        }
    }

    fn listen(&mut self) -> u64 {
        let mut buffer = [0; 64];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("the connection has ended"),
                Ok(some) => self.heard += some as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.heard,
                Err(error) => panic!("the connection is broken: {error}"),
            }
        }
    }
}

impl Flow {
    pub fn tcp(client: &Container, server: &Container) -> Self {
        let listener =
            server.enter(|| bound(|| TcpListener::bind((server.ip, PORT))).expect("listen"));
        let asking = client.enter(|| TcpStream::connect((server.ip, PORT)).expect("connect"));
        let (answering, _) = listener.accept().expect("accept");
        let mut flow = Self::Tcp([Speaker::new(asking), Speaker::new(answering)]);
        flow.talk();
        flow
    }

    pub fn udp(client: &Container, server: &Container) -> Self {
        let bind = |end: &Container, port| {
            let socket = end.enter(|| bound(|| UdpSocket::bind((end.ip, port))).expect("bind"));
            socket.set_nonblocking(true).expect("no waiting");
            socket
        };
        let sockets = [bind(client, 0), bind(server, PORT)];
        let addresses = [1, 0].map(|end: usize| sockets[end].local_addr().expect("bound"));
        let mut flow = Self::Udp(sockets, addresses);
        flow.talk();
        flow
    }

    fn talk(&mut self) {
        for _ in 0..3 {
            for speaker in [CLIENT, SERVER] {
                assert!(self.say(speaker, SURELY), "without rules");
            }
        }
    }

    /// One end speaks; whether the other hears it, or anything else new, within `patience`.
    pub fn say(&mut self, speaker: usize, patience: Duration) -> bool {
        match self {
            Self::Udp(sockets, addresses) => {
                // The kernel may tell of an earlier error, or of a rule that stops it here.
                let _ = sockets[speaker].send_to(b"x", addresses[speaker]);
            }
            Self::Tcp(ends) => {
                let already = ends[1 - speaker].listen();
                assert!(already <= ends[speaker].said);
                ends[speaker]
                    .stream
                    .write_all(b"x")
                    .expect("room for a byte");
                ends[speaker].said += 1;
            }
        }
        self.hears(1 - speaker, patience)
    }

    /// Whether all that was said to one end comes within `patience`.
    fn hears(&mut self, listener: usize, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let heard = match self {
                Self::Udp(sockets, _) => sockets[listener].recv(&mut [0; 8]).is_ok(),
                Self::Tcp(ends) => {
                    let heard = ends[listener].listen();
                    heard == ends[1 - listener].said
                }
            };
            if heard || Instant::now() >= until {
                return heard;
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether anything at all that was not there comes within `patience`.
    pub fn leaks(&mut self, patience: Duration) -> bool {
        let before = match self {
            Self::Udp(..) => [0; 2],
            Self::Tcp(ends) => [ends[0].heard, ends[1].heard],
        };
        thread::sleep(patience);
        match self {
            Self::Udp(sockets, _) => sockets.iter().any(|it| it.recv(&mut [0; 8]).is_ok()),
            Self::Tcp(ends) => [ends[0].listen(), ends[1].listen()] != before,
        }
    }
}
