//! Somebody else changes rules and ways behind the daemon's back: what was learned before dies at
//! once, and what is learned again is of now.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache_testbed::{CachedFlow, Lab, PATIENCE, eventually};

/// Far less than the lease of 30 s, and patient with a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// A change on alpha by somebody else.
struct Change {
    what: &'static str,
    script: &'static str,
    /// What makes it undone; empty where the daemon does that.
    undo: &'static str,
    cause: &'static str,
}

/// Changes that leave the overlay whole, or that are mended.
const HARMLESS: &[Change] = &[
    Change {
        what: "a table of nftables",
        script: "nft add table inet other",
        undo: "nft delete table inet other",
        cause: "ruleset",
    },
    Change {
        what: "a policy routing rule",
        script: "ip rule add pref 100 from 10.99.0.0/16 table main",
        undo: "ip rule del pref 100",
        cause: "routing-rule",
    },
    Change {
        what: "a route within the overlay's network",
        script: "ip route add 10.42.2.128/25 via 10.42.2.0 dev oncache-vx0 onlink",
        undo: "ip route del 10.42.2.128/25",
        cause: "route",
    },
    Change {
        what: "a route to a peer",
        script: "ip route add 192.168.50.12/32 dev eth1",
        undo: "ip route del 192.168.50.12/32",
        cause: "route",
    },
    Change {
        what: "the default route",
        script: "ip route add default via 192.168.50.99 dev eth1",
        undo: "ip route del default",
        cause: "route",
    },
    Change {
        what: "a next hop object",
        script: "ip nexthop add id 7 via 192.168.50.12 dev eth1",
        undo: "ip nexthop del id 7",
        cause: "route",
    },
    Change {
        what: "a second address of the underlay device",
        script: "ip address add 192.168.51.11/24 dev eth1",
        undo: "ip address del 192.168.51.11/24 dev eth1",
        cause: "address",
    },
    Change {
        what: "forwarding of the underlay device",
        script: "sysctl -qw net.ipv4.conf.eth1.forwarding=1",
        undo: "sysctl -qw net.ipv4.conf.eth1.forwarding=0",
        cause: "forwarding",
    },
    Change {
        what: "forwarding of the bridge",
        script: "sysctl -qw net.ipv4.conf.oncache0.forwarding=0",
        undo: "",
        cause: "forwarding",
    },
    Change {
        what: "the VXLAN device's MTU",
        script: "ip link set oncache-vx0 mtu 1300",
        undo: "",
        cause: "link",
    },
    Change {
        what: "the bridge's MAC address",
        script: "ip link set oncache0 address 02:00:00:00:00:77",
        undo: "",
        cause: "link",
    },
    Change {
        what: "a forwarding entry of the VXLAN device",
        script: "bridge fdb replace 0a:6f:c0:a8:32:0c dev oncache-vx0 dst 192.168.50.77 self permanent",
        undo: "",
        cause: "vxlan-table",
    },
    Change {
        what: "a neighbour of the VXLAN device",
        script: "ip neigh replace 10.42.2.0 lladdr 02:00:00:00:00:77 dev oncache-vx0",
        undo: "",
        cause: "vxlan-table",
    },
    Change {
        what: "the MAC address of the peer in the neighbour table",
        script: "ip neigh replace 192.168.50.12 lladdr 02:00:00:00:00:77 dev eth1",
        undo: "ip neigh replace 192.168.50.12 lladdr 52:54:00:32:00:0c dev eth1",
        cause: "neighbour",
    },
];

#[test]
fn each_change_is_a_new_epoch_for_its_cause_and_the_flow_is_fast_again() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let alpha = flow.lab.alpha();
    let until_fast = || eventually("the flow is fast", PATIENCE, || flow.is_fast());
    for change in HARMLESS {
        until_fast();
        let before = alpha.invalidations(change.cause);
        let begun = Instant::now();
        alpha.sh(change.script);
        eventually(change.what, SOON, || {
            alpha.invalidations(change.cause) > before
        });
        let noticed = begun.elapsed();
        if !change.undo.is_empty() {
            alpha.sh(change.undo);
        }
        let again = until_fast();
        println!(
            "{}: a new epoch for {} within {noticed:?}, fast again after {again:?}",
            change.what, change.cause
        );
    }
    println!("{}", alpha.oncache_ok(&["stats"]));
}

