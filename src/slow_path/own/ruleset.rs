//! The slow path's nftables table, `inet oncache`.
//!
//! Four chains. `forward` accepts what belongs to the overlay. An accept ends the rules of *this*
//! table only: a packet that another table's chain at the same hook drops is dropped
//! (nft(8), "Verdict statements"), which is as it should be, since the fast path learns from what all of
//! them let pass. `output` keeps the host from sending ICMP redirects to containers. `established` sits behind every filter of the usual priorities and adds the est
//! mark to packets that may be learned from. `postrouting` gives containers the host's address
//! towards the world outside the overlay. Three more, and those that they lead to, are the tunnel's guard
//! ([`tunnel_guard`]).

use ipnet::Ipv4Net;

use super::{
    matches::{from_overlay, to_overlay},
    names::TABLE,
    tunnel_guard::{self, Tunnel},
};
use crate::{
    nft::{
        Hook, Statement, Table,
        expression::{and, ct, flags, meta, or, payload},
        statement::{accept, assign, drop, equal, has, masquerade, unequal},
    },
    slow_path::Marks,
};

/// Priority of the chain that adds the est mark: behind `filter` (0) and `security` (50), where
/// rules that refuse packets are (include/uapi/linux/netfilter_ipv4.h, `enum nf_ip_hook_priorities`).
const ESTABLISHED_PRIORITY: i32 = 100;
/// `NF_IP_PRI_NAT_SRC`.
const SOURCE_NAT_PRIORITY: i32 = 100;

/// The table for a host with containers of `network` behind the bridge of this name.
#[must_use]
pub fn table(bridge: &str, network: Ipv4Net, marks: Marks, tunnel: &Tunnel) -> Table {
    let mut table = Table::new(TABLE.family, TABLE.name);
    table.base_chain("forward", Hook::filter("forward", 0));
    let behind_filters = Hook::filter("forward", ESTABLISHED_PRIORITY);
    table.base_chain("established", behind_filters);
    table.base_chain("output", Hook::filter("output", 0));
    let source_nat = Hook::nat("postrouting", SOURCE_NAT_PRIORITY);
    table.base_chain("postrouting", source_nat);

    let from_bridge = equal(meta("iifname"), bridge);
    let to_bridge = || equal(meta("oifname"), bridge);
    table.rule("forward", [from_overlay(), to_overlay(), accept()]);
    table.rule("forward", [from_bridge, accept()]);
    let answers = has(ct("state"), flags(["established", "related"]));
    table.rule("forward", [to_bridge(), answers, accept()]);
    table.rule("established", established(marks));
    table.rule(
        "postrouting",
        [
            // Not this host's subnet: containers that have moved here speak to the world
            // as the others do.
            equal(payload("ip", "saddr"), network),
            unequal(payload("ip", "daddr"), network),
            unequal(meta("oifname"), bridge),
            masquerade(),
        ],
    );
    // Told to send straight to an address that has moved here, a container would go on
    // doing so after it has moved on.
    let redirect = equal(payload("icmp", "type"), "redirect");
    table.rule("output", [to_overlay(), to_bridge(), redirect, drop()]);
    tunnel_guard::add_to(&mut table, bridge, tunnel);
    table
}

/// The est-mark rule. Established is conntrack's word that packets passed in both directions. A flow
/// whose addresses are rewritten is never marked: its packets are another flow on the other side,
/// and what is learned here would be applied without the rewriting.
fn established(marks: Marks) -> [Statement; 6] {
    let mark = || meta("mark");
    [
        from_overlay(),
        to_overlay(),
        has(ct("state"), flags(["established"])),
        equal(and(ct("status"), flags(["snat", "dnat"])), 0_u32),
        unequal(and(mark(), marks.miss), 0_u32),
        assign(mark(), or(mark(), marks.est)),
    ]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::nft::{ListedTable, listed::ListedRule};

    const BRIDGE: &str = "oncache0";

    fn wanted(network: &str, miss: u32) -> ListedTable {
        let est = 0x0100_0000;
        let network = network.parse().expect("a network");
        ListedTable::of_wanted(&table(BRIDGE, network, Marks { miss, est }, &tunnel(&[])))
    }

    fn tunnel(peers: &[Ipv4Addr]) -> Tunnel {
        Tunnel {
            port: 4789,
            vni: 42,
            peers: peers.to_vec(),
            behind: peers.iter().map(|peer| Ipv4Net::from(*peer)).collect(),
        }
    }

    /// The chains of the rules in which two tables differ.
    fn differing(one: &ListedTable, other: &ListedTable) -> Vec<String> {
        let pairs = one.rules.iter().zip(&other.rules);
        let differing = pairs.filter(|(one, other)| one != other);
        differing
            .map(|(ListedRule { chain, .. }, _)| chain.clone())
            .collect()
    }

    #[test]
    fn every_chain_and_rule_is_there() {
        let listed = wanted("10.42.0.0/16", 0x00ff_0000);
        assert_eq!(
            listed.chains,
            [
                "arrival filter prerouting -300 accept",
                "decapsulated - - - -",
                "departure filter forward 200 accept",
                "established filter forward 100 accept",
                "forward filter forward 0 accept",
                "output filter output 0 accept",
                "past-bridge - - - -",
                "postrouting nat postrouting 100 accept",
                "reception filter input 200 accept",
                "to-tunnel - - - -",
            ]
        );
        assert_eq!(listed.rules.len(), 20);
    }

    #[test]
    fn what_a_rule_depends_on_shows_in_its_comment_and_in_no_other() {
        let one = wanted("10.42.0.0/16", 0x00ff_0000);
        let other = wanted("10.43.0.0/16", 0x00ff_0000);
        assert_eq!(differing(&one, &other), ["postrouting"]);
        let other = wanted("10.42.0.0/16", 0x000f_0000);
        assert_eq!(differing(&one, &other), ["established"]);
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
            ListedTable::of_wanted(&table(BRIDGE, network, marks, &tunnel(&peers)))
        };
        assert_eq!(with(&[12, 13]), with(&[13, 12]), "in whatever order");
        for (one, other) in [(&[][..], &[12][..]), (&[12], &[13])] {
            assert_eq!(
                differing(&with(one), &with(other)),
                ["decapsulated", "to-tunnel"]
            );
        }
    }
    #[test]
    fn who_has_moved_here_is_not_believed_to_come_out_of_the_tunnel() {
        let network = "10.42.0.0/16".parse().expect("a network");
        let marks = Marks { miss: 1, est: 2 };
        let rules = |visitors: &[Ipv4Addr]| {
            let mut table = table(BRIDGE, network, marks, &tunnel(&[]));
            tunnel_guard::refuse_visitors(&mut table, visitors);
            ListedTable::of_wanted(&table).rules
        };
        let [none, one, other] = [
            rules(&[]),
            rules(&[Ipv4Addr::new(10, 42, 2, 7)]),
            rules(&[Ipv4Addr::new(10, 42, 2, 8)]),
        ];
        let added = |rules: &[ListedRule]| -> Vec<ListedRule> {
            let added = rules.iter().filter(|it| !none.contains(it));
            added.cloned().collect()
        };
        assert_eq!((one.len(), added(&one).len()), (none.len() + 1, 1));
        assert_eq!(added(&one)[0].chain, "decapsulated");
        assert_ne!(added(&one), added(&other));
    }
}
