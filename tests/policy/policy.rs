//! What rules of the network policy stop and let through: between hosts, between containers of one
//! host, and between a container and its host.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use crate::ONCACHE;
use oncache_testbed::{
    Capture, Container, Host, Injector, Lab,
    policy::rule,
    traffic::Probe::{Icmp, Tcp, Udp},
    until_fast,
};

/// The flows that a rule's matching is tried with.
const ALL: [oncache_testbed::traffic::Probe; 5] =
    [Tcp(8080), Tcp(8090), Udp(8080), Udp(8090), Icmp];

/// Rules between two ends, with which of [`ALL`] they stop.
fn cases(from: &Container, to: &Container) -> Vec<(String, String, [bool; 5])> {
    let between = |action: &str, more: &[&str]| {
        let ends = [
            format!("from = \"{}\"", from.ip),
            format!("to = \"{}\"", to.ip),
        ];
        let mut lines: Vec<&str> = ends.iter().map(String::as_str).collect();
        lines.extend(more);
        rule(action, &lines)
    };
    let tcp = "protocol = \"tcp\"";
    let udp = "protocol = \"udp\"";
    let subnet = |ip: Ipv4Addr| {
        let [a, b, c, _] = ip.octets();
        format!("{a}.{b}.{c}.0/24")
    };
    let case = |what: &str, rules: String, stopped: [bool; 5]| (what.to_owned(), rules, stopped);
    vec![
        case("no rules", String::new(), [false; 5]),
        case("between the two", between("deny", &[]), [true; 5]),
        case(
            "the other way",
            {
                let (from, to) = (to.ip, from.ip);
                rule(
                    "deny",
                    &[&format!("from = \"{from}\""), &format!("to = \"{to}\"")],
                )
            },
            [false; 5],
        ),
        case(
            "TCP",
            between("deny", &[tcp]),
            [true, true, false, false, false],
        ),
        case(
            "a TCP port",
            between("deny", &[tcp, "ports = [8080]"]),
            [true, false, false, false, false],
        ),
        case(
            "UDP ports",
            between("deny", &[udp, "ports = [53, \"8085-8095\", \"8090-9000\"]"]),
            [false, false, false, true, false],
        ),
        case(
            "ICMP",
            between("deny", &["protocol = \"icmp\""]),
            [false, false, false, false, true],
        ),
        case(
            "subnets",
            rule(
                "deny",
                &[
                    &format!("from = \"{}\"", subnet(from.ip)),
                    &format!("to = \"{}\"", subnet(to.ip)),
                    udp,
                ],
            ),
            [false, false, true, true, false],
        ),
        case(
            "elsewhere",
            rule("deny", &["from = \"10.42.77.0/24\""]),
            [false; 5],
        ),
        case(
            "the first decides",
            format!(
                "{}{}",
                between("allow", &[tcp, "ports = [8090]"]),
                rule("deny", &["from = \"0.0.0.0/0\""])
            ),
            [true, false, true, true, true],
        ),
        case("everything", rule("deny", &[]), [true; 5]),
    ]
}

/// Tries all cases between two ends with the rules on `host`. Returns how many flows were tried.
fn try_cases(what: &str, host: &Host, from: &Container, to: &Container) -> usize {
    let mut tried = 0;
    for (case, rules, stopped) in cases(from, to) {
        host.apply_policy(&rules);
        thread::scope(|scope| {
            for (probe, stopped) in ALL.into_iter().zip(stopped) {
                let when = format!("{what}, {case}");
                scope.spawn(move || probe.expect(from, to, !stopped, &when));
                tried += 1;
            }
        });
    }
    host.clear_policy();
    tried
}

