//! Rules to nftables. Pure: the same rules and containers give the same tables.
//!
//! A rule stands in three chains, and in a fourth for errors about flows that conntrack has the wrong
//! way round:
//!
//! - `forwards` for packets from the one who opened the flow to the other: `from` is the packet's
//!   source, `to` its destination, `ports` its destination ports;
//! - `backwards` for the other direction, the other way round;
//! - `errors` and `errors-back` for ICMP errors, which are judged as the flow that they are about.
//!   Conntrack's tuple has its addresses; of its ports nft cannot say anything without the flow's own
//!   header, so rules with ports are taken as allowing only.
//!
//! Which of them judges a packet is [`super::opener`]'s part, whose chains are there without rules,
//! too. Where the opener is not known, a packet has to be allowed by `forwards` and by `backwards`.
//!
//! In the hooks that judge (forward, input, output at a priority behind destination NAT and before
//! source NAT) the packet's own header has the real addresses of both sides.

use super::{
    BRIDGE_TABLE, INET_TABLE,
    opener::{Sight, finding},
    order::{Local, Locals, Placed, addresses},
};
use crate::{
    config::{Action, PortRange, Protocol, Rule},
    container::devices::PATTERNS,
    netlink::{Mac, format_mac},
    nft::{
        Expression, Hook, Statement, Table,
        expression::{concat, ct_of, meta, payload, range, set_of},
        statement::{accept, count_in, drop, equal, go_back, goto, unequal},
    },
};

/// Behind `filter` (0), before the est mark (100): what is denied is not learned from.
const PRIORITY: i32 = 20;
/// Counts frames between containers of one host that rules can't judge.
pub const UNJUDGED: &str = "unjudged";

/// How packets between containers of one host come before the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameHost {
    /// The bridge family has conntrack (`CONFIG_NF_CONNTRACK_BRIDGE`): the table
    /// `bridge oncache-policy` judges them.
    BridgeTable,
    /// The bridge hands IPv4 packets to the hooks of `inet` (`br_netfilter`), which judge TCP and ICMP;
    /// the others are judged by `bridge oncache-policy`, which needs no conntrack for them.
    InetHooks,
}

/// What the tables depend on besides the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridging {
    /// How packets between containers of one host are judged; without a rule it says nothing.
    pub same_host: SameHost,
    /// The bridge's name.
    pub bridge: String,
    /// The bridge's own address.
    pub mac: Mac,
    /// The device group of what packets of the overlay come and go by.
    pub group: u32,
}

/// Both tables for `rules`; where a container is named that is not among `locals`, the rule is left
/// out. Without rules the tables only remember who opens flows.
#[must_use]
pub fn compile(rules: &[Placed], locals: &Locals, bridging: &Bridging) -> [Table; 2] {
    let mut inet = Table::new(INET_TABLE.family, INET_TABLE.name);
    for hook in ["forward", "input", "output"] {
        inet.base_chain(hook, Hook::filter(hook, PRIORITY));
    }
    let some = !rules.is_empty();
    let sight = Sight {
        conntrack: true,
        rules: some,
        unwatched: false,
    };
    finding(
        &mut inet,
        sight,
        Some((&bridging.bridge, &format_mac(bridging.mac))),
    );
    judging(&mut inet, rules, locals, sight);
    let by = |key| equal(meta(key), bridging.group);
    for (chain, ours) in [
        ("forward", by("iifgroup")),
        ("forward", by("oifgroup")),
        ("input", by("iifgroup")),
        ("output", by("oifgroup")),
    ] {
        inet.rule(chain, [ours, goto("judge")]);
    }

    let mut bridge = Table::new(BRIDGE_TABLE.family, BRIDGE_TABLE.name);
    bridge.base_chain("forward", Hook::filter("forward", PRIORITY));
    bridge.chain("ports");
    for key in ["iifname", "oifname"] {
        for devices in PATTERNS {
            bridge.rule("forward", [equal(meta(key), devices), goto("ports")]);
        }
    }
    bridge.counter(UNJUDGED);
    let ether_type = || payload("ether", "type");
    bridge.rule("ports", [equal(ether_type(), "arp"), accept()]);
    if rules
        .iter()
        .any(|placed| placed.rule.action == Action::Deny)
    {
        refuse_unjudged(&mut bridge, locals);
    } else {
        bridge.rule("ports", [unequal(ether_type(), "ip"), accept()]);
    }
    let sight = Sight {
        // Without a rule conntrack would be paid for by every bridge of the host.
        conntrack: some && bridging.same_host == SameHost::BridgeTable,
        rules: some,
        unwatched: true,
    };
    finding(&mut bridge, sight, None);
    judging(&mut bridge, rules, locals, sight);
    bridge.rule("ports", [goto("judge")]);
    [inet, bridge]
}

