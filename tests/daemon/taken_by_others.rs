//! What the overlay wants and somebody else has: `check` and `run` say the same, in one line that names
//! what, which object, who has it and what to do; and nothing is touched.

use std::{
    net::{SocketAddr, UdpSocket},
    process,
};

use crate::ONCACHE;
use oncache_testbed::{Host, Lab, PATIENCE, assert_same, complaint, eventually};

/// A conflict: what makes it, what takes it away, and the words that its line has to have.
struct Taken {
    make: &'static str,
    undo: &'static str,
    words: &'static [&'static str],
}

const fn taken(make: &'static str, undo: &'static str, words: &'static [&'static str]) -> Taken {
    Taken { make, undo, words }
}

const VNI: &[&str] = &[
    "overlay.vni 42",
    "device theirs",
    "ip link del theirs",
    "on all hosts",
];
const PORT: &[&str] = &[
    "overlay.port 4789",
    "device theirs",
    "end that",
    "on all hosts",
];
const ROUTE: &[&str] = &[
    "route to 10.42.2.0/24",
    "another program's",
    "ip route del ",
];
const DEL: &str = "ip link del theirs";
const ROUTE_DEL: &str = "ip route del 10.42.2.0/24";

fn conflicts() -> Vec<Taken> {
    vec![
        taken(
            "ip link add theirs type vxlan id 42 dstport 4789 dev eth1",
            DEL,
            VNI,
        ),
        taken(
            "ip link add theirs type vxlan id 42 dstport 4789 dev eth1 local 192.168.50.11
             ip link set theirs up",
            DEL,
            VNI,
        ),
        // Of the device that carries nothing.
        taken(
            "ip link add theirs type vxlan id 42 dstport 9 dev eth1",
            DEL,
            &["overlay.vni 42", "device theirs", "UDP port 9"],
        ),
        taken(
            "ip link add theirs type vxlan external dstport 4789; ip link set theirs up",
            DEL,
            PORT,
        ),
        taken(
            "ip link add theirs type vxlan id 7 dstport 4789 dev eth1 gbp; ip link set theirs up",
            DEL,
            PORT,
        ),
        taken("ip route add 10.42.2.0/24 dev eth1", ROUTE_DEL, ROUTE),
        taken(
            "ip route add 10.42.2.0/24 via 192.168.50.12 proto static",
            ROUTE_DEL,
            &["route to 10.42.2.0/24", "via 192.168.50.12 dev eth1"],
        ),
        taken(
            "ip route add unreachable 10.42.2.0/24",
            "ip route del unreachable 10.42.2.0/24",
            &[
                "route to 10.42.2.0/24",
                "ip route del unreachable 10.42.2.0/24",
            ],
        ),
        taken(
            "ip route add 10.42.2.0/24 dev eth1 proto 79",
            ROUTE_DEL,
            ROUTE,
        ),
        taken(
            "ip route add 10.42.2.0/24 nexthop via 192.168.50.12 nexthop via 192.168.50.13",
            ROUTE_DEL,
            ROUTE,
        ),
        taken(
            "ip link add oncache0 type veth peer name theirs",
            DEL,
            &[
                "device oncache0",
                "a veth device",
                "is there and is not oncache's",
                "ip link del",
            ],
        ),
        taken(
            "ip link add oncache0 type bridge; ip link add theirs type veth peer name pair
             ip link set theirs master oncache0",
            "ip link del theirs; ip link del oncache0",
            &[
                "device oncache0",
                "a bridge with other ports (theirs)",
                "is there and is not oncache's",
            ],
        ),
        taken(
            "ip link add oncache-vx0 type bridge",
            "ip link del oncache-vx0",
            &[
                "device oncache-vx0",
                "a bridge device",
                "is there and is not oncache's",
                "ip link del",
            ],
        ),
        taken(
            "ip link add oncache-vx0 type vxlan id 5 dstport 5555 dev eth1",
            "ip link del oncache-vx0",
            &[
                "device oncache-vx0",
                "a VXLAN device with VNI 5",
                "is there and is not oncache's",
            ],
        ),
        taken(
            "ip link add oncache-room0 type veth peer name theirs",
            DEL,
            &[
                "device oncache-room0",
                "a veth device",
                "is there and is not oncache's",
                "ip link del",
            ],
        ),
        taken(
            "ip address add 10.42.1.1/24 dev eth1",
            "ip address del 10.42.1.1/24 dev eth1",
            &[
                "overlay.subnet 10.42.1.0/24",
                "device eth1",
                "10.42.1.1/24",
                "ip address del",
            ],
        ),
        taken(
            "ip address add 10.42.1.77/32 dev lo",
            "ip address del 10.42.1.77/32 dev lo",
            &["overlay.subnet 10.42.1.0/24", "device lo", "10.42.1.77/32"],
        ),
    ]
}

/// What looks like one of these and is none: what makes it and what takes it away.
const HARMLESS: &[(&str, &str)] = &[
    (
        "ip link add theirs type vxlan id 7 dstport 4789 dev eth1; ip link set theirs up",
        DEL,
    ),
    (
        "ip link add theirs type vxlan id 42 dstport 8472 dev eth1",
        DEL,
    ),
    ("ip link add theirs type vxlan external dstport 4789", DEL),
    (
        "ip route add 10.42.2.0/24 dev eth1 metric 100",
        "ip route del 10.42.2.0/24 metric 100",
    ),
    (
        "ip route add 10.42.2.0/24 dev eth1 table 77",
        "ip route flush table 77",
    ),
    (
        "ip route add 10.42.0.0/16 dev eth1",
        "ip route del 10.42.0.0/16",
    ),
    ("ip link add oncache0 type bridge", "true"),
];

