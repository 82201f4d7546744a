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

use super::{names::SOURCE_TABLE, refused::Refused};
use crate::{
    container::devices::PATTERNS,
    netlink::{Mac, format_mac},
    nft::{
        Anew, Difference, Expression, Hook, ListedTable, NftError, Statement, Table, Transaction,
        difference,
        expression::{and, concat, elements_of, meta, payload, set_of},
        run,
        statement::{accept, equal, jump, unequal},
    },
    slow_path::Endpoint,
};

/// The set of those who may send.
const SET: &str = "sources";
/// What an element of it is made of.
const TYPES: [&str; 3] = ["ifname", "ether_addr", "ipv4_addr"];
/// The chain that judges containers' frames.
const CHAIN: &str = "source";
/// The hook's chain.
const HOOK: &str = "prerouting";
/// The chain of what the bridge hands to the host without forwarding it.
const LOCAL_HOOK: &str = "input";
/// Before anything else of the bridge (`NF_BR_PRI_FIRST` is lower still; include/uapi/linux/
/// netfilter_bridge.h has brouting at -300 for the like of this).
const PRIORITY: i32 = -300;
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
    /// What an endpoint may send from.
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        Self {
            device: endpoint.device.clone(),
            mac: endpoint.mac,
            ip: endpoint.ip,
        }
    }

    /// What it may send from: its address, and none.
    fn elements(&self) -> [Expression; 2] {
        [self.ip, PROBING]
            .map(|ip| concat([self.device.clone(), format_mac(self.mac), ip.to_string()]))
    }
}

/// Makes the table what `sources` want. Returns what was done, a line each.
///
/// # Errors
/// [`NftError`]; the table is then what it was before.
pub async fn reconcile(sources: &BTreeSet<Source>) -> Result<Vec<String>, NftError> {
    let listed = run::list(SOURCE_TABLE).await?;
    let difference = difference_to(sources, listed.as_ref());
    if !difference.transaction.is_empty() {
        run::apply(
            &difference.transaction,
            &format!("change table {SOURCE_TABLE}"),
        )
        .await?;
    }
    Ok(lines(&difference))
}

/// Lets one more sender through, where the table is known to be there: one transaction, no look
/// before it. Where it fails, [`reconcile`] knows more.
///
/// # Errors
/// [`NftError`]; nothing has changed then.
pub async fn allow(source: &Source) -> Result<(), NftError> {
    let mut transaction = Transaction::default();
    transaction.add_elements(SOURCE_TABLE, SET, &source.elements());
    run::apply(
        &transaction,
        &format!("add a source to table {SOURCE_TABLE}"),
    )
    .await
}

/// Stops one sender; as [`allow`].
///
/// # Errors
/// [`NftError`], also where it was not let through.
pub async fn forbid(source: &Source) -> Result<(), NftError> {
    let mut transaction = Transaction::default();
    transaction.remove_elements(SOURCE_TABLE, SET, &source.elements());
    run::apply(
        &transaction,
        &format!("remove a source from table {SOURCE_TABLE}"),
    )
    .await
}

/// Removes the table; done as well if it is not there.
///
/// # Errors
/// [`NftError`].
pub async fn remove() -> Result<(), NftError> {
    let transaction = Transaction::removal(SOURCE_TABLE);
    run::apply(&transaction, &format!("remove table {SOURCE_TABLE}")).await
}

fn difference_to(sources: &BTreeSet<Source>, listed: Option<&ListedTable>) -> Difference {
    let mut table = rules();
    table.set(SET, &TYPES, sources.iter().flat_map(Source::elements));
    difference(&table, listed)
}

/// What a difference does, for the log.
fn lines(difference: &Difference) -> Vec<String> {
    let whole = match difference.anew {
        Anew::Nothing => None,
        Anew::Rules => Some(format!("replace the rules of table {SOURCE_TABLE}")),
        Anew::Table => Some(format!("replace table {SOURCE_TABLE}")),
    };
    let removed = difference.removed.iter();
    let removed = removed.map(|source| format!("remove source {source} from table {SOURCE_TABLE}"));
    let added = difference.added.iter();
    let added = added.map(|source| format!("add source {source} to table {SOURCE_TABLE}"));
    whole.into_iter().chain(removed).chain(added).collect()
}

/// The addresses that bridges keep for themselves (IEEE 802.1Q, table 8-1). The bridge hands such frames to the
/// host past all hooks, or past this one (net/bridge/br_input.c, `br_handle_frame`), unless the port is told to
/// forward them: `container::port` tells it.
fn is_link_local() -> Statement {
    let masked = and(payload("ether", "daddr"), "ff:ff:ff:ff:ff:f0");
    equal(masked, "01:80:c2:00:00:00")
}

