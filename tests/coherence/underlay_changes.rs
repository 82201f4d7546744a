//! Learned headers follow the underlay.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::{scope, sleep},
    time::Duration,
};

use crate::ONCACHE;
use oncache_testbed::{
    CachedFlow, Container, Host, Lab, PATIENCE, eventually, set_ip_option, traffic::Rounds,
};

/// Ends the rounds, also where the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// Waits until alpha's fast path carries requests and answers.
fn fast(lab: &Lab) {
    let hits = || {
        let counters = lab.alpha().counters();
        [
            counters.get("egress", "hit"),
            counters.get("ingress", "hit"),
        ]
    };
    let before = hits();
    eventually("the flow is fast", PATIENCE, || {
        hits()
            .iter()
            .zip(before)
            .all(|(now, before)| *now > before + 50)
    });
}

/// Rounds of a UDP flow, in the middle of which `change` is made. The flow is fast before, and fast again after.
fn rounds_while(lab: &Lab, change: impl FnOnce() + Send) -> oncache_testbed::traffic::RoundsReport {
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let going = AtomicBool::new(true);
    scope(|scope| {
        let rounds = scope.spawn(|| {
            let mut rounds = Rounds::lasting(Duration::from_secs(60));
            rounds.patience = Duration::from_millis(200);
            rounds.udp_while(&client, &server, 3001, &going)
        });
        let over = Over(&going);
        fast(lab);
        change();
        fast(lab);
        drop(over);
        rounds.join().expect("the rounds end")
    })
}

#[test]
fn a_peer_with_another_mac_address_is_followed() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    // So that it is told to the neighbours (arp_notify), as failing over does.
    lab.beta().set_sysctl("net.ipv4.conf.eth1.arp_notify", "1");

    const NEW: &str = "52:54:00:99:00:01";
    let report = rounds_while(&lab, || {
        let begun = std::time::Instant::now();
        lab.beta()
            .run(&["ip", "link", "set", "eth1", "address", NEW]);
        eventually("alpha sends to the new address", PATIENCE, || {
            let hosts = lab
                .alpha()
                .oncache_json(&["cache", "list", "peers", "--json"]);
            hosts["hosts"][0]["next_hop"] == NEW
        });
        println!("headers to the new address after {:?}", begun.elapsed());
    });

    println!("{report}");
    let log = lab.alpha().log();
    assert!(log.contains("has another MAC address"), "{log}");
    assert_eq!(report.wrong, 0, "{report}");
}

#[test]
fn a_route_of_the_underlay_raises_the_epoch() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let epoch = || lab.alpha().oncache_json(&["status", "--json"])["cache"]["epoch"].as_u64();
    let mut before = None;
    let report = rounds_while(&lab, || {
        before = epoch();
        lab.alpha()
            .run(&["ip", "route", "add", "192.168.50.12/32", "dev", "eth1"]);
    });
    println!("{report}; epoch {before:?}, then {:?}", epoch());
    assert!(epoch() > before);
    assert_eq!((report.lost, report.wrong), (0, 0), "{report}");
}

fn mtu_of(container: &Container, device: &str) -> u64 {
    let listing = container.run(&["ip", "-j", "link", "show", "dev", device]);
    let listing: serde_json::Value = serde_json::from_str(&listing).expect("ip prints JSON");
    listing[0]["mtu"].as_u64().expect("an MTU")
}

