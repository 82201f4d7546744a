//! Network policy: which flows between containers, hosts and the world are let through.
//!
//! Rules come from two places, those applied at run time before those of the configuration file
//! ([`order`]). They are compiled to two nftables tables, `inet oncache-policy` and
//! `bridge oncache-policy` ([`mod@compile`]), which are compared with the kernel's and replaced in one
//! transaction ([`kernel`]). Where there is no rule, the tables only remember who opens
//! flows ([`opener`]).
//!
//! Every packet of the slow path is judged, of established flows too, so a rule that is applied
//! stops the flows it denies at once. The fast path carries only what was judged under the current
//! rules: whoever changes the tables raises the epoch after that.

pub mod compile;
pub mod kernel;
pub mod opener;
pub mod order;

#[cfg(test)]
mod reference;

use crate::nft::{Family, TableName};

/// The name of both tables.
const TABLE: &str = "oncache-policy";

/// The table that judges what the hosts see.
pub const INET_TABLE: TableName = TableName {
    family: Family::Inet,
    name: TABLE,
};

/// The table that judges frames between containers of this host.
pub const BRIDGE_TABLE: TableName = TableName {
    family: Family::Bridge,
    name: TABLE,
};

/// Both tables.
pub const TABLES: [TableName; 2] = [INET_TABLE, BRIDGE_TABLE];
