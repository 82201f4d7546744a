//! Source validation: a container sends only from its own address and MAC address.
//!
//! The table `bridge oncache` drops, before the bridge looks at it, every IPv4 and ARP frame that a
//! container's device brings in from another source, and counts it; also one that is IPv4 or ARP by its
//! header, but something else by what the kernel goes by. The fast path makes the same
//! test by itself and passes what fails it on to here (`source-mismatch`).
//!
//! Who may send is a set of device, MAC and address, changed one element at a time: the counters go
//! on, and no packet meets a table without rules.

use std::{collections::BTreeSet, net::Ipv4Addr};

use nftables::helper;
use serde_json::{Value, json};

use super::nftables::{TABLE, TableError, failed};
use crate::{
    netlink::{Mac, format_mac},
    stable_hash::fnv1a,
};

/// The family that sees the bridge's ports.
const FAMILY: &str = "bridge";
/// The set of those who may send.
const SET: &str = "sources";
/// The chain that judges containers' frames.
const CHAIN: &str = "source";
/// The hook's chain.
const HOOK: &str = "prerouting";
/// Before anything else of the bridge (`NF_BR_PRI_FIRST` is lower still; include/uapi/linux/
/// netfilter_bridge.h has brouting at -300 for the like of this).
const PRIORITY: i32 = -300;
/// How containers' devices are called, see `container::devices`.
const DEVICES: [&str; 2] = ["onc-*", "onc_*"];

/// One that may send: the device, and the only addresses it may send from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Host-side device of the container.
    pub device: String,
    /// The container's MAC address.
    pub mac: Mac,
    /// The container's address.
    pub ip: Ipv4Addr,
}

impl Source {
    fn element(&self) -> Value {
        json!({ "concat": [self.device, format_mac(self.mac), self.ip.to_string()] })
    }
}

/// The table as the kernel has it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Present {
    /// Comments of the rules by chain, in order.
    rules: Vec<String>,
    /// The set's elements, as nft lists them.
    elements: BTreeSet<String>,
}

/// Makes the table what `sources` want. Returns what was done, a line each.
///
/// # Errors
/// [`TableError`]; the table is then what it was before.
pub async fn reconcile(sources: &BTreeSet<Source>) -> Result<Vec<String>, TableError> {
    let present = list().await?;
    let commands = difference(sources, present.as_ref());
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    apply(
        commands
            .iter()
            .map(|(command, _)| command.clone())
            .collect(),
        "change",
    )
    .await?;
    let mut lines: Vec<String> = commands.into_iter().map(|(_, line)| line).collect();
    lines.retain(|line| !line.is_empty());
    Ok(lines)
}

/// Lets one more sender through, where the table is known to be there: one transaction, no look
/// before it. Where it fails, [`reconcile`] knows more.
///
/// # Errors
/// [`TableError`]; nothing has changed then.
pub async fn allow(source: &Source) -> Result<(), TableError> {
    let command = json!({ "add": elements(&[source.element()]) });
    apply(vec![command], "add a source to").await
}

/// Stops one sender; as [`allow`].
///
/// # Errors
/// [`TableError`], also where it was not let through.
pub async fn forbid(source: &Source) -> Result<(), TableError> {
    let command = json!({ "delete": elements(&[source.element()]) });
    apply(vec![command], "remove a source from").await
}

/// Removes the table; done as well if it is not there.
///
/// # Errors
/// [`TableError::Nft`].
pub async fn remove() -> Result<(), TableError> {
    apply(
        vec![json!({ "add": table() }), json!({ "delete": table() })],
        "remove",
    )
    .await
}

/// Frames dropped so far; none where there is no table.
///
/// # Errors
/// [`TableError`] when nft cannot list.
pub async fn dropped() -> Result<Option<u64>, TableError> {
    let Some(listing) = listing().await? else {
        return Ok(None);
    };
    let counters = objects(&listing, "rule").flat_map(|rule| {
        let statements = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
        statements
            .iter()
            .filter_map(|statement| statement["counter"]["packets"].as_u64())
    });
    Ok(Some(counters.sum()))
}

