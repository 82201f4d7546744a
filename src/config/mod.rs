//! `oncache.toml`: schema, defaults, validation with line-precise errors.
//!
//! In two stages, both pure. [`parse`] judges everything that the text alone can tell;
//! [`ConfigFile::resolve`] fills the defaults from the host and judges what only the host can tell.
//! Each stage reports every fault it finds, not only the first.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Serialize, Serializer};

pub mod consistency;
mod document;
mod facts;
mod fault;
mod mark_mask;
mod overlay;
mod peers;
mod policy;
mod resolve;
mod rule;
mod schema;
mod table;
#[cfg(test)]
mod tests;
mod value;

pub use facts::{Chosen, DeviceFacts, HostFacts};
pub use fault::{ConfigError, ConfigErrors};
pub use mark_mask::{MarkMask, MarkMaskError};
pub use policy::{parse_policy, read_policy};
pub use resolve::VXLAN_OVERHEAD;
pub use rule::{Action, Party, PortRange, Protocol, Rule, RuleError, port_list};
pub use schema::{ConfigFile, parse};
pub use value::{check_name, reserved_in};

/// A complete configuration: every value present and checked against the host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// This host.
    pub node: Node,
    /// The network of the containers.
    pub overlay: Overlay,
    /// The other hosts, in the order of the file.
    pub peers: Vec<Peer>,
    /// The containers' devices.
    pub container: Containers,
    /// The fast path.
    pub cache: Cache,
    /// The network policy, in the order of the file.
    pub policy: Vec<Rule>,
    /// The log.
    pub log: Log,
}

/// The log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Log {
    /// The level; none leaves it to the environment (`ONCACHE_LOG`).
    pub level: Option<LogLevel>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what an operator should know.
    Warn,
    /// And what was done.
    Info,
    /// And how.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    /// All levels, the quietest first.
    pub const ALL: [Self; 5] = [
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];

    /// The level's name in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// This host on the underlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Name of this host among its peers.
    pub name: String,
    /// Name of the underlay device.
    pub underlay: String,
    /// Interface index of the underlay device.
    pub underlay_index: u32,
    /// MAC address of the underlay device.
    #[serde(serialize_with = "mac_as_text")]
    pub underlay_mac: [u8; 6],
    /// This host's address on the underlay: the source of its VXLAN packets.
    pub address: Ipv4Addr,
}

/// The network of the containers, over all hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overlay {
    /// The addresses of this host's containers.
    pub subnet: Ipv4Net,
    /// The addresses of all hosts' containers.
    pub network: Ipv4Net,
    /// VXLAN network identifier, 1 to 16777215.
    pub vni: u32,
    /// UDP destination port of VXLAN packets.
    pub port: u16,
    /// MTU of the containers' devices in bytes.
    pub mtu: u32,
}

impl Overlay {
    /// The containers' default gateway: the first usable address of [`Self::subnet`].
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        value::gateway(&self.subnet)
    }
}

/// Another host of the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Name of the host.
    pub name: String,
    /// Its address on the underlay.
    pub address: Ipv4Addr,
    /// The addresses of its containers.
    pub subnet: Ipv4Net,
    /// Addresses outside of it whose containers have moved there.
    pub moved: Vec<Ipv4Addr>,
}

impl Config {
    /// The peer that an address of another's (or nobody's) subnet has moved to.
    #[must_use]
    pub fn moved_to(&self, address: Ipv4Addr) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.moved.contains(&address))
    }

    /// Addresses of this host's subnet whose containers live elsewhere.
    pub fn away(&self) -> impl Iterator<Item = Ipv4Addr> {
        let moved = self.peers.iter().flat_map(|peer| &peer.moved);
        moved
            .copied()
            .filter(|address| self.overlay.subnet.contains(address))
    }
}

/// How containers are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Containers {
    /// What device pair a new container gets, if the file says so; those that are there keep theirs.
    #[serde(serialize_with = "device_as_text")]
    pub device: Option<PairKind>,
}

impl Containers {
    /// What device pair a new container gets: veth, until netkit has proven itself on more kernels. The
    /// choice of the kernel that a host happens to run is not left to `auto`: see docs/adr/027.
    #[must_use]
    pub fn pair_kind(&self) -> PairKind {
        self.device.unwrap_or(PairKind::Veth)
    }
}

/// What drives a pair of devices, of which each gets what the other one sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairKind {
    /// veth.
    Veth,
    /// netkit (Linux 6.7): programs can run where the far end sends, a queue earlier.
    Netkit,
}

impl PairKind {
    /// The driver's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
        }
    }
}

/// The fast path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// Whether there is a fast path at all; without, the overlay is the slow path alone.
    pub enabled: bool,
    /// Entries of the filter cache.
    pub flows: u32,
    /// How long an entry serves before one packet must renew it by the slow path; 1 s to 10 min,
    /// in whole milliseconds.
    #[serde(serialize_with = "lease_as_text")]
    pub lease: Duration,
    /// The bits of `skb->mark` that are oncache's.
    pub mark_mask: MarkMask,
    /// How the programs are attached.
    pub attach: Attach,
    /// Names of devices whose qdiscs, filters and programs the fast path may pass by.
    pub ignore_traffic_control: Vec<String>,
}

/// How the programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// tcx links where the kernel has them, clsact otherwise.
    #[default]
    Auto,
    /// tcx links (Linux 6.6): they stay when another program deletes qdiscs.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// Reads and parses the file at `path`.
///
/// # Errors
/// Every fault of the file that needs no host to see, or the one that it cannot be read.
pub fn read(path: &Path) -> Result<ConfigFile, ConfigErrors> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text),
        Err(error) => {
            let mut faults = fault::Faults::new(path);
            faults.file(&fault::refuse(
                format!("cannot read the configuration: {error}"),
                "give a readable UTF-8 file with --config",
            ));
            Err(faults.into_errors())
        }
    }
}

fn mac_as_text<S: Serializer>(mac: &[u8; 6], serializer: S) -> Result<S::Ok, S::Error> {
    let [a, b, c, d, e, f] = mac;
    serializer.collect_str(&format_args!(
        "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
    ))
}

fn device_as_text<S: Serializer>(
    device: &Option<PairKind>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(device.map_or("auto", PairKind::name))
}

fn lease_as_text<S: Serializer>(lease: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value::lease_text(*lease))
}
