//! The configuration changes under traffic: flows that a change does not concern lose nothing, and what
//! it does concern follows at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::ONCACHE;
use crate::pinned_maps::PinnedMaps;
use oncache_testbed::{
    Container, Host, Lab, PATIENCE, Peer, eventually,
    traffic::{Datagrams, Direction, Rounds, Transfer, TransferHandle},
    until_fast, until_fast_again,
};

/// Traffic of two hosts that no change of the others' configuration concerns.
struct Bystanders {
    transfer: TransferHandle,
    over: Arc<AtomicBool>,
    datagrams: thread::JoinHandle<u64>,
}

impl Bystanders {
    /// TCP both ways, and datagrams, one a millisecond, until they are judged.
    fn between(from: &Container, to: &Container) -> Self {
        let transfer = Transfer::new(from, to, 0)
            .direction(Direction::Both)
            .pace(4_000_000)
            .start();
        let over = Arc::new(AtomicBool::new(false));
        let datagrams = thread::spawn({
            let (from, to, over) = (from.clone(), to.clone(), Arc::clone(&over));
            move || {
                let mut whole = 0;
                while !over.load(Ordering::Relaxed) {
                    let mut datagrams = Datagrams::new(1000, 200);
                    datagrams.pause = Duration::from_millis(1);
                    let report = datagrams.run(&from, &to, 0);
                    assert_eq!(
                        (report.sent, report.whole, report.damaged),
                        (1000, 1000, 0),
                        "{report}"
                    );
                    whole += report.whole;
                }
                whole
            }
        });
        Self {
            transfer,
            over,
            datagrams,
        }
    }

    fn have_lost_nothing(self) {
        self.over.store(true, Ordering::Relaxed);
        let report = self.transfer.stop();
        println!("not concerned: {report}");
        assert!(report.intact(), "{report}");
        let whole = self.datagrams.join().expect("no datagram is missing");
        println!("not concerned: {whole} datagrams, all of them whole");
        assert!(whole > 1000);
    }
}

/// Kernel ids of the attached programs.
fn programs(host: &Host) -> Vec<u64> {
    let status = host.status();
    let programs = status["cache"]["programs"].as_array().expect("programs");
    let id = |program: &serde_json::Value| program["program_id"].as_u64().expect("an id");
    programs.iter().map(id).collect()
}

fn is_refused(lines: &[String], word: &str) {
    let errors: Vec<_> = lines.iter().filter(|line| line.contains("ERROR")).collect();
    let [line] = errors[..] else {
        panic!("not one line of complaint: {lines:#?}");
    };
    assert!(
        line.contains("reload refused, the running configuration stays") && line.contains(word),
        "{line}"
    );
}

fn peer(host: &Host, address: [u8; 4], subnet: &str) -> Peer {
    Peer {
        address: address.into(),
        subnet: subnet.to_owned(),
        ..host.as_peer()
    }
}

