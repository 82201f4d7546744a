//! What the file may hold: its tables, keys and defaults.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::consistency::LocalNetwork;
use super::document::with_document;
use super::fault::{ConfigErrors, Faults, refuse};
use super::overlay::{
    OverlaySection, check_node_address, check_overlay, complete_overlay, read_overlay,
};
use super::peers::{NetworkLines, PeerSection, check_drafts, complete_peers, read_peers};
use super::policy::read_rules;
use super::rule::Rule;
use super::table::{At, Table};
use super::value;
use super::{Attach, Cache, Containers, Log, MarkMask};

/// A configuration file that is right as far as the text alone can tell.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    pub(super) file: PathBuf,
    pub(super) node: NodeSection,
    pub(super) overlay: OverlaySection,
    pub(super) peers: Vec<PeerSection>,
    pub(super) container: Containers,
    pub(super) cache: Cache,
    pub(super) policy: Vec<Rule>,
    pub(super) log: Log,
}

impl ConfigFile {
    /// The underlay device, if the file names it.
    #[must_use]
    pub fn underlay(&self) -> Option<&str> {
        self.node.underlay.as_ref().map(|name| name.value.as_str())
    }

    /// Whether the file names this host's address.
    #[must_use]
    pub const fn names_address(&self) -> bool {
        self.node.address.is_some()
    }
}

/// `[node]`; what is absent comes from the host.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodeSection {
    /// Where faults of absent values are reported: the header, or the first line of the file.
    pub(super) line: usize,
    pub(super) name: Option<At<String>>,
    pub(super) underlay: Option<At<String>>,
    pub(super) address: Option<At<Ipv4Addr>>,
}

/// Parses `text`, the contents of the file at `path`, and checks all that needs no host.
///
/// # Errors
/// Every fault found. If the text is not TOML, only the faults of syntax: the values that a broken
/// text seems to hold are guesses.
pub fn parse(path: &Path, text: &str) -> Result<ConfigFile, ConfigErrors> {
    with_document(path, text, |file, faults| read_file(path, file, faults))
}

fn read_file(path: &Path, file: &Table<'_>, faults: &mut Faults) -> Option<ConfigFile> {
    file.refuse_unknown(
        &[
            "node",
            "overlay",
            "peers",
            "container",
            "cache",
            "log",
            "policy",
            "metrics",
        ],
        faults,
    );
    refuse_unsupported(file, faults);
    let node = read_node(file, faults);
    let overlay = read_overlay(file, faults);
    let peers = read_peers(file, faults);
    let container = read_container(file, faults);
    let cache = read_cache(file, faults);
    let log = read_log(file, faults);
    let policy = read_rules(file, faults);

    check_overlay(&overlay, faults);
    if let (Some(address), Some(network)) = (&node.address, &overlay.network) {
        check_node_address(address, network, faults);
    }
    let own = node.address.as_ref();
    let here = LocalNetwork {
        network: overlay.network.as_ref().map(|at| at.value),
        subnet: overlay.subnet.as_ref().map(|at| at.value),
        name: node.name.as_ref().map(|at| at.value.clone()),
        addresses: own
            .map(|at| (at.value, "node.address".to_owned()))
            .into_iter()
            .collect(),
    };
    let lines = NetworkLines::new(overlay.network.as_ref(), overlay.subnet.as_ref());
    check_drafts(&peers, &here, lines, faults);

    // Whatever could not be read has left a fault.
    Some(ConfigFile {
        file: path.to_owned(),
        node,
        overlay: complete_overlay(overlay)?,
        peers: complete_peers(peers)?,
        container,
        cache,
        log,
        policy,
    })
}

/// Refuses what the file format has and this version has not, rather than ignore it.
fn refuse_unsupported(file: &Table<'_>, faults: &mut Faults) {
    let metrics = refuse(
        "the metrics listener is not supported by this version",
        "remove it",
    );
    file.refuse_present("metrics", &metrics, faults);
}

fn read_node(file: &Table<'_>, faults: &mut Faults) -> NodeSection {
    let Some(table) = file.table("node", faults) else {
        return NodeSection {
            line: file.line,
            name: None,
            underlay: None,
            address: None,
        };
    };
    table.refuse_unknown(&["name", "underlay", "address"], faults);
    NodeSection {
        line: table.line,
        name: table.optional("name", value::name, faults),
        underlay: table.optional("underlay", value::interface, faults),
        address: table.optional("address", value::underlay_address, faults),
    }
}

fn read_container(file: &Table<'_>, faults: &mut Faults) -> Containers {
    let Some(table) = file.table("container", faults) else {
        return Containers::default();
    };
    table.refuse_unknown(&["device"], faults);
    let device = table.optional("device", value::container_device, faults);
    Containers {
        device: device.and_then(|device| device.value),
    }
}

fn read_cache(file: &Table<'_>, faults: &mut Faults) -> Cache {
    let mut cache = Cache {
        enabled: true,
        flows: 65_536,
        lease: Duration::from_secs(30),
        mark_mask: MarkMask::default(),
        attach: Attach::default(),
        ignore_traffic_control: Vec::new(),
    };
    let Some(table) = file.table("cache", faults) else {
        return cache;
    };
    table.refuse_unknown(
        &[
            "enabled",
            "flows",
            "lease",
            "mark_mask",
            "attach",
            "ignore_traffic_control",
        ],
        faults,
    );
    if let Some(enabled) = table.optional("enabled", value::boolean, faults) {
        cache.enabled = enabled.value;
    }
    if let Some(flows) = table.optional("flows", value::flows, faults) {
        cache.flows = flows.value;
    }
    if let Some(lease) = table.optional("lease", value::lease, faults) {
        cache.lease = lease.value;
    }
    if let Some(mark_mask) = table.optional("mark_mask", value::mark_mask, faults) {
        cache.mark_mask = mark_mask.value;
    }
    if let Some(attach) = table.optional("attach", value::attach, faults) {
        cache.attach = attach.value;
    }
    let ignored = table.elements("ignore_traffic_control", value::interface, faults);
    cache.ignore_traffic_control = ignored.into_iter().map(|device| device.value).collect();
    cache
}

fn read_log(file: &Table<'_>, faults: &mut Faults) -> Log {
    let Some(table) = file.table("log", faults) else {
        return Log::default();
    };
    table.refuse_unknown(&["level"], faults);
    let level = table.optional("level", value::log_level, faults);
    Log {
        level: level.map(|level| level.value),
    }
}
