//! Kernel settings: those of oncache's own devices, and the one of the whole namespace that the fast
//! path cannot do without.
//!
//! What is deliberately left alone:
//!
//! - `rp_filter` (RFC 3704). Even the strict mode passes overlay traffic: the route back to a peer's
//!   container leads out by the VXLAN device that its packet came in by, and the one to a local
//!   container by the bridge (net/ipv4/fib_frontend.c, `__fib_validate_source`).
//! - `forwarding` of the underlay device and `net.ipv4.ip_forward`. Routing between bridge and VXLAN
//!   device asks the incoming device only (net/ipv4/route.c, `ip_route_input_slow`), and both are
//!   ours. Replies to containers from *outside* the overlay come in by the underlay device and need
//!   forwarding there: whether the host is a router for that is its administrator's decision.

use std::{
    fmt, fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use super::names::DeviceNames;

/// The namespace-wide setting: conntrack accepts TCP segments outside the window it knows, because
/// it does not see what the fast path carries.
pub const TCP_BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// A kernel setting and its wanted value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Path below /proc/sys.
    pub key: String,
    /// The value, without a line's end.
    pub value: String,
    /// Whether a kernel that has no such setting does not need it either.
    pub optional: bool,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.key, self.value)
    }
}

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Reading failed.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The setting's file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Writing failed.
    #[error("write {value} to {}: {source}", path.display())]
    Write {
        /// The setting's file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// The reason.
        source: io::Error,
    },
    /// The value is not of the form it always has.
    #[error("read {}: {value:?} is not what it should be", path.display())]
    Unexpected {
        /// The setting's file.
        path: PathBuf,
        /// What it said.
        value: String,
    },
}

/// The timeouts that a cached flow lives by while conntrack does not see it, as the names of its
/// settings end (Documentation/networking/nf_conntrack-sysctl.rst).
const FLOW_TIMEOUTS: [&str; 8] = [
    "udp_timeout",
    "udp_timeout_stream",
    // Of a connection that both sides have opened at once.
    "tcp_timeout_syn_recv",
    "tcp_timeout_established",
    "tcp_timeout_fin_wait",
    "tcp_timeout_close_wait",
    "tcp_timeout_unacknowledged",
    "tcp_timeout_max_retrans",
];

/// The settings of the calling thread's network namespace: the kernel decides at each open
/// (net/sysctl_net.c, `net_ctl_header_lookup`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self::below("/proc/sys")
    }
}

impl Sysctls {
    /// The settings below another directory, for tests.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A setting's value without its line's end; none if the kernel does not have it (yet: some come
    /// with their device, conntrack's with the first rule that needs it).
    ///
    /// # Errors
    /// [`SysctlError::Read`] when it is there and cannot be read.
    pub fn read(&self, key: &str) -> Result<Option<String>, SysctlError> {
        let path = self.root.join(key);
        match fs::read_to_string(&path) {
            Ok(value) => Ok(Some(value.trim_end().to_owned())),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SysctlError::Read { path, source }),
        }
    }

    /// Sets a value.
    ///
    /// # Errors
    /// [`SysctlError::Write`], also when the kernel has no such setting.
    pub fn write(&self, key: &str, value: &str) -> Result<(), SysctlError> {
        let path = self.root.join(key);
        // Never create a file: a root for tests must have what the kernel would have.
        let written = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| SysctlError::Write {
            path,
            value: value.to_owned(),
            source,
        })
    }

    /// Whether the kernel has settings for IPv6 at all.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.root.join("net/ipv6/conf").is_dir()
    }

    /// The present value of [`TCP_BE_LIBERAL`]; none while conntrack is not there. Read it and keep
    /// it before the first reconciliation: `oncache down` restores it.
    ///
    /// # Errors
    /// [`SysctlError`] when it cannot be read or is no small number.
    pub fn tcp_be_liberal(&self) -> Result<Option<u8>, SysctlError> {
        self.read(TCP_BE_LIBERAL)?
            .map(|value| parse(&self.root.join(TCP_BE_LIBERAL), &value))
            .transpose()
    }

    /// How long conntrack keeps flows that it does not see, in seconds, by state; empty while
    /// conntrack is not there.
    ///
    /// # Errors
    /// [`SysctlError`] when one cannot be read or is no number.
    pub fn conntrack_timeouts(&self) -> Result<Vec<u64>, SysctlError> {
        let seconds = |name: &&str| {
            let key = format!("net/netfilter/nf_conntrack_{name}");
            let value = self.read(&key).transpose()?;
            Some(value.and_then(|value| parse(&self.root.join(&key), &value)))
        };
        FLOW_TIMEOUTS.iter().filter_map(seconds).collect()
    }

    /// The ports that the host's own sockets and, by default, VXLAN's outer source ports are taken
    /// from (drivers/net/vxlan, `udp_flow_src_port`), both ends included.
    ///
    /// # Errors
    /// [`SysctlError`] when it cannot be read or is no range.
    pub fn local_port_range(&self) -> Result<RangeInclusive<u16>, SysctlError> {
        let path = self.root.join("net/ipv4/ip_local_port_range");
        let value = fs::read_to_string(&path).map_err(|source| SysctlError::Read {
            path: path.clone(),
            source,
        })?;
        let mut ports = value.split_whitespace().map(|port| parse(&path, port));
        match (ports.next(), ports.next(), ports.next()) {
            (Some(low), Some(high), None) => Ok(low?..=high?),
            _ => Err(SysctlError::Unexpected { path, value }),
        }
    }
}

