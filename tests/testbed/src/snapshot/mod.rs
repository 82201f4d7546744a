//! All of a host's network state that a program can leave behind.

mod lines;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use self::lines::{
    addresses_of, configured, fdb_entry_matters, files, link, names, nft_lines, not_link_local,
    plain, programs, sorted, sysctls, tc_filters,
};
use crate::{
    host::Host,
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

/// Compares a host with what it was.
///
/// # Panics
/// If it is not the same, with the difference.
pub fn assert_same(before: &Snapshot, after: &Snapshot, when: &str) {
    assert!(before == after, "{when}:\n{}", before.diff(after));
}

/// Waits until a host is as it was, and returns how long that took.
///
/// # Panics
/// If it is not within `patience`, with the difference.
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
