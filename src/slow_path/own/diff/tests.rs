use super::*;
use crate::slow_path::own::names::GROUP;
use crate::slow_path::own::wanted::tests::{MARKS, config};

fn wanted() -> WantedOverlay {
    WantedOverlay::new(&config(), MARKS)
}

fn link(name: &str, kind: &str, mac: Mac) -> Link {
    Link {
        name: name.into(),
        index: 9,
        mtu: 1450,
        mac: Some(mac),
        up: true,
        carrier: true,
        forwarding: false,
        port: None,
        group: GROUP,
        controller: None,
        kind: Some(kind.into()),
        far_namespace: None,
        alias: None,
        vxlan: None,
    }
}

/// The host as it is when everything is as wanted.
fn settled(wanted: &WantedOverlay) -> Observed {
    let mut vxlan = link("oncache-vx0", "vxlan", wanted.vxlan.mac);
    vxlan.vxlan = Some(wanted.vxlan.parameters);
    let mut headroom = link("oncache-room0", "vxlan", wanted.headroom.mac);
    headroom.vxlan = Some(wanted.headroom.parameters);
    headroom.up = false;
    headroom.controller = Some(9);
    Observed {
        bridge: Some(link("oncache0", "bridge", wanted.bridge.mac)),
        vxlan: Some(vxlan),
        headroom: Some(headroom),
        addresses: vec![ObservedAddress {
            address: wanted.bridge.address,
            secondary: false,
        }],
        routes: wanted.routes.clone(),
        neighbours: wanted
            .neighbours
            .iter()
            .map(|entry| ObservedNeighbour {
                address: entry.address,
                mac: Some(entry.mac),
                permanent: true,
            })
            .collect(),
        fdb: wanted
            .fdb
            .iter()
            .map(|entry| ObservedFdb {
                mac: entry.mac,
                host: Some(entry.host),
                permanent: true,
            })
            .collect(),
        proxies: wanted.proxies.clone(),
        settings: wanted
            .settings
            .iter()
            .map(|setting| (setting.key.clone(), setting.value.clone()))
            .collect(),
        ipv6: true,
        table: Some(ListedTable::of_wanted(&wanted.table)),
    }
}

/// The steps that mend one deviation, as text.
fn mend(deviate: impl FnOnce(&mut Observed)) -> Vec<String> {
    let wanted = wanted();
    let mut observed = settled(&wanted);
    deviate(&mut observed);
    let steps = diff(&wanted, &observed);
    text(&wanted, &steps)
}

fn text(wanted: &WantedOverlay, steps: &[Step]) -> Vec<String> {
    let text = steps
        .iter()
        .map(|step| step.named(&wanted.names).to_string());
    text.collect()
}

fn edit(link: &mut Option<Link>, change: impl FnOnce(&mut Link)) {
    change(link.as_mut().expect("a link"));
}

#[test]
fn a_settled_host_needs_nothing() {
    assert_eq!(mend(|_| {}), [""; 0]);
}

#[test]
fn an_empty_host_gets_everything_in_order() {
    let wanted = wanted();
    let observed = Observed {
        ipv6: true,
        ..Observed::default()
    };
    let steps = text(&wanted, &diff(&wanted, &observed));
    assert_eq!(
        steps,
        [
            "create bridge oncache0 address 0a:62:0a:2a:01:01",
            "create VXLAN device oncache-vx0 vni 42",
            "set oncache0 mtu 1450",
            "set oncache0 group 28526",
            "set oncache-vx0 group 28526",
            "set net/ipv6/conf/oncache0/disable_ipv6 = 1",
            "set net/ipv4/conf/oncache0/forwarding = 1",
            "set net/ipv6/conf/oncache-vx0/disable_ipv6 = 1",
            "set net/ipv4/conf/oncache-vx0/forwarding = 1",
            "set net/ipv4/neigh/oncache0/proxy_delay = 0",
            "set net/ipv4/conf/oncache0/send_redirects = 0",
            "create VXLAN device oncache-room0, to stay down",
            "make oncache-room0 a port of oncache0",
            "set oncache0 up",
            "set oncache-vx0 up",
            "add address 10.42.1.1/24 dev oncache0",
            "replace neighbour 10.42.2.0 lladdr 0a:6f:c0:a8:32:0c dev oncache-vx0",
            "replace neighbour 10.42.3.0 lladdr 0a:6f:c0:a8:32:0d dev oncache-vx0",
            "replace forwarding entry 0a:6f:c0:a8:32:0c dst 192.168.50.12 dev oncache-vx0",
            "replace forwarding entry 0a:6f:c0:a8:32:0d dst 192.168.50.13 dev oncache-vx0",
            "add route 10.42.2.0/24 via 10.42.2.0 dev oncache-vx0",
            "add route 10.42.3.0/24 via 10.42.3.0 dev oncache-vx0",
            "replace table inet oncache",
            "set net/netfilter/nf_conntrack_tcp_be_liberal = 1",
        ]
    );
}

