//! The tables in the kernel: the only part of the policy that runs nft.

use std::{io, process::Stdio};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    compile::{Bridging, SameHost, compile},
    opener::{SILENCE, YOUNG},
    order::{Locals, Placed},
    table::{PresentTable, TABLE, WantedTable, begins_anew, element, removal},
};
use crate::nft::blame::one_line;

/// The families that have a table of the policy.
const FAMILIES: [&str; 2] = ["inet", "bridge"];
/// More rules than this, of both origins, are refused: nft's time grows faster than their number, and
/// the daemon does nothing else meanwhile.
pub const MAX_RULES: usize = 2000;
/// There where the bridge can hand packets to the hooks of `inet` (net/bridge/br_netfilter_hooks.c),
/// below /proc/sys.
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// The policy can't be had. The rules in force are what they were.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// nft could not be run.
    #[error("run nft: {0}; install the package nftables")]
    Run(#[from] io::Error),
    /// nft said no to the tables as such.
    #[error("{operation} table {TABLE}: {reason}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// nft's own words.
        reason: String,
    },
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
    /// nft's output is not what it should be.
    #[error("list table {TABLE}: {0}")]
    Listing(#[from] serde_json::Error),
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
    let label = json!({ "mangle": { "key": { "ct": { "key": "label" } }, "value": 1 } });
    probe("inet", &label)
        .await?
        .map_err(|reason| PolicyError::Labels { reason })
}

/// How this kernel lets packets between containers of one host be judged.
///
/// # Errors
/// [`PolicyError::SameHost`] if it does not.
pub async fn same_host() -> Result<SameHost, PolicyError> {
    let state = json!({ "match": {
        "op": "in", "left": { "ct": { "key": "state" } }, "right": "new",
    } });
    match probe("bridge", &state).await? {
        Ok(()) => Ok(SameHost::BridgeTable),
        Err(_) if std::fs::exists(BRIDGE_NETFILTER)? => Ok(SameHost::InetHooks),
        Err(reason) => Err(PolicyError::SameHost { reason }),
    }
}

/// Whether the kernel takes a rule of one statement; nft's words if it does not.
async fn probe(family: &str, statement: &Value) -> Result<Result<(), String>, PolicyError> {
    let table = json!({ "family": family, "name": "oncache-probe" });
    let chain = json!({ "family": family, "table": "oncache-probe", "name": "probe" });
    let rule = json!({
        "family": family, "table": "oncache-probe", "chain": "probe", "expr": [statement],
    });
    let commands = [
        json!({ "add": { "table": table } }),
        json!({ "add": { "chain": chain } }),
        json!({ "add": { "rule": rule } }),
    ];
    transact(&["--check"], &commands).await
}

/// Makes the kernel's tables those of `rules`, both in one transaction. Returns whether that took a
/// change. `running`: there may be flows that began before the tables, should they have to be made.
///
/// # Errors
/// [`PolicyError`]; the tables are then what they were before.
pub async fn reconcile(
    rules: &[Placed],
    locals: &Locals,
    bridging: Bridging,
    running: bool,
) -> Result<bool, PolicyError> {
    if rules.len() > MAX_RULES {
        return Err(PolicyError::TooMany(rules.len()));
    }
    let tables = compile(rules, locals, bridging);
    let [inet, bridge] = FAMILIES;
    let (inet, bridge) = tokio::join!(list(inet), list(bridge));
    let [inet, bridge] = [inet?, bridge?];
    let [inet_wanted, bridge_wanted] = &tables;
    let mut commands = bridge_wanted.commands(bridge.as_ref());
    if running && begins_anew(&commands) {
        commands.push(element(bridge_wanted.family(), YOUNG, "ip", SILENCE));
    }
    commands.extend(inet_wanted.commands(inet.as_ref()));
    if commands.is_empty() {
        return Ok(false);
    }
    match transact(&[], &commands).await? {
        Ok(()) => Ok(true),
        Err(reason) => Err(blame(rules, locals, bridging, reason).await?),
    }
}