/// The settings that an overlay of devices with these `names` wants, in the order in which they are to be
/// made.
#[must_use]
pub fn wanted(names: &DeviceNames) -> Vec<Setting> {
    let required = |key: String, value: &str| Setting {
        key,
        value: value.to_owned(),
        optional: false,
    };
    let mut settings = Vec::new();
    let bridge = &names.bridge;
    for device in [bridge, &names.vxlan] {
        settings.push(Setting {
            // The overlay is IPv4: a link-local address would only make the devices talk.
            key: format!("net/ipv6/conf/{device}/disable_ipv6"),
            value: "1".to_owned(),
            optional: true,
        });
        settings.push(required(format!("net/ipv4/conf/{device}/forwarding"), "1"));
    }
    // The bridge answers for addresses that have moved away at once, as their holders did: by
    // default it would wait up to 0.8 s (net/core/neighbour.c, pneigh_enqueue).
    let delay = format!("net/ipv4/neigh/{bridge}/proxy_delay");
    settings.push(required(delay, "0"));
    // A container that reaches its neighbour by way of the gateway is right to do so. The kernel
    // sends redirects if the device *or* `all` says so (include/linux/inetdevice.h,
    // IN_DEV_TX_REDIRECTS); `all` is not ours, so that a rule drops the rest.
    let redirects = format!("net/ipv4/conf/{bridge}/send_redirects");
    settings.push(required(redirects, "0"));
    settings.push(required(TCP_BE_LIBERAL.to_owned(), "1"));
    settings
}

fn parse<T: std::str::FromStr>(path: &Path, value: &str) -> Result<T, SysctlError> {
    value.trim().parse().map_err(|_| SysctlError::Unexpected {
        path: path.to_owned(),
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysctls) {
        let directory = tempfile::tempdir().expect("a directory");
        for (key, value) in files {
            let path = directory.path().join(key);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, value).expect("a file");
        }
        let sysctls = Sysctls::below(directory.path());
        (directory, sysctls)
    }

    #[test]
    fn values_come_without_their_lines_end_and_absence_is_no_error() {
        let (_kept, sysctls) = root(&[("net/a", "1\n")]);
        assert_eq!(sysctls.read("net/a").expect("read").as_deref(), Some("1"));
        assert_eq!(sysctls.read("net/b").expect("read"), None);
    }

    #[test]
    fn writing_never_makes_a_setting() {
        let (_kept, sysctls) = root(&[("net/a", "1\n")]);
        sysctls.write("net/a", "0").expect("written");
        assert_eq!(sysctls.read("net/a").expect("read").as_deref(), Some("0"));
        let error = sysctls.write("net/b", "0").expect_err("absent");
        assert!(error.to_string().contains("write 0 to "), "{error}");
        assert_eq!(sysctls.read("net/b").expect("read"), None);
    }

    #[test]
    fn timeouts_are_those_that_are_there() {
        let (_kept, sysctls) = root(&[
            ("net/netfilter/nf_conntrack_udp_timeout", "30\n"),
            (
                "net/netfilter/nf_conntrack_tcp_timeout_established",
                "432000\n",
            ),
            ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "5\n"),
        ]);
        let timeouts = sysctls.conntrack_timeouts().expect("read");
        assert_eq!(
            timeouts,
            [30, 432_000],
            "a flow in TIME_WAIT has no packets to cache"
        );
        let (_kept, none) = root(&[]);
        assert_eq!(none.conntrack_timeouts().expect("read"), [0; 0]);
        let (_kept, odd) = root(&[("net/netfilter/nf_conntrack_udp_timeout", "soon")]);
        assert!(odd.conntrack_timeouts().is_err());
    }

    #[test]
    fn what_is_not_a_number_is_refused_with_its_file() {
        let (_kept, sysctls) = root(&[
            (TCP_BE_LIBERAL, "yes\n"),
            ("net/ipv4/ip_local_port_range", "32768\t60999\n"),
        ]);
        let error = sysctls.tcp_be_liberal().expect_err("no number");
        assert!(
            error.to_string().contains("tcp_be_liberal: \"yes\""),
            "{error}"
        );
        let range = sysctls.local_port_range().expect("a range");
        assert_eq!(range, 32768..=60999);
        let (_kept, broken) = root(&[("net/ipv4/ip_local_port_range", "1 2 3")]);
        assert!(broken.local_port_range().is_err());
    }

    #[test]
    fn only_our_devices_and_the_one_exception_are_touched() {
        for setting in wanted(&DeviceNames::of_only_network()) {
            let ours = ["/oncache0/", "/oncache-vx0/"];
            let owned = ours.iter().any(|device| setting.key.contains(device));
            assert!(owned || setting.key == TCP_BE_LIBERAL, "{setting}");
        }
    }
}
