//! The slow path as the configuration wants it. Pure: no look at the host.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    names::{DeviceNames, OwnDevice, gateway_mac, headroom_mac, vtep_mac},
    ruleset,
    sysctl::{self, Setting},
    tunnel_guard::{self, Tunnel},
};
use crate::{
    config::{Config, Peer},
    netlink::{MAIN_TABLE, Mac, VxlanParameters},
    nft::Table,
    slow_path::Marks,
};

/// The VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedVxlan {
    /// The link-layer address: this host's VTEP.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// What cannot change while the device lives.
    pub parameters: VxlanParameters,
}

/// The bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedBridge {
    /// The link-layer address: the containers' gateway.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// The gateway's address with the length of the containers' subnet.
    pub address: Ipv4Net,
}

/// A route by one of oncache's own devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OverlayRoute {
    /// The destinations.
    pub destination: Ipv4Net,
    /// The next hop.
    pub gateway: Option<Ipv4Addr>,
    /// The device.
    pub device: OwnDevice,
    /// The next hop is on the device's link though no address says so.
    pub onlink: bool,
    /// The source address of the host's own packets.
    pub source: Option<Ipv4Addr>,
    /// The metric; the lowest wins.
    pub metric: u32,
    /// The routing table's number.
    pub table: u32,
}

/// A permanent neighbour on the VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OverlayNeighbour {
    /// The next hop of a peer's route.
    pub address: Ipv4Addr,
    /// The peer's VTEP.
    pub mac: Mac,
}

/// A permanent forwarding entry of the VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OverlayFdb {
    /// The peer's VTEP.
    pub mac: Mac,
    /// The peer's underlay address.
    pub host: Ipv4Addr,
}

/// Everything the slow path consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedOverlay {
    /// What the devices are called.
    pub names: DeviceNames,
    /// The VXLAN device.
    pub vxlan: WantedVxlan,
    /// The device that keeps headroom before what containers send.
    pub headroom: WantedVxlan,
    /// The bridge.
    pub bridge: WantedBridge,
    /// One route a peer, one for each address that has moved to a peer, and one for each that has
    /// moved here.
    pub routes: Vec<OverlayRoute>,
    /// One neighbour a peer.
    pub neighbours: Vec<OverlayNeighbour>,
    /// One forwarding entry a peer.
    pub fdb: Vec<OverlayFdb>,
    /// Addresses that the bridge answers for: this host's containers believe them on their link.
    pub proxies: Vec<Ipv4Addr>,
    /// The kernel settings.
    pub settings: Vec<Setting>,
    /// The nftables table.
    pub table: Table,
}

impl WantedOverlay {
    /// Computes the wanted state. `marks` says which bits of `skb->mark` the est-mark rule reads
    /// and sets.
    #[must_use]
    pub fn new(config: &Config, marks: Marks) -> Self {
        let overlay = &config.overlay;
        let gateway = overlay.gateway();
        // The gateway is an address within the subnet: its prefix is valid for it too.
        let address = Ipv4Net::new_assert(gateway, overlay.subnet.prefix_len());
        let parameters = VxlanParameters {
            vni: overlay.vni,
            local: Some(config.node.address),
            port: overlay.port,
            // Peers come from the configuration; a packet must not teach us another one.
            learning: false,
            // RFC 7348 section 5: the outer checksum SHOULD be zero over IPv4. The fast
            // path does not compute one, and both paths must look alike on the wire.
            udp_csum: false,
            link: Some(config.node.underlay_index),
        };
        let names = DeviceNames::of_only_network();
        Self {
            vxlan: WantedVxlan {
                mac: vtep_mac(config.node.address),
                mtu: overlay.mtu,
                parameters,
            },
            // As the other, so that it asks for the same headroom; but for the port, since the kernel
            // wants VNI and port unique (drivers/net/vxlan/vxlan_core.c, `vxlan_vni_in_use`).
            headroom: WantedVxlan {
                mac: headroom_mac(config.node.address),
                mtu: overlay.mtu,
                parameters: VxlanParameters {
                    port: HEADROOM_PORT,
                    ..parameters
                },
            },
            bridge: WantedBridge {
                mac: gateway_mac(gateway),
                mtu: overlay.mtu,
                address,
            },
            routes: config
                .peers
                .iter()
                .flat_map(|peer| {
                    let moved = peer.moved.iter().map(|address| Ipv4Net::from(*address));
                    let destinations = std::iter::once(peer.subnet.trunc()).chain(moved);
                    destinations.map(move |destination| route(peer, destination, gateway))
                })
                .collect(),
            neighbours: config.peers.iter().map(neighbour).collect(),
            fdb: config.peers.iter().map(forwarding).collect(),
            proxies: config.away().collect(),
            settings: sysctl::wanted(&names),
            table: ruleset::table(&names.bridge, overlay.network, marks, &tunnel(config)),
            names,
        }
    }

