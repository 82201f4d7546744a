//! An address is taken from one container and given to another while a remote peer goes on sending:
//! nothing of the old conversation reaches the new container by the fast path.
//!
//! What still comes by the slow path is as it is with any IP network: the packets carry the address,
//! and the address is the new container's. They are counted. The new container is silent to them, so
//! that no conversation of its own begins that the fast path might carry.

#![allow(
    clippy::cast_possible_truncation,
    reason = "constants of the C interface, all small"
)]

mod raw_tcp;
mod stamped;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use crate::pinned_maps::PinnedMaps;
use oncache_abi::flow::Verdict;
use oncache_testbed::{Answer, Container, Host, Lab, Place, conntrack};
use raw_tcp::{RawTcp, segment};
use stamped::{RECORD, Seen, packet_socket, record, round_of, sniff};

const ROUNDS: u64 = 1000;
/// Pairs of hosts at once.
const LANES: u64 = 4;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 77);
const UDP_PORT: u16 = 5005;
const TCP_PORT: u16 = 5007;
/// How long the old conversation goes on after the address has its new owner.
const LINGER: Duration = Duration::from_millis(5);

/// One of the two containers that have the address in turn. Its namespace is always there; its device
/// comes and goes.
struct Owner {
    name: &'static str,
    place: Place,
    /// The round whose packets are answered.
    answers: Arc<AtomicU64>,
    seen: Seen,
    listener: TcpListener,
}

impl Owner {
    fn new(host: &Host, name: &'static str, over: &Arc<AtomicBool>) -> Self {
        let place = host.add_netns(name);
        // Silent to what belongs to no socket of its own.
        place.sh(
            "nft 'table inet silent { chain output { type filter hook output priority 0; \
             tcp flags rst drop; icmp type destination-unreachable drop; }; }'",
        );
        let answers = Arc::new(AtomicU64::new(u64::MAX));
        let seen = Seen::default();
        let udp = place.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, UDP_PORT)));
        let udp = udp.expect("bind in the owner's namespace");
        udp.set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a time-out");
        let listener = place.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, TCP_PORT)));
        let listener = listener.expect("listen in the owner's namespace");
        thread::spawn({
            let (answers, over) = (Arc::clone(&answers), Arc::clone(over));
            move || echo(&udp, &answers, &over)
        });
        let sniffer = place.enter(packet_socket);
        thread::spawn({
            let (seen, over) = (Arc::clone(&seen), Arc::clone(over));
            move || sniff(&sniffer, &seen, &over)
        });
        Self {
            name,
            place,
            answers,
            seen,
            listener,
        }
    }

    fn seen(&self, round: u64, tcp: bool) -> u64 {
        let seen = self.seen.lock().expect("no sniffer has panicked");
        seen.get(&(round, tcp)).copied().unwrap_or(0)
    }

    /// Packets that came in by the device, however.
    fn received(&self) -> u64 {
        statistic(&self.place, "eth0", "rx_packets")
    }

    fn add(&self, host: &Host) -> Duration {
        let body = format!(
            r#"{{"name": "{0}", "netns": "/run/netns/{0}", "ip": "{ADDRESS}"}}"#,
            self.name
        );
        answered(&host.ask("POST", "/v1/containers", &body))
    }

    fn delete(&self, host: &Host) -> Duration {
        let path = format!("/v1/containers/{}", self.name);
        answered(&host.ask("DELETE", &path, ""))
    }
}

/// How long the daemon took to do what it was asked for.
fn answered(answer: &Answer) -> Duration {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.took
}

/// A counter of a device. `/sys` is the mount namespace's, `/proc/net/dev` the thread's.
fn statistic(place: &Place, device: &str, what: &str) -> u64 {
    let text = place.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
    let text = text.expect("a list of devices");
    let column = match what {
        "rx_packets" => 1,
        _ => 9,
    };
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{device}:")));
    let line = line.unwrap_or_else(|| panic!("{device} in {text}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    words[column].parse().expect("a number")
}

fn echo(socket: &UdpSocket, answers: &AtomicU64, over: &AtomicBool) {
    let mut bytes = [0; 2048];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut bytes) else {
            continue;
        };
        if round_of(&bytes[..length]) == Some(answers.load(Ordering::SeqCst)) {
            // Without a device there is no way back; that is no failure here.
            let _ = socket.send_to(&bytes[..length], from);
        }
    }
}