#[test]
fn the_device_that_carries_nothing_is_a_port_and_down() {
    let join = "make oncache-room0 a port of oncache0";
    let create = "create VXLAN device oncache-room0, to stay down";
    assert_eq!(mend(|host| host.headroom = None), [create, join]);
    assert_eq!(
        mend(|host| edit(&mut host.headroom, |link| link.controller = None)),
        [join]
    );
    assert_eq!(
        mend(|host| edit(&mut host.headroom, |link| link.controller = Some(77))),
        [join]
    );
    assert_eq!(
        mend(|host| edit(&mut host.headroom, |link| link.up = true)),
        ["delete device oncache-room0", create, join]
    );
    assert_eq!(
        mend(|host| edit(&mut host.headroom, |link| link.vxlan = None)),
        ["delete device oncache-room0", create, join]
    );
}

#[test]
fn devices_too_small_for_ipv6_are_not_asked_to_disable_it() {
    let mut wanted = wanted();
    wanted.bridge.mtu = 1250;
    wanted.vxlan.mtu = 1250;
    let mut observed = settled(&wanted);
    edit(&mut observed.bridge, |link| link.mtu = 1250);
    edit(&mut observed.vxlan, |link| link.mtu = 1250);
    observed
        .settings
        .retain(|key, _| !key.starts_with("net/ipv6"));
    assert_eq!(diff(&wanted, &observed), []);
}

#[test]
fn a_kernel_without_ipv6_is_not_asked_to_disable_it() {
    let steps = mend(|host| {
        host.ipv6 = false;
        host.settings.retain(|key, _| !key.starts_with("net/ipv6"));
    });
    assert_eq!(steps, [""; 0]);
}

#[test]
fn what_can_change_in_a_device_is_changed() {
    let up = mend(|host| edit(&mut host.bridge, |link| link.up = false));
    assert_eq!(up, ["set oncache0 up"]);
    let mtu = mend(|host| edit(&mut host.vxlan, |link| link.mtu = 1500));
    assert_eq!(mtu, ["set oncache-vx0 mtu 1450"]);
    let mac = mend(|host| edit(&mut host.bridge, |link| link.mac = Some([2; 6])));
    assert_eq!(mac, ["set oncache0 address 0a:62:0a:2a:01:01"]);
    let group = mend(|host| edit(&mut host.vxlan, |link| link.group = 0));
    assert_eq!(group, ["set oncache-vx0 group 28526"]);
    let port = mend(|host| edit(&mut host.vxlan, |link| link.controller = Some(9)));
    assert_eq!(port, ["release oncache-vx0 from its controller"]);
}

