//! What a configuration needs to know of the host it is for: plain data, gathered elsewhere.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::Node;

/// The host as far as defaults and checks of the configuration depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The kernel's node name, as `uname -n` prints it.
    pub hostname: String,
    /// Name of the device of the IPv4 default route, if there is such a route.
    pub default_route_device: Option<String>,
    /// Every device of the host's network namespace.
    pub devices: Vec<DeviceFacts>,
    /// The address that this host was at before, whether or not its device has it now.
    pub chosen: Option<Chosen>,
}

/// One network device of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// MTU in bytes, without the link-layer header.
    pub mtu: u32,
    /// Link-layer address; all zero if the device has none.
    pub mac: [u8; 6],
    /// IPv4 addresses with their prefix lengths, in the kernel's order.
    pub ipv4: Vec<Ipv4Net>,
    /// Those of them that came behind another one of the same subnet (`IFA_F_SECONDARY`).
    pub secondary: Vec<Ipv4Addr>,
}

impl DeviceFacts {
    /// Whether the device has this address, in whatever subnet.
    #[must_use]
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.ipv4.iter().any(|net| net.addr() == address)
    }

    /// The address that stands for the host where none was chosen before: the first one that is of a
    /// network. One without others (/32) or behind another may be a service's, which is here today
    /// and elsewhere tomorrow (VRRP, keepalived).
    #[must_use]
    pub fn own_address(&self) -> Option<Ipv4Addr> {
        let mut own = self
            .ipv4
            .iter()
            .filter(|net| net.prefix_len() < 32 && !self.secondary.contains(&net.addr()));
        own.next().map(Ipv4Net::addr)
    }
}

/// The address that was chosen for the host: another one takes its place only if somebody says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The underlay device that it is of.
    pub device: String,
    /// The address.
    pub address: Ipv4Addr,
}

impl From<&Node> for Chosen {
    fn from(node: &Node) -> Self {
        Self {
            device: node.underlay.clone(),
            address: node.address,
        }
    }
}

impl HostFacts {
    /// The device called `name`.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&DeviceFacts> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// These facts with the choices that were made for `node` kept: another default route, host name
    /// or address is no reason to become another host.
    #[must_use]
    pub fn as_decided(mut self, node: &Node) -> Self {
        self.hostname.clone_from(&node.name);
        self.default_route_device = Some(node.underlay.clone());
        self.chosen = Some(node.into());
        self
    }

    /// These facts with an address chosen before, if one was.
    #[must_use]
    pub fn with_chosen(mut self, chosen: Option<Chosen>) -> Self {
        self.chosen = chosen;
        self
    }

    /// The address chosen before, if it was one of this device.
    #[must_use]
    pub fn chosen_on(&self, device: &DeviceFacts) -> Option<Ipv4Addr> {
        let chosen = self.chosen.as_ref()?;
        (chosen.device == device.name).then_some(chosen.address)
    }
}