/// The remote peer: datagrams without end, each of the round that it is then.
fn talk(socket: &UdpSocket, round: &AtomicU64, sent: &AtomicU64, over: &AtomicBool) {
    let mut answer = [0; 2048];
    while !over.load(Ordering::Relaxed) {
        // Refused where the address is nobody's at the moment: go on.
        if socket.send(&record(round.load(Ordering::SeqCst))).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        while socket.recv(&mut answer).is_ok() {}
        sleep(Duration::from_micros(300));
    }
}

/// A TCP connection whose client goes on writing stamped records until it is told to stop. When
/// nobody acknowledges them any more, the kernel would soon send less and less; segments made by
/// hand keep up the rate.
struct Conversation {
    over: Arc<AtomicBool>,
    writer: thread::JoinHandle<()>,
    server: TcpStream,
}

impl Conversation {
    fn begin(remote: &Container, raw: &Arc<RawTcp>, owner: &Owner, round: u64) -> Self {
        let to = SocketAddr::from((ADDRESS, TCP_PORT));
        let client = remote.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)));
        let mut client = client.unwrap_or_else(|error| panic!("round {round}: connect: {error}"));
        let (mut server, _) = owner.listener.accept().expect("accept");
        client.set_nodelay(true).expect("no delay");
        client.set_nonblocking(true).expect("no blocking");
        // The address of the connection goes away under it; do not wait for what can't be sent.
        no_linger(&client);
        no_linger(&server);
        let over = Arc::new(AtomicBool::new(false));
        let port = client.local_addr().expect("an address").port();
        let by_hand = segment((remote.ip, port), (ADDRESS, TCP_PORT), round);
        let writer = thread::spawn({
            let (over, raw) = (Arc::clone(&over), Arc::clone(raw));
            move || {
                while !over.load(Ordering::Relaxed) {
                    // A full buffer drops the record; what is in it is sent again and again.
                    let _ = client.write(&record(round));
                    raw.send(ADDRESS, &by_hand);
                    sleep(Duration::from_micros(800));
                }
            }
        });
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a time-out");
        let mut piece = [0; RECORD];
        server.read_exact(&mut piece).expect("the first record");
        assert_eq!(round_of(&piece), Some(round));
        server.set_nonblocking(true).expect("no blocking");
        Self {
            over,
            writer,
            server,
        }
    }

    /// Reads what has come, so that the window stays open.
    fn drain(&mut self) {
        let mut piece = [0; 16384];
        while self.server.read(&mut piece).is_ok_and(|length| length > 0) {}
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.writer.join().expect("the writer ends");
    }
}

fn no_linger(socket: &TcpStream) {
    let none = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let length = libc::socklen_t::try_from(size_of_val(&none)).expect("a small structure");
    // SAFETY: the pointer and the length describe `none`, which the kernel only reads.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const none).cast(),
            length,
        )
    };
    assert_eq!(outcome, 0, "SO_LINGER");
}

/// Median, 99th percentile and largest, in milliseconds.
fn shown(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    format!(
        "median {:.1} ms, 99 % {:.1} ms, worst {:.1} ms",
        at(50),
        at(99),
        at(100)
    )
}

/// What came of some rounds.
#[derive(Default)]
struct Tally {
    adds: Vec<Duration>,
    dels: Vec<Duration>,
    fast: u64,
    by_device: u64,
    slow_udp: u64,
    slow_tcp: u64,
    carried: u64,
    sent: u64,
}

