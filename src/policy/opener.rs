//! Which side opened a flow: the chains that find out, remember, and lead to the rules.
//!
//! Nothing is believed that was not seen. A TCP connection was opened by the sender of its SYN, and the
//! flow's conntrack entry says so by a label as long as it lives. Other protocols have no such packet:
//! there the opener is whoever sends first after a silence of [`SILENCE`], which two memories keep
//! that do not go together: sets of the table, which outlive conntrack's entries, and the labels, which
//! outlive the table. A flow of which neither knows, though conntrack does, is judged both ways.
//!
//! The chains, of either table:
//!
//! - `judge` is where packets come in;
//! - `tcp`, `icmp`, `ported` and `bare` find the opener by protocol; `sent` and `answered` (one for each
//!   of the last two) are where it is known;
//! - `forwards`, `backwards` and `errors`, `errors-back` have the rules, see [`mod@super::compile`].

use std::net::Ipv4Addr;

use super::TABLE;
use crate::{
    netlink::{NetlinkError, forget_flows},
    nft::{
        Expression, Family, Statement, Table,
        expression::{and, concat, ct, elements_of, flags, meta, payload, set_of},
        statement::{
            add_to, assign, choose, equal, go_back, goto, has, jump, lacks, renew_in, unequal,
        },
    },
};

/// Bits of conntrack's label (include/net/netfilter/nf_conntrack_labels.h; 128 of them): the sender
/// of the entry's original direction opened the flow, or the other side did. Labels, not the mark:
/// rules of others assign the whole mark, and set single labels.
const ORIGINAL_OPENED: u32 = 118;
const REPLY_OPENED: u32 = 119;
/// A flow other than TCP's ends by a silence of so many seconds: longer than conntrack's own
/// patience with UDP (`nf_conntrack_udp_timeout_stream`, 120), so that an entry does not outlive what
/// is remembered.
pub const SILENCE: u32 = 180;
/// As long as a flow has one packet only: as conntrack (`nf_conntrack_udp_timeout`).
const UNANSWERED: u32 = 30;
/// How many flows a set remembers at most (about 16 MB). Beyond that a new flow is judged both ways.
const SIZE: u32 = 131_072;
/// The set whose one element says that the table is younger than a silence, and that flows may have
/// begun before it.
pub const YOUNG: &str = "young";

/// The protocols that have ports where UDP has them; the others but TCP and ICMP have none.
const PORTED: [&str; 4] = ["udp", "udplite", "sctp", "dccp"];

/// A kind of protocols without a first packet that shows.
struct Kind {
    chain: &'static str,
    sent: &'static str,
    answered: &'static str,
    /// Those who opened a flow, with the other side.
    openers: &'static str,
    /// Flows that may have begun before the table.
    guessed: &'static str,
    types: &'static [&'static str],
}

const KINDS: [Kind; 2] = [
    Kind {
        chain: "ported",
        sent: "ported-sent",
        answered: "ported-answered",
        openers: "openers",
        guessed: "guessed",
        types: &[
            "ipv4_addr",
            "ipv4_addr",
            "inet_proto",
            "inet_service",
            "inet_service",
        ],
    },
    Kind {
        chain: "bare",
        sent: "bare-sent",
        answered: "bare-answered",
        openers: "bare-openers",
        guessed: "bare-guessed",
        types: &["ipv4_addr", "ipv4_addr", "inet_proto"],
    },
];

/// What the chains of a table can go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    /// Conntrack has seen the packets.
    pub(super) conntrack: bool,
    /// There are rules to lead to. Without, flows are only remembered.
    pub(super) rules: bool,
    /// There are times without conntrack, so that what it does not know need not be new.
    pub(super) unwatched: bool,
}

impl Kind {
    /// The flow with the packet's sender as its opener, or with its receiver.
    fn key(&self, by_sender: bool) -> Expression {
        let ends = |source: &str, destination: &str, header: &str| match by_sender {
            true => [payload(header, source), payload(header, destination)],
            false => [payload(header, destination), payload(header, source)],
        };
        let mut parts = ends("saddr", "daddr", "ip").to_vec();
        parts.push(meta("l4proto"));
        if self.types.len() > 3 {
            parts.extend(ends("sport", "dport", "th"));
        }
        concat(parts)
    }

    fn known(&self, by_sender: bool, set: &str) -> Statement {
        equal(self.key(by_sender), elements_of(set))
    }

    fn chains(&self, table: &mut Table, sight: Sight) {
        table.memory(self.openers, self.types, Some(SILENCE), Some(SIZE));
        if sight.unwatched {
            table.memory(self.guessed, self.types, Some(SILENCE), Some(SIZE));
        }
        for chain in [self.chain, self.sent, self.answered] {
            table.chain(chain);
        }
        let known = |by_sender| self.known(by_sender, self.openers);
        table.rule(self.chain, [known(false), goto(self.answered)]);
        table.rule(self.chain, [known(true), goto(self.sent)]);
        if sight.conntrack {
            self.by_label(table);
        }
        if sight.unwatched {
            self.by_guess(table, sight);
        }
        // A new flow. It is remembered if it passes.
        table.rule(self.chain, [jump("forwards")]);
        let mut remember = vec![add_to(self.openers, self.key(true), UNANSWERED)];
        if sight.conntrack {
            remember.push(label(ORIGINAL_OPENED));
        }
        remember.push(go_back());
        table.rule(self.chain, remember);
        // No room: what can't be remembered can't be known later.
        table.rule(self.chain, [goto("either")]);

        for (chain, by_sender, bit, rules) in [
            (self.sent, true, ORIGINAL_OPENED, "forwards"),
            (self.answered, false, REPLY_OPENED, "backwards"),
        ] {
            if !by_sender {
                // Both sides at once, by some chance: neither.
                table.rule(chain, [known(true), goto("either")]);
            }
            if sight.conntrack {
                table.rule(chain, [state("new"), label(bit)]);
            }
            let again = renew_in(self.openers, self.key(by_sender), SILENCE);
            table.rule(chain, [again]);
            table.rule(chain, [goto(rules)]);
        }
    }

