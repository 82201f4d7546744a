//! Reloading a daemon's configuration and waiting until it is through with it.

#![allow(dead_code, reason = "no test takes everything")]

use std::time::Duration;

use nix::sys::signal::Signal;
use oncache_testbed::Host;

/// How long a reload may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Writes a configuration, asks for a reload, waits until the daemon is through with it, and returns
/// what it has logged meanwhile.
pub fn reload_with(host: &Host, config: &str) -> Vec<String> {
    host.write_config(config);
    reload(host)
}

/// As [`reload_with`], with the file as it is.
///
/// # Panics
/// If the reload does not end.
pub fn reload(host: &Host) -> Vec<String> {
    let from = host.log().len();
    let ready = host
        .notifications()
        .iter()
        .flat_map(|letter| letter.lines())
        .filter(|line| *line == "READY=1")
        .count();
    host.signal(Signal::SIGHUP);
    assert!(
        host.wait_notified("READY=1", ready + 1, PATIENCE),
        "{}: a reload ends",
        host.name
    );
    let lines: Vec<String> = host.log()[from..].lines().map(str::to_owned).collect();
    println!("{}: {lines:#?}", host.name);
    lines
}
