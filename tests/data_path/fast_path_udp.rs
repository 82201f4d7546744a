//! UDP flows by the fast path, and the datagrams that have to take the slow one whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use oncache_testbed::{
    Capture, Container, Lab,
    traffic::{Datagrams, Rounds},
};

#[test]
fn request_and_response_bypass_the_slow_path() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let watched = |device| {
        Capture::on(lab.beta(), device)
            .filter(|frame| {
                frame
                    .udp()
                    .is_some_and(|udp| udp.destination_port() == 6001)
            })
            .start()
    };
    let (bridge, vxlan) = (watched("oncache0"), watched("oncache-vx0"));
    let before = lab.beta().counters();

    let report = Rounds::new(5000).udp(&client, &server, 6001);

    println!("{report}");
    assert_eq!(
        (report.completed, report.lost, report.wrong),
        (5000, 0, 0),
        "{report}"
    );
    let counted = lab.beta().counters().since(&before);
    println!("beta: {counted}");
    // The first rounds teach; the lease is not over before the last.
    for (device, capture) in [("oncache0", bridge), ("oncache-vx0", vxlan)] {
        let recording = capture.stop();
        println!("{device} of beta: {} requests", recording.frames.len());
        assert!(
            (1..=4).contains(&recording.frames.len()),
            "{device}: {}",
            recording.frames.len()
        );
    }
    assert!(counted.get("ingress", "hit") >= 4996, "{counted}");
    assert!(counted.get("egress", "hit") >= 4996, "{counted}");
}

#[test]
fn datagrams_in_fragments_arrive_whole() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    // Established and cached by small datagrams of the same flow's hosts first.
    let warm = Rounds::new(100).udp(&client, &server, 6002);
    assert_eq!(warm.lost, 0, "{warm}");
    let before = lab.beta().counters();

    let report = Datagrams::new(500, 8000).run(&client, &server, 6003);

    println!("{report}");
    assert_eq!((report.sent, report.whole), (500, 500), "{report}");
    let counted = lab.beta().counters().since(&before);
    println!("beta: {counted}");
    assert!(
        counted.get("ingress", "fragment") >= 500 * 6,
        "fragments are counted: {counted}"
    );
    assert_eq!(lab.beta().counters().get("ingress", "helper-failed"), 0);
}

#[test]
fn segmented_datagrams_arrive_whole() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let before: Vec<_> = lab
        .all()
        .iter()
        .map(oncache_testbed::Host::counters)
        .collect();

    // Ten segments a send, by UDP_SEGMENT.
    let report = Datagrams::segmented(5000, 1400, 10).run(&client, &server, 6004);

    println!("{report}");
    assert_eq!(
        (report.sent, report.whole, report.damaged),
        (5000, 5000, 0),
        "{report}"
    );
    for (host, before) in lab.all().iter().zip(&before) {
        println!("{}: {}", host.name, host.counters().since(before));
    }
    // The wire keeps aggregates, so they come encapsulated, and go slow where they arrive.
    let counted = lab.beta().counters().since(&before[1]);
    assert!(counted.get("ingress", "udp-aggregate") >= 100, "{counted}");
}