/// Rounds on two hosts of their own.
fn rounds(count: u64) -> Tally {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let remote = beta.add_container("remote");
    let over = Arc::new(AtomicBool::new(false));
    let owners = ["even", "odd"].map(|name| Owner::new(alpha, name, &over));
    let socket = remote.enter(|| UdpSocket::bind((remote.ip, 5006)));
    let socket = socket.expect("bind in the remote container");
    socket.connect((ADDRESS, UDP_PORT)).expect("connect");
    socket.set_nonblocking(true).expect("no blocking");
    let (round, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let talker = thread::spawn({
        let (round, sent, over) = (Arc::clone(&round), Arc::clone(&sent), Arc::clone(&over));
        move || talk(&socket, &round, &sent, &over)
    });
    let raw = Arc::new(RawTcp::new(&remote));
    let maps = PinnedMaps::of(alpha, 65536);

    owners[0].add(alpha);
    let mut tally = Tally::default();
    for number in 0..count {
        let turn = usize::from(number % 2 == 1);
        let (owner, heir) = (&owners[turn], &owners[1 - turn]);
        owner.answers.store(number, Ordering::SeqCst);
        round.store(number, Ordering::SeqCst);
        let before = maps.hits();
        let mut conversation = Conversation::begin(&remote, &raw, owner, number);
        let deadline = Instant::now() + Duration::from_secs(10);
        let flows = || maps.flows_of(ADDRESS);
        let is_fast = |(_, verdict): &(_, Verdict)| *verdict == Verdict::Fast;
        while flows().iter().filter(|flow| is_fast(flow)).count() < 2 || maps.hits() < before + 20 {
            assert!(Instant::now() < deadline, "round {number}: {:?}", flows());
            conversation.drain();
            sleep(Duration::from_millis(1));
        }
        tally.carried += maps.hits() - before;

        tally.dels.push(owner.delete(alpha));
        let nobody = maps.hits();
        tally.adds.push(heir.add(alpha));
        sleep(LINGER);

        let all = maps.hits() - nobody;
        let flows = flows();
        // The slow path goes through the host-side device, the fast path round it.
        let inside = heir.received();
        let through = statistic(alpha, &format!("onc-{}", heir.name), "tx_packets");
        assert_eq!(
            all, 0,
            "round {number}: packets by the fast path; flows {flows:?}"
        );
        assert!(
            flows.is_empty(),
            "round {number}: learned for the heir: {flows:?}"
        );
        assert!(
            inside <= through,
            "round {number}: {inside} inside, {through} by the device"
        );
        tally.fast += all;
        tally.by_device += through;
        if number % 25 == 0 {
            let inherited: Vec<_> = conntrack(alpha)
                .into_iter()
                .filter(|entry| entry.original.destination == ADDRESS && !entry.unreplied)
                .collect();
            assert!(inherited.is_empty(), "round {number}: {inherited:?}");
        }
        conversation.end();
        tally.slow_udp += heir.seen(number, false);
        tally.slow_tcp += heir.seen(number, true);
    }
    over.store(true, Ordering::Relaxed);
    talker.join().expect("the talker ends");
    tally.sent = sent.load(Ordering::Relaxed);
    tally
}

#[test]
fn a_thousand_heirs_get_nothing_of_the_old_conversation_by_the_fast_path() {
    let began = Instant::now();
    // Most of a round is waiting for the kernel's grace periods: some go on beside each other.
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|_| scope.spawn(|| rounds(ROUNDS / LANES)))
            .collect();
        let lanes = lanes.into_iter();
        lanes
            .map(|lane| lane.join().expect("no round fails"))
            .collect()
    });
    let took = began.elapsed();
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (fast, by_device) = (sum(|tally| tally.fast), sum(|tally| tally.by_device));
    let (udp, tcp) = (sum(|tally| tally.slow_udp), sum(|tally| tally.slow_tcp));
    let (carried, sent) = (sum(|tally| tally.carried), sum(|tally| tally.sent));
    println!(
        "{ROUNDS} rounds in {took:.1?}, {LANES} pairs of hosts at once: {sent} datagrams sent, \
         {carried} packets carried by the fast path before the address changed hands"
    );
    println!(
        "of the old conversation in the new container: {fast} packets by the fast path; by the slow \
         path {udp} of UDP, {tcp} of TCP ({by_device} frames in all went by its device)"
    );
    let all = |of: fn(&Tally) -> &Vec<Duration>| tallies.iter().flat_map(of).copied().collect();
    println!("container del: {}", shown(all(|tally| &tally.dels)));
    println!("container add: {}", shown(all(|tally| &tally.adds)));
    assert!(
        udp > ROUNDS && tcp > ROUNDS,
        "the old conversation did not go on"
    );
    assert!(carried > ROUNDS * 10, "the conversations were not fast");
}
