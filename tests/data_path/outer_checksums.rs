//! A peer that is not oncache and computes outer UDP checksums: what the kernel takes as right is carried,
//! what it has to verify takes the slow path, and what is wrong never arrives. What is sent to it is fast.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use crate::ONCACHE;
use oncache_testbed::{
    Container, Host, Lab,
    traffic::{Direction, Rounds, Transfer},
};

/// Behind the other tunnel.
const PLAIN: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 2);

/// A host without oncache whose VXLAN device (`udpcsum` or `noudpcsum`) is `beta`'s peer.
fn plain_host(lab: &Lab, checksums: &str) -> Container {
    let (alpha, beta) = (lab.alpha(), lab.beta());
    alpha.sh(&format!(
        "ip link add vx0 address 0a:6f:c0:a8:32:0b mtu 1450 type vxlan id 42 local {} dev eth1 \
             dstport 4789 nolearning {checksums}
         ip link set vx0 up
         ip address add {PLAIN}/32 dev vx0
         ip neigh add 10.42.2.0 lladdr 0a:6f:c0:a8:32:0c dev vx0
         bridge fdb add 0a:6f:c0:a8:32:0c dev vx0 dst {}
         ip route add 10.42.2.0/24 via 10.42.2.0 dev vx0 onlink src {PLAIN}",
        alpha.address(),
        beta.address()
    ));
    alpha.adopt("plain", PLAIN, (**alpha).clone())
}

fn hits(host: &Host) -> [u64; 3] {
    let counters = host.counters();
    [
        ("ingress", "hit"),
        ("egress", "hit"),
        ("ingress", "outer-checksum"),
    ]
    .map(|(program, reason)| counters.get(program, reason))
}

fn counted(host: &Host, work: impl FnOnce()) -> [u64; 3] {
    let before = hits(host);
    work();
    let now = hits(host);
    let counted = [0, 1, 2].map(|it| now[it] - before[it]);
    println!("ingress hits, egress hits, unverified: {counted:?}");
    counted
}

#[test]
fn aggregates_with_checksums_are_carried_and_single_packets_go_the_slow_path() {
    let lab = Lab::two_hosts(ONCACHE);
    let beta = lab.beta();
    let plain = plain_host(&lab, "udpcsum");
    beta.start();
    let server = beta.add_container("server");
    // On this wire nobody computes or verifies anything: a datagram's checksum is still to be made.
    let [fast, answers, unverified] = counted(beta, || {
        let report = Rounds::new(300).udp(&plain, &server, 5001);
        assert_eq!((report.completed, report.lost), (300, 0), "{report}");
    });
    assert_eq!(fast, 0);
    assert!(answers > 280, "the other way goes fast: {answers}");
    assert!(unverified > 280, "{unverified}");
    let [fast, sent, _] = counted(beta, || {
        let transfer = Transfer::new(&plain, &server, 5002);
        let report = transfer
            .bytes(32 << 20)
            .direction(Direction::Both)
            .start()
            .wait();
        assert!(report.intact(), "{report}");
    });
    assert!(fast > 400 && sent > 400, "aggregates go fast both ways");
}

#[test]
fn what_the_receiving_host_has_verified_is_carried() {
    let lab = Lab::two_hosts(ONCACHE);
    let beta = lab.beta();
    // Checksums are on the wire, and verified where packets are put together (GRO).
    lab.alpha().sh("ethtool -K eth1 tx off tso off gso off");
    beta.sh("ethtool -K eth1 gro on");
    let plain = plain_host(&lab, "udpcsum");
    beta.start();
    let server = beta.add_container("server");
    let [fast, answers, _] = counted(beta, || {
        let report = Rounds::new(300).udp(&plain, &server, 5001);
        assert_eq!((report.completed, report.lost), (300, 0), "{report}");
    });
    assert!(fast > 280 && answers > 280, "{fast}, {answers}");
    counted(beta, || {
        let transfer = Transfer::new(&plain, &server, 5002);
        let report = transfer
            .bytes(8 << 20)
            .direction(Direction::Both)
            .start()
            .wait();
        assert!(report.intact(), "{report}");
    });

    // The checksums of a live flow made wrong on their way out: not one arrives, fast or otherwise.
    let receiver = server.enter(|| UdpSocket::bind((server.ip, 5003)).expect("bind"));
    let sender = plain.enter(|| UdpSocket::bind((PLAIN, 5003)).expect("bind"));
    for end in [&receiver, &sender] {
        let patience = Some(Duration::from_millis(300));
        end.set_read_timeout(patience).expect("a time-out");
    }
    let asks = || {
        sender.send_to(b"?", (server.ip, 5003)).expect("sent");
        let Ok((_, from)) = receiver.recv_from(&mut [0; 8]) else {
            return false;
        };
        receiver.send_to(b"!", from).expect("sent");
        sender.recv(&mut [0; 8]).is_ok()
    };
    let [fast, ..] = counted(beta, || assert!((0..20).all(|_| asks())));
    assert!(fast > 15, "{fast}");
    lab.alpha().sh(
        "nft 'table netdev spoil { chain out { type filter hook egress device eth1 priority 0; \
             udp dport 4789 udp checksum set 0xbeef; }; }'",
    );
    let [fast, _, unverified] = counted(beta, || assert!(!(0..5).any(|_| asks())));
    assert_eq!((fast, unverified), (0, 5));
    lab.alpha().sh("nft delete table netdev spoil");
    let [fast, ..] = counted(beta, || assert!((0..20).all(|_| asks())));
    assert!(fast > 15, "{fast}");
}

