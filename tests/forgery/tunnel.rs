//! A container speaks VXLAN: to its own host, to a peer, by whatever way.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use oncache_testbed::{Container, Injector};

use crate::{
    packet::{TUNNEL_PORT, ethernet, ip, payload, typed, udp, vxlan},
    watch::{Spot, Watch},
    world::{FLOW, ON_LO, SERVICE_PORT, SERVICES, Scene, World},
};

/// A datagram of the victim's flow's answer, or anybody's, as `host` would take it out of the tunnel.
fn forged(world: &World, host: usize, from: Ipv4Addr, to: Ipv4Addr, number: u32) -> Vec<u8> {
    let vteps = world.vteps();
    let packet = ip(from, to, 17, &udp(FLOW.0, FLOW.1, &payload(number)));
    let frame = ethernet(vteps[host], vteps[1 - host], &typed(0x0800, &packet));
    vxlan(42, &frame)
}

/// A listener in a container for the flow's port.
fn listener(container: &Container) -> UdpSocket {
    let socket = container.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, FLOW.1)));
    let socket = socket.expect("a listener");
    let patience = Duration::from_millis(200);
    socket.set_read_timeout(Some(patience)).expect("a time-out");
    socket
}

/// Sends a forgery from an ordinary socket to every address that leads to a tunnel, and returns how many.
fn attack(scene: &Scene) -> u64 {
    let world = &scene.world;
    let socket = scene
        .attacker()
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .expect("an ordinary socket");
    socket.set_broadcast(true).expect("broadcasts");
    let [service, own] = SERVICES;
    let ways = [
        // To the neighbour, as if from the victim and from the world.
        (0, world.hosts[0], TUNNEL_PORT),
        (0, world.gateways[0], TUNNEL_PORT),
        (0, ON_LO, TUNNEL_PORT),
        (0, Ipv4Addr::new(10, 42, 1, 255), TUNNEL_PORT),
        (0, own, SERVICE_PORT),
        // To the victim, as if from the neighbour: masqueraded, it comes from a peer.
        (1, world.hosts[1], TUNNEL_PORT),
        (1, world.gateways[1], TUNNEL_PORT),
        (1, service, SERVICE_PORT),
    ];
    let mut number = 0;
    for (host, address, port) in ways {
        let (from, to) = match host {
            0 => (world.victim, world.mate),
            _ => (world.mate, world.victim),
        };
        for from in [from, Ipv4Addr::new(8, 8, 8, 8)] {
            number += 1;
            let packet = forged(world, host, from, to, number);
            socket.send_to(&packet, (address, port)).expect("sent");
            // And in fragments.
            number += 1;
            let mut packet = forged(world, host, from, to, number);
            packet.resize(2000, 0);
            socket.send_to(&packet, (address, port)).expect("sent");
        }
    }
    u64::from(number)
}

#[test]
fn vxlan_from_a_container_is_unpacked_by_nobody() {
    let scene = Scene::new();
    let mate = listener(&scene.mate);
    assert!(
        oncache_testbed::traffic::ping(scene.attacker(), scene.world.gateways[0], 1).lossless()
    );
    let watch = Watch::on(&scene);
    let sent = attack(&scene);
    let arrivals = watch.stop();
    for spot in [Spot::Victim, Spot::Unpacked] {
        assert_eq!(arrivals[&spot].len(), 0, "{spot:?}");
    }
    // What is broadcast among the containers of the host is theirs, as it was sent.
    assert_eq!(arrivals[&Spot::Mate], (13..=16).collect());
    assert!(
        mate.recv(&mut [0; 64]).is_err(),
        "the neighbour hears nothing"
    );
    // Of those to the other host's gateway the way there is the tunnel itself.
    let on_the_way = arrivals[&Spot::OtherUnpacked].len();
    assert_eq!(on_the_way, 4, "{arrivals:?}");
    let refused =
        [scene.lab().alpha(), scene.lab().beta()].map(|host| scene.refused(host, "tunnel-port"));
    println!("{sent} sent, {refused:?} refused");
    assert_eq!(refused, [sent - 4, 4]);
    let spoofed = scene.alpha().oncache_json(&["stats", "--json"])["spoofed"].as_u64();
    assert!(spoofed >= Some(sent - 4), "{spoofed:?}");
    assert!(scene.flow.asks(b"after"), "the flow itself goes on");
}

