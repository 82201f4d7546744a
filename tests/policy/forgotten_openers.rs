//! A rule means the one who opened a flow, also where conntrack forgets or begins in mid-flow: what a
//! rule denies stops in both directions for good, whoever sends the first packet that is seen.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use crate::lab::two_hosts;
use crate::policy_probe::{apply, clear, gateway, packets, rule};
use oncache_testbed::{Container, Host, Lab};

/// The port that is asked at.
const PORT: u16 = 5432;
/// How long is waited for what must not come.
const NEVER: Duration = Duration::from_millis(40);
/// How long is waited for what must come: TCP sends again what was stopped, after waiting.
const SURELY: Duration = Duration::from_secs(20);

/// A flow that the client has opened, and what was said in it.
enum Flow {
    Tcp([Speaker; 2]),
    Udp([UdpSocket; 2], [SocketAddr; 2]),
}

/// One end of a connection: it reads all the time, so the bytes that came are counted.
struct Speaker {
    stream: TcpStream,
    said: u64,
    heard: u64,
}

impl Speaker {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("no delay");
        stream.set_nonblocking(true).expect("no waiting");
        Self {
            stream,
            said: 0,
            heard: 0,
        }
    }

    fn listen(&mut self) -> u64 {
        let mut buffer = [0; 64];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("the connection has ended"),
                Ok(some) => self.heard += some as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.heard,
                Err(error) => panic!("the connection is broken: {error}"),
            }
        }
    }
}

