//! What the service manager asks of the daemon and hears from it: readiness, reloads, the watchdog;
//! and a mount namespace of the daemon's own, as the hardened unit has.

use std::{io, os::unix::process::CommandExt as _, process::Command, thread, time::Duration};

use crate::ONCACHE;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use oncache_testbed::{Host, Lab, PATIENCE, assert_same, eventually, traffic, until_fast};

/// Where an `nft` of the tests' own is put before the real one.
const PROGRAMS: &str = "/run/testbed/bin";

/// Puts a shell script before the real `nft` that runs `preface` first.
fn wrap_nft(host: &Host, preface: &str) {
    host.sh(&format!("mkdir -p {PROGRAMS}"));
    let real = host.sh("command -v nft");
    let text = format!("#!/bin/sh\n{preface}\nexec {} \"$@\"\n", real.trim());
    host.write_file("bin/nft", &text);
    host.sh(&format!("chmod +x {PROGRAMS}/nft"));
}

/// Has a command find programs in [`PROGRAMS`] first.
fn with_programs(command: &mut Command) {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{PROGRAMS}:{path}"));
}

fn count(letters: &[String], line: &str) -> usize {
    let lines = letters.iter().flat_map(|letter| letter.lines());
    lines.filter(|found| *found == line).count()
}

/// `CLOCK_MONOTONIC` in microseconds, as sd_notify(3) wants it.
fn monotonic_usec() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a monotonic clock");
    u64::try_from(now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000).expect("a time after the boot")
}

/// Reloads and returns the messages that this made, watchdog aside.
fn reload(host: &Host) -> Vec<String> {
    let before = host.notifications();
    host.signal(Signal::SIGHUP);
    let readied = count(&before, "READY=1") + 1;
    assert!(
        host.wait_notified("READY=1", readied, PATIENCE),
        "the reload does not end"
    );
    without_watchdog(host.notifications().split_off(before.len()))
}

/// The messages but for those that come by the clock, between any others.
fn without_watchdog(mut letters: Vec<String>) -> Vec<String> {
    letters.retain(|letter| letter.trim() != "WATCHDOG=1");
    letters
}

/// What sd_notify(3) asks of a reload: one message with `RELOADING=1` and the time, taken after the
/// signal, and then one with `READY=1`.
fn assert_announced(letters: &[String], asked: u64) -> String {
    let [begin, end] = letters else {
        panic!("not two messages: {letters:#?}");
    };
    let lines: Vec<&str> = begin.lines().collect();
    let [reloading, stamp] = lines[..] else {
        panic!("not one message of two lines: {begin:?}");
    };
    assert_eq!(reloading, "RELOADING=1");
    let stamp = stamp.strip_prefix("MONOTONIC_USEC=").expect("the time");
    let stamp: u64 = stamp.parse().expect("a number of microseconds");
    println!("asked at {asked}, begun at {stamp}");
    assert!(
        (asked..=monotonic_usec()).contains(&stamp),
        "systemd takes an older time for that of another reload"
    );
    let lines: Vec<&str> = end.lines().collect();
    let [ready, status] = lines[..] else {
        panic!("not one message of two lines: {end:?}");
    };
    assert_eq!(ready, "READY=1");
    status.strip_prefix("STATUS=").expect("a status").to_owned()
}

#[test]
fn a_reload_is_announced_and_ended_even_if_it_is_refused() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    alpha.start();
    let first = alpha.notifications().swap_remove(0);
    assert!(first.starts_with("READY=1\nSTATUS="), "{first}");

    let asked = monotonic_usec();
    let status = assert_announced(&reload(alpha), asked);
    println!("{status}");
    assert!(status.starts_with("alpha at "), "{status}");

    let good = alpha.default_config().to_string();
    let bad = good
        .replace("vni = 42", "vni = 0")
        .replace("10.42.1.0/24", "10.42.1.7/24");
    alpha.write_config(&bad);
    let before = alpha.snapshot();
    let asked = monotonic_usec();
    let status = assert_announced(&reload(alpha), asked);
    println!("{status}");
    assert!(
        status.starts_with("reload refused, the running configuration stays: "),
        "{status}"
    );
    // Two faults, two lines in the log, one line here.
    for fault in ["overlay.vni \"0\"", "overlay.subnet \"10.42.1.7/24\""] {
        assert!(status.contains(fault), "{fault} in {status}");
    }
    assert_same(&before, &alpha.snapshot(), "after a refused reload");

    alpha.write_config(&good);
    let asked = monotonic_usec();
    let status = assert_announced(&reload(alpha), asked);
    assert!(status.starts_with("alpha at "), "{status}");

    alpha.signal(Signal::SIGTERM);
    assert!(alpha.wait_notified("STOPPING=1", 1, PATIENCE));
}

#[test]
fn a_reload_that_is_asked_for_during_the_start_waits_for_its_end() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    // The first nft that the starting daemon runs sends it the signal.
    wrap_nft(
        alpha,
        "[ -e /run/testbed/asked ] || { : >/run/testbed/asked; kill -HUP $PPID; }",
    );
    alpha
        .try_start_with(with_programs)
        .expect("the signal does not end it");
    assert!(alpha.wait_notified("READY=1", 2, PATIENCE));
    let letters = without_watchdog(alpha.notifications());
    println!("{letters:#?}");
    assert!(letters[0].starts_with("READY=1\n"), "ready first");
    assert!(letters[1].starts_with("RELOADING=1\n"), "then the reload");
}

