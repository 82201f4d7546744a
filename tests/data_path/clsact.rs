//! The fast path by filters of a clsact qdisc, for kernels without tcx and for those who ask for it.

use std::time::Duration;

use crate::ONCACHE;
use oncache_testbed::{
    Container, Hits, Host, Lab,
    traffic::{self, Direction, Rounds, Transfer},
    until_fast,
};

const MODE: &str = "attach = \"clsact\"";

/// Two hosts that attach by clsact, with a container each.
fn start() -> (Lab, Container, Container) {
    let lab = Lab::two_hosts(ONCACHE);
    for host in lab.all() {
        host.write_config(&host.default_config().extra(MODE).to_string());
    }
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    (lab, client, server)
}

/// Our filters on a device: one line each, with hook, priority and program.
fn filters(host: &Host, device: &str) -> Vec<String> {
    let show = |hook| {
        let text = host.run(&["tc", "filter", "show", "dev", device, hook]);
        let lines: Vec<String> = text
            .lines()
            .filter(|line| line.contains("direct-action"))
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let named = words.iter().position(|word| word.starts_with("handle"));
                format!("{hook}: {}", named.map_or("?", |at| words[at + 2]))
            })
            .collect();
        lines
    };
    [show("ingress"), show("egress")].concat()
}

fn assert_attached_once(host: &Host, container: &str) {
    assert_eq!(
        filters(host, "eth1"),
        ["ingress: ingress", "egress: egress_init"],
        "{}",
        host.name
    );
    assert_eq!(
        filters(host, container),
        ["ingress: egress", "egress: ingress_init"],
        "{}",
        host.name
    );
    let snapshot = host.snapshot();
    let programs = snapshot.section("program");
    assert!(programs.is_empty(), "no tcx beside it: {programs:?}");
    let links: Vec<_> = snapshot
        .section("pin")
        .iter()
        .filter(|pin| pin.contains("/links/"))
        .collect();
    assert!(links.is_empty(), "{links:?}");
}

fn assert_attached_on_both(lab: &Lab) {
    assert_attached_once(lab.alpha(), "onc-client");
    assert_attached_once(lab.beta(), "onc-server");
}

#[test]
fn transfers_and_datagrams_take_the_fast_path() {
    let (lab, client, server) = start();
    for host in lab.all() {
        assert_eq!(host.status()["cache"]["attach"], "clsact");
    }
    assert_attached_on_both(&lab);
    let took = until_fast([lab.alpha(), lab.beta()], &client, &server);
    println!("datagrams on the fast path after {took:?}");

    let before: Vec<Hits> = lab.all().iter().map(Hits::of).collect();
    let report = traffic::transfer(&client, &server, 0, 200_000_000, Direction::Both);
    println!("{report}");
    assert!(report.intact(), "{report}");
    let rounds = Rounds::new(2000).udp(&client, &server, 0);
    println!("{rounds}");
    assert_eq!(rounds.completed, 2000, "{rounds}");
    for (host, before) in lab.all().iter().zip(before) {
        let now = Hits::of(host);
        println!("{}: {before:?} to {now:?}", host.name);
        assert!(now.egress > before.egress + 1900 && now.ingress > before.ingress + 1900);
    }
}

#[test]
fn a_restart_keeps_traffic_and_filters() {
    let (lab, client, server) = start();
    let hosts = [lab.alpha(), lab.beta()];
    until_fast(hosts, &client, &server);
    let (before, from) = (hosts.map(Host::epoch), hosts.map(|host| host.log().len()));
    let transfer = Transfer::new(&client, &server, 0)
        .direction(Direction::Both)
        .pace(20_000_000)
        .start();
    for host in hosts {
        host.restart();
    }
    for (host, from) in hosts.iter().zip(from) {
        println!("{}: {:#?}", host.name, host.log_since(from));
    }
    assert_attached_on_both(&lab);
    assert_eq!(
        hosts.map(Host::epoch),
        before.map(|epoch| epoch + 1),
        "a start is one new epoch"
    );
    until_fast(hosts, &client, &server);
    let report = transfer.stop();
    println!("{report}");
    assert!(report.intact(), "{report}");
    assert!(report.received() > 0);
}

#[test]
fn traffic_outlives_the_daemon() {
    let (lab, client, server) = start();
    let hosts = [lab.alpha(), lab.beta()];
    until_fast(hosts, &client, &server);
    let before = hosts.map(Hits::of);
    let transfer = Transfer::new(&client, &server, 0)
        .direction(Direction::Both)
        .pace(20_000_000)
        .start();
    std::thread::sleep(Duration::from_millis(500));
    for host in hosts {
        host.kill9();
    }
    assert_attached_on_both(&lab);
    let rounds = Rounds::new(2000).udp(&client, &server, 0);
    println!("without daemons: {rounds}");
    assert_eq!(rounds.completed, 2000, "{rounds}");
    let report = transfer.stop();
    println!("{report}");
    assert!(report.intact(), "{report}");

    lab.start();
    assert_attached_on_both(&lab);
    for (host, before) in hosts.iter().zip(before) {
        let now = Hits::of(host);
        println!("{}: {before:?} to {now:?}", host.name);
        assert!(now.egress > before.egress + 1900 && now.ingress > before.ingress + 1900);
    }
    until_fast(hosts, &client, &server);
}

#[test]
fn changing_the_mode_leaves_no_program_twice() {
    let (lab, client, server) = start();
    let hosts = [lab.alpha(), lab.beta()];
    until_fast(hosts, &client, &server);
    for host in hosts {
        host.write_config(&host.default_config().to_string());
        host.restart();
        assert_eq!(host.status()["cache"]["attach"], "tcx");
        for device in [
            "eth1",
            if host.name == "alpha" {
                "onc-client"
            } else {
                "onc-server"
            },
        ] {
            assert!(
                filters(host, device).is_empty(),
                "{}: {device}: {:?}",
                host.name,
                filters(host, device)
            );
            let attached = host.snapshot();
            let count = attached
                .section("program")
                .iter()
                .filter(|line| line.starts_with(device))
                .count();
            assert_eq!(count, 2, "{:?}", attached.section("program"));
        }
    }
    until_fast(hosts, &client, &server);
    for host in hosts {
        host.write_config(&host.default_config().extra(MODE).to_string());
        host.restart();
    }
    assert_attached_on_both(&lab);
    until_fast(hosts, &client, &server);
}