/// A socket at a port of before: a child of another test's thread may hold the last one for a moment,
/// between fork and exec.
fn bound<S>(bind: impl Fn() -> std::io::Result<S>) -> S {
    let until = Instant::now() + SURELY;
    loop {
        match bind() {
            Ok(socket) => return socket,
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("bind: {error}"),
        }
    }
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

impl Flow {
    fn tcp(client: &Container, server: &Container) -> Self {
        let listener = server.enter(|| bound(|| TcpListener::bind((server.ip, PORT))));
        let asking = client.enter(|| TcpStream::connect((server.ip, PORT)).expect("connect"));
        let (answering, _) = listener.accept().expect("accept");
        let mut flow = Self::Tcp([Speaker::new(asking), Speaker::new(answering)]);
        flow.talk();
        flow
    }

    fn udp(client: &Container, server: &Container) -> Self {
        let bind = |end: &Container, port| {
            let socket = end.enter(|| bound(|| UdpSocket::bind((end.ip, port))));
            socket.set_nonblocking(true).expect("no waiting");
            socket
        };
        let sockets = [bind(client, 0), bind(server, PORT)];
        let addresses = [1, 0].map(|end: usize| sockets[end].local_addr().expect("bound"));
        let mut flow = Self::Udp(sockets, addresses);
        flow.talk();
        flow
    }

    fn talk(&mut self) {
        for _ in 0..3 {
            for speaker in [CLIENT, SERVER] {
                assert!(self.say(speaker, SURELY), "without rules");
            }
        }
    }

    /// One end speaks; whether the other hears it, or anything else new, within `patience`.
    fn say(&mut self, speaker: usize, patience: Duration) -> bool {
        match self {
            Self::Udp(sockets, addresses) => {
                // The kernel may tell of an earlier error, or of a rule that stops it here.
                let _ = sockets[speaker].send_to(b"x", addresses[speaker]);
            }
            Self::Tcp(ends) => {
                let already = ends[1 - speaker].listen();
                assert!(already <= ends[speaker].said);
                ends[speaker]
                    .stream
                    .write_all(b"x")
                    .expect("room for a byte");
                ends[speaker].said += 1;
            }
        }
        self.hears(1 - speaker, patience)
    }

    /// Whether all that was said to one end comes within `patience`.
    fn hears(&mut self, listener: usize, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let heard = match self {
                Self::Udp(sockets, _) => sockets[listener].recv(&mut [0; 8]).is_ok(),
                Self::Tcp(ends) => {
                    let heard = ends[listener].listen();
                    heard == ends[1 - listener].said
                }
            };
            if heard || Instant::now() >= until {
                return heard;
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether anything at all that was not there comes within `patience`.
    fn leaks(&mut self, patience: Duration) -> bool {
        let before = match self {
            Self::Udp(..) => [0; 2],
            Self::Tcp(ends) => [ends[0].heard, ends[1].heard],
        };
        thread::sleep(patience);
        match self {
            Self::Udp(sockets, _) => sockets.iter().any(|it| it.recv(&mut [0; 8]).is_ok()),
            Self::Tcp(ends) => [ends[0].listen(), ends[1].listen()] != before,
        }
    }
}

/// Which of the hosts forget, and how.
#[derive(Clone, Copy, Debug)]
enum Forgetting {
    Flush(&'static [usize]),
    Delete,
    Nothing,
}

fn forget(hosts: [&Host; 2], how: Forgetting, client: &Container) {
    match how {
        Forgetting::Flush(which) => {
            for host in which {
                hosts[*host].run(&["conntrack", "-F"]);
            }
        }
        Forgetting::Delete => {
            // It fails where there is none.
            let address = client.ip.to_string();
            hosts[0].output(&["conntrack", "-D", "-s", &address]);
            hosts[0].output(&["conntrack", "-D", "-d", &address]);
        }
        Forgetting::Nothing => {}
    }
}

/// What was learned before conntrack forgot serves for a lease: the next packet is to be judged.
fn by_the_slow_path(hosts: [&Host; 2]) {
    for host in hosts {
        host.oncache(&["cache", "flush"]);
    }
}

fn deny(client: &Container, protocol: &str) -> String {
    let (from, port) = (
        format!("from = \"{}\"", client.ip),
        format!("ports = [{PORT}]"),
    );
    rule(
        "deny",
        &[&from, &format!("protocol = \"{protocol}\""), &port],
    )
}

fn allow_only(client: &Container, protocol: &str) -> String {
    let (from, port) = (
        format!("from = \"{}\"", client.ip),
        format!("ports = [{PORT}]"),
    );
    let allow = rule(
        "allow",
        &[&from, &format!("protocol = \"{protocol}\""), &port],
    );
    format!("{allow}{}", rule("deny", &[]))
}

/// The ends of flows: between hosts, on one host, and towards the host.
fn places(lab: &Lab) -> Vec<(&'static str, Container, Container)> {
    let (alpha, beta) = (lab.alpha(), lab.beta());
    // Where br_netfilter is there, it shows bridged packets to conntrack at all times by default.
    if alpha.sysctl("net.bridge.bridge-nf-call-iptables").is_some() {
        alpha.set_sysctl("net.bridge.bridge-nf-call-iptables", "0");
    }
    let one = alpha.add_container("one");
    vec![
        ("between hosts", one.clone(), beta.add_container("far")),
        ("on one host", one.clone(), alpha.add_container("two")),
        ("towards the host", one, gateway(alpha)),
    ]
}

type Make = fn(&Container, &Container) -> Flow;
const PROTOCOLS: [(&str, Make); 2] = [("tcp", Flow::tcp), ("udp", Flow::udp)];

fn a_denied_flow_stops_whoever_is_seen_first(lab: &Lab, number: usize) {
    let hosts = [lab.alpha(), lab.beta()];
    for (place, client, server) in places(lab).into_iter().take(number) {
        for (protocol, make) in PROTOCOLS {
            for how in [
                Forgetting::Nothing,
                Forgetting::Flush(&[0]),
                Forgetting::Flush(&[0, 1]),
                Forgetting::Delete,
            ] {
                for first in [SERVER, CLIENT] {
                    if matches!((how, first), (Forgetting::Nothing, CLIENT))
                        || (matches!(how, Forgetting::Flush([0, 1])) && place != "between hosts")
                    {
                        continue;
                    }
                    let mut flow = make(&client, &server);
                    let when = format!("{place}, {protocol}, {how:?}, then end {first} speaks");
                    forget(hosts, how, &client);
                    // The next packet is seen.
                    let _ = hosts[0].oncache(&["cache", "flush"]);
                    assert!(flow.say(first, SURELY), "{when}: no rule yet");
                    apply(hosts[0], &deny(&client, protocol));
                    for speaker in [SERVER, CLIENT, SERVER] {
                        assert!(!flow.say(speaker, NEVER), "{when}: end {speaker} is heard");
                    }
                    assert!(packets(hosts[0], 1) > 0, "{when}: nothing is counted");
                    // Nor does it come back while it is denied.
                    forget(hosts, how, &client);
                    for speaker in [first, 1 - first, first] {
                        assert!(
                            !flow.say(speaker, NEVER),
                            "{when}: again, end {speaker} is heard"
                        );
                    }
                    clear(hosts[0]);
                    for speaker in [CLIENT, SERVER] {
                        assert!(flow.say(speaker, SURELY), "{when}: allowed again");
                    }
                }
            }
        }
    }
}

#[test]
fn a_denied_flow_stops_whoever_is_seen_first_after_conntrack_forgot() {
    let lab = two_hosts();
    lab.start();
    a_denied_flow_stops_whoever_is_seen_first(&lab, 3);
}

#[test]
fn a_denied_flow_stops_with_the_cache_off_too() {
    let lab = two_hosts();
    for host in lab.all() {
        let config = host.default_config().cache(false);
        host.write_config(&config.to_string());
    }
    lab.start();
    a_denied_flow_stops_whoever_is_seen_first(&lab, 1);
}

#[test]
fn an_allowed_flow_goes_on_as_long_as_its_opener_is_known() {
    let lab = two_hosts();
    lab.start();
    let hosts = [lab.alpha(), lab.beta()];
    for (place, client, server) in places(&lab) {
        for (protocol, make) in PROTOCOLS {
            let mut flow = make(&client, &server);
            if place == "on one host" && protocol == "tcp" {
                // Nothing looked on when it was opened: the bridge has no conntrack without rules.
                apply(hosts[0], &allow_only(&client, protocol));
                assert!(
                    !flow.say(CLIENT, NEVER),
                    "{place}, {protocol}: opened by whom?"
                );
                clear(hosts[0]);
                continue;
            }
            for speaker in [SERVER, CLIENT] {
                apply(hosts[0], &allow_only(&client, protocol));
                for speaker in [speaker, 1 - speaker, speaker] {
                    assert!(
                        flow.say(speaker, SURELY),
                        "{place}, {protocol}: end {speaker}"
                    );
                }
                clear(hosts[0]);
            }
            if protocol == "udp" {
                forget(hosts, Forgetting::Flush(&[0]), &client);
                apply(hosts[0], &allow_only(&client, protocol));
                for speaker in [SERVER, CLIENT] {
                    assert!(
                        flow.say(speaker, SURELY),
                        "{place}, {protocol}: after a flush"
                    );
                }
                // Asked and answered under the rules, and nothing the other way.
                drop(flow);
                assert!(Flow::udp(&client, &server).say(SERVER, SURELY));
                let own = server.enter(|| UdpSocket::bind((server.ip, 0)).expect("bind"));
                let port = client.enter(|| UdpSocket::bind((client.ip, 0)).expect("bind"));
                port.set_read_timeout(Some(NEVER)).expect("a time-out");
                let _ = own.send_to(b"x", port.local_addr().expect("bound"));
                assert!(
                    port.recv(&mut [0; 8]).is_err(),
                    "{place}: the server opens a flow"
                );
                clear(hosts[0]);
            }
        }
    }
}

#[test]
fn the_labels_know_what_a_flush_of_the_ruleset_forgets() {
    let lab = two_hosts();
    lab.start();
    let alpha = lab.alpha();
    for (place, client, server) in places(&lab) {
        for (protocol, make) in PROTOCOLS {
            for rules in [false, true] {
                let mut flow = make(&client, &server);
                let when = format!("{place}, {protocol}, rules before: {rules}");
                if rules {
                    apply(alpha, &deny(&client, protocol));
                }
                alpha.run(&["nft", "flush", "ruleset"]);
                crate::lab::eventually("the tables are back", crate::lab::PATIENCE, || {
                    let tables = alpha.run(&["nft", "list", "tables"]);
                    tables.matches("oncache-policy").count() == 2
                });
                let _ = flow.leaks(NEVER);
                if rules {
                    assert!(!flow.say(SERVER, NEVER), "{when}: the server first");
                } else {
                    assert!(flow.say(SERVER, SURELY), "{when}: no rule");
                }
                apply(alpha, &deny(&client, protocol));
                for speaker in [SERVER, CLIENT, SERVER] {
                    assert!(!flow.say(speaker, NEVER), "{when}: end {speaker} is heard");
                }
                clear(alpha);
            }
        }
    }
}

/// What may happen to a flow, and what is asked of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Say(usize),
    Flush(usize),
    Delete,
    Deny,
    AllowOnly,
    Clear,
}

/// The reference: who may be heard.
#[derive(Debug)]
struct Known {
    /// The opener is known, so that a rule that allows what the client opens lets it go on.
    opener: bool,
    rules: Step,
}

impl Known {
    fn after(&mut self, step: Step, protocol: &str) {
        match step {
            Step::Say(_) | Step::Flush(1) => {}
            // The sets remember UDP's.
            Step::Flush(_) | Step::Delete => self.opener &= protocol == "udp",
            Step::Deny | Step::AllowOnly | Step::Clear => self.rules = step,
        }
    }

    fn passes(&self) -> bool {
        match self.rules {
            Step::Deny => false,
            Step::AllowOnly => self.opener,
            _ => true,
        }
    }
}

/// A stream of numbers (Knuth's MMIX multiplier), the same for a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

#[test]
fn whatever_is_forgotten_at_whatever_moment_nothing_denied_passes() {
    const STEPS: usize = 24;
    let seed = std::env::var("ONCACHE_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("ONCACHE_SEED={seed}");
    let mut numbers = Numbers(seed);
    let lab = two_hosts();
    lab.start();
    let hosts = [lab.alpha(), lab.beta()];
    let (mut said, mut stopped) = (0, 0);
    for (place, client, server) in places(&lab) {
        for (protocol, make) in PROTOCOLS {
            for _ in 0..2 {
                let mut flow = make(&client, &server);
                let mut known = Known {
                    // Over a bridge nothing looks on before the first rule.
                    opener: protocol == "udp" || place != "on one host",
                    rules: Step::Clear,
                };
                let mut done = VecDeque::new();
                for _ in 0..STEPS {
                    let step = match numbers.below(12) {
                        0..6 => Step::Say(numbers.below(2)),
                        6 => Step::Flush(0),
                        7 => Step::Flush(1),
                        8 => Step::Delete,
                        9 => Step::Deny,
                        10 => Step::AllowOnly,
                        _ => Step::Clear,
                    };
                    done.push_back(step);
                    known.after(step, protocol);
                    match step {
                        Step::Say(speaker) => {
                            let passes = known.passes();
                            let patience = if passes { SURELY } else { NEVER };
                            let heard = flow.say(speaker, patience);
                            said += 1;
                            stopped += usize::from(!heard);
                            assert_eq!(
                                heard, passes,
                                "seed {seed}, {place}, {protocol}: {done:?}, {known:?}"
                            );
                        }
                        Step::Flush(host) => {
                            hosts[host].run(&["conntrack", "-F"]);
                            by_the_slow_path(hosts);
                        }
                        Step::Delete => {
                            forget(hosts, Forgetting::Delete, &client);
                            by_the_slow_path(hosts);
                        }
                        Step::Deny => {
                            apply(hosts[0], &deny(&client, protocol));
                        }
                        Step::AllowOnly => {
                            apply(hosts[0], &allow_only(&client, protocol));
                        }
                        Step::Clear => clear(hosts[0]),
                    }
                }
                clear(hosts[0]);
                for speaker in [CLIENT, SERVER] {
                    assert!(
                        flow.say(speaker, SURELY),
                        "{place}, {protocol}: without rules again"
                    );
                }
            }
        }
    }
    println!("{said} times an end spoke, {stopped} times it had to be stopped and was");
    assert!(stopped > 5 && said > stopped + 5, "{said}, {stopped}");
}
