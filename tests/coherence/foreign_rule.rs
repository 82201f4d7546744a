//! Somebody else's `nft` denies a flow of the fast path: how long it is still carried.

use std::{
    fmt,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use oncache_testbed::{Container, Host, Lab, PATIENCE, eventually};

const FLOWS: usize = 16;
const SERVER_PORT: u16 = 7000;
const CLIENT_PORT: u16 = 7100;
/// Between two datagrams of a flow.
const PACE: Duration = Duration::from_micros(500);
/// A denied flow that has been silent for so long stays silent.
const SILENCE: Duration = Duration::from_millis(80);
/// The hard bound: half of conntrack's time-out of a UDP flow that has not been answered for long.
const LEASE: Duration = Duration::from_secs(15);
/// A rule that nobody has heard of lets a flow that was learned a moment ago go on for longer.
const HEARD_OF: Duration = Duration::from_secs(5);
/// The goal.
const GOAL: Duration = Duration::from_millis(50);

/// Datagrams of all flows from a client to a server and back, until dropped. Each carries its
/// number and the time it was sent at; all times are of one clock.
struct Traffic {
    begun: Instant,
    ended: AtomicBool,
    /// By flow: when the last datagram arrived, and when that one had been sent; microseconds.
    arrived: [AtomicU64; FLOWS],
    sent: [AtomicU64; FLOWS],
    count: [AtomicU64; FLOWS],
}

impl Traffic {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            ended: AtomicBool::new(false),
            arrived: Default::default(),
            sent: Default::default(),
            count: Default::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).expect("a short test")
    }

    fn send(&self, from: &Container, to: &Container) {
        let sockets: Vec<UdpSocket> = (0..FLOWS)
            .map(|flow| {
                let port = client_port(flow);
                let socket = from.enter(|| UdpSocket::bind((from.ip, port)).expect("bind"));
                socket.connect((to.ip, SERVER_PORT)).expect("connect");
                socket
            })
            .collect();
        let mut next = Instant::now();
        while !self.ended.load(Relaxed) {
            for (flow, socket) in (0_u64..).zip(&sockets) {
                let mut bytes = flow.to_be_bytes().to_vec();
                bytes.extend(self.now().to_be_bytes());
                // A refusal is the answer to an earlier one.
                let _ = socket.send(&bytes);
            }
            next = (next + PACE).max(Instant::now());
            thread::sleep(next - Instant::now());
        }
    }

    fn answer(&self, server: &UdpSocket) {
        let mut bytes = [0; 64];
        while !self.ended.load(Relaxed) {
            let Ok((16, from)) = server.recv_from(&mut bytes) else {
                continue;
            };
            let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"));
            let flow = usize::try_from(word(0)).expect("a number of a flow");
            self.sent[flow].store(word(8), Relaxed);
            self.arrived[flow].store(self.now(), Relaxed);
            self.count[flow].fetch_add(1, Relaxed);
            let _ = server.send_to(&bytes[..16], from);
        }
    }
}

fn client_port(flow: usize) -> u16 {
    CLIENT_PORT + u16::try_from(flow).expect("few flows")
}

/// Whether a host's fast path carries the flow.
fn is_fast(host: &Host, flow: usize) -> bool {
    let list = host.oncache_json(&["cache", "list", "flows", "--json"]);
    let port = format!(":{}", client_port(flow));
    let flows = list["flows"].as_array().expect("flows");
    flows.iter().any(|entry| {
        let ends = [&entry["local"], &entry["remote"]];
        let ours = ends
            .iter()
            .any(|end| end.as_str().is_some_and(|end| end.ends_with(&port)));
        ours && entry["state"] == "fast"
    })
}

/// What one rule took; zero where nothing came after.
struct Round {
    /// From the return of the commit to the arrival of the flow's last datagram.
    last_arrival: Duration,
    /// From the return of the commit to the sending of that datagram.
    last_sending: Duration,
    /// The same arrival from before `nft` was even started.
    from_start: Duration,
}

