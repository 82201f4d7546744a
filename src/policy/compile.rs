//! Rules to nftables. Pure: the same rules and containers give the same tables.
//!
//! Who opened a flow is conntrack's word. A rule stands in three chains:
//!
//! - `forwards` for packets from the one who opened the flow to the other: `from` is the packet's
//!   source, `to` its destination, `ports` its destination ports;
//! - `backwards` for the other direction, the other way round;
//! - `errors` for ICMP errors, which are judged as the flow that they are about. Conntrack's tuple has
//!   its addresses; of its ports nft cannot say anything without the flow's own header, so rules with
//!   ports are taken as allowing only.
//!
//! Where conntrack knows no direction (invalid and untracked packets), or only guesses it (a TCP flow
//! picked up in the middle), a packet has to be allowed by `forwards` and by `backwards`.
//!
//! In the hooks that judge (forward, input, output at a priority behind destination NAT and before
//! source NAT) the packet's own header has the real addresses of both sides.

use serde_json::{Value, json};

use super::{
    order::{Local, Locals, Placed, addresses},
    table::WantedTable,
};
use crate::{
    config::{Action, PortRange, Protocol, Rule},
    overlay::names::{BRIDGE, VXLAN},
};

/// Behind `filter` (0), before the est mark (100): what is denied is not learned from.
const PRIORITY: i32 = 20;
/// How containers' devices are called, see `container::devices`.
const DEVICES: [&str; 2] = ["onc-*", "onc_*"];
/// Counts frames between containers of one host that rules can't judge.
pub const UNJUDGED: &str = "unjudged";

/// How packets between containers of one host come before the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameHost {
    /// The bridge family has conntrack (`CONFIG_NF_CONNTRACK_BRIDGE`): the rules stand in the table
    /// `bridge oncache-policy` too.
    BridgeTable,
    /// The bridge hands IPv4 packets to the hooks of `inet` (`br_netfilter`).
    InetHooks,
}

/// Both tables for `rules`, which must not be empty; where a container is named that is not among
/// `locals`, the rule is left out.
#[must_use]
pub fn compile(rules: &[Placed], locals: &Locals, same_host: SameHost) -> [WantedTable; 2] {
    let mut inet = WantedTable::new("inet");
    inet.base_chain("forward", PRIORITY);
    inet.base_chain("input", PRIORITY);
    inet.base_chain("output", PRIORITY);
    judging(&mut inet, rules, locals);
    let judge = || json!({ "goto": { "target": "judge" } });
    let ours = |key: &str| equal(&meta(key), &json!({ "set": [BRIDGE, VXLAN] }));
    for (chain, key) in [
        ("forward", "iifname"),
        ("forward", "oifname"),
        ("input", "iifname"),
        ("output", "oifname"),
    ] {
        inet.rule(chain, &[ours(key), judge()]);
    }

    let mut bridge = WantedTable::new("bridge");
    bridge.base_chain("forward", PRIORITY);
    bridge.chain("ports");
    for key in ["iifname", "oifname"] {
        for devices in DEVICES {
            let ports = json!({ "goto": { "target": "ports" } });
            bridge.rule("forward", &[equal(&meta(key), &json!(devices)), ports]);
        }
    }
    bridge.counter(UNJUDGED);
    let ether_type = payload("ether", "type");
    let accept = json!({ "accept": null });
    bridge.rule(
        "ports",
        &[equal(&ether_type, &json!("arp")), accept.clone()],
    );
    if rules
        .iter()
        .any(|placed| placed.rule.action == Action::Deny)
    {
        refuse_unjudged(&mut bridge, locals);
    } else {
        bridge.rule("ports", &[unequal(&ether_type, &json!("ip")), accept]);
    }
    if same_host == SameHost::BridgeTable {
        judging(&mut bridge, rules, locals);
        bridge.rule("ports", &[judge()]);
    }
    [inet, bridge]
}

/// Drops what could get round the rules between containers of one host: frames that are not plain
/// IPv4, and IPv4 packets to another address than the container's that gets them (broadcast,
/// multicast, addresses that nobody gave it).
fn refuse_unjudged(bridge: &mut WantedTable, locals: &Locals) {
    let refused = || [json!({ "counter": UNJUDGED }), json!({ "drop": null })];
    let [counter, drop] = refused();
    let other = unequal(&payload("ether", "type"), &json!("ip"));
    bridge.rule("ports", &[other, counter, drop]);
    let pairs: Vec<Value> = locals
        .values()
        .map(|Local { ip, device }| json!({ "concat": [device, ip.to_string()] }))
        .collect();
    if pairs.is_empty() {
        return;
    }
    let reached = json!({ "concat": [meta("oifname"), payload("ip", "daddr")] });
    for devices in DEVICES {
        let container = equal(&meta("oifname"), &json!(devices));
        let astray = unequal(&reached, &json!({ "set": pairs }));
        let [counter, drop] = refused();
        bridge.rule("ports", &[container, astray, counter, drop]);
    }
}

