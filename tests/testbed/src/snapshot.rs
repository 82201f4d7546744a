//! All of a host's network state that a program can leave behind.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    bpf,
    namespace::{OWN_DIRECTORY, Place},
};

/// Lines of text by section; equal if nothing was changed. What changes by itself (counters,
/// timers, indices, learned neighbours) is left out, and so is what the kernel adds some time after
/// a device was set up (carrier, link-local addresses and their routes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<&'static str, Vec<String>>);

impl Snapshot {
    pub(crate) fn of(place: &Place) -> Self {
        let json = |argv: &[&str]| -> Vec<Value> {
            let text = place.run(argv);
            if text.trim().is_empty() {
                return Vec::new();
            }
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{argv:?}: {error}: {text}"))
        };
        let links = json(&["ip", "-j", "-d", "link", "show"]);
        let mut sections = BTreeMap::new();
        sections.insert("link", sorted(links.iter().map(link)));
        let addresses = json(&["ip", "-j", "address", "show"]);
        sections.insert("address", sorted(addresses.iter().flat_map(addresses_of)));
        let mut routes = json(&["ip", "-j", "-4", "route", "show", "table", "all"]);
        routes.extend(json(&["ip", "-j", "-6", "route", "show", "table", "all"]));
        sections.insert(
            "route",
            sorted(routes.iter().filter(not_link_local).map(plain)),
        );
        let mut rules = json(&["ip", "-j", "-4", "rule", "show"]);
        rules.extend(json(&["ip", "-j", "-6", "rule", "show"]));
        sections.insert("rule", sorted(rules.iter().map(plain)));
        let neighbours = json(&["ip", "-j", "neigh", "show"]);
        sections.insert(
            "neigh",
            sorted(neighbours.iter().filter(configured).map(plain)),
        );
        let entries = json(&["bridge", "-j", "fdb", "show"]);
        sections.insert(
            "fdb",
            sorted(entries.iter().filter(fdb_entry_matters).map(plain)),
        );
        // Without state: no counters, no set elements' remaining times.
        let rules = place.run(&["nft", "--stateless", "list", "ruleset"]);
        // By tables: their order is that of their making, and says nothing.
        let mut tables: Vec<&str> = rules.split_inclusive("\n}\n").collect();
        tables.sort_unstable();
        let lines = tables.iter().flat_map(|table| nft_lines(table));
        sections.insert("nft", lines.map(str::to_owned).collect());
        let qdiscs = json(&["tc", "-j", "qdisc", "show"]);
        sections.insert("qdisc", sorted(qdiscs.iter().map(plain)));
        sections.insert("tc filter", tc_filters(place, &qdiscs));
        place.enter(|| {
            sections.insert("program", programs(&links));
            sections.insert("pin", files(Path::new("/sys/fs/bpf")));
            sections.insert("netns", names(Path::new("/run/netns")));
            let mut left = files(Path::new("/run"));
            left.retain(|path| !path.starts_with(OWN_DIRECTORY) && !path.starts_with("/run/netns"));
            left.extend(files(Path::new("/var/lib/oncache")));
            sections.insert("file", left);
            sections.insert("sysctl", sysctls());
        });
        Self(sections)
    }

    /// The sections' names.
    pub fn sections(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// The lines of a section such as `link`, `route`, `fdb`, `nft`, `program`, `pin`, `sysctl`.
    ///
    /// # Panics
    /// If there is no such section.
    #[must_use]
    pub fn section(&self, name: &str) -> &[String] {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("a snapshot has no section {name}"))
    }

    /// The snapshot without a section.
    ///
    /// # Panics
    /// If there is no such section.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        assert!(
            self.0.remove(name).is_some(),
            "a snapshot has no section {name}"
        );
        self
    }

    /// What `other` has lost (`-`) and gained (`+`) in comparison, section by section; empty if
    /// they are equal.
    #[must_use]
    pub fn diff(&self, other: &Self) -> String {
        let mut text = String::new();
        let none = Vec::new();
        let all: BTreeMap<_, ()> = self
            .0
            .keys()
            .chain(other.0.keys())
            .map(|k| (*k, ()))
            .collect();
        for section in all.into_keys() {
            let before = self.0.get(section).unwrap_or(&none);
            let after = other.0.get(section).unwrap_or(&none);
            if before == after {
                continue;
            }
            writeln!(text, "{section}:").expect("a string takes all");
            let (lost, gained) = (surplus(before, after), surplus(after, before));
            if lost.is_empty() && gained.is_empty() {
                text.push_str("  the same lines in another order\n");
            }
            for (sign, lines) in [('-', lost), ('+', gained)] {
                for line in lines {
                    writeln!(text, "  {sign} {line}").expect("a string takes all");
                }
            }
        }
        text
    }
}

/// The lines of `these` that `those` has not, or not as often.
fn surplus<'a>(these: &'a [String], those: &[String]) -> Vec<&'a str> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in those {
        *counts.entry(line).or_default() += 1;
    }
    let unmatched = these
        .iter()
        .filter(|line| match counts.get_mut(line.as_str()) {
            Some(count @ 1..) => {
                *count -= 1;
                false
            }
            _ => true,
        });
    unmatched.map(String::as_str).collect()
}

/// A table's lines, without what packets put into its sets: that goes by itself, too.
fn nft_lines(table: &str) -> Vec<&str> {
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

fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
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
fn plain(row: &Value) -> String {
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

fn link(row: &Value) -> String {
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

fn addresses_of(row: &Value) -> impl Iterator<Item = String> {
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
fn not_link_local(row: &&Value) -> bool {
    let to = row["dst"].as_str().unwrap_or_default();
    row["protocol"] != "kernel" || !(to.starts_with("fe80:") || to.starts_with("ff00:"))
}

/// Whether somebody has put the neighbour there; the others come and go with traffic.
fn configured(row: &&Value) -> bool {
    let permanent = row["state"]
        .as_array()
        .is_some_and(|states| states.iter().any(|state| state == "PERMANENT"));
    permanent || !row["extern_learn"].is_null() || !row["proxy"].is_null()
}

/// Whether a forwarding entry was put there by somebody: not learned from traffic, and not a
/// multicast group that the device listens to.
fn fdb_entry_matters(row: &&Value) -> bool {
    let flags = row["flags"].as_array().into_iter().flatten();
    let external = flags.into_iter().any(|flag| flag == "extern_learn");
    let state = row["state"].as_str().unwrap_or_default();
    let first = row["mac"]
        .as_str()
        .and_then(|mac| u8::from_str_radix(mac.get(..2)?, 16).ok());
    let group = first.is_some_and(|octet| octet & 1 == 1) && row["dst"].is_null();
    (external || state == "permanent" || state == "static") && !group
}

fn tc_filters(place: &Place, qdiscs: &[Value]) -> Vec<String> {
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

fn programs(links: &[Value]) -> Vec<String> {
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
fn files(directory: &Path) -> Vec<String> {
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

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    sorted(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()))
}

fn sysctls() -> Vec<String> {
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
