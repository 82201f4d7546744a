//! What the configuration wants to know about the host.

use std::fs;

use super::{Netlink, NetlinkError, RouteFilter};
use crate::config::{DeviceFacts, HostFacts};

/// Where the kernel tells the host's name.
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// Collects the facts of the namespace that `netlink` is bound to.
///
/// # Errors
/// [`NetlinkError`] when a table cannot be read. A host without a name is `localhost`.
pub async fn host_facts(netlink: &Netlink) -> Result<HostFacts, NetlinkError> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let default_route = netlink
        .routes(RouteFilter::MainTable)
        .await?
        .into_iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .min_by_key(|route| route.metric);
    let devices: Vec<DeviceFacts> = links
        .into_iter()
        .map(|link| DeviceFacts {
            ipv4: addresses
                .iter()
                .filter(|address| address.device == link.index)
                .map(|address| address.address)
                .collect(),
            name: link.name,
            index: link.index,
            mtu: link.mtu,
            mac: link.mac.unwrap_or_default(),
        })
        .collect();
    Ok(HostFacts {
        hostname: hostname(),
        default_route_device: default_route.and_then(|route| {
            let device = devices.iter().find(|device| device.index == route.device)?;
            Some(device.name.clone())
        }),
        devices,
    })
}

fn hostname() -> String {
    match fs::read_to_string(HOSTNAME) {
        Ok(name) if !name.trim().is_empty() => name.trim().to_owned(),
        _ => "localhost".to_owned(),
    }
}
