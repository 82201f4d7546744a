//! What the tests of the binary share: two hosts, what the daemon counts, and patience.

#![allow(dead_code, reason = "no test takes everything")]

use std::{
    process::Output,
    thread,
    time::{Duration, Instant},
};

use oncache_testbed::{
    Container, Host, Lab, Snapshot,
    traffic::{self, Rounds},
};
use serde_json::Value;

/// The binary under test.
pub const ONCACHE: &str = env!("CARGO_BIN_EXE_oncache");

/// How long anything may take that the daemon does by itself.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Two hosts, nothing running.
pub fn two_hosts() -> Lab {
    Lab::two_hosts(ONCACHE)
}

/// Waits until something holds, and returns how long that took.
///
/// # Panics
/// If it does not within `patience`; `what` says what was waited for.
pub fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < patience, "not in {patience:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

/// Packets that the fast path has carried on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hits {
    pub egress: u64,
    pub ingress: u64,
}

impl Hits {
    pub fn of(host: &Host) -> Self {
        let hits = |program| counter(host, program, "hit");
        Self {
            egress: hits("egress"),
            ingress: hits("ingress"),
        }
    }

    /// Whether both directions count more than `before`.
    pub fn beyond(self, before: Self) -> bool {
        self.egress > before.egress && self.ingress > before.ingress
    }
}

/// A counter of `oncache stats`; what is not listed is zero.
pub fn counter(host: &Host, program: &str, reason: &str) -> u64 {
    let stats = host.oncache_json(&["stats", "--json"]);
    let counts = stats["counters"].as_array().expect("a list of counters");
    let found = counts
        .iter()
        .find(|count| count["program"] == program && count["reason"] == reason);
    found.map_or(0, |count| count["packets"].as_u64().expect("a number"))
}

/// The epoch in force.
pub fn epoch(host: &Host) -> u64 {
    status(host)["cache"]["epoch"]
        .as_u64()
        .expect("an epoch: is the fast path on?")
}

/// `oncache status --json`.
pub fn status(host: &Host) -> Value {
    host.oncache_json(&["status", "--json"])
}

/// Exchanges datagrams between containers of two hosts until the fast path carries them in both
/// directions on both hosts; no datagram may be lost or damaged. Returns how long that took.
pub fn until_fast(hosts: [&Host; 2], from: &Container, to: &Container) -> Duration {
    let before = hosts.map(Hits::of);
    eventually("the fast path carries datagrams", PATIENCE, || {
        let report = Rounds::new(20).udp(from, to, 0);
        assert_eq!(report.completed, 20, "{report}");
        hosts
            .iter()
            .zip(before)
            .all(|(host, before)| Hits::of(host).beyond(before))
    })
}

/// Waits until containers of two hosts reach each other again, then as [`until_fast`].
pub fn until_fast_again(hosts: [&Host; 2], from: &Container, to: &Container) -> Duration {
    let begun = Instant::now();
    eventually("the containers reach each other", PATIENCE, || {
        traffic::ping(from, to.ip, 1).lossless()
    });
    until_fast(hosts, from, to);
    begun.elapsed()
}

/// Fails with the difference if a host is not as it was.
pub fn assert_same(before: &Snapshot, after: &Snapshot, when: &str) {
    assert!(before == after, "{when}:\n{}", before.diff(after));
}

/// Waits until a host is as it was, and returns how long that took.
pub fn until_same(host: &Host, wanted: &Snapshot, patience: Duration, when: &str) -> Duration {
    let begun = Instant::now();
    loop {
        let now = host.snapshot();
        if now == *wanted {
            return begun.elapsed();
        }
        assert!(
            begun.elapsed() < patience,
            "{when}, after {patience:?}:\n{}",
            wanted.diff(&now)
        );
    }
}

/// Runs `oncache` where it has to fail, and returns its one line of complaint.
///
/// # Panics
/// If it does not end with status 1, prints anything else to standard error, or anything to
/// standard output.
pub fn refused(host: &Host, arguments: &[&str]) -> String {
    let output = host.oncache(arguments);
    assert!(
        output.stdout.is_empty(),
        "{arguments:?} prints {}",
        String::from_utf8_lossy(&output.stdout)
    );
    complaint(arguments, &output)
}

/// The one line on standard error of a command that ended with status 1.
pub fn complaint(arguments: &[&str], output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    let line = text.trim_end_matches('\n');
    assert!(
        !line.is_empty() && !line.contains('\n'),
        "{arguments:?}: not one line:\n{text}"
    );
    line.to_owned()
}

/// The lines that the daemon has logged since the log was `from` bytes long.
pub fn log_since(host: &Host, from: usize) -> Vec<String> {
    host.log()[from..].lines().map(str::to_owned).collect()
}