#[test]
fn what_cannot_concern_the_overlay_is_no_new_epoch() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let alpha = flow.lab.alpha();
    let epoch = || alpha.epoch();
    sleep(Duration::from_millis(500));
    let before = epoch();
    alpha.sh("ip link add other0 type veth peer name other1
         ip link set other0 up; ip link set other1 up; ip link set other0 mtu 1300
         ip address add 172.16.0.1/24 dev other0
         ip route add 172.17.0.0/16 via 172.16.0.2
         ip neigh add 172.16.0.2 lladdr 02:00:00:00:00:05 dev other0
         sysctl -qw net.ipv4.conf.other0.forwarding=1
         ip link del other0");
    sleep(Duration::from_millis(500));
    assert!(flow.is_fast());
    assert_eq!(epoch(), before, "{}", alpha.oncache_ok(&["stats"]));
}

/// What keeps packets for beta from leaving alpha, by whatever means.
const CLOSED: [(&str, &str, &str); 4] = [
    (
        "a rule of nftables",
        "nft 'table inet other { chain c { type filter hook forward priority 0; udp dport 5005 drop; }; }'",
        "nft delete table inet other",
    ),
    (
        "a blackhole in the way",
        "ip route add blackhole 10.42.2.2/32",
        "ip route del 10.42.2.2/32",
    ),
    (
        "a policy routing rule",
        "ip rule add pref 100 to 10.42.2.0/24 prohibit",
        "ip rule del pref 100",
    ),
    (
        "an address of its own",
        "ip address add 10.42.2.2/32 dev lo",
        "ip address del 10.42.2.2/32 dev lo",
    ),
];

#[test]
fn a_way_that_was_closed_is_not_taken_any_more() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let alpha = flow.lab.alpha();
    flow.sender
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("a time-out");
    flow.receiver
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("a time-out");
    for (what, close, open) in CLOSED {
        eventually("the flow is fast", PATIENCE, || flow.is_fast());
        let begun = Instant::now();
        alpha.sh(close);
        let done = begun.elapsed();
        let mut last = (0, Duration::ZERO);
        while flow.asks(b"still?") {
            last = (last.0 + 1, begun.elapsed() - done);
            assert!(begun.elapsed() < SOON, "{what}: still open");
        }
        // And it stays closed.
        for _ in 0..5 {
            assert!(!flow.asks(b"again?"), "{what}: open again");
        }
        let (answered, after) = last;
        println!("{what}: {answered} requests answered after it was made, for {after:?}");
        alpha.sh(open);
        eventually("the flow goes on", PATIENCE, || flow.asks(b"open?"));
    }
}

#[test]
fn rules_changed_while_no_daemon_ran_count_from_its_start() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let alpha = flow.lab.alpha();
    alpha.kill9();
    alpha.sh(CLOSED[0].1);
    // Bounded by the lease, which is long.
    assert!(flow.asks(b"unnoticed"), "the lease ended early");
    alpha.start();
    assert!(
        !flow.asks(b"noticed"),
        "what was learned before the start is used"
    );
    assert_eq!(alpha.invalidations("start"), 1);
    alpha.sh(CLOSED[0].2);
    eventually("the flow is fast", PATIENCE, || flow.is_fast());
}

#[test]
fn lost_notifications_are_a_new_epoch_and_a_full_comparison() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let alpha = flow.lab.alpha();
    let from = alpha.log().len();
    let before = alpha.invalidations("overrun");
    alpha.signal(Signal::SIGSTOP);
    // A rule, and damage to the overlay, both within a flood that fills the sockets' buffers.
    alpha.sh(
        "for i in $(seq 1 400); do echo link set lo mtu $((60000 + i)); done > /run/flood
         ip -batch /run/flood
         ip route del 10.42.2.0/24
         nft 'table inet other { chain c { type filter hook forward priority 0; udp dport 5005 drop; }; }'
         ip -batch /run/flood",
    );
    assert!(flow.asks(b"unnoticed"), "nobody could have told");
    alpha.signal(Signal::SIGCONT);
    eventually("the loss is noticed", SOON, || {
        alpha.invalidations("overrun") > before
    });
    assert!(!flow.asks(b"noticed"), "what was learned before is used");
    alpha.sh("nft delete table inet other");
    eventually("the flow is fast", PATIENCE, || flow.is_fast());
    let lines = alpha.log_since(from);
    println!("{lines:#?}");
    let mended = lines
        .iter()
        .any(|line| line.contains("add route 10.42.2.0/24"));
    assert!(mended, "the route was not looked at");
}