/// Removes both tables. Returns whether there was anything to remove.
///
/// # Errors
/// [`PolicyError`].
pub async fn remove() -> Result<bool, PolicyError> {
    let [inet, bridge] = FAMILIES;
    let (inet, bridge) = tokio::join!(list(inet), list(bridge));
    if inet?.is_none() && bridge?.is_none() {
        return Ok(false);
    }
    let commands: Vec<Value> = FAMILIES.into_iter().flat_map(removal).collect();
    match transact(&[], &commands).await? {
        Ok(()) => Ok(true),
        Err(reason) => Err(PolicyError::Refused {
            operation: "remove",
            reason,
        }),
    }
}

/// The packets that each counter has counted, of both tables together, by the counter's name.
///
/// # Errors
/// [`PolicyError`].
pub async fn counts() -> Result<Vec<(String, u64)>, PolicyError> {
    let mut counts = Vec::new();
    for family in FAMILIES {
        let listing = nft(&["-j", "list", "counters", "table", family, TABLE], "").await?;
        // No table, no counters.
        let Ok(text) = listing else { continue };
        let listing: Value = serde_json::from_str(&text)?;
        let objects = listing["nftables"].as_array();
        for object in objects.map_or(&[][..], Vec::as_slice) {
            let counter = &object["counter"];
            if let (Some(name), Some(packets)) =
                (counter["name"].as_str(), counter["packets"].as_u64())
            {
                counts.push((name.to_owned(), packets));
            }
        }
    }
    Ok(counts)
}

/// Which rule it is that nft refuses: the last of the shortest beginning of the rules that it
/// refuses.
async fn blame(
    rules: &[Placed],
    locals: &Locals,
    bridging: Bridging,
    mut reason: String,
) -> Result<PolicyError, PolicyError> {
    // The first so many pass, and so many do not.
    let (mut good, mut bad) = (0, rules.len());
    if let Err(reason) = check(&[], locals, bridging).await? {
        let operation = "replace";
        return Ok(PolicyError::Refused { operation, reason });
    }
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        match check(rules.get(..middle).unwrap_or(rules), locals, bridging).await? {
            Ok(()) => good = middle,
            Err(said) => (bad, reason) = (middle, said),
        }
    }
    Ok(match rules.get(good) {
        Some(placed) => PolicyError::Rule {
            number: bad,
            rule: placed.rule.to_string(),
            reason,
        },
        None => PolicyError::Refused {
            operation: "replace",
            reason,
        },
    })
}

/// Whether nft would take these rules in place of all there is; its words if not.
async fn check(
    rules: &[Placed],
    locals: &Locals,
    bridging: Bridging,
) -> Result<Result<(), String>, PolicyError> {
    let tables = compile(rules, locals, bridging);
    let commands = |table: &WantedTable| table.commands(None);
    let commands: Vec<Value> = tables.iter().flat_map(commands).collect();
    transact(&["--check"], &commands).await
}

async fn list(family: &str) -> Result<Option<PresentTable>, PolicyError> {
    // Terse: what the sets remember may be a hundred thousand flows.
    match nft(&["-j", "-t", "list", "table", family, TABLE], "").await? {
        Ok(text) => Ok(Some(PresentTable::of(&serde_json::from_str(&text)?))),
        // Whatever else keeps it from being listed, replacing it says more.
        Err(_) => Ok(None),
    }
}

/// Runs commands as one transaction; nft's words if it refuses.
async fn transact(
    arguments: &[&str],
    commands: &[Value],
) -> Result<Result<(), String>, PolicyError> {
    let arguments = [arguments, &["-j", "-f", "-"]].concat();
    let input = json!({ "nftables": commands }).to_string();
    Ok(nft(&arguments, &input).await?.map(|_| ()))
}

/// Runs nft; what it prints, or what it complains of in one line.
async fn nft(arguments: &[&str], input: &str) -> Result<Result<String, String>, io::Error> {
    let mut process = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = process.stdin.take() {
        // nft reads all before it prints anything; if it ends early, its words say why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = process.wait_with_output().await?;
    Ok(if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(one_line(&String::from_utf8_lossy(&output.stderr)))
    })
}
