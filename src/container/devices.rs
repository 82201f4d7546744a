//! A container's device pair: one end a port of the bridge, the other inside.

use std::{net::Ipv4Addr, os::fd::AsFd as _, time::Duration};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use tracing::warn;

use super::{ContainerError, namespace};
use crate::{
    netlink::{
        Link, MAIN_TABLE, Mac, Netlink, NetlinkError, PairEnd, PairKind, PortSettings,
        ROUTE_PROTOCOL, Route, RouteReach,
    },
    stable_hash::fnv1a,
    state::{Container, InnerRoute},
};

/// What host-side devices' names begin with: a container's name follows.
const NAMED: &str = "onc-";
/// What they begin with where the container's name does not fit: a hash of it follows.
const HASHED: &str = "onc_";
/// Both, as rules of nft ask for them.
pub const PATTERNS: [&str; 2] = ["onc-*", "onc_*"];

/// What host-side devices' aliases begin with: the container's name follows.
const ALIAS: &str = "oncache container ";

/// The largest length of a device name (include/uapi/linux/if.h, `IFNAMSIZ` less the NUL).
const NAME_LENGTH: usize = 15;

/// The name of the host-side device of the container called `name`: the name itself where it fits
/// and is a device name, else a hash of it.
#[must_use]
pub fn host_device(name: &str) -> String {
    let fits = NAMED.len() + name.len() <= NAME_LENGTH
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if fits {
        return format!("{NAMED}{name}");
    }
    format!("{HASHED}{:011x}", fnv1a(name.as_bytes()) >> 20)
}

/// The container that a device is the host-side end of, by its alias: its name may have been changed.
/// If no record knows the container, the device is a leftover.
#[must_use]
pub fn container_of(device: &Link) -> Option<&str> {
    device.alias.as_ref()?.strip_prefix(ALIAS)
}

/// Whether a device is one of ours: an alias alone makes no pair.
#[must_use]
pub fn is_host_device(device: &Link) -> bool {
    container_of(device).is_some() && PairKind::of(device).is_some()
}

/// Whether a network namespace lives at the far end of one of our devices. It does wherever the far end
/// is elsewhere: a namespace that ends takes its devices along, and with them their other ends
/// (net/core/dev.c, `default_device_exit_batch`).
#[must_use]
pub fn carries_a_namespace(device: &Link) -> bool {
    is_host_device(device) && device.far_namespace.is_some()
}

/// The address of the container that a host-side device was made for, by its link-layer address; none
/// where somebody has changed that.
#[must_use]
pub fn address_of(device: &Link) -> Option<Ipv4Addr> {
    let mac = device.mac?;
    let [_, _, a, b, c, d] = mac;
    let address = Ipv4Addr::new(a, b, c, d);
    (mac == port_mac(address)).then_some(address)
}

/// MAC address of a container's inner end.
#[must_use]
pub fn container_mac(container: Ipv4Addr) -> Mac {
    mac(0x63, container)
}

/// MAC address of the host-side end. Given at creation, so that no network manager thinks of one.
fn port_mac(container: Ipv4Addr) -> Mac {
    mac(0x70, container)
}

/// Locally administered (IEEE 802, section 8.2.2), and made of the container's address.
fn mac(role: u8, container: Ipv4Addr) -> Mac {
    let [a, b, c, d] = container.octets();
    [0x0a, role, a, b, c, d]
}

/// What the bridge does at a container's port. It learns nothing from containers, and sends each only what is
/// for it: `SlowPath::place` tells it who is where. Of the addresses that bridges keep for themselves it takes frames
/// in as any other's, which the guard then drops; otherwise they would get to the host past the guard
/// (net/bridge/br_input.c, `br_handle_frame`). Only MAC pause frames (x = 1) cannot be taken in: they are dropped.
pub(crate) const PORT: PortSettings = PortSettings {
    learning: false,
    unicast_flood: false,
    group_forward: 0xfffd,
};

/// What a container is connected to, and how.
#[derive(Clone, Copy, Debug)]
pub struct Uplink<'a> {
    /// The bridge that the host-side ends are ports of, by its name.
    pub bridge: &'a str,
    /// This host's subnet.
    pub subnet: Ipv4Net,
    /// The network of all containers.
    pub network: Ipv4Net,
    /// The containers' gateway.
    pub gateway: Ipv4Addr,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// What the pair is to be.
    pub kind: PairKind,
}

