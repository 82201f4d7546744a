//! A table as it should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::{Value, json};

use super::{
    expression::Expression,
    statement::{self, Statement},
};
use crate::stable_hash::fnv1a;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6 packets.
    Inet,
    /// What passes bridges.
    Bridge,
}

impl Family {
    /// nft's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }
}

/// What a table is called: unique in a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableName {
    /// The family.
    pub family: Family,
    /// The name, unique in the family.
    pub name: &'static str,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.name(), self.name)
    }
}

impl TableName {
    /// The table as the object of a command.
    pub(super) fn json(self) -> Value {
        json!({ "table": { "family": self.family.name(), "name": self.name } })
    }

    /// An object in the table as the object of a command.
    pub(super) fn object(self, kind: &str, name: &str) -> Value {
        json!({ kind: { "family": self.family.name(), "table": self.name, "name": name } })
    }
}

/// Where in the kernel a chain is called: nft(8), "Base chains". What passes it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    kind: &'static str,
    hook: &'static str,
    priority: i32,
}

impl Hook {
    /// For chains that judge.
    #[must_use]
    pub const fn filter(hook: &'static str, priority: i32) -> Self {
        Self {
            kind: "filter",
            hook,
            priority,
        }
    }

    /// For chains that rewrite a flow's addresses.
    #[must_use]
    pub const fn nat(hook: &'static str, priority: i32) -> Self {
        Self {
            kind: "nat",
            hook,
            priority,
        }
    }
}

/// What is in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// These, by their JSON as text.
    These(BTreeMap<String, Expression>),
    /// What rules put in: it goes by itself after so many seconds, or after the time of its own.
    Remembered {
        timeout: Option<u32>,
        size: Option<u32>,
    },
}

/// A set of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) contents: Contents,
    types: Vec<&'static str>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain that it is at the end of.
    pub chain: &'static str,
    /// What it asks and does.
    pub statements: Vec<Statement>,
    comment: String,
}

/// A table as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub(super) name: TableName,
    pub(super) sets: Vec<Set>,
    pub(super) counters: BTreeSet<String>,
    chains: Vec<(&'static str, Option<Hook>)>,
    rules: Vec<Rule>,
}

impl Table {
    /// A table without anything in it.
    #[must_use]
    pub const fn new(family: Family, name: &'static str) -> Self {
        Self {
            name: TableName { family, name },
            chains: Vec::new(),
            sets: Vec::new(),
            counters: BTreeSet::new(),
            rules: Vec::new(),
        }
    }

    /// What it is called.
    #[must_use]
    pub const fn name(&self) -> TableName {
        self.name
    }

    /// The rules in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Adds a chain that others jump to.
    pub fn chain(&mut self, name: &'static str) {
        self.chains.push((name, None));
    }

    /// Adds a chain that the kernel calls.
    pub fn base_chain(&mut self, name: &'static str, hook: Hook) {
        self.chains.push((name, Some(hook)));
    }

    /// Adds a set with these elements.
    pub fn set(
        &mut self,
        name: &'static str,
        types: &[&'static str],
        elements: impl IntoIterator<Item = Expression>,
    ) {
        let elements = elements.into_iter();
        let elements = elements.map(|it| (it.json().to_string(), it)).collect();
        self.sets.push(Set {
            name,
            types: types.to_vec(),
            contents: Contents::These(elements),
        });
    }

    /// Adds a set that rules put elements into, which go by themselves: after `timeout` seconds, or after the time of
    /// their own. What is in it is the kernel's, and stays as long as the set does.
    pub fn memory(
        &mut self,
        name: &'static str,
        types: &[&'static str],
        timeout: Option<u32>,
        size: Option<u32>,
    ) {
        self.sets.push(Set {
            name,
            types: types.to_vec(),
            contents: Contents::Remembered { timeout, size },
        });
    }

    /// Adds a counter.
    pub fn counter(&mut self, name: &str) {
        self.counters.insert(name.to_owned());
    }

    /// Adds a rule at the end of `chain`.
    pub fn rule(&mut self, chain: &'static str, statements: impl IntoIterator<Item = Statement>) {
        self.push(chain, statements.into_iter().collect(), None);
    }

    /// Adds a rule at the end of `chain` that drops and counts what matches, for a reason that a listing tells.
    pub fn refusal(
        &mut self,
        chain: &'static str,
        matches: impl IntoIterator<Item = Statement>,
        reason: &str,
    ) {
        let matches = matches.into_iter();
        let statements = matches.chain([statement::count(), statement::drop()]);
        self.push(chain, statements.collect(), Some(reason));
    }

    /// nft lists rules in another form than it takes them in, so a comment names the wanted form by a hash.
    fn push(&mut self, chain: &'static str, statements: Vec<Statement>, reason: Option<&str>) {
        let form: Value = statements.iter().map(|it| it.json().clone()).collect();
        let hash = fnv1a(form.to_string().as_bytes());
        let comment = match reason {
            Some(reason) => format!("oncache:{hash:016x} {reason}"),
            None => format!("oncache:{hash:016x}"),
        };
        self.rules.push(Rule {
            chain,
            statements,
            comment,
        });
    }

    /// The chains as objects of commands.
    pub(super) fn chain_objects(&self) -> impl Iterator<Item = Value> {
        self.chains.iter().map(|(name, hook)| {
            let mut object = self.name.object("chain", name);
            if let Some(hook) = hook {
                object["chain"]["type"] = json!(hook.kind);
                object["chain"]["hook"] = json!(hook.hook);
                object["chain"]["prio"] = json!(hook.priority);
                object["chain"]["policy"] = json!("accept");
            }
            object
        })
    }

    /// The sets, without what is in them, as objects of commands.
    pub(super) fn set_objects(&self) -> impl Iterator<Item = Value> {
        self.sets.iter().map(|set| {
            let mut object = self.name.object("set", set.name);
            object["set"]["type"] = match set.types[..] {
                [one] => json!(one),
                _ => json!(set.types),
            };
            if let Contents::Remembered { timeout, size } = set.contents {
                object["set"]["flags"] = json!(["timeout"]);
                if let Some(timeout) = timeout {
                    object["set"]["timeout"] = json!(timeout);
                }
                if let Some(size) = size {
                    object["set"]["size"] = json!(size);
                }
            }
            object
        })
    }

    /// The rules as objects of commands.
    pub(super) fn rule_objects(&self) -> impl Iterator<Item = Value> {
        self.rules.iter().map(|rule| {
            let statements: Value = rule.statements.iter().map(|it| it.json().clone()).collect();
            json!({ "rule": {
                "family": self.name.family.name(), "table": self.name.name, "chain": rule.chain,
                "expr": statements, "comment": rule.comment,
            } })
        })
    }

    /// The counters as objects of commands.
    pub(super) fn counter_objects(&self) -> impl Iterator<Item = Value> {
        let counters = self.counters.iter();
        counters.map(|name| self.name.object("counter", name))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::expression::meta, *};

    fn comment_of(statements: Vec<Statement>, reason: Option<&str>) -> String {
        let mut table = Table::new(Family::Inet, "t");
        table.push("c", statements, reason);
        table.rules[0].comment.clone()
    }

    #[test]
    fn what_a_rule_does_shows_in_its_comment() {
        let by = |device: &str| vec![statement::equal(meta("iifname"), device)];
        let one = comment_of(by("a"), None);
        assert!(one.starts_with("oncache:"), "{one}");
        assert_eq!(one, comment_of(by("a"), None));
        assert_ne!(one, comment_of(by("b"), None));
        assert_eq!(format!("{one} arp"), comment_of(by("a"), Some("arp")));
    }
}
