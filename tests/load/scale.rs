//! Many containers: all of them reach each other, and nothing of them is left.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use oncache_testbed::{Container, Hits, Host, Lab, PATIENCE, eventually, traffic, until_same};
use serde_json::Value;

const CONTAINERS: usize = 50;
const PORT: u16 = 7000;

/// How long a step of one connection may take on a busy machine.
const STEP: Duration = Duration::from_secs(20);

fn on_both<T: Send>(lab: &Lab, work: impl Fn(&Host) -> T + Sync) -> [T; 2] {
    thread::scope(|scope| {
        let alpha = scope.spawn(|| work(lab.alpha()));
        let beta = work(lab.beta());
        [alpha.join().expect("alpha's part"), beta]
    })
}

/// Answers each connection's four bytes with their complement until told to stop.
fn serve(listener: &TcpListener, done: &AtomicBool) {
    listener.set_nonblocking(true).expect("a listener");
    while !done.load(Ordering::Relaxed) {
        match listener.accept() {
            // What goes wrong here the client sees.
            Ok((stream, _)) => drop(answer(stream)),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn bounded(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    bounded(&stream)?;
    let mut request = [0; 4];
    stream.read_exact(&mut request)?;
    stream.write_all(&request.map(|byte| !byte))?;
    stream.read(&mut request).map(|_| ())
}

fn ask(server: Ipv4Addr, number: u32) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddrV4::new(server, PORT).into(), STEP)?;
    bounded(&stream)?;
    stream.write_all(&number.to_be_bytes())?;
    let mut response = [0; 4];
    stream.read_exact(&mut response)?;
    if response == (!number).to_be_bytes() {
        Ok(())
    } else {
        Err(io::Error::other("another request's response"))
    }
}

/// How many containers of its own host each visits. They need entries of the neighbour table for
/// each other, and the kernel has 1,024 for all namespaces together (net/ipv4/arp.c, `gc_thresh3`).
/// That is the machine's, not the test's to change. Where it has room for 5,000, every pair can be
/// visited: `sysctl -w net.ipv4.neigh.default.gc_thresh3=8192` (and `gc_thresh2`), then
/// `ONCACHE_SCALE_NEIGHBOURS=49 cargo test --test scale`.
fn neighbours() -> usize {
    match std::env::var("ONCACHE_SCALE_NEIGHBOURS") {
        Ok(text) => text.parse().expect("ONCACHE_SCALE_NEIGHBOURS is a number"),
        Err(_) => 3,
    }
}

/// Pings and asks from one container every one of the other host and the next ones of its own;
/// returns what failed.
fn visit(number: usize, all: &[Container]) -> Vec<String> {
    let client = &all[number];
    let theirs = all.iter().filter(|other| other.host != client.host);
    let ours = all.iter().filter(|other| other.host == client.host);
    let next = ours
        .cycle()
        .skip(number % CONTAINERS + 1)
        .take(neighbours());
    let others: Vec<&Container> = theirs.chain(next).collect();
    let mut failures = Vec::new();
    for server in &others {
        let report = traffic::ping(client, server.ip, 1);
        if !report.lossless() {
            failures.push(format!("{} pings {}: {report}", client.name, server.name));
        }
    }
    client.enter(|| {
        for (server, index) in others.iter().zip(0..) {
            let number = u32::try_from(number).expect("few clients") << 16 | index;
            if let Err(error) = ask(server.ip, number) {
                failures.push(format!("{} asks {}: {error}", client.name, server.name));
            }
        }
    });
    failures
}

/// What the caches hold of containers; none once all are gone.
fn remembered(host: &Host) -> Vec<String> {
    let caches = host.oncache_json(&["cache", "list", "--json"]);
    let rows = |name: &str| caches[name].as_array().cloned().expect("a cache");
    let entries = ["flows", "addresses", "containers"].map(rows).concat();
    let learned = rows("hosts")
        .into_iter()
        .filter(|row| row["live"] == true || row["ifindex"] != 0);
    entries
        .into_iter()
        .chain(learned)
        .map(|row: Value| row.to_string())
        .collect()
}

#[test]
fn fifty_containers_a_host_reach_each_other_and_leave_nothing() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let before = on_both(&lab, Host::snapshot);

    let begun = Instant::now();
    let [ours, theirs] = on_both(&lab, |host| -> Vec<Container> {
        (0..CONTAINERS)
            .map(|number| host.add_container(&format!("{}-{number}", host.name)))
            .collect()
    });
    println!(
        "{} containers added in {:?}",
        2 * CONTAINERS,
        begun.elapsed()
    );
    let all: Vec<Container> = ours.into_iter().chain(theirs).collect();
    let addresses: BTreeSet<Ipv4Addr> = all.iter().map(|it| it.ip).collect();
    assert_eq!(addresses.len(), 2 * CONTAINERS, "each has its own address");

    let begun = Instant::now();
    let done = AtomicBool::new(false);
    let failures: Vec<String> = thread::scope(|scope| {
        for server in &all {
            let listener = server.enter(|| TcpListener::bind((server.ip, PORT)));
            let listener = listener.expect("a listener in each container");
            scope.spawn(|| serve(&{ listener }, &done));
        }
        let all = &all;
        let visits: Vec<_> = (0..all.len())
            .map(|number| scope.spawn(move || visit(number, all)))
            .collect();
        let failures = visits
            .into_iter()
            .flat_map(|visit| visit.join().expect("a visit"))
            .collect();
        done.store(true, Ordering::Relaxed);
        failures
    });
    let pairs = all.len() * (CONTAINERS + neighbours());
    println!(
        "{pairs} pairs, pinged and connected, in {:?}: {} failures",
        begun.elapsed(),
        failures.len()
    );
    assert!(failures.is_empty(), "{failures:#?}");
    for host in lab.all() {
        let hits = Hits::of(host);
        println!("{}: {hits:?}", host.name);
        assert!(hits.egress > 0 && hits.ingress > 0, "{hits:?}");
        assert!(!remembered(host).is_empty(), "something was learned");
    }

    let begun = Instant::now();
    drop(all); // the handles hold the namespaces
    on_both(&lab, |host| {
        for number in 0..CONTAINERS {
            host.remove_container(&format!("{}-{number}", host.name));
        }
    });
    println!("all deleted in {:?}", begun.elapsed());
    for (host, before) in lab.all().iter().zip(&before) {
        let took = until_same(host, before, PATIENCE, "after the last container went");
        let forgotten = eventually("the caches are empty", PATIENCE, || {
            let rest = remembered(host);
            rest.is_empty() || {
                println!("{}: still {rest:?}", host.name);
                false
            }
        });
        println!(
            "{}: as before in {took:?}, caches empty in {forgotten:?}",
            host.name
        );
        assert_eq!(
            host.oncache_json(&["container", "list", "--json"]),
            Value::Array(vec![])
        );
    }
}