#[test]
fn a_smaller_underlay_is_followed_and_loses_nothing_on_the_way() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let (alpha, full, smaller) = (flow.lab.alpha(), [7; 1422], [7; 1322]);
    // No path MTU discovery, whose first packet is lost by its nature.
    let may_be_fragmented = libc::IP_PMTUDISC_DONT.to_ne_bytes();
    for socket in [&flow.sender, &flow.receiver] {
        set_ip_option(socket, libc::IP_MTU_DISCOVER, &may_be_fragmented);
    }
    assert!(flow.asks(&full));

    // With nobody there to follow it: the program itself sees what its device takes.
    flow.lab.all().iter().for_each(Host::kill9);
    flow.lab.set_underlay_mtu(1400);
    for round in 0..20 {
        assert!(flow.asks(&full), "request {round} is lost");
    }
    flow.lab.start();
    for host in flow.lab.all() {
        let refused = host.counters().get("egress", "over-underlay");
        println!(
            "{}: {refused} packets too large for the device went by the slow path",
            host.name
        );
        assert_eq!(refused, 20);
    }

    // The new daemons have followed, for the old ones' containers, too.
    let inside = || mtu_of(&flow.client, "eth0");
    eventually("the container's MTU follows", PATIENCE, || inside() == 1350);
    eventually("the flow is fast", PATIENCE, || flow.is_fast());
    let (asked, [counted, _]) = flow.counted(|| flow.asks(&smaller));
    assert!(asked && counted.get("egress", "hit") == 1, "{counted}");
    assert!(flow.asks(&full), "the container fragments it");

    // With daemons; and larger again.
    for (mtu, inner) in [(1300, 1250), (1500, 1450)] {
        let from = alpha.log().len();
        flow.lab.set_underlay_mtu(mtu);
        for round in 0..200 {
            assert!(flow.asks(&full), "request {round} is lost at MTU {mtu}");
        }
        eventually("the containers' MTU follows", PATIENCE, || {
            inside() == inner && mtu_of(&flow.server, "eth0") == inner
        });
        eventually("the flow is fast", PATIENCE, || flow.is_fast());
        println!("{:#?}", alpha.log_since(from));
    }
    let (asked, [counted, _]) = flow.counted(|| flow.asks(&full));
    assert!(asked && counted.get("egress", "hit") == 1, "{counted}");
}

#[test]
fn an_underlay_that_goes_down_or_loses_its_address_is_taken_up_again() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let alpha = flow.lab.alpha();
    let away_and_back = [
        ("ip link set eth1 down", "ip link set eth1 up", "link"),
        (
            "ip address del 192.168.50.11/24 dev eth1",
            "ip address add 192.168.50.11/24 dev eth1",
            "address",
        ),
    ];
    for (away, back, cause) in away_and_back {
        eventually("the flow is fast", PATIENCE, || flow.is_fast());
        let (from, before) = (alpha.log().len(), alpha.invalidations(cause));
        alpha.sh(away);
        eventually("it is noticed", PATIENCE, || {
            alpha.invalidations(cause) > before
        });
        assert!(!flow.asks(b"away"), "{away}: what was learned is used");
        sleep(Duration::from_secs(1));
        alpha.sh(back);
        let again = {
            let begun = std::time::Instant::now();
            eventually("the flow is fast", PATIENCE, || flow.is_fast());
            begun.elapsed()
        };
        let lines = alpha.log_since(from);
        println!("{away}; {back}: fast again after {again:?}\n{lines:#?}");
        if cause == "address" {
            let said = lines
                .iter()
                .filter(|line| line.contains("192.168.50.11") && line.contains("ERROR"));
            assert_eq!(said.count(), 1, "one line, once");
        }
    }
}

#[test]
fn an_underlay_device_made_anew_carries_the_fast_path_again() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let (alpha, beta) = (flow.lab.alpha(), flow.lab.beta());
    let from = alpha.log().len();
    let programs = || {
        let status = alpha.oncache_json(&["status", "--json"]);
        let programs = status["cache"]["programs"]
            .as_array()
            .expect("programs")
            .clone();
        let on_underlay = programs.iter().filter(|it| it["device"] == "eth1");
        on_underlay
            .map(|it| it["link_id"].clone())
            .collect::<Vec<_>>()
    };
    let before = programs();
    // Both ends go, as when the driver of a NIC is loaded again, and others have their names.
    alpha.run(&["ip", "link", "del", "eth1"]);
    alpha.sh(&format!(
        "ip link add eth1 index 77 address {} type veth peer name eth1 index 78 address {} netns {}",
        alpha.underlay_mac(),
        beta.underlay_mac(),
        beta.netns_path()
    ));
    for host in [alpha, beta] {
        host.sh(&format!(
            "ip address add {}/24 dev eth1; ip link set eth1 up",
            host.address()
        ));
    }
    let begun = std::time::Instant::now();
    eventually("the flow is fast", PATIENCE, || flow.is_fast());
    println!("fast again after {:?}", begun.elapsed());
    println!("{:#?}", alpha.log_since(from));
    let after = programs();
    assert_eq!(after.len(), 2, "{after:?}");
    assert!(before.iter().all(|link| !after.contains(link)), "{after:?}");
    let hosts = alpha.oncache_json(&["cache", "list", "peers", "--json"]);
    assert_eq!(hosts["hosts"][0]["ifindex"], 77, "{hosts}");
    let vxlan = alpha.run(&["ip", "-d", "link", "show", "oncache-vx0"]);
    assert!(vxlan.contains("dev eth1"), "{vxlan}");
    assert!(alpha.invalidations("underlay") >= 1);
}
