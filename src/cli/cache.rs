//! `oncache cache`.

use super::{print, print_json, table::table};
use crate::{
    control::{api::Flushed, client::Client},
    datapath::caches::Caches,
};

#[derive(Debug, clap::Subcommand)]
pub enum Cache {
    /// Show what the caches hold
    List {
        /// One cache; all without
        #[arg(value_enum)]
        cache: Option<Which>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget everything learned; flows take the slow path and are learned again
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Flows and what the slow path allowed of them
    #[value(alias = "filter")]
    Flows,
    /// The outer headers to each peer, and the remote containers behind it
    #[value(alias = "egress")]
    Peers,
    /// Local containers and their MAC addresses
    #[value(alias = "ingress")]
    Containers,
}

impl Cache {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Self::List { cache, json } => {
                let mut caches: Caches = client.get("/v1/cache").await?;
                let wanted = |which| cache.is_none() || cache == Some(which);
                if !wanted(Which::Peers) {
                    caches.addresses.clear();
                    caches.hosts.clear();
                }
                if !wanted(Which::Containers) {
                    caches.containers.clear();
                }
                if !wanted(Which::Flows) {
                    caches.flows.clear();
                }
                if json {
                    return print_json(&caches);
                }
                let mut listings = Vec::new();
                if wanted(Which::Peers) {
                    listings.push(addresses(&caches));
                    listings.push(hosts(&caches));
                }
                if wanted(Which::Containers) {
                    listings.push(containers(&caches));
                }
                if wanted(Which::Flows) {
                    listings.push(flows(&caches));
                }
                print(&listings.join("\n\n"))
            }
            Self::Flush => {
                let flushed: Flushed = client.post("/v1/cache/flush", &()).await?;
                print(&format!("{} flows forgotten", flushed.flows))
            }
        }
    }
}

fn state(live: bool) -> String {
    if live { "live" } else { "not learned" }.to_owned()
}

fn addresses(caches: &Caches) -> String {
    let rows = caches.addresses.iter().map(|entry| {
        [
            entry.container.to_string(),
            entry.host.to_string(),
            state(entry.live),
        ]
    });
    table(["PEERS: CONTAINER", "HOST", "STATE"], rows, &[])
}

fn hosts(caches: &Caches) -> String {
    let rows = caches.hosts.iter().map(|entry| {
        [
            entry.host.to_string(),
            entry.ifindex.to_string(),
            entry.next_hop.clone(),
            entry.vtep.clone(),
            state(entry.live),
        ]
    });
    table(
        ["PEERS: HOST", "IFINDEX", "NEXT HOP", "VTEP", "STATE"],
        rows,
        &[1],
    )
}

fn containers(caches: &Caches) -> String {
    let rows = caches.containers.iter().map(|entry| {
        [
            entry.container.to_string(),
            entry.ifindex.to_string(),
            entry.destination.clone(),
            entry.source.clone(),
            state(entry.live),
        ]
    });
    table(
        [
            "CONTAINERS: ADDRESS",
            "IFINDEX",
            "DESTINATION",
            "SOURCE",
            "STATE",
        ],
        rows,
        &[1],
    )
}

fn flows(caches: &Caches) -> String {
    let rows = caches.flows.iter().map(|entry| {
        let passed = match (entry.egress, entry.ingress) {
            (true, true) => "out, in",
            (true, false) => "out",
            (false, true) => "in",
            (false, false) => "none",
        };
        [
            entry.protocol.clone(),
            entry.local.clone(),
            entry.remote.clone(),
            passed.to_owned(),
            entry.state.clone(),
            format!("{} ms", entry.lease_left_ms),
        ]
    });
    table(
        ["FLOWS", "LOCAL", "REMOTE", "PASSED", "STATE", "LEASE"],
        rows,
        &[5],
    )
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::Which;

    #[test]
    fn the_former_names_are_understood() {
        for (former, present) in [
            ("filter", Which::Flows),
            ("egress", Which::Peers),
            ("ingress", Which::Containers),
        ] {
            assert_eq!(Which::from_str(former, false), Ok(present));
        }
    }
}
