//! ECN (RFC 3168, RFC 6040) and DSCP of a cached flow are what the slow path would make of them.

use crate::ONCACHE;
use oncache_testbed::{
    CachedFlow, Capture, Frame, Lab, set_ip_option,
    traffic::{Direction, Transfer},
};

/// Three hosts, so that their wire is a switch.
fn lab() -> Lab {
    Lab::hosts(3, env!("CARGO_BIN_EXE_oncache"))
}

/// Has the switch mark congestion on every `nth` VXLAN packet to beta that `rule` matches, as a
/// busy router would.
fn mark_on_the_way(lab: &Lab, rule: &str, nth: u32) {
    lab.switch().expect("three hosts have a switch").sh(&format!(
        "nft 'table bridge router {{ chain forward {{ type filter hook forward priority 0; \
         udp dport 4789 ip daddr 192.168.50.12 {rule} numgen inc mod {nth} == 0 ip ecn set ce; }}; }}'"
    ));
}

#[test]
fn congestion_on_the_wire_is_told_to_those_who_understand_it() {
    let flow = CachedFlow::warm(lab());
    mark_on_the_way(&flow.lab, "", 1);
    let arrived = Capture::on(&flow.server, "eth0")
        .filter(|frame| frame.udp().is_some())
        .start();
    for ecn in [1u8, 2, 3] {
        set_ip_option(&flow.sender, libc::IP_TOS, &i32::from(ecn).to_ne_bytes());
        for _ in 0..3 {
            assert!(flow.asks(b"capable"), "ECN {ecn}");
        }
        let (answered, [_, beta]) = flow.counted(|| flow.asks(b"capable"));
        assert!(answered, "ECN {ecn}");
        assert_eq!(
            beta.get("ingress", "hit"),
            1,
            "ECN {ecn} is no reason to leave the fast path"
        );
    }
    let marks: Vec<u8> = arrived
        .stop()
        .frames
        .iter()
        .filter(|frame| !frame.outgoing)
        .filter_map(|frame| frame.view().ipv4())
        .map(|ip| {
            assert!(ip.checksum_ok(), "{:02x?}", ip.header());
            ip.ecn()
        })
        .collect();
    println!("marks of what arrived: {marks:?}");
    assert_eq!(marks, [3; 12]);

    set_ip_option(&flow.sender, libc::IP_TOS, &0i32.to_ne_bytes());
    let (answered, [_, beta]) = flow.counted(|| flow.asks(b"not capable"));
    assert!(!answered, "the kernel drops it: there is nobody to tell");
    assert_eq!(beta.get("ingress", "outer-congestion"), 1, "{beta}");
}

#[test]
fn every_dscp_arrives_and_none_shows_outside() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let inside = Capture::on(&flow.server, "eth0")
        .filter(|frame| frame.udp().is_some())
        .start();
    let wire = Capture::on(flow.lab.alpha(), "eth1")
        .filter(|frame| frame.vxlan().is_some())
        .start();
    let ((), [alpha, beta]) = flow.counted(|| {
        for dscp in 0..64 {
            set_ip_option(&flow.sender, libc::IP_TOS, &i32::to_ne_bytes(dscp << 2 | 1));
            assert!(flow.asks(b"priority"), "DSCP {dscp}");
        }
    });
    assert_eq!(
        (alpha.get("egress", "hit"), beta.get("ingress", "hit")),
        (64, 64)
    );
    let inner: Vec<(u8, u8)> = inside
        .stop()
        .frames
        .iter()
        .filter(|frame| !frame.outgoing)
        .filter_map(|frame| frame.view().ipv4().map(|ip| (ip.dscp(), ip.ecn())))
        .collect();
    assert_eq!(inner, (0..64).map(|dscp| (dscp, 1)).collect::<Vec<_>>());
    let outer: Vec<(u8, u8)> = wire
        .stop()
        .frames
        .iter()
        .filter(|frame| frame.outgoing)
        .filter_map(|frame| frame.view().ipv4().map(|ip| (ip.dscp(), ip.ecn())))
        .collect();
    assert_eq!(
        outer,
        [(0, 1); 64],
        "a VXLAN device with tos 0 copies ECN alone"
    );
}

#[test]
fn a_sender_hears_of_congestion() {
    let lab = lab();
    mark_on_the_way(&lab, "ip ecn ect0", 50);
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    for container in [&client, &server] {
        container.set_sysctl("net.ipv4.tcp_ecn", "1");
    }
    let arrived = Capture::on(&server, "eth0")
        .snap(96)
        .filter(|frame| frame.tcp().is_some())
        .start();
    let report = Transfer::new(&client, &server, 4010)
        .bytes(20 << 20)
        .direction(Direction::Forward)
        .start()
        .wait();
    println!("{report}");
    assert!(report.intact(), "{report}");
    let recording = arrived.stop();
    let count = |outgoing: bool, chosen: &dyn Fn(&Frame<'_>) -> bool| {
        let frames = recording
            .frames
            .iter()
            .filter(|frame| frame.outgoing == outgoing);
        frames.filter(|frame| chosen(&frame.view())).count()
    };
    let marked = count(false, &|frame| frame.ipv4().is_some_and(|ip| ip.ecn() == 3));
    // The receiver echoes a mark (ECE) until the sender answers it (CWR); RFC 3168, section 6.1.
    let echoed = count(true, &|frame| {
        frame.tcp().is_some_and(|tcp| tcp.flags().any(0x40))
    });
    let answered = count(false, &|frame| {
        frame.tcp().is_some_and(|tcp| tcp.flags().any(0x80))
    });
    let counters = lab.beta().counters();
    println!(
        "{marked} packets arrived marked, {echoed} echoes, {answered} answers; beta: {counters}"
    );
    assert!(
        marked > 3 && echoed >= marked && answered > 2,
        "the marks got lost"
    );
    assert_eq!(counters.get("ingress", "outer-congestion"), 0, "{counters}");
    assert!(counters.get("ingress", "hit") > 100, "{counters}");
}