/// Denies the flow on a host, until it is silent, and allows it again.
fn deny(traffic: &Traffic, host: &Host, flow: usize) -> Round {
    eventually("the flow is fast", PATIENCE, || is_fast(host, flow));
    let rule = format!("udp sport {0} drop", client_port(flow));
    let before = traffic.now();
    host.run(&["nft", "add", "rule", "inet", "other", "forward", &rule]);
    let denied = traffic.now();
    let silence = u64::try_from(SILENCE.as_micros()).expect("short");
    let over = |since: u64| traffic.now() >= since + silence;
    while !(over(denied) && over(traffic.arrived[flow].load(Relaxed))) {
        assert!(
            Duration::from_micros(traffic.now() - denied) < HEARD_OF,
            "{}: a denied flow goes on: the rule is not heard of",
            host.name
        );
        thread::sleep(Duration::from_millis(5));
    }
    let after = |time: &AtomicU64, since| time.load(Relaxed).saturating_sub(since);
    let round = Round {
        last_arrival: Duration::from_micros(after(&traffic.arrived[flow], denied)),
        last_sending: Duration::from_micros(after(&traffic.sent[flow], denied)),
        from_start: Duration::from_micros(after(&traffic.arrived[flow], before)),
    };
    host.run(&["nft", "flush", "chain", "inet", "other", "forward"]);
    let count = traffic.count[flow].load(Relaxed);
    eventually("the flow goes on", PATIENCE, || {
        traffic.count[flow].load(Relaxed) > count
    });
    round
}

struct Quantiles([Duration; 3]);

impl Quantiles {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<Duration> = times.collect();
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        Self([at(50), at(99), at(100)])
    }

    const fn max(&self) -> Duration {
        self.0[2]
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, p99, max] = self.0;
        write!(f, "median {median:?}, 99 % {p99:?}, longest {max:?}")
    }
}

/// Says what the rounds took, and whether the goal was reached. That each rule was heard of, and none
/// waited for the end of a lease, [`deny`] has seen.
fn report(what: &str, rounds: &[Round]) {
    let arrivals = Quantiles::of(rounds.iter().map(|round| round.last_arrival));
    let sendings = Quantiles::of(rounds.iter().map(|round| round.last_sending));
    let starts = Quantiles::of(rounds.iter().map(|round| round.from_start));
    let late = rounds
        .iter()
        .filter(|round| !round.last_sending.is_zero())
        .count();
    println!("{what}: {} rules of somebody else's", rounds.len());
    println!("  last datagram delivered after the commit's return: {arrivals}");
    println!(
        "  last datagram sent after it and delivered: {sendings}; in {late} rounds there was one"
    );
    println!("  last datagram delivered after nft was started: {starts}");
    let reached = if arrivals.max() < GOAL {
        "reached"
    } else {
        "MISSED"
    };
    println!("  goal of {GOAL:?}: {reached}; the lease of {LEASE:?} bounds what nobody hears of");
}

/// How long the kernel takes to wait for running programs, which a call that raises the epoch does
/// and a notification does not.
fn grace_periods() -> Quantiles {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    Quantiles::of((0..50).map(|_| {
        let begun = Instant::now();
        // SAFETY: the call takes three integers and touches no memory of ours.
        let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
        assert_eq!(done, 0, "membarrier");
        begun.elapsed()
    }))
}

#[test]
fn a_foreign_rule_stops_a_fast_flow_long_before_its_lease_ends() {
    let lab = Lab::two_hosts(ONCACHE);
    for host in lab.all() {
        host.write_config(&host.default_config().lease("15s").to_string());
    }
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let chain = "nft add table inet other
         nft add chain inet other forward '{ type filter hook forward priority 0; }'";
    lab.all().iter().for_each(|host| {
        host.sh(chain);
    });
    let address = SocketAddr::from((server.ip, SERVER_PORT));
    let socket = server.enter(|| UdpSocket::bind(address).expect("bind in the server"));
    let timeout = Some(Duration::from_millis(50));
    socket.set_read_timeout(timeout).expect("a time-out");
    let traffic = Traffic::new();
    let busy = AtomicBool::new(false);
    println!("grace period: {}", grace_periods());

    thread::scope(|scope| {
        scope.spawn(|| traffic.send(&client, &server));
        scope.spawn(|| traffic.answer(&socket));
        // Ends the threads also where a round fails.
        let _ending = Ending(&traffic.ended);
        let rounds = |host: &Host, count: usize| -> Vec<Round> {
            (0..count)
                .map(|round| deny(&traffic, host, round % FLOWS))
                .collect()
        };
        report("where the flow arrives", &rounds(lab.beta(), 45));
        report("where the flow is sent", &rounds(lab.alpha(), 45));
        scope.spawn(|| {
            while !traffic.ended.load(Relaxed) {
                lab.beta().oncache_ok(&["status"]);
                lab.beta().oncache_ok(&["cache", "list"]);
                busy.store(true, Relaxed);
            }
        });
        eventually("the daemon is busy", PATIENCE, || busy.load(Relaxed));
        report(
            "with a daemon that is asked all the time",
            &rounds(lab.beta(), 20),
        );
    });
    let stats = lab.beta().oncache_json(&["stats", "--json"]);
    println!("beta: new epochs for {}", stats["invalidations"]);
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
