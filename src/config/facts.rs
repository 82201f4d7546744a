//! What a configuration needs to know of the host it is for: plain data, gathered elsewhere.

use ipnet::Ipv4Net;

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
}

impl HostFacts {
    /// The device called `name`.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&DeviceFacts> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// These facts with the choices that were made for `node` kept where they still can be: another
    /// default route, host name or additional address is no reason to become another host.
    #[must_use]
    pub fn as_decided(mut self, node: &Node) -> Self {
        self.hostname.clone_from(&node.name);
        self.default_route_device = Some(node.underlay.clone());
        let mut devices = self.devices.iter_mut();
        if let Some(device) = devices.find(|device| device.name == node.underlay) {
            // Stable: only ours goes to the front.
            device.ipv4.sort_by_key(|net| net.addr() != node.address);
        }
        self
    }
}
