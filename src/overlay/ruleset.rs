//! The rules of the table `inet oncache`, as nft takes them in.

use std::{borrow::Cow, net::Ipv4Addr};

use ipnet::Ipv4Net;
use nftables::{
    expr::{
        BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField,
        Prefix, SetItem,
    },
    schema::{Chain, NfCmd, NfListObject, NfObject, Nftables, Rule, Table},
    stmt::{Accept, Counter, Drop, JumpTarget, Mangle, Match, Operator, Statement},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};

use crate::stable_hash::fnv1a;

use super::{
    names::{BRIDGE, GROUP},
    nftables::{Fingerprint, TABLE, fingerprint},
    refused::Refused,
    tunnel_guard::{self, Tunnel},
};

/// Priority of the chain that adds the est mark: behind `filter` (0) and `security` (50), where
/// rules that refuse packets are (include/uapi/linux/netfilter_ipv4.h, `enum nf_ip_hook_priorities`).
const ESTABLISHED_PRIORITY: i32 = 100;
/// `NF_IP_PRI_NAT_SRC`.
const SOURCE_NAT_PRIORITY: i32 = 100;

/// Which bits of `skb->mark` the est-mark rule reads and sets, host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// A packet that has any of these missed the fast path and may be learned from.
    pub miss: u32,
    /// These say that conntrack holds its flow established.
    pub est: u32,
}

/// The table as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedTable {
    chains: Vec<Chain<'static>>,
    rules: Vec<Rule<'static>>,
}

impl WantedTable {
    /// The table for a host with containers of `network`.
    #[must_use]
    pub fn new(network: Ipv4Net, marks: Marks, tunnel: &Tunnel) -> Self {
        let mut rules = vec![
            rule("forward", vec![from_overlay(), to_overlay(), accept()]),
            rule("forward", vec![iifname(BRIDGE), accept()]),
            rule(
                "forward",
                vec![
                    oifname(BRIDGE),
                    ct_state(&["established", "related"]),
                    accept(),
                ],
            ),
            rule("established", established(marks)),
            rule(
                "postrouting",
                vec![
                    // Not this host's subnet: containers that have moved here speak to the world
                    // as the others do.
                    compare(address("saddr"), Operator::EQ, prefix(network)),
                    compare(address("daddr"), Operator::NEQ, prefix(network)),
                    compare(meta(MetaKey::Oifname), Operator::NEQ, text(BRIDGE)),
                    Statement::Masquerade(None),
                ],
            ),
            // Told to send straight to an address that has moved here, a container would go on
            // doing so after it has moved on.
            rule(
                "output",
                vec![
                    to_overlay(),
                    oifname(BRIDGE),
                    compare(field("icmp", "type"), Operator::EQ, text("redirect")),
                    Statement::Drop(Some(Drop {})),
                ],
            ),
        ];
        rules.extend(tunnel_guard::rules(tunnel));
        let filter = Some(NfChainType::Filter);
        let mut chains = vec![
            chain("forward", filter, NfHook::Forward, 0),
            chain("established", filter, NfHook::Forward, ESTABLISHED_PRIORITY),
            chain("output", filter, NfHook::Output, 0),
            chain(
                "postrouting",
                Some(NfChainType::NAT),
                NfHook::Postrouting,
                SOURCE_NAT_PRIORITY,
            ),
        ];
        chains.extend(tunnel_guard::chains());
        Self { chains, rules }
    }

    /// With addresses of elsewhere that are containers' here: they do not come out of the tunnel.
    #[must_use]
    pub(super) fn with_visitors(mut self, visitors: &[Ipv4Addr]) -> Self {
        self.rules.extend(tunnel_guard::refuse_visitors(visitors));
        self
    }

    /// What [`list_table`](super::nftables::list_table) returns when the kernel has this table.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let objects = self.chains.iter().cloned().map(NfListObject::Chain);
        let rules = self.rules.iter().cloned().map(NfListObject::Rule);
        let listing = Nftables {
            objects: objects.chain(rules).map(NfObject::ListObject).collect(),
        };
        // The types are the crate's own, without maps of non-string keys: they always serialise.
        serde_json::to_string(&listing)
            .ok()
            .and_then(|json| fingerprint(&json).ok())
            .unwrap_or_default()
    }

    /// One transaction that leaves exactly this table, whatever was there: a table is added so that
    /// deleting cannot fail, and no packet sees the moment between.
    pub(super) fn transaction(&self) -> Nftables<'static> {
        let table = || NfListObject::Table(table());
        let mut commands = vec![
            NfCmd::Add(table()),
            NfCmd::Delete(table()),
            NfCmd::Add(table()),
        ];
        commands.extend(
            self.chains
                .iter()
                .cloned()
                .map(|chain| NfCmd::Add(NfListObject::Chain(chain))),
        );
        commands.extend(
            self.rules
                .iter()
                .cloned()
                .map(|rule| NfCmd::Add(NfListObject::Rule(rule))),
        );
        batch(commands)
    }
}

