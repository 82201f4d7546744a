//! Twenty times more flows than the filter cache has room for: all of them work, not slower than
//! without the caches, and what had to give way is counted.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::lab::ONCACHE;
use nix::time::{ClockId, clock_gettime};
use oncache::{control::api::Stats, datapath::counters::FlowTurnover};
use oncache_testbed::{
    Config, Container, Host, Lab,
    traffic::{Connections, Rounds},
};

/// Each client socket speaks to each server socket, so that fewer descriptors than flows are needed.
const CLIENTS: usize = 2000;
const SERVERS: usize = 10;
const FLOWS: usize = CLIENTS * SERVERS;
/// How many entries the filter cache has: a twentieth of that.
const ROOM: u32 = 1024;
/// With how many sockets at a time each of two threads asks all servers.
const WINDOW: usize = 6;
const ROUNDS: usize = 11;
/// The first port of the clients; below the range that the kernel gives out.
const FIRST_PORT: usize = 5000;

/// What a round takes: by the clock, and of the processors. Packets are carried to the other
/// container's socket by the thread that sends them, and count as its time; what else the machine
/// does then does not.
#[derive(Clone, Copy, Debug)]
struct Cost {
    time: Duration,
    processor: Duration,
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.expect("a clock of every process").into()
}

/// Two hosts, a container on each, and the sockets of all flows.
struct Crowd {
    lab: Lab,
    client: Container,
    server: Container,
    sockets: Vec<UdpSocket>,
    servers: Vec<UdpSocket>,
    addresses: Vec<SocketAddr>,
}

impl Crowd {
    fn new(adjust: impl Fn(Config) -> Config) -> Self {
        let lab = Lab::two_hosts(ONCACHE);
        for host in lab.all() {
            host.write_config(&adjust(host.default_config()).to_string());
        }
        lab.start();
        let client = lab.alpha().add_container("client");
        let server = lab.beta().add_container("server");
        let bound = |at: &Container, port: usize, patience| {
            let port = u16::try_from(port).expect("a port");
            let socket = UdpSocket::bind((at.ip, port)).expect("a free port");
            socket.set_read_timeout(Some(patience)).expect("a time-out");
            socket
        };
        let patience = Duration::from_secs(5);
        let sockets = client.enter(|| {
            let ports = FIRST_PORT..FIRST_PORT + CLIENTS;
            ports.map(|port| bound(&client, port, patience)).collect()
        });
        let patience = Duration::from_millis(20);
        let servers: Vec<UdpSocket> = server.enter(|| {
            let ports = FIRST_PORT..FIRST_PORT + SERVERS;
            ports.map(|port| bound(&server, port, patience)).collect()
        });
        let address = |socket: &UdpSocket| socket.local_addr().expect("an address");
        let addresses = servers.iter().map(address).collect();
        Self {
            lab,
            client,
            server,
            sockets,
            servers,
            addresses,
        }
    }

    /// One request of every flow and its answer; returns what that took and how many were not
    /// answered, or wrongly.
    fn round(&self, round: usize) -> (Cost, usize) {
        let done = AtomicBool::new(false);
        let begun = (Instant::now(), processor_time());
        let unanswered = thread::scope(|scope| {
            for server in &self.servers {
                scope.spawn(|| echo(server, &done));
            }
            let halves = self.sockets.chunks(CLIENTS / 2);
            let askers: Vec<_> = halves
                .map(|sockets| scope.spawn(move || self.ask(sockets, round)))
                .collect();
            let unanswered = askers
                .into_iter()
                .map(|it| it.join().expect("an asker"))
                .sum();
            done.store(true, Ordering::Relaxed);
            unanswered
        });
        let cost = Cost {
            time: begun.0.elapsed(),
            processor: processor_time() - begun.1,
        };
        (cost, unanswered)
    }

    /// Asks all servers by each of the sockets. Returns how many answers are missing.
    fn ask(&self, sockets: &[UdpSocket], round: usize) -> usize {
        let mut unanswered = 0;
        let mut bytes = [0; 64];
        for window in sockets.chunks(WINDOW) {
            for (number, socket) in window.iter().enumerate() {
                for address in &self.addresses {
                    let word = word(*address, number, round);
                    socket.send_to(&word, address).expect("a request");
                }
            }
            for (number, socket) in window.iter().enumerate() {
                let mut waiting: Vec<SocketAddr> = self.addresses.clone();
                while !waiting.is_empty() {
                    let Ok((length, from)) = socket.recv_from(&mut bytes) else {
                        break;
                    };
                    if bytes[..length] == word(from, number, round) {
                        waiting.retain(|address| *address != from);
                    }
                }
                unanswered += waiting.len();
            }
        }
        unanswered
    }
}

/// What is asked of an address in a round.
fn word(address: SocketAddr, number: usize, round: usize) -> Vec<u8> {
    let parts = [usize::from(address.port()), number, round];
    parts.map(usize::to_be_bytes).concat()
}

fn echo(socket: &UdpSocket, done: &AtomicBool) {
    let mut bytes = [0; 64];
    while !done.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(&bytes[..length], from).expect("an answer");
        }
    }
}

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    values[values.len() / 2]
}

/// The turnover of the filter cache, as `oncache stats` says.
fn turnover(host: &Host) -> FlowTurnover {
    let stats = host.oncache_json(&["stats", "--json"]);
    let stats: Stats = serde_json::from_value(stats).expect("what the API says");
    stats.flows
}

