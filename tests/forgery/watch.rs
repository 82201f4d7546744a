//! What arrives where.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use oncache_testbed::{Capture, Place, RunningCapture, UNDERLAY};

use crate::{
    packet::{TUNNEL_PORT, number_in},
    world::Scene,
};

/// Where something can arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spot {
    /// The neighbour's device.
    Mate,
    /// The device of the container on the other host.
    Victim,
    /// The attacker's host, out of the bridge: rules of IP have not judged it yet.
    Bridge,
    /// The same host by the attacker's device itself, past the bridge.
    PastBridge,
    /// A socket of the attacker's host.
    Host,
    /// A socket of the other host.
    OtherHost,
    /// Out of the tunnel on the attacker's host: unpacked there.
    Unpacked,
    /// Out of the tunnel on the other host.
    OtherUnpacked,
    /// The underlay.
    Wire,
}

/// The numbers that arrived, by spot.
pub type Arrivals = BTreeMap<Spot, BTreeSet<u32>>;

/// Protocols whose packets a host's sockets hear, whoever else takes them: those that end there and those that
/// carry others.
const HEARD: [u8; 17] = [
    1, 2, 4, 6, 17, 33, 41, 47, 50, 51, 94, 97, 103, 115, 132, 136, 137,
];

/// EtherTypes that a host may take from a container's device past the bridge.
const PAST: [u16; 7] = [0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8, 0x88cc, 0x8864];

pub struct Watch {
    captures: Vec<(Spot, RunningCapture)>,
    sockets: Vec<(Spot, Arc<OwnedFd>, thread::JoinHandle<BTreeSet<u32>>)>,
    over: Arc<AtomicBool>,
}

impl Watch {
    pub fn on(scene: &Scene) -> Self {
        let [alpha, beta] = [scene.lab().alpha(), scene.lab().beta()];
        let places: [(Spot, &Place, &str); 6] = [
            (Spot::Mate, &scene.mate, "eth0"),
            (Spot::Victim, scene.victim(), "eth0"),
            (Spot::Bridge, alpha, "oncache0"),
            (Spot::Unpacked, alpha, "oncache-vx0"),
            (Spot::OtherUnpacked, beta, "oncache-vx0"),
            (Spot::Wire, alpha, UNDERLAY),
        ];
        let captures = places.map(|(spot, place, device)| {
            let capture = Capture::on(place, device)
                .snap(640)
                .filter(|frame| number_in(frame.bytes()).is_some());
            (spot, capture.start())
        });
        let over = Arc::new(AtomicBool::new(false));
        let mut sockets = Vec::new();
        let mut hear = |spot, socket: OwnedFd| {
            let socket = Arc::new(socket);
            let thread = thread::spawn({
                let (socket, over) = (Arc::clone(&socket), Arc::clone(&over));
                move || listen(&socket, &over)
            });
            sockets.push((spot, socket, thread));
        };
        for (spot, host) in [(Spot::Host, alpha), (Spot::OtherHost, beta)] {
            for protocol in HEARD {
                let socket = host.enter(|| raw(protocol));
                hear(spot, socket.expect("a raw socket"));
            }
        }
        for ethertype in PAST {
            let socket = alpha.enter(|| past_bridge("onc-client", ethertype));
            hear(Spot::PastBridge, socket.expect("a packet socket"));
        }
        Self {
            captures: captures.into(),
            sockets,
            over,
        }
    }

    /// All that has arrived until now.
    pub fn stop(self) -> Arrivals {
        // What is on its way arrives.
        thread::sleep(Duration::from_millis(300));
        let mut arrivals = Arrivals::new();
        for (spot, capture) in self.captures {
            let recording = capture.stop();
            assert_eq!(recording.lost, 0, "{spot:?}: not all was recorded");
            let here = arrivals.entry(spot).or_default();
            // Of the wire what leaves, of all else what comes in.
            let frames = recording.frames.iter();
            let frames = frames.filter(|frame| frame.outgoing == (spot == Spot::Wire));
            here.extend(frames.filter_map(|frame| number_in(&frame.bytes)));
        }
        self.over.store(true, Ordering::Relaxed);
        for (spot, _socket, thread) in self.sockets {
            let heard = thread.join().expect("a listener");
            arrivals.entry(spot).or_default().extend(heard);
        }
        arrivals
    }
}

/// The numbers of what a socket hears until it is over, and of what it has heard by then.
fn listen(socket: &OwnedFd, over: &AtomicBool) -> BTreeSet<u32> {
    let mut heard = BTreeSet::new();
    let mut buffer = [0_u8; 4096];
    loop {
        // SAFETY: the buffer outlives the call and is as long as said.
        let length = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        match usize::try_from(length) {
            Ok(length) => {
                let bytes = &buffer[..length];
                // What the tunnel itself brings is judged where it comes out of it.
                if !is_tunnel(bytes) {
                    heard.extend(number_in(bytes));
                }
            }
            Err(_) if over.load(Ordering::Relaxed) => return heard,
            Err(_) => {}
        }
    }
}

/// A tunnel packet between the hosts, as a raw socket hears it.
fn is_tunnel(bytes: &[u8]) -> bool {
    bytes.len() > 28
        && bytes[0] == 0x45
        && bytes[9] == 17
        && bytes[22..24] == TUNNEL_PORT.to_be_bytes()
        && bytes[12..15] == [192, 168, 50]
}

fn raw(protocol: u8) -> io::Result<OwnedFd> {
    open(libc::AF_INET, libc::c_int::from(protocol))
}

fn past_bridge(device: &str, ethertype: u16) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(device)?;
    let socket = open(libc::AF_PACKET, 0)?;
    // SAFETY: plain system calls; the name and the address live longer than the calls, and the address is
    // as long as said.
    let bound = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        // A socket of one protocol hears what the bridge has left; one of all, what came in.
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex =
            i32::try_from(libc::if_nametoindex(name.as_ptr())).map_err(io::Error::other)?;
        let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
    };
    match bound {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open(family: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: plain system calls; the values live longer than the calls and are as long as said, and the
    // descriptor is new and nobody else's.
    unsafe {
        let fd = libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let room: libc::c_int = 16 << 20;
        let patience = libc::timeval {
            tv_sec: 0,
            tv_usec: 20_000,
        };
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const room).cast(),
            4,
        );
        let length = libc::socklen_t::try_from(size_of_val(&patience)).map_err(io::Error::other)?;
        let outcome = libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            length,
        );
        match outcome {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
