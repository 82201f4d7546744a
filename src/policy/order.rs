//! The rules in the order in which they are tried, and what their names stand for.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{
    config::{Party, Rule},
    stable_hash::fnv1a,
};

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// `oncache policy apply`.
    Runtime,
    /// The configuration file.
    File,
}

impl Origin {
    /// As it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runtime => "runtime",
            Self::File => "file",
        }
    }
}

/// A rule in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where it comes from.
    pub origin: Origin,
    /// What it says.
    pub rule: Rule,
    /// Name of the counter of the packets that it decided about, in either table. A rule keeps it
    /// when others come and go.
    pub counter: String,
}

/// All rules in effective order: the first that matches decides.
#[must_use]
pub fn effective(runtime: &[Rule], file: &[Rule]) -> Vec<Placed> {
    let runtime = runtime.iter().map(|rule| (Origin::Runtime, rule));
    let file = file.iter().map(|rule| (Origin::File, rule));
    let mut seen: HashMap<String, usize> = HashMap::new();
    runtime
        .chain(file)
        .map(|(origin, rule)| {
            let text = format!("{} {rule}", origin.name());
            let name = format!("rule-{:016x}", fnv1a(text.as_bytes()));
            let times = seen.entry(name.clone()).or_default();
            *times += 1;
            Placed {
                origin,
                rule: rule.clone(),
                counter: match *times {
                    1 => name,
                    again => format!("{name}-{again}"),
                },
            }
        })
        .collect()
}

/// A container of this host, as rules and the bridge know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its host-side device.
    pub device: String,
}

/// The containers of this host by name.
pub type Locals = BTreeMap<String, Local>;

/// The addresses that `party` stands for; none for a container that is not here.
#[must_use]
pub fn addresses(party: &Party, locals: &Locals) -> Option<Ipv4Net> {
    match party {
        Party::Net(net) => Some(*net),
        Party::Container(name) => locals.get(name).map(|local| local.ip.into()),
    }
}

/// The containers that `rule` names and that are not here. Such a rule matches nothing.
#[must_use]
pub fn absent<'r>(rule: &'r Rule, locals: &Locals) -> Vec<&'r str> {
    let named = [&rule.from, &rule.to]
        .into_iter()
        .filter_map(|party| match party {
            Some(Party::Container(name)) => Some(name.as_str()),
            _ => None,
        });
    let mut absent: Vec<&str> = named.filter(|name| !locals.contains_key(*name)).collect();
    absent.dedup();
    absent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;

    fn deny(from: &str) -> Rule {
        Rule {
            action: Action::Deny,
            from: from.parse().ok(),
            to: None,
            protocol: None,
            ports: vec![],
        }
    }

    #[test]
    fn runtime_rules_come_first_and_counters_stay_with_their_rules() {
        let before = effective(&[deny("a")], &[deny("b"), deny("a")]);
        let origins: Vec<Origin> = before.iter().map(|placed| placed.origin).collect();
        assert_eq!(origins, [Origin::Runtime, Origin::File, Origin::File]);
        assert_ne!(before[0].counter, before[2].counter, "not the same rule");
        let after = effective(&[], &[deny("c"), deny("a"), deny("b"), deny("a")]);
        assert_eq!(after[1].counter, before[2].counter);
        assert_eq!(after[2].counter, before[1].counter);
        assert_eq!(after[3].counter, format!("{}-2", after[1].counter));
    }

    #[test]
    fn names_without_a_container_are_told() {
        let local = Local {
            ip: Ipv4Addr::new(10, 42, 1, 2),
            device: "onc-a".into(),
        };
        let locals = Locals::from([("a".to_owned(), local)]);
        assert!(absent(&deny("a"), &locals).is_empty());
        assert_eq!(absent(&deny("b"), &locals), ["b"]);
        let party = |text: &str| text.parse::<Party>().expect("a party");
        assert_eq!(addresses(&party("a"), &locals), "10.42.1.2/32".parse().ok());
        assert_eq!(addresses(&party("b"), &locals), None);
    }
}