/// The est-mark rule. Established is conntrack's word that packets passed in both directions. A flow
/// whose addresses are rewritten is never marked: its packets are another flow on the other side,
/// and what is learned here would be applied without the rewriting.
fn established(marks: Marks) -> Vec<Statement<'static>> {
    let rewritten = Expression::List(vec![text("snat"), text("dnat")]);
    let mark = || meta(MetaKey::Mark);
    vec![
        from_overlay(),
        to_overlay(),
        ct_state(&["established"]),
        compare(
            and(ct("status"), rewritten),
            Operator::EQ,
            Expression::Number(0),
        ),
        compare(
            and(mark(), Expression::Number(marks.miss)),
            Operator::NEQ,
            Expression::Number(0),
        ),
        Statement::Mangle(Mangle {
            key: mark(),
            value: Expression::BinaryOperation(Box::new(BinaryOperation::OR(vec![
                mark(),
                Expression::Number(marks.est),
            ]))),
        }),
    ]
}

pub(super) fn table() -> Table<'static> {
    Table {
        family: NfFamily::INet,
        name: TABLE.into(),
        handle: None,
    }
}

pub(super) fn chain(
    name: &'static str,
    kind: Option<NfChainType>,
    hook: NfHook,
    priority: i32,
) -> Chain<'static> {
    Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.into(),
        _type: kind,
        hook: Some(hook),
        prio: Some(priority),
        policy: Some(NfChainPolicy::Accept),
        ..Chain::default()
    }
}

/// A chain that others lead to.
pub(super) fn inner_chain(name: &'static str) -> Chain<'static> {
    Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.into(),
        ..Chain::default()
    }
}

pub(super) fn rule(chain: &'static str, expr: Vec<Statement<'static>>) -> Rule<'static> {
    commented(chain, expr, None)
}

/// A rule that drops and counts what matches.
pub(super) fn refuse(
    chain: &'static str,
    mut expr: Vec<Statement<'static>>,
    reason: Refused,
) -> Rule<'static> {
    expr.push(Statement::Counter(Counter::Anonymous(None)));
    expr.push(Statement::Drop(Some(Drop {})));
    commented(chain, expr, Some(reason))
}

fn commented(
    chain: &'static str,
    expr: Vec<Statement<'static>>,
    reason: Option<Refused>,
) -> Rule<'static> {
    let form = serde_json::to_string(&expr).unwrap_or_default();
    Rule {
        family: NfFamily::INet,
        table: TABLE.into(),
        chain: chain.into(),
        expr: expr.into(),
        comment: Some(comment(fnv1a(form.as_bytes()), reason).into()),
        ..Rule::default()
    }
}

/// The comment of a rule with a form of this hash.
fn comment(form: u64, reason: Option<Refused>) -> String {
    match reason {
        Some(reason) => format!("oncache:{form:016x} {}", reason.name()),
        None => format!("oncache:{form:016x}"),
    }
}

pub(super) fn batch(commands: Vec<NfCmd<'static>>) -> Nftables<'static> {
    Nftables {
        objects: Cow::Owned(commands.into_iter().map(NfObject::CmdObject).collect()),
    }
}

pub(super) fn compare(
    left: Expression<'static>,
    op: Operator,
    right: Expression<'static>,
) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

pub(super) fn accept() -> Statement<'static> {
    Statement::Accept(Some(Accept {}))
}

pub(super) fn text(value: &'static str) -> Expression<'static> {
    Expression::String(value.into())
}

pub(super) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT {
        key: key.into(),
        ..CT::default()
    }))
}

/// An anonymous set.
pub(super) fn one_of(
    elements: impl IntoIterator<Item = Expression<'static>>,
) -> Expression<'static> {
    let elements = elements.into_iter().map(SetItem::Element).collect();
    Expression::Named(NamedExpression::Set(elements))
}

fn ct_state(states: &[&'static str]) -> Statement<'static> {
    let states = states.iter().copied().map(text).collect();
    compare(ct("state"), Operator::IN, Expression::List(states))
}

pub(super) fn and(left: Expression<'static>, right: Expression<'static>) -> Expression<'static> {
    Expression::BinaryOperation(Box::new(BinaryOperation::AND(left, right)))
}

/// The packet comes by the bridge or out of the tunnel.
pub(super) fn from_overlay() -> Statement<'static> {
    compare(
        meta(MetaKey::Iifgroup),
        Operator::EQ,
        Expression::Number(GROUP),
    )
}

/// The packet goes to the bridge or into the tunnel.
pub(super) fn to_overlay() -> Statement<'static> {
    compare(
        meta(MetaKey::Oifgroup),
        Operator::EQ,
        Expression::Number(GROUP),
    )
}