/// The table but for the set.
fn rules() -> Table {
    let device = || meta("iifname");
    let written = || payload("ether", "type");
    // What the kernel takes the frame for: netkit leaves it to the sender's socket (drivers/net/netkit.c,
    // `netkit_xmit`), and whoever gets the frame may read the other.
    let taken = || meta("protocol");
    // The kernel takes a tag off and notes it beside the frame (net/core/skbuff.c, `skb_vlan_untag`); nft
    // shows the frame as if it still had it (net/netfilter/nft_payload.c, `nft_payload_copy_vlan`).
    let plain = |protocol: &str| vec![equal(written(), protocol), equal(taken(), protocol)];
    let known = |mac, address| equal(concat([device(), mac, address]), elements_of(SET));
    let mut ip = plain("ip");
    ip.push(unequal(payload("ip", "saddr"), PROBING));
    ip.push(known(payload("ether", "saddr"), payload("ip", "saddr")));
    ip.push(accept());
    let mut arp = plain("arp");
    // Requests and answers of IPv4 over Ethernet: whoever reads it reads the addresses where nft does.
    arp.extend([
        equal(payload("arp", "htype"), 1_u16),
        equal(payload("arp", "ptype"), "ip"),
        equal(payload("arp", "hlen"), 6_u16),
        equal(payload("arp", "plen"), 4_u16),
        equal(payload("arp", "operation"), set_of(["request", "reply"])),
        // The frame's sender, and the one that its receivers will believe.
        known(payload("ether", "saddr"), payload("arp", "saddr ip")),
        known(payload("arp", "saddr ether"), payload("arp", "saddr ip")),
        accept(),
    ]);
    let mut table = Table::new(SOURCE_TABLE.family, SOURCE_TABLE.name);
    table.chain(CHAIN);
    for hook in [HOOK, LOCAL_HOOK] {
        table.base_chain(hook, Hook::filter(hook, PRIORITY));
    }
    for devices in PATTERNS {
        let ours = || equal(device(), devices);
        table.rule(HOOK, [ours(), jump(CHAIN)]);
        // The address first: whatever a container sends to elsewhere comes by here.
        let link_local = [is_link_local(), ours()];
        table.refusal(LOCAL_HOOK, link_local, Refused::LinkLocal.name());
    }
    table.refusal(CHAIN, [is_link_local()], Refused::LinkLocal.name());
    table.rule(CHAIN, ip);
    table.rule(CHAIN, arp);
    // Nothing passes from here on; what follows only tells why.
    for tag in ["8021q", "8021ad"] {
        table.refusal(CHAIN, [equal(written(), tag)], Refused::Tagged.name());
    }
    for protocol in ["ip", "arp"] {
        let disguised = [equal(written(), protocol), unequal(taken(), protocol)];
        table.refusal(CHAIN, disguised, Refused::Disguised.name());
    }
    for (protocol, reason) in [
        ("ip", Refused::Source),
        ("arp", Refused::Arp),
        ("ip6", Refused::Ipv6),
    ] {
        table.refusal(CHAIN, [equal(written(), protocol)], reason.name());
    }
    table.refusal(CHAIN, [], Refused::Protocol.name());
    table
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

    fn listed(sources: &BTreeSet<Source>) -> ListedTable {
        let mut table = rules();
        table.set(SET, &TYPES, sources.iter().flat_map(Source::elements));
        ListedTable::of_wanted(&table)
    }

    #[test]
    fn nothing_is_done_where_all_is_there() {
        let wanted = BTreeSet::from([source(2), source(3)]);
        let difference = difference_to(&wanted, Some(&listed(&wanted)));
        assert!(difference.transaction.is_empty());
        assert!(lines(&difference).is_empty());
    }

    #[test]
    fn one_more_or_less_is_its_elements() {
        let two = BTreeSet::from([source(2)]);
        let three = BTreeSet::from([source(2), source(3)]);
        let said = |wanted, present| lines(&difference_to(wanted, Some(&listed(present))));
        let elements = [
            r#"source ["onc-c3","0a:63:0a:2a:01:03","0.0.0.0"]"#,
            r#"source ["onc-c3","0a:63:0a:2a:01:03","10.42.1.3"]"#,
        ];
        assert_eq!(
            said(&three, &two),
            elements.map(|it| format!("add {it} to table bridge oncache"))
        );
        assert_eq!(
            said(&two, &three),
            elements.map(|it| format!("remove {it} from table bridge oncache"))
        );
    }

    #[test]
    fn a_missing_rule_or_table_is_put_back() {
        let wanted = BTreeSet::from([source(2)]);
        let mut hurt = listed(&wanted);
        hurt.rules.pop();
        for (present, said) in [
            (None, "replace table bridge oncache"),
            (Some(&hurt), "replace the rules of table bridge oncache"),
        ] {
            assert_eq!(lines(&difference_to(&wanted, present)), [said]);
        }
    }
}