/// A container's host-side device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Its ifindex.
    pub index: u32,
    /// What its pair is, whatever a new one would be.
    pub kind: PairKind,
}

/// Makes the pair and connects it to the bridge, down. Returns the ifindex of the host-side end.
/// Nothing is left behind on failure.
///
/// # Errors
///
/// [`ContainerError`] naming container and step.
pub async fn connect(
    netlink: &Netlink,
    name: &str,
    container: &Container,
    uplink: Uplink<'_>,
) -> Result<u32, ContainerError> {
    let inside = namespace::open(&container.netns)?;
    let failed = |source| ContainerError::Netlink {
        name: name.to_owned(),
        source,
    };
    let here = PairEnd {
        name: &container.device,
        mac: port_mac(container.ip),
        mtu: uplink.mtu,
    };
    let there = PairEnd {
        name: &container.ifname,
        mac: container_mac(container.ip),
        mtu: uplink.mtu,
    };
    let alias = format!("{ALIAS}{name}");
    let kind = uplink.kind;
    let created = netlink.create_pair(kind, here, &alias, there, inside.as_fd());
    match created.await {
        Ok(()) => {}
        // The driver is not known (net/core/rtnetlink.c, `rtnl_newlink`).
        Err(error) if kind == PairKind::Netkit && error.errno() == Some(Errno::EOPNOTSUPP) => {
            return Err(ContainerError::NoNetkit(name.to_owned()));
        }
        // The kernel does not say at which end.
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            let here = netlink.link_by_name(&container.device).await;
            return Err(match here.map_err(failed)? {
                Some(link) => match container_of(&link) {
                    Some(holder) => ContainerError::SameDevice {
                        name: name.to_owned(),
                        device: container.device.clone(),
                        holder: holder.to_owned(),
                    },
                    None => ContainerError::HostDevice {
                        name: name.to_owned(),
                        device: container.device.clone(),
                    },
                },
                None => ContainerError::InnerDevice {
                    name: name.to_owned(),
                    device: container.ifname.clone(),
                    netns: container.netns.clone(),
                },
            });
        }
        Err(error) => return Err(failed(error)),
    }
    let bridged = async {
        let index = netlink.index_of(&container.device).await?;
        let bridge = netlink.index_of(uplink.bridge).await?;
        netlink.set_controller(index, Some(bridge)).await?;
        netlink.set_port(index, PORT).await?;
        netlink
            .fix_bridge_entry(index, container_mac(container.ip))
            .await?;
        Ok::<_, NetlinkError>(index)
    }
    .await;
    match bridged {
        Ok(index) => Ok(index),
        Err(error) => {
            // Why the removal fails would only hide the first reason.
            let _ = remove_device(netlink, &container.device).await;
            Err(failed(error))
        }
    }
}

/// Sets a connected pair up and configures its inner end: from here on packets flow.
///
/// The host-side end goes first: the other one would come up without carrier, and then wait for up
/// to a second for the kernel to notice that it has one (net/core/link_watch.c).
///
/// # Errors
///
/// [`ContainerError`] naming container and step; the pair stays.
pub async fn bring_up(
    netlink: &Netlink,
    name: &str,
    container: &Container,
    uplink: Uplink<'_>,
) -> Result<(), ContainerError> {
    let inside = namespace::open(&container.netns)?;
    let up = async {
        let index = netlink.index_of(&container.device).await?;
        netlink.set_up(index, true).await?;
        let inner = Netlink::in_namespace(inside.as_fd()).await?;
        configure_inside(&inner, container, uplink).await?;
        wait_until_forwarding(netlink, &container.device).await
    };
    up.await.map_err(|source| ContainerError::Netlink {
        name: name.to_owned(),
        source,
    })
}

