//! Another build takes over: the same maps where their layout is the same, new ones where it is not.

use std::{
    env,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::ONCACHE;
use oncache::datapath::pins::ABI;
use oncache_testbed::{
    Build, Builds, Host,
    traffic::{Direction, Rounds, Transfer},
    until_fast,
};

use super::left::{pins, tags, wanted_pins};

const FLOWS: u32 = 65536;

/// One daemon ends, by SIGTERM or SIGKILL, and one of another build takes its place.
fn exchange(builds: &Builds, host: &Host, build: Build, killed: bool) {
    builds.install(host, build);
    if killed {
        host.kill9();
    } else {
        host.stop();
    }
    host.start();
}

#[test]
fn builds_take_over_from_each_other_under_traffic() {
    let builds = Builds::make(ONCACHE, ABI, env!("CARGO_TARGET_TMPDIR"));
    let lab = builds.two_hosts();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    lab.start();
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    until_fast([alpha, beta], &client, &server);
    let going = AtomicBool::new(true);
    let rounds = Rounds {
        pause: Duration::from_millis(1),
        patience: Duration::from_secs(5),
        ..Rounds::lasting(Duration::from_secs(120))
    };
    // Up, down, and between builds of one layout and of two.
    let path = [
        Build::SameAbi,
        Build::Present,
        Build::OtherAbi,
        Build::Present,
        Build::SameAbi,
        Build::OtherAbi,
        Build::SameAbi,
    ];
    thread::scope(|scope| {
        let datagrams = scope.spawn(|| rounds.udp_while(&client, &server, 0, &going));
        let transfer = Transfer::new(&client, &server, 0)
            .direction(Direction::Both)
            .pace(2 << 20)
            .start();
        let mut former = Build::Present;
        for (build, killed) in path.into_iter().zip([false, true].into_iter().cycle()) {
            // So that what was counted and learned is worth being kept.
            thread::sleep(Duration::from_millis(300));
            let before = (
                alpha.epoch(),
                alpha.counters().get("egress", "hit"),
                tags(alpha),
            );
            exchange(&builds, alpha, build, killed);
            let after = (
                alpha.epoch(),
                alpha.counters().get("egress", "hit"),
                tags(alpha),
            );
            println!(
                "{former:?} then {build:?}, killed: {killed}; epoch {} then {}, hits {} then {}",
                before.0, after.0, before.1, after.1
            );
            assert_eq!(before.2.len(), 4, "{:?}", before.2);
            let differ = before
                .2
                .iter()
                .filter(|(key, tag)| after.2.get(*key) != Some(tag));
            let changed = if former == Build::Present || build == Build::Present {
                4
            } else {
                0
            };
            assert_eq!(
                (after.2.len(), differ.count()),
                (4, changed),
                "{:?} {:?}",
                before.2,
                after.2
            );
            if former.shares_maps_with(build) {
                assert!(
                    after.0 > before.0,
                    "a start is a new epoch of the same maps"
                );
                assert!(after.1 >= before.1, "nothing counted is lost");
            } else {
                assert!(after.1 < before.1, "other maps");
            }
            assert_eq!(
                pins(alpha),
                wanted_pins(&builds.abi(build), FLOWS, &["onc-client"])
            );
            former = build;
        }
        let report = transfer.stop();
        going.store(false, Ordering::Relaxed);
        let datagrams = datagrams.join().expect("the rounds end");
        println!("{report}\n{datagrams}");
        assert!(report.intact(), "{report}");
        assert_eq!((datagrams.lost, datagrams.wrong), (0, 0), "{datagrams}");
        assert!(datagrams.completed > 500, "{datagrams}");
    });
    until_fast([alpha, beta], &client, &server);
    let attached = alpha.snapshot().section("program").to_vec();
    println!("{}", attached.join("\n"));
    assert_eq!(
        attached.len(),
        4,
        "each program is attached once: {attached:?}"
    );
}

/// By hand: `ONCACHE_FORMER=FILE cargo test --test daemon former_release -- --ignored --nocapture`, FILE being the
/// binary of a former release.
#[test]
#[ignore = "needs a former release"]
fn a_former_release_is_taken_over_under_traffic() {
    let former = env::var("ONCACHE_FORMER").expect("ONCACHE_FORMER: a former release");
    let builds = Builds::make(ONCACHE, ABI, env!("CARGO_TARGET_TMPDIR"));
    let lab = builds.two_hosts();
    for host in lab.all() {
        builds.install_file(host, Path::new(&former));
    }
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    until_fast([alpha, beta], &client, &server);
    let going = AtomicBool::new(true);
    let rounds = Rounds {
        pause: Duration::from_millis(1),
        patience: Duration::from_secs(5),
        ..Rounds::lasting(Duration::from_secs(60))
    };
    thread::scope(|scope| {
        let datagrams = scope.spawn(|| rounds.udp_while(&client, &server, 0, &going));
        let transfer = Transfer::new(&client, &server, 0)
            .direction(Direction::Both)
            .pace(2 << 20)
            .start();
        // Forth, back and forth again.
        for present in [true, false, true] {
            for host in lab.all() {
                thread::sleep(Duration::from_millis(500));
                match present {
                    true => builds.install(host, Build::Present),
                    false => builds.install_file(host, Path::new(&former)),
                }
                host.stop();
                host.start();
            }
        }
        thread::sleep(Duration::from_secs(1));
        let report = transfer.stop();
        going.store(false, Ordering::Relaxed);
        let datagrams = datagrams.join().expect("the rounds end");
        println!("{report}\n{datagrams}");
        assert!(report.intact(), "{report}");
        assert_eq!((datagrams.lost, datagrams.wrong), (0, 0), "{datagrams}");
    });
    until_fast([alpha, beta], &client, &server);
}
