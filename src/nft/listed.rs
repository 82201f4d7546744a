//! A table as nft lists it, as far as it is compared and counted.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    expression::Expression,
    table::{Contents, Table},
};

/// A table as nft lists it. Rules themselves are not read: nft lists them in another form than it takes them in, and
/// one that this build can't understand must not keep the table from being mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedTable {
    /// Chains with what makes them the ones they are, sorted.
    pub chains: Vec<String>,
    /// Sets by name.
    pub sets: BTreeMap<String, ListedSet>,
    /// The packets that each counter of the table has counted.
    pub counters: BTreeMap<String, u64>,
    /// Rules in order within each chain; chains sorted.
    pub rules: Vec<ListedRule>,
    /// How many objects there are of a kind that oncache does not make.
    pub foreign: usize,
}

/// A set as nft lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSet {
    /// What makes it the one it is.
    shape: String,
    /// The elements by their JSON as text; none in a terse listing.
    pub(super) elements: BTreeMap<String, Expression>,
}

/// A rule as nft lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    /// The chain that it is in.
    pub chain: String,
    /// What it is known by.
    pub comment: String,
    /// The packets that it has counted by itself.
    pub packets: u64,
}

impl ListedRule {
    /// The reason for which one of ours refuses.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        let (_, reason) = self.comment.strip_prefix("oncache:")?.split_once(' ')?;
        Some(reason)
    }
}

impl ListedTable {
    /// Reads nft's listing of one table.
    #[must_use]
    pub fn of(listing: &Value) -> Self {
        let mut table = Self::default();
        for object in items(&listing["nftables"]) {
            if let Some(chain) = object.get("chain") {
                let parts = ["name", "type", "hook", "prio", "policy"];
                table.chains.push(shape(chain, &parts));
            } else if let Some(set) = object.get("set") {
                let elements = items(&set["elem"]).iter().map(|element| {
                    let value = element["elem"].get("val").unwrap_or(element);
                    (value.to_string(), Expression::of(value.clone()))
                });
                let listed = ListedSet {
                    // Other versions of nft list other flags.
                    shape: shape(set, &["type", "timeout", "size"]),
                    elements: elements.collect(),
                };
                table.sets.insert(text(&set["name"]), listed);
            } else if let Some(rule) = object.get("rule") {
                let statements = items(&rule["expr"]).iter();
                let packets = statements.filter_map(|it| it["counter"]["packets"].as_u64());
                table.rules.push(ListedRule {
                    chain: text(&rule["chain"]),
                    comment: text(&rule["comment"]),
                    packets: packets.sum(),
                });
            } else if let Some(counter) = object.get("counter") {
                let packets = counter["packets"].as_u64().unwrap_or_default();
                table.counters.insert(text(&counter["name"]), packets);
            } else if object.get("metainfo").is_none() && object.get("table").is_none() {
                table.foreign += 1;
            }
        }
        table.chains.sort();
        // Stable: the order within a chain is what the rules mean.
        table
            .rules
            .sort_by(|one, other| one.chain.cmp(&other.chain));
        table
    }

    /// What nft lists when the kernel has the table `wanted`, and nothing was counted yet.
    #[must_use]
    pub fn of_wanted(wanted: &Table) -> Self {
        let objects = wanted.chain_objects().chain(wanted.set_objects());
        let objects = objects.chain(wanted.rule_objects());
        let objects = objects.chain(wanted.counter_objects());
        let mut listed = Self::of(&json!({ "nftables": objects.collect::<Vec<_>>() }));
        for set in &wanted.sets {
            if let (Contents::These(these), Some(listed)) =
                (&set.contents, listed.sets.get_mut(set.name))
            {
                listed.elements.clone_from(these);
            }
        }
        listed
    }

    /// Whether only rules, counters and elements are other than `wanted`'s: the rest, and what its sets remember, can
    /// stay.
    pub(super) fn is_shaped_as(&self, wanted: &Self) -> bool {
        let shapes = |table: &Self| -> Vec<(String, String)> {
            let sets = table.sets.iter();
            sets.map(|(name, set)| (name.clone(), set.shape.clone()))
                .collect()
        };
        self.chains == wanted.chains && self.foreign == 0 && shapes(self) == shapes(wanted)
    }

