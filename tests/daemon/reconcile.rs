//! Whatever is done to the overlay by hand, the daemon mends it, and touches nothing else.

use std::{thread, time::Duration};

use crate::ONCACHE;
use oncache_testbed::{
    Container, Hits, Host, Lab, PATIENCE, assert_same, eventually, traffic, until_fast,
    until_fast_again, until_same,
};

/// How long mending may take of what the kernel tells the daemon of. Settings it does not: they wait
/// for the reconciliation that comes every five seconds, and that has [`PATIENCE`].
const MENDED: Duration = Duration::from_secs(6);

/// Things of other programs: a table, routes, a qdisc with a filter, a root qdisc.
const FOREIGN: &str = "nft add table inet others
    nft add chain inet others forward '{ type filter hook forward priority 10; }'
    nft add rule inet others forward ip daddr 203.0.113.1 counter drop
    ip route add 203.0.113.0/24 via 192.168.50.12 dev eth1
    ip route add 203.0.113.0/24 dev eth1 table 100 proto 79
    tc qdisc add dev eth1 root handle 1: pfifo limit 1234
    tc qdisc add dev eth1 clsact
    tc filter add dev eth1 ingress prio 7 protocol ip bpf bytecode '1,6 0 0 0,'";

fn start(foreign: bool) -> (Lab, Container, Container) {
    let lab = Lab::two_hosts(ONCACHE);
    if foreign {
        let alpha = lab.alpha();
        alpha.sh(FOREIGN);
        // The filter would be in the way of the fast path, which damage is told by.
        let ignoring = "ignore_traffic_control = [\"eth1\"]";
        alpha.write_config(&alpha.default_config().extra(ignoring).to_string());
    }
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    until_fast([lab.alpha(), lab.beta()], &client, &server);
    (lab, client, server)
}

/// Whether a line of the log tells of a step taken or of a failure.
fn is_news(line: &str) -> bool {
    let start = ["ready: ", "the daemon has started"];
    let is_start = start.iter().any(|words| line.contains(words));
    line.contains(" INFO ") && !is_start || line.contains("ERROR")
}

#[test]
fn damage_is_mended() {
    let (lab, client, server) = start(true);
    let hosts = [lab.alpha(), lab.beta()];
    let alpha = lab.alpha();
    // The rest of the ruleset's own events is over.
    thread::sleep(Duration::from_secs(1));
    let whole = alpha.snapshot();
    let rule = "nft -a list chain inet oncache forward | sed -n 's/.*# handle \\([0-9]*\\)$/\\1/p' | tail -1";
    let rule = format!("nft delete rule inet oncache forward handle $({rule})");
    let damages = [
        ("a peer's route", "ip route del 10.42.2.0/24"),
        ("a neighbour", "ip neigh del 10.42.2.0 dev oncache-vx0"),
        (
            "a forwarding entry",
            "bridge fdb del 0a:6f:c0:a8:32:0c dev oncache-vx0 dst 192.168.50.12",
        ),
        ("the table", "nft delete table inet oncache"),
        ("a rule", &rule),
        ("the VXLAN device down", "ip link set oncache-vx0 down"),
        (
            "the device that carries nothing gone",
            "ip link del oncache-room0",
        ),
        (
            "the device that carries nothing up",
            "ip link set oncache-room0 up",
        ),
        ("the VXLAN device", "ip link del oncache-vx0"),
        ("the bridge", "ip link del oncache0"),
        ("a port taken out", "ip link set onc-client nomaster"),
        ("a port down", "ip link set onc-client down"),
        ("the bridge's address", "ip address flush dev oncache0"),
        (
            "a device's setting",
            "echo 0 > /proc/sys/net/ipv4/conf/oncache0/forwarding",
        ),
        (
            "the setting of conntrack",
            "echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
        ),
        ("the bridge's MTU", "ip link set oncache0 mtu 1000"),
    ];
    for (what, damage) in damages {
        let epoch_before = alpha.epoch();
        alpha.sh(damage);
        let untold = damage.contains("/proc/sys");
        let limit = if untold { PATIENCE } else { MENDED };
        let mended = until_same(alpha, &whole, limit, what);
        let fast = until_fast_again(hosts, &client, &server);
        let epochs = alpha.epoch() - epoch_before;
        println!("{what}: mended in {mended:?}, fast again in {fast:?}, {epochs} epochs");
        assert!(epochs > 0, "{what}: what was learned before is not trusted");
    }
    // What was done to the other programs' things would show in each of these comparisons too.
    for section in ["nft", "route", "qdisc", "tc filter"] {
        let lines = whole.section(section).join("\n");
        let word = match section {
            "nft" => "table inet others",
            "route" => "203.0.113.0/24",
            "qdisc" => "1234",
            _ => "bytecode",
        };
        assert!(lines.contains(word), "{section}: {lines}");
    }
}

#[test]
fn nothing_is_done_where_nothing_is_to_do() {
    let (lab, ..) = start(false);
    thread::sleep(Duration::from_secs(1));
    let state = |host: &Host| (host.epoch(), host.snapshot(), host.log().len());
    let before: Vec<_> = lab.all().iter().map(state).collect();
    // More than one reconciliation that nothing has asked for.
    thread::sleep(Duration::from_secs(12));
    for (host, (epoch_before, snapshot, from)) in lab.all().iter().zip(before) {
        let lines = host.log_since(from);
        println!(
            "{}: epoch {epoch_before}, {} lines logged",
            host.name,
            lines.len()
        );
        assert_eq!(host.epoch(), epoch_before);
        assert!(lines.is_empty(), "{lines:#?}");
        assert_same(&snapshot, &host.snapshot(), "twelve seconds later");
    }
}

