//! A faulty configuration is refused by `check` and by `run`: each fault in one line that says where
//! it is and what is wrong, and nothing on the host has changed.

use std::path::Path;

use crate::ONCACHE;
use oncache_testbed::{Host, Lab, assert_same, complaint};

/// What is changed in a good file, and what is said about it.
struct Fault {
    /// What is wrong, for people.
    what: &'static str,
    /// Text of the good file and what takes its place; at the end of the file if the text is empty.
    change: (&'static str, &'static str),
    /// The line that is complained about is the one with this text.
    line_of: &'static str,
    /// The offending value as it is quoted, and why it is refused.
    said: [&'static str; 2],
}

const fn fault(
    what: &'static str,
    change: (&'static str, &'static str),
    line_of: &'static str,
    said: [&'static str; 2],
) -> Fault {
    Fault {
        what,
        change,
        line_of,
        said,
    }
}

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    fault("unknown key", ("vni = 42", "vni = 42\nvxlan_id = 7"), "vxlan_id", ["vxlan_id \"7\"", "unknown key"]),
    fault("unknown table", ("", "[tunnel]\nkind = \"geneve\""), "[tunnel]", ["tunnel", "unknown key"]),
    fault("misspelt key", ("port = ", "prot = "), "prot = ", ["prot \"4789\"", "did you mean \"port\""]),
    fault("malformed TOML", ("vni = 42", "vni = = 42"), "vni = =", ["vni = = 42", "not valid TOML"]),
    fault("no string", ("\"10.42.1.0/24\"", "10"), "subnet = 10", ["subnet \"10\"", "must be a string"]),
    fault("missing key", ("vni = 42\n", ""), "[overlay]", ["overlay.vni", "missing"]),
    fault("bad CIDR", ("10.42.1.0/24", "10.42.1.0/33"), "10.42.1.0/33", ["\"10.42.1.0/33\"", "not an IPv4 network"]),
    fault("no prefix length", ("10.42.1.0/24", "10.42.1.0"), "\"10.42.1.0\"", ["\"10.42.1.0\"", "not an IPv4 network"]),
    fault("host bits set", ("10.42.1.0/24", "10.42.1.7/24"), "10.42.1.7/24", ["\"10.42.1.7/24\"", "write 10.42.1.0/24"]),
    fault("IPv6", ("10.42.1.0/24", "fd00::/64"), "fd00::/64", ["\"fd00::/64\"", "IPv6 is not supported"]),
    fault("no room", ("10.42.1.0/24", "10.42.1.0/31"), "10.42.1.0/31", ["\"10.42.1.0/31\"", "no room"]),
    fault("subnet outside the network", ("10.42.1.0/24", "10.43.1.0/24"), "10.43.1.0/24", ["\"10.43.1.0/24\"", "not inside overlay.network"]),
    fault("multicast", ("network = \"10.42.0.0/16\"", "network = \"224.0.0.0/4\"\n#"), "224.0.0.0/4", ["\"224.0.0.0/4\"", "multicast"]),
    fault("overlapping peers", ("", "[[peers]]\nname = \"gamma\"\naddress = \"192.168.50.13\"\nsubnet = \"10.42.2.128/25\""), "10.42.2.128/25", ["\"10.42.2.128/25\"", "overlaps peers.subnet 10.42.2.0/24"]),
    fault("peer overlapping own subnet", ("10.42.2.0/24", "10.42.0.0/22"), "10.42.0.0/22", ["\"10.42.0.0/22\"", "overlaps overlay.subnet"]),
    fault("duplicate peer name", ("", "[[peers]]\nname = \"beta\" # again\naddress = \"192.168.50.13\"\nsubnet = \"10.42.3.0/24\""), "# again", ["\"beta\"", "already the name of the peer"]),
    fault("duplicate peer address", ("", "[[peers]]\nname = \"gamma\"\naddress = \"192.168.50.12\" # again\nsubnet = \"10.42.3.0/24\""), "# again", ["\"192.168.50.12\"", "already the address of the peer"]),
    fault("own name as peer", ("name = \"beta\"", "name = \"alpha\" # peer"), "# peer", ["\"alpha\"", "this host's own name"]),
    fault("own address as peer", ("192.168.50.12", "192.168.50.11\" #"), "192.168.50.11\" #", ["\"192.168.50.11\"", "this host's own address"]),
    fault("peer inside the overlay", ("192.168.50.12", "10.42.9.9"), "10.42.9.9", ["\"10.42.9.9\"", "inside overlay.network"]),
    fault("MTU too small", ("mtu = \"auto\"", "mtu = 500"), "mtu = 500", ["\"500\"", "write 576 to 65535"]),
    fault("MTU too big", ("mtu = \"auto\"", "mtu = 1451"), "mtu = 1451", ["\"1451\"", "at most 1450"]),
    fault("missing underlay device", ("\"eth1\"", "\"eth7\""), "eth7", ["\"eth7\"", "no such device"]),
    fault("underlay without address", ("underlay = \"eth1\"\naddress = \"192.168.50.11\"", "underlay = \"bare\""), "bare", ["\"bare\"", "has no IPv4 address"]),
    fault("address not on the device", ("192.168.50.11", "192.168.50.99"), "192.168.50.99", ["\"192.168.50.99\"", "not an address of eth1"]),
    fault("loopback as address", ("192.168.50.11", "127.0.0.1"), "127.0.0.1", ["\"127.0.0.1\"", "loopback"]),
    fault("no underlay at all", ("underlay = \"eth1\"\n", ""), "[node]", ["node.underlay", "no default route"]),
    fault("mask too narrow", ("0x0fff0000", "0x007f0000"), "0x007f0000", ["\"0x007f0000\"", "7 bits wide, fewer than 8"]),
    fault("mask with a gap", ("0x0fff0000", "0x0f0f0000"), "0x0f0f0000", ["\"0x0f0f0000\"", "not one contiguous run"]),
    fault("lease too short", ("\"30s\"", "\"999ms\""), "999ms", ["\"999ms\"", "a lease lasts 1s to 10m"]),
    fault("lease too long", ("\"30s\"", "\"11m\""), "11m", ["\"11m\"", "a lease lasts 1s to 10m"]),
    fault("lease without unit", ("\"30s\"", "\"30\""), "lease = \"30\"", ["\"30\"", "not a length of time"]),
    fault("too few flows", ("flows = 65536", "flows = 63"), "flows = 63", ["\"63\"", "64 to 16777216"]),
    fault("too many flows", ("flows = 65536", "flows = 16777217"), "flows = 16777217", ["\"16777217\"", "64 to 16777216"]),
    fault("VNI zero", ("vni = 42", "vni = 0"), "vni = 0", ["\"0\"", "a VNI has 24 bits"]),
    fault("VNI of 25 bits", ("vni = 42", "vni = 16777216"), "vni = 16777216", ["\"16777216\"", "a VNI has 24 bits"]),
    fault("port zero", ("port = 4789", "port = 0"), "port = 0", ["\"0\"", "a UDP port"]),
    fault("port of 17 bits", ("port = 4789", "port = 65536"), "port = 65536", ["\"65536\"", "a UDP port"]),
    fault("way to attach", ("", "attach = \"xdp\""), "xdp", ["\"xdp\"", "no way to attach"]),
    fault("name with a line's end", ("name = \"alpha\"", "name = \"al\\npha\""), "name = \"al", ["\"al\\npha\"", "must not contain"]),
    fault("policy without action", ("", "[[policy]]\nfrom = \"web\""), "[[policy]]", ["policy.action", "missing"]),
    fault("policy's network", ("", "[[policy]]\naction = \"deny\"\nto = \"10.42.1.7/24\""), "to = ", ["\"10.42.1.7/24\"", "write 10.42.1.0/24"]),
    fault("policy's port", ("", "[[policy]]\naction = \"deny\"\nprotocol = \"udp\"\nports = [\n53,\n0,\n]"), "0,", ["policy.ports \"0\"", "0 is no port"]),
    fault("policy's protocol", ("", "[[policy]]\naction = \"deny\"\nprotocol = \"sctp\""), "sctp", ["\"sctp\"", "no protocol that rules know"]),
    fault("log level", ("", "[log]\nlevel = \"loud\""), "loud", ["log.level \"loud\"", "no level"]),
    fault("moved outside the network", ("subnet = \"10.42.2.0/24\"", "subnet = \"10.42.2.0/24\"\nmoved = [\"10.43.1.7\"]"), "moved = ", ["peers.moved \"10.43.1.7\"", "not inside overlay.network"]),
    fault("moved to where it is", ("subnet = \"10.42.2.0/24\"", "subnet = \"10.42.2.0/24\"\nmoved = [\"10.42.2.7\"]"), "moved = ", ["peers.moved \"10.42.2.7\"", "inside the peer's own subnet"]),
    fault("moved gateway", ("subnet = \"10.42.2.0/24\"", "subnet = \"10.42.2.0/24\"\nmoved = [\"10.42.1.1\"]"), "moved = ", ["peers.moved \"10.42.1.1\"", "the gateway has it"]),
    fault("moved twice", ("subnet = \"10.42.2.0/24\"", "subnet = \"10.42.2.0/24\"\nmoved = [\"10.42.1.7\", \"10.42.1.7\"]"), "moved = ", ["peers.moved \"10.42.1.7\"", "moved already"]),
    fault("moved network", ("subnet = \"10.42.2.0/24\"", "subnet = \"10.42.2.0/24\"\nmoved = [\"10.42.1.8/32\"]"), "moved = ", ["peers.moved \"10.42.1.8/32\"", "not an IPv4 address"]),
    fault("moved, no list", ("subnet = \"10.42.2.0/24\"", "subnet = \"10.42.2.0/24\"\nmoved = \"10.42.1.7\""), "moved = ", ["peers.moved \"10.42.1.7\"", "must be an array"]),
    fault("metrics", ("", "[metrics]\nlisten = \"127.0.0.1:9469\""), "[metrics]", ["metrics", "not supported by this version"]),
];

/// The number of the line of `text` with `part` in it.
fn line_of(text: &str, part: &str) -> usize {
    let found = text.lines().position(|line| line.contains(part));
    found.unwrap_or_else(|| panic!("no {part:?} in\n{text}")) + 1
}

/// What `check` and `run` both say of the file, in one line.
fn refusal(host: &Host, path: &Path) -> String {
    let path = path.to_str().expect("a path of ours");
    let lines = ["check", "run"].map(|command| {
        let arguments = [command, "--config", path];
        complaint(&arguments, &host.oncache(&arguments))
    });
    assert_eq!(lines[0], lines[1], "check and run agree");
    let [line, _] = lines;
    line
}

#[test]
fn each_fault_is_one_line_and_changes_nothing() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.sh("ip link add bare type veth peer name bare-peer");
    let good = host.default_config().to_string();
    let path = host.write_file("good.toml", &good);
    let path = path.to_str().expect("a path of ours");
    let checked = host.oncache_ok(&["check", "--config", path]);
    assert!(checked.contains("good.toml: node alpha"), "{checked}");
    let before = host.snapshot();
    for Fault {
        what,
        change: (from, to),
        line_of: part,
        said,
    } in FAULTS
    {
        let text = if from.is_empty() {
            format!("{good}{to}\n")
        } else {
            assert_eq!(good.matches(from).count(), 1, "{what}: {from}");
            good.replace(from, to)
        };
        let path = host.write_file("faulty.toml", &text);
        let line = refusal(host, &path);
        println!("{what}: {line}");
        let place = format!("oncache: {}:{}: ", path.display(), line_of(&text, part));
        assert!(line.starts_with(&place), "{what}: {place}...: {line}");
        for words in said {
            assert!(line.contains(words), "{what}: {words:?} in {line}");
        }
        assert_same(&before, &host.snapshot(), what);
    }
    println!("{} faults", FAULTS.len());
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_the_lines() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    let text = host.default_config().to_string();
    let changes = [
        ("10.42.1.0/24", "10.42.1.1/24"),
        ("vni = 42", "vni = 0"),
        ("port = ", "prot = "),
        ("\"30s\"", "\"soon\""),
    ];
    let text = changes
        .iter()
        .fold(text, |text, (from, to)| text.replace(from, to));
    let path = host.write_file("faulty.toml", &text);
    let path = path.to_str().expect("a path of ours");
    for command in ["check", "run"] {
        let output = host.oncache(&[command, "--config", path]);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{said}");
        let places: Vec<String> = changes
            .iter()
            .map(|(_, to)| format!("oncache: {path}:{}: ", line_of(&text, to)))
            .collect();
        assert_eq!(said.lines().count(), places.len(), "{said}");
        for (line, place) in said.lines().zip(places) {
            assert!(line.starts_with(&place), "{place}...: {line}");
        }
    }
}

#[test]
fn a_file_that_is_none_is_named() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    let before = host.snapshot();
    let binary = Path::new("/run/testbed/binary.toml");
    host.run(&["cp", "/bin/true", "/run/testbed/binary.toml"]);
    for (path, why) in [
        (Path::new("/run/testbed/no-such.toml"), "No such file"),
        (Path::new("/run/testbed"), "Is a directory"),
        (binary, "valid UTF-8"),
    ] {
        let line = refusal(host, path);
        println!("{line}");
        let place = format!(
            "oncache: {}: cannot read the configuration: ",
            path.display()
        );
        assert!(line.starts_with(&place) && line.contains(why), "{line}");
        assert!(line.contains("--config"), "what to do: {line}");
        assert_same(&before, &host.snapshot(), why);
    }
    let empty = host.write_file("empty.toml", "");
    let line = refusal(host, &empty);
    println!("{line}");
    assert!(line.contains("empty.toml:1: overlay: missing"), "{line}");
}
