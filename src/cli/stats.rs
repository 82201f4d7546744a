//! `oncache stats`.

use super::{
    print, print_json,
    table::{percent, table},
};
use crate::control::{api, client::Client};

#[derive(Debug, clap::Args)]
pub struct Stats {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let stats: api::Stats = client.get("/v1/stats").await?;
        if self.json {
            return print_json(&stats);
        }
        let rows = stats.counters.into_iter().map(|count| {
            [
                count.program,
                count.reason,
                count.packets.to_string(),
                count.meaning,
            ]
        });
        print(&table(
            ["PROGRAM", "REASON", "PACKETS", "MEANING"],
            rows,
            &[2],
        ))?;
        if !stats.invalidations.is_empty() {
            let rows = stats
                .invalidations
                .into_iter()
                .map(|count| [count.cause, count.count.to_string(), count.meaning]);
            print(&format!(
                "\n{}\n(since the daemon's start, {} s ago)",
                table(["NEW EPOCH FOR", "TIMES", "MEANING"], rows, &[1]),
                stats.invalidations_since_s,
            ))?;
        }
        if !stats.refused.is_empty() {
            let rows = stats
                .refused
                .into_iter()
                .map(|count| [count.reason, count.packets.to_string(), count.meaning]);
            print(&format!(
                "\n{}\n({} of them forged)",
                table(["REFUSED", "PACKETS", "MEANING"], rows, &[1]),
                stats.spoofed,
            ))?;
        }
        if !stats.not_carried.is_empty() {
            print(&format!("\n{}", super::hindrances(&stats.not_carried)))?;
        }
        let flows = stats.flows;
        print(&format!(
            "\nflows: {} entered, {} taken out, {} there, {} evicted for want of room",
            flows.entered, flows.removed, flows.present, flows.evicted
        ))?;
        print(&format!(
            "hit ratio {} out, {} in (an aggregate counts as one packet)",
            percent(stats.hit_ratio.egress),
            percent(stats.hit_ratio.ingress),
        ))
    }
}
