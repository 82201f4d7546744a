//! IPv4 routes.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteScope, RouteType,
    },
};

use super::{Netlink, NetlinkError};

/// The routing protocol number of oncache's routes: `ip route show proto 79` lists them and nothing
/// else. Numbers from 5 on are free for programs to choose (include/uapi/linux/rtnetlink.h,
/// `RTPROT_STATIC`); this one is not in iproute2's table of names.
pub const ROUTE_PROTOCOL: u8 = 79;

/// The number of the main routing table.
pub const MAIN_TABLE: u32 = 254;

/// How far the destination of a route is (rtnetlink's scope).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RouteReach {
    /// Anywhere, by way of a gateway.
    #[default]
    Universe,
    /// On the device's own link.
    Link,
    /// Another scope, by its number.
    Other(u8),
}

/// An IPv4 unicast route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// The destinations; 0.0.0.0/0 is the default route.
    pub destination: Ipv4Net,
    /// The next hop, if the destinations are not on the link itself.
    pub gateway: Option<Ipv4Addr>,
    /// The outgoing device's interface index.
    pub device: u32,
    /// The gateway is reachable by the device though no address says so.
    pub onlink: bool,
    /// The source address of the host's own packets.
    pub source: Option<Ipv4Addr>,
    /// The scope.
    pub reach: RouteReach,
    /// The metric; the lowest wins.
    pub metric: u32,
    /// The routing table's number; 254 is the main table.
    pub table: u32,
    /// Who made the route, see [`ROUTE_PROTOCOL`].
    pub protocol: u8,
}

impl fmt::Display for Route {
    /// As `ip route` writes it, without the device, which only a namespace can name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        Ok(())
    }
}

/// Which routes a dump returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteFilter {
    /// Those of one routing protocol, in any table.
    Protocol(u8),
    /// Those of the main table.
    MainTable,
}

impl Netlink {
    /// The IPv4 unicast routes that pass the filter. Routes with several next hops are left out:
    /// they have no one device.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn routes(&self, filter: RouteFilter) -> Result<Vec<Route>, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        match filter {
            RouteFilter::Protocol(number) => request.header.protocol = number.into(),
            RouteFilter::MainTable => request.header.table = RouteHeader::RT_TABLE_MAIN,
        }
        // A kernel that does not filter returns all.
        let passes = |route: &Route| match filter {
            RouteFilter::Protocol(number) => route.protocol == number,
            RouteFilter::MainTable => route.table == MAIN_TABLE,
        };
        let request = RouteNetlinkMessage::GetRoute(request);
        self.dump("list routes", request, |entry| parse(entry).filter(passes))
            .await
    }

    /// The destinations of `protocol`'s unreachable routes in the main table, without a metric.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn unreachable_routes(&self, protocol: u8) -> Result<Vec<Ipv4Net>, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        request.header.protocol = protocol.into();
        request.header.kind = RouteType::Unreachable;
        let request = RouteNetlinkMessage::GetRoute(request);
        self.dump("list unreachable routes", request, |entry| {
            parse_unreachable(entry, protocol)
        })
        .await
    }

    /// Has the main table refuse packets for `destination` with ICMP's "host unreachable" where no more
    /// specific route takes them; refused with `EEXIST` if it has a route for it without a metric.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the route.
    pub async fn add_unreachable(
        &self,
        destination: Ipv4Net,
        protocol: u8,
    ) -> Result<(), NetlinkError> {
        self.change(
            format_args!("add route unreachable {destination}"),
            RouteNetlinkMessage::NewRoute(unreachable(destination, protocol)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Undoes [`Netlink::add_unreachable`].
    ///
    /// # Errors
    /// [`NetlinkError`] naming the route; [`NetlinkError::is_absent`] if it was not there.
    pub async fn delete_unreachable(
        &self,
        destination: Ipv4Net,
        protocol: u8,
    ) -> Result<(), NetlinkError> {
        self.change(
            format_args!("delete route unreachable {destination}"),
            RouteNetlinkMessage::DelRoute(unreachable(destination, protocol)),
            0,
        )
        .await
    }

    /// Adds a route; refused with `EEXIST` if there is one to the same destination with the same
    /// metric.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the route and its device.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let operation = format!("add route {route}");
        self.change_on(
            route.device,
            operation,
            RouteNetlinkMessage::NewRoute(message(route)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Adds a route in the place of the one to the same destination with the same metric, if there
    /// is one, without a moment in which there is none.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the route and its device.
    pub async fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let operation = format!("replace route {route}");
        self.change_on(
            route.device,
            operation,
            RouteNetlinkMessage::NewRoute(message(route)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Removes a route of any scope; one that differs in gateway, device, source, metric, table or
    /// protocol stays.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the route and its device; [`NetlinkError::is_absent`] if it was not
    /// there.
    pub async fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let operation = format!("delete route {route}");
        let mut pattern = message(route);
        // Any scope (net/ipv4/fib_trie.c, fib_table_delete).
        pattern.header.scope = RouteScope::NoWhere;
        self.change_on(
            route.device,
            operation,
            RouteNetlinkMessage::DelRoute(pattern),
            0,
        )
        .await
    }
}

fn unreachable(destination: Ipv4Net, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.protocol = protocol.into();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unreachable;
    let network = RouteAddress::Inet(destination.network());
    message.attributes = vec![RouteAttribute::Destination(network)];
    message
}

fn parse_unreachable(entry: RouteNetlinkMessage, protocol: u8) -> Option<Ipv4Net> {
    let RouteNetlinkMessage::NewRoute(message) = entry else {
        return None;
    };
    let header = &message.header;
    let ours = header.kind == RouteType::Unreachable
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.protocol == protocol.into();
    let attributes = &message.attributes;
    let has_metric = |it: &RouteAttribute| matches!(it, RouteAttribute::Priority(1..));
    if !ours || attributes.iter().any(has_metric) {
        return None;
    }
    attributes.iter().find_map(|it| match it {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            Ipv4Net::new(*address, header.destination_prefix_length).ok()
        }
        _ => None,
    })
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.protocol = route.protocol.into();
    message.header.scope = match route.reach {
        RouteReach::Universe => RouteScope::Universe,
        RouteReach::Link => RouteScope::Link,
        RouteReach::Other(scope) => scope.into(),
    };
    message.header.kind = RouteType::Unicast;
    if route.onlink {
        message.header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Destination(RouteAddress::Inet(
        route.destination.network(),
    )));
    attributes.push(RouteAttribute::Oif(route.device));
    if let Some(gateway) = route.gateway {
        attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

fn parse(entry: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = entry else {
        return None;
    };
    let header = message.header;
    if header.address_family != AddressFamily::Inet || header.kind != RouteType::Unicast {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let (mut gateway, mut source, mut device) = (None, None, None);
    let mut metric = 0;
    let mut table = u32::from(header.table);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(address),
            RouteAttribute::Oif(index) => device = Some(index),
            RouteAttribute::Priority(value) => metric = value,
            RouteAttribute::Table(number) => table = number,
            _ => {}
        }
    }
    Some(Route {
        destination: Ipv4Net::new(destination, header.destination_prefix_length).ok()?,
        gateway,
        device: device?,
        onlink: header.flags.contains(RouteFlags::Onlink),
        source,
        reach: match header.scope {
            RouteScope::Universe => RouteReach::Universe,
            RouteScope::Link => RouteReach::Link,
            other => RouteReach::Other(other.into()),
        },
        metric,
        table,
        protocol: RouteProtocol::into(header.protocol),
    })
}