/// The chain judges what is left.
pub(super) fn goto(chain: &'static str) -> Statement<'static> {
    Statement::Goto(JumpTarget {
        target: chain.into(),
    })
}

pub(super) fn iifname(device: &'static str) -> Statement<'static> {
    compare(meta(MetaKey::Iifname), Operator::EQ, text(device))
}

fn oifname(device: &'static str) -> Statement<'static> {
    compare(meta(MetaKey::Oifname), Operator::EQ, text(device))
}

fn address(name: &'static str) -> Expression<'static> {
    field("ip", name)
}

pub(super) fn field(protocol: &'static str, name: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(
        PayloadField {
            protocol: protocol.into(),
            field: name.into(),
        },
    )))
}

pub(super) fn prefix(net: Ipv4Net) -> Expression<'static> {
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr: Box::new(Expression::String(net.network().to_string().into())),
        len: u32::from(net.prefix_len()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(network: &str, miss: u32) -> Fingerprint {
        let est = 0x0100_0000;
        let network = network.parse().expect("a network");
        WantedTable::new(network, Marks { miss, est }, &tunnel(&[])).fingerprint()
    }

    fn tunnel(peers: &[Ipv4Addr]) -> Tunnel {
        Tunnel {
            port: 4789,
            vni: 42,
            peers: peers.to_vec(),
            behind: peers.iter().map(|peer| Ipv4Net::from(*peer)).collect(),
        }
    }

    #[test]
    fn the_fingerprint_has_every_chain_and_rule() {
        let fingerprint = wanted("10.42.0.0/16", 0x00ff_0000);
        assert_eq!(
            fingerprint.chains,
            [
                "arrival filter prerouting -300 accept",
                "decapsulated   0 ",
                "departure filter forward 200 accept",
                "established filter forward 100 accept",
                "forward filter forward 0 accept",
                "output filter output 0 accept",
                "past-bridge   0 ",
                "postrouting nat postrouting 100 accept",
                "reception filter input 200 accept",
                "to-tunnel   0 ",
            ]
        );
        assert_eq!(fingerprint.rules.len(), 20);
        assert!(
            fingerprint
                .rules
                .iter()
                .all(|(_, comment)| comment.starts_with("oncache:"))
        );
        assert_eq!(fingerprint.foreign, 0);
    }

    #[test]
    fn what_a_rule_depends_on_shows_in_its_comment_and_in_no_other() {
        let one = wanted("10.42.0.0/16", 0x00ff_0000);
        let differing = |other: &Fingerprint| -> Vec<String> {
            let pairs = one.rules.iter().zip(&other.rules);
            pairs
                .filter(|(a, b)| a != b)
                .map(|(a, _)| a.0.clone())
                .collect()
        };
        assert_eq!(
            differing(&wanted("10.43.0.0/16", 0x00ff_0000)),
            ["postrouting"]
        );
        assert_eq!(
            differing(&wanted("10.42.0.0/16", 0x000f_0000)),
            ["established"]
        );
    }

    #[test]
    fn who_the_peers_are_shows_where_the_tunnel_is_received_alone() {
        let with = |peers: &[u8]| {
            let peers: Vec<_> = peers
                .iter()
                .map(|it| Ipv4Addr::new(192, 168, 50, *it))
                .collect();
            let network = "10.42.0.0/16".parse().expect("a network");
            let marks = Marks { miss: 1, est: 2 };
            WantedTable::new(network, marks, &tunnel(&peers)).fingerprint()
        };
        assert_eq!(with(&[12, 13]), with(&[13, 12]), "in whatever order");
        for (one, other) in [(&[][..], &[12][..]), (&[12], &[13])] {
            let (one, other) = (with(one), with(other));
            let pairs = one.rules.iter().zip(&other.rules);
            let differing: Vec<_> = pairs.filter(|(a, b)| a != b).map(|(a, _)| &a.0).collect();
            assert_eq!(differing, ["decapsulated", "to-tunnel"]);
        }
    }

    #[test]
    fn who_has_moved_here_is_not_believed_to_come_out_of_the_tunnel() {
        let network = "10.42.0.0/16".parse().expect("a network");
        let marks = Marks { miss: 1, est: 2 };
        let rules = |visitors: &[Ipv4Addr]| {
            let table = WantedTable::new(network, marks, &tunnel(&[]));
            table.with_visitors(visitors).fingerprint().rules
        };
        let [none, one, other] = [
            rules(&[]),
            rules(&[Ipv4Addr::new(10, 42, 2, 7)]),
            rules(&[Ipv4Addr::new(10, 42, 2, 8)]),
        ];
        let added = |rules: &[(String, String)]| -> Vec<(String, String)> {
            let added = rules.iter().filter(|it| !none.contains(it));
            added.cloned().collect()
        };
        assert_eq!((one.len(), added(&one).len()), (none.len() + 1, 1));
        assert_eq!(added(&one)[0].0, "decapsulated");
        assert_ne!(added(&one), added(&other));
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // Test vectors of the FNV reference (draft-eastlake-fnv, appendix C).
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
