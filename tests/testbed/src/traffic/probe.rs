//! Whether a packet of some protocol gets from here to there, and back.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use super::Ping;
use crate::{container::Container, patience::bound};

/// How long is waited for what must come. What must not come is waited for [`NEVER`].
const SURELY: Duration = Duration::from_secs(10);
/// How long is waited for what must not come. Longer would be no surer: a packet that passes takes
/// well under a millisecond, and the far end looks at what came before it ends.
const NEVER: Duration = Duration::from_millis(250);

/// A protocol, and a port where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A byte and its echo over a connection.
    Tcp(u16),
    /// A datagram and an answer.
    Udp(u16),
    /// A ping.
    Icmp,
}

impl Probe {
    /// Fails unless a flow from `from` to `to` is let through (`allowed`), with its replies, or
    /// stopped at once.
    ///
    /// # Panics
    /// If it is otherwise.
    pub fn expect(self, from: &Container, to: &Container, allowed: bool, when: &str) {
        let patience = if allowed { SURELY } else { NEVER };
        let passed = match self {
            Self::Tcp(port) => tcp(from, to, port, patience),
            Self::Udp(port) => udp(from, to, port, patience),
            Self::Icmp => icmp(from, to, patience),
        };
        assert_eq!(
            passed, allowed,
            "{when}: {self:?} from {} ({}) to {} ({})",
            from.name, from.ip, to.name, to.ip
        );
    }
}

fn icmp(from: &Container, to: &Container, patience: Duration) -> bool {
    let mut ping = Ping::new(1);
    ping.patience = patience;
    ping.run(from, to.ip).lossless()
}

/// A byte there and a byte back.
fn tcp(from: &Container, to: &Container, port: u16, patience: Duration) -> bool {
    let address = SocketAddr::from((to.ip, port));
    let listener = to.enter(|| bound(|| TcpListener::bind(address)).expect("listen"));
    listener
        .set_nonblocking(true)
        .expect("a listener that can be left");
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let until = Instant::now() + patience;
            while Instant::now() < until {
                if let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nonblocking(false).expect("a blocking stream");
                    stream.set_read_timeout(Some(patience)).expect("a time-out");
                    let mut byte = [0];
                    let heard = stream.read_exact(&mut byte).is_ok();
                    return heard && stream.write_all(&byte).is_ok();
                }
                thread::sleep(Duration::from_millis(1));
            }
            false
        });
        let client = from.enter(|| {
            let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
            stream.set_read_timeout(Some(patience)).ok()?;
            stream.write_all(&[7]).ok()?;
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()
        });
        // Half a connection is neither.
        let served = server.join().expect("the server ends");
        assert_eq!(served, client.is_some(), "half a connection to {address}");
        served
    })
}

/// A datagram there and one back.
fn udp(from: &Container, to: &Container, port: u16, patience: Duration) -> bool {
    let receiver = to.enter(|| bound(|| UdpSocket::bind((to.ip, port))).expect("bind"));
    let sender = from.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
    sender.connect((to.ip, port)).expect("connect");
    // A host's own datagrams are refused where they are sent.
    if sender.send(b"there").is_err() {
        return false;
    }
    let mut buffer = [0; 16];
    receiver
        .set_read_timeout(Some(patience))
        .expect("a time-out");
    let Ok((_, asker)) = receiver.recv_from(&mut buffer) else {
        return false;
    };
    receiver.send_to(b"back", asker).expect("answer");
    sender.set_read_timeout(Some(patience)).expect("a time-out");
    sender.recv(&mut buffer).is_ok()
}
