//! Packets of a live, cached flow that are not plain data: each takes the slow path, counted.

use std::{net::UdpSocket, os::fd::AsRawFd as _};

use crate::ONCACHE;
use oncache_testbed::{CachedFlow, Capture, Container, Host, Lab, set_ip_option, traffic};

#[test]
fn echo_requests_are_not_cached() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let (report, [alpha, beta]) = flow.counted(|| traffic::ping(&flow.client, flow.server.ip, 5));
    assert!(report.lossless(), "{report}");
    assert_eq!(alpha.get("egress", "other-protocol"), 5);
    assert_eq!(alpha.get("ingress", "other-protocol"), 5);
    assert_eq!(beta.get("ingress", "other-protocol"), 5);
    assert_eq!(alpha.get("egress", "hit") + beta.get("egress", "hit"), 0);
}

#[test]
fn a_ttl_that_expires_takes_the_slow_path_and_each_host_is_a_hop() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let arrived = Capture::on(&flow.server, "eth0")
        .filter(|frame| frame.udp().is_some())
        .start();
    let mut ends = Vec::new();
    for ttl in [1u8, 2, 3, 64] {
        flow.sender.set_ttl(ttl.into()).expect("set the TTL");
        let (answered, counted) = flow.counted(|| flow.asks(b"hop"));
        ends.push((ttl, answered, counted));
    }
    assert_eq!(
        ends.iter().map(|end| end.1).collect::<Vec<_>>(),
        [false, false, true, true]
    );
    assert_eq!(
        ends[0].2[0].get("egress", "ttl-expires"),
        1,
        "the first hop is alpha"
    );
    assert_eq!(ends[1].2[0].get("egress", "hit"), 1);
    assert_eq!(
        ends[1].2[1].get("ingress", "ttl-expires"),
        1,
        "the second hop is beta"
    );
    assert_eq!(ends[2].2[1].get("ingress", "hit"), 1);
    let ttls: Vec<u8> = arrived
        .stop()
        .frames
        .iter()
        .filter(|frame| !frame.outgoing)
        .filter_map(|frame| Some(frame.view().ipv4()?.ttl()))
        .collect();
    assert_eq!(
        ttls,
        [1, 62],
        "both hosts take one hop off, as the slow path does"
    );
}

#[test]
fn ip_options_take_the_slow_path() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    // Three no-operations and the end of the list (RFC 791, section 3.1).
    set_ip_option(&flow.sender, libc::IP_OPTIONS, &[1, 1, 1, 0]);
    let (answered, [alpha, beta]) = flow.counted(|| flow.asks(b"options"));
    assert!(answered, "it arrives all the same");
    assert_eq!(alpha.get("egress", "ip-options"), 1);
    assert_eq!(beta.get("ingress", "ip-options"), 1);
    assert_eq!(
        beta.get("egress", "hit"),
        1,
        "the answer has none and is fast"
    );
}

#[test]
fn packets_over_the_mtu_get_the_kernels_answer() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let before = flow.lab.alpha().counters();
    // The host's end drops what is larger than its own MTU (drivers/net/veth.c, `veth_forward_skb`),
    // and the daemon would put that right again: the programs have to stand it without.
    flow.lab.alpha().stop();
    flow.lab
        .alpha()
        .run(&["ip", "link", "set", "onc-client", "mtu", "1500"]);
    flow.client
        .run(&["ip", "link", "set", "eth0", "mtu", "1500"]);
    set_ip_option(
        &flow.sender,
        libc::IP_MTU_DISCOVER,
        &libc::IP_PMTUDISC_DO.to_ne_bytes(),
    );

    flow.sender
        .send(&[0; 1472])
        .expect("the container's device takes 1,500 bytes");
    // The answer of the host: fragmentation needed, MTU 1450.
    let refused = flow
        .sender
        .recv(&mut [0; 16])
        .expect_err("no answer but an error");
    println!("the socket is told: {refused}");
    assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE), "{refused}");
    assert!(flow.asks(&[0; 1422]), "1,450 bytes fit");
    assert!(
        flow.sender.send(&[0; 1423]).is_err(),
        "the kernel has learned the path's MTU"
    );

    flow.lab.alpha().start();
    let counted = flow.lab.alpha().counters().since(&before);
    println!("alpha: {counted}");
    assert_eq!(counted.get("egress", "over-mtu"), 1, "{counted}");
}

/// A VXLAN packet's payload as the server's host would send it to the client: the 5-tuple of the
/// live flow, with `body` as datagram.
fn forge(flow: &CachedFlow, vni: u32, vtep: [u8; 6], body: &[u8]) -> Vec<u8> {
    let lengths =
        [28 + body.len(), 8 + body.len()].map(|length| u16::try_from(length).expect("short"));
    let mut ip = vec![0x45, 0];
    ip.extend(lengths[0].to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 63, 17, 0, 0]);
    ip.extend(flow.server.ip.octets());
    ip.extend(flow.client.ip.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend(vtep);
    packet.extend([0x0a, 0x6f, 192, 168, 50, 12, 8, 0]);
    packet.extend(ip);
    packet.extend(5005u16.to_be_bytes());
    packet.extend(5006u16.to_be_bytes());
    packet.extend(lengths[1].to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(body);
    packet
}

/// Sends a forged packet from an address of beta's to alpha, without an outer checksum unless
/// `checksum` is set.
fn inject(host: &Host, source: &str, packet: &[u8], checksum: bool) {
    host.enter(|| {
        let socket = UdpSocket::bind((source, 0)).expect("bind on beta");
        if !checksum {
            let on: libc::c_int = 1;
            // SAFETY: the option's value is an int that lives through the call.
            let outcome = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_NO_CHECK,
                    (&raw const on).cast(),
                    4,
                )
            };
            assert_eq!(
                outcome,
                0,
                "SO_NO_CHECK: {}",
                std::io::Error::last_os_error()
            );
        }
        socket
            .send_to(packet, ("192.168.50.11", 4789))
            .expect("send to alpha");
    });
}

