//! What the configuration wants to know about the host.

use std::fs;

use super::{Address, Link, Netlink, NetlinkError, RouteFilter};
use crate::config::{DeviceFacts, HostFacts};

/// Where the kernel tells the host's name.
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// Collects the facts of the namespace that `netlink` is bound to, for a configuration whose
/// underlay device is `underlay`, or that of the default route.
///
/// That device's addresses are one state of it, whatever others do to theirs meanwhile.
///
/// # Errors
/// [`NetlinkError`] when a table cannot be read. A host without a name is `localhost`.
pub async fn host_facts(
    netlink: &Netlink,
    underlay: Option<&str>,
) -> Result<HostFacts, NetlinkError> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let default_route = netlink
        .routes(RouteFilter::MainTable)
        .await?
        .into_iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .min_by_key(|route| route.metric);
    let mut devices: Vec<DeviceFacts> = links
        .into_iter()
        .map(|link| {
            let index = link.index;
            device_facts(link, addresses.iter().filter(|it| it.device == index))
        })
        .collect();
    let default_route_device = default_route.and_then(|route| {
        let device = devices.iter().find(|device| device.index == route.device)?;
        Some(device.name.clone())
    });
    let underlay = underlay.or(default_route_device.as_deref());
    if let Some(device) = devices
        .iter_mut()
        .find(|it| Some(it.name.as_str()) == underlay)
    {
        take_addresses(device, &netlink.addresses_of(device.index).await?);
    }
    Ok(HostFacts {
        hostname: hostname(),
        default_route_device,
        devices,
        chosen: None,
    })
}

/// The facts of one device alone: all that there is to follow once the configuration is in force.
/// Without it, what the others are called too.
///
/// # Errors
/// [`NetlinkError`] when a table cannot be read.
pub async fn underlay_facts(netlink: &Netlink, name: &str) -> Result<HostFacts, NetlinkError> {
    let Some(link) = netlink.link_by_name(name).await? else {
        return host_facts(netlink, None).await;
    };
    let addresses = netlink.addresses_of(link.index).await?;
    Ok(HostFacts {
        hostname: hostname(),
        devices: vec![device_facts(link, &addresses)],
        ..HostFacts::default()
    })
}

fn device_facts<'a>(link: Link, addresses: impl IntoIterator<Item = &'a Address>) -> DeviceFacts {
    let mut device = DeviceFacts {
        name: link.name,
        index: link.index,
        mtu: link.mtu,
        mac: link.mac.unwrap_or_default(),
        ..DeviceFacts::default()
    };
    take_addresses(&mut device, addresses);
    device
}

fn take_addresses<'a>(device: &mut DeviceFacts, addresses: impl IntoIterator<Item = &'a Address>) {
    device.ipv4.clear();
    device.secondary.clear();
    for entry in addresses {
        device.ipv4.push(entry.address);
        if entry.secondary {
            device.secondary.push(entry.address.addr());
        }
    }
}

fn hostname() -> String {
    match fs::read_to_string(HOSTNAME) {
        Ok(name) if !name.trim().is_empty() => name.trim().to_owned(),
        _ => "localhost".to_owned(),
    }
}
