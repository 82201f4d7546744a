//! What may arrive where of what a container sends: the promise, in a page.

use std::{collections::BTreeSet, net::Ipv4Addr};

use crate::{
    packet::TUNNEL_PORT,
    watch::Spot,
    world::{ON_LO, SERVICE_PORT, SERVICES, World},
};

/// Protocols that end at their receiver.
const PLAIN: [u8; 7] = [1, 2, 6, 17, 33, 132, 136];

/// What the promise depends on in an IPv4 packet.
pub struct Packet {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    /// Where the sender wants it to pass, by a source route.
    pub next: Option<Ipv4Addr>,
    pub protocol: u8,
    /// UDP's or TCP's destination port; of all fragments.
    pub port: Option<u16>,
    /// All of it is there: no fragment lacks.
    pub whole: bool,
}

/// Of one frame, or of one of the fragments of `packet`, where it may show.
pub fn may_arrive(world: &World, frame: &[u8], packet: Option<&Packet>) -> BTreeSet<Spot> {
    let nowhere = BTreeSet::new();
    let (to, from) = (&frame[..6], &frame[6..12]);
    let for_bridges = to[..5] == [1, 0x80, 0xc2, 0, 0] && to[5] < 16;
    if from != world.own_mac() || for_bridges {
        return nowhere;
    }
    let passes = match frame[12..14] {
        [8, 0] => packet.is_some_and(|packet| packet.from == world.attacker),
        [8, 6] => is_own_arp(world, &frame[14..]),
        _ => false,
    };
    if !passes {
        return nowhere;
    }
    let group = to[0] & 1 == 1;
    let mut spots = BTreeSet::new();
    if group || to == world.mate_mac() {
        spots.insert(Spot::Mate);
    }
    let own = [
        world.gateway_mac(),
        world.port_macs()[0],
        world.port_macs()[1],
    ];
    if group || own.iter().any(|mac| to == mac) {
        spots.insert(Spot::Bridge);
        if let Some(packet) = packet {
            let ways = [Some(packet.to), packet.next];
            spots.extend(
                ways.into_iter()
                    .flatten()
                    .flat_map(|to| routed(world, packet, to)),
            );
        }
    }
    spots
}

fn is_own_arp(world: &World, arp: &[u8]) -> bool {
    arp.len() >= 28
        && arp[..6] == [0, 1, 8, 0, 6, 4]
        && arp[6] == 0
        && (1..=2).contains(&arp[7])
        && arp[8..14] == world.own_mac()
        && (arp[14..18] == world.attacker.octets() || arp[14..18] == [0; 4])
}

fn routed(world: &World, packet: &Packet, to: Ipv4Addr) -> Vec<Spot> {
    let tunnel = packet.protocol == 17 && packet.port == Some(TUNNEL_PORT);
    let leaves = PLAIN.contains(&packet.protocol) && packet.whole && !tunnel;
    let leads_to_tunnel =
        SERVICES.contains(&to) && packet.protocol == 17 && packet.port == Some(SERVICE_PORT);
    let [host, other_host] = world.hosts;
    let [gateway, other_gateway] = world.gateways;
    let broadcast = [Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 42, 1, 255)];
    let of_host =
        [host, gateway, ON_LO].contains(&to) || broadcast.contains(&to) || to.is_multicast();
    if to == world.attacker {
        vec![]
    } else if to == world.mate {
        vec![Spot::Mate]
    } else if to == world.victim {
        vec![Spot::Wire, Spot::OtherUnpacked, Spot::Victim]
    } else if to == other_gateway {
        let mut spots = vec![Spot::Wire, Spot::OtherUnpacked];
        if leaves {
            spots.push(Spot::OtherHost);
        }
        spots
    } else if !leaves || leads_to_tunnel {
        vec![]
    } else if of_host {
        vec![Spot::Host]
    } else if to == other_host {
        vec![Spot::Wire, Spot::OtherHost]
    } else {
        vec![Spot::Wire]
    }
}
