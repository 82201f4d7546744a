//! What happens to a container's device, address and namespace behind the daemon's back, under traffic:
//! it is noticed, nothing is delivered to a wrong place, and who is not concerned notices nothing.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::ONCACHE;
use crate::pinned_maps::PinnedMaps;
use oncache_testbed::{
    Config, Container, Host, Lab, PATIENCE, eventually,
    traffic::{self, Datagrams, Rounds},
    until_fast, until_fast_again,
};

/// How long the daemon may take to notice: the kernel tells it, and it gathers for 100 ms.
const NOTICED: Duration = Duration::from_secs(3);

/// `web` and `mate` on alpha, `client` on beta; both are reached by the fast path.
struct Scene {
    lab: Lab,
    web: Container,
    mate: Container,
    client: Container,
    maps: PinnedMaps,
}

impl Scene {
    fn new() -> Self {
        Self::with(|config| config)
    }

    fn with(adjust: impl FnOnce(Config) -> Config) -> Self {
        let lab = Lab::two_hosts(ONCACHE);
        let config = adjust(lab.alpha().default_config());
        lab.alpha().write_config(&config.to_string());
        lab.start();
        let [web, mate] = ["web", "mate"].map(|name| lab.alpha().add_container(name));
        let client = lab.beta().add_container("client");
        let hosts = [lab.alpha(), lab.beta()];
        until_fast(hosts, &client, &web);
        until_fast(hosts, &client, &mate);
        let maps = PinnedMaps::of(lab.alpha(), 65536);
        // The kernel's own events about what was just made are over.
        thread::sleep(Duration::from_millis(500));
        Self {
            lab,
            web,
            mate,
            client,
            maps,
        }
    }

    fn alpha(&self) -> &Host {
        self.lab.alpha()
    }

    fn hosts(&self) -> [&Host; 2] {
        [self.lab.alpha(), self.lab.beta()]
    }

    /// While `work` is done, datagrams between client and mate lose nothing, and mate's device takes
    /// in nothing that is for anybody else.
    fn undisturbed<T>(&self, work: impl FnOnce() -> T) -> T {
        let over = Arc::new(AtomicBool::new(false));
        let bystanders = thread::spawn({
            let (from, to, over) = (self.client.clone(), self.mate.clone(), Arc::clone(&over));
            move || {
                let mut whole = 0;
                while !over.load(Ordering::Relaxed) {
                    let mut datagrams = Datagrams::new(200, 200);
                    datagrams.pause = Duration::from_millis(1);
                    let report = datagrams.run(&from, &to, 0);
                    assert_eq!((report.whole, report.damaged), (200, 0), "{report}");
                    whole += report.whole;
                }
                whole
            }
        });
        let outcome = work();
        over.store(true, Ordering::Relaxed);
        let whole = bystanders.join().expect("the neighbour loses nothing");
        println!("its neighbour got {whole} datagrams meanwhile, all of them whole");
        outcome
    }

    /// Waits until the fast path delivers to web, or does not.
    fn until_delivered(&self, delivered: bool, what: &str) -> Duration {
        eventually(what, NOTICED, || {
            self.maps.device_of(self.web.ip).is_some() == delivered
        })
    }
}

