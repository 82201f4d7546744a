//! The guard at the containers' devices: an allow list.
//!
//! The table `bridge oncache` lets in by a container's device what the container may send, which is untagged
//! IPv4 and ARP from its own MAC address and its own address, and drops everything else before the bridge looks at
//! it, counted by reason ([`Refused`]). What a frame is, is asked twice: what is written in it, and what the
//! kernel goes by; they must agree. The fast path makes the same test by itself and passes what fails it on to
//! here (`source-mismatch`).
//!
//! Who may send is a set of device, MAC and address, changed by a container's elements at a time: the counters go
//! on, and no packet meets a table without rules.

use std::{collections::BTreeSet, net::Ipv4Addr};

use nftables::helper;
use serde_json::{Value, json};

use super::{
    nftables::{TABLE, TableError, failed},
    refused::Refused,
};
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
/// The chain of what the bridge hands to the host without forwarding it.
const LOCAL_HOOK: &str = "input";
/// Before anything else of the bridge (`NF_BR_PRI_FIRST` is lower still; include/uapi/linux/
/// netfilter_bridge.h has brouting at -300 for the like of this).
const PRIORITY: i32 = -300;
/// How containers' devices are called, see `container::devices`.
pub(super) const DEVICES: [&str; 2] = ["onc-*", "onc_*"];
/// The sender of an ARP probe: it has no address yet (RFC 5227, section 1.1).
const PROBING: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

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
    /// What it may send from: its address, and none.
    fn elements(&self) -> [Value; 2] {
        [self.ip, PROBING]
            .map(|ip| json!({ "concat": [self.device, format_mac(self.mac), ip.to_string()] }))
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
    let command = json!({ "add": elements(&source.elements()) });
    apply(vec![command], "add a source to").await
}

