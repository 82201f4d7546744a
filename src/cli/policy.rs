//! `oncache policy`.

use std::path::PathBuf;

use super::{print, print_json, table::table};
use crate::{
    config::{port_list, read_policy},
    control::{
        api::{self, Applied, ApplyPolicy, PolicyRule},
        client::Client,
    },
};

#[derive(Debug, clap::Subcommand)]
pub enum Policy {
    /// Replace the run-time rules by those of a file
    ///
    /// The file is TOML with [[policy]] tables as in the configuration. Its rules take the place of
    /// all run-time rules at once and stand before those of the configuration; the first rule that
    /// matches decides. When the command ends, no packet is judged by the old rules. They survive
    /// the daemon.
    Apply {
        /// A file of [[policy]] tables
        file: PathBuf,
    },
    /// List the rules in effective order with what they have counted
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove the run-time rules; those of the configuration stay
    Clear,
}

impl Policy {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Self::Apply { file } => {
                let rules = read_policy(&file)?;
                let body = ApplyPolicy { rules };
                let applied: Applied = client.post("/v1/policy", &body).await?;
                print(&in_force(applied))
            }
            Self::List { json } => {
                let policy: api::Policy = client.get("/v1/policy").await?;
                if json {
                    return print_json(&policy);
                }
                print(&listing(policy))
            }
            Self::Clear => {
                let applied: Applied = client.delete("/v1/policy").await?;
                print(&in_force(applied))
            }
        }
    }
}

fn in_force(applied: Applied) -> String {
    format!(
        "{} run-time rules in force, before {} of the configuration",
        applied.runtime, applied.file
    )
}

fn listing(policy: api::Policy) -> String {
    let any = || "any".to_owned();
    let rows = policy.rules.into_iter().enumerate().map(|(index, it)| {
        let PolicyRule {
            origin,
            rule,
            packets,
            absent,
        } = it;
        [
            (index + 1).to_string(),
            origin.name().to_owned(),
            rule.action.name().to_owned(),
            rule.from.map_or_else(any, String::from),
            rule.to.map_or_else(any, String::from),
            rule.protocol
                .map_or_else(any, |protocol| protocol.name().to_owned()),
            if rule.ports.is_empty() {
                any()
            } else {
                port_list(&rule.ports)
            },
            packets.to_string(),
            if absent.is_empty() {
                String::new()
            } else {
                format!("no such container here: {}", absent.join(", "))
            },
        ]
    });
    let heads = [
        "RULE", "ORIGIN", "ACTION", "FROM", "TO", "PROTOCOL", "PORTS", "PACKETS", "NOTE",
    ];
    let mut text = table(heads, rows, &[0, 7]);
    text.push_str(
        "\n\nThe first rule that matches decides; what none matches is allowed. Packets are those of the slow \
         path:\nthe fast path carries allowed flows only, and what it carries is not counted here.",
    );
    if policy.unjudged != 0 {
        text.push_str(&format!(
            "\n{} frames between containers of this host refused: not plain IPv4, or not to the \
             container's address",
            policy.unjudged
        ));
    }
    text
}