    /// Whether the rules are `wanted`'s, in order, and count in the same counters.
    pub(super) fn is_ruled_as(&self, wanted: &Self) -> bool {
        let rules = |table: &Self| -> Vec<(String, String)> {
            let rules = table.rules.iter();
            rules
                .map(|rule| (rule.chain.clone(), rule.comment.clone()))
                .collect()
        };
        self.counters.keys().eq(wanted.counters.keys()) && rules(self) == rules(wanted)
    }
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn shape(object: &Value, parts: &[&str]) -> String {
    let parts = parts.iter().map(|part| match &object[*part] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{
        Family, Hook,
        expression::{concat, elements_of, meta, payload},
        statement::{accept, count_in, equal, goto},
    };

    fn wanted() -> Table {
        let mut table = Table::new(Family::Bridge, "t");
        table.chain("judge");
        table.base_chain("forward", Hook::filter("forward", 20));
        table.set(
            "known",
            &["ifname", "ipv4_addr"],
            [concat(["a", "10.0.0.1"])],
        );
        table.memory("seen", &["ether_type"], Some(30), None);
        table.counter("passed");
        table.rule("forward", [goto("judge")]);
        let sender = concat([meta("iifname"), payload("ip", "saddr")]);
        let known = equal(sender, elements_of("known"));
        table.rule("judge", [known, count_in("passed"), accept()]);
        table
    }

    #[test]
    fn nfts_listing_of_a_table_is_the_wanted_one() {
        let mut listed = ListedTable::of(&json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            { "table": { "family": "bridge", "name": "t", "handle": 1 } },
            { "counter": { "family": "bridge", "name": "passed", "table": "t", "handle": 9, "packets": 7, "bytes": 99 } },
            { "set": { "family": "bridge", "name": "seen", "table": "t", "type": "ether_type", "handle": 5,
                "flags": ["timeout", "dynamic"], "timeout": 30,
                "elem": [{ "elem": { "val": "ip", "timeout": 30, "expires": 2 } }] } },
            { "set": { "family": "bridge", "name": "known", "table": "t", "type": ["ifname", "ipv4_addr"], "handle": 6,
                "elem": [{ "concat": ["a", "10.0.0.1"] }] } },
            { "chain": { "family": "bridge", "table": "t", "name": "judge", "handle": 2 } },
            { "chain": { "family": "bridge", "table": "t", "name": "forward", "handle": 3,
                "type": "filter", "hook": "forward", "prio": 20, "policy": "accept" } },
        ]}));
        let wanted = ListedTable::of_wanted(&wanted());
        assert!(listed.is_shaped_as(&wanted), "{listed:?}");
        assert_eq!(listed.sets["known"], wanted.sets["known"]);
        assert_eq!(listed.counters["passed"], 7);
        assert!(!listed.is_ruled_as(&wanted), "it has no rules");
        listed.rules.clone_from(&wanted.rules);
        assert!(listed.is_ruled_as(&wanted));
    }

    #[test]
    fn what_others_put_in_is_seen() {
        let listed = ListedTable::of(&json!({ "nftables": [
            { "rule": { "chain": "forward", "comment": "oncache:1", "expr": [{ "unheard of": null }] } },
            { "rule": { "chain": "forward", "expr": [{ "accept": null }] } },
            { "map": { "family": "inet", "name": "m", "table": "t", "type": "ipv4_addr" } },
        ]}));
        let comments: Vec<&str> = listed.rules.iter().map(|it| it.comment.as_str()).collect();
        assert_eq!(comments, ["oncache:1", ""]);
        assert_eq!(listed.foreign, 1);
        let mut table = ListedTable::of_wanted(&wanted());
        let whole = table.clone();
        let stranger = table.sets["known"].clone();
        table.sets.insert("stranger".to_owned(), stranger);
        assert!(!table.is_shaped_as(&whole));
    }

    #[test]
    fn a_rule_tells_its_reason_and_what_it_has_counted() {
        let listed = ListedTable::of(&json!({ "nftables": [
            { "rule": { "chain": "a", "comment": "oncache:1 arp",
                "expr": [{ "counter": { "packets": 2, "bytes": 9 } }, { "drop": null }] } },
            { "rule": { "chain": "a", "comment": "oncache:2", "expr": [{ "counter": "named" }] } },
            { "rule": { "chain": "a", "comment": "somebody's arp", "expr": [] } },
        ]}));
        let told: Vec<_> = listed
            .rules
            .iter()
            .map(|it| (it.reason(), it.packets))
            .collect();
        assert_eq!(told, [(Some("arp"), 2), (None, 0), (None, 0)]);
    }
}