/// Sockets between the plain host and a container, all used by one thread, which asks for each packet where it
/// must be by then: what is measured is the path alone.
struct Bed {
    name: &'static str,
    _lab: Lab,
    datagrams: [UdpSocket; 2],
    stream: [TcpStream; 2],
    /// The least so far: nanoseconds for a datagram there and one back, and for 64 KiB from it and to it.
    least: [f64; 3],
}

impl Bed {
    fn new(name: &'static str, binary: &str, checksums: &str, cache: bool) -> Self {
        let lab = Lab::two_hosts(binary);
        let beta = lab.beta();
        let plain = plain_host(&lab, checksums);
        beta.write_config(&beta.default_config().cache(cache).to_string());
        beta.start();
        let server = beta.add_container("server");
        let there = server.enter(|| UdpSocket::bind((server.ip, 5003)).expect("bind"));
        let here = plain.enter(|| UdpSocket::bind((PLAIN, 5003)).expect("bind"));
        here.connect((server.ip, 5003)).expect("connect");
        there.connect((PLAIN, 5003)).expect("connect");
        let listener = server.enter(|| TcpListener::bind((server.ip, 5004)).expect("listen"));
        let client = plain.enter(|| TcpStream::connect((server.ip, 5004)).expect("connect"));
        let (accepted, _) = listener.accept().expect("a connection");
        Self {
            name,
            _lab: lab,
            datagrams: [here, there],
            stream: [client, accepted],
            least: [f64::MAX; 3],
        }
    }

    fn measure(&mut self) {
        let [here, there] = &self.datagrams;
        let mut buffer = vec![0; 1 << 16];
        let mut note = |which: usize, times: u32, step: &mut dyn FnMut(&mut [u8])| {
            let begun = Instant::now();
            for _ in 0..times {
                step(&mut buffer);
            }
            let each = begun.elapsed().as_secs_f64() * 1e9 / f64::from(times);
            self.least[which] = self.least[which].min(each);
        };
        note(0, 200, &mut |buffer| {
            for [from, to] in [[here, there], [there, here]] {
                from.send(b"datagram").expect("sent");
                to.recv(buffer).expect("received");
            }
        });
        let [here, there] = &self.stream;
        for (which, [mut from, mut to]) in [(1, [here, there]), (2, [there, here])] {
            note(which, 20, &mut |buffer| {
                from.write_all(buffer).expect("sent");
                to.read_exact(buffer).expect("received");
            });
        }
    }
}

/// docs/experiments.md has what it printed. `ONCACHE_FORMER=FILE` measures another binary beside it.
#[test]
#[ignore = "figures, not a verdict: --ignored --nocapture"]
fn what_a_peer_with_checksums_costs() {
    let former = env::var("ONCACHE_FORMER").ok();
    for checksums in ["udpcsum", "noudpcsum"] {
        let mut beds = vec![
            Bed::new("without the cache", crate::ONCACHE, checksums, false),
            Bed::new("with the cache", crate::ONCACHE, checksums, true),
        ];
        if let Some(former) = &former {
            beds.push(Bed::new("the former one", former, checksums, true));
        }
        for _ in 0..400 {
            beds.iter_mut().for_each(Bed::measure);
        }
        let without = beds[0].least;
        for bed in &beds {
            let least = bed.least.map(|it| format!("{:.1} us", it / 1000.0));
            let of = [0, 1, 2].map(|it| format!("{:.2}", without[it] / bed.least[it]));
            println!(
                "{checksums}, {}: datagram and answer, 64 KiB from it, 64 KiB to it: {least:?}, as fast as without: {of:?}",
                bed.name
            );
        }
    }
}