/// The chain `judge` and what it leads to.
fn judging(table: &mut WantedTable, rules: &[Placed], locals: &Locals) {
    for chain in ["judge", "either", "errors", "forwards", "backwards"] {
        table.chain(chain);
    }
    let goto = |chain: &str| json!({ "goto": { "target": chain } });
    let state = |states: &Value| {
        let state = json!({ "ct": { "key": "state" } });
        json!({ "match": { "op": "in", "left": state, "right": states } })
    };
    table.rule(
        "judge",
        &[state(&json!(["invalid", "untracked"])), goto("either")],
    );
    let icmp = equal(&meta("l4proto"), &json!("icmp"));
    table.rule("judge", &[state(&json!("related")), icmp, goto("errors")]);
    let flags = json!({ "&": [payload("tcp", "flags"), ["fin", "syn", "rst", "ack"]] });
    table.rule(
        "judge",
        &[
            state(&json!("new")),
            unequal(&flags, &json!("syn")),
            goto("either"),
        ],
    );
    let directions = [
        json!(["original", goto("forwards")]),
        json!(["reply", goto("backwards")]),
    ];
    let direction = json!({ "ct": { "key": "direction" } });
    table.rule(
        "judge",
        &[json!({ "vmap": { "key": direction, "data": { "set": directions } } })],
    );
    for chain in ["forwards", "backwards"] {
        table.rule("either", &[json!({ "jump": { "target": chain } })]);
    }
    for Placed { rule, counter, .. } in rules {
        table.counter(counter);
        for view in [View::Forwards, View::Backwards, View::Errors] {
            if let Some(mut statements) = matches(rule, view, locals) {
                statements.push(json!({ "counter": counter }));
                statements.push(match rule.action {
                    // To the next chain that has to allow it, or past the rest of this hook's.
                    Action::Allow => json!({ "return": null }),
                    Action::Deny => json!({ "drop": null }),
                });
                table.rule(view.chain(), &statements);
            }
        }
    }
}

/// From where a rule looks at a packet.
#[derive(Clone, Copy)]
enum View {
    Forwards,
    Backwards,
    Errors,
}

impl View {
    const fn chain(self) -> &'static str {
        match self {
            Self::Forwards => "forwards",
            Self::Backwards => "backwards",
            Self::Errors => "errors",
        }
    }

    /// The address of the side that opened the flow.
    fn from(self) -> Value {
        match self {
            Self::Forwards => payload("ip", "saddr"),
            Self::Backwards => payload("ip", "daddr"),
            Self::Errors => json!({ "ct": { "key": "ip saddr", "dir": "original" } }),
        }
    }

    /// The address of the other side: the one that replies come from.
    fn to(self) -> Value {
        match self {
            Self::Forwards => payload("ip", "daddr"),
            Self::Backwards => payload("ip", "saddr"),
            Self::Errors => json!({ "ct": { "key": "ip saddr", "dir": "reply" } }),
        }
    }

    fn protocol(self, protocol: Protocol) -> Value {
        let key = match self {
            Self::Forwards | Self::Backwards => meta("l4proto"),
            Self::Errors => json!({ "ct": { "key": "protocol", "dir": "original" } }),
        };
        equal(&key, &json!(protocol.name()))
    }

    fn port(self, protocol: Protocol) -> Value {
        let field = match self {
            Self::Backwards => "sport",
            Self::Forwards | Self::Errors => "dport",
        };
        payload(protocol.name(), field)
    }
}

/// What a packet has to be like for `rule` to decide about it; none where it never does.
fn matches(rule: &Rule, view: View, locals: &Locals) -> Option<Vec<Value>> {
    let mut statements = Vec::new();
    for (party, address) in [(&rule.from, view.from()), (&rule.to, view.to())] {
        if let Some(party) = party {
            let net = addresses(party, locals)?;
            let net = if net.prefix_len() == 32 {
                json!(net.network().to_string())
            } else {
                json!({ "prefix": { "addr": net.network().to_string(), "len": net.prefix_len() } })
            };
            statements.push(equal(&address, &net));
        }
    }
    match (view, rule.protocol) {
        (View::Errors, _) if !rule.ports.is_empty() && rule.action == Action::Deny => return None,
        (View::Forwards | View::Backwards, Some(protocol)) if !rule.ports.is_empty() => {
            statements.push(equal(&view.port(protocol), &port_set(&rule.ports)));
        }
        (_, Some(protocol)) => statements.push(view.protocol(protocol)),
        (_, None) => {}
    }
    Some(statements)
}

/// Ports as an anonymous set, which nft refuses if ranges overlap; one alone needs no set.
fn port_set(ports: &[PortRange]) -> Value {
    let mut sorted = ports.to_vec();
    sorted.sort();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some((_, last)) if range.first() <= last.saturating_add(1) => {
                *last = range.last().max(*last);
            }
            _ => merged.push((range.first(), range.last())),
        }
    }
    let mut elements: Vec<Value> = merged
        .into_iter()
        .map(|(first, last)| match first == last {
            true => json!(first),
            false => json!({ "range": [first, last] }),
        })
        .collect();
    match elements.len() {
        1 => elements.remove(0),
        _ => json!({ "set": elements }),
    }
}

fn equal(left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

fn unequal(left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": "!=", "left": left, "right": right } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}
