//! `oncache status`.

use super::{
    print, print_json,
    table::{percent, table},
};
use crate::control::{
    api::{self, CacheStatus},
    client::Client,
};

#[derive(Debug, clap::Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let status: api::Status = client.get("/v1/status").await?;
        if self.json {
            return print_json(&status);
        }
        print(&format!(
            "node {}: {} on {}, oncache {}\noverlay {} of {}, VNI {}, MTU {}",
            status.node,
            status.address,
            status.underlay,
            status.version,
            status.subnet,
            status.network,
            status.vni,
            status.mtu,
        ))?;
        match &status.cache {
            Some(cache) => print_cache(cache)?,
            None => print("fast path off")?,
        }
        if !status.not_carried.is_empty() {
            print(&super::hindrances(&status.not_carried))?;
        }
        for warning in &status.warnings {
            print(&format!("warning: {warning}"))?;
        }
        let peers = status.peers.into_iter().map(|peer| {
            let moved: Vec<String> = peer.moved.iter().map(ToString::to_string).collect();
            [
                peer.name,
                peer.address.to_string(),
                peer.subnet.to_string(),
                moved.join(" "),
            ]
        });
        print(&format!(
            "\n{}",
            table(["PEER", "ADDRESS", "SUBNET", "MOVED"], peers, &[])
        ))?;
        print(&format!(
            "\n{}",
            super::container::listing(status.containers)
        ))
    }
}

fn print_cache(cache: &CacheStatus) -> anyhow::Result<()> {
    print(&format!(
        "fast path on ({}): hit ratio {} out, {} in; epoch {}, lease {} ms{}",
        cache.attach,
        percent(cache.hit_ratio.egress),
        percent(cache.hit_ratio.ingress),
        cache.epoch,
        cache.lease_ms,
        cache
            .lease_bound
            .as_ref()
            .map_or_else(String::new, |bound| format!(", half of {bound}")),
    ))?;
    print(&format!(
        "caches: {} of {} flows, {} remote containers, {} hosts, {} local containers",
        cache.entries.flows,
        cache.flows,
        cache.entries.addresses,
        cache.entries.hosts,
        cache.entries.containers,
    ))?;
    let programs = cache.programs.iter().map(|attachment| {
        [
            attachment.program.clone(),
            attachment.device.clone(),
            attachment.program_id.to_string(),
        ]
    });
    print(&format!(
        "\n{}",
        table(["PROGRAM", "DEVICE", "ID"], programs, &[2])
    ))
}