#[test]
fn an_end_that_is_asked_for_during_the_start_comes_at_once() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    wrap_nft(alpha, "kill -TERM $PPID; exec sleep 5");
    let error = alpha
        .try_start_with(with_programs)
        .expect_err("it was asked to end");
    println!("{error}");
    assert!(
        error.starts_with("it ended before it was ready, with exit status: 0"),
        "{error}"
    );
    // What it had begun the next one ends.
    alpha.start();
    alpha.oncache_ok(&["down"]);
}

#[test]
fn the_watchdog_is_not_fed_while_a_reconciliation_hangs() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    wrap_nft(
        alpha,
        "while [ -e /run/testbed/hold ]; do : >/run/testbed/held; sleep 0.05; done",
    );
    alpha
        .try_start_with(|command| {
            with_programs(command);
            command.env("WATCHDOG_USEC", "1000000");
        })
        .expect("a start");
    let fed = || count(&alpha.notifications(), "WATCHDOG=1");
    // At twice the rate that it asks for.
    let begun = fed();
    assert!(alpha.wait_notified("WATCHDOG=1", begun + 6, PATIENCE));

    alpha.sh(": >/run/testbed/hold; ip link set oncache-vx0 down");
    eventually("a reconciliation hangs", PATIENCE, || {
        alpha.enter(|| std::path::Path::new("/run/testbed/held").exists())
    });
    let hanging = fed();
    thread::sleep(Duration::from_secs(3));
    let after = fed();
    println!("fed {hanging} times, {after} times after it hung for three seconds");
    assert_eq!(after, hanging, "fed by something that does not hang");

    alpha.sh("rm /run/testbed/hold");
    assert!(alpha.wait_notified("WATCHDOG=1", hanging + 2, PATIENCE));
}

/// Gives a process a mount namespace of its own in which nothing of `/run` can be written but its
/// own directory, as systemd does for `ProtectSystem=strict` and `RuntimeDirectory=oncache`, and
/// from which no mount spreads.
fn confine() -> io::Result<()> {
    let nothing = None::<&str>;
    let bind = |at: &str| mount(Some(at), at, nothing, MsFlags::MS_BIND, nothing);
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        nothing,
    )?;
    bind("/run/oncache")?;
    mount(nothing, "/run", nothing, read_only, nothing)?;
    Ok(())
}

#[test]
fn a_confined_daemon_names_namespaces_for_the_whole_host() {
    let lab = Lab::two_hosts(ONCACHE);
    let (alpha, beta) = (lab.alpha(), lab.beta());
    alpha.sh("mkdir -p /run/oncache; ip netns add guest");
    let untouched = alpha.snapshot();
    let host = alpha.mntns_path();
    let start = || {
        alpha.try_start_with(|command| {
            command.args(["--mount-namespace", &host]);
            // SAFETY: system calls on constants only, between fork and exec.
            unsafe { command.pre_exec(confine) };
        })
    };
    start().expect("a start");
    beta.start();

    let server = beta.add_container("server");
    let web = alpha.add_container("web");
    until_fast([alpha, beta], &web, &server);
    let listed = alpha.sh("ip netns list; stat -fc %T /run/netns/web");
    println!("{listed}");
    assert!(
        listed.contains("web") && listed.contains("nsfs"),
        "{listed}"
    );

    // A namespace that the daemon's own mount namespace has never seen.
    alpha.sh("ip netns add later");
    for name in ["guest", "later"] {
        let path = format!("/run/netns/{name}");
        let container = alpha.add_container_with(name, &["--netns", &path]);
        assert!(traffic::ping(&container, server.ip, 1).lossless(), "{name}");
    }

    // The next daemon finds them, too.
    assert!(alpha.stop().success());
    start().expect("a second start");
    let added = alpha.add_container("second");
    assert!(traffic::ping(&added, server.ip, 1).lossless());

    alpha.oncache_ok(&["container", "del", "web"]);
    let left = alpha.sh("ls /run/netns");
    println!(
        "left: {}",
        left.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    assert_eq!(left, "guest\nlater\nsecond\n");

    alpha.oncache_ok(&["down"]);
    alpha.sh("ip netns del later");
    assert_same(&untouched, &alpha.snapshot(), "after down");
}

#[test]
fn a_mount_namespace_that_is_none_is_refused_before_anything_is_done() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    let untouched = alpha.snapshot();
    for (path, why) in [
        ("/proc/self/ns/net", "it is something else"),
        ("/proc/1/ns/nothing", "No such file"),
        ("/etc/passwd", "it is something else"),
    ] {
        let from = alpha.log().len();
        alpha
            .try_start_with(|command| {
                command.args(["--mount-namespace", path]);
            })
            .expect_err("no mount namespace");
        let lines = alpha.log_since(from);
        let said = lines.last().expect("a reason");
        println!("{said}");
        assert!(
            said.starts_with(&format!("oncache: enter mount namespace {path}: {why}")),
            "{said}"
        );
    }
    assert_same(
        &untouched,
        &alpha.snapshot(),
        "after starts that were refused",
    );
}
