//! `oncache down` leaves a host as it was before the first start.

use std::{mem, time::Duration};

use crate::ONCACHE;
use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, TcAttachOptions, TcHandle},
};
use oncache_testbed::{
    Container, Host, Lab, PATIENCE, Snapshot, assert_same, eventually,
    traffic::{self, Direction},
    until_fast, until_same,
};

const LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

/// One container a host in a namespace of oncache's, one more in somebody else's on alpha.
struct Containers {
    client: Container,
    server: Container,
    guest: Container,
}

/// Starts both hosts and lets containers talk by both paths.
fn live(lab: &Lab) -> Containers {
    let (alpha, beta) = (lab.alpha(), lab.beta());
    lab.start();
    let containers = Containers {
        client: alpha.add_container("client"),
        server: beta.add_container("a-server-with-a-long-name"),
        guest: alpha.add_container_with("guest", &["--netns", "/run/netns/guest"]),
    };
    let Containers {
        client,
        server,
        guest,
    } = &containers;
    until_fast([alpha, beta], client, server);
    let report = traffic::transfer(guest, server, 0, 20_000_000, Direction::Both);
    assert!(report.intact(), "{report}");
    containers
}

/// Both hosts as they are, with an empty namespace `guest` on alpha.
fn before(lab: &Lab) -> [Snapshot; 2] {
    lab.alpha().add_netns("guest");
    [lab.alpha().snapshot(), lab.beta().snapshot()]
}

/// The daemon has ended by the time `down` returns.
fn down(host: &Host) {
    let printed = host.oncache_ok(&["down"]);
    assert_eq!(printed, "", "down has nothing to say");
    eventually("the daemon ends", Duration::from_secs(5), || {
        host.daemon_pid().is_none()
    });
}

/// That somebody else's namespace is there and has lost the device only.
fn assert_only_loopback(guest: &Container) {
    let links = guest.run(&["ip", "-br", "link"]);
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.starts_with("lo "), "{links}");
}

#[test]
fn both_hosts_are_as_they_were() {
    let lab = Lab::two_hosts(ONCACHE);
    // What is restored is what was there, not what is usual.
    lab.alpha().set_sysctl(LIBERAL, "0");
    lab.beta().set_sysctl(LIBERAL, "1");
    let before = before(&lab);
    let containers = live(&lab);
    let guest = containers.guest.clone();
    for host in lab.all() {
        assert_eq!(host.sysctl(LIBERAL).as_deref(), Some("1"));
    }
    drop(containers);
    for (host, before) in lab.all().iter().zip(&before) {
        println!(
            "{}: {} differences while it runs",
            host.name,
            before.diff(&host.snapshot()).lines().count()
        );
        down(host);
        assert_same(
            before,
            &host.snapshot(),
            &format!("{} after down", host.name),
        );
    }
    assert_only_loopback(&guest);

    // And nothing of it stands in the way of another start.
    let [alpha, _] = &before;
    let containers = live(&lab);
    drop(containers);
    down(lab.alpha());
    assert_same(alpha, &lab.alpha().snapshot(), "after the second down");
}

#[test]
fn works_without_a_daemon_and_twice() {
    let lab = Lab::two_hosts(ONCACHE);
    let before = before(&lab);
    let containers = live(&lab);
    let guest = containers.guest.clone();
    drop(containers);
    for (host, before) in lab.all().iter().zip(&before) {
        host.kill9();
        down(host);
        assert_same(
            before,
            &host.snapshot(),
            &format!("{}: daemon killed, then down", host.name),
        );
        down(host);
        assert_same(
            before,
            &host.snapshot(),
            &format!("{}: down twice", host.name),
        );
    }
    assert_only_loopback(&guest);
}

#[test]
fn works_after_a_daemon_that_was_asked_to_stop() {
    let lab = Lab::two_hosts(ONCACHE);
    let before = before(&lab);
    drop(live(&lab));
    for (host, before) in lab.all().iter().zip(&before) {
        assert!(host.stop().success());
        down(host);
        assert_same(
            before,
            &host.snapshot(),
            &format!("{}: stopped, then down", host.name),
        );
    }
}

#[test]
fn a_new_daemon_may_start_as_soon_as_down_is_through() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    alpha.start();
    for _ in 0..5 {
        alpha.oncache_ok(&["down"]);
        let mut again = alpha.command(crate::ONCACHE);
        again.arg("run").arg("--config").arg(alpha.config_path());
        let mut again = alpha.spawn(again);
        eventually("the next daemon answers", PATIENCE, || {
            if let Some(status) = again.try_wait() {
                panic!("refused: {status}");
            }
            alpha.oncache(&["status"]).status.success()
        });
    }
}

#[test]
fn does_nothing_where_oncache_never_ran() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    // Things that are named nearly as ours are.
    host.sh("ip link add onc-others type veth peer name others
             ip link set others up; ip link set onc-others up
             ip link add oncache1 type bridge
             ip address add 10.99.0.1/24 dev onc-others
             nft add table ip oncache; nft add table inet oncache2
             ip route add 10.98.0.0/24 dev onc-others proto 79
             ip netns add web");
    for liberal in ["0", "1"] {
        host.set_sysctl(LIBERAL, liberal);
        let before = host.snapshot();
        down(host);
        assert_same(&before, &host.snapshot(), "down where oncache never ran");
    }
}