/// Stops one sender; as [`allow`].
///
/// # Errors
/// [`TableError`], also where it was not let through.
pub async fn forbid(source: &Source) -> Result<(), TableError> {
    let command = json!({ "delete": elements(&source.elements()) });
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

/// The commands that lead from what is present to what is wanted, each with its line for the log.
fn difference(wanted: &BTreeSet<Source>, present: Option<&Present>) -> Vec<(Value, String)> {
    let Some(present) = present.filter(|present| present.rules == keys(rules().iter())) else {
        return replacement(wanted);
    };
    let elements_of = |source: &Source| source.elements().map(|it| it["concat"].to_string());
    let wanted_keys: BTreeSet<String> = wanted.iter().flat_map(elements_of).collect();
    let removed = present.elements.difference(&wanted_keys).map(|element| {
        let element: Value = serde_json::from_str(element).unwrap_or_default();
        let command = json!({ "delete": elements(&[json!({ "concat": element })]) });
        (
            command,
            format!("remove source {element} from table {FAMILY} {TABLE}"),
        )
    });
    let lacking = wanted.iter().flat_map(Source::elements);
    let added = lacking
        .filter(|element| !present.elements.contains(&element["concat"].to_string()))
        .map(|element| {
            let line = format!("add source {} to table {FAMILY} {TABLE}", element["concat"]);
            (json!({ "add": elements(&[element]) }), line)
        });
    removed.chain(added).collect()
}

/// One transaction that leaves exactly the wanted table, whatever was there.
fn replacement(wanted: &BTreeSet<Source>) -> Vec<(Value, String)> {
    let chain = json!({ "chain": { "family": FAMILY, "table": TABLE, "name": CHAIN } });
    let hook = |name: &str| {
        json!({ "chain": {
            "family": FAMILY, "table": TABLE, "name": name,
            "type": "filter", "hook": name, "prio": PRIORITY, "policy": "accept",
        } })
    };
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
        json!({ "add": hook(HOOK) }),
        json!({ "add": hook(LOCAL_HOOK) }),
    ];
    commands.extend(rules().into_iter().map(|rule| json!({ "add": rule })));
    if !wanted.is_empty() {
        let all: Vec<Value> = wanted.iter().flat_map(Source::elements).collect();
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

/// The addresses that bridges keep for themselves (IEEE 802.1Q, table 8-1). The bridge hands such frames to the
/// host past all hooks, or past this one (net/bridge/br_input.c, `br_handle_frame`), unless the port is told to
/// forward them: `container::port` tells it.
fn is_link_local() -> Value {
    let masked = json!({ "&": [payload("ether", "daddr"), "ff:ff:ff:ff:ff:f0"] });
    equal(&masked, &json!("01:80:c2:00:00:00"))
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn device() -> Value {
    json!({ "meta": { "key": "iifname" } })
}

fn equal(left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

fn unequal(left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": "!=", "left": left, "right": right } })
}

fn rules() -> Vec<Value> {
    let written = payload("ether", "type");
    // What the kernel takes the frame for: netkit leaves it to the sender's socket (drivers/net/netkit.c,
    // `netkit_xmit`), and whoever gets the frame may read the other.
    let taken = json!({ "meta": { "key": "protocol" } });
    // The kernel takes a tag off and notes it beside the frame (net/core/skbuff.c, `skb_vlan_untag`); nft
    // shows the frame as if it still had it (net/netfilter/nft_payload.c, `nft_payload_copy_vlan`).
    let plain = |protocol: &str| {
        let protocol = json!(protocol);
        [equal(&written, &protocol), equal(&taken, &protocol)]
    };
    let known = |mac: Value, address: Value| {
        let sender = json!({ "concat": [device(), mac, address] });
        equal(&sender, &json!(format!("@{SET}")))
    };
    let mut ip = plain("ip").to_vec();
    ip.push(unequal(
        &payload("ip", "saddr"),
        &json!(PROBING.to_string()),
    ));
    ip.push(known(payload("ether", "saddr"), payload("ip", "saddr")));
    ip.push(json!({ "accept": null }));
    let mut arp = plain("arp").to_vec();
    // Requests and answers of IPv4 over Ethernet: whoever reads it reads the addresses where nft does.
    arp.extend([
        equal(&payload("arp", "htype"), &json!(1)),
        equal(&payload("arp", "ptype"), &json!("ip")),
        equal(&payload("arp", "hlen"), &json!(6)),
        equal(&payload("arp", "plen"), &json!(4)),
        equal(
            &payload("arp", "operation"),
            &json!({ "set": ["request", "reply"] }),
        ),
        // The frame's sender, and the one that its receivers will believe.
        known(payload("ether", "saddr"), payload("arp", "saddr ip")),
        known(payload("arp", "saddr ether"), payload("arp", "saddr ip")),
        json!({ "accept": null }),
    ]);
    let mut rules: Vec<Value> = Vec::new();
    for devices in DEVICES {
        let ours = equal(&device(), &json!(devices));
        let judged = json!({ "jump": { "target": CHAIN } });
        rules.push(rule(HOOK, &[ours.clone(), judged], None));
        // The address first: whatever a container sends to elsewhere comes by here.
        rules.push(refuse(
            LOCAL_HOOK,
            &[is_link_local(), ours],
            Refused::LinkLocal,
        ));
    }
    rules.push(refuse(CHAIN, &[is_link_local()], Refused::LinkLocal));
    rules.push(rule(CHAIN, &ip, None));
    rules.push(rule(CHAIN, &arp, None));
    // Nothing passes from here on; what follows only tells why.
    for tag in ["8021q", "8021ad"] {
        rules.push(refuse(
            CHAIN,
            &[equal(&written, &json!(tag))],
            Refused::Tagged,
        ));
    }
    for protocol in ["ip", "arp"] {
        let protocol = json!(protocol);
        let disguised = [equal(&written, &protocol), unequal(&taken, &protocol)];
        rules.push(refuse(CHAIN, &disguised, Refused::Disguised));
    }
    for (protocol, reason) in [
        ("ip", Refused::Source),
        ("arp", Refused::Arp),
        ("ip6", Refused::Ipv6),
    ] {
        rules.push(refuse(CHAIN, &[equal(&written, &json!(protocol))], reason));
    }
    rules.push(refuse(CHAIN, &[], Refused::Protocol));
    rules
}

/// A rule that drops and counts what matches.
fn refuse(chain: &str, matches: &[Value], reason: Refused) -> Value {
    let mut expr = matches.to_vec();
    expr.extend([json!({ "counter": null }), json!({ "drop": null })]);
    rule(chain, &expr, Some(reason))
}

/// A rule whose comment names its wanted form by a hash, as the table `inet oncache` has it, and the reason for
/// which it refuses.
fn rule(chain: &str, expr: &[Value], reason: Option<Refused>) -> Value {
    let form = Value::from(expr.to_vec()).to_string();
    let comment = Refused::comment(fnv1a(form.as_bytes()), reason);
    json!({ "rule": {
        "family": FAMILY, "table": TABLE, "chain": chain, "expr": expr, "comment": comment,
    } })
}

/// What two rules are compared by.
fn rule_key(rule: &Value) -> String {
    let rule = rule.get("rule").unwrap_or(rule);
    format!("{} {}", rule["chain"], rule["comment"])
}

/// Rules as they are compared: chain by chain, and in order within each.
fn keys<'a>(rules: impl Iterator<Item = &'a Value>) -> Vec<String> {
    let mut keys: Vec<(String, String)> = rules
        .map(|rule| {
            (
                rule.get("rule").unwrap_or(rule)["chain"].to_string(),
                rule_key(rule),
            )
        })
        .collect();
    // Stable: the order within a chain is what the rules mean.
    keys.sort_by(|(one, _), (other, _)| one.cmp(other));
    keys.into_iter().map(|(_, key)| key).collect()
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
    let rules = keys(objects(listing, "rule"));
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
            "name": SET, "elem": sources.iter().flat_map(Source::elements).collect::<Vec<_>>(),
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
    fn one_more_or_less_is_its_elements() {
        let (two, three) = (
            BTreeSet::from([source(2)]),
            BTreeSet::from([source(2), source(3)]),
        );
        let commands = |wanted, present| -> Vec<Value> {
            let commands = difference(wanted, Some(&listed(present)));
            commands.into_iter().map(|(command, _)| command).collect()
        };
        let one_by_one = |verb: &str| -> Vec<Value> {
            let mut all: Vec<Value> = source(3).elements().into();
            all.sort_by_key(|element| element["concat"][2] == "0.0.0.0");
            all.into_iter()
                .map(|it| json!({ verb: elements(&[it]) }))
                .collect()
        };
        assert_eq!(commands(&three, &two), one_by_one("add"));
        let mut removed = commands(&two, &three);
        removed.reverse();
        assert_eq!(removed, one_by_one("delete"));
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