/// Somebody on another host who never stops sending to an address, one datagram every 200 µs.
struct Sender {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sender {
    fn new(from: &Container, to: Ipv4Addr, ports: (u16, u16)) -> Self {
        let socket = from.enter(|| UdpSocket::bind((from.ip, ports.0)));
        let socket = socket.expect("bind in the sender");
        socket.connect((to, ports.1)).expect("connect");
        let (over, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let thread = thread::spawn({
            let (over, sent) = (Arc::clone(&over), Arc::clone(&sent));
            move || {
                while !over.load(Ordering::Relaxed) {
                    // Refused while the address is nobody's.
                    if socket.send(b"still here").is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    thread::sleep(Duration::from_micros(200));
                }
            }
        });
        Self {
            over,
            sent,
            thread: Some(thread),
        }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[test]
fn a_device_that_is_down_inside_is_left_to_the_slow_path() {
    let scene = Scene::new();
    let before = scene.alpha().epoch();
    scene.undisturbed(|| {
        for round in 0..3 {
            scene.web.run(&["ip", "link", "set", "eth0", "down"]);
            let down = scene.until_delivered(false, "the fast path gives it up");
            let report = traffic::ping(&scene.client, scene.web.ip, 1);
            assert_eq!(report.received, 0, "{report}");
            scene.web.run(&["ip", "link", "set", "eth0", "up"]);
            // The kernel has taken the routes away with the device (net/ipv4/fib_frontend.c,
            // fib_disable_ip); whoever sets a device down in a container puts them back.
            scene.web.run(&["ip", "route", "add", "default", "via", "10.42.1.1"]);
            let up = scene.until_delivered(true, "the fast path takes it back");
            let fast = until_fast_again(scene.hosts(), &scene.client, &scene.web);
            println!("round {round}: noticed down after {down:?}, up after {up:?}, fast again in {fast:?}");
        }
    });
    // It is nobody else's concern.
    assert_eq!(scene.alpha().epoch(), before);
}

#[test]
fn a_changed_mac_address_is_refused_until_it_is_right_again() {
    let scene = Scene::new();
    let spoofed = || {
        let stats = scene.alpha().oncache_json(&["stats", "--json"]);
        stats["spoofed"].as_u64().expect("a number")
    };
    scene.undisturbed(|| {
        let before = spoofed();
        let [a, b, c, d] = scene.web.ip.octets();
        let right = format!("0a:63:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        scene
            .web
            .run(&["ip", "link", "set", "eth0", "address", "0a:63:00:00:00:99"]);
        let mut rounds = Rounds::new(10);
        rounds.patience = Duration::from_millis(50);
        let out = rounds.udp(&scene.web, &scene.client, 0);
        let inward = rounds.udp(&scene.client, &scene.web, 0);
        println!(
            "another address: out {out}; in {inward}; {} frames refused",
            spoofed() - before
        );
        assert_eq!((out.completed, inward.completed), (0, 0));
        assert!(spoofed() > before, "the slow path has refused nothing");
        scene
            .web
            .run(&["ip", "link", "set", "eth0", "address", &right]);
        let fast = until_fast_again(scene.hosts(), &scene.client, &scene.web);
        println!("its own again: fast after {fast:?}");
    });
}

#[test]
fn what_flows_in_after_a_change_of_the_mac_address_ends_with_the_lease() {
    let scene = Scene::with(|config| config.lease("1s"));
    let answering = scene
        .web
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6301)))
        .expect("bind in web");
    answering
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a time-out");
    let bystander = scene
        .mate
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6301)))
        .expect("bind in mate");
    bystander
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a time-out");
    let sender = Sender::new(&scene.client, scene.web.ip, (6300, 6301));
    let mut bytes = [0; 64];
    let hits = scene.maps.hits();
    eventually("the flow is fast both ways", PATIENCE, || {
        if let Ok((length, from)) = answering.recv_from(&mut bytes) {
            answering.send_to(&bytes[..length], from).expect("answer");
        }
        scene.maps.hits() > hits + 100
    });
    scene
        .web
        .run(&["ip", "link", "set", "eth0", "address", "0a:63:00:00:00:99"]);
    let (hits, sent) = (scene.maps.hits(), sender.sent());
    // The program on the way in does not see the container's own address, and the answers, which would
    // show another one, are refused. So no direction renews the lease.
    let mut last = (hits, sent);
    let ended = eventually("the fast path gives it up", NOTICED, || {
        thread::sleep(Duration::from_millis(300));
        let now = (scene.maps.hits(), sender.sent());
        let ended = now.0 == last.0 && now.1 > last.1;
        last = now;
        ended
    });
    println!(
        "with another MAC address and a lease of 1 s: {} of {} datagrams still came in by the fast path, \
         none after {ended:?}",
        last.0 - hits,
        last.1 - sent
    );
    let nothing = bystander.recv(&mut bytes);
    assert!(nothing.is_err(), "something came to the other container");
}

#[test]
fn an_address_that_is_taken_away_inside_answers_nothing() {
    let scene = Scene::new();
    scene.undisturbed(|| {
        let net = format!("{}/24", scene.web.ip);
        scene.web.run(&["ip", "address", "del", &net, "dev", "eth0"]);
        scene.web.run(&["ip", "address", "add", "10.42.1.99/24", "dev", "eth0"]);
        let report = traffic::ping(&scene.client, scene.web.ip, 2);
        assert_eq!(report.received, 0, "{report}");
        // Nor does it get anywhere with one of its own choice.
        let report = traffic::ping(&scene.client, Ipv4Addr::new(10, 42, 1, 99), 2);
        assert_eq!(report.received, 0, "{report}");
        scene.web.sh(&format!(
            "ip address flush dev eth0; ip address add {net} dev eth0; ip route replace default via 10.42.1.1"
        ));
        let fast = until_fast_again(scene.hosts(), &scene.client, &scene.web);
        println!("its own address again: fast after {fast:?}");
    });
}

