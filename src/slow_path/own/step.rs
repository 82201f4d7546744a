//! One change to the host.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{
    names::{DeviceNames, GROUP, OwnDevice, TABLE},
    sysctl::{self, Setting},
    wanted::{OverlayFdb, OverlayNeighbour, OverlayRoute, WantedVxlan},
};
use crate::{
    netlink::{Mac, format_mac},
    nft::Transaction,
};

/// One change that brings the host nearer to the wanted overlay. [`Step::named`] displays it.
///
/// Devices are named, not numbered: a step may come after the one that creates its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Delete a device that carries our name but cannot become what is wanted.
    DeleteDevice(OwnDevice),
    /// Create the bridge with this link-layer address.
    CreateBridge(Mac),
    /// Create the VXLAN device.
    CreateVxlan(WantedVxlan),
    /// Create the device that carries nothing.
    CreateHeadroom(WantedVxlan),
    /// Make a device a port of the bridge.
    JoinBridge(OwnDevice),
    /// Take a device out of the bridge or bond that somebody made it a port of.
    Release(OwnDevice),
    /// Set a device's link-layer address.
    SetMac(OwnDevice, Mac),
    /// Set a device's MTU in bytes.
    SetMtu(OwnDevice, u32),
    /// Put a device into the group that rules know it by.
    SetGroup(OwnDevice),
    /// Set a device up.
    SetUp(OwnDevice),
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
    /// Make the nftables table the wanted one.
    ReplaceTable(Transaction),
}

impl Step {
    /// This step, of devices that are called so.
    #[must_use]
    pub const fn named<'a>(&'a self, names: &'a DeviceNames) -> NamedStep<'a> {
        NamedStep { step: self, names }
    }

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

/// A step and what the devices are called that it is about. Displays as one line.
#[derive(Debug, Clone, Copy)]
pub struct NamedStep<'a> {
    step: &'a Step,
    names: &'a DeviceNames,
}

impl fmt::Display for NamedStep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceNames { bridge, vxlan, .. } = self.names;
        let name = |device: &OwnDevice| self.names.of(*device);
        match self.step {
            Step::DeleteDevice(device) => write!(f, "delete device {}", name(device)),
            Step::CreateBridge(mac) => {
                write!(f, "create bridge {bridge} address {}", format_mac(*mac))
            }
            Step::CreateVxlan(wanted) => {
                write!(
                    f,
                    "create VXLAN device {vxlan} vni {}",
                    wanted.parameters.vni
                )
            }
            Step::CreateHeadroom(_) => {
                write!(
                    f,
                    "create VXLAN device {}, to stay down",
                    self.names.headroom
                )
            }
            Step::JoinBridge(device) => {
                write!(f, "make {} a port of {bridge}", name(device))
            }
            Step::Release(device) => write!(f, "release {} from its controller", name(device)),
            Step::SetMac(device, mac) => {
                write!(f, "set {} address {}", name(device), format_mac(*mac))
            }
            Step::SetMtu(device, mtu) => write!(f, "set {} mtu {mtu}", name(device)),
            Step::SetGroup(device) => write!(f, "set {} group {GROUP}", name(device)),
            Step::SetUp(device) => write!(f, "set {} up", name(device)),
            Step::Set { setting, before } => {
                write!(f, "set {setting}")?;
                match before {
                    Some(before) => write!(f, " (was {before})"),
                    None => Ok(()),
                }
            }
            Step::DeleteAddress(address) => {
                write!(f, "delete address {address} dev {bridge}")
            }
            Step::AddAddress(address) => write!(f, "add address {address} dev {bridge}"),
            Step::DeleteRoute(route) => {
                write!(
                    f,
                    "delete route {} dev {}",
                    route.destination,
                    name(&route.device)
                )
            }
            Step::AddRoute(route) | Step::ReplaceRoute(route) => {
                let verb = if matches!(self.step, Step::AddRoute(_)) {
                    "add"
                } else {
                    "replace"
                };
                write!(f, "{verb} route {}", route.destination)?;
                if let Some(gateway) = route.gateway {
                    write!(f, " via {gateway}")?;
                }
                write!(f, " dev {}", name(&route.device))
            }
            Step::DeleteNeighbour(address) => {
                write!(f, "delete neighbour {address} dev {vxlan}")
            }
            Step::ReplaceNeighbour(OverlayNeighbour { address, mac }) => write!(
                f,
                "replace neighbour {address} lladdr {} dev {vxlan}",
                format_mac(*mac)
            ),
            Step::DeleteFdb(mac, host) => {
                write!(f, "delete forwarding entry {}", format_mac(*mac))?;
                if let Some(host) = host {
                    write!(f, " dst {host}")?;
                }
                write!(f, " dev {vxlan}")
            }
            Step::ReplaceFdb(OverlayFdb { mac, host }) => write!(
                f,
                "replace forwarding entry {} dst {host} dev {vxlan}",
                format_mac(*mac)
            ),
            Step::DeleteProxy(address) => {
                write!(f, "delete proxy neighbour {address} dev {bridge}")
            }
            Step::AddProxy(address) => {
                write!(f, "add proxy neighbour {address} dev {bridge}")
            }
            Step::ReplaceTable(_) => write!(f, "replace table {TABLE}"),
        }
    }
}
