//! What others hang on the devices that packets pass: the fast path carries nothing past it.

mod scene;
mod things;

use std::{thread, time::Duration};

use self::{
    scene::{LARGE, SMALL, Scene},
    things::{Device, Thing, hang, is_carried, is_delivered, is_rather_dull, things},
};
use oncache_testbed::{
    Host, PATIENCE, eventually,
    hanging::{TCX_EGRESS, attach_tcx, bpf_filter, pin_xdp},
};

/// Packets that a device's root qdisc has sent.
fn queued(host: &Host, device: &str) -> u64 {
    let text = host.run(&["tc", "-s", "-j", "qdisc", "show", "dev", device, "root"]);
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    all[0]["packets"].as_u64().expect("a number")
}

#[test]
fn a_qdisc_on_a_containers_device_shapes_that_container_alone() {
    let scene = Scene::new("");
    let alpha = scene.alpha();
    let (web, other) = (scene.flow(&scene.web), scene.flow(&scene.other));
    scene.until_carried(&web, "web");
    scene.until_carried(&other, "other");
    let (from, before) = (alpha.log().len(), alpha.invalidations("traffic-control"));

    alpha.sh("tc qdisc add dev onc-web root tbf rate 1gbit burst 100k limit 1m");
    scene.until_known(&["onc-web: tbf qdisc"]);
    let passed = queued(alpha, "onc-web");
    assert_eq!(scene.carried(&web, 50), [0, 0]);
    assert!(queued(alpha, "onc-web") >= passed + 50, "all by the qdisc");
    scene.until_carried(&other, "other beside it");
    let withheld = ["egress", "ingress"].map(|program| alpha.counters().get(program, "withheld"));
    assert!(withheld.iter().all(|count| *count >= 50), "{withheld:?}");

    // Said everywhere, and once in the log.
    let row = alpha.oncache_json(&["container", "list", "--json"]);
    let rows = row.as_array().expect("a list");
    let of = |name: &str| {
        let row = rows.iter().find(|row| row["name"] == name);
        row.expect("a row")["not_carried"].clone()
    };
    assert_eq!(of("web"), serde_json::json!(["onc-web: tbf qdisc"]));
    assert_eq!(of("other"), serde_json::json!([]));
    for arguments in [&["status"][..], &["stats"]] {
        let text = alpha.oncache_ok(arguments);
        let line = "onc-web: tbf qdisc: not carried (container web)";
        assert!(text.lines().any(|it| it == line), "{text}");
    }
    let listed = alpha.oncache_ok(&["container", "list"]);
    assert!(
        listed.contains("\nweb: not carried: onc-web: tbf qdisc\n"),
        "{listed}"
    );
    let told = |line: &str| {
        let log = alpha.log_since(from);
        log.iter().filter(|it| it.contains(line)).count()
    };
    let raised = alpha.invalidations("traffic-control");
    scene.nudge();
    scene.nudge();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(told("onc-web: tbf qdisc: not carried (container web)"), 1);
    assert!(raised > before);
    assert_eq!(
        alpha.invalidations("traffic-control"),
        raised,
        "what stays is no news"
    );

    // A daemon that starts finds it there, and lets nothing pass meanwhile.
    alpha.restart();
    for _ in 0..20 {
        assert_eq!(scene.carried(&web, 5), [0, 0]);
    }
    scene.until_carried(&other, "other after the restart");
    assert_eq!(scene.not_carried(), ["onc-web: tbf qdisc"]);

    alpha.sh("tc qdisc del dev onc-web root");
    scene.until_known(&[]);
    scene.until_carried(&web, "web again");
}

#[test]
fn an_operator_may_let_it_be_passed_by() {
    let scene = Scene::new("");
    let alpha = scene.alpha();
    let flow = scene.flow(&scene.web);
    alpha.sh("tc qdisc add dev onc-web root tbf rate 1gbit burst 100k limit 1m");
    scene.until_known(&["onc-web: tbf qdisc"]);
    assert_eq!(scene.carried(&flow, 20), [0, 0]);
    let ignoring = "ignore_traffic_control = [\"onc-web\"]";
    alpha.write_config(&alpha.default_config().extra(ignoring).to_string());
    alpha.signal(nix::sys::signal::Signal::SIGHUP);
    scene.until_known(&[]);
    scene.until_carried(&flow, "by the operator's wish");
    alpha.write_config(&alpha.default_config().to_string());
    alpha.signal(nix::sys::signal::Signal::SIGHUP);
    scene.until_known(&["onc-web: tbf qdisc"]);
    assert_eq!(scene.carried(&flow, 20), [0, 0]);
}

/// Nothing tells of it: the comparison finds it, every five seconds.
#[test]
fn a_tcx_program_is_found_without_a_notification() {
    let scene = Scene::new("");
    let flow = scene.flow(&scene.web);
    scene.until_carried(&flow, "web");
    let program = attach_tcx(scene.alpha(), "onc-web", TCX_EGRESS, true);
    let reason = ["onc-web: program foreign at tcx egress"];
    let took = eventually("found", Duration::from_secs(12), || {
        scene.not_carried() == reason
    });
    println!("found after {took:?}");
    scene.exchange(&flow, 20, SMALL);
    assert_eq!(scene.leaked(&flow, 10), 0);
    assert_eq!(scene.carried(&flow, 10), [0, 0]);
    drop(program);
    scene.until_known(&[]);
    scene.until_carried(&flow, "web again");
}