/// The commands that lead from what is present to what is wanted, each with its line for the log.
fn difference(wanted: &BTreeSet<Source>, present: Option<&Present>) -> Vec<(Value, String)> {
    let rules: Vec<String> = rules().iter().map(rule_key).collect();
    let Some(present) = present.filter(|present| present.rules == rules) else {
        return replacement(wanted);
    };
    let key = |source: &Source| source.element()["concat"].to_string();
    let keys: BTreeSet<String> = wanted.iter().map(key).collect();
    let removed = present.elements.difference(&keys).map(|element| {
        let element: Value = serde_json::from_str(element).unwrap_or_default();
        let command = json!({ "delete": elements(&[json!({ "concat": element })]) });
        (
            command,
            format!("remove source {element} from table {FAMILY} {TABLE}"),
        )
    });
    let added = wanted
        .iter()
        .filter(|source| !present.elements.contains(&key(source)))
        .map(|source| {
            let command = json!({ "add": elements(&[source.element()]) });
            let mac = format_mac(source.mac);
            (
                command,
                format!(
                    "add source {} {mac} {} to table {FAMILY} {TABLE}",
                    source.device, source.ip
                ),
            )
        });
    removed.chain(added).collect()
}

/// One transaction that leaves exactly the wanted table, whatever was there.
fn replacement(wanted: &BTreeSet<Source>) -> Vec<(Value, String)> {
    let chain = json!({ "chain": { "family": FAMILY, "table": TABLE, "name": CHAIN } });
    let hook = json!({ "chain": {
        "family": FAMILY, "table": TABLE, "name": HOOK,
        "type": "filter", "hook": "prerouting", "prio": PRIORITY, "policy": "accept",
    } });
    let set = json!({ "set": {
        "family": FAMILY, "table": TABLE, "name": SET,
        "type": ["ifname", "ether_addr", "ipv4_addr"],
    } });
    let mut commands = vec![
        json!({ "add": table() }),
        json!({ "delete": table() }),
        json!({ "add": table() }),
        json!({ "add": set }),
        json!({ "add": chain }),
        json!({ "add": hook }),
    ];
    commands.extend(rules().into_iter().map(|rule| json!({ "add": rule })));
    if !wanted.is_empty() {
        let all: Vec<Value> = wanted.iter().map(Source::element).collect();
        commands.push(json!({ "add": elements(&all) }));
    }
    let mut lines: Vec<(Value, String)> = commands
        .into_iter()
        .map(|command| (command, String::new()))
        .collect();
    if let Some((_, line)) = lines.first_mut() {
        *line = format!("replace table {FAMILY} {TABLE}");
    }
    lines
}

fn table() -> Value {
    json!({ "table": { "family": FAMILY, "name": TABLE } })
}

fn elements(elem: &[Value]) -> Value {
    json!({ "element": { "family": FAMILY, "table": TABLE, "name": SET, "elem": elem } })
}

fn rules() -> Vec<Value> {
    let payload = |protocol: &str, field: &str| json!({ "payload": { "protocol": protocol, "field": field } });
    let device = json!({ "meta": { "key": "iifname" } });
    // The sender is not in the set: drop.
    let foreign = |protocol: &str, field: &str| {
        let left = [
            device.clone(),
            payload("ether", "saddr"),
            payload(protocol, field),
        ];
        json!({ "match": { "op": "!=", "left": { "concat": left }, "right": format!("@{SET}") } })
    };
    // An ARP probe has no sender address yet (RFC 5227, section 1.1).
    let no_probe = json!({ "match": {
        "op": "!=", "left": payload("arp", "saddr ip"), "right": "0.0.0.0",
    } });
    // What the frame says it is, and what the kernel takes it for: netkit leaves the latter to the sender's
    // socket (drivers/net/netkit.c, `netkit_xmit`), and whoever gets the frame may read the former.
    let disguised = |protocol: &str| {
        let is = |op: &str, left: Value| json!({ "match": { "op": op, "left": left, "right": protocol } });
        [
            is("==", payload("ether", "type")),
            is("!=", json!({ "meta": { "key": "protocol" } })),
        ]
    };
    let (counter, drop) = (json!({ "counter": null }), json!({ "drop": null }));
    let mut rules: Vec<Value> = DEVICES
        .iter()
        .map(|devices| {
            let ours = json!({ "match": { "op": "==", "left": device, "right": devices } });
            rule(HOOK, &[ours, json!({ "jump": { "target": CHAIN } })])
        })
        .collect();
    for protocol in ["ip", "arp"] {
        let [says, taken] = disguised(protocol);
        rules.push(rule(CHAIN, &[says, taken, counter.clone(), drop.clone()]));
    }
    rules.push(rule(
        CHAIN,
        &[foreign("ip", "saddr"), counter.clone(), drop.clone()],
    ));
    rules.push(rule(
        CHAIN,
        &[no_probe, foreign("arp", "saddr ip"), counter, drop],
    ));
    rules
}

