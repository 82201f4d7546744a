//! A container moves to another host and keeps its address: at every step each packet is for the right
//! container or for none, what does not concern the move goes on, and in the end everybody reaches it,
//! by the fast path where there is one.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use oncache_testbed::{
    Container, Host, Lab, PATIENCE, eventually,
    traffic::{self, Datagrams, Direction, Rounds, Transfer},
    until_fast,
};

const ADDRESS: &str = "10.42.1.7";
const X: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 7);
const PORT: u16 = 6000;

/// Answers every datagram with its own tag before it, until it is dropped.
struct Echo {
    over: Arc<AtomicBool>,
    socket: UdpSocket,
}

impl Echo {
    fn in_container(container: &Container, tag: u8) -> Self {
        let socket = container.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)));
        let socket = socket.expect("bind in the container");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a time-out");
        let over = Arc::new(AtomicBool::new(false));
        let echo = Self {
            over: Arc::clone(&over),
            socket: socket.try_clone().expect("a second handle"),
        };
        thread::spawn(move || {
            let mut bytes = [tag; 64];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut bytes[1..]) else {
                    continue;
                };
                // Without a device there is no way back; that is no failure here.
                let _ = socket.send_to(&bytes[..=length], from);
            }
        });
        echo
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// A container that asks who has the address.
struct Asker {
    name: &'static str,
    socket: UdpSocket,
    number: u32,
}

impl Asker {
    fn new(name: &'static str, container: &Container, port: u16) -> Self {
        let socket = container.enter(|| UdpSocket::bind((container.ip, port)));
        let socket = socket.expect("bind in the asking container");
        let patience = Some(Duration::from_millis(100));
        socket.set_read_timeout(patience).expect("a time-out");
        Self {
            name,
            socket,
            number: 0,
        }
    }

    /// The tag of whoever answers, if anybody does.
    fn asks(&mut self) -> Option<u8> {
        self.number += 1;
        let question = self.number.to_be_bytes();
        // Refused where the address is nobody's.
        self.socket.send_to(&question, (X, PORT)).ok()?;
        let mut bytes = [0; 64];
        loop {
            let length = self.socket.recv(&mut bytes).ok()?;
            if bytes[1..length] == question {
                return Some(bytes[0]);
            }
        }
    }

    /// Twenty questions, all of them answered by `tag`.
    fn is_answered_by(&mut self, tag: u8, when: &str) {
        for _ in 0..20 {
            assert_eq!(self.asks(), Some(tag), "{} {when}", self.name);
        }
    }

    /// Waits for `tag` to answer; meanwhile nobody else may. Returns how long it took.
    fn until_answered_by(&mut self, tag: u8, when: &str) -> Duration {
        let began = Instant::now();
        loop {
            match self.asks() {
                Some(found) if found == tag => return began.elapsed(),
                Some(other) => panic!("{} {when}: answered by {other}, not by {tag}", self.name),
                None => assert!(
                    began.elapsed() < PATIENCE,
                    "{} {when}: no answer",
                    self.name
                ),
            }
        }
    }
}

/// The host's configuration with the address at `peer`.
fn moved_to(host: &Host, peer: &Host) -> String {
    let subnet = format!("subnet = \"{}\"", peer.subnet());
    let config = host.default_config().to_string();
    assert!(config.contains(&subnet), "{config}");
    config.replace(&subnet, &format!("{subnet}\nmoved = [\"{ADDRESS}\"]"))
}

