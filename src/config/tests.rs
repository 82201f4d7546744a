#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use super::*;

/// A file right in every section; each faulty one below is this with one thing changed.
const GOOD: &str = r#"[node]
name = "alpha"
underlay = "eth1"
address = "192.168.50.11"
[overlay]
subnet = "10.42.1.0/24"
network = "10.42.0.0/16"
vni = 42
port = 4789
mtu = "auto"
[[peers]]
name = "beta"
address = "192.168.50.12"
subnet = "10.42.2.0/24"
[[peers]]
name = "gamma"
address = "192.168.50.13"
subnet = "10.42.3.0/24"
[cache]
enabled = true
flows = 65536
lease = "30s"
mark_mask = "0x0fff0000"
attach = "auto"
[log]
level = "info"
[container]
device = "auto"
"#;

/// The least a file must hold.
const MINIMAL: &str = r#"[overlay]
subnet = "10.42.1.0/24"
network = "10.42.0.0/16"
vni = 42
"#;

fn device(name: &str, index: u32, ipv4: &[&str]) -> DeviceFacts {
    DeviceFacts {
        name: name.to_owned(),
        index,
        mtu: 1500,
        mac: [0x02, 0, 0, 0, 0, u8::try_from(index).unwrap()],
        ipv4: ipv4.iter().map(|net| net.parse().unwrap()).collect(),
        ..DeviceFacts::default()
    }
}

fn facts() -> HostFacts {
    let mut lo = device("lo", 1, &["127.0.0.1/8"]);
    lo.mac = [0; 6];
    lo.mtu = 65536;
    HostFacts {
        hostname: "alpha.example.org".to_owned(),
        default_route_device: Some("eth0".to_owned()),
        devices: vec![
            lo,
            device("eth0", 2, &["203.0.113.7/24"]),
            device("eth1", 3, &["192.168.50.11/24", "192.168.51.11/24"]),
        ],
        chosen: None,
    }
}

impl ConfigFile {
    /// With the peers of the file itself.
    fn resolve_whole(&self, facts: &HostFacts) -> Result<Config, ConfigErrors> {
        self.resolve(facts, self.peers_in(&self.local_network(facts)))
    }
}

fn parse_text(text: &str) -> Result<ConfigFile, ConfigErrors> {
    parse(Path::new("oncache.toml"), text)
}

/// `GOOD` with the text `from`, which must be there once, replaced.
fn good_but(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} in GOOD");
    GOOD.replace(from, to)
}

/// Requires exactly one fault, on that line, with that text, in the shape every fault has.
fn expect_one(case: &str, errors: &ConfigErrors, line: usize, text: &str) {
    let shown = errors.to_string();
    assert_eq!(errors.0.len(), 1, "{case}: one fault, not:\n{shown}");
    assert_eq!(errors.0[0].line, Some(line), "{case}: {shown}");
    assert!(shown.contains(text), "{case}: {text:?} not in: {shown}");
    assert!(
        shown.starts_with(&format!("oncache.toml:{line}: ")),
        "{case}: {shown}"
    );
    assert!(shown.contains("; "), "{case}: says what to do: {shown}");
    assert!(!shown.contains('\n'), "{case}: one line: {shown}");
}

#[test]
fn a_good_file_resolves_to_what_it_says() {
    let config = parse_text(GOOD).unwrap().resolve_whole(&facts()).unwrap();
    let peer = |name: &str, last: u8, subnet: &str| Peer {
        name: name.to_owned(),
        address: Ipv4Addr::new(192, 168, 50, last),
        subnet: subnet.parse().unwrap(),
        moved: Vec::new(),
    };
    let expected = Config {
        node: Node {
            name: "alpha".to_owned(),
            underlay: "eth1".to_owned(),
            underlay_index: 3,
            underlay_mac: [2, 0, 0, 0, 0, 3],
            address: Ipv4Addr::new(192, 168, 50, 11),
        },
        overlay: Overlay {
            subnet: "10.42.1.0/24".parse().unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            vni: 42,
            port: 4789,
            mtu: 1450,
        },
        peers: vec![
            peer("beta", 12, "10.42.2.0/24"),
            peer("gamma", 13, "10.42.3.0/24"),
        ],
        container: Containers::default(),
        cache: Cache {
            enabled: true,
            flows: 65536,
            lease: Duration::from_secs(30),
            mark_mask: MarkMask::default(),
            attach: Attach::Auto,
            ignore_traffic_control: Vec::new(),
        },
        policy: vec![],
        log: Log {
            level: Some(LogLevel::Info),
        },
    };
    assert_eq!(config, expected);
    assert_eq!(config.overlay.gateway(), Ipv4Addr::new(10, 42, 1, 1));
}

