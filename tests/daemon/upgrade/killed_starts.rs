//! Starts that are killed at any moment: the next one heals, and `oncache down` removes all.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache::datapath::pins::ABI;
use oncache_testbed::{Build, Builds, Host, Random, assert_same, until_fast};

/// How long a start takes that nobody kills: the shortest of some. The host is left without a daemon.
fn time_of_start(host: &Host) -> Duration {
    let start = |_| {
        let begun = Instant::now();
        host.start();
        let taken = begun.elapsed();
        host.kill9();
        taken
    };
    (0..5).map(start).min().expect("some starts")
}

/// Begins a start and kills it; returns whether it was ready by then.
fn killed_start(host: &Host, after: Duration) -> bool {
    let before = host.log().len();
    let mut command = host.command("/run/testbed/oncache");
    command.arg("run").arg("--config").arg(host.config_path());
    let log = host.sh("ls /run/testbed/oncache.log").trim().to_owned();
    let log = host.enter(|| std::fs::OpenOptions::new().append(true).open(log));
    let log = log.expect("the host's log");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut daemon = host.spawn(command);
    thread::sleep(after);
    daemon.signal(Signal::SIGKILL);
    daemon
        .wait_within(Duration::from_secs(20))
        .expect("SIGKILL ends it");
    host.log()[before..].contains("ready:")
}

/// Another build, another size of the caches, or the fast path taken away.
fn other_start(builds: &Builds, host: &Host, random: &mut Random) -> &'static str {
    let build = *random.one_of(&[Build::Present, Build::SameAbi, Build::OtherAbi]);
    builds.install(host, build);
    let (config, what) = match random.below(5) {
        0 => (host.default_config().flows(1024), "1024 flows"),
        1 => (host.default_config().extra("attach = \"clsact\""), "clsact"),
        2 => (host.default_config().cache(false), "no fast path"),
        _ => (host.default_config(), "as it was"),
    };
    host.write_config(&config.to_string());
    what
}

#[test]
fn the_next_start_heals() {
    const ROUNDS: u32 = 50;
    let mut random = Random::seeded();
    let builds = Builds::make(ONCACHE, ABI, env!("CARGO_TARGET_TMPDIR"));
    let lab = builds.two_hosts();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    lab.start();
    let client = alpha.add_container("client");
    alpha.add_container("a-container-with-a-long-name");
    alpha.add_netns("guest");
    alpha.add_container_with("guest", &["--netns", "/run/netns/guest"]);
    let server = beta.add_container("server");
    until_fast([alpha, beta], &client, &server);
    alpha.kill9();
    let whole = time_of_start(alpha);
    alpha.start();
    let running = alpha.snapshot();
    let (mut kills, mut unready) = (0, 0);
    for round in 0..ROUNDS {
        alpha.kill9();
        // Up to three in a row, each over what the one before it has left.
        let mut said = Vec::new();
        for _ in 0..=random.below(3) {
            let what = other_start(&builds, alpha, &mut random);
            let after = whole.mul_f64(random.fraction() * 1.1);
            let ready = killed_start(alpha, after);
            said.push(format!("{what}, killed after {after:?}, ready: {ready}"));
            kills += 1;
            unready += u32::from(!ready);
        }
        builds.install(alpha, Build::Present);
        alpha.write_config(&alpha.default_config().to_string());
        alpha.start();
        let now = alpha.snapshot();
        assert_same(&running, &now, &format!("round {round}: {said:#?}"));
    }
    println!(
        "{ROUNDS} rounds: {kills} starts killed within 1.1 of {whole:?}, {unready} of them before they \
         were ready; each time the next start left the host as it was"
    );
    assert!(unready > ROUNDS / 2, "killed too late: {unready}");
    until_fast([alpha, beta], &client, &server);
}

#[test]
fn down_removes_what_a_killed_first_start_has_left() {
    const ROUNDS: u32 = 20;
    let mut random = Random::seeded();
    let builds = Builds::make(ONCACHE, ABI, env!("CARGO_TARGET_TMPDIR"));
    let lab = builds.two_hosts();
    let alpha = lab.alpha();
    let virgin = alpha.snapshot();
    let whole = time_of_start(alpha);
    alpha.oncache_ok(&["down"]);
    assert_same(&virgin, &alpha.snapshot(), "down");
    let mut unready = 0;
    for round in 0..ROUNDS {
        let config = match round % 4 {
            3 => alpha.default_config().extra("attach = \"clsact\""),
            _ => alpha.default_config(),
        };
        alpha.write_config(&config.to_string());
        let after = whole.mul_f64(random.fraction() * 1.1);
        let ready = killed_start(alpha, after);
        unready += u32::from(!ready);
        alpha.oncache_ok(&["down"]);
        let when = format!("round {round}, killed after {after:?}, ready: {ready}");
        assert_same(&virgin, &alpha.snapshot(), &when);
    }
    println!(
        "{ROUNDS} first starts killed within 1.1 of {whole:?}, {unready} of them before they were ready"
    );
}