#[test]
fn a_vxlan_device_that_cannot_change_is_made_anew_with_all_that_hung_on_it() {
    type Change = fn(&mut crate::netlink::VxlanParameters);
    let changes: [Change; 6] = [
        |parameters| parameters.vni = 43,
        |parameters| parameters.local = None,
        |parameters| parameters.port = 8472,
        |parameters| parameters.link = Some(4),
        |parameters| parameters.learning = true,
        |parameters| parameters.udp_csum = true,
    ];
    for change in changes {
        let steps = mend(|host| {
            edit(&mut host.vxlan, |link| {
                change(link.vxlan.as_mut().expect("parameters"));
            });
        });
        assert_eq!(steps[0], "delete device oncache-vx0");
        assert_eq!(steps[1], "create VXLAN device oncache-vx0 vni 42");
        let with = |text: &str| steps.iter().filter(|step| step.starts_with(text)).count();
        assert_eq!(with("set net/"), 2, "{steps:?}");
        assert_eq!(with("set oncache-vx0 up"), 1, "{steps:?}");
        assert_eq!(with("set oncache-vx0 group"), 1, "{steps:?}");
        assert_eq!(with("replace neighbour"), 2, "{steps:?}");
        assert_eq!(with("replace forwarding entry"), 2, "{steps:?}");
        assert_eq!(with("add route"), 2, "{steps:?}");
        assert_eq!(steps.len(), 12, "{steps:?}");
    }
}

#[test]
fn a_foreign_device_under_our_name_is_replaced() {
    let steps = mend(|host| {
        edit(&mut host.bridge, |link| link.kind = Some("veth".into()));
        host.addresses.clear();
    });
    assert_eq!(steps[0], "delete device oncache0");
    assert_eq!(steps[1], "create bridge oncache0 address 0a:62:0a:2a:01:01");
    // The routes named the bridge's address as their source and went with it.
    assert!(steps.contains(&"add route 10.42.2.0/24 via 10.42.2.0 dev oncache-vx0".into()));
}

#[test]
fn each_lost_entry_is_one_step() {
    assert_eq!(
        mend(|host| {
            host.routes.remove(0);
        }),
        ["add route 10.42.2.0/24 via 10.42.2.0 dev oncache-vx0"]
    );
    assert_eq!(
        mend(|host| {
            host.neighbours.remove(1);
        }),
        ["replace neighbour 10.42.3.0 lladdr 0a:6f:c0:a8:32:0d dev oncache-vx0"]
    );
    assert_eq!(
        mend(|host| {
            host.fdb.remove(1);
        }),
        ["replace forwarding entry 0a:6f:c0:a8:32:0d dst 192.168.50.13 dev oncache-vx0"]
    );
    assert_eq!(
        mend(|host| host.table = None),
        ["replace table inet oncache"]
    );
    let key = sysctl::TCP_BE_LIBERAL;
    assert_eq!(
        mend(|host| drop(host.settings.insert(key.into(), "0".into()))),
        ["set net/netfilter/nf_conntrack_tcp_be_liberal = 1"]
    );
    assert_eq!(
        mend(|host| drop(host.settings.remove("net/ipv4/conf/oncache0/forwarding"))),
        ["set net/ipv4/conf/oncache0/forwarding = 1"]
    );
}

#[test]
fn each_changed_entry_is_one_step() {
    assert_eq!(
        mend(|host| host.routes[0].source = None),
        ["replace route 10.42.2.0/24 via 10.42.2.0 dev oncache-vx0"]
    );
    assert_eq!(
        mend(|host| host.neighbours[0].mac = Some([2; 6])),
        ["replace neighbour 10.42.2.0 lladdr 0a:6f:c0:a8:32:0c dev oncache-vx0"]
    );
    assert_eq!(
        mend(|host| host.neighbours[0].permanent = false),
        ["replace neighbour 10.42.2.0 lladdr 0a:6f:c0:a8:32:0c dev oncache-vx0"]
    );
    assert_eq!(
        mend(|host| host.fdb[0].host = Some(Ipv4Addr::LOCALHOST)),
        ["replace forwarding entry 0a:6f:c0:a8:32:0c dst 192.168.50.12 dev oncache-vx0"]
    );
    assert_eq!(
        mend(|host| {
            let table = host.table.as_mut().expect("a table");
            table.rules[0].comment = "oncache:other".into();
        }),
        ["replace table inet oncache"]
    );
    assert_eq!(
        mend(|host| host.table.as_mut().expect("a table").foreign = 1),
        ["replace table inet oncache"]
    );
}

