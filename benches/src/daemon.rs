//! What a daemon takes: time until it is ready, time to reload, memory.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use oncache_testbed::Host;

/// How long a reload may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time of a start to readiness, on a host where nothing is left of an earlier daemon; containers
/// are gone after.
pub fn cold_start(host: &Host) -> Duration {
    host.stop();
    host.oncache_ok(&["down"]);
    start(host)
}

/// Time of a start to readiness, where all is as the last daemon has left it.
pub fn warm_start(host: &Host) -> Duration {
    host.stop();
    start(host)
}

fn start(host: &Host) -> Duration {
    let begun = Instant::now();
    host.start();
    begun.elapsed()
}

/// Time from SIGHUP until the daemon says that it is ready again, with that configuration.
pub fn reload(host: &Host, config: &str) -> Result<Duration, String> {
    let ready = |letters: Vec<String>| {
        let lines = letters.iter().flat_map(|letter| letter.lines());
        lines.filter(|line| *line == "READY=1").count()
    };
    host.write_config(config);
    let before = ready(host.notifications());
    let begun = Instant::now();
    host.signal(Signal::SIGHUP);
    if !host.wait_notified("READY=1", before + 1, PATIENCE) {
        return Err(format!("{}: no reload within {PATIENCE:?}", host.name));
    }
    let took = begun.elapsed();
    let letters = host.notifications();
    match letters.iter().flat_map(|letter| letter.lines()).next_back() {
        Some(line) if line.contains("refused") => Err(format!("{}: {line}", host.name)),
        _ => Ok(took),
    }
}

/// Resident memory in MB: now, and the most there was.
pub fn memory(host: &Host) -> Result<(f64, f64), String> {
    let pid = host
        .daemon_pid()
        .ok_or_else(|| format!("{}: the daemon has ended", host.name))?;
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        number
            .map(|kibibytes| kibibytes * 1024.0 / 1e6)
            .ok_or_else(|| format!("{path}: no {name}"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}