#[test]
fn rules_stop_what_they_name_and_nothing_else() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let one = alpha.add_container("one");
    let two = alpha.add_container("two");
    let far = beta.add_container("far");
    let near_host = alpha.gateway();
    let far_host = beta.gateway();
    // Beyond the masquerade: the other host's underlay address.
    alpha.set_sysctl("net.ipv4.conf.eth1.forwarding", "1");
    let outside = beta.as_container();
    for (what, host, from, to) in [
        ("at the sender's host", alpha, &one, &far),
        ("at the receiver's host", beta, &one, &far),
        ("on one host", alpha, &one, &two),
        ("container to host", alpha, &one, &near_host),
        ("host to container", alpha, &near_host, &one),
        ("container to the other host", beta, &one, &far_host),
        ("container to the world outside", alpha, &one, &outside),
    ] {
        let tried = try_cases(what, host, from, to);
        println!("{what}: {tried} flows as the rules say");
    }
    let after = alpha.run(&["nft", "list", "table", "inet", "oncache-policy"]);
    assert!(!after.contains("drop"), "no rules: {after}");
}

#[test]
fn a_name_stands_for_the_container_that_has_it() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let one = alpha.add_container("one");
    let far = beta.add_container("far");
    let said = alpha.apply_policy(&rule("deny", &["from = \"late\"", "to = \"10.42.2.0/24\""]));
    assert_eq!(
        said.trim(),
        "1 run-time rules in force, before 0 of the configuration"
    );
    Udp(8080).expect(&one, &far, true, "another container");
    let listed = alpha.oncache_ok(&["policy", "list"]);
    println!("{listed}");
    assert!(listed.contains("no such container here: late"), "{listed}");
    assert!(
        listed.contains("is not counted here"),
        "the fast path: {listed}"
    );

    // From its first packet on: one that is sent the moment the device is up is stopped, too.
    let late = alpha.add_netns("late");
    let sender = late.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
    sender
        .set_nonblocking(true)
        .expect("a socket that does not wait");
    let receiver = far.enter(|| UdpSocket::bind((far.ip, 8081)).expect("bind"));
    receiver
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a time-out");
    let (mut sent, mut refused) = (0, 0);
    thread::scope(|scope| {
        let adding =
            scope.spawn(|| alpha.add_container_with("late", &["--netns", "/run/netns/late"]));
        while !adding.is_finished() {
            match sender.send_to(b"early", SocketAddr::from((far.ip, 8081))) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
            thread::sleep(Duration::from_micros(200));
        }
        let late = adding.join().expect("added");
        assert_eq!(late.ip.octets()[..3], [10, 42, 1]);
        for probe in [Tcp(8080), Udp(8080), Icmp] {
            probe.expect(&late, &far, false, "the container is there");
        }
        let listed = alpha.oncache_ok(&["policy", "list"]);
        assert!(!listed.contains("no such container"), "{listed}");
        println!("{sent} datagrams sent and {refused} refused while the container was being added");
        assert!(receiver.recv(&mut [0; 16]).is_err(), "one got through");
        assert!(alpha.rule_packets(1) >= 3, "counted");

        // The address goes to another, the rule does not.
        alpha.remove_container("late");
        let listed = alpha.oncache_ok(&["policy", "list"]);
        assert!(listed.contains("no such container here: late"), "{listed}");
        let ip = late.ip.to_string();
        let heir = alpha.add_container_with("heir", &["--ip", &ip]);
        Udp(8082).expect(&heir, &far, true, "the address is another's");
    });
}

