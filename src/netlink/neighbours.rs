//! IPv4 neighbours, and the forwarding entries (FDB) of bridge-like devices.
//!
//! The kernel keeps them in different tables behind the same messages: the family tells which
//! (net/core/neighbour.c, `neigh_add`; net/core/rtnetlink.c, `rtnl_fdb_add`).

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::RouteType,
};

use super::{Mac, Netlink, NetlinkError, format_mac};

/// An IPv4 neighbour: which link-layer address a next hop has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// The device's interface index.
    pub device: u32,
    /// The neighbour's address.
    pub address: Ipv4Addr,
    /// Its link-layer address; none while it is not resolved.
    pub mac: Option<Mac>,
    /// Set by somebody and never aged (`NUD_PERMANENT`), rather than learned.
    pub permanent: bool,
}

/// An entry of a VXLAN device's own forwarding table: behind which host a link-layer address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FdbEntry {
    /// The VXLAN device's interface index.
    pub device: u32,
    /// The inner destination.
    pub mac: Mac,
    /// The host's underlay address.
    pub host: Option<Ipv4Addr>,
    /// Set by somebody and never aged, rather than learned.
    pub permanent: bool,
}

impl Netlink {
    /// All IPv4 neighbours of the namespace, without the kernel's own entries for broadcast and
    /// multicast (`NUD_NOARP`).
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        let request = RouteNetlinkMessage::GetNeighbour(request);
        self.dump("list neighbours", request, parse_neighbour).await
    }

    /// As [`Netlink::neighbours`], of one device.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn neighbours_of(&self, device: u32) -> Result<Vec<Neighbour>, NetlinkError> {
        let request = RouteNetlinkMessage::GetNeighbour(filter(AddressFamily::Inet, device));
        let ours = |entry| parse_neighbour(entry).filter(|entry| entry.device == device);
        let listed = self.dump("list neighbours", request, ours).await;
        none_where_absent(listed)
    }

    /// Makes a neighbour permanent with the given link-layer address, whatever it was before.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the neighbour and its device.
    pub async fn replace_neighbour(
        &self,
        device: u32,
        address: Ipv4Addr,
        mac: Mac,
    ) -> Result<(), NetlinkError> {
        let operation = format!("replace neighbour {address} lladdr {}", format_mac(mac));
        self.change_on(
            device,
            operation,
            RouteNetlinkMessage::NewNeighbour(neighbour(device, address, Some(mac))),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Removes a neighbour.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the neighbour and its device; [`NetlinkError::is_absent`] if it was
    /// not there.
    pub async fn delete_neighbour(
        &self,
        device: u32,
        address: Ipv4Addr,
    ) -> Result<(), NetlinkError> {
        let operation = format!("delete neighbour {address}");
        self.change_on(
            device,
            operation,
            RouteNetlinkMessage::DelNeighbour(neighbour(device, address, None)),
            0,
        )
        .await
    }

    /// The addresses that a device answers ARP requests for though they are elsewhere.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn proxy_neighbours(&self, device: u32) -> Result<Vec<Ipv4Addr>, NetlinkError> {
        let mut request = filter(AddressFamily::Inet, device);
        // The proxies are another table behind the same request (net/core/neighbour.c,
        // `neigh_dump_info`).
        request.header.flags = NeighbourFlags::Proxy;
        let ours = |entry| match entry {
            RouteNetlinkMessage::NewNeighbour(message)
                if message.header.ifindex == device
                    && message.header.flags.contains(NeighbourFlags::Proxy) =>
            {
                message.attributes.iter().find_map(destination)
            }
            _ => None,
        };
        let request = RouteNetlinkMessage::GetNeighbour(request);
        none_where_absent(self.dump("list proxy neighbours", request, ours).await)
    }

    /// Makes a device answer ARP requests for an address that is elsewhere.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the neighbour and its device.
    pub async fn add_proxy_neighbour(
        &self,
        device: u32,
        address: Ipv4Addr,
    ) -> Result<(), NetlinkError> {
        self.change_on(
            device,
            format!("add proxy neighbour {address}"),
            RouteNetlinkMessage::NewNeighbour(proxy(device, address)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Undoes [`Netlink::add_proxy_neighbour`].
    ///
    /// # Errors
    /// [`NetlinkError`] naming the neighbour and its device; [`NetlinkError::is_absent`] if it was
    /// not there.
    pub async fn delete_proxy_neighbour(
        &self,
        device: u32,
        address: Ipv4Addr,
    ) -> Result<(), NetlinkError> {
        self.change_on(
            device,
            format!("delete proxy neighbour {address}"),
            RouteNetlinkMessage::DelNeighbour(proxy(device, address)),
            0,
        )
        .await
    }

    /// The entries of a device's own forwarding table (`bridge fdb show dev DEVICE self`).
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn fdb(&self, device: u32) -> Result<Vec<FdbEntry>, NetlinkError> {
        let request = RouteNetlinkMessage::GetNeighbour(filter(AddressFamily::Bridge, device));
        let ours = |entry| parse_fdb(entry).filter(|entry| entry.device == device);
        none_where_absent(self.dump("list forwarding entries", request, ours).await)
    }

    /// Makes a VXLAN device send what is for `mac` to `host`, whatever it did before.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the entry and its device.
    pub async fn replace_fdb(
        &self,
        device: u32,
        mac: Mac,
        host: Ipv4Addr,
    ) -> Result<(), NetlinkError> {
        let operation = format!("replace forwarding entry {} dst {host}", format_mac(mac));
        self.change_on(
            device,
            operation,
            RouteNetlinkMessage::NewNeighbour(fdb(device, mac, Some(host))),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Removes one destination of a link-layer address from a VXLAN device's forwarding table; all
    /// of them if `host` is none.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the entry and its device; [`NetlinkError::is_absent`] if it was not
    /// there.
    pub async fn delete_fdb(
        &self,
        device: u32,
        mac: Mac,
        host: Option<Ipv4Addr>,
    ) -> Result<(), NetlinkError> {
        let operation = format!("delete forwarding entry {}", format_mac(mac));
        self.change_on(
            device,
            operation,
            RouteNetlinkMessage::DelNeighbour(fdb(device, mac, host)),
            0,
        )
        .await
    }
}

/// Asks for the entries of one device: by an attribute, since the header's own field is refused
/// (net/core/neighbour.c, `neigh_valid_dump_req`; net/core/rtnetlink.c, `valid_fdb_dump_strict`).
fn filter(family: AddressFamily, device: u32) -> NeighbourMessage {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    request.attributes = vec![NeighbourAttribute::IfIndex(device)];
    request
}

/// A device that has gone has no entries.
fn none_where_absent<T>(listed: Result<Vec<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    match listed {
        Err(error) if error.is_absent() => Ok(Vec::new()),
        listed => listed,
    }
}

fn neighbour(device: u32, address: Ipv4Addr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    if let Some(mac) = mac {
        let attribute = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
        message.attributes.push(attribute);
    }
    message
}

fn proxy(device: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = neighbour(device, address, None);
    message.header.flags = NeighbourFlags::Proxy;
    message
}

fn fdb(device: u32, mac: Mac, host: Option<Ipv4Addr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    // The device's own table, not that of a bridge that it may be a port of.
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    if let Some(host) = host {
        let attribute = NeighbourAttribute::Destination(host.into());
        message.attributes.push(attribute);
    }
    message
}

fn parse_neighbour(entry: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = entry else {
        return None;
    };
    let header = &message.header;
    if header.family != AddressFamily::Inet || header.state == NeighbourState::Noarp {
        return None;
    }
    let address = message.attributes.iter().find_map(destination)?;
    Some(Neighbour {
        device: header.ifindex,
        address,
        mac: message.attributes.iter().find_map(link_layer),
        permanent: is_permanent(header.state),
    })
}

fn parse_fdb(entry: RouteNetlinkMessage) -> Option<FdbEntry> {
    let RouteNetlinkMessage::NewNeighbour(message) = entry else {
        return None;
    };
    let header = &message.header;
    if header.family != AddressFamily::Bridge || !header.flags.contains(NeighbourFlags::Own) {
        return None;
    }
    Some(FdbEntry {
        device: header.ifindex,
        mac: message.attributes.iter().find_map(link_layer)?,
        host: message.attributes.iter().find_map(destination),
        permanent: is_permanent(header.state),
    })
}

/// The state is a set of bits: iproute2 gives forwarding entries `NUD_PERMANENT | NUD_NOARP`.
fn is_permanent(state: NeighbourState) -> bool {
    u16::from(state) & u16::from(NeighbourState::Permanent) != 0
}

fn destination(attribute: &NeighbourAttribute) -> Option<Ipv4Addr> {
    let NeighbourAttribute::Destination(address) = attribute else {
        return None;
    };
    match address {
        NeighbourAddress::Inet(address) => Some(*address),
        // Behind AF_BRIDGE the address has no family of its own; four bytes are IPv4.
        NeighbourAddress::Other(bytes) => {
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.as_slice()).ok()?))
        }
        _ => None,
    }
}

fn link_layer(attribute: &NeighbourAttribute) -> Option<Mac> {
    match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    }
}