/// A rule whose comment names its wanted form by a hash, as the table `inet oncache` has it.
fn rule(chain: &str, expr: &[Value]) -> Value {
    let form = Value::from(expr.to_vec()).to_string();
    let comment = format!("oncache:{:016x}", fnv1a(form.as_bytes()));
    json!({ "rule": {
        "family": FAMILY, "table": TABLE, "chain": chain, "expr": expr, "comment": comment,
    } })
}

/// What two rules are compared by.
fn rule_key(rule: &Value) -> String {
    let rule = rule.get("rule").unwrap_or(rule);
    format!("{} {}", rule["chain"], rule["comment"])
}

async fn apply(commands: Vec<Value>, operation: &'static str) -> Result<(), TableError> {
    let payload = json!({ "nftables": commands }).to_string();
    helper::apply_ruleset_raw_async(&payload, helper::DEFAULT_NFT, helper::DEFAULT_ARGS)
        .await
        .map(|_| ())
        .map_err(failed(operation, FAMILY))
}

async fn list() -> Result<Option<Present>, TableError> {
    Ok(listing().await?.as_ref().map(present))
}

async fn listing() -> Result<Option<Value>, TableError> {
    let arguments = ["list", "table", FAMILY, TABLE];
    match helper::get_current_ruleset_raw_async(helper::DEFAULT_NFT, arguments).await {
        Ok(json) => Ok(Some(serde_json::from_str(&json)?)),
        // Whatever keeps it from being listed, replacing it says more.
        Err(_) => Ok(None),
    }
}

fn objects<'a>(listing: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = listing["nftables"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(move |object| object.get(kind))
}

fn present(listing: &Value) -> Present {
    let mut rules: Vec<String> = objects(listing, "rule").map(rule_key).collect();
    // Stable: the order within a chain is what the rules mean. The hook's chain is first in ours.
    rules.sort_by_key(|key| !key.starts_with(&format!("\"{HOOK}\"")));
    let listed = objects(listing, "set").filter(|set| set["name"] == SET);
    let elements = listed.flat_map(|set| set["elem"].as_array().map_or(&[][..], Vec::as_slice));
    Present {
        rules,
        elements: elements
            .map(|element| element["concat"].to_string())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> Source {
        Source {
            device: format!("onc-c{last}"),
            mac: [0x0a, 0x63, 10, 42, 1, last],
            ip: Ipv4Addr::new(10, 42, 1, last),
        }
    }

    fn listed(sources: &BTreeSet<Source>) -> Present {
        let set = json!({ "set": {
            "name": SET, "elem": sources.iter().map(Source::element).collect::<Vec<_>>(),
        } });
        let all: Vec<Value> = rules().into_iter().chain([set]).collect();
        present(&json!({ "nftables": all }))
    }

    #[test]
    fn nothing_is_done_where_all_is_there() {
        let wanted = BTreeSet::from([source(2), source(3)]);
        assert_eq!(difference(&wanted, Some(&listed(&wanted))), []);
    }

    #[test]
    fn one_more_or_less_is_one_element() {
        let (two, three) = (
            BTreeSet::from([source(2)]),
            BTreeSet::from([source(2), source(3)]),
        );
        let more = difference(&three, Some(&listed(&two)));
        assert_eq!(more.len(), 1);
        assert_eq!(
            more[0].0,
            json!({ "add": elements(&[source(3).element()]) })
        );
        let less = difference(&two, Some(&listed(&three)));
        assert_eq!(less.len(), 1);
        assert_eq!(
            less[0].0,
            json!({ "delete": elements(&[source(3).element()]) })
        );
    }

    #[test]
    fn a_missing_or_foreign_rule_replaces_the_table() {
        let wanted = BTreeSet::from([source(2)]);
        let mut hurt = listed(&wanted);
        hurt.rules.pop();
        for present in [None, Some(&hurt)] {
            let commands = difference(&wanted, present);
            assert_eq!(commands[1].0, json!({ "delete": table() }));
            assert!(commands.len() > 8, "{commands:?}");
        }
    }
}
