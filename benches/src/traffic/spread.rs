//! Datagrams of very many flows, by two ends that need few sockets: a raw one that sends from any
//! port, and some that receive.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use oncache_testbed::Container;

use super::run::{Run, TURN, again};

/// How many ports the server has; the flows are spread over them evenly.
const SERVER_PORTS: u32 = 16;
const FIRST_SERVER_PORT: u16 = 5000;
const FIRST_CLIENT_PORT: u16 = 1024;

/// The most flows that ports allow.
pub const MOST: u32 = SERVER_PORTS * (u16::MAX - FIRST_CLIENT_PORT) as u32;

/// How many datagrams are sent before they are received.
const BURST: usize = 32;
const PAYLOAD: usize = 18;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// The ports, client's and server's, of a flow by its number.
pub fn ports(flow: u32) -> (u16, u16) {
    let port = |first: u16, number: u32| {
        first + u16::try_from(number).expect("a flow's number is below MOST")
    };
    (
        port(FIRST_CLIENT_PORT, flow / SERVER_PORTS),
        port(FIRST_SERVER_PORT, flow % SERVER_PORTS),
    )
}

/// Both ends.
pub struct Ends {
    sender: OwnedFd,
    receivers: Vec<UdpSocket>,
    from: Ipv4Addr,
    to: Ipv4Addr,
    flows: u32,
}

impl Ends {
    /// Opens the sockets.
    pub fn new(client: &Container, server: &Container, flows: u32) -> io::Result<Self> {
        assert!((1..=MOST).contains(&flows), "{flows} flows have no ports");
        let raw = || {
            let kind = SockType::Raw;
            socket(
                AddressFamily::Inet,
                kind,
                SockFlag::empty(),
                SockProtocol::Raw,
            )
        };
        let sender = client.enter(raw)?;
        let receivers = server.enter(|| {
            (0..SERVER_PORTS.min(flows))
                .map(|number| {
                    let receiver = UdpSocket::bind((server.ip, ports(number).1))?;
                    receiver.set_read_timeout(Some(TURN))?;
                    Ok(receiver)
                })
                .collect::<io::Result<_>>()
        })?;
        Ok(Self {
            sender,
            receivers,
            from: client.ip,
            to: server.ip,
            flows,
        })
    }

    /// Sends some of as many flows, in no order, and then receives them, until told to stop.
    pub fn bursts(&self, run: &Run) -> io::Result<()> {
        let mut packet = self.packet();
        let mut buffer = [0; PAYLOAD];
        let to = SockaddrIn::from(SocketAddrV4::new(self.to, 0));
        let servers = u32::try_from(self.receivers.len()).expect("a few");
        let clients = self.flows / servers;
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |limit: u32| {
            // Xorshift: cheap beside a system call.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            u32::try_from((random >> 32) % u64::from(limit)).expect("below a u32")
        };
        while run.going() {
            let server = below(servers);
            for _ in 0..BURST {
                let (source, destination) = ports(below(clients) * SERVER_PORTS + server);
                packet[IP_HEADER..IP_HEADER + 2].copy_from_slice(&source.to_be_bytes());
                packet[IP_HEADER + 2..IP_HEADER + 4].copy_from_slice(&destination.to_be_bytes());
                sendto(self.sender.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
            }
            let receiver = &self.receivers[server as usize];
            for _ in 0..BURST {
                match receiver.recv(&mut buffer) {
                    Ok(_) => run.count(1),
                    Err(error) if again(&error) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// IPv4 and UDP without a checksum (RFC 768 allows that); the kernel fills in the length,
    /// identification and checksum of a raw socket's IPv4 header (raw(7)).
    fn packet(&self) -> Vec<u8> {
        let length = u16::try_from(UDP_HEADER + PAYLOAD).expect("short");
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
        packet.extend(self.from.octets());
        packet.extend(self.to.octets());
        packet.extend([0; 4]);
        packet.extend(length.to_be_bytes());
        packet.extend([0; 2]);
        packet.extend([0x5a; PAYLOAD]);
        packet
    }
}