/// Waits until the bridge has noticed that its port has a carrier (net/core/link_watch.c tells it, from
/// a work queue): until then it drops whatever comes. Not for long, and not at all costs.
async fn wait_until_forwarding(netlink: &Netlink, device: &str) -> Result<(), NetlinkError> {
    const STEP: Duration = Duration::from_millis(1);
    const STEPS: usize = 1000;
    for _ in 0..STEPS {
        if netlink
            .link_by_name(device)
            .await?
            .is_none_or(|link| link.forwarding)
        {
            return Ok(());
        }
        tokio::time::sleep(STEP).await;
    }
    warn!("{device}: the bridge does not forward yet; the container's first packets may be lost");
    Ok(())
}

async fn configure_inside(
    inner: &Netlink,
    container: &Container,
    uplink: Uplink<'_>,
) -> Result<(), NetlinkError> {
    let loopback = inner.index_of("lo").await?;
    inner.set_up(loopback, true).await?;
    let device = inner.index_of(&container.ifname).await?;
    // An address of elsewhere has nobody on its link but the gateway.
    let at_home = uplink.subnet.contains(&container.ip);
    let prefix = if at_home {
        uplink.subnet.prefix_len()
    } else {
        32
    };
    let address = Ipv4Net::new(container.ip, prefix).unwrap_or(Ipv4Net::from(container.ip));
    inner.add_address(device, address).await?;
    inner.set_up(device, true).await?;
    let Some(destination) = destination(container.route, uplink.network) else {
        return Ok(());
    };
    inner
        .add_route(&by_gateway(destination, device, !at_home, uplink.gateway))
        .await
}

/// What a container reaches by the gateway, if it has such a route.
#[must_use]
pub fn destination(route: InnerRoute, network: Ipv4Net) -> Option<Ipv4Net> {
    match route {
        InnerRoute::Default => Some(Ipv4Net::default()),
        InnerRoute::Overlay => Some(network.trunc()),
        InnerRoute::None => None,
    }
}

const fn by_gateway(destination: Ipv4Net, device: u32, onlink: bool, gateway: Ipv4Addr) -> Route {
    Route {
        destination,
        gateway: Some(gateway),
        device,
        onlink,
        source: None,
        reach: RouteReach::Universe,
        metric: 0,
        table: MAIN_TABLE,
        protocol: ROUTE_PROTOCOL,
    }
}

/// Gives a container that has a route to the overlay network one to another network instead.
///
/// # Errors
///
/// [`ContainerError`] naming container and step.
pub async fn change_network(
    name: &str,
    container: &Container,
    uplink: Uplink<'_>,
    former: Ipv4Net,
) -> Result<(), ContainerError> {
    let network = uplink.network.trunc();
    if container.route != InnerRoute::Overlay || former.trunc() == network {
        return Ok(());
    }
    let inside = namespace::open(&container.netns)?;
    let change = async {
        let inner = Netlink::in_namespace(inside.as_fd()).await?;
        let device = inner.index_of(&container.ifname).await?;
        let onlink = !uplink.subnet.contains(&container.ip);
        let route = |to| by_gateway(to, device, onlink, uplink.gateway);
        inner.replace_route(&route(network)).await?;
        match inner.delete_route(&route(former.trunc())).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    };
    change.await.map_err(|source| ContainerError::Netlink {
        name: name.to_owned(),
        source,
    })
}

/// Refuses a namespace that a container can't be connected to without harm to somebody: the host's
/// own, one that is a container's already, one that has the route that this one would get.
///
/// # Errors
///
/// [`ContainerError`] naming the namespace and who has it.
pub async fn check_namespace(
    name: &str,
    container: &Container,
    network: Ipv4Net,
    holder_of: impl Fn(Ipv4Addr) -> Option<String>,
) -> Result<(), ContainerError> {
    let (name, netns) = (name.to_owned(), container.netns.clone());
    let inside = namespace::open(&netns)?;
    if let Some(whose) = namespace::of_the_host(&inside) {
        return Err(ContainerError::HostNamespace { name, netns, whose });
    }
    let look = async {
        let inner = Netlink::in_namespace(inside.as_fd()).await?;
        let links = inner.links().await?;
        let routes = match destination(container.route, network) {
            None => Vec::new(),
            Some(to) => {
                let same = inner.route_holders(|it| it.destination == to && it.metric == 0);
                same.await?
            }
        };
        Ok((links, routes))
    };
    let (links, routes) = match look.await {
        Ok(found) => found,
        Err(source) => return Err(ContainerError::Netlink { name, source }),
    };
    // Whose device is inside, its link-layer address tells: it is made of the container's address, and
    // what sends from another one is refused.
    let holder = links.iter().filter(|link| PairKind::of(link).is_some());
    let holder = holder.filter_map(|link| {
        let mac = link.mac?;
        let [_, _, a, b, c, d] = mac;
        let address = Ipv4Addr::new(a, b, c, d);
        (mac == container_mac(address)).then(|| holder_of(address))?
    });
    if let Some(holder) = { holder }.next() {
        return Err(ContainerError::NamespaceTaken {
            name,
            netns,
            holder,
        });
    }
    match routes.into_iter().next() {
        None => Ok(()),
        Some(present) => Err(ContainerError::RouteTaken {
            name,
            netns,
            present: Box::new(present),
            remedy: match container.route {
                InnerRoute::Default => "--route overlay or --route none",
                _ => "--route none",
            },
        }),
    }
}