/// What is handed over within the kernel does not pass the driver at the container's end.
#[test]
fn an_xdp_program_inside_a_container_is_met() {
    let scene = Scene::new("");
    let flow = scene.flow(&scene.web);
    scene.until_carried(&flow, "web");
    let path = pin_xdp(scene.alpha(), true);
    scene
        .web
        .sh(&format!("ip link set eth0 xdpdrv pinned {path}"));
    scene.until_known(&["onc-web: XDP program inside the container"]);
    assert_eq!(scene.leaked(&flow, 5), 0);
    assert_eq!(scene.carried(&flow, 10), [0, 0]);
    assert_eq!(scene.leaked(&flow, 5), 0);
    scene.web.sh("ip link set eth0 xdpdrv off");
    scene.until_known(&[]);
    scene.until_carried(&flow, "web again");
}

/// Filters and qdiscs of oncache's own are told of as anybody's are.
#[test]
fn own_filters_are_no_hindrance_and_no_news() {
    let scene = Scene::new("attach = \"clsact\"");
    let alpha = scene.alpha();
    let flow = scene.flow(&scene.web);
    scene.until_carried(&flow, "web");
    let settled = alpha.epoch();
    for _ in 0..3 {
        scene.nudge();
        thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(alpha.epoch(), settled);
    assert_eq!(scene.not_carried(), [""; 0]);
    // One of another's ahead of ours, and gone again.
    alpha.sh(&format!(
        "tc filter add dev onc-web egress prio 1 {}",
        bpf_filter(true)
    ));
    scene.until_known(&["onc-web: bpf filter at egress"]);
    assert_eq!(scene.leaked(&flow, 5), 0);
    assert_eq!(scene.carried(&flow, 10), [0, 0]);
    alpha.sh("tc filter del dev onc-web egress prio 1");
    scene.until_known(&[]);
    scene.until_carried(&flow, "web again");
}

fn mirrored(host: &Host) -> u64 {
    let text = host.run(&["cat", "/sys/class/net/tap0/statistics/tx_packets"]);
    text.trim().parse().expect("a number")
}

#[test]
fn whatever_hangs_wherever_is_met_by_every_packet() {
    let scene = Scene::new("");
    let alpha = scene.alpha();
    alpha.sh("ip link add tap0 type veth peer name tap1; ip link set tap0 up; ip link set tap1 up");
    let (web, other) = (scene.flow(&scene.web), scene.flow(&scene.other));
    let mut count = 0;
    for device in Device::ALL {
        for thing in things() {
            if is_rather_dull(device, thing) {
                continue;
            }
            let case = format!("{thing:?} on {device:?}");
            scene.until_carried(&web, &format!("web before {case}"));
            scene.until_carried(&other, &format!("other before {case}"));
            let before = alpha.epoch();
            let mut hung = hang(alpha, device, thing);
            let carried = is_carried(device, thing);
            let is_told_of = !matches!(
                thing,
                Thing::Tcx { .. } | Thing::Xdp { .. } | Thing::Chain { .. }
            );
            if is_told_of && !carried {
                // From the new epoch on nothing passes by it, whatever the daemon is at.
                eventually(&case, PATIENCE, || alpha.epoch() > before);
            } else {
                scene.nudge();
                if !carried {
                    eventually(&case, PATIENCE, || !scene.not_carried().is_empty());
                }
            }
            let seen = mirrored(alpha);
            let back = scene.exchange(&web, 4, SMALL);
            assert_eq!(back, 4, "{case}: small ones pass");
            if is_delivered(thing) {
                assert_eq!(scene.exchange(&web, 3, LARGE), 3, "{case}: large ones");
            } else {
                assert_eq!(scene.leaked(&web, 3), 0, "{case}: large ones");
            }
            if matches!(thing, Thing::Mirror { .. }) {
                let seen = mirrored(alpha) - seen;
                assert!(seen >= 7, "{case}: {seen} of 7 were mirrored");
            }
            if carried {
                scene.until_carried(&web, &case);
                // By the fast path, too: what is harmless is harmless because every packet meets it.
                let seen = mirrored(alpha);
                assert_eq!(scene.carried(&web, 5), [5, 5], "{case}");
                if matches!(thing, Thing::Mirror { .. }) {
                    let seen = mirrored(alpha) - seen;
                    assert!(seen >= 5, "{case}: {seen} of 5 fast ones were mirrored");
                }
                if !is_delivered(thing) {
                    assert_eq!(scene.leaked(&web, 3), 0, "{case}: large ones");
                }
                if let Thing::Qdisc(_) = thing {
                    let seen = queued(alpha, device.name());
                    assert_eq!(scene.carried(&web, 5), [5, 5], "{case}");
                    assert!(queued(alpha, device.name()) >= seen + 5, "{case}");
                }
                assert_eq!(scene.not_carried(), [""; 0], "{case}");
            } else {
                assert_eq!(scene.carried(&web, 10), [0, 0], "{case}");
                eventually(&case, PATIENCE, || scene.not_carried().len() == 1);
                assert_eq!(scene.carried(&web, 10), [0, 0], "{case}");
            }
            if carried || device == Device::Container {
                scene.until_carried(&other, &format!("other beside {case}"));
            } else {
                assert_eq!(scene.carried(&other, 10), [0, 0], "{case}: other");
            }
            drop(hung.link.take());
            alpha.sh(&hung.undo);
            scene.nudge();
            scene.until_known(&[]);
            count += 1;
        }
    }
    scene.until_carried(&web, "web at the end");
    println!("{count} combinations");
    assert!(count > 50);
}
