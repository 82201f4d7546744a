//! The second stage: defaults from the host, and the checks that need it.

use std::net::Ipv4Addr;

use super::consistency::LocalNetwork;
use super::fault::{ConfigErrors, Faults, refuse};
use super::overlay::check_node_address;
use super::peers::{NetworkLines, check_sections};
use super::schema::ConfigFile;
use super::table::At;
use super::value::{self, MTU_MIN, Mtu};
use super::{Config, DeviceFacts, HostFacts, Node, Overlay, Peer};

/// What VXLAN over IPv4 adds to an inner IP packet, in bytes.
#[allow(clippy::cast_possible_truncation, reason = "a few headers")]
pub const VXLAN_OVERHEAD: u32 = oncache_abi::vxlan::OVERHEAD as u32;

impl ConfigFile {
    /// Fills the defaults from the host that `facts` describe, and checks the file against it. The peers
    /// are those of their source, or what is wrong with them.
    ///
    /// # Errors
    /// Every fault found, on the line of the value or, for a default, of `[node]`.
    pub fn resolve(
        &self,
        facts: &HostFacts,
        peers: Result<Vec<Peer>, ConfigErrors>,
    ) -> Result<Config, ConfigErrors> {
        let mut faults = Faults::new(&self.file);
        let name = self.node_name(facts, &mut faults);
        let peers = faults.of(peers);
        let device = self.underlay_device(facts, &mut faults);
        let address = device.and_then(|device| self.node_address(device, facts, &mut faults));
        let mtu = device.and_then(|device| self.mtu(device, &mut faults));
        if let Some(device) = device {
            self.check_ethernet(device, &mut faults);
        }
        match (name, peers, device, address, mtu) {
            (Some(name), Some(peers), Some(device), Some(address), Some(mtu))
                if faults.is_empty() =>
            {
                Ok(self.config(name, peers, device, address, mtu))
            }
            _ => Err(faults.into_errors()),
        }
    }

    /// What the peers of this host have to fit in with.
    #[must_use]
    pub fn local_network(&self, facts: &HostFacts) -> LocalNetwork {
        let named = self.node.name.as_ref().map(|name| &name.value);
        let name = named.unwrap_or(&facts.hostname);
        // At an address of any of its devices, not only the underlay's, a peer would be this host: a
        // packet to it would never leave.
        let addresses = facts.devices.iter().flat_map(|device| {
            let place = format!("on {}", device.name);
            let addresses = device.ipv4.iter();
            addresses.map(move |net| (net.addr(), place.clone()))
        });
        LocalNetwork {
            network: Some(self.overlay.network.value),
            subnet: Some(self.overlay.subnet.value),
            name: Some(name.clone()),
            addresses: addresses.collect(),
        }
    }

    /// The file's `[[peers]]`, if they fit into the network as this host has it.
    ///
    /// # Errors
    /// Every fault found, on the line of the value.
    pub fn peers_in(&self, here: &LocalNetwork) -> Result<Vec<Peer>, ConfigErrors> {
        let mut faults = Faults::new(&self.file);
        let lines = NetworkLines::new(Some(&self.overlay.network), Some(&self.overlay.subnet));
        check_sections(&self.peers, here, lines, &mut faults);
        if faults.is_empty() {
            let peers = self.peers.iter().map(|section| section.peer.clone());
            Ok(peers.collect())
        } else {
            Err(faults.into_errors())
        }
    }

    fn config(
        &self,
        name: String,
        peers: Vec<Peer>,
        device: &DeviceFacts,
        address: Ipv4Addr,
        mtu: u32,
    ) -> Config {
        Config {
            node: Node {
                name,
                underlay: device.name.clone(),
                underlay_index: device.index,
                underlay_mac: device.mac,
                address,
            },
            overlay: Overlay {
                subnet: self.overlay.subnet.value,
                network: self.overlay.network.value,
                vni: self.overlay.vni,
                port: self.overlay.port,
                mtu,
            },
            peers,
            container: self.container,
            cache: self.cache.clone(),
            policy: self.policy.clone(),
            log: self.log,
        }
    }

    fn node_name(&self, facts: &HostFacts, faults: &mut Faults) -> Option<String> {
        if let Some(name) = &self.node.name {
            return Some(name.value.clone());
        }
        let hostname = &facts.hostname;
        if let Err(why) = value::check_name(hostname) {
            let fault = refuse(
                format!("the host's name will not do: {why}"),
                "set node.name",
            );
            faults.value(self.node.line, "node.name", hostname, &fault);
            return None;
        }
        Some(hostname.clone())
    }

