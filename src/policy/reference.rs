//! The compiled chains decide as "the first rule that matches" does: both are run on the same packets.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use proptest::prelude::*;
use serde_json::Value;

use super::{
    compile::{Bridging, SameHost, compile},
    opener::YOUNG,
    order::{Local, Locals, effective},
};
use crate::{
    config::{Action, Party, PortRange, Protocol, Rule},
    nft::Table,
};

/// A packet's header, or one side of conntrack's tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: Protocol,
    source_port: u16,
    destination_port: u16,
}

impl Tuple {
    const fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// What conntrack says of a packet.
#[derive(Clone, Copy, Debug)]
enum Tracked {
    /// Invalid or untracked.
    Not,
    /// The packet opens a flow, or is the first that conntrack sees of it (TCP without SYN).
    New { syn: bool },
    /// The packet goes with a flow; `reply` is its direction.
    Established { reply: bool },
    /// An ICMP error about the flow, from anywhere.
    Error { reply: bool },
}

/// Who opened the flow by the entry's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opener {
    Original,
    Reply,
    Unknown,
}

/// A packet: the flow as conntrack has it, and what this packet is of it.
#[derive(Clone, Copy, Debug)]
struct Packet {
    flow: Tuple,
    tracked: Tracked,
    opener: Opener,
}

impl Packet {
    fn header(self) -> Tuple {
        match self.tracked {
            Tracked::Established { reply: true } => self.flow.reversed(),
            Tracked::Error { reply } => {
                let to = if reply {
                    self.flow.source
                } else {
                    self.flow.destination
                };
                Tuple {
                    // A router between the two.
                    source: Ipv4Addr::new(192, 0, 2, 1),
                    destination: to,
                    protocol: Protocol::Icmp,
                    source_port: 0,
                    destination_port: 0,
                }
            }
            _ => self.flow,
        }
    }

    fn state(self) -> &'static str {
        match self.tracked {
            Tracked::Not => "invalid",
            Tracked::New { .. } => "new",
            Tracked::Established { .. } => "established",
            Tracked::Error { .. } => "related",
        }
    }

    /// The flows that it may be of, by who may have opened it.
    fn flows(self) -> Vec<Tuple> {
        let both = || vec![self.flow, self.flow.reversed()];
        match (self.tracked, self.flow.protocol) {
            (Tracked::Not, _) | (Tracked::New { syn: false }, Protocol::Tcp) => both(),
            (Tracked::New { .. }, _) => vec![self.flow],
            (Tracked::Established { .. }, Protocol::Icmp) => vec![self.flow],
            _ => match self.opener {
                Opener::Original => vec![self.flow],
                // Of TCP it is never said.
                Opener::Reply => vec![self.flow.reversed()],
                Opener::Unknown => both(),
            },
        }
    }
}

/// The rules as the documentation has them.
mod stated {
    use super::*;

    fn matches(rule: &Rule, flow: Tuple, locals: &Locals, ports: bool) -> bool {
        let within = |party: &Option<Party>, address: Ipv4Addr| match party {
            None => true,
            Some(Party::Net(net)) => net.contains(&address),
            Some(Party::Container(name)) => {
                locals.get(name).is_some_and(|local| local.ip == address)
            }
        };
        within(&rule.from, flow.source)
            && within(&rule.to, flow.destination)
            && rule.protocol.is_none_or(|it| it == flow.protocol)
            && (!ports
                || rule.ports.is_empty()
                || rule
                    .ports
                    .iter()
                    .any(|range| (range.first()..=range.last()).contains(&flow.destination_port)))
    }

    fn allowed(rules: &[Rule], flow: Tuple, locals: &Locals) -> bool {
        let mut matching = rules
            .iter()
            .filter(|rule| matches(rule, flow, locals, true));
        matching
            .next()
            .is_none_or(|rule| rule.action == Action::Allow)
    }

    pub(super) fn passes(rules: &[Rule], packet: Packet, locals: &Locals) -> bool {
        let error = matches!(packet.tracked, Tracked::Error { .. });
        packet.flows().into_iter().all(|flow| {
            if !error {
                return allowed(rules, flow, locals);
            }
            let mut deciding = rules.iter().filter(|rule| {
                (rule.ports.is_empty() || rule.action == Action::Allow)
                    && matches(rule, flow, locals, false)
            });
            deciding
                .next()
                .is_none_or(|rule| rule.action == Action::Allow)
        })
    }

    /// Whether a flow passes that is opened this way.
    pub(super) fn lets(rules: &[Rule], flow: Tuple, locals: &Locals) -> bool {
        allowed(rules, flow, locals)
    }
}

