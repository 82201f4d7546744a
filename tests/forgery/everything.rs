//! Frames and datagrams by the thousand, of every kind, against what may arrive where.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, UdpSocket},
    time::Instant,
};

use crate::{
    generate::{Chance, Item, PLAIN_PORT, item},
    packet::{TUNNEL_PORT, ethernet, payload, vxlan},
    reference::{Packet, may_arrive},
    watch::{Arrivals, Spot, Watch},
    world::{ON_LO, SERVICE_PORT, SERVICES, Scene, World},
};
use oncache_testbed::Injector;

const FRAMES: u32 = 12_000;
const DATAGRAMS: u32 = 1_000;

/// What an ordinary socket can send: any port and any address, from its own, whole or in the kernel's fragments.
fn datagram(scene: &Scene, socket: &UdpSocket, chance: &mut Chance, number: u32) -> Item {
    let world: &World = &scene.world;
    let addresses = [
        world.hosts[0],
        world.hosts[1],
        world.gateways[0],
        world.gateways[1],
        ON_LO,
        SERVICES[0],
        SERVICES[1],
        world.mate,
        world.victim,
        Ipv4Addr::new(10, 42, 1, 255),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(203, 0, 113, 9),
    ];
    let to = addresses[chance.below(addresses.len())];
    let port = [TUNNEL_PORT, TUNNEL_PORT, SERVICE_PORT, PLAIN_PORT][chance.below(4)];
    let [here, there] = world.vteps();
    let mut bytes = vxlan(42, &ethernet(here, there, &payload(number)));
    let large = chance.below(4) == 0;
    if large {
        bytes.resize(3000, 0x55);
    }
    // Not where the container itself has no way.
    let sent = socket.send_to(&bytes, (to, port)).is_ok();
    let packet = Packet {
        from: world.attacker,
        to,
        next: None,
        protocol: 17,
        port: Some(port),
        whole: true,
    };
    let group = to.is_broadcast() || to == Ipv4Addr::new(10, 42, 1, 255);
    let receiver = match to {
        _ if group => [0xff; 6],
        _ if to == world.mate => world.mate_mac(),
        _ => world.gateway_mac(),
    };
    let mut frame = ethernet(receiver, world.own_mac(), &[8, 0]);
    frame.resize(60, 0);
    let honest = [world.mate, world.victim, world.hosts[0], world.hosts[1]].contains(&to)
        && port == PLAIN_PORT;
    Item {
        number,
        frames: Vec::new(),
        may: may_arrive(world, &frame, Some(&packet)),
        honest: honest && sent,
        what: format!("datagram to {to}:{port}, large: {large}"),
    }
}

fn send_all(scene: &Scene) -> Vec<Item> {
    let mut chance = Chance(0x0bad_cafe_dead_beef);
    let injector = Injector::on(scene.attacker(), "eth0");
    let mut items: Vec<Item> = (1..=FRAMES)
        .map(|number| item(&scene.world, &mut chance, number))
        .collect();
    for item in &items {
        for frame in &item.frames {
            // The device refuses what is longer than it takes, which none is.
            let sent = injector.send(&[0; 10], frame);
            assert!(sent.is_ok(), "{sent:?}: {}", item.what);
        }
    }
    let socket = scene
        .attacker()
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .expect("a socket");
    socket.set_broadcast(true).expect("broadcasts");
    items.extend(
        (FRAMES + 1..=FRAMES + DATAGRAMS)
            .map(|number| datagram(scene, &socket, &mut chance, number)),
    );
    items
}

/// What arrived where it may not, in words.
fn astray(items: &[Item], arrivals: &Arrivals) -> Vec<String> {
    let by_number: BTreeMap<u32, &Item> = items.iter().map(|item| (item.number, item)).collect();
    let mut lines = Vec::new();
    for (spot, numbers) in arrivals {
        for number in numbers {
            let item = by_number[number];
            if !item.may.contains(spot) {
                lines.push(format!("{spot:?}: {}", item.what));
            }
        }
    }
    lines
}

#[test]
fn of_all_that_a_container_can_send_nothing_arrives_but_what_may() {
    let scene = Scene::new();
    // The neighbours know each other: what is sent has not to wait for that.
    for (from, to) in [
        (scene.attacker(), scene.mate.ip),
        (scene.attacker(), scene.world.gateways[0]),
        (&scene.mate, scene.world.gateways[0]),
    ] {
        assert!(oncache_testbed::traffic::ping(from, to, 1).lossless());
    }
    // The host has just been given other rules: what was learned is not.
    let fast = (0..50).any(|_| scene.flow.asks(b"warm") && scene.flow.is_fast());
    assert!(fast, "the flow is not fast again");
    let before = scene.alpha().counters();
    let begun = Instant::now();
    let watch = Watch::on(&scene);
    let items = send_all(&scene);
    let arrivals = watch.stop();
    println!(
        "{} sent in {:?}; arrived: {:?}",
        items.len(),
        begun.elapsed(),
        arrivals
            .iter()
            .map(|(spot, numbers)| (*spot, numbers.len()))
            .collect::<Vec<_>>()
    );
    let lines = astray(&items, &arrivals);
    for line in lines.iter().take(40) {
        println!("astray: {line}");
    }
    assert_eq!(lines.len(), 0, "arrived where it may not");

    // And not because nothing arrives at all.
    let honest: Vec<&Item> = items.iter().filter(|item| item.honest).collect();
    for spot in [
        Spot::Mate,
        Spot::Victim,
        Spot::Host,
        Spot::OtherHost,
        Spot::Bridge,
        Spot::Wire,
        Spot::OtherUnpacked,
    ] {
        let expected = honest.iter().filter(|item| item.may.contains(&spot));
        let number = expected.clone().count();
        // The fast path carries the flow's packets past the bridge and the tunnel's device.
        let skipped = [Spot::Bridge, Spot::OtherUnpacked].contains(&spot);
        let lost: Vec<_> = expected
            .filter(|item| {
                !(arrivals[&spot].contains(&item.number) || skipped && item.is_of_flow())
            })
            .map(|item| &item.what)
            .collect();
        println!("{spot:?}: {number} honest ones, {} lost", lost.len());
        assert!(number >= 30, "{spot:?}: too few to say anything");
        assert!(lost.is_empty(), "{spot:?}: {lost:#?}");
    }
    let hits = scene.alpha().counters().since(&before).get("egress", "hit");
    println!("{hits} of them by the fast path");
    assert!(hits >= 20, "the fast path has carried none");

    let stats = scene.alpha().oncache_json(&["stats", "--json"]);
    println!("{:#}", stats["refused"]);
    for reason in [
        "source",
        "arp",
        "tagged",
        "ipv6",
        "protocol",
        "link-local",
        "tunnel-port",
        "encapsulation",
    ] {
        assert!(scene.refused(scene.alpha(), reason) > 0, "{reason}: none");
    }
    assert!(
        stats["spoofed"].as_u64() > Some(1000),
        "{}",
        stats["spoofed"]
    );
}
