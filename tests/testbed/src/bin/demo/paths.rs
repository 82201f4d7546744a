//! The two paths, and how the hosts are made to take one.

use std::{fmt, time::Duration};

use nix::sys::signal::Signal;
use oncache_testbed::{Host, Lab};

/// Which way packets go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The slow path alone: `cache.enabled = false`.
    Plain,
    /// With the caches.
    Cached,
}

impl Path {
    /// In the order of each round.
    pub const BOTH: [Self; 2] = [Self::Plain, Self::Cached];

    /// The host's configuration file.
    pub fn config(self, host: &Host) -> String {
        host.default_config()
            .cache(self == Self::Cached)
            .to_string()
    }

    /// Tells both daemons, and makes sure that they have done it.
    pub fn take(self, lab: &Lab) -> Result<(), String> {
        for host in lab.all() {
            host.write_config(&self.config(host));
            let letters = host.notifications();
            let ready = letters.iter().flat_map(|letter| letter.lines());
            let ready = ready.filter(|line| *line == "READY=1").count();
            host.signal(Signal::SIGHUP);
            if !host.wait_notified("READY=1", ready + 1, Duration::from_secs(10)) {
                return Err(format!("{}: no reload within ten seconds", host.name));
            }
            let status = host.oncache_json(&["status", "--json"]);
            if status["cache"].is_null() == (self == Self::Cached) {
                let wanted = if self == Self::Cached { "on" } else { "off" };
                return Err(format!(
                    "{}: the fast path is not {wanted} after the reload; warnings: {}",
                    host.name, status["warnings"]
                ));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain overlay",
            Self::Cached => "oncache",
        })
    }
}
