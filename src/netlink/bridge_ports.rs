//! Ports of a bridge: what it may learn and send there, and its forwarding entries.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::{Mac, Netlink, NetlinkError, format_mac};

/// What a bridge does at one of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSettings {
    /// Whether frames that come in teach the forwarding table.
    pub learning: bool,
    /// Whether frames for unknown receivers are sent out here.
    pub unicast_flood: bool,
    /// Which of the sixteen addresses that bridges keep for themselves (01:80:c2:00:00:0x) are taken in as
    /// any other; bit x for the address that ends in x.
    pub group_forward: u16,
}

/// An entry of a bridge's forwarding table: behind which port a link-layer address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeEntry {
    /// The port's interface index.
    pub port: u32,
    /// The address.
    pub mac: Mac,
    /// An address of the bridge's own.
    pub local: bool,
    /// Neither ages nor follows its address to another port.
    pub fixed: bool,
}

impl PortSettings {
    pub(super) fn parse(data: &[InfoBridgePort]) -> Self {
        let mut settings = Self {
            learning: true,
            unicast_flood: true,
            group_forward: 0,
        };
        for attribute in data {
            match attribute {
                InfoBridgePort::Learning(on) => settings.learning = *on,
                InfoBridgePort::UnicastFlood(on) => settings.unicast_flood = *on,
                InfoBridgePort::GroupFwdMask(mask) => settings.group_forward = *mask,
                _ => {}
            }
        }
        settings
    }
}

impl Netlink {
    /// Sets what the bridge does at a port.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device, also where it is no port.
    pub async fn set_port(&self, port: u32, settings: PortSettings) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = port;
        let data = vec![
            InfoBridgePort::Learning(settings.learning),
            InfoBridgePort::UnicastFlood(settings.unicast_flood),
            InfoBridgePort::GroupFwdMask(settings.group_forward),
        ];
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(data)),
        ])];
        let on = |on| if on { "on" } else { "off" };
        let operation = format!(
            "set learning {} flood {} group_fwd_mask {:#06x}",
            on(settings.learning),
            on(settings.unicast_flood),
            settings.group_forward
        );
        // Not RTM_SETLINK: it does not look at what is the bridge's (net/core/rtnetlink.c, `rtnl_changelink`).
        self.change_on(port, operation, RouteNetlinkMessage::NewLink(message), 0)
            .await
    }

    /// The forwarding table of a bridge, without what it keeps for single VLANs.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn bridge_entries(&self, bridge: u32) -> Result<Vec<BridgeEntry>, NetlinkError> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        // The kernel filters by it (net/core/rtnetlink.c, `valid_fdb_dump_strict`): a VXLAN device may
        // have thousands of its own.
        request.attributes = vec![NeighbourAttribute::Controller(bridge)];
        let request = RouteNetlinkMessage::GetNeighbour(request);
        self.dump("list the bridge's forwarding entries", request, parse)
            .await
    }

    /// Makes what is for `mac` leave by `port`, whoever else claims to have the address.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the entry and the port.
    pub async fn fix_bridge_entry(&self, port: u32, mac: Mac) -> Result<(), NetlinkError> {
        let operation = format!("replace forwarding entry {} master static", format_mac(mac));
        self.change_on(
            port,
            operation,
            RouteNetlinkMessage::NewNeighbour(entry(port, mac)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Removes an entry from the table of the bridge that `port` is of.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the entry and the port; [`NetlinkError::is_absent`] if it was not there.
    pub async fn delete_bridge_entry(&self, port: u32, mac: Mac) -> Result<(), NetlinkError> {
        let operation = format!("delete forwarding entry {} master", format_mac(mac));
        self.change_on(
            port,
            operation,
            RouteNetlinkMessage::DelNeighbour(entry(port, mac)),
            0,
        )
        .await
    }
}

fn entry(port: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    // Static; permanent would be the bridge's own (net/bridge/br_fdb.c, `fdb_add_entry`).
    message.header.state = NeighbourState::Noarp;
    // The bridge's table, not the device's own; and even a static entry follows its address to another
    // port that learns, unless it is sticky (net/bridge/br_fdb.c, `br_fdb_update`).
    message.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}

fn parse(entry: RouteNetlinkMessage) -> Option<BridgeEntry> {
    let RouteNetlinkMessage::NewNeighbour(message) = entry else {
        return None;
    };
    let header = &message.header;
    if header.family != AddressFamily::Bridge || header.flags.contains(NeighbourFlags::Own) {
        return None;
    }
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Vlan(_) => return None,
            _ => {}
        }
    }
    Some(BridgeEntry {
        port: header.ifindex,
        mac: mac?,
        local: header.state == NeighbourState::Permanent,
        fixed: header.state == NeighbourState::Noarp
            && header.flags.contains(NeighbourFlags::Sticky),
    })
}
