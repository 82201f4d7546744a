//! Learned headers follow the underlay.

use std::{
    thread::{scope, sleep},
    time::Duration,
};

use oncache_testbed::{Lab, traffic::Rounds};

/// Rounds of a UDP flow for four seconds, in the middle of which `change` is made.
fn rounds_while(lab: &Lab, change: impl FnOnce() + Send) -> oncache_testbed::traffic::RoundsReport {
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    scope(|scope| {
        let rounds = scope.spawn(|| {
            let mut rounds = Rounds::lasting(Duration::from_secs(4));
            rounds.count = u64::MAX;
            rounds.patience = Duration::from_millis(200);
            rounds.udp(&client, &server, 3001)
        });
        sleep(Duration::from_secs(2));
        change();
        rounds.join().expect("the rounds end")
    })
}

#[test]
fn a_peer_with_another_mac_address_is_followed() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    // So that it is told to the neighbours (arp_notify), as failing over does.
    lab.beta().set_sysctl("net.ipv4.conf.eth1.arp_notify", "1");

    let report = rounds_while(&lab, || {
        let new = ["ip", "link", "set", "eth1", "address", "52:54:00:99:00:01"];
        lab.beta().run(&new);
    });

    println!("{report}");
    let log = lab.alpha().log();
    assert!(log.contains("has another MAC address"), "{log}");
    assert!(report.lost <= 5, "more than a second was lost: {report}");
    assert!(report.completed > 10_000, "{report}");
    let hosts = lab
        .alpha()
        .oncache_json(&["cache", "list", "egress", "--json"]);
    assert_eq!(
        hosts["hosts"][0]["next_hop"], "52:54:00:99:00:01",
        "{hosts}"
    );
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