#[test]
fn forged_packets_of_a_live_flow_never_arrive_by_the_fast_path() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    flow.lab
        .beta()
        .run(&["ip", "addr", "add", "192.168.50.99/24", "dev", "eth1"]);
    let vtep = [0x0a, 0x6f, 192, 168, 50, 11];
    let own = "192.168.50.12";
    let mut buffer = [0; 64];

    // The forger's tools work: what is right in everything is delivered fast.
    let (received, [alpha, _]) = flow.counted(|| {
        inject(
            flow.lab.beta(),
            own,
            &forge(&flow, 42, vtep, b"right"),
            false,
        );
        flow.sender.recv(&mut buffer).is_ok()
    });
    assert!(received);
    assert_eq!(alpha.get("ingress", "hit"), 1);

    let cases = [
        ("other-vni", own, forge(&flow, 43, vtep, b"vni"), false),
        (
            "not-peer",
            "192.168.50.99",
            forge(&flow, 42, vtep, b"peer"),
            false,
        ),
        (
            "not-vtep",
            own,
            forge(&flow, 42, [0x0a, 0x6f, 1, 2, 3, 4], b"vtep"),
            false,
        ),
        ("outer-checksum", own, forge(&flow, 42, vtep, b"sum"), true),
        (
            "truncated",
            own,
            forge(&flow, 42, vtep, b"")[..40].to_vec(),
            false,
        ),
        (
            "bad-header",
            own,
            [forge(&flow, 42, vtep, b"tail"), vec![0; 9]].concat(),
            false,
        ),
    ];
    for (reason, source, packet, checksum) in cases {
        println!("{reason}:");
        let ((), [alpha, _]) = flow.counted(|| {
            inject(flow.lab.beta(), source, &packet, checksum);
            // What the slow path makes of it is the kernel's affair; here it only has to be done.
            let _ = flow.sender.recv(&mut buffer);
        });
        assert_eq!(alpha.get("ingress", reason), 1, "{reason}: {alpha}");
        assert_eq!(alpha.get("ingress", "hit"), 0, "{reason}: {alpha}");
    }
    assert!(flow.asks(b"after"), "the flow itself goes on");
}

/// Sends a datagram of the live flow as if the client did, from another container, and returns
/// whether it arrived.
fn forge_inside(flow: &CachedFlow, forger: &Container) -> bool {
    forger.enter(|| {
        let socket = UdpSocket::bind((flow.client.ip, 5006)).expect("bind to the other's address");
        socket
            .send_to(b"forged", (flow.server.ip, 5005))
            .expect("send as the other");
    });
    flow.receiver.recv(&mut [0; 16]).is_ok()
}

#[test]
fn a_container_sends_only_from_its_own_addresses() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let alpha = flow.lab.alpha();
    let forger = alpha.add_container("forger");
    let spoofed = || alpha.oncache_json(&["stats", "--json"])["spoofed"].as_u64();
    assert_eq!(spoofed(), Some(0));
    // It knows its gateway already: with the other's address it would not even be told of it.
    assert!(traffic::ping(&forger, flow.server.ip, 1).lossless());
    let other = format!("{}/32", flow.client.ip);
    forger.run(&["ip", "addr", "add", &other, "dev", "eth0"]);

    let (arrived, [counted, _]) = flow.counted(|| forge_inside(&flow, &forger));

    assert!(
        !arrived,
        "the slow path refuses another container's address"
    );
    assert_eq!(counted.get("egress", "source-mismatch"), 1, "{counted}");
    assert_eq!(counted.get("egress", "hit"), 0, "{counted}");
    let refused = spoofed().expect("a number");
    println!("{refused} frames refused");
    assert!(refused >= 1);

    // Its own address from another MAC address is refused as well, and its own again is not.
    let [a, b, c, d] = forger.ip.octets();
    let own = format!("0a:63:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    forger.run(&["ip", "addr", "del", &other, "dev", "eth0"]);
    forger.run(&["ip", "link", "set", "eth0", "address", "0a:63:00:00:00:01"]);
    let report = traffic::ping(&forger, flow.server.ip, 2);
    assert_eq!(report.received, 0, "{report}");
    assert!(spoofed() > Some(refused));
    forger.run(&["ip", "link", "set", "eth0", "address", &own]);
    let report = traffic::ping(&forger, flow.server.ip, 2);
    assert_eq!(report.received, 2, "{report}");
    assert!(flow.asks(b"after"), "the flow itself goes on");
}

#[test]
fn without_its_guard_the_forgery_would_arrive() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let forger = flow.lab.alpha().add_container("forger");
    let other = format!("{}/32", flow.client.ip);
    forger.run(&["ip", "addr", "add", &other, "dev", "eth0"]);
    flow.lab.alpha().stop();
    flow.lab
        .alpha()
        .run(&["nft", "delete", "table", "bridge", "oncache"]);
    assert!(
        forge_inside(&flow, &forger),
        "the forgery is one that the guard stops"
    );
    // The daemon puts the guard back.
    flow.lab.alpha().start();
    assert!(!forge_inside(&flow, &forger));
}