#[test]
fn the_least_file_takes_its_defaults_from_the_host() {
    let config = parse_text(MINIMAL)
        .unwrap()
        .resolve_whole(&facts())
        .unwrap();
    assert_eq!(config.node.name, "alpha.example.org");
    assert_eq!(config.node.underlay, "eth0");
    assert_eq!(config.node.underlay_index, 2);
    assert_eq!(config.node.address, Ipv4Addr::new(203, 0, 113, 7));
    assert_eq!((config.overlay.port, config.overlay.mtu), (4789, 1450));
    assert!(config.peers.is_empty());
    assert!(config.cache.enabled);
    assert_eq!(config.cache.flows, 65536);
    assert_eq!(config.cache.lease, Duration::from_secs(30));
    assert_eq!(config.cache.mark_mask.bits(), 0x0fff_0000);
    assert_eq!(config.cache.attach, Attach::Auto);
    assert_eq!(config.container, Containers { device: None });
}

#[test]
fn the_example_is_the_good_file() {
    let example = include_str!("../../docs/config.example.toml");
    let mut example = parse_text(example)
        .unwrap()
        .resolve_whole(&facts())
        .unwrap();
    let rules: Vec<String> = example.policy.drain(..).map(|it| it.to_string()).collect();
    assert_eq!(
        rules,
        ["deny from 10.42.1.7/32 to 10.42.2.0/24 tcp 5432,8000-8100"]
    );
    assert_eq!(
        example,
        parse_text(GOOD).unwrap().resolve_whole(&facts()).unwrap()
    );
}

#[test]
fn the_guide_shows_the_least_file() {
    assert!(include_str!("../../docs/configuration.md").contains(MINIMAL));
}

#[test]
fn limits_themselves_are_allowed() {
    let cases = [
        ("vni = 42", "vni = 1"),
        ("vni = 42", "vni = 16777215"),
        ("port = 4789", "port = 1"),
        ("port = 4789", "port = 65535"),
        ("mtu = \"auto\"", "mtu = 576"),
        ("mtu = \"auto\"", "mtu = 1450"),
        ("flows = 65536", "flows = 64"),
        ("flows = 65536", "flows = 16_777_216"),
        ("lease = \"30s\"", "lease = \"1s\""),
        ("lease = \"30s\"", "lease = \"600s\""),
        ("lease = \"30s\"", "lease = \"1500ms\""),
        ("mark_mask = \"0x0fff0000\"", "mark_mask = 0xff"),
        ("attach = \"auto\"", "attach = \"clsact\""),
        ("attach = \"auto\"", "attach = \"tcx\""),
        ("device = \"auto\"", "device = \"veth\""),
        ("device = \"auto\"", "device = \"netkit\""),
        ("underlay = \"eth1\"", ""),
        ("subnet = \"10.42.3.0/24\"", "subnet = \"10.42.3.0/30\""),
        // Optional values left to their defaults.
        ("name = \"alpha\"\n", ""),
        ("address = \"192.168.50.11\"\n", ""),
        ("enabled = true\n", ""),
    ];
    let mut facts = facts();
    facts.default_route_device = Some("eth1".to_owned());
    for (from, to) in cases {
        let file = parse_text(&good_but(from, to));
        let resolved = file.and_then(|file| file.resolve_whole(&facts));
        assert!(resolved.is_ok(), "{to}: {}", resolved.unwrap_err());
    }
}

#[test]
fn inline_tables_and_dotted_keys_mean_the_same() {
    let text = r#"node = { name = "alpha", underlay = "eth1" }
overlay.subnet = "10.42.1.0/24"
overlay.network = "10.42.0.0/16"
overlay.vni = 0x2a
log.level = "info"
peers = [
  { name = "beta", address = "192.168.50.12", subnet = "10.42.2.0/24" },
  { name = "gamma", address = "192.168.50.13", subnet = "10.42.3.0/24" },
]
"#;
    let config = parse_text(text).unwrap().resolve_whole(&facts()).unwrap();
    assert_eq!(
        config,
        parse_text(GOOD).unwrap().resolve_whole(&facts()).unwrap()
    );

    let faulty = text.replace("10.42.3.0/24", "10.42.3.0/31");
    expect_one("inline", &parse_text(&faulty).unwrap_err(), 8, "no room");
}

