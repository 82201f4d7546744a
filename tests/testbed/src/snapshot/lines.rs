//! What a host's tools, files and devices say, as lines without what changes by itself.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{bpf, namespace::Place};

/// A table's lines, without what packets put into its sets: that goes by itself, too.
pub(super) fn nft_lines(table: &str) -> Vec<&str> {
    let policy = table.contains(" oncache-policy {");
    let mut within = false;
    let lines = table.lines().filter(|line| {
        let begins = policy && line.trim_start().starts_with("elements = {");
        let keep = !within && !begins;
        within = (within || begins) && !line.contains('}');
        keep
    });
    lines.collect()
}

pub(super) fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

/// Follows carrier, which follows the other end of the wire with some delay.
const CARRIER: [&str; 4] = ["LOWER_UP", "NO-CARRIER", "linkdown", "dead"];

/// What counts and ticks, and what is numbered by the kernel.
const VOLATILE: [&str; 12] = [
    "expires",
    "used",
    "users",
    "cache",
    "refcnt",
    "updated",
    "probes",
    "ifindex",
    "link_index",
    "state_since",
    "cache_info",
    "bytes",
];

/// `key=value` of all fields that do not change by themselves.
pub(super) fn plain(row: &Value) -> String {
    let fields = row.as_object().into_iter().flatten();
    let kept = fields.filter(|(key, _)| !VOLATILE.contains(&key.as_str()));
    let texts: Vec<String> = kept
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect();
    texts.join(" ")
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items = items
                .iter()
                .map(text)
                .filter(|item| !CARRIER.contains(&item.as_str()));
            sorted(items).join(",")
        }
        Value::Object(_) => format!("{{{}}}", plain(value)),
        other => other.to_string(),
    }
}

pub(super) fn link(row: &Value) -> String {
    let mut line = format!("{}:", text(&row["ifname"]));
    let details = &row["linkinfo"];
    let kind = &details["info_kind"];
    let known = [("kind", kind), ("slave", &details["info_slave_kind"])];
    let fields = [
        "mtu",
        "address",
        "master",
        "link",
        "flags",
        "txqlen",
        "promiscuity",
    ];
    let fields = fields.map(|key| (key, &row[key]));
    for (key, value) in known
        .into_iter()
        .chain(fields)
        .chain([("xdp", &row["xdp"])])
    {
        if !value.is_null() {
            write!(line, " {key}={}", text(value)).expect("a string takes all");
        }
    }
    // A bridge's data is full of timers; a tunnel's says what it is.
    if kind == "vxlan" || kind == "netkit" {
        write!(line, " {}", plain(&details["info_data"])).expect("a string takes all");
    }
    line
}

pub(super) fn addresses_of(row: &Value) -> impl Iterator<Item = String> {
    let device = text(&row["ifname"]);
    let addresses = row["addr_info"].as_array().into_iter().flatten();
    let lasting =
        addresses.filter(|address| address["scope"] != "link" || address["family"] != "inet6");
    lasting.map(move |address| {
        let scope = text(&address["scope"]);
        format!(
            "{device}: {}/{} {scope}",
            text(&address["local"]),
            address["prefixlen"]
        )
    })
}

/// Whether a route is not one that comes with a device's link-local address.
pub(super) fn not_link_local(row: &&Value) -> bool {
    let to = row["dst"].as_str().unwrap_or_default();
    row["protocol"] != "kernel" || !(to.starts_with("fe80:") || to.starts_with("ff00:"))
}

/// Whether somebody has put the neighbour there; the others come and go with traffic.
pub(super) fn configured(row: &&Value) -> bool {
    let permanent = row["state"]
        .as_array()
        .is_some_and(|states| states.iter().any(|state| state == "PERMANENT"));
    permanent || !row["extern_learn"].is_null() || !row["proxy"].is_null()
}

/// Whether a forwarding entry was put there by somebody: not learned from traffic, and not a
/// multicast group that the device listens to.
pub(super) fn fdb_entry_matters(row: &&Value) -> bool {
    let flags = row["flags"].as_array().into_iter().flatten();
    let external = flags.into_iter().any(|flag| flag == "extern_learn");
    let state = row["state"].as_str().unwrap_or_default();
    let first = row["mac"]
        .as_str()
        .and_then(|mac| u8::from_str_radix(mac.get(..2)?, 16).ok());
    let group = first.is_some_and(|octet| octet & 1 == 1) && row["dst"].is_null();
    (external || state == "permanent" || state == "static") && !group
}

pub(super) fn tc_filters(place: &Place, qdiscs: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for qdisc in qdiscs {
        let kind = text(&qdisc["kind"]);
        if kind != "clsact" && kind != "ingress" {
            continue;
        }
        let device = text(&qdisc["dev"]);
        for hook in ["ingress", "egress"] {
            let output = place.output(&["tc", "filter", "show", "dev", &device, hook]);
            let filters = String::from_utf8_lossy(&output.stdout).into_owned();
            lines.extend(filters.lines().map(|line| {
                // A program's number and hash change when it is loaded anew.
                let words: Vec<&str> = line.split_whitespace().collect();
                let kept = words.iter().enumerate().filter(|(at, _)| {
                    let before = at.checked_sub(1).map_or("", |previous| words[previous]);
                    before != "id" && before != "tag"
                });
                let kept: Vec<&str> = kept.map(|(_, word)| *word).collect();
                format!("{device} {hook}: {}", kept.join(" "))
            }));
        }
    }
    lines
}

pub(super) fn programs(links: &[Value]) -> Vec<String> {
    let devices = links.iter().filter_map(|row| {
        let index = u32::try_from(row["ifindex"].as_u64()?).ok()?;
        Some((text(&row["ifname"]), index))
    });
    let lines = devices.flat_map(|(device, index)| {
        bpf::attached(index)
            .into_iter()
            .map(move |line| format!("{device}: {line}"))
    });
    lines.collect()
}

/// All that is no directory below one.
pub(super) fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                _ => found.push(entry.path().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    sorted(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()))
}

pub(super) fn sysctls() -> Vec<String> {
    let mut paths = vec![PathBuf::from("net/netfilter/nf_conntrack_tcp_be_liberal")];
    for (family, settings) in [
        ("ipv4", ["forwarding", "rp_filter", "proxy_arp"].as_slice()),
        ("ipv6", &["forwarding"]),
    ] {
        let directory = PathBuf::from("net").join(family).join("conf");
        for device in names(&Path::new("/proc/sys").join(&directory)) {
            paths.extend(
                settings
                    .iter()
                    .map(|setting| directory.join(&device).join(setting)),
            );
        }
    }
    let lines = paths.iter().filter_map(|path| {
        let value = fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?;
        Some(format!("{} = {}", path.display(), value.trim_end()))
    });
    sorted(lines)
}
