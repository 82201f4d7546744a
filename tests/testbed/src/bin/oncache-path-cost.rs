//! What the path between two network namespaces costs: `oncache-path-cost FROM TO ADDRESS WORKLOAD COUNT`.
//! FROM and TO are paths of namespaces, ADDRESS is TO's. Prints the nanoseconds that a transaction or packet takes.
//!
//! One thread holds both ends' sockets and asks for each packet where it must be by then: on a machine of one
//! processor nobody waits for anybody, and what is measured is the path alone.

use std::{
    env,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

/// Datagrams that are sent before any of them is received.
const BURST: usize = 32;
/// One answer in so many bursts shows conntrack that the flow goes both ways.
const ANSWERED: usize = 32;
/// Longest wait for a packet that is on its way: far beyond any path's.
const PATIENCE: Duration = Duration::from_secs(20);

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(nanoseconds) => {
            println!("{nanoseconds:.1}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("oncache-path-cost: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<f64> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [from, to, address, workload, count] = arguments.as_slice() else {
        return Err("give FROM TO ADDRESS WORKLOAD COUNT".into());
    };
    let (from, to) = (File::open(from)?, File::open(to)?);
    let address: Ipv4Addr = address.parse()?;
    let count: usize = count.parse()?;
    match workload.as_str() {
        "tcp-rr" => tcp_rr(&from, &to, address, count),
        "udp-rr" => udp_rr(&from, &to, address, count),
        "udp" => udp_stream(&from, &to, address, count),
        other => Err(format!("no workload {other}: tcp-rr, udp-rr or udp").into()),
    }
}

/// Nanoseconds for each of `count`, after a tenth as many to warm up: the flow is learned by then.
fn measure(count: usize, mut step: impl FnMut() -> io::Result<()>) -> Outcome<f64> {
    for _ in 0..count / 10 + 10 {
        step()?;
    }
    let started = Instant::now();
    for _ in 0..count {
        step()?;
    }
    let count = u32::try_from(count)?;
    Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(count))
}

fn tcp_rr(from: &File, to: &File, address: Ipv4Addr, count: usize) -> Outcome<f64> {
    setns(to, CloneFlags::CLONE_NEWNET)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    setns(from, CloneFlags::CLONE_NEWNET)?;
    let mut client = TcpStream::connect((address, port))?;
    let (mut server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
    }
    let mut byte = [0_u8];
    measure(count, || {
        client.write_all(b"q")?;
        server.read_exact(&mut byte)?;
        server.write_all(b"a")?;
        client.read_exact(&mut byte)
    })
}

/// Two connected sockets.
fn udp_pair(from: &File, to: &File, address: Ipv4Addr) -> Outcome<(UdpSocket, UdpSocket)> {
    setns(to, CloneFlags::CLONE_NEWNET)?;
    let server = UdpSocket::bind((address, 0))?;
    let port = server.local_addr()?.port();
    setns(from, CloneFlags::CLONE_NEWNET)?;
    let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    client.connect((address, port))?;
    server.connect((client.local_addr()?.ip(), client.local_addr()?.port()))?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE))?;
    }
    Ok((client, server))
}

fn udp_rr(from: &File, to: &File, address: Ipv4Addr, count: usize) -> Outcome<f64> {
    let (client, server) = udp_pair(from, to, address)?;
    let mut data = [0_u8; 64];
    measure(count, || {
        client.send(b"q")?;
        server.recv(&mut data)?;
        server.send(b"a")?;
        client.recv(&mut data).map(|_| ())
    })
}

/// 64-byte datagrams in one direction; nanoseconds a datagram.
fn udp_stream(from: &File, to: &File, address: Ipv4Addr, count: usize) -> Outcome<f64> {
    let (client, server) = udp_pair(from, to, address)?;
    let sent = [0_u8; 64];
    let mut data = [0_u8; 128];
    let mut bursts = 0;
    let burst = measure(count / BURST, || {
        for _ in 0..BURST {
            client.send(&sent)?;
        }
        for _ in 0..BURST {
            server.recv(&mut data)?;
        }
        bursts += 1;
        if bursts % ANSWERED == 1 {
            server.send(b"answer")?;
            client.recv(&mut data)?;
        }
        Ok(())
    })?;
    Ok(burst / BURST as f64)
}
