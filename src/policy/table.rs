//! A table as it should be, what nft lists of it, and the commands that lead from one to the other.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::stable_hash::fnv1a;

/// The name of both tables.
pub const TABLE: &str = "oncache-policy";

/// A table as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedTable {
    family: &'static str,
    chains: Vec<Value>,
    sets: Vec<Value>,
    counters: BTreeSet<String>,
    rules: Vec<Value>,
}

/// A table as nft lists it, as far as it is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresentTable {
    /// Chains with what makes them the ones they are, sorted.
    chains: Vec<String>,
    /// Sets with what makes them the ones they are, sorted. What is in them is the kernel's.
    sets: Vec<String>,
    /// Names of the counters.
    counters: BTreeSet<String>,
    /// Chain and comment of each rule, in order within each chain; chains sorted.
    rules: Vec<(String, String)>,
    /// Objects of a kind that oncache does not make.
    foreign: usize,
}

impl WantedTable {
    /// A table of `family` without anything in it.
    #[must_use]
    pub const fn new(family: &'static str) -> Self {
        Self {
            family,
            chains: Vec::new(),
            sets: Vec::new(),
            counters: BTreeSet::new(),
            rules: Vec::new(),
        }
    }

    /// The family.
    #[must_use]
    pub const fn family(&self) -> &'static str {
        self.family
    }

    /// The rules in order, as nft takes them in.
    pub fn rules(&self) -> impl Iterator<Item = &Value> {
        self.rules.iter()
    }

    /// Adds a chain that others jump to.
    pub fn chain(&mut self, name: &str) {
        self.chains
            .push(json!({ "family": self.family, "table": TABLE, "name": name }));
    }

    /// Adds a chain of a hook.
    pub fn base_chain(&mut self, hook: &str, priority: i32) {
        self.chains.push(json!({
            "family": self.family, "table": TABLE, "name": hook,
            "type": "filter", "hook": hook, "prio": priority, "policy": "accept",
        }));
    }

    /// Adds a set whose elements go by themselves: after `timeout` seconds, or after the time of their
    /// own.
    pub fn set(&mut self, name: &str, types: &[&str], timeout: Option<u32>, size: Option<u32>) {
        let kind = match types {
            [one] => json!(one),
            parts => json!(parts),
        };
        let mut set = json!({
            "family": self.family, "table": TABLE, "name": name, "type": kind, "flags": ["timeout"],
        });
        if let Some(timeout) = timeout {
            set["timeout"] = json!(timeout);
        }
        if let Some(size) = size {
            set["size"] = json!(size);
        }
        self.sets.push(set);
    }

    /// Adds a counter.
    pub fn counter(&mut self, name: &str) {
        self.counters.insert(name.to_owned());
    }

    /// Adds a rule at the end of `chain`. nft lists rules in another form than it takes them in, so a
    /// comment names the wanted form by a hash.
    pub fn rule(&mut self, chain: &str, expr: &[Value]) {
        let form = Value::from(expr.to_vec()).to_string();
        let comment = format!("oncache:{:016x}", fnv1a(form.as_bytes()));
        self.rules.push(json!({
            "family": self.family, "table": TABLE, "chain": chain, "expr": expr, "comment": comment,
        }));
    }

    /// The commands that make a table in the state `present` this one; none if it is.
    ///
    /// Where chains and sets are right only the rules are replaced, so that the counters of rules that
    /// stay go on, and what the sets remember stays.
    #[must_use]
    pub fn commands(&self, present: Option<&PresentTable>) -> Vec<Value> {
        let wanted = self.as_listed();
        if present == Some(&wanted) {
            return Vec::new();
        }
        let table = table(self.family);
        let counter = |name: &String| json!({ "counter": { "family": self.family, "table": TABLE, "name": name } });
        let mut commands = Vec::new();
        match present {
            Some(present) if present.is_shaped_as(&wanted) => {
                commands.push(json!({ "flush": table }));
                let (old, new) = (&present.counters, &self.counters);
                let removed = old.difference(new);
                commands.extend(removed.map(|name| json!({ "delete": counter(name) })));
                let added = new.difference(old);
                commands.extend(added.map(|name| json!({ "add": counter(name) })));
            }
            _ => {
                // Added first so that deleting cannot fail.
                commands.push(json!({ "add": table }));
                commands.push(json!({ "delete": table }));
                commands.push(json!({ "add": table }));
                let counters = self.counters.iter();
                commands.extend(counters.map(|name| json!({ "add": counter(name) })));
                let sets = self.sets.iter();
                commands.extend(sets.map(|set| json!({ "add": { "set": set } })));
                let chains = self.chains.iter();
                commands.extend(chains.map(|chain| json!({ "add": { "chain": chain } })));
            }
        }
        let rules = self.rules.iter();
        commands.extend(rules.map(|rule| json!({ "add": { "rule": rule } })));
        commands
    }

    /// What [`PresentTable::of`] makes of nft's listing of this table.
    fn as_listed(&self) -> PresentTable {
        let wrapped = |kind: &'static str| move |object: &Value| json!({ kind: object });
        let chains = self.chains.iter().map(wrapped("chain"));
        let sets = self.sets.iter().map(wrapped("set"));
        let rules = self.rules.iter().map(wrapped("rule"));
        let counters = self.counters.iter();
        let counters = counters.map(|name| json!({ "counter": { "name": name } }));
        let objects: Vec<Value> = chains.chain(sets).chain(rules).chain(counters).collect();
        PresentTable::of(&json!({ "nftables": objects }))
    }
}