#[test]
fn one_host_may_have_the_whole_network() {
    let text = MINIMAL.replace("10.42.1.0/24", "10.42.0.0/16");
    let config = parse_text(&text).unwrap().resolve_whole(&facts()).unwrap();
    assert_eq!(config.overlay.gateway(), Ipv4Addr::new(10, 42, 0, 1));
}

#[test]
fn faults_of_the_text() {
    #[rustfmt::skip]
    let cases: &[(&str, &str, &str, usize, &str)] = &[
        // name, of GOOD, replaced by, line, message
        ("unknown table", "[cache]", "[cahce]", 19, "cahce: unknown key; did you mean \"cache\"?"),
        ("strange table", "[cache]", "[quux]\n[cache]", 19, "quux: unknown key; remove it; valid here: node, overlay"),
        ("unknown key in node", "name = \"alpha\"", "nmae = \"alpha\"", 2, "node.nmae \"alpha\": unknown key; did you mean \"name\"?"),
        ("unknown key in overlay", "port = 4789", "ports = 4789", 9, "overlay.ports \"4789\": unknown key; did you mean \"port\"?"),
        ("unknown key in peers", "subnet = \"10.42.3.0/24\"", "subnet = \"10.42.3.0/24\"\ncolour = 1", 19, "peers.colour \"1\": unknown key; remove it"),
        ("unknown key in cache", "lease =", "leases =", 22, "did you mean \"lease\"?"),
        ("unknown key with newline", "port = 4789", "\"po\\nrt\" = 4789", 9, "overlay.\"po\\nrt\" \"4789\": unknown key"),
        ("syntax", "vni = 42", "vni = = 42", 8, "syntax \"vni = = 42\": not valid TOML: "),
        ("unclosed string", "name = \"beta\"", "name = \"beta", 12, "not valid TOML: "),
        ("duplicate key", "vni = 42", "vni = 42\nvni = 43", 9, "not valid TOML: duplicate key"),
        ("node no table", "[node]\nname = \"alpha\"\nunderlay = \"eth1\"\naddress = \"192.168.50.11\"", "node = \"alpha\"", 1, "node \"alpha\": must be a table; write [node]"),
        ("policy no tables", "[cache]", "[policy]\naction = \"deny\"\n[cache]", 19, "policy: must be an array of tables; write [[policy]]"),
        ("policy without action", "[cache]", "[[policy]]\nfrom = \"web\"\n[cache]", 19, "policy.action: missing; add a line such as action = \"deny\""),
        ("policy's action", "[cache]", "[[policy]]\naction = \"drop\"\n[cache]", 20, "policy.action \"drop\": no action; write \"allow\" or \"deny\""),
        ("unknown key in policy", "[cache]", "[[policy]]\naction = \"deny\"\nform = \"web\"\n[cache]", 21, "policy.form \"web\": unknown key; did you mean \"from\"?"),
        ("policy's network", "[cache]", "[[policy]]\naction = \"deny\"\nto = \"10.42.1.7/24\"\n[cache]", 21, "policy.to \"10.42.1.7/24\": has bits set beyond its prefix length 24; write 10.42.1.0/24"),
        ("policy's mistyped address", "[cache]", "[[policy]]\naction = \"deny\"\nfrom = \"10.42.1.300\"\n[cache]", 21, "policy.from \"10.42.1.300\": not an IPv4 network"),
        ("policy's IPv6", "[cache]", "[[policy]]\naction = \"deny\"\nfrom = \"fd00::/8\"\n[cache]", 21, "IPv6 is not supported by this version"),
        ("policy's party no string", "[cache]", "[[policy]]\naction = \"deny\"\nfrom = 7\n[cache]", 21, "policy.from \"7\": must be a string"),
        ("policy's protocol", "[cache]", "[[policy]]\naction = \"deny\"\nprotocol = \"sctp\"\nports = [1]\n[cache]", 21, "policy.protocol \"sctp\": no protocol that rules know"),
        ("policy's ports of ICMP", "[cache]", "[[policy]]\naction = \"deny\"\nprotocol = \"icmp\"\nports = [1]\n[cache]", 22, "policy.ports: icmp has no ports; set protocol"),
        ("policy's ports of nothing", "[cache]", "[[policy]]\naction = \"deny\"\nports = [1]\n[cache]", 21, "policy.ports: ports without a protocol"),
        ("policy's ports no list", "[cache]", "[[policy]]\naction = \"deny\"\nprotocol = \"tcp\"\nports = 80\n[cache]", 22, "policy.ports \"80\": must be an array; write ports = [5432"),
        ("policy's empty ports", "[cache]", "[[policy]]\naction = \"deny\"\nprotocol = \"tcp\"\nports = []\n[cache]", 22, "policy.ports: an empty list matches nothing"),
        ("policy's port on its own line", "[cache]", "[[policy]]\naction = \"deny\"\nprotocol = \"tcp\"\nports = [\n1,\n65536,\n]\n[cache]", 24, "policy.ports \"65536\": neither a port nor a range of ports; write ports from 1 to 65535"),
        ("policy's backward range", "[cache]", "[[policy]]\naction = \"deny\"\nprotocol = \"tcp\"\nports = [\"9-8\"]\n[cache]", 22, "policy.ports \"9-8\": the range ends before it begins"),
        ("metrics", "[cache]", "[metrics]\nlisten = \"127.0.0.1:9469\"\n[cache]", 19, "metrics: the metrics listener is not supported by this version; remove it"),
        ("name with slash", "name = \"alpha\"", "name = \"a/b\"", 2, "node.name \"a/b\": a name must not contain '/'"),
        ("name with newline", "name = \"alpha\"", "name = \"a\\nb\"", 2, "node.name \"a\\nb\": a name must not contain '\\n'"),
        ("name empty", "name = \"beta\"", "name = \"\"", 12, "peers.name \"\": a name must not be empty"),
        ("name dots", "name = \"beta\"", "name = \"..\"", 12, "must begin with a letter or a digit"),
        ("name no string", "name = \"alpha\"", "name = 7", 2, "node.name \"7\": must be a string"),
        ("interface name too long", "\"eth1\"", "\"sixteencharacter\"", 3, "node.underlay \"sixteencharacter\": an interface name has at most 15 characters, this has 16"),
        ("interface name with slash", "\"eth1\"", "\"eth/1\"", 3, "not an interface name"),
        ("node address", "192.168.50.11", "192.168.50.11/24", 4, "node.address \"192.168.50.11/24\": not an IPv4 address"),
        ("node address loopback", "192.168.50.11", "127.0.0.1", 4, "loopback, not the address of a host"),
        ("node address inside overlay", "192.168.50.11", "10.42.9.1", 4, "node.address \"10.42.9.1\": an underlay address inside overlay.network 10.42.0.0/16 (line 7)"),
        ("own address as peer", "192.168.50.13", "192.168.50.11", 17, "peers.address \"192.168.50.11\": this host's own address (node.address)"),
        ("own name as peer", "name = \"gamma\"", "name = \"alpha\"", 16, "peers.name \"alpha\": this host's own name"),
        ("bad CIDR", "10.42.1.0/24", "10.42.1.0/33", 6, "overlay.subnet \"10.42.1.0/33\": not an IPv4 network"),
        ("CIDR without prefix", "10.42.1.0/24", "10.42.1.0", 6, "write address/prefix"),
        ("IPv6 subnet", "10.42.1.0/24", "fd00::/64", 6, "IPv6 is not supported by this version"),
        ("host bits", "10.42.1.0/24", "10.42.1.7/24", 6, "overlay.subnet \"10.42.1.7/24\": has bits set beyond its prefix length 24; write 10.42.1.0/24"),
        ("host bits of peer", "10.42.2.0/24", "10.42.2.1/24", 14, "write 10.42.2.0/24"),
        ("subnet outside network", "10.42.1.0/24", "10.43.1.0/24", 6, "overlay.subnet \"10.43.1.0/24\": not inside overlay.network 10.42.0.0/16 (line 7)"),
        ("subnet too small", "10.42.1.0/24", "10.42.1.0/31", 6, "no room for a gateway and a container; use a prefix length of at most 30"),
        ("subnet no string", "subnet = \"10.42.1.0/24\"", "subnet = 10", 6, "overlay.subnet \"10\": must be a string"),
        ("subnet missing", "subnet = \"10.42.1.0/24\"\n", "", 5, "overlay.subnet: missing; add a line such as subnet = "),
        ("network missing", "network = \"10.42.0.0/16\"\n", "", 5, "overlay.network: missing"),
        ("vni missing", "vni = 42\n", "", 5, "overlay.vni: missing; add a line such as vni = 42"),
        ("vni zero", "vni = 42", "vni = 0", 8, "overlay.vni \"0\": out of range: a VNI has 24 bits (RFC 7348); write 1 to 16777215"),
        ("vni too large", "vni = 42", "vni = 16777216", 8, "overlay.vni \"16777216\""),
        ("vni negative", "vni = 42", "vni = -1", 8, "overlay.vni \"-1\": out of range"),
        ("vni text", "vni = 42", "vni = \"42\"", 8, "must be an integer"),
        ("vni fraction", "vni = 42", "vni = 4.2", 8, "overlay.vni \"4.2\": must be an integer"),
        ("port zero", "port = 4789", "port = 0", 9, "overlay.port \"0\": out of range"),
        ("port too large", "port = 4789", "port = 65536", 9, "overlay.port \"65536\": out of range"),
        ("mtu too small", "mtu = \"auto\"", "mtu = 575", 10, "overlay.mtu \"575\": out of range: IPv4 needs an MTU of 576"),
        ("mtu word", "mtu = \"auto\"", "mtu = \"automatic\"", 10, "must be \"auto\" or an integer"),
        ("peer without name", "name = \"beta\"\n", "", 11, "peers.name: missing"),
        ("peer without address", "address = \"192.168.50.12\"\n", "", 11, "peers.address: missing"),
        ("peer without subnet", "subnet = \"10.42.3.0/24\"\n", "", 15, "peers.subnet: missing"),
        ("peer subnet is own", "10.42.2.0/24", "10.42.1.0/24", 14, "peers.subnet \"10.42.1.0/24\": overlaps overlay.subnet 10.42.1.0/24 (line 6)"),
        ("peer subnet in own", "10.42.2.0/24", "10.42.1.128/25", 14, "overlaps overlay.subnet 10.42.1.0/24 (line 6)"),
        ("peer subnets overlap", "10.42.3.0/24", "10.42.2.0/23", 18, "peers.subnet \"10.42.2.0/23\": overlaps peers.subnet 10.42.2.0/24 (line 14)"),
        ("peer subnet outside", "10.42.3.0/24", "10.43.3.0/24", 18, "peers.subnet \"10.43.3.0/24\": not inside overlay.network"),
        ("peer names twice", "\"gamma\"", "\"beta\"", 16, "peers.name \"beta\": already the name of the peer on line 12"),
        ("peer addresses twice", "192.168.50.13", "192.168.50.12", 17, "peers.address \"192.168.50.12\": already the address of the peer on line 13"),
        ("peer inside overlay", "192.168.50.13", "10.42.3.1", 17, "peers.address \"10.42.3.1\": an underlay address inside overlay.network"),
        ("peer multicast", "192.168.50.13", "239.1.1.1", 17, "multicast, not the address of a host"),
        ("peer loopback", "192.168.50.13", "127.0.0.2", 17, "loopback, not the address of a host"),
        ("peer unspecified", "192.168.50.13", "0.0.0.0", 17, "unspecified, not the address of a host"),
        ("peer broadcast", "192.168.50.13", "255.255.255.255", 17, "reserved, not the address of a host"),
        ("peer IPv6", "192.168.50.13", "fd00::1", 17, "IPv6 is not supported by this version"),
        ("enabled text", "enabled = true", "enabled = \"yes\"", 20, "cache.enabled \"yes\": must be a boolean"),
        ("flows too few", "flows = 65536", "flows = 63", 21, "cache.flows \"63\": out of range"),
        ("flows too many", "flows = 65536", "flows = 16777217", 21, "cache.flows \"16777217\": out of range"),
        ("lease too short", "\"30s\"", "\"999ms\"", 22, "cache.lease \"999ms\": out of range: a lease lasts 1s to 10m"),
        ("lease too long", "\"30s\"", "\"601s\"", 22, "cache.lease \"601s\": out of range"),
        ("lease without unit", "\"30s\"", "\"30\"", 22, "cache.lease \"30\": not a length of time"),
        ("lease as number", "\"30s\"", "30", 22, "cache.lease \"30\": must be a string"),
        ("mask zero", "\"0x0fff0000\"", "\"0x0\"", 23, "cache.mark_mask \"0x0\": has no bit set"),
        ("mask with gap", "\"0x0fff0000\"", "\"0x0ff0ff00\"", 23, "is not one contiguous run of bits"),
        ("mask narrow", "\"0x0fff0000\"", "0x007f0000", 23, "cache.mark_mask \"0x007f0000\": is 7 bits wide, fewer than 8"),
        ("mask too wide", "\"0x0fff0000\"", "\"0x1ffffffff\"", 23, "not a hexadecimal number of 32 bits"),
        ("mask without 0x", "\"0x0fff0000\"", "\"0fff0000\"", 23, "not a hexadecimal number of 32 bits"),
        ("mask signed", "\"0x0fff0000\"", "\"0x+fff0000\"", 23, "not a hexadecimal number of 32 bits"),
        ("attach", "attach = \"auto\"", "attach = \"xdp\"", 24, "cache.attach \"xdp\": no way to attach"),
        ("container device", "device = \"auto\"", "device = \"macvlan\"", 28, "container.device \"macvlan\": no device that containers have"),
        ("container key", "device = \"auto\"", "devices = \"auto\"", 28, "container.devices \"auto\": unknown key; did you mean \"device\"?"),
    ];
    for (case, from, to, line, text) in cases {
        match parse_text(&good_but(from, to)) {
            Ok(_) => panic!("{case}: accepted"),
            Err(errors) => expect_one(case, &errors, *line, text),
        }
    }
}