#[test]
fn a_denied_flow_does_not_come_back_by_its_replies() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    until_fast([alpha, beta], &client, &server);
    let asker = client.enter(|| UdpSocket::bind((client.ip, 6000)).expect("bind"));
    let answerer = server.enter(|| UdpSocket::bind((server.ip, 6001)).expect("bind"));
    let short = Some(Duration::from_millis(5));
    asker.set_read_timeout(short).expect("a time-out");
    answerer.set_read_timeout(short).expect("a time-out");
    let there = SocketAddr::from((server.ip, 6001));
    let back = SocketAddr::from((client.ip, 6000));
    let exchange = |rounds: usize| {
        let mut heard = [0; 2];
        let mut buffer = [0; 64];
        for _ in 0..rounds {
            // The server speaks on its own account, whether it was asked or not.
            answerer.send_to(b"back", back).expect("send");
            asker.send_to(b"there", there).expect("send");
            heard[0] += usize::from(answerer.recv(&mut buffer).is_ok());
            heard[1] += usize::from(asker.recv(&mut buffer).is_ok());
        }
        heard
    };
    // The client opens the flow.
    asker.send_to(b"there", there).expect("send");
    answerer
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a time-out");
    answerer.recv(&mut [0; 64]).expect("the first datagram");
    answerer.set_read_timeout(short).expect("a time-out");
    for (where_, host) in [("sender's", alpha), ("receiver's", beta)] {
        let open = exchange(50);
        assert!(open.iter().all(|heard| *heard >= 49), "before: {open:?}");
        host.apply_policy(&rule(
            "deny",
            &[
                "from = \"10.42.1.0/24\"",
                "to = \"10.42.2.0/24\"",
                "protocol = \"udp\"",
                "ports = [6001]",
            ],
        ));
        // What was on its way.
        let _ = exchange(1);
        let heard = exchange(100);
        println!("denied at the {where_} host: of 100 datagrams each way {heard:?} were heard");
        assert_eq!(heard, [0, 0], "{where_}");
        // Not the server's own flows to the client.
        Udp(6002).expect(&server, &client, true, "the other way");
        host.clear_policy();
        let again = exchange(100);
        assert!(again.iter().all(|heard| *heard >= 95), "after: {again:?}");
    }
    until_fast([alpha, beta], &client, &server);
}

#[test]
fn errors_go_with_the_flow_that_they_are_about() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    // A datagram to a port that nobody listens at comes back as an error of the socket.
    let refused = || {
        let socket = client.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
        socket.connect((server.ip, 7)).expect("connect");
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .expect("a time-out");
        socket.send(b"anybody?").expect("send");
        let error = socket.recv(&mut [0; 16]).expect_err("nobody answers");
        error.kind() == std::io::ErrorKind::ConnectionRefused
    };
    assert!(refused(), "without rules");
    alpha.apply_policy(&rule("deny", &["protocol = \"icmp\""]));
    assert!(refused(), "ICMP of its own is denied, not errors about UDP");
    Icmp.expect(&client, &server, false, "echo");
    let http = rule(
        "allow",
        &["to = \"10.42.2.0/24\"", "protocol = \"udp\"", "ports = [7]"],
    );
    alpha.apply_policy(&format!("{http}{}", rule("deny", &[])));
    assert!(refused(), "the flow is allowed, so are errors about it");
}

/// A frame from one container to another that says "psst", tagged if there is a tag.
fn whisper(from: &Container, mac: [u8; 6], to: Ipv4Addr, tag: &[u8], ether_type: u16) -> Vec<u8> {
    let [a, b, c, d] = from.ip.octets();
    let mut frame = mac.to_vec();
    frame.extend([0x0a, 0x63, a, b, c, d]);
    frame.extend(tag);
    frame.extend(ether_type.to_be_bytes());
    let mut header = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(from.ip.octets());
    header.extend(to.octets());
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded once is enough");
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    // UDP without a checksum.
    frame.extend([0x17, 0x70, 0, 9, 0, 12, 0, 0]);
    frame.extend(b"psst");
    frame
}

