//! Twenty times more flows than the filter cache has room for: all of them work, and what had to give
//! way is counted. What it costs is measured by `make bench-sweep`.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::ONCACHE;
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
const ROUNDS: usize = 4;
/// The first port of the clients; below the range that the kernel gives out.
const FIRST_PORT: usize = 5000;

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

    /// One request of every flow and its answer; returns how many were not answered, or wrongly.
    fn round(&self, round: usize) -> usize {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
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
        })
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

/// The turnover of the filter cache, as `oncache stats` says.
fn turnover(host: &Host) -> FlowTurnover {
    let stats = host.oncache_json(&["stats", "--json"]);
    let stats: Stats = serde_json::from_value(stats).expect("what the API says");
    stats.flows
}

#[test]
fn more_flows_than_the_cache_has_room_for() {
    for (name, room, judge) in [
        ("tight", ROOM, judge_tight as fn(&Crowd)),
        ("roomy", 65536, judge_roomy),
    ] {
        let crowd = Crowd::new(|config| config.flows(room));
        for round in 0..ROUNDS {
            let unanswered = crowd.round(round);
            assert_eq!(unanswered, 0, "{name}, round {round}");
        }
        println!("{name}: all of {} requests answered", FLOWS * ROUNDS);
        judge(&crowd);
    }
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
    // Where they miss, so that nothing has to be looked at in order to be learned in vain.
    for (program, learning) in [("egress", "egress_init"), ("ingress", "ingress_init")] {
        let [turned_away, missed] = ["crowded", "no-flow"].map(|it| counters.get(program, it));
        assert!(
            turned_away > missed,
            "{program}: {turned_away} and {missed}"
        );
        let late = counters.get(learning, "crowded");
        assert!(
            late < turned_away / 10,
            "{learning}: {late} of {turned_away}"
        );
    }
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
    let counters = host.counters();
    println!("with 65536 entries: {flows:?}\n{counters}");
    // In the first round the flows begin, in the second the way of the requests is learned; a lease may
    // end in between.
    let hits = counters.get("egress", "hit");
    assert!(hits > FLOWS as u64, "the caches carry nothing: {hits}");
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