/// What is left to do after a rule or a chain.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Continue,
    Return,
    Accept,
    Drop,
}

/// What outlives a packet.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// The elements of the sets, which never go by themselves here.
    sets: BTreeMap<String, BTreeSet<String>>,
    /// The label of the packet's conntrack entry.
    label: BTreeSet<u64>,
    /// The entry was there before the packet.
    confirmed: bool,
}

/// The compiled rules, run as nft(8) says.
struct Machine<'t> {
    table: &'t Table,
    packet: Packet,
    iifname: &'t str,
    oifname: &'t str,
    memory: RefCell<Memory>,
}

impl<'t> Machine<'t> {
    fn new(table: &'t Table, packet: Packet, iifname: &'t str, oifname: &'t str) -> Self {
        let label = match packet.opener {
            Opener::Original => Some(118),
            Opener::Reply => Some(119),
            Opener::Unknown => None,
        };
        let old = matches!(
            packet.tracked,
            Tracked::Established { .. } | Tracked::Error { .. }
        );
        let memory = Memory {
            label: label.filter(|_| old).into_iter().collect(),
            confirmed: old,
            ..Memory::default()
        };
        let memory = RefCell::new(memory);
        Self {
            table,
            packet,
            iifname,
            oifname,
            memory,
        }
    }
}

impl Machine<'_> {
    fn run(&self, chain: &str) -> Verdict {
        for rule in self.table.rules().iter().filter(|rule| rule.chain == chain) {
            let mut verdict = Verdict::Continue;
            for statement in &rule.statements {
                let (kind, body) = statement.json().as_object().unwrap().iter().next().unwrap();
                verdict = match kind.as_str() {
                    "match" if self.matches(body) => continue,
                    "match" => {
                        verdict = Verdict::Continue;
                        break;
                    }
                    "counter" => continue,
                    "set" => {
                        let elem = self.value(&body["elem"]["elem"]["val"]);
                        let name = body["set"].as_str().unwrap().trim_start_matches('@');
                        let Some(elem) = elem else { break };
                        let mut memory = self.memory.borrow_mut();
                        memory.sets.entry(name.to_owned()).or_default().insert(elem);
                        continue;
                    }
                    "mangle" => {
                        assert_eq!(body["key"]["ct"]["key"], "label");
                        let bit = body["value"].as_u64().unwrap();
                        self.memory.borrow_mut().label.insert(bit);
                        continue;
                    }
                    "vmap" => self.look_up(body),
                    "jump" | "goto" => self.enter(kind, body),
                    "accept" => Verdict::Accept,
                    "drop" => Verdict::Drop,
                    "return" => Verdict::Return,
                    other => panic!("statement {other}"),
                };
                break;
            }
            if verdict != Verdict::Continue {
                return verdict;
            }
        }
        Verdict::Continue
    }

    /// A jump comes back to the next rule; a goto to where the present chain was jumped to from.
    fn enter(&self, kind: &str, body: &Value) -> Verdict {
        match (self.run(body["target"].as_str().unwrap()), kind) {
            (Verdict::Continue | Verdict::Return, "jump") => Verdict::Continue,
            (Verdict::Continue | Verdict::Return, _) => Verdict::Return,
            (verdict, _) => verdict,
        }
    }

    fn look_up(&self, body: &Value) -> Verdict {
        let Some(key) = self.value(&body["key"]) else {
            return Verdict::Continue;
        };
        let pairs = body["data"]["set"].as_array().unwrap();
        let found = pairs.iter().find(|pair| pair[0].as_str() == Some(&key));
        found.map_or(Verdict::Continue, |pair| {
            self.enter("goto", &pair[1]["goto"])
        })
    }

    /// What an expression is of this packet; none where nft breaks off the rule.
    fn value(&self, expression: &Value) -> Option<String> {
        let header = self.packet.header();
        let (kind, body) = expression.as_object().unwrap().iter().next().unwrap();
        let reply = matches!(
            self.packet.tracked,
            Tracked::Established { reply: true } | Tracked::Error { reply: true }
        );
        let tracked = !matches!(self.packet.tracked, Tracked::Not);
        match kind.as_str() {
            "meta" => Some(match body["key"].as_str().unwrap() {
                "iifname" => self.iifname.to_owned(),
                "oifname" => self.oifname.to_owned(),
                "iifgroup" => group_of(self.iifname),
                "oifgroup" => group_of(self.oifname),
                "l4proto" => header.protocol.name().to_owned(),
                "protocol" => "ip".to_owned(),
                other => panic!("meta {other}"),
            }),
            "concat" => {
                let parts = body.as_array().unwrap().iter();
                let parts: Option<Vec<String>> = parts.map(|part| self.value(part)).collect();
                parts.map(|parts| parts.join(" . "))
            }
            "payload" => {
                let field = body["field"].as_str().unwrap();
                let protocol = body["protocol"].as_str().unwrap();
                if protocol == "ether" {
                    let value = if field == "type" { "ip" } else { GATEWAY };
                    return Some(value.to_owned());
                }
                let ported = header.protocol.has_ports();
                if protocol != "ip"
                    && !(protocol == "th" && ported)
                    && protocol != header.protocol.name()
                {
                    return None;
                }
                Some(match field {
                    "saddr" => header.source.to_string(),
                    "daddr" => header.destination.to_string(),
                    "sport" => header.source_port.to_string(),
                    "dport" => header.destination_port.to_string(),
                    other => panic!("field {other}"),
                })
            }
            "ct" => {
                let key = body["key"].as_str().unwrap();
                match (key, body["dir"].as_str()) {
                    ("state", _) => Some(self.packet.state().to_owned()),
                    _ if !tracked => None,
                    ("direction", _) => Some(if reply { "reply" } else { "original" }.to_owned()),
                    ("protocol", _) => Some(self.packet.flow.protocol.name().to_owned()),
                    ("ip saddr", Some("original")) => Some(self.packet.flow.source.to_string()),
                    ("ip saddr", Some("reply")) => Some(self.packet.flow.destination.to_string()),
                    other => panic!("ct {other:?}"),
                }
            }
            // tcp flags & (fin | syn | rst | ack)
            "&" if header.protocol == Protocol::Tcp => Some(match self.packet.tracked {
                Tracked::New { syn: true } => "syn".to_owned(),
                _ => "ack".to_owned(),
            }),
            "&" => None,
            other => panic!("expression {other}"),
        }
    }

    fn matches(&self, body: &Value) -> bool {
        if let Some(key @ ("label" | "status")) = body["left"]["ct"]["key"].as_str() {
            if matches!(self.packet.tracked, Tracked::Not) {
                return false;
            }
            let memory = self.memory.borrow();
            return match (key, body["op"].as_str().unwrap()) {
                ("label", "in") => memory.label.contains(&body["right"].as_u64().unwrap()),
                ("status", "in") => memory.confirmed,
                ("status", "!") => !memory.confirmed,
                other => panic!("{other:?}"),
            };
        }
        let Some(left) = self.value(&body["left"]) else {
            return false;
        };
        if let Some(set) = body["right"].as_str().and_then(|it| it.strip_prefix('@')) {
            let memory = self.memory.borrow();
            return memory.sets.get(set).is_some_and(|set| set.contains(&left));
        }
        let within = contains(&body["right"], &left);
        match body["op"].as_str().unwrap() {
            "==" | "in" => within,
            "!=" => !within,
            other => panic!("operator {other}"),
        }
    }
}

