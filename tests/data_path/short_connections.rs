//! Many short connections: none hangs, none fails, conntrack sees every one of them begin and end, and
//! all between goes by the fast path.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use oncache_testbed::{Container, Counters, Host, Lab, conntrack, traffic::Connections};

/// Room of the filter cache in the crowded test.
const ROOM: u32 = 1024;

/// TCP connections that conntrack still holds established.
fn established(host: &Host) -> Vec<String> {
    conntrack(host)
        .iter()
        .filter(|entry| entry.protocol == "tcp")
        .filter(|entry| entry.state.as_deref() == Some("ESTABLISHED"))
        .map(|entry| format!("{entry:?}"))
        .collect()
}

#[test]
fn a_thousand_one_after_another_and_sixty_four_at_once() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");

    for (count, at_once) in [(1000, 1), (3200, 64)] {
        let report = Connections::new(count, at_once).run(&client, &server, 7001);
        println!("{at_once} at once: {report}");
        assert_eq!(report.completed, count, "{report}");
        assert!(report.failures.is_empty(), "{report}");
    }
    sleep(Duration::from_secs(5));
    for host in lab.all() {
        let all = conntrack(host).len();
        let left = established(host);
        println!(
            "{}: {} of {all} conntrack entries are established",
            host.name,
            left.len()
        );
        assert!(
            all >= 4200,
            "{}: conntrack has seen {all} connections only",
            host.name
        );
        assert!(left.is_empty(), "{}: {left:#?}", host.name);
        println!("{}: {}", host.name, host.counters());
    }
}

/// Counters of both hosts, when they have stood still for a while: the last acknowledgements are in.
fn settled(lab: &Lab) -> [Counters; 2] {
    let read = || [lab.alpha().counters(), lab.beta().counters()];
    let until = Instant::now() + Duration::from_secs(10);
    let mut last = read();
    loop {
        sleep(Duration::from_millis(150));
        let now = read();
        if now == last || Instant::now() > until {
            return now;
        }
        last = now;
    }
}

/// What both hosts count meanwhile.
fn counted(lab: &Lab, what: &str, work: impl FnOnce()) -> [Counters; 2] {
    let before = settled(lab);
    work();
    let now = settled(lab);
    let counted = [now[0].since(&before[0]), now[1].since(&before[1])];
    println!("{what}\n   alpha: {}\n   beta: {}", counted[0], counted[1]);
    counted
}

fn listen(server: &Container, port: u16) -> TcpListener {
    server.enter(|| TcpListener::bind((server.ip, port)).expect("listen"))
}

/// A connection, from both its ends.
fn connect(client: &Container, listener: &TcpListener) -> [TcpStream; 2] {
    let to = listener.local_addr().expect("the listener's address");
    let patience = Duration::from_secs(5);
    let here = client.enter(|| TcpStream::connect_timeout(&to, patience).expect("connect"));
    let (there, _) = listener.accept().expect("accept");
    for end in [&here, &there] {
        end.set_read_timeout(Some(patience)).expect("a time-out");
        end.set_nodelay(true).expect("no waiting for more data");
    }
    [here, there]
}

/// The counters of `wanted`, in its order.
fn of<const N: usize>(counters: &Counters, wanted: [(&str, &str); N]) -> [u64; N] {
    wanted.map(|(program, reason)| counters.get(program, reason))
}