#[test]
fn more_flows_than_the_cache_has_room_for() {
    let plain = Crowd::new(|config| config.cache(false));
    let tight = Crowd::new(|config| config.flows(ROOM));
    let roomy = Crowd::new(|config| config.flows(65536));
    let answered = |name: &str, crowd: &Crowd, round: usize| {
        let (time, unanswered) = crowd.round(round);
        assert_eq!(unanswered, 0, "{name}, round {round}");
        time
    };
    // The first one makes the flows.
    answered("plain", &plain, 0);
    answered("tight", &tight, 0);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        // One after the other, and each of them first in turn: both see the same machine.
        if round % 2 == 0 {
            with.push(answered("tight", &tight, round));
            without.push(answered("plain", &plain, round));
        } else {
            without.push(answered("plain", &plain, round));
            with.push(answered("tight", &tight, round));
        }
    }
    let roomy_costs = (0..4).map(|round| answered("roomy", &roomy, round));
    let roomy_costs: Vec<Cost> = roomy_costs.skip(1).collect();
    for (name, costs) in [
        ("by the plain overlay", &without),
        ("with 1024 entries in the filter cache", &with),
        ("with 65536", &roomy_costs),
    ] {
        let of = |part: fn(&Cost) -> Duration| median(costs.iter().map(part).collect());
        let (time, processor) = (of(|it| it.time), of(|it| it.processor));
        println!(
            "{FLOWS} flows, an exchange of each {name}: {time:?}, {processor:?} of processor time"
        );
    }
    let ratio = |part: fn(&Cost) -> Duration| {
        let pairs = without.iter().zip(&with);
        median(
            pairs
                .map(|(one, other)| part(one).as_secs_f64() / part(other).as_secs_f64())
                .collect(),
        )
    };
    let (time, processor) = (ratio(|it| it.time), ratio(|it| it.processor));
    println!(
        "throughput with {ROOM} entries, of the plain overlay's: {time:.3} by the clock, {processor:.3} \
         by processor time (medians of {ROUNDS} pairs); all of {} requests answered",
        FLOWS * (2 * ROUNDS + 6)
    );
    // 0.95 to 0.99 were seen on a machine that had other work to do; 0.85 to 0.90 where every packet
    // enters its flow. By the clock, other load shows as well.
    assert!(processor > 0.9, "{processor:.3}");
    let spent = |costs: &[Cost]| median(costs.iter().map(|it| it.processor).collect());
    assert!(
        spent(&roomy_costs) < spent(&without),
        "the caches carry nothing"
    );
    judge_tight(&tight);
    judge_roomy(&roomy);
}

/// Few are entered, those give way to each other, and a flow that goes on gets in all the same.
fn judge_tight(crowd: &Crowd) {
    let host = crowd.lab.alpha();
    let (flows, counters) = (turnover(host), host.counters());
    println!("with {ROOM} entries: {flows:?}\n{counters}");
    let shown = host.oncache_ok(&["stats"]);
    let line = shown.lines().find(|line| line.starts_with("flows: "));
    println!("{}", line.expect("a line on flows"));
    let evicted = format!("{} evicted for want of room", flows.evicted);
    assert!(line.is_some_and(|line| line.contains(&evicted)), "{shown}");
    assert!(flows.present <= ROOM.into(), "{flows:?}");
    assert_eq!(flows.evicted, flows.entered - flows.removed - flows.present);
    assert!(flows.evicted > u64::from(ROOM), "{flows:?}");
    let turned_away =
        counters.get("egress_init", "crowded") + counters.get("ingress_init", "crowded");
    let missed = counters.get("egress", "no-flow") + counters.get("ingress", "no-flow");
    assert!(turned_away > missed / 2, "{turned_away} of {missed}");
    assert!(
        counters.get("egress", "hit") > 0,
        "those who are in are of no use"
    );

    let report = Rounds::new(1000).udp(&crowd.client, &crowd.server, 0);
    assert_eq!(report.completed, 1000, "{report}");
    let hits = host.counters().since(&counters).get("egress", "hit");
    println!("a flow of 1000 more exchanges: {hits} of its requests by the fast path");
    assert!(hits > 500, "it does not get in: {hits}");
}

/// Where there is room nothing is evicted, whoever takes flows out.
fn judge_roomy(crowd: &Crowd) {
    let host = crowd.lab.alpha();
    let flows = turnover(host);
    println!("with 65536 entries: {flows:?}\n{}", host.counters());
    let wanted = FlowTurnover {
        entered: FLOWS as u64,
        present: FLOWS as u64,
        ..FlowTurnover::default()
    };
    assert_eq!(flows, wanted);
    let report = Connections::new(100, 4).run(&crowd.client, &crowd.server, 0);
    assert_eq!(report.completed, 100, "{report}");
    let flows = turnover(host);
    println!("after 100 TCP connections: {flows:?}");
    assert!(
        flows.removed >= 50,
        "the programs take out what ends: {flows:?}"
    );
    // Two directions learned by two CPUs at the same moment count as two.
    assert!(flows.evicted < 5, "{flows:?}");
    host.oncache_ok(&["cache", "flush"]);
    host.kill9();
    host.start();
    let flows = turnover(host);
    println!("after a flush and a restart: {flows:?}");
    assert!(flows.present < 5, "{flows:?}");
    assert!(
        flows.removed >= FLOWS as u64,
        "the daemon takes out the others: {flows:?}"
    );
    assert!(flows.evicted < 5, "{flows:?}");
}
