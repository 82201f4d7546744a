//! An established TCP flow leaves bridge, netfilter and VXLAN device behind.

use std::time::Duration;

use oncache_testbed::{
    Capture, Container, Frame, Host, Lab, RunningCapture, TcpFlags,
    traffic::{Direction, Transfer},
};

const MEGABYTE: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A data segment of the flow to or from `port`. One that ends the connection may carry data too,
/// and takes the slow path for it.
fn is_data(frame: &Frame<'_>, port: u16) -> bool {
    frame.tcp().is_some_and(|tcp| {
        [tcp.source_port(), tcp.destination_port()].contains(&port)
            && tcp.payload_length() > 0
            && !tcp.flags().any(TcpFlags::FIN)
    })
}

/// Captures of the flow's data segments where the slow path would show them.
fn watch_slow_path(host: &Host, port: u16) -> [(String, RunningCapture); 2] {
    ["oncache0", "oncache-vx0"].map(|device| {
        let capture = Capture::on(host, device)
            .filter(move |frame| is_data(frame, port))
            .start();
        (format!("{device} of {}", host.name), capture)
    })
}

/// A capture of the flow's data segments on the wire.
fn watch_underlay(host: &Host, port: u16) -> RunningCapture {
    let encapsulated = move |frame: &Frame<'_>| {
        frame
            .vxlan()
            .is_some_and(|vxlan| is_data(&vxlan.inner, port))
    };
    Capture::on(host, "eth1")
        .snap(128)
        .filter(encapsulated)
        .start()
}

fn transfer(from: &Container, to: &Container, port: u16) -> Transfer {
    Transfer::new(from, to, port)
        .direction(Direction::Both)
        .pace(50 * MEGABYTE)
}

#[test]
fn data_segments_bypass_the_slow_path() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let before: Vec<_> = lab.all().iter().map(Host::counters).collect();

    let running = transfer(&client, &server, 5001).start();
    assert!(
        running.wait_progress(2 * MEGABYTE, PATIENCE),
        "the transfer does not begin"
    );
    let slow: Vec<_> = lab
        .all()
        .iter()
        .flat_map(|host| watch_slow_path(host, 5001))
        .collect();
    let wire = watch_underlay(lab.alpha(), 5001);
    let unwatched = running.progress();
    // However long the captures took to begin.
    assert!(
        running.wait_progress(150 * MEGABYTE, 2 * PATIENCE),
        "the transfer does not go on"
    );
    let report = running.stop();

    println!("{report}");
    assert!(report.intact(), "{report}");
    let watched = report.received() - unwatched;
    let recording = wire.stop();
    println!("{unwatched} bytes before the captures, {watched} while they ran");
    assert_eq!(recording.lost, 0, "the capture of the wire is not complete");
    let sent = recording
        .frames
        .iter()
        .filter(|frame| frame.outgoing)
        .count();
    let received = recording.frames.len() - sent;
    println!("on alpha's wire: {sent} data packets out, {received} in");
    assert!(
        sent > 1000 && received > 1000,
        "the wire does not show the flow"
    );
    for (device, capture) in slow {
        let recording = capture.stop();
        println!(
            "{device}: {} of its {} packets are data of the flow",
            recording.frames.len(),
            recording.seen
        );
        assert_eq!(recording.frames.len(), 0, "{device} shows data segments");
    }
    for (host, before) in lab.all().iter().zip(&before) {
        let counted = host.counters().since(before);
        println!("{}: {counted}", host.name);
        let (out, into) = if host.name == "alpha" {
            (sent, received)
        } else {
            (received, sent)
        };
        assert!(
            counted.get("egress", "hit") >= out as u64,
            "{}: {counted}",
            host.name
        );
        assert!(
            counted.get("ingress", "hit") >= into as u64,
            "{}: {counted}",
            host.name
        );
    }
}

#[test]
fn the_wire_carries_plain_vxlan() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    // Single packets only, with their checksums filled in: every one is checked as a whole.
    for container in [&client, &server] {
        container.run(&[
            "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off",
        ]);
    }
    let wire = Capture::on(lab.alpha(), "eth1")
        .filter(|frame| frame.vxlan().is_some())
        .start();
    let report = Transfer::new(&client, &server, 5002)
        .bytes(4 * MEGABYTE)
        .direction(Direction::Both)
        .pace(8 * MEGABYTE)
        .start()
        .wait();
    assert!(report.intact(), "{report}");
    let recording = wire.stop();
    let hits = lab.alpha().counters().get("egress", "hit");
    println!(
        "{} packets on the wire, {hits} of them sent by the fast path",
        recording.frames.len()
    );
    assert!(hits > 2000, "too few packets took the fast path: {hits}");
    let mut ports = std::collections::BTreeSet::new();
    for frame in &recording.frames {
        let view = frame.view();
        let outer = view.ipv4().expect("VXLAN is in IPv4");
        let udp = view.udp().expect("VXLAN is in UDP");
        let vxlan = view.vxlan().expect("the filter passes VXLAN only");
        let inner = vxlan.inner.ipv4().expect("only the containers speak");
        let described = format!("frame {:02x?}", &frame.bytes[..frame.bytes.len().min(118)]);
        assert!(outer.checksum_ok() && inner.checksum_ok(), "{described}");
        assert_eq!(outer.total_length() + 14, frame.length, "{described}");
        assert_eq!(
            udp.payload_length() + 28,
            outer.total_length(),
            "{described}"
        );
        assert_eq!(
            inner.total_length() + 50,
            outer.total_length(),
            "{described}"
        );
        assert_eq!(
            (udp.checksum(), outer.ttl(), outer.dscp()),
            (0, 64, 0),
            "{described}"
        );
        assert_eq!(vxlan.header, [8, 0, 0, 0, 0, 0, 42, 0], "{described}");
        assert_eq!(
            inner.ttl(),
            63,
            "one hop was taken on the sending host: {described}"
        );
        assert_eq!(inner.transport_checksum_ok(), Some(true), "{described}");
        assert_eq!(
            vxlan.inner.destination().map(|mac| mac.0[..2].to_vec()),
            Some(vec![0x0a, 0x6f])
        );
        if frame.outgoing {
            ports.insert(udp.source_port());
        }
    }
    println!("outer source ports: {ports:?}");
    assert!(
        ports.iter().all(|port| (32768..=60999).contains(port)),
        "{ports:?}"
    );
    assert_eq!(
        ports.len(),
        1,
        "the port is stable within the flow, on both paths"
    );
}