/// A container's host-side end as [`mend`] leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostEnd {
    /// The device.
    pub device: HostDevice,
    /// Both ends are up: what is sent into it arrives.
    pub carrier: bool,
    /// Something had to be put right.
    pub mended: bool,
}

/// The host-side end of a container among the host's devices, whatever somebody has called it: its
/// alias tells, or its name together with its link-layer address.
#[must_use]
pub fn find<'l>(links: &'l [Link], name: &str, container: &Container) -> Option<&'l Link> {
    let alias = format!("{ALIAS}{name}");
    let marked = |link: &&Link| link.alias.as_ref() == Some(&alias);
    let named =
        |link: &&Link| link.name == container.device && link.mac == Some(port_mac(container.ip));
    links
        .iter()
        .find(marked)
        .or_else(|| links.iter().find(named))
}

/// Puts the host-side end of a container right where somebody changed it: its name and alias, port of
/// the bridge, up, with the overlay's MTU. `links` are the host's devices. `None` where the device is
/// gone.
///
/// # Errors
///
/// [`ContainerError`].
pub async fn mend(
    netlink: &Netlink,
    links: &[Link],
    name: &str,
    container: &Container,
    uplink: Uplink<'_>,
) -> Result<Option<HostEnd>, ContainerError> {
    let Some(device) = find(links, name, container) else {
        return Ok(None);
    };
    let index = device.index;
    let failed = |source| ContainerError::Netlink {
        name: name.to_owned(),
        source,
    };
    let mut mended = false;
    if device.name != container.device {
        match rename(netlink, device, &container.device).await {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                return Err(ContainerError::NameTaken {
                    name: name.to_owned(),
                    device: container.device.clone(),
                    present: device.name.clone(),
                });
            }
            outcome => outcome.map_err(failed)?,
        }
        mended = true;
    }
    let alias = format!("{ALIAS}{name}");
    if device.alias.as_ref() != Some(&alias) {
        netlink.set_alias(index, &alias).await.map_err(failed)?;
        mended = true;
    }
    let bridge = links.iter().find(|link| link.name == uplink.bridge);
    let bridge = bridge.map(|link| link.index);
    let joined = device.controller == bridge;
    if !joined && bridge.is_some() {
        let set = netlink.set_controller(index, bridge).await;
        set.map_err(failed)?;
        mended = true;
    }
    // A new port has the kernel's settings.
    if bridge.is_some() && !(joined && device.port == Some(PORT)) {
        netlink.set_port(index, PORT).await.map_err(failed)?;
        mended = true;
    }
    if device.mtu != uplink.mtu {
        // What one end of a veth pair sends and the other does not take is lost without a word
        // (drivers/net/veth.c, `veth_forward_skb`): the sender is the smaller one at every moment.
        if uplink.mtu < device.mtu {
            set_mtu_inside(name, container, (device.mtu, uplink.mtu)).await?;
        }
        netlink.set_mtu(index, uplink.mtu).await.map_err(failed)?;
        if uplink.mtu > device.mtu {
            set_mtu_inside(name, container, (device.mtu, uplink.mtu)).await?;
        }
        mended = true;
    }
    if !device.up {
        netlink.set_up(index, true).await.map_err(failed)?;
        mended = true;
    }
    // A device that was just set up gets its carrier with that; the next look tells if it did not.
    let carrier = device.carrier || mended;
    Ok(Some(HostEnd {
        // Neither is no pair of our making; as with veth, programs can run on its host-side end.
        device: HostDevice {
            index,
            kind: PairKind::of(device).unwrap_or(PairKind::Veth),
        },
        carrier,
        mended,
    }))
}