#[test]
fn what_a_change_does_not_concern_goes_on() {
    let lab = Lab::hosts(3, ONCACHE);
    let (alpha, beta, gamma) = (lab.alpha(), lab.beta(), lab.gamma());
    let config = |peers| alpha.default_config().peers(peers);
    let only_beta = config(vec![beta.as_peer()]);
    alpha.write_config(&only_beta.to_string());
    lab.start();
    let client = alpha.add_container("client");
    let near = beta.add_container("near");
    let far = gamma.add_container("far");
    until_fast([alpha, beta], &client, &near);
    thread::sleep(Duration::from_millis(500));
    let bystanders = Bystanders::between(&client, &near);

    println!("nothing changes, then what no flow depends on:");
    let (before, loaded) = (alpha.epoch(), programs(alpha));
    alpha.reload_with(&only_beta.to_string());
    let shorter = only_beta.clone().lease("5s");
    alpha.reload_with(&shorter.to_string());
    assert_eq!(
        alpha.status()["cache"]["lease_ms"],
        4999,
        "the lease is in force"
    );
    let from = alpha.log().len();
    alpha.reload_with(&shorter.extra("[log]\nlevel = \"error\"").to_string());
    assert!(
        !alpha.log()[from..].contains("reloaded"),
        "the log is not silent"
    );
    let lines = alpha.reload_with(&only_beta.to_string());
    assert!(
        lines.iter().any(|line| line.contains("reloaded")),
        "{lines:#?}"
    );
    assert_eq!((alpha.epoch(), programs(alpha)), (before, loaded));

    println!("bad files:");
    let faulty = only_beta
        .to_string()
        .replace("vni = 42", "vni = 0\nports = 4789");
    let lines = alpha.reload_with(&faulty);
    is_refused(&lines, "overlay.vni");
    is_refused(&lines, "overlay.ports");
    // One that only the kernel refuses, half way: another program's route to the new peer's subnet.
    alpha.sh("ip route add 10.42.3.0/24 via 192.168.50.99 dev eth1");
    let lines = alpha.reload_with(&config(vec![beta.as_peer(), gamma.as_peer()]).to_string());
    is_refused(&lines, "10.42.3.0/24");
    assert_eq!(alpha.status()["peers"].as_array().map(Vec::len), Some(1));
    alpha.sh("ip route del 10.42.3.0/24 via 192.168.50.99 dev eth1");
    let neighbours = alpha.run(&["ip", "neigh", "show", "dev", "oncache-vx0"]);
    assert!(!neighbours.contains("10.42.3.0"), "{neighbours}");

    println!("a peer comes:");
    alpha.reload_with(&config(vec![beta.as_peer(), gamma.as_peer()]).to_string());
    let took = until_fast_again([alpha, gamma], &client, &far);
    println!("  fast after {took:?}");

    println!("it gets another underlay address:");
    gamma.sh("ip address del 192.168.50.13/24 dev eth1; ip address add 192.168.50.23/24 dev eth1");
    let moved = gamma.default_config().to_string();
    gamma.reload_with(&moved.replace("192.168.50.13", "192.168.50.23"));
    let renumbered = peer(gamma, [192, 168, 50, 23], gamma.subnet());
    alpha.reload_with(&config(vec![beta.as_peer(), renumbered]).to_string());
    let took = until_fast_again([alpha, gamma], &client, &far);
    println!("  fast after {took:?}");

    println!("and another subnet:");
    gamma.remove_container("far");
    let elsewhere = moved
        .replace("192.168.50.13", "192.168.50.23")
        .replace(gamma.subnet(), "10.42.33.0/24");
    gamma.reload_with(&elsewhere);
    let far = gamma.add_container("far");
    let renumbered = peer(gamma, [192, 168, 50, 23], "10.42.33.0/24");
    let with_gamma = config(vec![beta.as_peer(), renumbered]);
    alpha.reload_with(&with_gamma.to_string());
    let took = until_fast_again([alpha, gamma], &client, &far);
    println!("  {} fast after {took:?}", far.ip);

    println!("caches of another size:");
    let small = with_gamma.clone().flows(1024);
    alpha.reload_with(&small.to_string());
    assert_eq!(alpha.status()["cache"]["flows"], 1024);
    until_fast([alpha, beta], &client, &near);

    println!("another mark mask:");
    alpha.reload_with(&small.mark_mask("0x00ffff00").to_string());
    until_fast([alpha, beta], &client, &near);
    alpha.reload_with(&with_gamma.to_string());
    until_fast([alpha, beta], &client, &near);

    println!("the fast path is switched off and on:");
    alpha.reload_with(&with_gamma.clone().cache(false).to_string());
    assert!(alpha.status()["cache"].is_null());
    alpha.reload_with(&with_gamma.to_string());
    until_fast([alpha, beta], &client, &near);

    println!("the peer goes:");
    until_fast([alpha, gamma], &client, &far);
    alpha.reload_with(&only_beta.to_string());
    until_fast([alpha, beta], &client, &near);
    bystanders.have_lost_nothing();
}

