//! Many short connections: none hangs, none fails, and conntrack sees every one of them end.

use std::{thread::sleep, time::Duration};

use oncache_testbed::{Host, Lab, conntrack, traffic::Connections};

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