#[test]
fn tables_missing_or_of_another_kind() {
    expect_one(
        "empty",
        &parse_text("").unwrap_err(),
        1,
        "overlay: missing; add [overlay]",
    );
    let single = format!("{MINIMAL}[peers]\nname = \"beta\"\n");
    expect_one(
        "[peers]",
        &parse_text(&single).unwrap_err(),
        5,
        "write [[peers]]",
    );
    let list = format!("peers = [\n\"beta\"\n]\n{MINIMAL}");
    expect_one(
        "strings",
        &parse_text(&list).unwrap_err(),
        2,
        "peers \"beta\": must be an array",
    );
}

#[test]
fn special_networks_are_refused() {
    for special in [
        "0.0.0.0/0",
        "127.0.0.0/8",
        "224.0.0.0/8",
        "255.255.255.0/24",
    ] {
        let text = MINIMAL
            .replace("10.42.0.0/16", special)
            .replace("10.42.1.0/24", special);
        let errors = parse_text(&text).unwrap_err();
        let lines: Vec<Option<usize>> = errors.0.iter().map(|error| error.line).collect();
        assert_eq!(lines, [Some(2), Some(3)], "{errors}");
        assert!(errors.to_string().contains("overlaps the "), "{errors}");
    }
}

#[test]
fn all_faults_come_at_once_in_the_order_of_the_lines() {
    let text = r#"[overlay]
subnet = "10.42.1.7/24"
network = "10.42.0.0/16"
vni = 0
colour = "red"
[[peers]]
name = "be ta"
address = "10.42.0.1"
subnet = "10.99.0.0/24"
[cache]
lease = "1h"
mark_mask = 0
[[policy]]
"#;
    let errors = parse_text(text).unwrap_err();
    let lines: Vec<usize> = errors.0.iter().filter_map(|error| error.line).collect();
    assert_eq!(lines, [2, 4, 5, 7, 8, 9, 11, 12, 13], "{errors}");
    assert_eq!(errors.to_string().lines().count(), 9);
}