/// A filter of somebody else's at each hook of the underlay device, in a qdisc of somebody else's.
const FOREIGN_FILTERS: &str = "tc qdisc add dev eth1 clsact
    tc filter add dev eth1 ingress prio 7 protocol ip bpf bytecode '1,6 0 0 0,'
    tc filter add dev eth1 egress prio 8 protocol ip bpf bytecode '1,6 0 0 0,'";

#[test]
fn filters_of_its_own_go_and_the_qdisc_with_them_if_it_is_its_own() {
    let lab = Lab::two_hosts(ONCACHE);
    for host in lab.all() {
        host.write_config(
            &host
                .default_config()
                .extra("attach = \"clsact\"\nignore_traffic_control = [\"eth1\"]")
                .to_string(),
        );
    }
    lab.beta().sh(FOREIGN_FILTERS);
    let before = before(&lab);
    let containers = live(&lab);
    let mine = lab
        .alpha()
        .run(&["tc", "filter", "show", "dev", "eth1", "ingress"]);
    assert!(mine.contains("ingress direct-action"), "{mine}");
    drop(containers);
    for (host, before) in lab.all().iter().zip(&before) {
        down(host);
        assert_same(
            before,
            &host.snapshot(),
            &format!("{} after down", host.name),
        );
    }
}

/// Attaches the program of our filter on eth1 once more, as a filter of somebody else's.
fn attach_its_namesake(host: &Host) {
    let filters = host.run(&["tc", "filter", "show", "dev", "eth1", "ingress"]);
    let mut words = filters.split_whitespace().skip_while(|word| *word != "id");
    let id = words.nth(1).expect("a program's number");
    let pin = "/sys/fs/bpf/namesake";
    host.run(&["bpftool", "prog", "pin", "id", id, pin]);
    host.enter(|| {
        let mut program = SchedClassifier::from_pin(pin).expect("a pinned program");
        let place = TcAttachOptions::Netlink(NlOptions {
            priority: 7,
            handle: TcHandle::new(0, 7),
            classid: None,
        });
        let link = program.attach_with_options("eth1", TcAttachType::Ingress, place);
        let link = program.take_link(link.expect("a filter"));
        mem::forget(link.expect("its link"));
    });
    host.run(&["rm", pin]);
}

#[test]
fn a_filter_that_is_named_alike_stays() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.write_config(
        &host
            .default_config()
            .extra("attach = \"clsact\"")
            .to_string(),
    );
    host.start();
    attach_its_namesake(host);
    let show = || host.run(&["tc", "filter", "show", "dev", "eth1", "ingress"]);
    let named = |filters: &str| filters.matches("ingress direct-action").count();
    assert_eq!(named(&show()), 2, "{}", show());
    host.restart();
    assert_eq!(named(&show()), 2, "{}", show());
    down(host);
    let left = show();
    println!("{left}");
    assert!(named(&left) == 1 && left.contains("pref 7 "), "{left}");
}

#[test]
fn a_qdisc_of_its_own_stays_while_others_use_it() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.write_config(
        &host
            .default_config()
            .extra("attach = \"clsact\"")
            .to_string(),
    );
    let before = host.snapshot();
    host.start();
    host.sh("tc filter add dev eth1 ingress prio 7 protocol ip bpf bytecode '1,6 0 0 0,'");
    down(host);
    let filters = host.run(&["tc", "filter", "show", "dev", "eth1", "ingress"]);
    assert!(
        filters.contains("bytecode") && !filters.contains("direct-action"),
        "{filters}"
    );
    host.sh("tc qdisc del dev eth1 clsact");
    assert_same(&before, &host.snapshot(), "but for the qdisc");
}

#[test]
fn a_container_whose_namespace_is_gone_is_deleted_all_the_same() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    lab.start();
    let before = alpha.snapshot();
    // Deleted at once or a while after the device vanished; the daemon notices by itself.
    for wait in [Duration::ZERO, Duration::from_secs(1)] {
        for arguments in [
            &["container", "add", "short"][..],
            &["container", "add", "short", "--netns", "/run/netns/own"],
        ] {
            if arguments.len() > 3 {
                drop(alpha.add_netns("own"));
            }
            alpha.oncache_ok(arguments);
            let name = if arguments.len() > 3 { "own" } else { "short" };
            alpha.run(&["ip", "netns", "del", name]);
            eventually("the device vanishes", PATIENCE, || {
                !alpha
                    .output(&["ip", "link", "show", "onc-short"])
                    .status
                    .success()
            });
            std::thread::sleep(wait);
            let output = alpha.oncache(&["container", "del", "short"]);
            if !output.status.success() {
                let line = oncache_testbed::complaint(&["container", "del", "short"], &output);
                println!("after {wait:?}: {line}");
                assert!(line.contains("not known here"), "{line}");
            }
            until_same(alpha, &before, PATIENCE, "after the namespace went");
            let line = alpha.refused(&["container", "del", "short"]);
            assert!(
                line.contains("short") && line.contains("not known here"),
                "{line}"
            );
        }
    }
    // Also when a process keeps the namespace alive, and with it the device.
    alpha.oncache_ok(&["container", "add", "kept"]);
    let kept = alpha.container("kept");
    alpha.run(&["ip", "netns", "del", "kept"]);
    alpha.oncache_ok(&["container", "del", "kept"]);
    assert_same(
        &before,
        &alpha.snapshot(),
        "after a nameless container was deleted",
    );
    assert_only_loopback(&kept);
}