#[test]
fn nothing_gets_round_the_rules_on_one_host() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let alpha = lab.alpha();
    let one = alpha.add_container("one");
    let two = alpha.add_container("two");
    let [a, b, c, d] = two.ip.octets();
    let mac = [0x0a, 0x63, a, b, c, d];
    let ip = 0x0800;
    let elsewhere = Ipv4Addr::new(a, b, c, 200);
    // IPv6 with no next header (RFC 8200, section 4.7) between two link-local addresses.
    let mut six = whisper(&one, mac, two.ip, &[], 0x86dd);
    six.truncate(14);
    six.extend([0x60, 0, 0, 0, 0, 4, 59, 64]);
    for last in [1, 2] {
        six.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    six.extend(b"psst");
    #[rustfmt::skip]
    let frames = [
        ("plain", whisper(&one, mac, two.ip, &[], ip)),
        ("broadcast", whisper(&one, [0xff; 6], Ipv4Addr::new(a, b, c, 255), &[], ip)),
        ("multicast", whisper(&one, [1, 0, 0x5e, 0, 0, 1], Ipv4Addr::new(224, 0, 0, 1), &[], ip)),
        ("another address", whisper(&one, mac, elsewhere, &[], ip)),
        ("priority tag", whisper(&one, mac, two.ip, &[0x81, 0, 0, 0], ip)),
        ("VLAN tag", whisper(&one, mac, two.ip, &[0x81, 0, 0, 7], ip)),
        ("two tags", whisper(&one, mac, two.ip, &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 7], ip)),
        ("IPv6", six),
        ("unheard-of type", whisper(&one, mac, two.ip, &[], 0x88b5)),
    ];
    let injector = Injector::on(&one, "eth0");
    let heard = |when: &str| -> Vec<&str> {
        let capture = Capture::on(&two, "eth0")
            .filter(|frame| frame.bytes().windows(4).any(|bytes| bytes == b"psst"))
            .start();
        let mut heard = Vec::new();
        for (what, frame) in &frames {
            let before = capture.kept();
            injector.send(&[0; 10], frame).expect("sent");
            if capture.wait_kept(before + 1, Duration::from_millis(100)) {
                heard.push(*what);
            }
        }
        println!("{when}: of {} frames were heard {heard:?}", frames.len());
        heard
    };
    // The others are refused without any rule: no container sends them.
    let all = ["plain", "broadcast", "multicast", "another address"];
    assert_eq!(heard("without rules"), all);
    alpha.apply_policy(&rule("deny", &["from = \"one\"", "to = \"two\""]));
    assert_eq!(heard("denied"), [""; 0]);
    let list = alpha.oncache_json(&["policy", "list", "--json"]);
    println!("{}", alpha.oncache_ok(&["policy", "list"]));
    assert!(
        list["unjudged"].as_u64().expect("a count") >= 3,
        "all but the plain one: {list}"
    );
    assert_eq!(list["rules"][0]["packets"], 1, "the plain one: {list}");
    Icmp.expect(&two, &one, true, "addresses are still resolved");
    alpha.apply_policy(&rule("allow", &[]));
    assert_eq!(heard("nothing is denied"), all);
}

#[test]
fn a_bad_file_changes_nothing() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let alpha = lab.alpha();
    alpha.apply_policy(&rule("deny", &["protocol = \"icmp\""]));
    let before = alpha.snapshot();
    let path = alpha.write_file(
        "bad.toml",
        "[[policy]]\naction = \"deny\"\nports = [0]\n[node]\n",
    );
    let path = path.to_str().expect("a path of ours");
    let output = alpha.oncache(&["policy", "apply", path]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    assert_eq!(output.status.code(), Some(1));
    let faults = [
        ":3: policy.ports \"0\": 0 is no port",
        ":4: node: unknown key",
    ];
    assert_eq!(said.lines().count(), faults.len(), "{said}");
    for (line, fault) in said.lines().zip(faults) {
        assert!(line.contains(&format!("{path}{fault}")), "{fault}: {line}");
    }
    let absent = alpha.refused(&["policy", "apply", "/run/testbed/absent.toml"]);
    assert!(absent.contains("cannot read the rules"), "{absent}");
    oncache_testbed::assert_same(&before, &alpha.snapshot(), "after two bad files");
}