/// Whether a value is what the right side of a comparison says.
fn contains(right: &Value, left: &str) -> bool {
    match right {
        Value::String(text) => match text.strip_suffix('*') {
            Some(beginning) => left.starts_with(beginning),
            None => text == left,
        },
        Value::Number(number) => number.to_string() == left,
        Value::Array(list) => list.iter().any(|it| contains(it, left)),
        Value::Object(object) => {
            let (kind, body) = object.iter().next().unwrap();
            match kind.as_str() {
                "set" => contains(body, left),
                "concat" => {
                    let parts = body.as_array().unwrap().iter();
                    let parts: Vec<&str> = parts.map(|part| part.as_str().unwrap()).collect();
                    parts.join(" . ") == left
                }
                "range" => {
                    let bound =
                        |index: usize| u16::try_from(body[index].as_u64().unwrap()).unwrap();
                    (bound(0)..=bound(1)).contains(&left.parse().unwrap())
                }
                "prefix" => {
                    let length = u8::try_from(body["len"].as_u64().unwrap()).unwrap();
                    let address = body["addr"].as_str().unwrap().parse().unwrap();
                    Ipv4Net::new_assert(address, length)
                        .contains(&left.parse::<Ipv4Addr>().unwrap())
                }
                other => panic!("right side {other}"),
            }
        }
        other => panic!("right side {other}"),
    }
}

mod forgetting;

fn group_of(device: &str) -> String {
    let ours = ["oncache0", "oncache-vx0"].contains(&device);
    if ours { GROUP } else { 0 }.to_string()
}

/// The overlay's device group.
const GROUP: u32 = 28_526;

const GATEWAY: &str = "0a:62:0a:2a:01:01";

