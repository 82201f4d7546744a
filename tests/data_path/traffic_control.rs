//! What others hang on the devices that packets pass: the fast path carries nothing past it.

use std::{
    net::UdpSocket,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use crate::hanging::{TCX_EGRESS, TCX_INGRESS, attach_tcx, bpf_filter, pin_xdp};
use crate::lab::{Hits, PATIENCE, counter, epoch, eventually, log_since, status, two_hosts};
use oncache_testbed::{Container, Host, Lab};

const PORT: u16 = 7000;
/// Sizes of datagrams: shorter and longer than what programs and filters that drop let pass.
const SMALL: usize = 100;
const LARGE: usize = 1000;

/// Two containers on `alpha`, one on `beta` that sends back whatever it gets.
struct Scene {
    lab: Lab,
    web: Container,
    other: Container,
    server: Container,
    ended: Arc<AtomicBool>,
    echo: Option<thread::JoinHandle<()>>,
}

impl Scene {
    fn new(extra: &str) -> Self {
        let lab = two_hosts();
        let alpha = lab.alpha();
        alpha.write_config(&alpha.default_config().extra(extra).to_string());
        let beta = lab.beta();
        beta.write_config(&beta.default_config().to_string());
        lab.start();
        let (web, other) = (alpha.add_container("web"), alpha.add_container("other"));
        let server = beta.add_container("server");
        let ended = Arc::new(AtomicBool::new(false));
        let socket = server.enter(|| UdpSocket::bind((server.ip, PORT)).expect("bind"));
        let timeout = Some(Duration::from_millis(50));
        socket.set_read_timeout(timeout).expect("a timeout");
        let echo = thread::spawn({
            let ended = ended.clone();
            move || {
                let mut bytes = [0; 2048];
                while !ended.load(Relaxed) {
                    if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                        let _ = socket.send_to(&bytes[..length], from);
                    }
                }
            }
        });
        Self {
            lab,
            web,
            other,
            server,
            ended,
            echo: Some(echo),
        }
    }

    fn alpha(&self) -> &Host {
        self.lab.alpha()
    }

    /// A socket of a container's, for one flow.
    fn flow(&self, from: &Container) -> UdpSocket {
        let socket = from.enter(|| UdpSocket::bind((from.ip, 0)).expect("bind"));
        socket.connect((self.server.ip, PORT)).expect("connect");
        socket
    }

    /// How many of `count` datagrams come back.
    fn exchange(&self, flow: &UdpSocket, count: usize, size: usize) -> usize {
        self.exchange_within(flow, count, size, Duration::from_secs(2))
    }

    /// As [`Scene::exchange`], for datagrams that must not come back.
    fn leaked(&self, flow: &UdpSocket, count: usize) -> usize {
        self.exchange_within(flow, count, LARGE, Duration::from_millis(30))
    }

    fn exchange_within(
        &self,
        flow: &UdpSocket,
        count: usize,
        size: usize,
        patience: Duration,
    ) -> usize {
        let mut bytes = [0; 2048];
        flow.set_read_timeout(Some(patience)).expect("a timeout");
        let back = (0..count).filter(|_| {
            let _ = flow.send(&[7; LARGE][..size]);
            flow.recv(&mut bytes).is_ok_and(|length| length == size)
        });
        back.count()
    }

    /// How many of `count` small datagrams each way the fast path of `alpha` has carried.
    fn carried(&self, flow: &UdpSocket, count: usize) -> [u64; 2] {
        let before = Hits::of(self.alpha());
        let back = self.exchange(flow, count, SMALL);
        assert_eq!(back, count, "small datagrams are nobody's concern");
        let now = Hits::of(self.alpha());
        [now.egress - before.egress, now.ingress - before.ingress]
    }

    fn until_carried(&self, flow: &UdpSocket, what: &str) {
        eventually(&format!("carried: {what}"), PATIENCE, || {
            self.carried(flow, 5) == [5, 5]
        });
    }

    /// What `oncache status` says is in the way.
    fn not_carried(&self) -> Vec<String> {
        not_carried(self.alpha())
    }

    /// Makes the daemon compare, which it does by itself every five seconds: a device comes and goes.
    fn nudge(&self) {
        self.alpha()
            .sh("ip link add nudge type veth peer name nudge2; ip link del nudge");
    }

    fn until_known(&self, expected: &[&str]) {
        eventually(&format!("status says {expected:?}"), PATIENCE, || {
            self.not_carried() == expected
        });
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        self.echo.take().map(thread::JoinHandle::join);
    }
}

fn not_carried(host: &Host) -> Vec<String> {
    let status = status(host);
    let all = status["not_carried"].as_array().expect("a list");
    let text = |it: &serde_json::Value, key: &str| it[key].as_str().expect("text").to_owned();
    all.iter()
        .map(|it| format!("{}: {}", text(it, "device"), text(it, "reason")))
        .collect()
}

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
    let withheld = ["egress", "ingress"].map(|program| counter(alpha, program, "withheld"));
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
        let log = log_since(alpha, from);
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
    let settled = epoch(alpha);
    for _ in 0..3 {
        scene.nudge();
        thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(epoch(alpha), settled);
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

/// A device that a thing hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Container,
    Bridge,
    Vxlan,
    Underlay,
}

