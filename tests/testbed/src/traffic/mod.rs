//! Traffic between two containers, and reports of how it went.
//!
//! Every function is bounded in time and returns a report; none judges it. Sockets are made inside
//! the containers' namespaces and used from threads of this process.

mod connections;
mod payload;
mod ping;
mod probe;
mod rounds;
mod tcp;
mod transfer;
mod udp;

pub use connections::{ConnectionReport, Connections};
pub use ping::{Ping, PingReport, ping};
pub use probe::Probe;
pub use rounds::{Rounds, RoundsReport};
pub use tcp::{Direction, Lane, TransferReport};
pub use transfer::{Transfer, TransferHandle, transfer};
pub use udp::{DatagramReport, Datagrams};

use std::{
    io,
    net::{SocketAddrV4, TcpListener, TcpStream},
    time::Duration,
};

use crate::{container::Container, patience::bound, socket::accept_within};

/// Listens inside a container; port 0 lets the kernel choose.
fn listen(at: &Container, port: u16) -> io::Result<(TcpListener, SocketAddrV4)> {
    let listener = at.enter(|| bound(|| TcpListener::bind((at.ip, port))))?;
    let port = listener.local_addr()?.port();
    Ok((listener, SocketAddrV4::new(at.ip, port)))
}

/// A connected pair of sockets: the client's in `from`, the server's in `to`.
fn connect(
    from: &Container,
    to: &Container,
    port: u16,
    patience: Duration,
) -> io::Result<(TcpStream, TcpStream)> {
    let said = |what: &str, error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("{} to {}: {what}: {error}", from.name, to.name),
        )
    };
    let (listener, address) = listen(to, port).map_err(|error| said("listening", error))?;
    let client = from
        .enter(|| TcpStream::connect_timeout(&address.into(), patience))
        .map_err(|error| said("connecting", error))?;
    let server = accept_within(&listener, patience).map_err(|error| said("accepting", error))?;
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
    }
    Ok((client, server))
}

/// The median, the 99th percentile and the largest of some durations.
fn quantiles(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    let at = |percent: usize| {
        let last = times.len().saturating_sub(1);
        times.get(last * percent / 100).copied().unwrap_or_default()
    };
    [at(50), at(99), at(100)]
}

/// The number as a float, for rates: what is lost beyond 2^53 does not matter there.
fn float(number: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    {
        number as f64
    }
}
