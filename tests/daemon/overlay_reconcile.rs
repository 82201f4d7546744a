//! The slow path on a real host made of a network namespace: it comes up, stays as it is, mends, and
//! goes without a trace. Takes root.

use crate::overlay_hosts::{MARKS, apply, block_on, config, hosts, subnet, try_apply, underlay};
use oncache::{
    netlink::Netlink,
    slow_path::own::{step::Step, sysctl::Sysctls, teardown::teardown, wanted::WantedOverlay},
};
use oncache_testbed::Place;
use serde_json::{Value, json};

/// Everything of a host that the overlay could leave a trace in.
fn state(host: &Place) -> Value {
    json!({
        "links": host.json("ip -j link"),
        "addresses": host.json("ip -j -4 addr"),
        "routes": host.json("ip -j route show table all"),
        "neighbours": host.json("ip -j neigh show nud permanent"),
        "rules": host.sh("nft list ruleset"),
        "liberal": host.sh("cat /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"),
    })
}

#[test]
fn comes_up_as_wanted_and_a_second_run_changes_nothing() {
    let [host, _other] = hosts();
    let wanted = WantedOverlay::new(&config(&host, 1, 2), MARKS);
    let steps = apply(&host, &wanted);
    assert_eq!(steps[0], "create bridge oncache0 address 0a:62:0a:2a:01:01");
    assert_eq!(
        steps.last().map(String::as_str),
        Some("set net/netfilter/nf_conntrack_tcp_be_liberal = 1 (was 0)")
    );

    let vxlan = &host.json("ip -j -d link show oncache-vx0")[0];
    assert_eq!(vxlan["address"], "0a:6f:c0:a8:32:01");
    assert_eq!(vxlan["mtu"], 1450);
    assert_eq!(vxlan["master"], Value::Null, "a port of no bridge");
    let data = &vxlan["linkinfo"]["info_data"];
    assert_eq!(data["id"], 42);
    assert_eq!(data["link"], "eth1");
    assert_eq!(data["local"], "192.168.50.1");
    assert_eq!(data["port"], 4789);
    assert_eq!(data["learning"], false);
    assert_eq!(data["udp_csum"], false);
    let bridge = &host.json("ip -j -d addr show oncache0")[0];
    assert_eq!(bridge["address"], "0a:62:0a:2a:01:01");
    assert_eq!(
        bridge["addr_info"].as_array().map(Vec::len),
        Some(1),
        "no IPv6"
    );
    assert_eq!(bridge["addr_info"][0]["local"], "10.42.1.1");
    assert_eq!(bridge["addr_info"][0]["prefixlen"], 24);

    let route = &host.json("ip -j route show proto 79")[0];
    assert_eq!(
        *route,
        json!({"dst": "10.42.2.0/24", "gateway": "10.42.2.0", "dev": "oncache-vx0",
               "prefsrc": "10.42.1.1", "flags": ["onlink"]})
    );
    let neighbour = &host.json("ip -j neigh show dev oncache-vx0")[0];
    assert_eq!(neighbour["dst"], "10.42.2.0");
    assert_eq!(neighbour["lladdr"], "0a:6f:c0:a8:32:02");
    assert_eq!(neighbour["state"], json!(["PERMANENT"]));
    let fdb = host.sh("bridge fdb show dev oncache-vx0");
    assert_eq!(
        fdb.trim_end(),
        "0a:6f:c0:a8:32:02 dst 192.168.50.2 self permanent"
    );
    let table = host.sh("nft list table inet oncache");
    assert!(
        table.contains(
            "iifgroup 28526 oifgroup 28526 \
         ct state established ct status ! snat,dnat meta mark & 0x00ff0000 != 0x00000000 \
         meta mark set meta mark | 0x01000000"
        ),
        "{table}"
    );
    assert!(
        table.contains(
            "ip saddr 10.42.0.0/16 ip daddr != 10.42.0.0/16 oifname != \"oncache0\" masquerade"
        ),
        "{table}"
    );

    assert_eq!(apply(&host, &wanted), [""; 0]);
}

