//! The policy's tables in the kernel.

use std::path::Path;

use super::{
    BRIDGE_TABLE, INET_TABLE, TABLE,
    compile::{Bridging, SameHost, compile},
    opener::{SILENCE, YOUNG},
    order::{Locals, Placed},
};
use crate::{
    netlink::TableCopy,
    nft::{
        Anew, Family, ListedTable, NftError, Statement, Table, TableName, Transaction,
        blame::{Blame, blame},
        difference,
        expression::ct,
        run,
        statement::{assign, has},
    },
};

/// More rules than this, of both origins, are refused: nft's time grows faster than their number, and
/// the daemon does nothing else meanwhile.
pub const MAX_RULES: usize = 2000;
/// Present where the bridge can hand packets to the hooks of `inet` (net/bridge/br_netfilter_hooks.c).
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Changes a copy of one of the tables so that a table made from it takes flows for begun before it, whose
/// openers nobody has seen.
pub fn begin_young(table: TableName, copy: &mut TableCopy) {
    if table == BRIDGE_TABLE {
        // ETH_P_IP, in network byte order.
        copy.begin_with(YOUNG, &[8, 0], u64::from(SILENCE) * 1000);
    }
}

/// The policy can't be had. The rules in force are what they were.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// nft could not be run, or said no to the tables as such.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// nft said no to one rule.
    #[error(
        "policy rule {number} ({rule}): nft refuses it: {reason}; the rules in force are unchanged"
    )]
    Rule {
        /// Its place in the effective order, from 1.
        number: usize,
        /// The rule.
        rule: String,
        /// nft's own words.
        reason: String,
    },
    /// More than [`MAX_RULES`].
    #[error(
        "network policy: {0} rules, of the configuration and of run time together; at most {MAX_RULES} can be in force: name networks instead of addresses and several ports in one rule; the rules in force are unchanged"
    )]
    TooMany(usize),
    /// Nothing could be known of who opened a flow.
    #[error(
        "network policy: this kernel cannot keep who opened a flow ({reason}), so no rule is applied; use a kernel with CONFIG_NF_CONNTRACK_LABELS, or remove the rules"
    )]
    Labels {
        /// What nft says.
        reason: String,
    },
    /// Packets between containers of this host would go unjudged.
    #[error(
        "network policy: this kernel cannot judge packets between containers of one host ({reason}), so no rule is applied; load the module nf_conntrack_bridge (CONFIG_NF_CONNTRACK_BRIDGE) or br_netfilter, or remove the rules"
    )]
    SameHost {
        /// What conntrack in the bridge family fails by.
        reason: String,
    },
}

/// Whether conntrack's entries can have labels, by which it is known who opened a flow.
///
/// # Errors
/// [`PolicyError::Labels`] if they can't.
pub async fn labels() -> Result<(), PolicyError> {
    match probe(Family::Inet, assign(ct("label"), 1_u32)).await? {
        Ok(()) => Ok(()),
        Err(reason) => Err(PolicyError::Labels { reason }),
    }
}

/// How this kernel lets packets between containers of one host be judged.
///
/// # Errors
/// [`PolicyError::SameHost`] if it does not.
pub async fn same_host() -> Result<SameHost, PolicyError> {
    let Err(reason) = probe(Family::Bridge, has(ct("state"), "new")).await? else {
        return Ok(SameHost::BridgeTable);
    };
    match Path::new(BRIDGE_NETFILTER).exists() {
        true => Ok(SameHost::InetHooks),
        false => Err(PolicyError::SameHost { reason }),
    }
}

/// Whether the kernel takes a rule of one statement; nft's words if it does not.
async fn probe(family: Family, statement: Statement) -> Result<Result<(), String>, NftError> {
    let mut table = Table::new(family, "oncache-probe");
    table.chain("probe");
    table.rule("probe", [statement]);
    let transaction = difference(&table, None).transaction;
    match run::check(&transaction, "probe").await {
        Ok(()) => Ok(Ok(())),
        Err(NftError::Refused { reason, .. }) => Ok(Err(reason)),
        Err(other) => Err(other),
    }
}

/// Makes the kernel's tables those of `rules`, both in one transaction. Returns whether that took a
/// change. `running`: there may be flows that began before the tables, should they have to be made.
///
/// # Errors
/// [`PolicyError`]; the tables are then what they were before.
pub async fn reconcile(
    rules: &[Placed],
    locals: &Locals,
    bridging: &Bridging,
    running: bool,
) -> Result<bool, PolicyError> {
    if rules.len() > MAX_RULES {
        return Err(PolicyError::TooMany(rules.len()));
    }
    let [inet_wanted, bridge_wanted] = compile(rules, locals, bridging);
    let (inet, bridge) = list().await?;
    let bridge = difference(&bridge_wanted, bridge.as_ref());
    let mut transaction = bridge.transaction;
    if running && bridge.anew == Anew::Table {
        transaction.add_for(bridge_wanted.name(), YOUNG, &"ip".into(), SILENCE);
    }
    transaction.extend(difference(&inet_wanted, inet.as_ref()).transaction);
    if transaction.is_empty() {
        return Ok(false);
    }
    match run::apply(&transaction, &replace()).await {
        Ok(()) => Ok(true),
        Err(NftError::Refused { reason, .. }) => {
            Err(refused_rule(rules, locals, bridging, reason).await?)
        }
        Err(other) => Err(other.into()),
    }
}

/// Removes both tables. Returns whether there was anything to remove.
///
/// # Errors
/// [`PolicyError`].
pub async fn remove() -> Result<bool, PolicyError> {
    if list().await? == (None, None) {
        return Ok(false);
    }
    let mut transaction = Transaction::removal(INET_TABLE);
    transaction.extend(Transaction::removal(BRIDGE_TABLE));
    run::apply(&transaction, &format!("remove table {TABLE}")).await?;
    Ok(true)
}

/// The packets that each counter has counted, of both tables together, by the counter's name.
///
/// # Errors
/// [`PolicyError`].
pub async fn counts() -> Result<Vec<(String, u64)>, PolicyError> {
    let mut counts = Vec::new();
    for table in [INET_TABLE, BRIDGE_TABLE] {
        // No table, no counters.
        if let Some(listed) = run::list_counters(table).await? {
            counts.extend(listed.counters);
        }
    }
    Ok(counts)
}

/// Both tables. Terse: what the sets remember may be a hundred thousand flows.
async fn list() -> Result<(Option<ListedTable>, Option<ListedTable>), NftError> {
    tokio::try_join!(run::list_terse(INET_TABLE), run::list_terse(BRIDGE_TABLE))
}

/// What is done to both tables, for messages.
fn replace() -> String {
    format!("replace table {TABLE}")
}

/// The error that names the rule that nft refuses, having refused all of them for `reason`.
async fn refused_rule(
    rules: &[Placed],
    locals: &Locals,
    bridging: &Bridging,
    reason: String,
) -> Result<PolicyError, NftError> {
    // In place of all there is.
    let first = |count: usize| {
        let mut transaction = Transaction::default();
        for table in compile(rules.get(..count).unwrap_or(rules), locals, bridging) {
            transaction.extend(difference(&table, None).transaction);
        }
        transaction
    };
    let Blame { part, reason } = blame(rules.len(), reason, first).await?;
    let refused = part.and_then(|part| Some((part + 1, rules.get(part)?)));
    Ok(match refused {
        Some((number, placed)) => PolicyError::Rule {
            number,
            rule: placed.rule.to_string(),
            reason,
        },
        None => PolicyError::Nft(NftError::Refused {
            operation: replace(),
            reason,
        }),
    })
}
