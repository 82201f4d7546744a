//! Hosts, wires, and what is a host's own.

use std::{fs, panic, path::Path};

use crate::by_hand::NO_DAEMON;
use oncache_testbed::{Lab, conntrack, traffic::ping};

#[test]
fn two_hosts_ping_each_other_over_the_wire() {
    let lab = Lab::two_hosts(NO_DAEMON);
    assert_eq!(lab.alpha().address().to_string(), "192.168.50.11");
    assert_eq!(lab.beta().address().to_string(), "192.168.50.12");
    let report = ping(&lab.alpha().as_container(), lab.beta().address(), 5);
    assert!(report.lossless(), "{report}");
    assert_eq!(report.sent, 5);

    lab.beta().sh("ip link set eth1 down");
    let report = ping(&lab.alpha().as_container(), lab.beta().address(), 1);
    assert!(report.received == 0 && !report.lossless(), "{report}");
}

#[test]
fn three_hosts_ping_each_other_over_the_switch() {
    let lab = Lab::hosts(3, NO_DAEMON);
    for from in lab.all() {
        for to in lab.all() {
            let report = ping(&from.as_container(), to.address(), 2);
            assert!(report.lossless(), "{} to {}: {report}", from.name, to.name);
        }
    }
    lab.set_underlay_mtu(9000);
    assert!(lab.gamma().sh("ip link show eth1").contains("mtu 9000"));
}

#[test]
fn labs_side_by_side_do_not_meet() {
    let labs = [Lab::two_hosts(NO_DAEMON), Lab::two_hosts(NO_DAEMON)];
    for lab in &labs {
        lab.alpha().add_netns("same");
        lab.alpha()
            .sh("ip link add name same type bridge; nft add table ip same");
    }
    labs[0]
        .alpha()
        .sh("ip netns del same; ip link del same; nft delete table ip same");
    labs[1]
        .alpha()
        .sh("ip link show same; ip -n same link; nft list table ip same");
    assert!(
        !Path::new("/run/netns/same").exists(),
        "the machine's /run/netns is not the host's"
    );
}

#[test]
fn a_host_has_its_own_sys_run_and_state() {
    let lab = Lab::two_hosts(NO_DAEMON);
    let names = |path: &'static str| {
        lab.alpha().enter(|| {
            let entries = fs::read_dir(path).expect("a directory").flatten();
            entries
                .map(|entry| entry.file_name().into_string().expect("UTF-8"))
                .collect::<Vec<_>>()
        })
    };
    let mut devices = names("/sys/class/net");
    devices.retain(|name| name != "bonding_masters");
    devices.sort();
    assert_eq!(devices, ["eth1", "lo"]);
    assert_eq!(names("/run"), ["testbed"]);
    assert!(names("/var/lib/oncache").is_empty());
    lab.alpha().sh("touch /sys/fs/bpf 2>/dev/null; mkdir /sys/fs/bpf/mine; touch /run/mine /var/lib/oncache/mine");
    for path in ["/sys/fs/bpf/mine", "/run/mine", "/var/lib/oncache/mine"] {
        assert!(lab.alpha().enter(|| Path::new(path).exists()), "{path}");
        assert!(
            !lab.beta().enter(|| Path::new(path).exists()),
            "{path} is on the other host"
        );
        assert!(!Path::new(path).exists(), "{path} is on the machine");
    }
}

#[test]
fn a_closure_inside_returns_and_panics_through() {
    let lab = Lab::two_hosts(NO_DAEMON);
    let text = String::from("borrowed");
    assert_eq!(lab.alpha().enter(|| text.len()), 8);
    let payload = panic::catch_unwind(|| lab.alpha().enter(|| panic!("from inside")));
    let payload = payload.expect_err("a panic");
    assert_eq!(payload.downcast_ref(), Some(&"from inside"));
    lab.alpha().set_sysctl("net.ipv4.conf.eth1.forwarding", "1");
    assert_eq!(
        lab.alpha()
            .sysctl("net.ipv4.conf.eth1.forwarding")
            .as_deref(),
        Some("1")
    );
    assert_eq!(
        lab.beta()
            .sysctl("net.ipv4.conf.eth1.forwarding")
            .as_deref(),
        Some("0")
    );
    assert_eq!(lab.beta().sysctl("net.ipv4.no_such_thing"), None);
}

#[test]
fn the_tracked_connections_of_one_host_are_listed() {
    let (lab, client, server) = crate::by_hand::two_containers();
    lab.beta().sh("nft add table ip t
                   nft add chain ip t c '{ type filter hook forward priority 0; }'
                   nft add rule ip t c ct state established accept");
    assert!(conntrack(lab.beta()).is_empty());
    let report = oncache_testbed::traffic::Rounds::new(3).tcp(&client, &server, 7000);
    assert_eq!(report.completed, 3, "{report}");
    let entries = conntrack(lab.beta());
    let entry = entries.iter().find(|entry| entry.protocol == "tcp");
    let entry = entry.unwrap_or_else(|| panic!("a TCP connection in {entries:?}"));
    assert_eq!(entry.original.source, client.ip);
    assert_eq!(entry.original.destination_port, Some(7000));
    assert_eq!(entry.reply.source, server.ip);
    assert!(entry.state.is_some() && entry.assured, "{entry:?}");
    assert!(
        conntrack(lab.alpha()).is_empty(),
        "alpha has no rule that needs tracking"
    );
}