    /// What is not in the set, but in conntrack.
    fn by_label(&self, table: &mut Table) {
        for (bit, original, reply) in [
            (ORIGINAL_OPENED, self.sent, self.answered),
            (REPLY_OPENED, self.answered, self.sent),
        ] {
            table.rule(self.chain, [labelled(bit), by_direction(original, reply)]);
        }
        let confirmed = has(ct("status"), "confirmed");
        table.rule(self.chain, [confirmed, goto("either")]);
    }

    /// What may have begun before the set, where nothing else can know of it.
    fn by_guess(&self, table: &mut Table, sight: Sight) {
        for by_sender in [true, false] {
            let guessed = self.known(by_sender, self.guessed);
            let again = renew_in(self.guessed, self.key(by_sender), SILENCE);
            table.rule(self.chain, [guessed, again, goto("either")]);
        }
        if sight.conntrack {
            return;
        }
        let young = equal(meta("protocol"), elements_of(YOUNG));
        let guess = add_to(self.guessed, self.key(true), UNANSWERED);
        table.rule(self.chain, [young.clone(), guess, goto("either")]);
        table.rule(self.chain, [young, goto("either")]);
    }
}

/// Forgets who opened flows from or to an address: whoever has it next starts anew.
///
/// # Errors
/// [`NetlinkError`]: some may be left.
pub async fn forget_openers(address: Ipv4Addr) -> Result<(), NetlinkError> {
    let openers = KINDS.map(|kind| kind.openers);
    let guessed = KINDS.map(|kind| kind.guessed);
    forget_flows(Family::Inet.name(), TABLE, openers.to_vec(), address).await?;
    let both = [openers, guessed].concat();
    forget_flows(Family::Bridge.name(), TABLE, both, address).await?;
    Ok(())
}

/// The chain `judge` and those that find the opener. `bridge` is the bridge's own address: a frame
/// to another one that comes from the bridge and goes to it is bridged, and the bridge family's table
/// knows its opener, which sees bridged packets at all times.
pub(super) fn finding(table: &mut Table, sight: Sight, bridge: Option<(&str, &str)>) {
    for chain in ["judge", "tcp", "icmp", "either"] {
        table.chain(chain);
    }
    if sight.unwatched {
        table.memory(YOUNG, &["ether_type"], None, None);
    }
    if sight.conntrack && sight.rules {
        table.rule(
            "judge",
            [
                has(ct("state"), flags(["invalid", "untracked"])),
                goto("either"),
            ],
        );
    }
    let protocol = |name: &str| equal(meta("l4proto"), name);
    for chain in ["tcp", "icmp"] {
        table.rule("judge", [protocol(chain), goto(chain)]);
    }
    if let Some((device, mac)) = bridge {
        let by = |key: &str| equal(meta(key), device);
        let bridged = unequal(payload("ether", "daddr"), mac);
        let skip = [by("iifname"), by("oifname"), bridged, go_back()];
        table.rule("judge", skip);
    }
    let [ported, bare] = KINDS;
    let ports = equal(meta("l4proto"), set_of(PORTED));
    table.rule("judge", [ports, goto(ported.chain)]);
    table.rule("judge", [goto(bare.chain)]);
    ported.chains(table, sight);
    bare.chains(table, sight);
    if sight.conntrack {
        tcp(table, sight);
        icmp(table, sight);
    }
    if sight.rules {
        for chain in ["forwards", "backwards"] {
            table.rule("either", [jump(chain)]);
        }
    }
}

/// Only a SYN says who opens. An entry that was there before it is about something else.
fn tcp(table: &mut Table, sight: Sight) {
    let opening = and(payload("tcp", "flags"), flags(["fin", "syn", "rst", "ack"]));
    let opens = [
        equal(opening, "syn"),
        state("new"),
        lacks(ct("status"), "confirmed"),
        label(ORIGINAL_OPENED),
    ];
    table.rule("tcp", opens);
    if sight.rules {
        let direction = by_direction("forwards", "backwards");
        table.rule("tcp", [labelled(ORIGINAL_OPENED), direction]);
        table.rule("tcp", [goto("either")]);
    }
}

/// Conntrack begins an entry by requests only (net/netfilter/nf_conntrack_proto_icmp.c,
/// `nf_conntrack_icmp_packet`). An error comes with the entry of the flow that it is about.
fn icmp(table: &mut Table, sight: Sight) {
    table.rule("icmp", [state("new"), label(ORIGINAL_OPENED)]);
    if !sight.rules {
        return;
    }
    for (bit, chain) in [(ORIGINAL_OPENED, "errors"), (REPLY_OPENED, "errors-back")] {
        table.rule("icmp", [state("related"), labelled(bit), goto(chain)]);
    }
    table.rule("icmp", [state("related"), jump("errors")]);
    table.rule("icmp", [state("related"), goto("errors-back")]);
    table.rule("icmp", [by_direction("forwards", "backwards")]);
}

fn state(name: &str) -> Statement {
    has(ct("state"), flags([name]))
}

fn label(bit: u32) -> Statement {
    assign(ct("label"), bit)
}

fn labelled(bit: u32) -> Statement {
    has(ct("label"), bit)
}

fn by_direction(original: &str, reply: &str) -> Statement {
    choose(
        ct("direction"),
        [("original", goto(original)), ("reply", goto(reply))],
    )
}