/// What hangs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thing {
    /// A clsact qdisc alone.
    Clsact,
    /// A root qdisc of a kind.
    Qdisc(&'static str),
    Xdp {
        drops: bool,
    },
    Tcx {
        egress: bool,
        drops: bool,
    },
    Bpf {
        egress: bool,
        drops: bool,
    },
    Mirror {
        egress: bool,
    },
    /// A chain of nftables' netdev family that drops large packets.
    Chain {
        egress: bool,
    },
}

use Device::{Bridge, Underlay, Vxlan};

impl Device {
    const ALL: [Self; 4] = [Self::Container, Bridge, Vxlan, Underlay];

    fn name(self) -> &'static str {
        match self {
            Self::Container => "onc-web",
            Bridge => "oncache0",
            Vxlan => "oncache-vx0",
            Underlay => "eth1",
        }
    }
}

/// Every thing, whichever device it is for.
fn things() -> Vec<Thing> {
    let mut all = vec![
        Thing::Clsact,
        Thing::Qdisc("tbf rate 1gbit burst 100k limit 1m"),
        Thing::Qdisc("htb default 1"),
        Thing::Xdp { drops: false },
        Thing::Xdp { drops: true },
    ];
    for egress in [false, true] {
        all.push(Thing::Mirror { egress });
        all.push(Thing::Chain { egress });
        for drops in [false, true] {
            all.push(Thing::Tcx { egress, drops });
            all.push(Thing::Bpf { egress, drops });
        }
    }
    all
}

/// The reference: whether flows of the device's container are carried all the same.
fn is_carried(device: Device, thing: Thing) -> bool {
    match thing {
        Thing::Clsact => true,
        // What is to be sent by the underlay is queued there, whoever sends it.
        Thing::Qdisc(_) => device == Underlay,
        // Met on the way to `egress` and `ingress`.
        Thing::Xdp { .. } => [Device::Container, Underlay].contains(&device),
        Thing::Tcx { .. } | Thing::Bpf { .. } | Thing::Chain { .. } => false,
        // It only looks at bytes, and those of the fast path are the same.
        Thing::Mirror { egress } => device == Underlay && egress,
    }
}

/// What lets all pass is in the way as what drops is; two devices are enough to see that.
fn is_rather_dull(device: Device, thing: Thing) -> bool {
    let passes = matches!(
        thing,
        Thing::Xdp { drops: false }
            | Thing::Tcx { drops: false, .. }
            | Thing::Bpf { drops: false, .. }
    );
    passes && [Bridge, Vxlan].contains(&device)
}

/// The reference: whether large datagrams may still come back.
fn is_delivered(thing: Thing) -> bool {
    !matches!(
        thing,
        Thing::Chain { .. }
            | Thing::Xdp { drops: true }
            | Thing::Tcx { drops: true, .. }
            | Thing::Bpf { drops: true, .. }
    )
}

/// What has to be kept while a thing hangs, and how it goes.
struct Hung {
    link: Option<OwnedFd>,
    undo: String,
}

fn hang(host: &Host, device: Device, thing: Thing) -> Hung {
    let name = device.name();
    let side = |egress: bool| if egress { "egress" } else { "ingress" };
    let filter = |egress: bool, what: &str| {
        host.sh(&format!(
            "tc qdisc add dev {name} clsact; tc filter add dev {name} {} {what}",
            side(egress)
        ));
        format!("tc qdisc del dev {name} clsact")
    };
    let mut link = None;
    let undo = match thing {
        Thing::Clsact => {
            host.sh(&format!("tc qdisc add dev {name} clsact"));
            format!("tc qdisc del dev {name} clsact")
        }
        Thing::Qdisc(kind) => {
            host.sh(&format!("tc qdisc add dev {name} root {kind}"));
            format!("tc qdisc del dev {name} root")
        }
        Thing::Xdp { drops } => {
            let path = pin_xdp(host, drops);
            // What has been redirected into a veth device passes by generic XDP at its other end
            // (net/core/dev.c, `netif_receive_generic_xdp`): the lab's wire is one, and the sender the fast path.
            let mode = if device == Underlay {
                "xdpdrv"
            } else {
                "xdpgeneric"
            };
            host.sh(&format!("ip link set {name} {mode} pinned {path}"));
            format!("ip link set {name} {mode} off")
        }
        Thing::Tcx { egress, drops } => {
            let hook = if egress { TCX_EGRESS } else { TCX_INGRESS };
            link = Some(attach_tcx(host, name, hook, drops));
            String::new()
        }
        Thing::Bpf { egress, drops } => filter(egress, &bpf_filter(drops)),
        Thing::Chain { egress } => {
            host.sh(&format!(
                "nft 'table netdev foreign {{
                     chain c {{
                         type filter hook {} device {name} priority 0;
                         meta length > 500 drop
                     }}
                 }}'",
                side(egress)
            ));
            "nft delete table netdev foreign".to_owned()
        }
        Thing::Mirror { egress } => filter(
            egress,
            "protocol ip u32 match u32 0 0 action mirred egress mirror dev tap0",
        ),
    };
    Hung { link, undo }
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
            let before = epoch(alpha);
            let mut hung = hang(alpha, device, thing);
            let carried = is_carried(device, thing);
            let is_told_of = !matches!(
                thing,
                Thing::Tcx { .. } | Thing::Xdp { .. } | Thing::Chain { .. }
            );
            if is_told_of && !carried {
                // From the new epoch on nothing passes by it, whatever the daemon is at.
                eventually(&case, PATIENCE, || epoch(alpha) > before);
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