#[test]
fn faults_of_the_host() {
    type Change = fn(&mut HostFacts);
    let same: Change = |_| ();
    #[rustfmt::skip]
    let cases: &[(&str, &str, &str, Change, usize, &str)] = &[
        // name, of GOOD, replaced by, change of the host, line, message
        ("device missing", "\"eth1\"", "\"eth7\"", same, 3, "node.underlay \"eth7\": no such device; name one of: lo, eth0, eth1"),
        ("address elsewhere", "192.168.50.11", "203.0.113.7", same, 4, "node.address \"203.0.113.7\": not an address of eth1; use one of: 192.168.50.11, 192.168.51.11"),
        ("given address, none there", "name = \"alpha\"", "", |f| f.devices[2].ipv4.clear(), 4, "not an address of eth1; add the address to eth1"),
        ("no address", "address = \"192.168.50.11\"\n", "", |f| f.devices[2].ipv4.clear(), 3, "node.underlay \"eth1\": the device has no IPv4 address"),
        ("loopback underlay", "underlay = \"eth1\"\naddress = \"192.168.50.11\"", "underlay = \"lo\"", |f| f.devices[0].mac = [2; 6], 3, "the device's first address 127.0.0.1 is loopback, not the address of a host"),
        ("no default route", "underlay = \"eth1\"\n", "", |f| f.default_route_device = None, 1, "node.underlay: not given, and there is no default route to tell it by; set node.underlay to one of: lo, eth0, eth1"),
        ("default route's device gone", "underlay = \"eth1\"\n", "", |f| f.default_route_device = Some("ppp0".to_owned()), 1, "node.underlay \"ppp0\": no such device"),
        ("service addresses only", "address = \"192.168.50.11\"\n", "", |f| f.devices[2].ipv4 = vec!["192.168.50.99/32".parse().unwrap()], 3, "node.underlay \"eth1\": the device has only addresses that may be a service's (/32, or secondary): 192.168.50.99; set node.address to the one that is this host's"),
        ("default address in overlay", "address = \"192.168.50.11\"\n", "", |f| f.devices[2].ipv4 = vec!["10.42.0.9/8".parse().unwrap()], 3, "node.address \"10.42.0.9\": an underlay address inside overlay.network"),
        ("default address as peer", "address = \"192.168.50.11\"\n", "", |f| f.devices[2].ipv4 = vec!["192.168.50.12/24".parse().unwrap()], 12, "peers.address \"192.168.50.12\": this host's own address (on eth1)"),
        ("other own address as peer", "192.168.50.13", "203.0.113.7", same, 17, "peers.address \"203.0.113.7\": this host's own address (on eth0)"),
        ("host's name as peer", "name = \"alpha\"\n", "", |f| f.hostname = "beta".to_owned(), 11, "peers.name \"beta\": this host's own name"),
        ("host's name unusable", "name = \"alpha\"\n", "", |f| f.hostname = "(none)".to_owned(), 1, "node.name \"(none)\": the host's name will not do: a name must not contain '('; set node.name"),
        ("mtu too large", "mtu = \"auto\"", "mtu = 1451", same, 10, "overlay.mtu \"1451\": larger than 1450, what underlay MTU 1500 of eth1 leaves"),
        ("underlay mtu too small", "mtu = \"auto\"", "mtu = \"auto\"", |f| f.devices[2].mtu = 625, 10, "overlay.mtu \"auto\": underlay MTU 625 of eth1 is too small: less 50 for VXLAN it leaves 575"),
        ("default mtu, underlay too small", "mtu = \"auto\"\n", "", |f| f.devices[2].mtu = 40, 5, "underlay MTU 40 of eth1 is too small"),
        ("explicit mtu, underlay too small", "mtu = \"auto\"", "mtu = 600", |f| f.devices[2].mtu = 620, 10, "overlay.mtu \"600\": underlay MTU 620 of eth1 is too small: less 50 for VXLAN it leaves 570, IPv4 needs 576; raise it to at least 626"),
        ("no Ethernet", "mtu = \"auto\"", "", |f| f.devices[2].mac = [0; 6], 3, "node.underlay \"eth1\": the device has no MAC address"),
    ];
    for (case, from, to, change, line, text) in cases {
        let mut facts = facts();
        change(&mut facts);
        match parse_text(&good_but(from, to))
            .unwrap()
            .resolve_whole(&facts)
        {
            Ok(_) => panic!("{case}: accepted"),
            Err(errors) => expect_one(case, &errors, *line, text),
        }
    }
}

