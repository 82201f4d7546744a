//! Who has what somebody else wants: VXLAN devices by VNI and port, routes by their destination.
//!
//! Other operations read what is oncache's. These read all there is, and are for a start, a check and
//! a refusal to be explained.

use std::fmt;

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};

use super::{MAIN_TABLE, Netlink, NetlinkError};

/// A VXLAN device, as far as it can be in another one's way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VxlanHolder {
    /// The device's name.
    pub name: String,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The UDP port at which it hears, host byte order.
    pub port: u16,
    /// It is up, and so holds a socket.
    pub up: bool,
    /// Its outer packets are of IPv6.
    pub ipv6: bool,
    /// What keeps it from sharing the socket of a plain device (include/net/vxlan.h,
    /// `VXLAN_F_RCV_FLAGS`), as `ip link` calls it.
    pub flags: Vec<&'static str>,
}

/// A route of whatever kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteHolder {
    /// The destinations.
    pub destination: Ipv4Net,
    /// The metric.
    pub metric: u32,
    /// The outgoing device's interface index, if it has one such.
    pub device: Option<u32>,
    /// Who made the route.
    pub protocol: u8,
    /// As `ip route` writes it, but for the device: `unreachable`, `via ADDRESS`.
    how: String,
    /// The device's name.
    device_name: Option<String>,
}

impl fmt::Display for RouteHolder {
    /// As `ip route show` writes it, and `ip route del` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.how.as_str();
        let (before, after) = if kind.starts_with("via ") || kind.is_empty() {
            ("", kind)
        } else {
            (kind, "")
        };
        if !before.is_empty() {
            write!(f, "{before} ")?;
        }
        if self.destination.prefix_len() == 0 {
            f.write_str("default")?;
        } else {
            write!(f, "{}", self.destination)?;
        }
        if !after.is_empty() {
            write!(f, " {after}")?;
        }
        if let Some(device) = &self.device_name {
            write!(f, " dev {device}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

impl Netlink {
    /// All VXLAN devices of the namespace.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn vxlan_holders(&self) -> Result<Vec<VxlanHolder>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump("list VXLAN devices", request, vxlan).await
    }

    /// The routes of the main table, of whatever kind, that `wanted` asks for.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn route_holders(
        &self,
        wanted: impl Fn(&RouteHolder) -> bool,
    ) -> Result<Vec<RouteHolder>, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        let request = RouteNetlinkMessage::GetRoute(request);
        let parse = |entry| route(entry).filter(&wanted);
        // A namespace that has never had a route has no table (net/ipv4/fib_frontend.c,
        // `inet_dump_fib`).
        let mut found = match self.dump("list routes", request, parse).await {
            Err(error) if error.is_absent() => Vec::new(),
            outcome => outcome?,
        };
        for route in &mut found {
            if let Some(device) = route.device {
                route.device_name = Some(self.label(device).await);
            }
        }
        Ok(found)
    }
}

fn vxlan(entry: RouteNetlinkMessage) -> Option<VxlanHolder> {
    let RouteNetlinkMessage::NewLink(message) = entry else {
        return None;
    };
    let mut holder = VxlanHolder {
        up: message.header.flags.contains(LinkFlags::Up),
        ..VxlanHolder::default()
    };
    let mut is_vxlan = false;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => holder.name = name,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Data(InfoData::Vxlan(data)) = info {
                        is_vxlan = true;
                        data.iter().for_each(|it| parameter(&mut holder, it));
                    }
                }
            }
            _ => {}
        }
    }
    is_vxlan.then_some(holder)
}

fn parameter(holder: &mut VxlanHolder, attribute: &InfoVxlan) {
    let mut flag = |set: bool, name| {
        if set {
            holder.flags.push(name);
        }
    };
    match attribute {
        InfoVxlan::Id(vni) => holder.vni = *vni,
        InfoVxlan::Port(port) => holder.port = *port,
        InfoVxlan::Group6(_) | InfoVxlan::Local6(_) => holder.ipv6 = true,
        InfoVxlan::CollectMetadata(set) => flag(*set, "external"),
        InfoVxlan::Gbp => flag(true, "gbp"),
        InfoVxlan::Gpe => flag(true, "gpe"),
        InfoVxlan::UDPZeroCsumRX(set) => flag(*set, "udp6zerocsumrx"),
        InfoVxlan::RemCsumRX(set) => flag(*set, "remcsumrx"),
        InfoVxlan::RemCsumNoPartial => flag(true, "remcsum-nopartial"),
        InfoVxlan::Vnifilter(set) => flag(*set, "vnifilter"),
        _ => {}
    }
}

fn route(entry: RouteNetlinkMessage) -> Option<RouteHolder> {
    let RouteNetlinkMessage::NewRoute(message) = entry else {
        return None;
    };
    let header = message.header;
    // Routes of another type of service are others to the kernel (net/ipv4/fib_trie.c,
    // `fib_table_insert`).
    if header.address_family != AddressFamily::Inet || header.tos != 0 {
        return None;
    }
    let mut how = match header.kind {
        RouteType::Unicast => "",
        RouteType::BlackHole => "blackhole",
        RouteType::Unreachable => "unreachable",
        RouteType::Prohibit => "prohibit",
        RouteType::Throw => "throw",
        _ => return None,
    }
    .to_owned();
    let mut destination = std::net::Ipv4Addr::UNSPECIFIED;
    let (mut metric, mut device, mut table) = (0, None, u32::from(header.table));
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = address,
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => how = format!("via {gateway}"),
            RouteAttribute::Oif(index) => device = Some(index),
            RouteAttribute::Priority(value) => metric = value,
            RouteAttribute::Table(number) => table = number,
            _ => {}
        }
    }
    if table != MAIN_TABLE {
        return None;
    }
    Some(RouteHolder {
        destination: Ipv4Net::new(destination, header.destination_prefix_length).ok()?,
        metric,
        device,
        protocol: RouteProtocol::into(header.protocol),
        how,
        device_name: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_written_as_ip_takes_it() {
        let holder = |how: &str, destination: &str, device: Option<&str>, metric| RouteHolder {
            destination: destination.parse().expect("a network"),
            metric,
            device: device.map(|_| 3),
            protocol: 4,
            how: how.into(),
            device_name: device.map(Into::into),
        };
        for (route, text) in [
            (
                holder("via 192.0.2.1", "0.0.0.0/0", Some("eth0"), 0),
                "default via 192.0.2.1 dev eth0",
            ),
            (
                holder("", "10.42.2.0/24", Some("eth1"), 100),
                "10.42.2.0/24 dev eth1 metric 100",
            ),
            (
                holder("unreachable", "10.42.2.0/24", None, 0),
                "unreachable 10.42.2.0/24",
            ),
        ] {
            assert_eq!(route.to_string(), text);
        }
    }
}