/// Drops what could get round the rules between containers of one host: frames that are not plain
/// IPv4, and IPv4 packets to another address than the container's that gets them (broadcast,
/// multicast, addresses that nobody gave it).
fn refuse_unjudged(bridge: &mut Table, locals: &Locals) {
    let other = unequal(payload("ether", "type"), "ip");
    bridge.rule("ports", [other, count_in(UNJUDGED), drop()]);
    if locals.is_empty() {
        return;
    }
    let locals = locals.values();
    let pairs = locals.map(|Local { ip, device }| concat([device.clone(), ip.to_string()]));
    let pairs = set_of(pairs);
    for devices in PATTERNS {
        let container = equal(meta("oifname"), devices);
        let reached = concat([meta("oifname"), payload("ip", "daddr")]);
        let astray = unequal(reached, pairs.clone());
        bridge.rule("ports", [container, astray, count_in(UNJUDGED), drop()]);
    }
}

/// The rules in their chains.
fn judging(table: &mut Table, rules: &[Placed], locals: &Locals, sight: Sight) {
    for view in VIEWS {
        table.chain(view.chain());
    }
    for Placed { rule, counter, .. } in rules {
        table.counter(counter);
        for view in VIEWS {
            // Conntrack's addresses.
            if view.is_of_errors() && !sight.conntrack {
                continue;
            }
            if let Some(mut statements) = matches(rule, view, locals) {
                statements.push(count_in(counter));
                statements.push(match rule.action {
                    // To the next chain that has to allow it, or past the rest of this hook's.
                    Action::Allow => go_back(),
                    Action::Deny => drop(),
                });
                table.rule(view.chain(), statements);
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
    ErrorsBack,
}

const VIEWS: [View; 4] = [
    View::Forwards,
    View::Backwards,
    View::Errors,
    View::ErrorsBack,
];

impl View {
    const fn is_of_errors(self) -> bool {
        matches!(self, Self::Errors | Self::ErrorsBack)
    }

    const fn chain(self) -> &'static str {
        match self {
            Self::Forwards => "forwards",
            Self::Backwards => "backwards",
            Self::Errors => "errors",
            Self::ErrorsBack => "errors-back",
        }
    }

    /// The address of the side that opened the flow.
    fn from(self) -> Expression {
        match self {
            Self::Forwards => payload("ip", "saddr"),
            Self::Backwards => payload("ip", "daddr"),
            Self::Errors => ct_of("original", "ip saddr"),
            Self::ErrorsBack => ct_of("reply", "ip saddr"),
        }
    }

    /// The address of the other side: the one that answers come from.
    fn to(self) -> Expression {
        match self {
            Self::Forwards => payload("ip", "daddr"),
            Self::Backwards => payload("ip", "saddr"),
            Self::Errors => ct_of("reply", "ip saddr"),
            Self::ErrorsBack => ct_of("original", "ip saddr"),
        }
    }

    fn protocol(self, protocol: Protocol) -> Statement {
        let key = match self {
            Self::Forwards | Self::Backwards => meta("l4proto"),
            Self::Errors | Self::ErrorsBack => ct_of("original", "protocol"),
        };
        equal(key, protocol.name())
    }

    fn port(self, protocol: Protocol) -> Expression {
        let field = match self {
            Self::Backwards => "sport",
            Self::Forwards | Self::Errors | Self::ErrorsBack => "dport",
        };
        payload(protocol.name(), field)
    }
}

/// What a packet has to be like for `rule` to decide about it; none where it never does.
fn matches(rule: &Rule, view: View, locals: &Locals) -> Option<Vec<Statement>> {
    let mut statements = Vec::new();
    for (party, address) in [(&rule.from, view.from()), (&rule.to, view.to())] {
        if let Some(party) = party {
            statements.push(equal(address, addresses(party, locals)?));
        }
    }
    match (view, rule.protocol) {
        (View::Errors | View::ErrorsBack, _)
            if !rule.ports.is_empty() && rule.action == Action::Deny =>
        {
            return None;
        }
        (View::Forwards | View::Backwards, Some(protocol)) if !rule.ports.is_empty() => {
            statements.push(equal(view.port(protocol), port_set(&rule.ports)));
        }
        (_, Some(protocol)) => statements.push(view.protocol(protocol)),
        (_, None) => {}
    }
    Some(statements)
}

/// Ports as an anonymous set, which nft refuses if ranges overlap; one alone needs no set.
fn port_set(ports: &[PortRange]) -> Expression {
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
    let mut elements: Vec<Expression> = merged
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.into(),
            false => range(first, last),
        })
        .collect();
    match elements.len() {
        1 => elements.remove(0),
        _ => set_of(elements),
    }
}