/// Packets that a device of a container has taken in, and those of them that went by its host-side
/// device: the slow path's.
fn taken_in(host: &Host, container: &Container, device: &str) -> (u64, u64) {
    let packets = |text: &str, device: &str, column: usize| -> u64 {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(&format!("{device}:")))
            .unwrap_or_else(|| panic!("{device} in {text}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        words[column].parse().expect("a number")
    };
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev").expect("a list of devices");
    // The slow path's last: what comes between the two looks must not seem to be the fast path's.
    let all = packets(&container.enter(read), "eth0", 1);
    (all, packets(&host.enter(read), device, 9))
}

#[test]
fn a_peer_that_goes_is_not_carried_any_more_and_leaves_no_traces() {
    let lab = Lab::hosts(3, ONCACHE);
    let (alpha, beta, gamma) = (lab.alpha(), lab.beta(), lab.gamma());
    lab.start();
    let [client, lone] = ["client", "lone"].map(|name| alpha.add_container(name));
    let near = beta.add_container("near");
    let far = gamma.add_container("far");
    until_fast([alpha, beta], &client, &near);
    until_fast([alpha, gamma], &lone, &far);
    thread::sleep(Duration::from_millis(500));
    let maps = PinnedMaps::of(alpha, 65536);
    assert!(maps.traces_of(far.ip).0 > 0 && maps.traces_of(far.ip).1);

    let going = Arc::new(AtomicBool::new(true));
    let sending = thread::spawn({
        let (from, to, going) = (far.clone(), lone.clone(), Arc::clone(&going));
        move || {
            let mut rounds = Rounds::lasting(Duration::from_secs(120));
            rounds.patience = Duration::from_millis(2);
            rounds.udp_while(&from, &to, 6200, &going)
        }
    });
    let (all, slow) = taken_in(alpha, &lone, "onc-lone");
    eventually("the flow is fast", PATIENCE, || {
        let (all_then, slow_then) = taken_in(alpha, &lone, "onc-lone");
        let fast = (all_then - all).saturating_sub(slow_then - slow);
        println!(
            "a peer: {fast} of {} packets by the fast path",
            all_then - all
        );
        fast > 100
    });

    let beta_alone = alpha.default_config().peers(vec![beta.as_peer()]);
    alpha.reload_with(&beta_alone.to_string());
    let (all, slow) = taken_in(alpha, &lone, "onc-lone");
    let hits = maps.hits();
    let refused_before = alpha.counters().get("ingress", "not-peer");
    let mut refused = 0;
    eventually("the former peer sends on", PATIENCE, || {
        refused = alpha.counters().get("ingress", "not-peer") - refused_before;
        refused > 100
    });
    let (all_then, slow_then) = taken_in(alpha, &lone, "onc-lone");
    println!(
        "no peer: {} packets, {} by the slow path, {refused} counted as not-peer, {} by the fast path",
        all_then - all,
        slow_then - slow,
        maps.hits() - hits
    );
    assert!(
        all_then - all <= slow_then - slow,
        "packets of no peer by the fast path"
    );
    assert_eq!(
        maps.traces_of(far.ip),
        (0, false),
        "traces of the peer's container"
    );
    assert!(maps.traces_of(near.ip).1, "those of the other peer stay");
    going.store(false, Ordering::Relaxed);
    let report = sending.join().expect("the sender ends");
    println!("the former peer: {report}");
}

#[test]
fn what_departed_while_no_daemon_ran_goes_at_the_first_start_that_knows() {
    let lab = Lab::hosts(3, ONCACHE);
    let (alpha, beta, gamma) = (lab.alpha(), lab.beta(), lab.gamma());
    lab.start();
    let client = alpha.add_container("client");
    let [near, far] = [beta, gamma].map(|host| host.add_container("server"));
    until_fast([alpha, beta], &client, &near);
    until_fast([alpha, gamma], &client, &far);
    let maps = PinnedMaps::of(alpha, 65536);
    let traces = || [near.ip, far.ip].map(|ip| (maps.traces_of(ip).0 > 0, maps.traces_of(ip).1));
    assert_eq!(traces(), [(true, true); 2]);
    alpha.kill9();

    // A start that does not get as far as to know who the peers are takes nothing away.
    alpha.write_config("[node");
    let refused = alpha.try_start().expect_err("a start with a broken file");
    assert!(refused.contains("not valid TOML"), "{refused}");
    assert_eq!(
        traces(),
        [(true, true); 2],
        "after a start that was refused"
    );

    let beta_alone = alpha.default_config().peers(vec![beta.as_peer()]);
    alpha.write_config(&beta_alone.to_string());
    alpha.start();
    // What there is of near is of an ended epoch, and stays until the first sweep, which may be before
    // this line.
    let [of_near, of_far] = traces();
    println!("traces of near and far after the start: {of_near:?}, {of_far:?}");
    assert_eq!(of_far, (false, false));
    until_fast([alpha, beta], &client, &near);
}