    /// With local containers whose addresses are of elsewhere: they are behind the bridge all the
    /// same.
    #[must_use]
    pub fn with_visitors(mut self, visitors: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        let gateway = self.bridge.address.addr();
        let visitors: Vec<Ipv4Addr> = visitors.into_iter().collect();
        let routes = visitors.iter().map(|address| OverlayRoute {
            destination: Ipv4Net::from(*address),
            gateway: None,
            device: OwnDevice::Bridge,
            onlink: false,
            source: Some(gateway),
            metric: 0,
            table: MAIN_TABLE,
        });
        self.routes.extend(routes);
        tunnel_guard::refuse_visitors(&mut self.table, &visitors);
        self
    }
}

fn tunnel(config: &Config) -> Tunnel {
    Tunnel {
        port: config.overlay.port,
        vni: config.overlay.vni,
        peers: config.peers.iter().map(|peer| peer.address).collect(),
        behind: behind(config),
    }
}

fn behind(config: &Config) -> Vec<Ipv4Net> {
    let peers = config.peers.iter();
    peers
        .flat_map(|peer| {
            let moved = peer.moved.iter().map(|address| Ipv4Net::from(*address));
            moved.chain([peer.subnet])
        })
        .collect()
}

/// The discard port (RFC 863). Nobody hears at it: a VXLAN device opens its socket when it goes up.
const HEADROOM_PORT: u16 = 9;

/// The next hop to a peer's containers: the network address of their subnet. No container has it,
/// so it can stand for the host on the VXLAN device without taking an address from anybody.
fn next_hop(peer: &Peer) -> Ipv4Addr {
    peer.subnet.network()
}

fn route(peer: &Peer, destination: Ipv4Net, gateway: Ipv4Addr) -> OverlayRoute {
    OverlayRoute {
        destination,
        gateway: Some(next_hop(peer)),
        device: OwnDevice::Vxlan,
        onlink: true,
        // The host itself speaks to remote containers as its own gateway, the only address of this
        // host that they have a route to.
        source: Some(gateway),
        metric: 0,
        table: MAIN_TABLE,
    }
}

fn neighbour(peer: &Peer) -> OverlayNeighbour {
    OverlayNeighbour {
        address: next_hop(peer),
        mac: vtep_mac(peer.address),
    }
}