#[test]
fn what_somebody_broke_is_mended_and_nothing_else() {
    let [host, _other] = hosts();
    let wanted = WantedOverlay::new(&config(&host, 1, 2), MARKS);
    apply(&host, &wanted);
    let route = "add route 10.42.2.0/24 via 10.42.2.0 dev oncache-vx0";
    let fdb = "replace forwarding entry 0a:6f:c0:a8:32:02 dst 192.168.50.2 dev oncache-vx0";
    let neighbour = "replace neighbour 10.42.2.0 lladdr 0a:6f:c0:a8:32:02 dev oncache-vx0";
    let table = "replace table inet oncache";
    let peer = "0a:6f:c0:a8:32:02 dev oncache-vx0 self";
    let breaks: [(&str, &[&str]); 20] = [
        ("ip route del 10.42.2.0/24", &[route]),
        (
            "ip route change 10.42.2.0/24 via 10.42.2.0 dev oncache-vx0 onlink proto 79",
            &["replace route 10.42.2.0/24 via 10.42.2.0 dev oncache-vx0"],
        ),
        (
            "ip route add 10.42.9.0/24 dev oncache-vx0 scope link proto 79",
            &["delete route 10.42.9.0/24 dev oncache-vx0"],
        ),
        (&format!("bridge fdb del {peer}"), &[fdb]),
        (
            &format!("bridge fdb replace {peer} dst 192.168.50.9"),
            &[fdb],
        ),
        // The kernel takes no second destination for a unicast address.
        (&format!("bridge fdb append {peer} dst 192.168.50.9"), &[]),
        (
            "bridge fdb append 00:00:00:00:00:00 dev oncache-vx0 self dst 192.168.50.9",
            &["delete forwarding entry 00:00:00:00:00:00 dst 192.168.50.9 dev oncache-vx0"],
        ),
        (
            "bridge fdb add 02:00:00:00:00:09 dev oncache-vx0 self dst 192.168.50.9",
            &["delete forwarding entry 02:00:00:00:00:09 dst 192.168.50.9 dev oncache-vx0"],
        ),
        ("ip neigh del 10.42.2.0 dev oncache-vx0", &[neighbour]),
        (
            "ip neigh change 10.42.2.0 dev oncache-vx0 lladdr 02:00:00:00:00:09 nud stale",
            &[neighbour],
        ),
        (
            "ip neigh add 10.42.9.0 dev oncache-vx0 lladdr 02:00:00:00:00:09",
            &["delete neighbour 10.42.9.0 dev oncache-vx0"],
        ),
        ("nft delete table inet oncache", &[table]),
        ("nft insert rule inet oncache forward drop", &[table]),
        (
            "nft add set inet oncache extra '{ type ipv4_addr; }'",
            &[table],
        ),
        ("nft flush chain inet oncache established", &[table]),
        ("ip link set oncache0 mtu 1400", &["set oncache0 mtu 1450"]),
        (
            "ip link set oncache-vx0 group default",
            &["set oncache-vx0 group 28526"],
        ),
        (
            "ip link set oncache-vx0 master oncache0",
            &["release oncache-vx0 from its controller"],
        ),
        (
            "echo 0 > /proc/sys/net/ipv4/conf/oncache-vx0/forwarding",
            &["set net/ipv4/conf/oncache-vx0/forwarding = 1 (was 0)"],
        ),
        (
            "ip addr add 10.42.1.9/24 dev oncache0",
            &["delete address 10.42.1.9/24 dev oncache0"],
        ),
    ];
    for (broken, mended) in breaks {
        host.sh(broken);
        assert_eq!(apply(&host, &wanted), mended, "{broken}");
        assert_eq!(apply(&host, &wanted), [""; 0], "again after {broken}");
    }
    // What drags other things along takes more steps, but one run.
    for broken in [
        "ip link set oncache-vx0 down",
        "ip link del oncache-vx0",
        "ip link del oncache0",
        "ip addr flush dev oncache0; ip addr add 10.42.1.9/24 dev oncache0; ip addr add 10.42.1.1/24 dev oncache0",
    ] {
        host.sh(broken);
        assert!(!apply(&host, &wanted).is_empty(), "{broken}");
        assert_eq!(apply(&host, &wanted), [""; 0], "again after {broken}");
    }
}