#[test]
fn a_container_that_vanishes_is_cleaned_up_and_its_address_free() {
    let Scene {
        lab,
        web,
        mate,
        client,
        maps,
    } = Scene::new();
    let alpha = lab.alpha();
    let ip = web.ip;
    let sender = Sender::new(&client, ip, (6300, 6301));
    // As a crash does: the last process is gone, and with it the namespace.
    alpha.run(&["ip", "netns", "del", "web"]);
    drop(web);
    let noticed = eventually("the container is gone", NOTICED, || {
        let known = alpha.status()["containers"].as_array().map(Vec::len);
        known == Some(1) && maps.device_of(ip).is_none() && maps.flows_of(ip).is_empty()
    });
    println!("gone {noticed:?} after its namespace, while a remote container sends to it");
    let links = alpha.run(&["ip", "-br", "link"]);
    assert!(!links.contains("onc-web"), "{links}");
    let sources = alpha.run(&["nft", "list", "table", "bridge", "oncache"]);
    assert!(!sources.contains(&ip.to_string()), "{sources}");

    let (sent, hits) = (sender.sent(), maps.hits());
    let heir = alpha.add_container_with("heir", &["--ip", &ip.to_string()]);
    thread::sleep(Duration::from_millis(500));
    println!(
        "{} datagrams sent to its heir, {} of them by the fast path",
        sender.sent() - sent,
        maps.hits() - hits
    );
    assert!(sender.sent() > sent, "nobody sends any more");
    assert_eq!(maps.hits(), hits);
    drop(sender);
    until_fast([alpha, lab.beta()], &client, &heir);
    until_fast([alpha, lab.beta()], &client, &mate);
}

#[test]
fn a_namespace_without_a_name_goes_on_until_it_is_deleted() {
    let scene = Scene::new();
    let alpha = scene.alpha();
    // The name goes; the namespace lives as long as something is in it, as this test is.
    alpha.run(&["ip", "netns", "del", "web"]);
    thread::sleep(Duration::from_millis(500));
    let report = Rounds::new(100).udp(&scene.client, &scene.web, 0);
    assert_eq!((report.completed, report.lost), (100, 0), "{report}");
    let warnings = alpha.status()["warnings"].to_string();
    println!("{warnings}");
    assert!(
        warnings.contains("container web is connected, but its namespace has lost its name"),
        "{warnings}"
    );
    alpha.remove_container("web");
    let inside = scene.web.run(&["ip", "-br", "link"]);
    assert!(!inside.contains("eth0"), "{inside}");
    assert_eq!(scene.maps.device_of(scene.web.ip), None);
    let again = alpha.add_container_with("web", &["--ip", &scene.web.ip.to_string()]);
    until_fast(scene.hosts(), &scene.client, &again);
}

#[test]
fn a_host_side_device_is_known_by_more_than_its_name() {
    let scene = Scene::new();
    let alpha = scene.alpha();
    let device = scene.maps.device_of(scene.web.ip);
    scene.undisturbed(|| {
        for (what, damage) in [
            ("renamed", "ip link set onc-web name stolen"),
            ("without its alias", "ip link set onc-web alias ''"),
            ("out of the bridge", "ip link set onc-web nomaster"),
            (
                "in another bridge",
                "ip link add other type bridge; ip link set onc-web master other",
            ),
            ("down", "ip link set onc-web down"),
        ] {
            let rounds = thread::spawn({
                let (from, to) = (scene.client.clone(), scene.web.clone());
                move || {
                    let mut rounds = Rounds::lasting(Duration::from_secs(1));
                    rounds.patience = Duration::from_millis(20);
                    rounds.udp(&from, &to, 6400)
                }
            });
            thread::sleep(Duration::from_millis(100));
            alpha.sh(damage);
            let mended = eventually("it is put right", NOTICED, || {
                let link = alpha.run(&["ip", "-d", "link", "show"]);
                let ours = link.split("\n").collect::<Vec<_>>().join(" ");
                ours.contains("onc-web@")
                    && ours.contains("alias oncache container web")
                    && !ours.contains("stolen")
                    && alpha
                        .run(&["ip", "-br", "link", "show", "master", "oncache0", "up"])
                        .contains("onc-web")
            });
            let report = rounds.join().expect("the rounds end");
            println!("{what}: put right after {mended:?}; {report}");
            assert_eq!(report.wrong, 0, "{report}");
            assert_eq!(
                scene.maps.device_of(scene.web.ip),
                device,
                "{what}: the same device"
            );
            until_fast_again(scene.hosts(), &scene.client, &scene.web);
        }
        // Its name does not protect it from being deleted under another one.
        alpha.sh("ip link set onc-web name stolen");
        alpha.remove_container("web");
        let links = alpha.run(&["ip", "-br", "link"]);
        assert!(
            !links.contains("stolen") && !links.contains("onc-web"),
            "{links}"
        );
    });
}

#[test]
fn a_device_moved_to_another_namespace_is_gone() {
    let scene = Scene::new();
    let alpha = scene.alpha();
    let elsewhere = alpha.add_netns("elsewhere");
    scene.undisturbed(|| {
        alpha.run(&["ip", "link", "set", "onc-web", "netns", "elsewhere"]);
        let noticed = scene.until_delivered(false, "the fast path gives it up");
        let known = || alpha.status()["containers"].as_array().map(Vec::len);
        eventually("the container is gone", PATIENCE, || known() == Some(1));
        println!("gone {noticed:?} after its device was moved away");
        let programs = elsewhere.run(&["ip", "-d", "link", "show", "onc-web"]);
        assert!(!programs.contains("tcx"), "{programs}");
        let links = alpha.oncache_json(&["status", "--json"])["cache"]["programs"].to_string();
        assert!(!links.contains("onc-web"), "{links}");
    });
}
