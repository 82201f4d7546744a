//! What on the host is somebody else's and stands where the overlay wants to be: found before a start
//! or a reload touches anything, and named where the kernel refuses a step.
//!
//! The kernel's answer is a number without an object (`File exists (17)`), so here is looked who has
//! what was asked for. `oncache check`, a start and a reload ask the same.

use std::{fs, io, net::Ipv4Addr, net::UdpSocket};

use nix::errno::Errno;

use super::{
    names::{DeviceNames, OwnDevice, gateway_mac, headroom_mac, vtep_mac},
    step::Step,
    wanted::{OverlayRoute, WantedOverlay},
};
use crate::netlink::{
    Link, Mac, Netlink, NetlinkError, ROUTE_PROTOCOL, RouteHolder, VxlanParameters,
};

/// What the aliases of containers' devices begin with.
const ALIAS: &str = "oncache ";

/// Something of somebody else's in the overlay's place. Displays as one line: what, which object, who
/// has it, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A device of the name is something else.
    #[error(
        "device {device}: {what} of this name is there and is not oncache's; rename it or remove it (`ip link del {device}`)"
    )]
    Name {
        /// The name.
        device: String,
        /// What it is.
        what: String,
    },
    /// The VNI is another device's.
    #[error(
        "overlay.vni {vni}: VXLAN device {holder} has it already at UDP port {port}, and the kernel gives a VNI to one device a port; remove that device (`ip link del {holder}`), or set another overlay.vni on all hosts"
    )]
    Vni {
        /// The VNI.
        vni: u32,
        /// The port.
        port: u16,
        /// The device that has it.
        holder: String,
    },
    /// The port of VXLAN is another socket's.
    #[error(
        "overlay.port {port}: UDP port {port} is held by {holder}; end that, or set another overlay.port on all hosts"
    )]
    Port {
        /// The port.
        port: u16,
        /// Who holds it.
        holder: String,
    },
    /// A route to the destination is there.
    #[error(
        "route to {destination}: another program's is there already, `{holder}`; remove it (`ip route del {holder}`), or give the peer another subnet"
    )]
    Route {
        /// The destination.
        destination: ipnet::Ipv4Net,
        /// The route.
        holder: Box<RouteHolder>,
    },
    /// Another device has an address of this host's subnet.
    #[error(
        "overlay.subnet {subnet}: device {holder} has the address {address} of it already; remove that (`ip address del {address} dev {holder}`), or set another overlay.subnet"
    )]
    Address {
        /// This host's subnet.
        subnet: ipnet::Ipv4Net,
        /// The address.
        address: ipnet::Ipv4Net,
        /// The device.
        holder: String,
    },
}

/// All that stands in the way of `wanted`.
///
/// The calling thread is in the network namespace of `netlink`.
///
/// # Errors
/// [`NetlinkError`] when a table cannot be read.
pub async fn conflicts(
    netlink: &Netlink,
    wanted: &WantedOverlay,
) -> Result<Vec<Conflict>, NetlinkError> {
    let links = netlink.links().await?;
    let mut found: Vec<Conflict> = [OwnDevice::Bridge, OwnDevice::Vxlan, OwnDevice::Headroom]
        .into_iter()
        .filter_map(|device| name(&wanted.names, device, &links))
        .collect();
    for (own, parameters) in [
        (&wanted.names.vxlan, wanted.vxlan.parameters),
        (&wanted.names.headroom, wanted.headroom.parameters),
    ] {
        found.extend(vni(netlink, own, parameters).await?);
    }
    found.extend(port(netlink, wanted.vxlan.parameters.port).await?);
    found.extend(address(netlink, wanted, &links).await?);
    found.extend(routes(netlink, &wanted.names, &wanted.routes, &links).await?);
    Ok(found)
}

