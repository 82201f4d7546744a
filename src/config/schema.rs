//! What the file may hold: its tables, keys and defaults.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use toml::de::{DeTable, Error as SyntaxError};

use super::consistency::{
    check_outside_overlay, check_overlay, check_own_address, check_own_name, check_peers,
};
use super::fault::{ConfigErrors, Faults, refuse};
use super::policy::read_rules;
use super::rule::Rule;
use super::table::{At, LineIndex, Table};
use super::value::{self, Mtu};
use super::{Attach, Cache, Container, Log, MarkMask};

/// A configuration file that is right as far as the text alone can tell.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    pub(super) file: PathBuf,
    pub(super) node: NodeSection,
    pub(super) overlay: OverlaySection,
    pub(super) peers: Vec<PeerSection>,
    pub(super) container: Container,
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

/// `[overlay]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OverlaySection {
    pub(super) subnet: At<Ipv4Net>,
    pub(super) network: At<Ipv4Net>,
    pub(super) vni: u32,
    pub(super) port: u16,
    pub(super) mtu: At<Mtu>,
}

/// One `[[peers]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PeerSection {
    pub(super) name: At<String>,
    pub(super) address: At<Ipv4Addr>,
    pub(super) subnet: At<Ipv4Net>,
    pub(super) moved: Vec<At<Ipv4Addr>>,
}

/// `[overlay]` with whatever of it could be read, so that the rest can be checked all the same.
pub(super) struct OverlayDraft {
    pub(super) subnet: Option<At<Ipv4Net>>,
    pub(super) network: Option<At<Ipv4Net>>,
    pub(super) vni: Option<At<u32>>,
    pub(super) port: u16,
    pub(super) mtu: At<Mtu>,
}

/// A `[[peers]]` with whatever of it could be read.
pub(super) struct PeerDraft {
    pub(super) name: Option<At<String>>,
    pub(super) address: Option<At<Ipv4Addr>>,
    pub(super) subnet: Option<At<Ipv4Net>>,
    pub(super) moved: Vec<At<Ipv4Addr>>,
}

/// Parses `text`, the contents of the file at `path`, and checks all that needs no host.
///
/// # Errors
/// Every fault found. If the text is not TOML, only the faults of syntax: the values that a broken
/// text seems to hold are guesses.
pub fn parse(path: &Path, text: &str) -> Result<ConfigFile, ConfigErrors> {
    with_document(path, text, |file, faults| read_file(path, file, faults))
}

/// Parses `text` as TOML and lets `read` look at it, which leaves a fault wherever it returns none.
///
/// # Errors
/// Every fault found; only those of syntax if there are any.
pub(super) fn with_document<T>(
    path: &Path,
    text: &str,
    read: impl FnOnce(&Table<'_>, &mut Faults) -> Option<T>,
) -> Result<T, ConfigErrors> {
    let mut faults = Faults::new(path);
    let lines = LineIndex::new(text);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    refuse_syntax(&syntax_errors, text, &lines, &mut faults);
    if !faults.is_empty() {
        return Err(faults.into_errors());
    }
    match read(&Table::file(document.get_ref(), &lines), &mut faults) {
        Some(value) if faults.is_empty() => Ok(value),
        _ => Err(faults.into_errors()),
    }
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
    check_peers(&peers, &overlay, faults);
    if let Some(name) = &node.name {
        let names = peers.iter().filter_map(|peer| peer.name.as_ref());
        check_own_name(&name.value, names, faults);
    }
    if let Some(address) = &node.address {
        check_outside_overlay("node.address", address, overlay.network.as_ref(), faults);
        let addresses = peers.iter().filter_map(|peer| peer.address.as_ref());
        check_own_address(address.value, "node.address", addresses, faults);
    }
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

/// Notes the first syntax error of each line; the parser finds others where it took up again.
fn refuse_syntax(errors: &[SyntaxError], text: &str, lines: &LineIndex, faults: &mut Faults) {
    let mut last_line = 0;
    for error in errors {
        let line = lines.line_of(error.span().map_or(0, |span| span.start));
        if line == last_line {
            continue;
        }
        last_line = line;
        let source = text.lines().nth(line - 1).unwrap_or_default().trim();
        // The parser's words may be on several lines; ours never are.
        let words: Vec<&str> = error.message().split_whitespace().collect();
        let refusal = refuse(
            format!("not valid TOML: {}", words.join(" ")),
            "correct this line",
        );
        faults.value(line, "syntax", source, &refusal);
    }
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

fn read_overlay(file: &Table<'_>, faults: &mut Faults) -> OverlayDraft {
    let mut draft = OverlayDraft {
        subnet: None,
        network: None,
        vni: None,
        port: 4789, // RFC 7348 section 5
        mtu: At {
            value: Mtu::Auto,
            line: file.line,
        },
    };
    let Some(table) = file.table("overlay", faults) else {
        let missing = refuse("missing", "add [overlay] with subnet, network and vni");
        file.refuse_absent("overlay", &missing, faults);
        return draft;
    };
    draft.mtu.line = table.line;
    table.refuse_unknown(&["subnet", "network", "vni", "port", "mtu"], faults);
    draft.subnet = table.required("subnet", "subnet = \"10.42.1.0/24\"", value::subnet, faults);
    draft.network = table.required(
        "network",
        "network = \"10.42.0.0/16\"",
        value::network,
        faults,
    );
    draft.vni = table.required("vni", "vni = 42", value::vni, faults);
    if let Some(port) = table.optional("port", value::port, faults) {
        draft.port = port.value;
    }
    if let Some(mtu) = table.optional("mtu", value::mtu, faults) {
        draft.mtu = mtu;
    }
    draft
}

fn read_peers(file: &Table<'_>, faults: &mut Faults) -> Vec<PeerDraft> {
    let mut peers = Vec::new();
    for table in file.tables("peers", faults) {
        table.refuse_unknown(&["name", "address", "subnet", "moved"], faults);
        peers.push(PeerDraft {
            name: table.required("name", "name = \"beta\"", value::name, faults),
            address: table.required(
                "address",
                "address = \"192.168.50.12\"",
                value::underlay_address,
                faults,
            ),
            subnet: table.required("subnet", "subnet = \"10.42.2.0/24\"", value::subnet, faults),
            moved: table.elements("moved", value::container_address, faults),
        });
    }
    peers
}

fn read_container(file: &Table<'_>, faults: &mut Faults) -> Container {
    let Some(table) = file.table("container", faults) else {
        return Container::default();
    };
    table.refuse_unknown(&["device"], faults);
    let device = table.optional("device", value::container_device, faults);
    Container {
        device: device.map(|device| device.value).unwrap_or_default(),
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

fn complete_overlay(draft: OverlayDraft) -> Option<OverlaySection> {
    Some(OverlaySection {
        subnet: draft.subnet?,
        network: draft.network?,
        vni: draft.vni?.value,
        port: draft.port,
        mtu: draft.mtu,
    })
}

fn complete_peers(drafts: Vec<PeerDraft>) -> Option<Vec<PeerSection>> {
    let complete = |draft: PeerDraft| {
        Some(PeerSection {
            name: draft.name?,
            address: draft.address?,
            subnet: draft.subnet?,
            moved: draft.moved,
        })
    };
    drafts.into_iter().map(complete).collect()
}