#[test]
fn a_second_start_changes_nothing() {
    let (lab, client, server) = start(false);
    let hosts = [lab.alpha(), lab.beta()];
    thread::sleep(Duration::from_secs(1));
    for host in hosts {
        let (epoch_before, hits, snapshot) = (host.epoch(), Hits::of(host), host.snapshot());
        let from = host.log().len();
        assert!(host.stop().success());
        host.start();
        let lines = host.log_since(from);
        let news: Vec<_> = lines.iter().filter(|line| is_news(line)).collect();
        println!(
            "{}: epoch {epoch_before}, {hits:?}; log {lines:#?}",
            host.name
        );
        assert!(news.is_empty(), "{news:#?}");
        assert_eq!(host.epoch(), epoch_before + 1, "a start is a new epoch");
        let now = Hits::of(host);
        assert!(
            now.egress >= hits.egress && now.ingress >= hits.ingress,
            "{now:?}"
        );
        assert_same(&snapshot, &host.snapshot(), "after a restart");
    }
    until_fast(hosts, &client, &server);
}

#[test]
fn what_went_while_no_daemon_ran_is_forgotten() {
    let (lab, client, server) = start(false);
    let alpha = lab.alpha();
    let flows = || alpha.oncache_json(&["cache", "list", "flows", "--json"])["flows"].clone();
    let before = flows();
    assert_ne!(before.as_array().map(Vec::len), Some(0));
    alpha.kill9();
    alpha.run(&["ip", "link", "del", "onc-client"]);
    drop(client);
    alpha.start();
    println!("{before}, then {}", flows());
    // Its heir must not have what it had.
    assert_eq!(flows().as_array().map(Vec::len), Some(0));
    assert_eq!(
        alpha.status()["containers"].as_array().map(Vec::len),
        Some(0)
    );
    let heir = alpha.add_container_with("heir", &["--ip", "10.42.1.2"]);
    until_fast_again([alpha, lab.beta()], &heir, &server);
}

#[test]
fn a_bad_file_keeps_the_running_configuration() {
    let (lab, client, server) = start(false);
    let hosts = [lab.alpha(), lab.beta()];
    let alpha = lab.alpha();
    thread::sleep(Duration::from_secs(1));
    let state = || {
        let mut status = alpha.status();
        status["cache"]["entries"].take();
        status["cache"]["hit_ratio"].take();
        (status, alpha.snapshot())
    };
    let before = state();
    let good = alpha.default_config().to_string();
    for (bad, word) in [
        (good.replace("vni = 42", "vni = 0"), "overlay.vni \"0\""),
        (good.replace("10.42.1.0/24", "10.42.2.0/24"), "overlaps"),
        ("[node".to_owned(), "not valid TOML"),
        (good.replace("eth1", "eth7"), "no such device"),
        (
            good.replace("10.42.1.0/24", "10.42.9.0/24"),
            "1 containers hold addresses of 10.42.1.0/24",
        ),
    ] {
        alpha.write_config(&bad);
        let lines = alpha.reload();
        let refusal = lines
            .iter()
            .find(|line| line.contains("ERROR") && line.contains("reload refused"));
        let refusal = refusal.unwrap_or_else(|| panic!("no refusal in {lines:#?}"));
        assert!(refusal.contains(word), "{refusal}");
        let (status, snapshot) = state();
        assert_eq!(status, before.0);
        assert_same(&before.1, &snapshot, "after a reload that was refused");
    }
    alpha.write_config(&good);
    let lines = alpha.reload();
    assert!(
        lines.iter().any(|line| line.contains("reloaded")),
        "{lines:#?}"
    );
    until_fast(hosts, &client, &server);
}

#[test]
fn a_reload_adds_and_removes_a_peer() {
    let lab = Lab::hosts(3, crate::ONCACHE);
    let (alpha, beta, gamma) = (lab.alpha(), lab.beta(), lab.gamma());
    alpha.write_config(
        &alpha
            .default_config()
            .peers(vec![beta.as_peer()])
            .to_string(),
    );
    lab.start();
    let client = alpha.add_container("client");
    let [near, far] = [beta, gamma].map(|host| host.add_container("server"));
    until_fast([alpha, beta], &client, &near);
    let report = traffic::ping(&client, far.ip, 2);
    println!("not a peer yet: {report}");
    assert_eq!(report.received, 0, "{report}");
    let without = alpha.snapshot();

    let transfer = traffic::Transfer::new(&client, &near, 0)
        .pace(10_000_000)
        .start();
    alpha.write_config(&alpha.default_config().to_string());
    let lines = alpha.reload();
    for step in [
        "add route 10.42.3.0/24",
        "replace neighbour 10.42.3.0",
        "replace forwarding entry",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(step)),
            "{step}: {lines:#?}"
        );
    }
    assert_eq!(alpha.status()["peers"].as_array().map(Vec::len), Some(2));
    let took = until_fast_again([alpha, gamma], &client, &far);
    println!("the new peer's containers by the fast path after {took:?}");
    let report = transfer.stop();
    println!("to the old one meanwhile: {report}");
    assert!(report.intact(), "{report}");

    alpha.write_config(
        &alpha
            .default_config()
            .peers(vec![beta.as_peer()])
            .to_string(),
    );
    alpha.reload();
    eventually("the peer's traces go", PATIENCE, || {
        alpha.snapshot() == without
    });
    let report = traffic::ping(&client, far.ip, 2);
    assert_eq!(report.received, 0, "{report}");
    until_fast_again([alpha, beta], &client, &near);
}