#[test]
fn faults_of_the_host_come_at_once_too() {
    let mut facts = facts();
    facts.hostname = String::new();
    facts.devices[2].mtu = 500;
    facts.devices[2].ipv4.clear();
    let text = good_but("name = \"alpha\"\n", "").replace("address = \"192.168.50.11\"\n", "");
    let errors = parse_text(&text)
        .unwrap()
        .resolve_whole(&facts)
        .unwrap_err();
    let lines: Vec<usize> = errors.0.iter().filter_map(|error| error.line).collect();
    assert_eq!(lines, [1, 2, 8], "{errors}");
}

#[test]
fn the_slow_path_alone_needs_no_mac() {
    let mut facts = facts();
    facts.devices[2].mac = [0; 6];
    let file = parse_text(&good_but("enabled = true", "enabled = false")).unwrap();
    assert!(file.resolve_whole(&facts).is_ok());
}

#[test]
fn auto_mtu_follows_the_underlay() {
    let file = parse_text(GOOD).unwrap();
    for (underlay, overlay) in [(626, 576), (1500, 1450), (9000, 8950), (65536, 65485)] {
        let mut facts = facts();
        facts.devices[2].mtu = underlay;
        assert_eq!(
            file.resolve_whole(&facts).unwrap().overlay.mtu,
            overlay,
            "{underlay}"
        );
    }
}

