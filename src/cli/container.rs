//! `oncache container`.

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context as _, anyhow};

use super::{print, print_json, table::table};
use crate::{
    config::check_name,
    control::{
        api::{AddContainer, ContainerInfo, default_ifname},
        client::Client,
    },
    shown::{PATH, VALUE, cut},
    state::InnerRoute,
};

#[derive(Debug, clap::Subcommand)]
pub enum ContainerCommand {
    /// Connect a container to the overlay
    ///
    /// Without --netns a network namespace is made at /run/netns/NAME, as `ip netns add` does, and
    /// goes with the container.
    Add {
        /// Its name
        name: String,
        /// Path of its network namespace
        #[arg(long, value_name = "PATH")]
        netns: Option<PathBuf>,
        /// Its address: of this host's subnet, or one of another's that moves here; without, the next
        /// free one of the subnet
        #[arg(long, value_name = "ADDRESS")]
        ip: Option<Ipv4Addr>,
        /// Name of the device inside
        #[arg(long, value_name = "NAME", default_value_t = default_ifname())]
        ifname: String,
        /// What it reaches by the gateway
        #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
        route: InnerRoute,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Disconnect a container and free its address
    ///
    /// What netfilter tracks of the address's connections is forgotten.
    Del {
        /// Its name
        name: String,
    },
    /// List the containers of this host
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl ContainerCommand {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Self::Add {
                name,
                netns,
                ip,
                ifname,
                route,
                json,
            } => {
                // The daemon has another working directory.
                let netns = netns
                    .map(|path| {
                        std::path::absolute(&path).with_context(|| {
                            let path = path.to_string_lossy();
                            format!("network namespace {}", cut(&path, PATH))
                        })
                    })
                    .transpose()?;
                let request = AddContainer {
                    name,
                    netns,
                    ip,
                    ifname,
                    route,
                };
                let added: ContainerInfo = client.post("/v1/containers", &request).await?;
                if json {
                    print_json(&added)
                } else {
                    print(&listing(vec![added]))
                }
            }
            Self::Del { name } => {
                // Part of a path, in which other characters would have a meaning.
                check_name(&name)
                    .map_err(|why| anyhow!("container {:?}: {why}", cut(&name, VALUE)))?;
                Ok(client.delete(&format!("/v1/containers/{name}")).await?)
            }
            Self::List { json } => {
                let containers: Vec<ContainerInfo> = client.get("/v1/containers").await?;
                if json {
                    print_json(&containers)
                } else {
                    print(&listing(containers))
                }
            }
        }
    }
}

/// Containers as a table.
pub fn listing(containers: Vec<ContainerInfo>) -> String {
    let hindered: String = containers
        .iter()
        .flat_map(|container| {
            let reasons = container.not_carried.iter();
            reasons.map(|reason| format!("\n{}: not carried: {reason}", container.name))
        })
        .collect();
    let rows = containers.into_iter().map(|container| {
        [
            container.name,
            container.ip.to_string(),
            container.device,
            container.ifname,
            container.netns.display().to_string(),
        ]
    });
    let listed = table(
        ["CONTAINER", "ADDRESS", "DEVICE", "INSIDE", "NAMESPACE"],
        rows,
        &[],
    );
    listed + &hindered
}
