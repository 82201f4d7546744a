//! Whatever others do to addresses, devices, routes and neighbours of their own, and however fast: what is
//! ours is read, mended and obeyed meanwhile.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache_testbed::{Host, Lab, PATIENCE, eventually};

/// How long each kind of churn goes on.
const CHURN: Duration = Duration::from_secs(2);

/// One round of `ip -batch`: what is made is taken away again.
fn batch(count: u32, make: impl Fn(u32) -> String, take: impl Fn(u32) -> String) -> String {
    let mut text = String::new();
    for number in 0..count {
        writeln!(text, "{}", make(number)).expect("a line");
    }
    for number in 0..count {
        writeln!(text, "{}", take(number)).expect("a line");
    }
    text
}

/// The number as the two low bytes of an address.
fn low(number: u32) -> String {
    format!("{}.{}", number >> 8, number & 0xff)
}

fn kinds() -> Vec<(&'static str, String)> {
    let both = |count, what: &dyn Fn(&str, u32) -> String| {
        batch(count, |it| what("add", it), |it| what("del", it))
    };
    vec![
        (
            "addresses",
            both(10_000, &|verb, it| {
                format!("address {verb} 172.20.{}/32 dev other0", low(it))
            }),
        ),
        (
            "routes",
            both(3_000, &|verb, it| {
                format!("route {verb} 172.21.{}/32 dev other0", low(it))
            }),
        ),
        (
            "neighbours",
            both(800, &|verb, it| {
                format!(
                    "neigh {verb} 172.22.{} lladdr 02:00:00:00:00:05 dev other0",
                    low(it)
                )
            }),
        ),
        (
            "devices",
            batch(
                40,
                |it| format!("link add name churn{it} type bridge"),
                |it| format!("link del churn{it}"),
            ),
        ),
    ]
}

/// Goes on with rounds of a batch on the host until told to stop; returns how many there were.
fn churn(host: &Host, text: &str, stop: &AtomicBool) -> u32 {
    let file = host.write_file("churn", text);
    let file = file.to_str().expect("a path");
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        host.run(&["ip", "-batch", file]);
        rounds += 1;
    }
    rounds
}

#[test]
fn what_others_change_at_any_rate_keeps_nothing_of_ours_from_being_done() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    alpha.sh("ip link add other0 type veth peer name other1
              ip link set other0 up; ip link set other1 up");
    lab.start();
    let (client, server) = (
        alpha.add_container("client"),
        lab.beta().add_container("server"),
    );
    oncache_testbed::until_fast([alpha, lab.beta()], &client, &server);
    let vxlan_neighbour = "ip -4 neigh show dev oncache-vx0 to 10.42.2.0";
    let right = alpha.sh(vxlan_neighbour);

    for (what, text) in kinds() {
        let (from, in_part) = (alpha.log().len(), alpha.invalidations("mended-in-part"));
        let stop = AtomicBool::new(false);
        let (rounds, mended) = scope(|scope| {
            let churning = scope.spawn(|| churn(alpha, &text, &stop));
            let begun = Instant::now();
            let mut mended = 0;
            let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                while begun.elapsed() < CHURN {
                    // Somebody hurts what is ours; and a comparison is due because of a device.
                    alpha.sh(
                        "ip neigh replace 10.42.2.0 lladdr 02:00:00:00:00:77 dev oncache-vx0
                              ip link set other1 alias heard",
                    );
                    eventually("the neighbour is mended", PATIENCE, || {
                        alpha.sh(vxlan_neighbour) == right
                    });
                    mended += 1;
                }
                alpha.oncache_ok(&["check", "--config", "/run/testbed/config.toml"]);
                let reloads = alpha.log().matches("reloaded").count();
                alpha.signal(Signal::SIGHUP);
                eventually("the reload is done", PATIENCE, || {
                    alpha.log().matches("reloaded").count() > reloads
                });
                alpha.add_container("another");
                alpha.remove_container("another");
                sleep(Duration::from_millis(50));
            }));
            stop.store(true, Ordering::Relaxed);
            let rounds = churning.join().expect("the churn ends");
            if let Err(panic) = work {
                std::panic::resume_unwind(panic);
            }
            (rounds, mended)
        });
        println!(
            "{what}: {rounds} rounds of {} changes, mended {mended} times",
            text.lines().count()
        );
        let lines = alpha.log_since(from);
        let complaints: Vec<_> = lines
            .iter()
            .filter(|line| line.contains("ERROR") || line.contains("attempts"))
            .collect();
        assert!(complaints.is_empty(), "{what}: {complaints:#?}");
        let now = alpha.invalidations("mended-in-part");
        assert_eq!(now, in_part, "{what}: {lines:#?}");
    }
    oncache_testbed::until_fast([alpha, lab.beta()], &client, &server);
}