#[test]
fn what_is_not_ours_stays() {
    let [host, _other] = hosts();
    let wanted = WantedOverlay::new(&config(&host, 1, 2), MARKS);
    apply(&host, &wanted);
    host.sh(
        "ip route add 10.99.0.0/24 dev oncache0; ip route add 10.98.0.0/24 dev eth1 proto 79
         ip neigh add 192.168.50.77 dev eth1 lladdr 02:00:00:00:00:77
         nft add table inet other",
    );
    assert_eq!(apply(&host, &wanted), [""; 0]);
    // Another program's route in the place of ours is reported, not overwritten; the rest is done.
    host.sh("ip route replace 10.42.2.0/24 dev eth1; nft delete table inet oncache");
    let errors = try_apply(&host, &wanted).expect_err("the route is taken");
    assert_eq!(
        errors.to_string(),
        "route to 10.42.2.0/24: another program's is there already, `10.42.2.0/24 dev eth1`; remove it \
         (`ip route del 10.42.2.0/24 dev eth1`), or give the peer another subnet"
    );
    let done = errors.done.iter();
    let done: Vec<String> = done
        .map(|step| step.named(&wanted.names).to_string())
        .collect();
    assert_eq!(done, ["replace table inet oncache"]);
}

#[test]
fn a_changed_configuration_becomes_the_state() {
    let [host, _other] = hosts();
    let mut config = config(&host, 1, 2);
    apply(&host, &WantedOverlay::new(&config, MARKS));
    config.overlay.vni = 43;
    config.overlay.mtu = 1400;
    config.overlay.subnet = subnet(7);
    config.peers[0].subnet = subnet(8);
    config.peers[0].address = underlay(9);
    let wanted = WantedOverlay::new(&config, MARKS);
    assert!(!apply(&host, &wanted).is_empty());
    assert_eq!(apply(&host, &wanted), [""; 0]);
    let routes = host.sh("ip route show proto 79");
    assert_eq!(
        routes.trim_end(),
        "10.42.8.0/24 via 10.42.8.0 dev oncache-vx0 src 10.42.7.1 onlink"
    );
    assert_eq!(
        host.json("ip -j -4 addr show oncache0")[0]["addr_info"][0]["local"],
        "10.42.7.1"
    );
}

#[test]
fn the_bridge_keeps_its_address_and_mtu_when_ports_come_and_go() {
    let [host, _other] = hosts();
    let wanted = WantedOverlay::new(&config(&host, 1, 2), MARKS);
    apply(&host, &wanted);
    host.sh(
        "ip link add p0 address 02:00:00:00:00:01 mtu 1300 type veth peer name p1
             ip link set p0 master oncache0; ip link set p0 up; ip link set p1 up",
    );
    assert_eq!(apply(&host, &wanted), [""; 0]);
    host.sh("ip link del p0");
    assert_eq!(apply(&host, &wanted), [""; 0]);
}

#[test]
fn teardown_leaves_no_trace_and_may_be_repeated() {
    let [host, _other] = hosts();
    host.sh("nft add table inet other; ip route add 10.99.0.0/24 dev eth1 proto 79");
    // A rule that needs conntrack, so that its settings are there before and after.
    host.sh("nft add chain inet other c; nft add rule inet other c ct state new");
    let before = state(&host);
    let wanted = WantedOverlay::new(&config(&host, 1, 2), MARKS);
    let steps = try_apply(&host, &wanted).expect("reconciled");
    let liberal = steps.iter().find_map(Step::previous_tcp_be_liberal);
    assert_eq!(liberal, Some(0));
    assert_ne!(state(&host), before);
    for _ in 0..2 {
        block_on(&host, || async {
            let netlink = Netlink::new().expect("netlink");
            let down = teardown(&netlink, &Sysctls::default(), &wanted.names, liberal).await;
            down.expect("down");
        });
        assert_eq!(state(&host), before);
    }
}
