//! Two hosts, an attacker and its neighbour on one of them and a victim on the other, and what the attacker knows.

use std::net::Ipv4Addr;

use oncache_testbed::{CachedFlow, Container, Host, Lab};

use crate::ONCACHE;

/// An address of the host that is on none of its devices but `lo`.
pub const ON_LO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Service addresses: UDP port 5353 of the one leads to the tunnel's port of the peer, of the other to that
/// of the host itself.
pub const SERVICES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 53), Ipv4Addr::new(192, 0, 2, 54)];
pub const SERVICE_PORT: u16 = 5353;
/// Ports of the attacker's flow to the victim, which the fast path carries.
pub const FLOW: (u16, u16) = (5006, 5005);

/// What the attacker knows.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub attacker: Ipv4Addr,
    pub mate: Ipv4Addr,
    pub victim: Ipv4Addr,
    /// The hosts' underlay addresses.
    pub hosts: [Ipv4Addr; 2],
    /// The containers' gateways.
    pub gateways: [Ipv4Addr; 2],
}

pub fn derived(role: u8, address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, role, a, b, c, d]
}

impl World {
    pub fn own_mac(&self) -> [u8; 6] {
        derived(0x63, self.attacker)
    }

    pub fn mate_mac(&self) -> [u8; 6] {
        derived(0x63, self.mate)
    }

    pub fn gateway_mac(&self) -> [u8; 6] {
        derived(0x62, self.gateways[0])
    }

    /// The host-side ends of the pairs: the bridge takes what is for them for its own.
    pub fn port_macs(&self) -> [[u8; 6]; 2] {
        [self.attacker, self.mate].map(|ip| derived(0x70, ip))
    }

    pub fn vteps(&self) -> [[u8; 6]; 2] {
        self.hosts.map(|ip| derived(0x6f, ip))
    }
}

/// The hosts and containers.
pub struct Scene {
    /// From the attacker to the victim, carried by the fast path.
    pub flow: CachedFlow,
    pub mate: Container,
    pub world: World,
}

impl Scene {
    pub fn new() -> Self {
        let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
        let alpha = flow.lab.alpha();
        let mate = alpha.add_container("mate");
        let world = World {
            attacker: flow.client.ip,
            mate: mate.ip,
            victim: flow.server.ip,
            hosts: [alpha.address(), flow.lab.beta().address()],
            gateways: [Ipv4Addr::new(10, 42, 1, 1), Ipv4Addr::new(10, 42, 2, 1)],
        };
        let scene = Self { flow, mate, world };
        scene.open_ways();
        scene
    }

    pub fn alpha(&self) -> &Host {
        self.flow.lab.alpha()
    }

    pub fn lab(&self) -> &Lab {
        &self.flow.lab
    }

    pub fn attacker(&self) -> &Container {
        &self.flow.client
    }

    pub fn victim(&self) -> &Container {
        &self.flow.server
    }

    /// A host as open as they come: with a default route and forwarding, source routing, service addresses, and
    /// an address of its own that is on no other device. Nobody answers with an error, which would repeat what
    /// it is about.
    fn open_ways(&self) {
        let [service, own] = SERVICES;
        let [here, there] = self.world.hosts;
        self.alpha().sh(&format!(
            "ip address add {ON_LO}/32 dev lo
             ip route add default via {there}
             nft -f - <<EOF
             table ip service {{
                 chain prerouting {{
                     type nat hook prerouting priority dstnat
                     ip daddr {service} udp dport {SERVICE_PORT} dnat to {there}:4789
                     ip daddr {own} udp dport {SERVICE_PORT} dnat to {here}:4789
                 }}
             }}
EOF"
        ));
        let hosts = self.lab().all().iter();
        for host in hosts {
            for sysctl in ["accept_source_route", "forwarding"] {
                host.set_sysctl(&format!("net.ipv4.conf.all.{sysctl}"), "1");
            }
        }
        let hosts = self.lab().all().iter().map(|host| &**host);
        for place in hosts.chain([&*self.mate, &**self.victim()]) {
            place.sh(
                "nft add table inet quiet
                 nft 'add chain inet quiet output { type filter hook output priority 0; }'
                 nft add rule inet quiet output icmp type '{ destination-unreachable, time-exceeded, parameter-problem, redirect }' drop
                 nft add rule inet quiet output tcp flags rst drop",
            );
        }
    }

    /// How many packets a host refused for a reason.
    pub fn refused(&self, host: &Host, reason: &str) -> u64 {
        let stats = host.oncache_json(&["stats", "--json"]);
        let refused = stats["refused"].as_array().expect("a list");
        let found = refused.iter().find(|count| count["reason"] == reason);
        found.map_or(0, |count| count["packets"].as_u64().expect("a number"))
    }
}
