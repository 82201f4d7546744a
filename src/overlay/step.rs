//! One change to the host.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{
    names::{Device, GROUP},
    sysctl::{self, Setting},
    wanted::{OverlayFdb, OverlayNeighbour, OverlayRoute, WantedVxlan},
};
use crate::netlink::{Mac, format_mac};

/// One change that brings the host nearer to the wanted overlay. Displays as one line.
///
/// Devices are named, not numbered: a step may come after the one that creates its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Delete a device that carries our name but cannot become what is wanted.
    DeleteDevice(Device),
    /// Create the bridge with this link-layer address.
    CreateBridge(Mac),
    /// Create the VXLAN device.
    CreateVxlan(WantedVxlan),
    /// Create the device that carries nothing.
    CreateRoom(WantedVxlan),
    /// Make a device a port of the bridge.
    JoinBridge(Device),
    /// Take a device out of the bridge or bond that somebody made it a port of.
    Release(Device),
    /// Set a device's link-layer address.
    SetMac(Device, Mac),
    /// Set a device's MTU in bytes.
    SetMtu(Device, u32),
    /// Put a device into the group that rules know it by.
    SetGroup(Device),
    /// Set a device up.
    SetUp(Device),
    /// Make a kernel setting.
    Set {
        /// The setting.
        setting: Setting,
        /// Its value before, read right before it was changed; none while the step is only planned,
        /// or if the setting came into being after it.
        before: Option<String>,
    },
    /// Remove an address from the bridge.
    DeleteAddress(Ipv4Net),
    /// Add an address to the bridge.
    AddAddress(Ipv4Net),
    /// Remove a route.
    DeleteRoute(OverlayRoute),
    /// Add a route where there is none.
    AddRoute(OverlayRoute),
    /// Put a route in the place of our own to the same destination.
    ReplaceRoute(OverlayRoute),
    /// Remove a neighbour of the VXLAN device.
    DeleteNeighbour(Ipv4Addr),
    /// Add or change a neighbour of the VXLAN device.
    ReplaceNeighbour(OverlayNeighbour),
    /// Remove a forwarding entry of the VXLAN device.
    DeleteFdb(Mac, Option<Ipv4Addr>),
    /// Add or change a forwarding entry of the VXLAN device.
    ReplaceFdb(OverlayFdb),
    /// Answer no longer for an address on the bridge.
    DeleteProxy(Ipv4Addr),
    /// Answer for an address on the bridge.
    AddProxy(Ipv4Addr),
    /// Replace the nftables table.
    ReplaceTable,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteDevice(device) => write!(f, "delete device {device}"),
            Self::CreateBridge(mac) => {
                write!(
                    f,
                    "create bridge {} address {}",
                    Device::Bridge,
                    format_mac(*mac)
                )
            }
            Self::CreateVxlan(vxlan) => {
                write!(
                    f,
                    "create VXLAN device {} vni {}",
                    Device::Vxlan,
                    vxlan.parameters.vni
                )
            }
            Self::CreateRoom(_) => {
                write!(f, "create VXLAN device {}, to stay down", Device::Room)
            }
            Self::JoinBridge(device) => {
                write!(f, "make {device} a port of {}", Device::Bridge)
            }
            Self::Release(device) => write!(f, "release {device} from its controller"),
            Self::SetMac(device, mac) => write!(f, "set {device} address {}", format_mac(*mac)),
            Self::SetMtu(device, mtu) => write!(f, "set {device} mtu {mtu}"),
            Self::SetGroup(device) => write!(f, "set {device} group {GROUP}"),
            Self::SetUp(device) => write!(f, "set {device} up"),
            Self::Set { setting, before } => {
                write!(f, "set {setting}")?;
                match before {
                    Some(before) => write!(f, " (was {before})"),
                    None => Ok(()),
                }
            }
            Self::DeleteAddress(address) => {
                write!(f, "delete address {address} dev {}", Device::Bridge)
            }
            Self::AddAddress(address) => write!(f, "add address {address} dev {}", Device::Bridge),
            Self::DeleteRoute(route) => {
                write!(f, "delete route {} dev {}", route.destination, route.device)
            }
            Self::AddRoute(route) | Self::ReplaceRoute(route) => {
                let verb = if matches!(self, Self::AddRoute(_)) {
                    "add"
                } else {
                    "replace"
                };
                write!(f, "{verb} route {}", route.destination)?;
                if let Some(gateway) = route.gateway {
                    write!(f, " via {gateway}")?;
                }
                write!(f, " dev {}", route.device)
            }
            Self::DeleteNeighbour(address) => {
                write!(f, "delete neighbour {address} dev {}", Device::Vxlan)
            }
            Self::ReplaceNeighbour(OverlayNeighbour { address, mac }) => write!(
                f,
                "replace neighbour {address} lladdr {} dev {}",
                format_mac(*mac),
                Device::Vxlan
            ),
            Self::DeleteFdb(mac, host) => {
                write!(f, "delete forwarding entry {}", format_mac(*mac))?;
                if let Some(host) = host {
                    write!(f, " dst {host}")?;
                }
                write!(f, " dev {}", Device::Vxlan)
            }
            Self::ReplaceFdb(OverlayFdb { mac, host }) => write!(
                f,
                "replace forwarding entry {} dst {host} dev {}",
                format_mac(*mac),
                Device::Vxlan
            ),
            Self::DeleteProxy(address) => {
                write!(f, "delete proxy neighbour {address} dev {}", Device::Bridge)
            }
            Self::AddProxy(address) => {
                write!(f, "add proxy neighbour {address} dev {}", Device::Bridge)
            }
            Self::ReplaceTable => f.write_str("replace table inet oncache"),
        }
    }
}

impl Step {
    /// The value that the namespace-wide conntrack setting had before this applied step changed it:
    /// what `oncache down` is to restore, unless an earlier value is kept already.
    #[must_use]
    pub fn previous_tcp_be_liberal(&self) -> Option<u8> {
        match self {
            Self::Set { setting, before } if setting.key == sysctl::TCP_BE_LIBERAL => {
                before.as_deref()?.parse().ok()
            }
            _ => None,
        }
    }
}