fn bridging(same_host: SameHost) -> Bridging {
    Bridging {
        same_host,
        bridge: "oncache0".to_owned(),
        mac: [0x0a, 0x62, 10, 42, 1, 1],
        group: GROUP,
    }
}

fn locals() -> Locals {
    let local = |last: u8| Local {
        ip: Ipv4Addr::new(10, 42, 1, last),
        device: format!("onc-c{last}"),
    };
    Locals::from([("one".to_owned(), local(1)), ("two".to_owned(), local(2))])
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    (0_u8..4).prop_map(|last| Ipv4Addr::new(10, 42, 1, last))
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Icmp)
    ]
}

fn party() -> impl Strategy<Value = Party> {
    let net = (
        address(),
        prop_oneof![Just(32_u8), Just(31), Just(30), Just(0)],
    );
    let net =
        net.prop_map(|(address, length)| Party::Net(Ipv4Net::new_assert(address, length).trunc()));
    let name = prop_oneof![Just("one"), Just("two"), Just("nobody")];
    prop_oneof![net, name.prop_map(|name| Party::Container(name.to_owned()))]
}

fn rule() -> impl Strategy<Value = Rule> {
    let range = (1_u16..6, 0_u16..3);
    let range = range.prop_map(|(first, more)| PortRange::new(first, first + more).unwrap());
    (
        prop_oneof![Just(Action::Allow), Just(Action::Deny)],
        proptest::option::of(party()),
        proptest::option::of(party()),
        proptest::option::of(protocol()),
        proptest::collection::vec(range, 0..4),
    )
        .prop_map(|(action, from, to, protocol, ports)| Rule {
            action,
            from,
            to,
            protocol,
            ports: match protocol {
                Some(protocol) if protocol.has_ports() => ports,
                _ => vec![],
            },
        })
}

fn packet() -> impl Strategy<Value = Packet> {
    let tracked = prop_oneof![
        Just(Tracked::Not),
        any::<bool>().prop_map(|syn| Tracked::New { syn }),
        any::<bool>().prop_map(|reply| Tracked::Established { reply }),
        any::<bool>().prop_map(|reply| Tracked::Error { reply }),
    ];
    (
        address(),
        address(),
        protocol(),
        1_u16..8,
        1_u16..8,
        tracked,
        prop_oneof![
            Just(Opener::Original),
            Just(Opener::Reply),
            Just(Opener::Unknown)
        ],
    )
        .prop_map(
            |(source, destination, protocol, source_port, destination_port, tracked, opener)| {
                Packet {
                    flow: Tuple {
                        source,
                        destination,
                        protocol,
                        source_port,
                        destination_port,
                    },
                    tracked,
                    opener: match (protocol, opener) {
                        (Protocol::Tcp, Opener::Reply) => Opener::Unknown,
                        _ => opener,
                    },
                }
            },
        )
        .prop_filter("a flow has two ends", |packet| {
            packet.flow != packet.flow.reversed()
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 700,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_first_rule_that_matches_decides(
        rules in proptest::collection::vec(rule(), 1..8),
        packets in proptest::collection::vec(packet(), 1..24),
    ) {
        let locals = locals();
        let placed = effective(&rules, &[]);
        let [inet, bridge] = compile(&placed, &locals, &bridging(SameHost::BridgeTable));
        for packet in packets {
            let expected = stated::passes(&rules, packet, &locals);
            for (hook, iifname, oifname) in [
                ("forward", "oncache0", "oncache-vx0"),
                ("forward", "oncache-vx0", "oncache0"),
                ("forward", "oncache0", "eth0"),
                ("input", "oncache0", ""),
                ("output", "", "oncache0"),
            ] {
                let machine = Machine::new(&inet, packet, iifname, oifname);
                let passes = machine.run(hook) != Verdict::Drop;
                prop_assert_eq!(passes, expected, "{} {:?} by {:#?}", hook, packet, rules);
            }
            let machine = Machine::new(&inet, packet, "eth0", "docker0");
            prop_assert_ne!(machine.run("forward"), Verdict::Drop, "not ours");
            let machine = Machine::new(&bridge, packet, "vnet0", "vnet1");
            prop_assert_ne!(machine.run("forward"), Verdict::Drop, "not ours");

            // Between containers of one host: as elsewhere, if it is for the one that gets it.
            let denies = rules.iter().any(|rule| rule.action == Action::Deny);
            for local in locals.values() {
                let machine =
                    Machine::new(&bridge, packet, "onc-x", &local.device);
                let astray = denies && packet.header().destination != local.ip;
                let passes = machine.run("forward") != Verdict::Drop;
                prop_assert_eq!(
                    passes, expected && !astray, "{:?} to {:?} by {:#?}", packet, local, rules
                );
            }
        }
    }
}
