//! The bridge learns nothing from containers, and a container's neighbours believe no router.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use oncache_testbed::{Capture, Host, Injector, PATIENCE, eventually};
use serde_json::Value;

use crate::{
    packet::{ethernet, ip, payload, router_advertisement, typed, udp},
    world::Scene,
};

/// A bridge's entries, but for its own addresses, groups, and those kept for VLANs: address and port.
fn entries(host: &Host) -> Vec<(String, String)> {
    let all: Value =
        serde_json::from_str(&host.run(&["bridge", "-j", "fdb", "show", "br", "oncache0"]))
            .expect("JSON");
    let rows = all.as_array().expect("rows").iter();
    let learned = rows.filter(|row| {
        row["master"] == "oncache0" && row["state"] != "permanent" && row["vlan"].is_null()
    });
    let mut found: Vec<_> = learned
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            (text("mac"), text("ifname"))
        })
        .collect();
    found.sort();
    found
}

/// Frames that would make a bridge believe that the neighbour and the gateway are at the attacker's port:
/// of a protocol that no guard of IPv4 looks at, and to an address that bridges keep for themselves.
fn claim(scene: &Scene) {
    let injector = Injector::on(scene.attacker(), "eth0");
    let world = &scene.world;
    for from in [world.mate_mac(), world.gateway_mac(), [2, 0, 0, 9, 9, 9]] {
        for to in [
            [0xff; 6],
            world.gateway_mac(),
            [1, 0x80, 0xc2, 0, 0, 0x0e],
            [1, 0x80, 0xc2, 0, 0, 3],
        ] {
            for ethertype in [0x88b5, 0x0800, 0x88cc] {
                let body = ip(world.mate, world.gateways[0], 17, &udp(1, 9, &payload(1)));
                let frame = ethernet(to, from, &typed(ethertype, &body));
                injector.send(&[0; 10], &frame).expect("sent");
            }
        }
    }
}

/// Whether the neighbour still gets what is for it, and the attacker nothing of it.
fn the_neighbour_is_where_it_was(scene: &Scene) {
    let stolen = Capture::on(scene.attacker(), "eth0")
        .filter(|frame| {
            frame
                .udp()
                .is_some_and(|udp| udp.destination_port() == 6500)
        })
        .start();
    let socket = scene.mate.enter(|| UdpSocket::bind((scene.mate.ip, 6500)));
    let socket = socket.expect("bind in the neighbour");
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a time-out");
    let sender = scene
        .alpha()
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    sender
        .expect("a socket")
        .send_to(b"for mate", (scene.mate.ip, 6500))
        .expect("sent");
    assert!(
        socket.recv(&mut [0; 16]).is_ok(),
        "the neighbour hears the host"
    );
    assert_eq!(stolen.stop().frames.len(), 0, "and nobody else does");
}

#[test]
fn a_neighbours_mac_address_as_source_changes_nothing() {
    let scene = Scene::new();
    let alpha = scene.alpha();
    let before = entries(alpha);
    println!("{before:?}");
    assert_eq!(before.len(), 2, "one for each container");
    claim(&scene);
    assert_eq!(entries(alpha), before);
    the_neighbour_is_where_it_was(&scene);
    // Nor without the guard: the bridge itself does not learn.
    alpha.stop();
    alpha.run(&["nft", "delete", "table", "bridge", "oncache"]);
    claim(&scene);
    assert_eq!(entries(alpha), before);
    the_neighbour_is_where_it_was(&scene);
}

#[test]
fn what_somebody_changes_at_the_ports_is_mended() {
    let scene = Scene::new();
    let alpha = scene.alpha();
    let before = entries(alpha);
    let port = || {
        let shown = alpha.run(&["ip", "-j", "-d", "link", "show", "onc-mate"]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        let data = &shown[0]["linkinfo"]["info_slave_data"];
        let keys = ["learning", "flood", "group_fwd_mask"];
        keys.map(|key| data[key].to_string())
    };
    let neighbour = || {
        alpha.run(&[
            "ip",
            "neigh",
            "show",
            &scene.mate.ip.to_string(),
            "dev",
            "oncache0",
        ])
    };
    let (settings, known) = (port(), neighbour());
    println!("{settings:?} {known}");
    assert_eq!(settings[..2], ["false", "false"]);
    assert!(known.contains("PERMANENT"), "{known}");
    alpha.sh("ip link set onc-mate type bridge_slave learning on flood on group_fwd_mask 0");
    eventually("the port is as it was", PATIENCE, || port() == settings);
    let mate = scene.mate.ip;
    let from = alpha.log().len();
    alpha.sh(&format!(
        "bridge fdb del {mac} dev onc-mate master
         bridge fdb add {mac} dev onc-client master static
         bridge fdb add 02:00:00:09:09:09 dev onc-client master static
         ip neigh replace {mate} lladdr 02:00:00:09:09:09 dev oncache0
         ip neigh add 10.42.1.99 lladdr 02:00:00:09:09:09 nud permanent dev oncache0",
        mac = mac_text(scene.world.mate_mac()),
    ));
    eventually("entries and neighbours are as they were", PATIENCE, || {
        let foreign = alpha.run(&["ip", "neigh", "show", "10.42.1.99", "dev", "oncache0"]);
        entries(alpha) == before && neighbour() == known && foreign.is_empty()
    });
    let log = alpha.log_since(from).join("\n");
    for line in [
        "fix forwarding entry 0a:63",
        "delete forwarding entry 02:00",
        "replace neighbour 10.42.1.3 lladdr 0a:63",
        "delete neighbour 10.42.1.99",
    ] {
        assert!(log.contains(line), "{line}: not in\n{log}");
    }
    // Out of the bridge and back in: a new port, with the kernel's settings.
    alpha.sh("ip link set onc-mate nomaster");
    eventually("the port is back", PATIENCE, || {
        port() == settings && entries(alpha) == before
    });
    the_neighbour_is_where_it_was(&scene);
    // Of one that is down inside the host asks, so that senders hear that there is nobody.
    let asked = || !neighbour().contains("PERMANENT");
    scene.mate.run(&["ip", "link", "set", "eth0", "down"]);
    eventually("its neighbour entry is gone", PATIENCE, asked);
    scene.mate.run(&["ip", "link", "set", "eth0", "up"]);
    eventually("it is back", PATIENCE, || !asked());
    // They go with the container.
    alpha.remove_container("mate");
    assert_eq!(entries(alpha).len(), 1);
    assert_eq!(neighbour(), "");
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn a_containers_router_advertisement_is_heard_by_nobody() {
    let scene = Scene::new();
    let routes = || {
        let hosts = [&scene.mate, &**scene.alpha()];
        let routes = hosts.map(|place| place.run(&["ip", "-6", "route", "show", "default"]));
        routes.concat()
    };
    let injector = Injector::on(scene.attacker(), "eth0");
    let advertise = || {
        for to in [
            [0x33, 0x33, 0, 0, 0, 1],
            [1, 0x80, 0xc2, 0, 0, 0x0e],
            scene.world.mate_mac(),
        ] {
            let frame = ethernet(
                to,
                scene.world.own_mac(),
                &typed(0x86dd, &router_advertisement()),
            );
            injector.send(&[0; 10], &frame).expect("sent");
        }
    };
    advertise();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(routes(), "");
    assert!(scene.refused(scene.alpha(), "ipv6") >= 2);
    // It is one that would be believed.
    scene.alpha().stop();
    scene
        .alpha()
        .run(&["nft", "delete", "table", "bridge", "oncache"]);
    eventually("the neighbour has a router", PATIENCE, || {
        advertise();
        !routes().is_empty()
    });
}