#[test]
fn the_request_is_the_first_fast_packet_and_the_fin_the_last() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let listener = listen(&server, 7002);
    // Headers and hosts are learned by one that nobody looks at.
    drop(connect(&client, &listener));

    for attempt in ["first", "second"] {
        println!("{attempt} connection");
        let mut ends = None;
        let [alpha, beta] = counted(&lab, "opened", || {
            ends = Some(connect(&client, &listener));
        });
        let [mut here, mut there] = ends.expect("made");
        // SYN out, SYN-ACK in and learned, ACK out and learned: both directions are known.
        let opened = of(
            &alpha,
            [
                ("egress", "tcp-state"),
                ("ingress", "syn-ack"),
                ("ingress_init", "learned"),
                ("egress_init", "learned"),
                ("egress", "hit"),
                ("ingress", "hit"),
            ],
        );
        assert_eq!(opened, [1, 1, 1, 1, 0, 0], "{alpha}");
        let opened = of(
            &beta,
            [
                ("ingress", "tcp-state"),
                ("egress", "syn-ack"),
                ("egress_init", "learned"),
                ("ingress_init", "learned"),
                ("egress", "hit"),
                ("ingress", "hit"),
            ],
        );
        assert_eq!(opened, [1, 1, 1, 1, 0, 0], "{beta}");

        let asked = counted(&lab, "asked and answered", || {
            let mut byte = [7];
            here.write_all(&byte).expect("ask");
            there.read_exact(&mut byte).expect("be asked");
            there.write_all(&byte).expect("answer");
            here.read_exact(&mut byte).expect("be answered");
        });
        // Of both hosts the same: all is fast, the request first, nothing is left to be learned.
        for counters in &asked {
            let text = counters.to_string();
            assert!(counters.get("egress", "hit") >= 1, "{text}");
            assert!(counters.get("ingress", "hit") >= 1, "{text}");
            let ours = |count: &&str| !count.contains("/hit") && !count.contains("/not-ipv4");
            assert_eq!(
                text.split(", ").find(ours),
                None,
                "nothing but hits: {text}"
            );
        }

        let closed = counted(&lab, "closed", || {
            drop(here);
            let mut rest = Vec::new();
            there.read_to_end(&mut rest).expect("the end");
            drop(there);
        });
        for counters in &closed {
            let fins = counters.get("egress", "tcp-state") + counters.get("ingress", "tcp-state");
            assert_eq!(fins, 2, "{counters}");
            let last = counters.get("egress", "closing") + counters.get("ingress", "closing");
            assert!(last >= 1, "{counters}");
            let learned = of(
                counters,
                [
                    ("egress_init", "learned"),
                    ("ingress_init", "learned"),
                    ("egress", "hit"),
                    ("ingress", "hit"),
                ],
            );
            assert_eq!(learned, [0; 4], "of what ends: {counters}");
        }
    }
    for host in lab.all() {
        assert!(established(host).is_empty(), "{:#?}", established(host));
    }
}

#[test]
fn a_connection_closed_on_one_side_becomes_fast_again() {
    const BYTES: usize = 20 << 20;
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let listener = listen(&server, 7003);
    let [mut here, mut there] = connect(&client, &listener);
    let counters = counted(&lab, "20 MiB after the client has closed its side", || {
        here.shutdown(Shutdown::Write).expect("close one side");
        let sender = std::thread::spawn(move || {
            there.read_to_end(&mut Vec::new()).expect("the end");
            there.write_all(&vec![0x5a; BYTES]).expect("send");
        });
        let mut received = Vec::new();
        here.read_to_end(&mut received).expect("receive");
        sender.join().expect("the sender ends");
        assert_eq!(received.len(), BYTES);
    });
    for counters in &counters {
        let sum = |reason| counters.get("egress", reason) + counters.get("ingress", reason);
        let (hits, misses) = (sum("hit"), sum("no-flow") + sum("one-way") + sum("closing"));
        println!("{hits} by the fast path, {misses} not");
        assert!(hits > 20 * misses, "{counters}");
    }
}

#[test]
fn connections_that_have_ended_crowd_nobody() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    for host in lab.all() {
        let config = host.default_config().flows(ROOM);
        host.write_config(&config.to_string());
    }
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let count = 8 * u64::from(ROOM);
    let counted = counted(
        &lab,
        "eight times as many connections as there is room",
        || {
            let report = Connections::new(count, 2).run(&client, &server, 7004);
            println!("{report}");
            assert_eq!(report.completed, count, "{report}");
        },
    );
    for (host, counters) in lab.all().iter().zip(&counted) {
        let sum =
            |reason| counters.get("egress_init", reason) + counters.get("ingress_init", reason);
        let hits = counters.get("egress", "hit") + counters.get("ingress", "hit");
        let stats = host.oncache_ok(&["stats"]);
        let flows = stats.lines().find(|line| line.starts_with("flows: "));
        println!("{}: {}", host.name, flows.expect("a line on flows"));
        // Both learn of each connection, and request and response are carried.
        assert!(sum("crowded") * 100 < count, "{counters}");
        assert!(sum("learned") * 10 > count * 19, "{counters}");
        assert!(hits * 10 > count * 19, "{counters}");
    }
}
