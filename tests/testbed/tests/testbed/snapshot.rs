//! A snapshot tells whether anything was changed, and what.

use crate::by_hand::NO_DAEMON;
use oncache_testbed::{
    Lab,
    hanging::{TCX_INGRESS, attach_tcx},
    traffic::ping,
};

#[test]
fn a_snapshot_is_the_same_after_all_was_undone_and_only_then() {
    let lab = Lab::two_hosts(NO_DAEMON);
    let host = lab.alpha();
    let before = host.snapshot();
    assert_eq!(before.diff(&before), "");

    // What is done, how it is undone, the section where it shows, and a word of it.
    let changes = [
        (
            "ip link add name new0 type bridge",
            "ip link del new0",
            "link",
            "new0:",
        ),
        (
            "ip link set eth1 mtu 1400",
            "ip link set eth1 mtu 1500",
            "link",
            "mtu=1400",
        ),
        (
            "ip link set eth1 address 02:00:00:00:00:01",
            "ip link set eth1 address 52:54:00:32:00:0b",
            "link",
            "02:00:00:00:00:01",
        ),
        (
            "ip link add name vx0 type vxlan id 5 dstport 4789",
            "ip link del vx0",
            "link",
            "id=5",
        ),
        (
            "ip addr add 10.0.0.1/8 dev eth1",
            "ip addr del 10.0.0.1/8 dev eth1",
            "address",
            "10.0.0.1/8",
        ),
        (
            "ip route add 10.7.0.0/16 via 192.168.50.12 table 9",
            "ip route flush table 9",
            "route",
            "10.7.0.0/16",
        ),
        (
            "ip rule add fwmark 7 table 9",
            "ip rule del fwmark 7",
            "rule",
            "0x7",
        ),
        (
            "ip neigh add 192.168.50.77 lladdr 02:00:00:00:00:07 dev eth1",
            "ip neigh del 192.168.50.77 dev eth1",
            "neigh",
            "192.168.50.77",
        ),
        (
            "bridge fdb add 02:00:00:00:00:09 dev eth1 self",
            "bridge fdb del 02:00:00:00:00:09 dev eth1 self",
            "fdb",
            "02:00:00:00:00:09",
        ),
        (
            "nft add table ip t; nft add chain ip t c '{ type filter hook input priority 0; }'; nft add rule ip t c counter accept",
            "nft delete table ip t",
            "nft",
            "counter",
        ),
        (
            "tc qdisc add dev eth1 clsact",
            "tc qdisc del dev eth1 clsact",
            "qdisc",
            "clsact",
        ),
        (
            "tc qdisc add dev eth1 clsact; tc filter add dev eth1 ingress protocol ip u32 match u32 0 0 classid 1:7",
            "tc qdisc del dev eth1 clsact",
            "tc filter",
            "1:7",
        ),
        (
            "bpftool map create /sys/fs/bpf/m type hash key 4 value 4 entries 1 name m",
            "rm /sys/fs/bpf/m",
            "pin",
            "/sys/fs/bpf/m",
        ),
        ("touch /run/left", "rm /run/left", "file", "/run/left"),
        (
            "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1",
            "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0",
            "sysctl",
            "be_liberal = 1",
        ),
        (
            "sysctl -qw net.ipv4.conf.eth1.forwarding=1",
            "sysctl -qw net.ipv4.conf.eth1.forwarding=0",
            "sysctl",
            "eth1/forwarding = 1",
        ),
    ];
    for (change, undo, section, word) in changes {
        host.sh(change);
        let between = host.snapshot();
        host.sh(undo);
        let after = host.snapshot();
        let diff = before.diff(&between);
        assert_ne!(before, between, "{change}");
        assert!(diff.contains(&format!("{section}:\n")), "{change}: {diff}");
        assert!(
            between
                .section(section)
                .iter()
                .any(|line| line.contains(word)),
            "{change}: {diff}"
        );
        assert!(diff.contains(word), "{change}: {diff}");
        assert_eq!(before, after, "{undo}: {}", before.diff(&after));
    }
}

#[test]
fn a_network_namespace_shows_by_name() {
    let lab = Lab::two_hosts(NO_DAEMON);
    let before = lab.alpha().snapshot();
    lab.alpha().add_netns("box");
    assert_eq!(before.diff(&lab.alpha().snapshot()), "netns:\n  + box\n");
    lab.alpha().sh("ip netns del box");
    assert_eq!(before, lab.alpha().snapshot());
}

#[test]
fn traffic_alone_changes_nothing() {
    let (lab, client, server) = crate::by_hand::two_containers();
    lab.alpha().sh("nft add table ip t
                    nft add chain ip t c '{ type filter hook forward priority 0; }'
                    nft add rule ip t c ct state established counter accept
                    ip link add name br type bridge; ip link set dev br up");
    let before = lab.alpha().snapshot();
    assert!(ping(&client, server.ip, 5).lossless());
    let after = lab.alpha().snapshot();
    assert_eq!(before, after, "{}", before.diff(&after));
}

#[test]
fn an_attached_program_shows_until_its_link_is_gone() {
    let lab = Lab::two_hosts(NO_DAEMON);
    let [alpha, beta] = [lab.alpha(), lab.beta()];
    let index = alpha.sh("cat /sys/class/net/eth1/ifindex");
    // A device with the index of the other's: what is attached to one is not the other's.
    beta.sh(&format!(
        "ip link add name same0 index {} type bridge",
        index.trim()
    ));
    let before = [alpha.snapshot(), beta.snapshot()];
    let link = attach_tcx(alpha, "eth1", TCX_INGRESS, false);
    assert_eq!(before[1], beta.snapshot());
    let between = alpha.snapshot();
    let wanted = "program:\n  + eth1: tcx ingress: foreign (link)\n";
    assert_eq!(before[0].diff(&between), wanted);
    drop(link);
    assert_eq!(before[0], alpha.snapshot());
}
