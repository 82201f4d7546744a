//! What keeps a daemon from starting on a host, found before anything is touched: others' things in the
//! overlay's place, and living containers that it would cut off. `oncache check` asks the same.

use std::path::Path;

use ipnet::Ipv4Net;

use crate::{
    config::Config,
    container::devices::{address_of, carries_a_namespace, container_of},
    netlink::{Link, Netlink, NetlinkError},
    policy::{kernel, order::effective},
    shown::{PATH, cut},
    slow_path::{SlowPath, Wanted},
    state::State,
};

/// How many containers a line names.
const NAMED: usize = 5;

/// One line for each obstacle to `wanted` by `slow_path` with the containers of `state`, which is that of
/// `directory`.
///
/// # Errors
///
/// [`NetlinkError`]: the host can't be looked at.
pub async fn obstacles(
    netlink: &Netlink,
    slow_path: &impl SlowPath,
    wanted: &Wanted<'_>,
    state: &State,
    directory: &Path,
) -> Result<Vec<String>, NetlinkError> {
    let links = netlink.links().await?;
    let mut lines = slow_path.obstacles(wanted).await?;
    lines.extend(strangers(&links, state, directory));
    lines.extend(other_addresses(&links, state, directory));
    lines.extend(other_subnet(slow_path, &links, wanted, state).await?);
    Ok(lines)
}

/// One line for each thing without which this kernel can't have the rules of `config` and `state`, if there are any.
pub async fn policy_obstacles(config: &Config, state: &State) -> Vec<String> {
    if effective(&state.policy, &config.policy).is_empty() {
        return Vec::new();
    }
    let (labels, same_host) = tokio::join!(kernel::labels(), kernel::same_host());
    let refused = labels.err().into_iter().chain(same_host.err());
    refused.map(|reason| reason.to_string()).collect()
}

/// Living containers that the state does not know: it is that of another directory, or has been lost.
fn strangers(links: &[Link], state: &State, directory: &Path) -> Option<String> {
    let unknown: Vec<String> = links
        .iter()
        .filter(|link| carries_a_namespace(link))
        .filter_map(|link| {
            let name = container_of(link)?;
            let known = state.containers.contains_key(name);
            (!known).then(|| format!("{} of container {name}", link.name))
        })
        .collect();
    let first = unknown.first()?;
    let device = first.split(' ').next().unwrap_or_default();
    Some(format!(
        "state directory {}: it does not know {}, which live on this host; give the directory that does by --state, or delete what is not wanted any more (`ip link del {device}`, or `oncache down` for all)",
        cut(&directory.to_string_lossy(), PATH),
        listed(&unknown),
    ))
}

/// Living containers that have other addresses than the state says: it is an old one.
fn other_addresses(links: &[Link], state: &State, directory: &Path) -> Option<String> {
    let other: Vec<String> = links
        .iter()
        .filter(|link| carries_a_namespace(link))
        .filter_map(|link| {
            let name = container_of(link)?;
            let known = state.containers.get(name)?.ip;
            let present = address_of(link)?;
            (known != present).then(|| {
                format!(
                    "container {name} at {known}, whose {} is for {present}",
                    link.name
                )
            })
        })
        .collect();
    (!other.is_empty()).then(|| {
        format!(
            "state directory {}: it has {}: it is not the state of these containers; give the right directory by --state, or `oncache down` removes all of them",
            cut(&directory.to_string_lossy(), PATH),
            listed(&other),
        )
    })
}

/// Another subnet than the one that the containers' gateway is of. They would lose it.
async fn other_subnet(
    slow_path: &impl SlowPath,
    links: &[Link],
    wanted: &Wanted<'_>,
    state: &State,
) -> Result<Option<String>, NetlinkError> {
    let living = |name: &str| {
        let mut ends = links.iter().filter(|link| carries_a_namespace(link));
        ends.any(|link| container_of(link) == Some(name))
    };
    let containers: Vec<String> = state
        .containers
        .iter()
        .filter(|(name, container)| !container.pending && living(name))
        .map(|(name, container)| format!("container {name} ({})", container.ip))
        .collect();
    if containers.is_empty() {
        return Ok(None);
    }
    let former = slow_path.present_gateway().await?;
    let wanted = &wanted.config.overlay;
    let wanted = Ipv4Net::new_assert(wanted.gateway(), wanted.subnet.prefix_len());
    Ok(former.filter(|former| *former != wanted).map(|former| {
        format!(
            "overlay.subnet {}: {} have {} of {} as their gateway; keep that subnet, or delete them under it first (`oncache container del`, or `oncache down` for all)",
            wanted.trunc(),
            listed(&containers),
            former.addr(),
            former.trunc(),
        )
    }))
}

/// Some of them by name, and how many more there are.
fn listed(all: &[String]) -> String {
    let named = all
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match all.len().checked_sub(NAMED) {
        None | Some(0) => named,
        Some(more) => format!("{named} and {more} more"),
    }
}