#[test]
fn without_the_tunnels_guard_the_forgery_would_arrive() {
    let scene = Scene::new();
    let mate = listener(&scene.mate);
    let alpha = scene.alpha();
    alpha.stop();
    for chain in ["reception", "departure", "arrival"] {
        alpha.run(&["nft", "flush", "chain", "inet", "oncache", chain]);
    }
    attack(&scene);
    assert!(
        mate.recv(&mut [0; 64]).is_ok(),
        "the forgery is one that the guard stops"
    );
    assert!(
        scene.flow.receiver.recv(&mut [0; 64]).is_ok(),
        "and at the peer"
    );
    // The daemon puts the guard back.
    alpha.start();
    while mate.recv(&mut [0; 64]).is_ok() {}
    while scene.flow.receiver.recv(&mut [0; 64]).is_ok() {}
    attack(&scene);
    assert!(
        mate.recv(&mut [0; 64]).is_err(),
        "the neighbour hears nothing"
    );
    assert!(
        scene.flow.receiver.recv(&mut [0; 64]).is_err(),
        "nor does the victim"
    );
}

#[test]
fn a_container_may_have_a_tunnel_of_its_own_to_another() {
    let scene = Scene::new();
    let socket = scene
        .victim()
        .enter(|| UdpSocket::bind((scene.world.victim, TUNNEL_PORT)))
        .expect("the tunnel's port inside");
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a time-out");
    let sender = scene
        .attacker()
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .expect("a socket");
    sender
        .send_to(b"their own", (scene.world.victim, TUNNEL_PORT))
        .expect("sent");
    assert!(socket.recv(&mut [0; 64]).is_ok());
}

/// Frames as they would come from the underlay.
#[test]
fn the_tunnel_takes_packets_of_peers_only_and_from_behind_peers_only() {
    let scene = Scene::new();
    let world = scene.world;
    let mate = listener(&scene.mate);
    let alpha = scene.alpha();
    let wire = Injector::on(scene.lab().beta(), oncache_testbed::UNDERLAY);
    let macs = ["alpha", "beta"].map(|name| {
        let host = scene.lab().all().iter().find(|host| host.name == name);
        let text = host.expect("a host").underlay_mac();
        let bytes: Vec<u8> = text
            .split(':')
            .map(|it| u8::from_str_radix(it, 16).expect("hex"))
            .collect();
        <[u8; 6]>::try_from(bytes).expect("six bytes")
    });
    let send = |outer: Ipv4Addr, inner: Ipv4Addr, number: u32| {
        let body = forged(&world, 0, inner, world.mate, number);
        let packet = ip(outer, world.hosts[0], 17, &udp(44_444, TUNNEL_PORT, &body));
        let frame = ethernet(macs[0], macs[1], &typed(0x0800, &packet));
        wire.send(&[0; 10], &frame).expect("sent");
        mate.recv(&mut [0; 64]).is_ok()
    };
    let stranger = Ipv4Addr::new(192, 168, 50, 77);
    assert!(
        send(world.hosts[1], world.victim, 1),
        "a peer's container is heard"
    );
    assert!(!send(stranger, world.victim, 2), "a stranger is not");
    assert_eq!(scene.refused(alpha, "not-peer"), 1);
    let no_peers = [
        world.attacker,
        world.gateways[0],
        world.hosts[1],
        Ipv4Addr::new(8, 8, 8, 8),
        Ipv4Addr::new(10, 42, 9, 9),
    ];
    for (inner, number) in no_peers.into_iter().zip(3..) {
        assert!(
            !send(world.hosts[1], inner, number),
            "{inner} is behind no peer"
        );
    }
    assert_eq!(scene.refused(alpha, "behind-no-peer"), 5);
    // An address of the peer's subnet that is a container's here.
    let here = Ipv4Addr::new(10, 42, 2, 77);
    assert!(send(world.hosts[1], here, 8), "it is the peer's");
    alpha.add_container_with("visitor", &["--ip", &here.to_string()]);
    assert!(!send(world.hosts[1], here, 9), "it is here");
    alpha.remove_container("visitor");
    assert!(send(world.hosts[1], here, 10), "and is the peer's again");
    assert!(scene.flow.asks(b"after"), "the flow itself goes on");
}
