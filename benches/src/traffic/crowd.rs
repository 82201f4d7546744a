//! Exchanges of very many flows in turn: each client socket speaks to each server socket, so that fewer
//! descriptors than flows are needed. Nothing is written into the caches: what comes of the flows there
//! is what is measured.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use oncache_testbed::Container;

use super::run::{Run, again};

/// How many sockets the server has.
const SERVERS: u16 = 16;
const FIRST_SERVER_PORT: u16 = 5000;
/// Below the range that the kernel gives out.
const FIRST_CLIENT_PORT: u16 = 6000;
/// With how many client sockets at a time all servers are asked.
const WINDOW: usize = 2;
/// What is on its way is there when the call that sent it returns, unless softirqs are put off. What has
/// not come after that is lost, or comes in another's stead.
const PATIENCE: Duration = Duration::from_millis(5);
/// What a process has open besides.
const OTHERS: u64 = 256;

/// Both ends.
pub struct Ends {
    clients: Vec<UdpSocket>,
    servers: Vec<UdpSocket>,
    addresses: Vec<SocketAddr>,
}

impl Ends {
    /// Opens the sockets of so many flows, to the nearest multiple of the server's sockets.
    pub fn new(client: &Container, server: &Container, flows: u32) -> io::Result<Self> {
        let count = u16::try_from(flows / u32::from(SERVERS)).map_err(io::Error::other)?;
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let wanted = (u64::from(count + SERVERS) + OTHERS).min(most);
        setrlimit(Resource::RLIMIT_NOFILE, wanted.max(1024).min(most), most)?;
        let bound = |at: &Container, first: u16, count: u16| {
            at.enter(|| {
                let open = |number| {
                    let socket = UdpSocket::bind((at.ip, first + number))?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    Ok(socket)
                };
                (0..count).map(open).collect::<io::Result<Vec<_>>>()
            })
        };
        let clients = bound(client, FIRST_CLIENT_PORT, count)?;
        let servers = bound(server, FIRST_SERVER_PORT, SERVERS)?;
        let addresses = servers
            .iter()
            .map(UdpSocket::local_addr)
            .collect::<io::Result<_>>()?;
        Ok(Self {
            clients,
            servers,
            addresses,
        })
    }

    /// One byte each way on every flow in turn, again and again until told to stop. By one thread: each
    /// datagram has arrived before it is read, and nobody waits for the scheduler.
    pub fn exchange(&self, run: &Run) -> io::Result<()> {
        let mut byte = [1];
        while run.going() {
            for window in self.clients.chunks(WINDOW) {
                if !run.going() {
                    break;
                }
                for client in window {
                    for address in &self.addresses {
                        client.send_to(&byte, address)?;
                    }
                }
                for server in &self.servers {
                    for _ in window {
                        match server.recv_from(&mut byte) {
                            Ok((_, from)) => drop(server.send_to(&byte, from)?),
                            Err(error) if again(&error) => break,
                            Err(error) => return Err(error),
                        }
                    }
                }
                for client in window {
                    for _ in &self.servers {
                        match client.recv_from(&mut byte) {
                            Ok(_) => run.count(1),
                            Err(error) if again(&error) => break,
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