/// Sends `count` times `segments` datagrams of 1,400 bytes by one call each (`UDP_SEGMENT`) in a
/// flow that is on the fast path already, and returns the sizes in which they arrive.
fn send_aggregates(
    client: &Container,
    server: &Container,
    count: usize,
    segments: usize,
) -> Vec<usize> {
    let address = SocketAddr::from((server.ip, 6005));
    let receiver = server.enter(|| UdpSocket::bind(address).expect("bind in the server"));
    receiver
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("set a time-out");
    let sender = client.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind in the client"));
    sender.connect(address).expect("connect to the server");
    sender
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("set a time-out");
    let mut buffer = vec![0; 65536];
    for _ in 0..20 {
        sender.send(b"warm").expect("send to the server");
        let (_, from) = receiver
            .recv_from(&mut buffer)
            .expect("receive in the server");
        receiver.send_to(b"warm", from).expect("answer the client");
        sender.recv(&mut buffer).expect("receive in the client");
    }
    let size: libc::c_int = 1400;
    // SAFETY: the option's value is an int that lives through the call.
    let set = unsafe {
        libc::setsockopt(
            sender.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            4,
        )
    };
    assert_eq!(set, 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
    let mut sizes = Vec::new();
    for _ in 0..count {
        sender
            .send(&vec![7; 1400 * segments])
            .expect("send an aggregate");
        for _ in 0..segments {
            match receiver.recv(&mut buffer) {
                Ok(size) => sizes.push(size),
                Err(_) => return sizes,
            }
        }
    }
    sizes
}

#[test]
fn aggregates_of_a_cached_flow_arrive_whole() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");

    let sizes = send_aggregates(&client, &server, 200, 10);

    let (out, into) = (lab.alpha().counters(), lab.beta().counters());
    println!(
        "{} datagrams arrived; alpha: {out}; beta: {into}",
        sizes.len()
    );
    assert_eq!(sizes, vec![1400; 2000]);
    assert!(
        out.get("egress", "hit") >= 200,
        "sent by the fast path: {out}"
    );
    assert!(
        into.get("ingress", "udp-aggregate") >= 200,
        "received by the slow one: {into}"
    );
}

/// Their packets have no hash: the fast path takes the port that the slow one made of the flow.
#[test]
fn flows_of_unconnected_sockets_keep_their_outer_source_ports() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let sockets = |container: &Container, ports: std::ops::Range<u16>| -> Vec<UdpSocket> {
        let bound = |port| {
            let socket = UdpSocket::bind((container.ip, port)).expect("bind in the container");
            let timeout = Some(Duration::from_secs(2));
            socket.set_read_timeout(timeout).expect("set a time-out");
            socket
        };
        container.enter(|| ports.map(bound).collect())
    };
    let (senders, receivers) = (sockets(&client, 6100..6116), sockets(&server, 6200..6216));
    let wire = Capture::on(lab.alpha(), "eth1")
        .snap(128)
        .filter(|frame| {
            frame
                .vxlan()
                .is_some_and(|vxlan| vxlan.inner.udp().is_some())
        })
        .start();
    let mut buffer = [0; 64];
    for _ in 0..50 {
        for (sender, receiver) in senders.iter().zip(&receivers) {
            let to = receiver.local_addr().expect("bound");
            sender.send_to(b"question", to).expect("send");
            let (_, from) = receiver.recv_from(&mut buffer).expect("a question");
            receiver.send_to(b"answer", from).expect("answer");
            sender.recv_from(&mut buffer).expect("an answer");
        }
    }
    let recording = wire.stop();

    let mut outer = BTreeMap::<(bool, u16), BTreeSet<u16>>::new();
    for frame in &recording.frames {
        let view = frame.view();
        let udp = view.udp().expect("VXLAN is in UDP");
        let vxlan = view.vxlan().expect("as filtered");
        let inner = vxlan.inner.udp().expect("as filtered");
        let flow = (frame.outgoing, inner.source_port());
        outer.entry(flow).or_default().insert(udp.source_port());
    }
    let hits = lab.alpha().counters().get("egress", "hit");
    println!(
        "{} packets, {hits} sent by the fast path; outer ports {outer:?}",
        recording.frames.len()
    );
    assert_eq!(recording.frames.len(), 2 * 16 * 50);
    assert!(hits >= 16 * 47, "{hits}");
    assert_eq!(outer.len(), 2 * 16);
    assert!(outer.values().all(|ports| ports.len() == 1), "{outer:?}");
    // Different flows go different ways; both directions of one have one hash.
    let different: BTreeSet<_> = outer.values().flatten().collect();
    assert!(different.len() > 8, "{different:?}");
}