#[test]
fn policies_are_read_in_order_from_either_file() {
    let text = r#"[[policy]]
action = "allow"
from = "web"
to = "10.42.2.7"
protocol = "tcp"
ports = [5432, "8000-8100"]
[[policy]]
action = "deny"
"#;
    let path = Path::new("rules.toml");
    let rules = parse_policy(path, text).unwrap();
    let shown: Vec<String> = rules.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "allow from web to 10.42.2.7/32 tcp 5432,8000-8100",
            "deny from any to any"
        ]
    );
    let config = parse_text(&format!("{GOOD}{text}")).unwrap();
    assert_eq!(config.resolve_whole(&facts()).unwrap().policy, rules);
    assert_eq!(parse_policy(path, "").unwrap(), []);
    let whole = parse_policy(path, GOOD).unwrap_err().to_string();
    assert!(
        whole.starts_with("rules.toml:1: node: unknown key; remove it; valid here: policy"),
        "{whole}"
    );
}

#[test]
fn an_unreadable_file_is_one_fault_without_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("absent.toml");
    let errors = read(&path).unwrap_err();
    assert_eq!(errors.0.len(), 1);
    assert_eq!(errors.0[0].line, None);
    let expected = format!("{}: cannot read the configuration: ", path.display());
    assert!(errors.to_string().starts_with(&expected), "{errors}");

    std::fs::write(&path, GOOD).unwrap();
    assert!(read(&path).is_ok());
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn json_shows_values_as_the_file_has_them() {
    let config = parse_text(GOOD).unwrap().resolve_whole(&facts()).unwrap();
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json["node"]["underlay_mac"], "02:00:00:00:00:03");
    assert_eq!(json["overlay"]["subnet"], "10.42.1.0/24");
    assert_eq!(json["cache"]["lease"], "30s");
    assert_eq!(json["cache"]["mark_mask"], "0x0fff0000");
    assert_eq!(json["cache"]["attach"], "auto");
    assert_eq!(json["container"]["device"], "auto");
}

