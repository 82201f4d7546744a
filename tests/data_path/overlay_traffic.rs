//! Containers of two hosts speak by the slow path alone. Takes root.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use crate::overlay_hosts::{MARKS, apply, block_on, config, hosts};
use ipnet::Ipv4Net;
use oncache::{
    container::devices::container_mac,
    netlink::{Netlink, PairEnd, PairKind},
    slow_path::own::wanted::WantedOverlay,
};
use oncache_testbed::Place;

/// Attaches a container made by hand.
fn container(host: &Place, address: Ipv4Addr) -> Place {
    let container = Place::new();
    let mac = container_mac(address);
    block_on(host, || async {
        let netlink = Netlink::new().expect("netlink");
        let here = PairEnd {
            name: "c0",
            mac: [2, 0, 0, 0, 9, 9],
            mtu: 1450,
        };
        let there = PairEnd {
            name: "eth0",
            mac,
            mtu: 1450,
        };
        let made = netlink.create_pair(
            PairKind::Veth,
            here,
            "container one",
            there,
            container.netns(),
        );
        made.await.expect("a pair");
        let index = netlink.index_of("c0").await.expect("an index");
        let bridge = netlink.index_of("oncache0").await.expect("the bridge");
        netlink
            .set_controller(index, Some(bridge))
            .await
            .expect("a port");
        netlink.set_up(index, true).await.expect("up");

        let inside = Netlink::in_namespace(container.netns())
            .await
            .expect("inside");
        let eth0 = inside
            .link_by_name("eth0")
            .await
            .expect("links")
            .expect("eth0");
        assert_eq!((eth0.mac, eth0.mtu), (Some(mac), 1450));
        let net = Ipv4Net::new(address, 24).expect("an address");
        inside
            .add_address(eth0.index, net)
            .await
            .expect("an address");
        inside.set_up(eth0.index, true).await.expect("up");
    });
    let [a, b, c, _] = address.octets();
    container.sh(&format!("ip route add default via {a}.{b}.{c}.1"));
    let port = &host.json("ip -j link show c0")[0];
    assert_eq!(port["ifalias"], "container one");
    container
}

/// Sends `payload` by TCP to `address` and returns what comes back from an echo in `to`.
fn exchange(from: &Place, to: &Place, address: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let listener = to.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7)).expect("a listener"));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("a request");
        stream.write_all(&received).expect("an answer");
    });
    let target = SocketAddr::from((address, 7));
    let mut stream = from
        .enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)).expect("connected"));
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a timeout");
    stream.write_all(payload).expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("shut");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    server.join().expect("the server");
    answer
}

#[test]
fn containers_of_two_hosts_speak_by_the_slow_path() {
    let hosts = hosts();
    let mut containers = Vec::new();
    for (host, number, peer) in [(&hosts[0], 1, 2), (&hosts[1], 2, 1)] {
        apply(
            host,
            &WantedOverlay::new(&config(host, number, peer), MARKS),
        );
        containers.push(container(host, Ipv4Addr::new(10, 42, number, 5)));
    }
    // A miss mark, as the fast path's programs would set it; what the est-mark rule makes of it is
    // counted behind it.
    hosts[0].sh("nft -f - <<END
         table inet probe {
           chain miss { type filter hook prerouting priority -300
             iifname \"c0\" meta mark set 0x00010000
             iifname \"oncache0\" meta mark set 0x00010000
           }
           chain seen { type filter hook forward priority 200
             meta mark & 0x01ff0000 == 0x00010000 counter comment \"missed\"
             meta mark & 0x01ff0000 == 0x01010000 counter comment \"established\"
           }
         }
END");
    let target = Ipv4Addr::new(10, 42, 2, 5);
    // 400 kB: several windows, and segments as large as the MTU lets them be.
    let payload: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
    let answer = exchange(&containers[0], &containers[1], target, &payload);
    assert!(answer == payload, "{} bytes came back", answer.len());
    // The host itself reaches remote containers too, by its gateway address.
    assert_eq!(
        exchange(&hosts[0], &containers[1], target, b"host"),
        b"host"
    );

    let packets = |comment: &str| {
        let counters = hosts[0].json("nft -j list chain inet probe seen");
        let objects = counters["nftables"].as_array().expect("objects").clone();
        let rule = objects
            .iter()
            .find(|object| object["rule"]["comment"] == comment);
        let statements = rule.expect("the rule")["rule"]["expr"].as_array().cloned();
        let mut statements = statements.expect("statements").into_iter();
        let count = statements.find_map(|one| one["counter"]["packets"].as_u64());
        count.expect("a counter")
    };
    assert_eq!(packets("missed"), 1, "the SYN alone is not established");
    let learnable = packets("established");
    assert!(learnable > 10);

    // A flow whose destination is rewritten works, and not one packet of it may be learned from.
    hosts[0].sh("nft -f - <<END
         table inet service {
           chain rewrite { type nat hook prerouting priority dstnat
             ip daddr 10.42.2.99 dnat ip to 10.42.2.5
           }
         }
END");
    let service = Ipv4Addr::new(10, 42, 2, 99);
    assert_eq!(
        exchange(&containers[0], &containers[1], service, b"service"),
        b"service"
    );
    assert_eq!(packets("established"), learnable);
    assert!(packets("missed") > 1);

    let tunnel = &hosts[1].json("ip -j -s link show oncache-vx0")[0]["stats64"];
    assert!(tunnel["rx"]["packets"].as_u64() > Some(10), "{tunnel}");
}