/// What stands behind the refusal of a step: the holder of what it asked for, where there is one.
pub(super) async fn behind(
    netlink: &Netlink,
    wanted: &WantedOverlay,
    step: &Step,
    refused: &NetlinkError,
) -> Option<Conflict> {
    let found = match (step, refused.errno()) {
        (Step::CreateVxlan(_), Some(Errno::EEXIST)) => {
            vni(netlink, &wanted.names.vxlan, wanted.vxlan.parameters).await
        }
        (Step::CreateHeadroom(_), Some(Errno::EEXIST)) => {
            vni(netlink, &wanted.names.headroom, wanted.headroom.parameters).await
        }
        (Step::SetUp(OwnDevice::Vxlan), Some(Errno::EADDRINUSE)) => {
            port(netlink, wanted.vxlan.parameters.port).await
        }
        (Step::AddRoute(route), Some(Errno::EEXIST)) => match netlink.links().await {
            Ok(links) => routes(netlink, &wanted.names, std::slice::from_ref(route), &links)
                .await
                .map(|found| found.into_iter().next()),
            Err(_) => Ok(None),
        },
        _ => Ok(None),
    };
    // Why the second look fails would only hide the first reason.
    found.ok().flatten()
}

/// What is there by the name of one of our devices and cannot be ours: it is neither taken over nor
/// deleted.
#[must_use]
pub fn name(names: &DeviceNames, device: OwnDevice, links: &[Link]) -> Option<Conflict> {
    let link = links.iter().find(|link| link.name == names.of(device))?;
    let what = whose(names, device, link, links)?;
    let device = link.name.clone();
    Some(Conflict::Name { device, what })
}

/// What a device with the name of ours is, if it is not ours. Ours may have been changed by anybody in
/// all that can be changed; so one of the right kind is somebody else's only if more than one thing
/// says so.
pub(super) fn whose(
    names: &DeviceNames,
    device: OwnDevice,
    link: &Link,
    links: &[Link],
) -> Option<String> {
    let kind = link.kind.as_deref();
    let ours = link.mac.is_some_and(|mac| is_own_mac(device, mac));
    match device {
        OwnDevice::Bridge if kind == Some("bridge") => {
            let ports = || links.iter().filter(|it| it.controller == Some(link.index));
            let alias = |port: &Link| port.alias.as_ref().is_some_and(|it| it.starts_with(ALIAS));
            let own = |port: &Link| port.name == names.headroom || alias(port);
            let port = ports().next()?;
            let foreign = !ours && !ports().any(own);
            foreign.then(|| format!("a bridge with other ports ({})", port.name))
        }
        OwnDevice::Vxlan | OwnDevice::Headroom if kind == Some("vxlan") => {
            // Oncache's have never learned, and have had the addresses that say what they are.
            let parameters = link.vxlan?;
            let foreign = !ours && parameters.learning;
            foreign.then(|| format!("a VXLAN device with VNI {}", parameters.vni))
        }
        _ => Some(format!("a {} device", kind.unwrap_or("hardware"))),
    }
}

/// Whether a link-layer address is of the kind that a device of ours has.
fn is_own_mac(device: OwnDevice, mac: Mac) -> bool {
    let role = match device {
        OwnDevice::Bridge => gateway_mac(Ipv4Addr::UNSPECIFIED),
        OwnDevice::Vxlan => vtep_mac(Ipv4Addr::UNSPECIFIED),
        OwnDevice::Headroom => headroom_mac(Ipv4Addr::UNSPECIFIED),
    };
    mac[..2] == role[..2]
}

/// Another device with the same VNI and port, which the kernel refuses whatever else differs
/// (drivers/net/vxlan/vxlan_core.c, `vxlan_vni_in_use`), but for what makes their sockets differ.
async fn vni(
    netlink: &Netlink,
    own: &str,
    wanted: VxlanParameters,
) -> Result<Option<Conflict>, NetlinkError> {
    let holders = netlink.vxlan_holders().await?;
    let holder = holders.into_iter().find(|it| {
        it.name != own
            && (it.vni, it.port) == (wanted.vni, wanted.port)
            && !it.ipv6
            && it.flags.is_empty()
    });
    Ok(holder.map(|holder| Conflict::Vni {
        vni: wanted.vni,
        port: wanted.port,
        holder: holder.name,
    }))
}