#[test]
fn choices_stay_where_they_still_can_be() {
    let text = "[overlay]\nsubnet = \"10.42.1.0/24\"\nnetwork = \"10.42.0.0/16\"\nvni = 42\n";
    let file = parse_text(text).unwrap();
    let mut host = facts();
    host.hostname = "alpha".to_owned();
    host.default_route_device = Some("eth1".to_owned());
    let before = file.resolve_whole(&host).unwrap();
    assert_eq!(before.node.address.to_string(), "192.168.50.11");

    // A VPN takes the default route, the host gets another name, and its device an address in front.
    host.hostname = "beta".to_owned();
    host.default_route_device = Some("eth0".to_owned());
    host.devices[2]
        .ipv4
        .insert(0, "192.168.49.11/24".parse().unwrap());
    let decided = host.clone().as_decided(&before.node);
    assert_eq!(file.resolve_whole(&decided).unwrap(), before);

    // What is gone is waited for; the device itself is followed.
    host.devices[2]
        .ipv4
        .retain(|net| net.addr() != before.node.address);
    host.devices[2].index = 9;
    host.devices[2].mtu = 1400;
    let after = file
        .resolve_whole(&host.clone().as_decided(&before.node))
        .unwrap();
    assert_eq!(after.node.address, before.node.address);
    assert_eq!((after.node.underlay_index, after.overlay.mtu), (9, 1350));

    // Of another device nothing was chosen yet.
    let elsewhere = Chosen {
        device: "eth0".to_owned(),
        address: before.node.address,
    };
    host.default_route_device = Some("eth1".to_owned());
    let anew = file
        .resolve_whole(&host.with_chosen(Some(elsewhere)))
        .unwrap();
    assert_eq!(anew.node.address.to_string(), "192.168.49.11");
}

#[test]
fn a_services_address_is_not_chosen_by_itself() {
    let text = "[overlay]\nsubnet = \"10.42.1.0/24\"\nnetwork = \"10.42.0.0/16\"\nvni = 42\n";
    let file = parse_text(text).unwrap();
    let mut host = facts();
    host.default_route_device = Some("eth1".to_owned());
    host.devices[2] = device(
        "eth1",
        3,
        &["192.168.50.99/32", "192.168.50.98/24", "192.168.50.11/24"],
    );
    host.devices[2].secondary = vec!["192.168.50.98".parse().unwrap()];
    let config = file.resolve_whole(&host).unwrap();
    assert_eq!(config.node.address.to_string(), "192.168.50.11");
    // Said, it is.
    let text = format!("[node]\naddress = \"192.168.50.99\"\n{text}");
    let config = parse_text(&text).unwrap().resolve_whole(&host).unwrap();
    assert_eq!(config.node.address.to_string(), "192.168.50.99");
}