#[test]
fn a_container_takes_its_address_along_and_back() {
    let lab = Lab::hosts(3, ONCACHE);
    let (alpha, beta, gamma) = (lab.alpha(), lab.beta(), lab.gamma());
    lab.start();
    let web = alpha.add_container_with("web", &["--ip", ADDRESS]);
    let mate = alpha.add_container("mate");
    let local = beta.add_container("local");
    let third = gamma.add_container("third");
    for asker in [&mate, &local, &third] {
        // Told of nothing, a neighbour table would ask for itself only long after we have lost patience.
        asker.set_sysctl("net.ipv4.neigh.eth0.delay_first_probe_time", "120");
    }
    let [mut from_mate, mut from_local, mut from_third] = [
        Asker::new("mate on the old host", &mate, 6001),
        Asker::new("local on the new host", &local, 6001),
        Asker::new("third on a third host", &third, 6001),
    ];
    let echo = Echo::in_container(&web, 1);
    // Those who would answer if anything were delivered to a wrong container.
    let bystanders = [(&mate, 8), (&local, 9), (&third, 10)];
    let _bystanders = bystanders.map(|(container, tag)| Echo::in_container(container, tag));
    until_fast([alpha, gamma], &third, &web);
    until_fast([alpha, beta], &local, &web);
    for asker in [&mut from_mate, &mut from_local, &mut from_third] {
        asker.is_answered_by(1, "at home");
    }
    let at_home = [alpha, beta, gamma].map(Host::snapshot);

    // What does not concern the move goes on all the while.
    let transfers = [(&mate, &local), (&third, &local), (&third, &mate)].map(|(from, to)| {
        Transfer::new(from, to, 0)
            .direction(Direction::Both)
            .pace(2_000_000)
            .start()
    });
    let datagrams = thread::spawn({
        let (from, to) = (mate.clone(), third.clone());
        move || {
            let mut datagrams = Datagrams::new(4000, 200);
            datagrams.pause = Duration::from_millis(1);
            datagrams.run(&from, &to, 6100)
        }
    });

    println!("both hosts have it:");
    let there = beta.add_container_with("web", &["--ip", ADDRESS]);
    let echo_there = Echo::in_container(&there, 2);
    from_local.is_answered_by(2, "with both");
    from_mate.is_answered_by(1, "with both");
    from_third.is_answered_by(1, "with both");
    // Its packets to a host that knows the other one are not by the fast path, but not lost either.
    until_fast([alpha, gamma], &third, &web);
    for _ in 0..20 {
        from_third.asks();
    }
    let wrong = gamma.counters().get("ingress", "wrong-host");
    let to_third = (third.ip, 6001);
    for number in 0..10_u8 {
        let sent = echo_there.socket.send_to(&[3, number], to_third);
        sent.expect("send to the third host");
    }
    let mut bytes = [0; 64];
    for number in 0..10 {
        let length = from_third.socket.recv(&mut bytes).expect("one of the ten");
        assert_eq!(bytes[..length], [3, number]);
    }
    let wrong = gamma.counters().get("ingress", "wrong-host") - wrong;
    println!("  10 packets from the new host arrived, {wrong} of them counted as wrong-host");
    assert_eq!(wrong, 10);

    println!("the old host is told too early:");
    let lines = alpha.reload_with(&moved_to(alpha, beta));
    let refusal = lines
        .iter()
        .find(|line| line.contains("reload refused"))
        .unwrap_or_else(|| panic!("{lines:#?}"));
    assert!(
        refusal.contains("container web: address 10.42.1.7: has moved to beta"),
        "{refusal}"
    );
    from_mate.is_answered_by(1, "after a refused reload");

    println!("the old host gives it up:");
    drop(echo);
    alpha.remove_container("web");
    drop(web);
    for asker in [&mut from_mate, &mut from_third] {
        for _ in 0..3 {
            assert_eq!(asker.asks(), None, "{}: nobody has it for them", asker.name);
        }
    }
    from_local.is_answered_by(2, "on the new host");

    println!("the old host is told:");
    let lines = alpha.reload_with(&moved_to(alpha, beta));
    assert!(
        lines
            .iter()
            .any(|line| line.contains("add proxy neighbour 10.42.1.7")),
        "{lines:#?}"
    );
    let took = from_mate.until_answered_by(2, "old host told");
    println!("  {}: answered after {took:?}", from_mate.name);
    let took = from_third.until_answered_by(2, "by way of the old host");
    println!(
        "  {}, by way of the old host: answered after {took:?}",
        from_third.name
    );
    let message = alpha.refused(&["container", "add", "thief", "--ip", ADDRESS]);
    assert!(message.contains("has moved to beta"), "{message}");

    println!("the third host is told:");
    gamma.reload_with(&moved_to(gamma, beta));
    from_third.is_answered_by(2, "third host told");
    let took = until_fast([gamma, beta], &third, &there);
    println!("  fast from the third host after {took:?}");
    let took = until_fast([alpha, beta], &mate, &there);
    println!("  fast from the old host after {took:?}");
    from_local.is_answered_by(2, "at the end");
    // The other way round, too, and between containers of the new host.
    for (from, to) in [
        (&there, &mate),
        (&there, &third),
        (&there, &local),
        (&local, &there),
    ] {
        let report = Rounds::new(50).tcp(from, to, 0);
        assert_eq!((report.completed, report.wrong), (50, 0), "{report}");
        let report = traffic::ping(from, to.ip, 3);
        assert!(report.lossless(), "{report}");
    }
    // And the world outside, as its neighbours on the new host do.
    beta.set_sysctl("net.ipv4.conf.eth1.forwarding", "1");
    let report = traffic::ping(&there, gamma.address(), 3);
    assert!(report.lossless(), "the world outside: {report}");

    println!("it comes back:");
    drop(echo_there);
    beta.remove_container("web");
    drop(there);
    for host in [gamma, alpha] {
        host.reload_with(&host.default_config().to_string());
    }
    let web = alpha.add_container_with("web", &["--ip", ADDRESS]);
    let _echo = Echo::in_container(&web, 4);
    for asker in [&mut from_mate, &mut from_local, &mut from_third] {
        let took = asker.until_answered_by(4, "back home");
        println!("  {}: answered after {took:?}", asker.name);
    }
    until_fast([alpha, gamma], &third, &web);
    until_fast([alpha, beta], &local, &web);
    beta.set_sysctl("net.ipv4.conf.eth1.forwarding", "0");
    for (host, before) in [alpha, beta, gamma].into_iter().zip(&at_home) {
        eventually("no trace of the move", PATIENCE, || {
            let now = host.snapshot();
            let same = |section| now.section(section) == before.section(section);
            let proxies = host.run(&["ip", "neigh", "show", "proxy"]);
            same("route") && same("nft") && same("sysctl") && proxies.trim().is_empty()
        });
    }

    for transfer in transfers {
        let report = transfer.stop();
        println!("not concerned: {report}");
        assert!(report.intact(), "{report}");
    }
    let report = datagrams.join().expect("the datagrams end");
    println!("not concerned: {report}");
    assert_eq!((report.whole, report.damaged), (report.sent, 0), "{report}");
}