/// Who holds the port of VXLAN. Plain VXLAN devices of IPv4 share one socket
/// (drivers/net/vxlan/vxlan_core.c, `vxlan_find_sock`); where one of them is up, that socket is there.
async fn port(netlink: &Netlink, port: u16) -> Result<Option<Conflict>, NetlinkError> {
    let holders = netlink.vxlan_holders().await?;
    let mut at_port = holders.iter().filter(|it| it.port == port && it.up);
    if at_port.clone().any(|it| !it.ipv6 && it.flags.is_empty()) {
        return Ok(None);
    }
    // Asked of the kernel, whose rules of who may share a port are not guessed at: the socket is closed
    // again at once, and has read nothing.
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        _ => return Ok(None),
    }
    let device = at_port.find(|it| !it.flags.is_empty()).map(|it| {
        format!(
            "VXLAN device {}, whose socket others cannot share ({})",
            it.name,
            it.flags.join(", ")
        )
    });
    Ok(Some(Conflict::Port {
        port,
        holder: device.unwrap_or_else(|| process_at(port)),
    }))
}

/// The process that has a UDP port of this network namespace.
fn process_at(port: u16) -> String {
    let nobody = || "a socket of a process that cannot be seen from here".to_owned();
    let sockets: Vec<String> = ["udp", "udp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok())
        .flat_map(|text| inodes_at(&text, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let Ok(processes) = fs::read_dir("/proc") else {
        return nobody();
    };
    for process in processes.flatten() {
        let name = process.file_name();
        let pid = name.to_string_lossy();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path())
                .is_ok_and(|target| sockets.iter().any(|socket| target.as_os_str() == &**socket))
        });
        if holds {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!("process {pid} ({})", command.trim_end());
        }
    }
    nobody()
}

/// The inode numbers of the sockets at a port, of /proc/net/udp: the second column ends with the port
/// in hexadecimal digits, the tenth is the inode.
fn inodes_at(table: &str, port: u16) -> Vec<String> {
    let end = format!(":{port:04X}");
    table
        .lines()
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let local = columns.get(1)?;
            let inode = columns.get(9)?;
            local.ends_with(&end).then(|| (*inode).to_owned())
        })
        .collect()
}

/// Addresses of this host's subnet on others' devices: the kernel takes the gateway's all the same, and
/// what is for containers goes there.
async fn address(
    netlink: &Netlink,
    wanted: &WantedOverlay,
    links: &[Link],
) -> Result<Option<Conflict>, NetlinkError> {
    let subnet = wanted.bridge.address.trunc();
    let addresses = netlink.addresses().await?;
    Ok(addresses.iter().find_map(|entry| {
        let holder = links.iter().find(|link| link.index == entry.device)?;
        let taken = holder.name != wanted.names.bridge && subnet.contains(&entry.address.addr());
        taken.then(|| Conflict::Address {
            subnet,
            address: entry.address,
            holder: holder.name.clone(),
        })
    }))
}

/// Others' routes to the destinations of ours.
async fn routes(
    netlink: &Netlink,
    names: &DeviceNames,
    wanted: &[OverlayRoute],
    links: &[Link],
) -> Result<Vec<Conflict>, NetlinkError> {
    let own: Vec<u32> = links
        .iter()
        .filter(|link| [&names.bridge, &names.vxlan].contains(&&link.name))
        .map(|link| link.index)
        .collect();
    let destinations: std::collections::HashSet<_> = wanted
        .iter()
        .map(|route| (route.destination, route.metric))
        .collect();
    let holders = netlink
        .route_holders(|route| {
            let ours = route.protocol == ROUTE_PROTOCOL
                && route.device.is_none_or(|device| own.contains(&device));
            !ours && destinations.contains(&(route.destination, route.metric))
        })
        .await?;
    Ok(holders
        .into_iter()
        .map(|holder| Conflict::Route {
            destination: holder.destination,
            holder: Box::new(holder),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  117: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0
  118: 0100007F:12B6 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0
";

    #[test]
    fn sockets_are_found_by_their_port() {
        assert_eq!(inodes_at(TABLE, 4789), ["4711"]);
        assert_eq!(inodes_at(TABLE, 4790), ["4712"]);
        assert_eq!(inodes_at(TABLE, 4791), [""; 0]);
        assert_eq!(inodes_at("", 4789), [""; 0]);
    }
}
