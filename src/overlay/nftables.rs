//! The slow path's nftables table, `inet oncache`.
//!
//! Four chains. `forward` accepts what belongs to the overlay. An accept ends the rules of *this*
//! table only: a packet that another table's chain at the same hook drops is dropped
//! (nft(8), "Verdict statements"), which is as it should be, since the fast path learns from what all of
//! them let pass. `output` keeps the host from sending ICMP redirects to containers. `established` sits behind every filter of the usual priorities and adds the est
//! mark to packets that may be learned from. `postrouting` gives containers the host's address
//! towards the world outside the overlay. Three more are the tunnel's guard ([`Tunnel`]).
//!
//! The table is compared by its chains' attributes and by its rules' comments, each of which names
//! the rule's wanted form by a hash: nft lists rules in another form than it takes them in, so the
//! rules themselves cannot be compared.

use nftables::{
    helper::{self, NftablesError},
    schema::{NfCmd, NfListObject},
};
use serde::Deserialize;

use crate::nft::blame::one_line;

pub use super::ruleset::{Marks, WantedTable};
use super::ruleset::{batch, table};
pub use super::tunnel_guard::Tunnel;

/// The table's name, in the family `inet`.
pub const TABLE: &str = "oncache";

/// nft failed. The message is one line.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// nft could not be run, or said no.
    #[error("{operation} table {family} {TABLE}: {reason}")]
    Nft {
        /// What was tried.
        operation: &'static str,
        /// The table's family.
        family: &'static str,
        /// nft's own words.
        reason: String,
    },
    /// nft's listing is not what it should be.
    #[error("list table {TABLE}: {0}")]
    Listing(#[from] serde_json::Error),
}

/// What the comparison looks at, of a wanted table as of a listed one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fingerprint {
    /// Each chain: name, then type, hook, priority and policy as nft writes them; sorted.
    pub chains: Vec<String>,
    /// Each rule: chain and comment, in order within each chain; chains sorted.
    pub rules: Vec<(String, String)>,
    /// Sets, maps and other objects, none of which oncache has.
    pub foreign: usize,
}

/// The table as the kernel has it; none if it is not there.
///
/// # Errors
/// [`TableError`] when nft cannot list.
pub async fn list_table() -> Result<Option<Fingerprint>, TableError> {
    let listing = ["list", "table", "inet", TABLE];
    match helper::get_current_ruleset_raw_async(helper::DEFAULT_NFT, listing).await {
        Ok(json) => Ok(Some(fingerprint(&json)?)),
        // Why it failed is told in words only; whether there is such a table can be asked.
        Err(error) if table_exists().await? => Err(failed("list", "inet")(error)),
        Err(_) => Ok(None),
    }
}

/// Makes the kernel's table the wanted one, in one transaction.
///
/// # Errors
/// [`TableError::Nft`]; the table is then what it was before.
pub async fn apply_table(wanted: &WantedTable) -> Result<(), TableError> {
    let transaction = wanted.transaction();
    helper::apply_ruleset_async(&transaction)
        .await
        .map_err(failed("replace", "inet"))
}

/// Removes the table; done as well if it is not there.
///
/// # Errors
/// [`TableError::Nft`].
pub async fn remove_table() -> Result<(), TableError> {
    let table = || NfListObject::Table(table());
    let transaction = batch(vec![NfCmd::Add(table()), NfCmd::Delete(table())]);
    helper::apply_ruleset_async(&transaction)
        .await
        .map_err(failed("remove", "inet"))
}

async fn table_exists() -> Result<bool, TableError> {
    let listing = ["list", "tables", "inet"];
    let json = helper::get_current_ruleset_raw_async(helper::DEFAULT_NFT, listing)
        .await
        .map_err(failed("look for", "inet"))?;
    let listing: Listing = serde_json::from_str(&json)?;
    Ok(listing.nftables.iter().any(
        |object| matches!(object, Listed::Table(table) if table.name.as_deref() == Some(TABLE)),
    ))
}

/// nft's words in one line, without the caret lines that point into a file nobody has.
pub(super) fn failed(
    operation: &'static str,
    family: &'static str,
) -> impl Fn(NftablesError) -> TableError {
    move |error| TableError::Nft {
        operation,
        family,
        reason: match error {
            NftablesError::NftFailed { stderr, .. } => one_line(&stderr),
            other => other.to_string(),
        },
    }
}

/// A listing, as far as it is compared. Other kinds of objects are counted, not read: a foreign rule
/// that this build cannot parse must not keep the table from being mended.
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Listed {
    Metainfo(serde::de::IgnoredAny),
    Table(ListedObject),
    Chain(ListedObject),
    Rule(ListedObject),
    #[serde(untagged)]
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct ListedObject {
    name: Option<String>,
    chain: Option<String>,
    comment: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    hook: Option<String>,
    prio: Option<i32>,
    policy: Option<String>,
}

pub(super) fn fingerprint(json: &str) -> Result<Fingerprint, serde_json::Error> {
    let listing: Listing = serde_json::from_str(json)?;
    let mut fingerprint = Fingerprint::default();
    for object in listing.nftables {
        match object {
            Listed::Metainfo(_) | Listed::Table(_) => {}
            Listed::Chain(chain) => fingerprint.chains.push(format!(
                "{} {} {} {} {}",
                chain.name.unwrap_or_default(),
                chain.kind.unwrap_or_default(),
                chain.hook.unwrap_or_default(),
                chain.prio.unwrap_or_default(),
                chain.policy.unwrap_or_default(),
            )),
            Listed::Rule(rule) => fingerprint.rules.push((
                rule.chain.unwrap_or_default(),
                rule.comment.unwrap_or_default(),
            )),
            Listed::Other(_) => fingerprint.foreign += 1,
        }
    }
    fingerprint.chains.sort();
    // Stable: the order within a chain is what the rules mean.
    fingerprint
        .rules
        .sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "oncache", "handle": 1}},
        {"chain": {"family": "inet", "table": "oncache", "name": "forward", "handle": 1,
                   "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}},
        {"rule": {"family": "inet", "table": "oncache", "chain": "forward", "handle": 4,
                  "comment": "oncache:1", "expr": [{"unheard of": null}]}},
        {"rule": {"family": "inet", "table": "oncache", "chain": "forward", "handle": 5,
                  "expr": [{"accept": null}]}},
        {"set": {"family": "inet", "name": "s", "table": "oncache", "type": "ipv4_addr"}}]}"#;

    #[test]
    fn foreign_rules_and_objects_are_seen() {
        let listed = fingerprint(LISTED).expect("a listing");
        assert_eq!(listed.chains, ["forward filter forward 0 accept"]);
        let rule = |comment: &str| ("forward".to_owned(), comment.to_owned());
        assert_eq!(listed.rules, [rule("oncache:1"), rule("")]);
        assert_eq!(listed.foreign, 1);
    }
}