fn forwarding(peer: &Peer) -> OverlayFdb {
    OverlayFdb {
        mac: vtep_mac(peer.address),
        host: peer.address,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{Attach, Cache, Containers, MarkMask, Node, Overlay};

    pub(in crate::slow_path::own) const MARKS: Marks = Marks {
        miss: 0x00ff_0000,
        est: 0x0100_0000,
    };

    pub(in crate::slow_path::own) fn config() -> Config {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a network");
        let peer = |name: &str, host, subnet| Peer {
            name: name.into(),
            address: Ipv4Addr::new(192, 168, 50, host),
            subnet: net(subnet),
            moved: Vec::new(),
        };
        Config {
            node: Node {
                name: "alpha".into(),
                underlay: "eth1".into(),
                underlay_index: 3,
                underlay_mac: [2, 0, 0, 0, 0, 1],
                address: Ipv4Addr::new(192, 168, 50, 11),
            },
            overlay: Overlay {
                subnet: net("10.42.1.0/24"),
                network: net("10.42.0.0/16"),
                vni: 42,
                port: 4789,
                mtu: 1450,
            },
            container: Containers::default(),
            cache: Cache {
                enabled: true,
                flows: 65536,
                lease: std::time::Duration::from_secs(30),
                mark_mask: MarkMask::new(0x0fff_0000).expect("the default mask"),
                attach: Attach::Auto,
                ignore_traffic_control: Vec::new(),
            },
            policy: vec![],
            log: crate::config::Log::default(),
            peers: vec![
                peer("beta", 12, "10.42.2.0/24"),
                peer("gamma", 13, "10.42.3.0/24"),
            ],
        }
    }

    #[test]
    fn a_peer_is_a_route_a_neighbour_and_a_forwarding_entry() {
        let wanted = WantedOverlay::new(&config(), MARKS);
        let beta = [0x0a, 0x6f, 192, 168, 50, 12];
        assert_eq!(
            wanted.routes[0],
            OverlayRoute {
                destination: "10.42.2.0/24".parse().expect("a network"),
                gateway: Some(Ipv4Addr::new(10, 42, 2, 0)),
                device: OwnDevice::Vxlan,
                onlink: true,
                source: Some(Ipv4Addr::new(10, 42, 1, 1)),
                metric: 0,
                table: 254,
            }
        );
        let next_hop = Ipv4Addr::new(10, 42, 2, 0);
        assert_eq!(
            wanted.neighbours[0],
            OverlayNeighbour {
                address: next_hop,
                mac: beta
            }
        );
        let host = Ipv4Addr::new(192, 168, 50, 12);
        assert_eq!(wanted.fdb[0], OverlayFdb { mac: beta, host });
        assert_eq!(wanted.routes.len(), 2);
    }

    #[test]
    fn what_has_moved_has_a_route_of_its_own() {
        let mut config = config();
        let (away, third) = (Ipv4Addr::new(10, 42, 1, 7), Ipv4Addr::new(10, 42, 3, 9));
        config.peers[0].moved = vec![away, third];
        let here = Ipv4Addr::new(10, 42, 2, 8);
        let wanted = WantedOverlay::new(&config, MARKS).with_visitors([here]);
        let to = |address: Ipv4Addr| {
            let found = wanted
                .routes
                .iter()
                .find(|route| route.destination == Ipv4Net::from(address));
            let route = found.expect("a route");
            (route.gateway, route.device)
        };
        let beta = Some(Ipv4Addr::new(10, 42, 2, 0));
        assert_eq!(to(away), (beta, OwnDevice::Vxlan));
        assert_eq!(to(third), (beta, OwnDevice::Vxlan));
        assert_eq!(to(here), (None, OwnDevice::Bridge));
        // Only where the containers here would ask for it on their link.
        assert_eq!(wanted.proxies, [away]);
        assert_eq!(wanted.neighbours.len(), 2);
    }

    #[test]
    fn both_hosts_derive_the_same_vtep() {
        let mut other = config();
        other.node.address = Ipv4Addr::new(192, 168, 50, 12);
        let there = WantedOverlay::new(&other, MARKS);
        let here = WantedOverlay::new(&config(), MARKS);
        assert_eq!(there.vxlan.mac, here.fdb[0].mac);
    }

    #[test]
    fn the_vxlan_device_neither_learns_nor_sums() {
        let wanted = WantedOverlay::new(&config(), MARKS).vxlan.parameters;
        assert!(!wanted.learning && !wanted.udp_csum);
        assert_eq!(wanted.local, Some(Ipv4Addr::new(192, 168, 50, 11)));
        assert_eq!((wanted.vni, wanted.port, wanted.link), (42, 4789, Some(3)));
    }

    #[test]
    fn the_gateway_is_the_first_address_of_the_subnet() {
        let bridge = WantedOverlay::new(&config(), MARKS).bridge;
        assert_eq!(bridge.address.to_string(), "10.42.1.1/24");
        assert_eq!(bridge.mac, [0x0a, 0x62, 10, 42, 1, 1]);
    }
}