/// What `check` says is missing, in order; none where it passes.
fn checked(host: &Host) -> Vec<String> {
    let config = host.config_path().display().to_string();
    let output = host.oncache(&["check", "--config", &config]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(str::trim_start);
    let missing: Vec<String> = lines
        .filter_map(|line| line.strip_prefix("MISSING"))
        .map(|line| line.trim_start().to_owned())
        .collect();
    assert_eq!(output.status.success(), missing.is_empty(), "{text}");
    missing
}

fn assert_refused(host: &Host, what: &str, words: &[&str]) {
    let before = host.snapshot();
    let missing = checked(host);
    assert_same(&before, &host.snapshot(), "check");
    let config = host.config_path().display().to_string();
    let output = host.oncache(&["run", "--config", &config]);
    let said = complaint(&["run"], &output);
    println!("{what}\n  {said}");
    assert_same(&before, &host.snapshot(), "a refused start");
    assert_eq!(missing, [said.trim_start_matches("oncache: ")], "{what}");
    for words in words {
        assert!(said.contains(words), "{what}: {words}: {said}");
    }
    // The kernel's own words say none of it.
    for words in ["File exists", "in use", "(17)", "(98)", "os error"] {
        assert!(!said.contains(words), "{what}: {words}: {said}");
    }
}

#[test]
fn check_and_run_refuse_the_same_in_the_same_words() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.write_config(&host.default_config().to_string());
    for Taken { make, undo, words } in conflicts() {
        host.sh(make);
        assert_refused(host, make, words);
        host.sh(undo);
        assert_eq!(checked(host), [""; 0], "after {undo}");
    }
    let holder = format!("process {}", process::id());
    for address in [
        "0.0.0.0:4789",
        "192.168.50.11:4789",
        "127.0.0.1:4789",
        "[::]:4789",
    ] {
        let address: SocketAddr = address.parse().expect("an address");
        let socket = host.enter(|| UdpSocket::bind(address)).expect("bound");
        let words = ["overlay.port 4789", &holder, "end that"];
        assert_refused(host, &format!("a socket at {address}"), &words);
        drop(socket);
        assert_eq!(checked(host), [""; 0], "without a socket at {address}");
    }
    // An address that has moved to a peer has a route of its own.
    let config = host.default_config().to_string();
    let config = config.replace(
        "name = \"beta\"",
        "name = \"beta\"\nmoved = [\"10.42.1.7\"]",
    );
    host.write_config(&config);
    host.sh("ip route add 10.42.1.7/32 dev eth1");
    assert_refused(
        host,
        "a route to what has moved",
        &["route to 10.42.1.7/32"],
    );
}

#[test]
fn what_is_not_in_the_way_is_left_alone() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.write_config(&host.default_config().to_string());
    for (make, undo) in HARMLESS {
        println!("{make}");
        host.sh(make);
        assert_eq!(checked(host), [""; 0], "{make}");
        host.start();
        // While it runs, and for one that takes its place.
        assert_eq!(checked(host), [""; 0], "{make}, running");
        host.kill9();
        assert_eq!(checked(host), [""; 0], "{make}, after it ran");
        host.oncache_ok(&["down"]);
        host.sh(undo);
    }
    let socket = host.enter(|| UdpSocket::bind("[::1]:4789")).expect("bound");
    assert_eq!(checked(host), [""; 0], "a socket of IPv6 alone");
    host.start();
    drop(socket);
}

#[test]
fn what_is_taken_while_the_daemon_runs_is_said_by_its_holder() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    host.add_container("web");
    let ways: &[(&str, &str, &[&str])] = &[
        (
            "route replace 10.42.2.0/24 dev eth1",
            "ip route del 10.42.2.0/24 dev eth1",
            &[
                "route to 10.42.2.0/24",
                "ip route del 10.42.2.0/24 dev eth1",
            ],
        ),
        (
            "link del oncache-vx0\nlink add theirs type vxlan id 42 dstport 4789 dev eth1",
            DEL,
            VNI,
        ),
        (
            "link del oncache-room0\nlink add oncache-room0 type veth peer name theirs",
            DEL,
            &[
                "device oncache-room0",
                "a veth device",
                "is there and is not oncache's",
            ],
        ),
        (
            "link set onc-web name elsewhere\nlink add onc-web type veth peer name theirs",
            DEL,
            &["container web", "elsewhere", "onc-web", "rename or remove"],
        ),
    ];
    for (batch, undo, words) in ways {
        let before = host.log().len();
        host.write_file("batch", batch);
        host.run(&["ip", "-batch", "/run/testbed/batch"]);
        let mut line = String::new();
        eventually(batch, PATIENCE, || {
            let said = host.log_since(before);
            let found = said.iter().find(|line| line.contains("reconcile: "));
            line = found.cloned().unwrap_or_default();
            found.is_some()
        });
        println!("{batch}\n  {line}");
        for words in *words {
            assert!(line.contains(words), "{batch}: {words}: {line}");
        }
        assert!(!line.contains("File exists"), "{line}");
        host.sh(undo);
        eventually("it is mended", PATIENCE, || {
            host.sh("ip link show oncache-vx0 && ip link show oncache-room0 && ip link show onc-web || true")
                .matches("mtu")
                .count()
                == 3
                && host.run(&["ip", "route"]).contains("10.42.2.0/24 via 10.42.2.0 dev oncache-vx0")
        });
    }
}