#[test]
fn addresses_are_used_up_before_one_is_used_again() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    alpha.write_config(&alpha.default_config().subnet("10.42.1.0/28").to_string());
    alpha.start();
    let add = |name: &str| alpha.add_container(name).ip;
    let ip = |last: u8| Ipv4Addr::new(10, 42, 1, last);

    let first: Vec<Ipv4Addr> = (0..5).map(|number| add(&format!("c{number}"))).collect();
    assert_eq!(first, [ip(2), ip(3), ip(4), ip(5), ip(6)]);
    alpha.remove_container("c1");
    let rest: Vec<Ipv4Addr> = (5..13).map(|number| add(&format!("c{number}"))).collect();
    println!("first {first:?}, then {rest:?}");
    assert!(!rest.contains(&ip(3)), "a freed address rests: {rest:?}");
    // 16 less network, gateway and broadcast.
    assert_eq!(rest, (7..=14).map(ip).collect::<Vec<_>>());
    assert_eq!(add("last"), ip(3), "the only one left");

    let before = alpha.snapshot();
    let line = alpha.refused(&["container", "add", "more"]);
    println!("{line}");
    assert!(
        line.contains("10.42.1.0/28") && line.contains("13") && line.contains("delete"),
        "{line}"
    );
    oncache_testbed::assert_same(&before, &alpha.snapshot(), "an add that was refused");
    alpha.remove_container("c7");
    assert_eq!(add("more"), ip(9), "what was freed");
}