impl PresentTable {
    /// Whether only rules and counters are other than they should be: what the sets remember can stay.
    fn is_shaped_as(&self, wanted: &Self) -> bool {
        (&self.chains, &self.sets, self.foreign) == (&wanted.chains, &wanted.sets, 0)
    }

    /// Reads nft's listing of one table.
    #[must_use]
    pub fn of(listing: &Value) -> Self {
        let mut present = Self::default();
        let objects = listing["nftables"].as_array();
        for object in objects.map_or(&[][..], Vec::as_slice) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if let Some(chain) = object.get("chain") {
                let parts = ["name", "type", "hook", "prio", "policy"];
                let parts = parts.map(|part| chain[part].to_string());
                present.chains.push(parts.join(" "));
            } else if let Some(set) = object.get("set") {
                // Other versions of nft list other flags.
                let parts = ["name", "type", "timeout", "size"];
                let parts = parts.map(|part| set[part].to_string());
                present.sets.push(parts.join(" "));
            } else if let Some(rule) = object.get("rule") {
                let comment = text(&rule["comment"]);
                present.rules.push((text(&rule["chain"]), comment));
            } else if let Some(counter) = object.get("counter") {
                present.counters.insert(text(&counter["name"]));
            } else if object.get("metainfo").is_none() && object.get("table").is_none() {
                present.foreign += 1;
            }
        }
        present.chains.sort();
        present.sets.sort();
        // Stable: the order within a chain is what the rules mean.
        present.rules.sort_by(|(one, _), (other, _)| one.cmp(other));
        present
    }
}

/// Whether `commands` make a table anew, whose sets remember nothing.
#[must_use]
pub fn begins_anew(commands: &[Value]) -> bool {
    commands
        .iter()
        .any(|command| command["delete"]["table"].is_object())
}

/// Puts an element of its own time, in seconds, into a set.
#[must_use]
pub fn element(family: &str, set: &str, value: &str, seconds: u32) -> Value {
    let element = json!({ "elem": { "val": value, "timeout": seconds } });
    json!({ "add": { "element": { "family": family, "table": TABLE, "name": set, "elem": [element] } } })
}

/// The commands that remove a table, whether it is there or not.
#[must_use]
pub fn removal(family: &str) -> [Value; 2] {
    [
        json!({ "add": table(family) }),
        json!({ "delete": table(family) }),
    ]
}

fn table(family: &str) -> Value {
    json!({ "table": { "family": family, "name": TABLE } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(counters: &[&str]) -> WantedTable {
        let mut table = WantedTable::new("inet");
        table.chain("judge");
        table.base_chain("forward", 20);
        table.rule("forward", &[json!({ "goto": { "target": "judge" } })]);
        for counter in counters {
            table.counter(counter);
            table.rule("judge", &[json!({ "counter": counter })]);
        }
        table
    }

    fn verbs(commands: &[Value]) -> Vec<&str> {
        let verb = |command: &'_ Value| {
            let keys = command.as_object().expect("a command").keys();
            ["add", "delete", "flush"]
                .into_iter()
                .find(|verb| keys.clone().any(|key| key == verb))
                .expect("a verb")
        };
        commands.iter().map(verb).collect()
    }

    #[test]
    fn a_table_that_is_as_wanted_is_left_alone() {
        let table = wanted(&["a", "b"]);
        assert!(table.commands(Some(&table.as_listed())).is_empty());
    }

    #[test]
    fn counters_of_rules_that_stay_are_not_touched() {
        let before = wanted(&["a", "b"]).as_listed();
        let commands = wanted(&["b", "c"]).commands(Some(&before));
        assert_eq!(
            verbs(&commands),
            ["flush", "delete", "add", "add", "add", "add"]
        );
        assert_eq!(commands[1]["delete"]["counter"]["name"], "a");
        assert_eq!(commands[2]["add"]["counter"]["name"], "c");
    }

    #[test]
    fn a_table_whose_chains_were_touched_is_replaced() {
        let table = wanted(&["a"]);
        let mut strange = table.as_listed();
        strange.foreign = 1;
        let mut hurt = table.as_listed();
        hurt.chains.pop();
        for present in [None, Some(&strange), Some(&hurt)] {
            let commands = table.commands(present);
            assert_eq!(&verbs(&commands)[..3], ["add", "delete", "add"]);
        }
        let mut swapped = wanted(&["a", "b"]).as_listed();
        swapped.rules.swap(1, 2);
        assert!(!wanted(&["a", "b"]).commands(Some(&swapped)).is_empty());
    }

    #[test]
    fn nfts_listing_is_understood() {
        let listing = json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            { "table": { "family": "inet", "name": TABLE, "handle": 1 } },
            { "counter": { "family": "inet", "name": "a", "table": TABLE, "handle": 9, "packets": 7, "bytes": 99 } },
            { "chain": { "family": "inet", "table": TABLE, "name": "judge", "handle": 2 } },
            { "chain": { "family": "inet", "table": TABLE, "name": "forward", "handle": 3,
                "type": "filter", "hook": "forward", "prio": 20, "policy": "accept" } },
        ]});
        let mut present = PresentTable::of(&listing);
        present.rules = wanted(&["a"]).as_listed().rules;
        assert_eq!(present, wanted(&["a"]).as_listed());
    }
}
