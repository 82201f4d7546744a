//! Aggregates that the receiving host makes (GRO) and those that the sending one must split itself.

use oncache_testbed::{
    Capture, Lab,
    traffic::{Datagrams, Direction, Rounds, Transfer},
};

/// The wire carries single segments, and the receiving ends put them together again, as NICs do that
/// know nothing of tunnels.
fn lab() -> Lab {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    for host in lab.all() {
        host.run(&[
            "ethtool",
            "-K",
            "eth1",
            "gro",
            "on",
            "tso",
            "off",
            "gso",
            "off",
            "tx-udp-segmentation",
            "off",
            "tx-udp_tnl-segmentation",
            "off",
        ]);
    }
    lab.start();
    lab
}

#[test]
fn tcp_is_split_on_the_wire_and_put_together_behind_it() {
    let lab = lab();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let wire = Capture::on(lab.alpha(), "eth1")
        .snap(128)
        .filter(|frame| frame.vxlan().is_some())
        .start();
    let arrived = Capture::on(&server, "eth0")
        .snap(128)
        .filter(|frame| frame.tcp().is_some())
        .start();

    let report = Transfer::new(&client, &server, 2001)
        .bytes(64 << 20)
        .direction(Direction::Both)
        .start()
        .wait();

    println!("{report}");
    assert!(report.intact(), "{report}");
    let longest = |frames: &[oncache_testbed::CapturedFrame], outgoing: bool| {
        let chosen = frames.iter().filter(|frame| frame.outgoing == outgoing);
        chosen.map(|frame| frame.length).max().unwrap_or(0)
    };
    let (wire, arrived) = (wire.stop(), arrived.stop());
    let (sent, received) = (longest(&wire.frames, true), longest(&arrived.frames, false));
    let counters = lab.beta().counters();
    println!("longest frame sent {sent}, received in the container {received}; beta: {counters}");
    assert!(counters.get("ingress", "hit") > 1000, "{counters}");
    assert!(
        received > 1464,
        "GRO made no aggregate: the test shows nothing"
    );
}

#[test]
fn udp_segments_arrive_whole_with_gro_on_the_way() {
    let lab = lab();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let warm = Rounds::new(200).udp(&client, &server, 2002);
    assert_eq!(warm.lost, 0, "{warm}");
    // 14,000 bytes by one call, in segments of 1,400.
    let report = Datagrams::segmented(5000, 1400, 10).run(&client, &server, 2003);
    let counters = lab.beta().counters();
    println!("{report}; beta: {counters}");
    assert_eq!(
        (report.sent, report.whole, report.damaged),
        (5000, 5000, 0),
        "{report}"
    );
}
