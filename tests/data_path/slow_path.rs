//! What must not be cached is seen on the slow path, packet by packet.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread::sleep,
    time::Duration,
};

use oncache_testbed::{
    Capture, Container, Frame, Host, Lab, PATIENCE, RunningCapture, eventually,
    traffic::{Connections, Datagrams, Direction, Rounds, transfer},
};

/// A capture of the TCP or UDP packets to or from `port` on a device, inside VXLAN on the wire.
fn watch(host: &Host, device: &str, port: u16) -> RunningCapture {
    let of_port = move |frame: &Frame<'_>| {
        let tcp = frame
            .tcp()
            .map(|tcp| [tcp.source_port(), tcp.destination_port()]);
        let udp = frame
            .udp()
            .map(|udp| [udp.source_port(), udp.destination_port()]);
        tcp.or(udp).is_some_and(|ports| ports.contains(&port))
    };
    Capture::on(host, device)
        .snap(160)
        .filter(move |frame| match frame.vxlan() {
            Some(vxlan) => of_port(&vxlan.inner),
            None => of_port(frame),
        })
        .start()
}

/// Packets of the flow that a capture kept, and whether it is complete.
fn count(capture: RunningCapture) -> usize {
    let recording = capture.stop();
    assert_eq!(recording.lost, 0, "the capture is not complete");
    recording.frames.len()
}

#[test]
fn with_the_cache_off_every_packet() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    for host in lab.all() {
        host.write_config(&host.default_config().cache(false).to_string());
    }
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let captures =
        ["eth1", "oncache-vx0", "oncache0"].map(|device| watch(lab.alpha(), device, 8001));

    let report = transfer(&client, &server, 8001, 20 << 20, Direction::Both);

    println!("{report}");
    assert!(report.intact(), "{report}");
    let [wire, vxlan, bridge] = captures.map(count);
    println!("wire {wire}, VXLAN device {vxlan}, bridge {bridge}");
    assert!(wire > 500, "the wire shows the flow");
    assert_eq!((vxlan, bridge), (wire, wire));
    let status = lab.alpha().oncache_json(&["status", "--json"]);
    assert!(status["cache"].is_null(), "{status}");
    let snapshot = format!("{:?}", lab.alpha().snapshot());
    assert!(
        !snapshot.contains("egress"),
        "no program is attached: {snapshot}"
    );
}

#[test]
fn before_a_flow_is_established_every_packet() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let captures =
        ["eth1", "oncache-vx0", "oncache0"].map(|device| watch(lab.beta(), device, 8002));

    // One way only: without an answer conntrack never calls the flow established.
    let report = Datagrams::new(300, 500).run(&client, &server, 8002);

    println!("{report}");
    assert_eq!(report.whole, 300, "{report}");
    let [wire, vxlan, bridge] = captures.map(count);
    println!("wire {wire}, VXLAN device {vxlan}, bridge {bridge}");
    assert_eq!((wire, vxlan, bridge), (300, 300, 300));
    for host in lab.all() {
        let counters = host.counters();
        println!("{}: {counters}", host.name);
        for program in ["egress", "ingress"] {
            assert_eq!(counters.get(program, "hit"), 0, "{}: {counters}", host.name);
        }
    }
    assert_eq!(
        lab.alpha().counters().get("egress_init", "not-established"),
        300
    );
}

/// Drops packets to a port where the receiving host forwards them, by somebody else's table.
fn deny(host: &Host, protocol: &str, port: u16) {
    host.sh(&format!(
        "nft 'table inet firewall {{ chain forward {{ type filter hook forward priority -5; \
         {protocol} dport {port} counter drop; }}; }}'"
    ));
}

#[test]
fn a_denied_flow_never_gets_past_the_rule() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    deny(lab.beta(), "tcp", 8003);
    let arrived = Capture::on(&server, "eth0")
        .filter(|frame| {
            frame
                .tcp()
                .is_some_and(|tcp| tcp.destination_port() == 8003)
        })
        .start();
    let before: Vec<_> = lab.all().iter().map(Host::counters).collect();

    let mut attempt = Connections::new(3, 1);
    attempt.patience = Duration::from_secs(2);
    let report = attempt.run(&client, &server, 8003);

    println!("{report}");
    assert_eq!(report.completed, 0, "{report}");
    assert_eq!(arrived.stop().frames.len(), 0, "a denied packet arrived");
    for (host, before) in lab.all().iter().zip(&before) {
        let counted = host.counters().since(before);
        println!("{}: {counted}", host.name);
        assert_eq!(
            (counted.get("egress", "hit"), counted.get("ingress", "hit")),
            (0, 0)
        );
    }
    // The rule is what stopped them: another port gets through.
    let open = Connections::new(3, 1).run(&client, &server, 8004);
    assert_eq!(open.completed, 3, "{open}");
}

/// A conversation that goes on until it is over.
#[derive(Default)]
struct Talk {
    over: AtomicBool,
    /// Requests sent, and how many of them when the last one arrived.
    sent: AtomicU64,
    sent_then: AtomicU64,
}

impl Talk {
    /// Sends datagrams every millisecond and answers them.
    fn converse(&self, client: &Container, server: &Container, port: u16) {
        let patience = Some(Duration::from_millis(1));
        let receiver =
            server.enter(|| UdpSocket::bind((server.ip, port)).expect("bind in the server"));
        receiver.set_read_timeout(patience).expect("set a time-out");
        let sender = client.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind in the client"));
        sender
            .connect((server.ip, port))
            .expect("connect to the server");
        let mut buffer = [0; 64];
        while !self.over.load(Relaxed) {
            sender.send(b"request").expect("send to the server");
            let sent = self.sent.fetch_add(1, Relaxed) + 1;
            if let Ok((_, from)) = receiver.recv_from(&mut buffer) {
                self.sent_then.store(sent, Relaxed);
                receiver
                    .send_to(b"answer", from)
                    .expect("answer the client");
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// How many requests in a row have not arrived.
    fn unheard(&self) -> u64 {
        let then = self.sent_then.load(Relaxed);
        self.sent.load(Relaxed).saturating_sub(then)
    }
}

/// Ends a conversation, also where the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_flow_denied_later_leaves_the_fast_path() {
    /// Less than the lease of 15 s, which alone would end it, and patient with a busy machine.
    const SOON: Duration = Duration::from_secs(5);
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let talk = Talk::default();
    std::thread::scope(|scope| {
        scope.spawn(|| talk.converse(&client, &server, 8005));
        let _over = Over(&talk.over);
        eventually("it is on the fast path", PATIENCE, || {
            lab.beta().counters().get("ingress", "hit") > 100
        });
        deny(lab.beta(), "udp", 8005);
        let silent = eventually("a denied flow is silent", SOON, || talk.unheard() > 50);
        println!("fifty requests in a row had not arrived {silent:?} after nft had returned");
        let sent = talk.sent.load(Relaxed);
        eventually("it goes on asking", PATIENCE, || {
            talk.sent.load(Relaxed) > sent + 200
        });
        assert!(talk.unheard() > 200, "it has come through again");
    });
    let again = Rounds::new(100).udp(&client, &server, 8006);
    assert_eq!(again.lost, 0, "other flows go on: {again}");
}