async fn rename(netlink: &Netlink, device: &Link, name: &str) -> Result<(), NetlinkError> {
    match netlink.set_name(device.index, name).await {
        Err(error) if error.errno() == Some(Errno::EBUSY) => {
            netlink.set_up(device.index, false).await?;
            netlink.set_name(device.index, name).await?;
            netlink.set_up(device.index, true).await
        }
        outcome => outcome,
    }
}

/// Removes addresses from a container's neighbour table.
///
/// # Errors
///
/// [`ContainerError`] where the container can't be entered.
pub async fn forget_neighbours(
    name: &str,
    container: &Container,
    addresses: &[Ipv4Addr],
) -> Result<(), ContainerError> {
    let inside = namespace::open(&container.netns)?;
    let forget = async {
        let inner = Netlink::in_namespace(inside.as_fd()).await?;
        let device = inner.index_of(&container.ifname).await?;
        for address in addresses {
            match inner.delete_neighbour(device, *address).await {
                Err(error) if !error.is_absent() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    };
    forget.await.map_err(|source| ContainerError::Netlink {
        name: name.to_owned(),
        source,
    })
}

/// Gives the device inside a container another MTU (old, new), unless it has a smaller one that
/// somebody meant it to have.
async fn set_mtu_inside(
    name: &str,
    container: &Container,
    (old, new): (u32, u32),
) -> Result<(), ContainerError> {
    let inside = namespace::open(&container.netns)?;
    let set = async {
        let inner = Netlink::in_namespace(inside.as_fd()).await?;
        match inner.link_by_name(&container.ifname).await? {
            // A larger one than the host's end takes would lose packets at the crossing.
            Some(link) if link.mtu == old || link.mtu > new => inner.set_mtu(link.index, new).await,
            _ => Ok(()),
        }
    };
    set.await.map_err(|source| ContainerError::Netlink {
        name: name.to_owned(),
        source,
    })
}

/// Removes a container's device pair, whatever somebody has called its host-side end; no error where it
/// is gone.
///
/// # Errors
///
/// [`NetlinkError`].
pub async fn remove(
    netlink: &Netlink,
    name: &str,
    container: &Container,
) -> Result<(), NetlinkError> {
    let links = netlink.links().await?;
    let Some(device) = find(&links, name, container) else {
        return Ok(());
    };
    match netlink.delete_link(device.index).await {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

/// Removes a device pair by its host-side end; no error where it is gone, or where another
/// program's device has its name.
///
/// # Errors
///
/// [`NetlinkError`].
pub async fn remove_device(netlink: &Netlink, device: &str) -> Result<(), NetlinkError> {
    let found = netlink.link_by_name(device).await?;
    let Some(link) = found.filter(is_host_device) else {
        return Ok(());
    };
    match netlink.delete_link(link.index).await {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_show_in_the_device() {
        assert_eq!(host_device("web"), "onc-web");
        assert_eq!(host_device("a2345678901"), "onc-a2345678901");
    }

    #[test]
    fn addresses_are_local_unicast_and_tell_the_ends_apart() {
        let container = Ipv4Addr::new(10, 42, 1, 7);
        assert_eq!(container_mac(container), [0x0a, 0x63, 10, 42, 1, 7]);
        assert_eq!(port_mac(container), [0x0a, 0x70, 10, 42, 1, 7]);
    }

    #[test]
    fn other_names_are_hashed_and_fit() {
        for name in ["a23456789012", "with.dot", &"x".repeat(63)] {
            let device = host_device(name);
            assert_eq!(device.len(), NAME_LENGTH, "{device}");
            assert!(device.starts_with(HASHED), "{device}");
        }
        assert_ne!(host_device("with.dot"), host_device("with.dof"));
    }
}