#[test]
fn what_is_ours_and_not_wanted_goes() {
    assert_eq!(
        mend(|host| {
            let mut route = host.routes[0];
            route.destination = "10.42.9.0/24".parse().expect("a network");
            host.routes.push(route);
        }),
        ["delete route 10.42.9.0/24 dev oncache-vx0"]
    );
    assert_eq!(
        mend(|host| {
            let mut route = host.routes[0];
            route.metric = 7;
            host.routes.push(route);
        }),
        ["delete route 10.42.2.0/24 dev oncache-vx0"]
    );
    let address = Ipv4Addr::new(10, 42, 9, 0);
    let neighbour = |permanent| ObservedNeighbour {
        address,
        mac: Some([2; 6]),
        permanent,
    };
    assert_eq!(
        mend(|host| host.neighbours.push(neighbour(true))),
        ["delete neighbour 10.42.9.0 dev oncache-vx0"]
    );
    // What the kernel is resolving is not ours.
    assert_eq!(mend(|host| host.neighbours.push(neighbour(false))), [""; 0]);
    assert_eq!(
        mend(|host| host.fdb.push(ObservedFdb {
            mac: [2; 6],
            host: Some(address),
            permanent: true,
        })),
        ["delete forwarding entry 02:02:02:02:02:02 dst 10.42.9.0 dev oncache-vx0"]
    );
}

#[test]
fn every_destination_of_a_flooding_entry_goes() {
    let flood = |last| ObservedFdb {
        mac: [0; 6],
        host: Some(Ipv4Addr::new(192, 168, 50, last)),
        permanent: true,
    };
    assert_eq!(
        mend(|host| host.fdb.extend([flood(12), flood(13)])),
        [
            "delete forwarding entry 00:00:00:00:00:00 dst 192.168.50.12 dev oncache-vx0",
            "delete forwarding entry 00:00:00:00:00:00 dst 192.168.50.13 dev oncache-vx0",
        ]
    );
}

#[test]
fn a_changed_gateway_takes_the_routes_with_it() {
    let steps = mend(|host| {
        host.addresses[0].address = "10.42.1.254/24".parse().expect("an address");
        for route in &mut host.routes {
            route.source = Some(Ipv4Addr::new(10, 42, 1, 254));
        }
    });
    assert_eq!(
        steps,
        [
            "delete address 10.42.1.254/24 dev oncache0",
            "add address 10.42.1.1/24 dev oncache0",
            "add route 10.42.2.0/24 via 10.42.2.0 dev oncache-vx0",
            "add route 10.42.3.0/24 via 10.42.3.0 dev oncache-vx0",
        ]
    );
}

#[test]
fn a_secondary_gateway_is_dragged_along_and_comes_back() {
    let steps = mend(|host| {
        host.addresses[0].secondary = true;
        host.addresses.push(ObservedAddress {
            address: "10.42.1.254/24".parse().expect("an address"),
            secondary: false,
        });
    });
    assert_eq!(
        steps[..2],
        [
            "delete address 10.42.1.254/24 dev oncache0",
            "add address 10.42.1.1/24 dev oncache0",
        ]
    );
    assert_eq!(steps.len(), 4, "{steps:?}");
}

#[test]
fn an_address_that_has_moved_gets_a_route_and_then_a_proxy() {
    let before = settled(&wanted());
    let mut config = config();
    let away = Ipv4Addr::new(10, 42, 1, 7);
    config.peers[1].moved = vec![away];
    let moved = WantedOverlay::new(&config, MARKS);
    assert_eq!(
        text(&moved, &diff(&moved, &before)),
        [
            "add route 10.42.1.7/32 via 10.42.3.0 dev oncache-vx0",
            "add proxy neighbour 10.42.1.7 dev oncache0",
            // Who may speak out of the tunnel.
            "replace table inet oncache",
        ]
    );
    assert_eq!(
        text(&moved, &diff(&wanted(), &settled(&moved))),
        [
            "delete route 10.42.1.7/32 dev oncache-vx0",
            "delete proxy neighbour 10.42.1.7 dev oncache0",
            "replace table inet oncache",
        ]
    );
    let mut without_bridge = settled(&moved);
    without_bridge.bridge = None;
    let steps = text(&moved, &diff(&moved, &without_bridge));
    assert!(
        steps.contains(&"add proxy neighbour 10.42.1.7 dev oncache0".to_owned()),
        "{steps:#?}"
    );
}