    fn underlay_device<'f>(
        &self,
        facts: &'f HostFacts,
        faults: &mut Faults,
    ) -> Option<&'f DeviceFacts> {
        let (name, line) = match (&self.node.underlay, &facts.default_route_device) {
            (Some(underlay), _) => (&underlay.value, underlay.line),
            (None, Some(device)) => (device, self.node.line),
            (None, None) => {
                let fault = refuse(
                    "not given, and there is no default route to tell it by",
                    format!("set node.underlay to one of: {}", names(facts)),
                );
                faults.key(self.node.line, "node.underlay", &fault);
                return None;
            }
        };
        let device = facts.device(name);
        if device.is_none() {
            let remedy = format!("name one of: {}", names(facts));
            faults.value(
                line,
                "node.underlay",
                name,
                &refuse("no such device", remedy),
            );
        }
        device
    }

    fn node_address(
        &self,
        device: &DeviceFacts,
        facts: &HostFacts,
        faults: &mut Faults,
    ) -> Option<Ipv4Addr> {
        let chosen = facts.chosen_on(device);
        match &self.node.address {
            // One that was in force is waited for.
            Some(address) if chosen == Some(address.value) => chosen,
            Some(address) => self.given_address(address, device, faults),
            None => self.default_address(device, chosen, faults),
        }
    }

    fn given_address(
        &self,
        address: &At<Ipv4Addr>,
        device: &DeviceFacts,
        faults: &mut Faults,
    ) -> Option<Ipv4Addr> {
        if device.has(address.value) {
            return Some(address.value);
        }
        let remedy = if device.ipv4.is_empty() {
            format!("add the address to {}, or name another device", device.name)
        } else {
            format!("use one of: {}", addresses(device))
        };
        let fault = refuse(format!("not an address of {}", device.name), remedy);
        faults.value(
            address.line,
            "node.address",
            &address.value.to_string(),
            &fault,
        );
        None
    }

    fn default_address(
        &self,
        device: &DeviceFacts,
        chosen: Option<Ipv4Addr>,
        faults: &mut Faults,
    ) -> Option<Ipv4Addr> {
        let line = self
            .node
            .underlay
            .as_ref()
            .map_or(self.node.line, |underlay| underlay.line);
        let Some(address) = chosen.or_else(|| device.own_address()) else {
            let fault = if device.ipv4.is_empty() {
                let remedy = format!("give {} one, or name another device", device.name);
                refuse("the device has no IPv4 address", remedy)
            } else {
                let what = format!(
                    "the device has only addresses that may be a service's (/32, or secondary): {}",
                    addresses(device)
                );
                refuse(what, "set node.address to the one that is this host's")
            };
            faults.value(line, "node.underlay", &device.name, &fault);
            return None;
        };
        if let Some(kind) = value::not_unicast(address) {
            let fault = refuse(
                format!(
                    "the device's first address {address} is {kind}, not the address of a host"
                ),
                "set node.address, or name another device",
            );
            faults.value(line, "node.underlay", &device.name, &fault);
            return None;
        }
        let at = At {
            value: address,
            line,
        };
        check_node_address(&at, &self.overlay.network, faults);
        Some(address)
    }

    fn mtu(&self, device: &DeviceFacts, faults: &mut Faults) -> Option<u32> {
        // A loopback device has 65536; no IPv4 packet is longer than 65535 (RFC 791).
        let underlay_mtu = device.mtu.min(u32::from(u16::MAX));
        let largest = underlay_mtu.saturating_sub(VXLAN_OVERHEAD);
        let asked = &self.overlay.mtu;
        if largest < MTU_MIN {
            let fault = refuse(
                format!(
                    "underlay MTU {} of {} is too small: less {VXLAN_OVERHEAD} for VXLAN it \
                     leaves {largest}, IPv4 needs {MTU_MIN}",
                    device.mtu, device.name
                ),
                format!("raise it to at least {}", MTU_MIN + VXLAN_OVERHEAD),
            );
            faults.value(asked.line, "overlay.mtu", &mtu_text(asked.value), &fault);
            return None;
        }
        match asked.value {
            Mtu::Bytes(bytes) if bytes > largest => {
                let fault = refuse(
                    format!(
                        "larger than {largest}, what underlay MTU {} of {} leaves after \
                         {VXLAN_OVERHEAD} for VXLAN",
                        device.mtu, device.name
                    ),
                    format!("write \"auto\" or at most {largest}"),
                );
                faults.value(asked.line, "overlay.mtu", &bytes.to_string(), &fault);
                None
            }
            Mtu::Bytes(bytes) => Some(bytes),
            Mtu::Auto => Some(largest),
        }
    }

    /// The fast path writes the outer Ethernet header itself, so the underlay must have one. The
    /// slow path alone gets by with any device that routes.
    fn check_ethernet(&self, device: &DeviceFacts, faults: &mut Faults) {
        if self.cache.enabled && device.mac == [0; 6] {
            let line = self
                .node
                .underlay
                .as_ref()
                .map_or(self.node.line, |underlay| underlay.line);
            let fault = refuse(
                "the device has no MAC address, and the fast path needs Ethernet",
                "name an Ethernet device, or set cache.enabled = false",
            );
            faults.value(line, "node.underlay", &device.name, &fault);
        }
    }
}

fn mtu_text(mtu: Mtu) -> String {
    match mtu {
        Mtu::Auto => "auto".to_owned(),
        Mtu::Bytes(bytes) => bytes.to_string(),
    }
}

fn addresses(device: &DeviceFacts) -> String {
    let addresses: Vec<String> = device
        .ipv4
        .iter()
        .map(|net| net.addr().to_string())
        .collect();
    addresses.join(", ")
}

fn names(facts: &HostFacts) -> String {
    let names: Vec<&str> = facts
        .devices
        .iter()
        .map(|device| device.name.as_str())
        .collect();
    names.join(", ")
}
