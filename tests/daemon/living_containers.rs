//! Nothing that the daemon does by itself takes a living container away: not with another state, not
//! under another configuration, not on a full disk, and not by the name of somebody else.

use std::{fs, thread, time::Duration};

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache::container::devices::host_device;
use oncache_testbed::{Container, Host, Lab, PATIENCE, assert_same, eventually, traffic};

const STATE: &str = "/var/lib/oncache/state.json";

/// Two containers on alpha, one on beta, and a daemon on beta alone.
struct Scene {
    lab: Lab,
    web: Container,
    mate: Container,
    client: Container,
    /// The state of alpha from before `mate` came.
    early: String,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::two_hosts(ONCACHE);
        lab.start();
        let alpha = lab.alpha();
        let web = alpha.add_container("web");
        let early = alpha.run(&["cat", STATE]);
        alpha.add_netns("mate");
        let mate = alpha.add_container_with("mate", &["--netns", "/run/netns/mate"]);
        let client = lab.beta().add_container("client");
        alpha.stop();
        Self {
            lab,
            web,
            mate,
            client,
            early,
        }
    }

    fn reachable(&self, when: &str) {
        for to in [&self.web, &self.mate] {
            eventually(&format!("{when}: {} answers", to.name), PATIENCE, || {
                traffic::ping(&self.client, to.ip, 2).lossless()
            });
        }
    }
}

/// Starts with the arguments, which is refused in one line, and returns the line.
fn start_refused(host: &Host, arguments: &[&str]) -> String {
    let config = host.config_path().display().to_string();
    host.refused(&[&["run", "--config", &config], arguments].concat())
}

/// The ifindex of a host-side device.
fn index(host: &Host, device: &str) -> String {
    host.run(&["cat", &format!("/sys/class/net/{device}/ifindex")])
}

#[test]
fn a_start_with_the_wrong_state_or_subnet_is_refused_and_the_containers_go_on() {
    let scene = Scene::new();
    let host = scene.lab.alpha();
    let right = host.default_config();
    host.sh("mkdir -p /run/empty /run/early /run/other /run/garbage");
    host.enter(|| {
        fs::write("/run/early/state.json", &scene.early).expect("an early state");
        let swapped = fs::read_to_string(STATE).expect("the state");
        let swapped = swapped.replace("10.42.1.2", "10.42.1.77");
        fs::write("/run/other/state.json", swapped).expect("another state");
        fs::write("/run/garbage/state.json", "[]").expect("garbage");
    });
    host.sh("ip link add theirs type vxlan id 77 dstport 4789 dev eth1");
    let both = ["onc-web of container web", "onc-mate of container mate"];
    let ways: Vec<(&str, String, &[&str], Vec<&str>)> = vec![
        (
            "an empty directory",
            right.to_string(),
            &["--state", "/run/empty"],
            [&both[..], &["/run/empty", "--state", "ip link del"]].concat(),
        ),
        (
            "a directory that is not there",
            right.to_string(),
            &["--state", "/var/lib/oncahce"],
            [&both[..], &["/var/lib/oncahce"]].concat(),
        ),
        (
            "an early copy",
            right.to_string(),
            &["--state", "/run/early"],
            vec!["/run/early", "onc-mate of container mate"],
        ),
        (
            "a state with another address",
            right.to_string(),
            &["--state", "/run/other"],
            vec![
                "/run/other",
                "container web at 10.42.1.77",
                "10.42.1.2",
                "--state",
            ],
        ),
        (
            "no state",
            right.to_string(),
            &["--state", "/run/garbage"],
            vec!["/run/garbage/state.json"],
        ),
        (
            "another subnet",
            right.clone().subnet("10.42.9.0/24").to_string(),
            &[],
            vec![
                "overlay.subnet 10.42.9.0/24",
                "container web (10.42.1.2)",
                "container mate (10.42.1.3)",
                "10.42.1.1",
                "keep that subnet",
            ],
        ),
        (
            "a wider subnet, with another gateway",
            right.clone().subnet("10.42.0.0/23").to_string(),
            &[],
            vec!["overlay.subnet 10.42.0.0/23", "container web", "10.42.1.1"],
        ),
        (
            "a VNI that is another's",
            right.clone().vni(77).to_string(),
            &[],
            vec!["overlay.vni 77", "theirs", "ip link del theirs"],
        ),
        (
            "a file in the socket's place",
            right.to_string(),
            &["--socket", "/run/testbed/config.toml"],
            vec!["/run/testbed/config.toml", "stays", "--socket"],
        ),
    ];
    for (way, config, arguments, said) in &ways {
        host.write_config(config);
        let before = host.snapshot();
        let line = start_refused(host, arguments);
        println!("{way}: {line}");
        for words in said {
            assert!(line.contains(words), "{way}: {words}: {line}");
        }
        assert_same(&before, &host.snapshot(), way);
        // A check says the same, word for word; it has no socket of its own.
        if !way.contains("socket") {
            let config = host.config_path().display().to_string();
            let check = [&["check", "--config", &config], *arguments].concat();
            let output = host.oncache(&check);
            let checked = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(1), "{way}: {checked}");
            let reason = line.trim_start_matches("oncache: ");
            assert!(
                checked
                    .lines()
                    .any(|it| it.trim_start() == format!("MISSING  {reason}")),
                "{way}: check says otherwise:\n{checked}"
            );
        }
    }
    scene.reachable("refused starts");
    let config = host.run(&["cat", "/run/testbed/config.toml"]);
    assert!(config.contains("[node]"), "the file in the socket's place");
    host.sh("test ! -e /var/lib/oncahce");

    // With what is right, they are taken over as they are.
    host.write_config(&right.to_string());
    let devices = ["onc-web", "onc-mate"].map(|device| index(host, device));
    host.start();
    assert_eq!(devices, ["onc-web", "onc-mate"].map(|it| index(host, it)));
    scene.reachable("the right start");
}

#[test]
fn a_changed_vni_takes_the_tunnel_and_no_container() {
    let scene = Scene::new();
    let (alpha, beta) = (scene.lab.alpha(), scene.lab.beta());
    let devices = ["onc-web", "onc-mate"].map(|device| index(alpha, device));
    beta.stop();
    for host in [alpha, beta] {
        host.write_config(&host.default_config().vni(78).to_string());
        host.start();
    }
    assert_eq!(devices, ["onc-web", "onc-mate"].map(|it| index(alpha, it)));
    scene.reachable("another VNI");

    // While it runs: a VNI that is another's leaves the one that is.
    alpha.sh("ip link add theirs type vxlan id 77 dstport 4789 dev eth1");
    let tunnel = index(alpha, "oncache-vx0");
    let log = alpha.log().len();
    alpha.write_config(&alpha.default_config().vni(77).to_string());
    alpha.signal(Signal::SIGHUP);
    assert!(alpha.wait_notified("READY=1", 2, PATIENCE));
    let said = alpha.log_since(log).join("\n");
    println!("{said}");
    assert!(
        said.contains("reload refused")
            && said.contains("overlay.vni 77")
            && said.contains("theirs"),
        "{said}"
    );
    assert_eq!(
        index(alpha, "oncache-vx0"),
        tunnel,
        "the tunnel is the same"
    );
    scene.reachable("a refused reload");
}

#[test]
fn leftovers_are_cleaned_and_strangers_stay() {
    let scene = Scene::new();
    let host = scene.lab.alpha();
    // A record that was being made; a far end that has come out to the host; one whose namespace died.
    host.start();
    host.add_container("half");
    host.add_container("dead");
    let out = host.add_container("out");
    host.stop();
    host.enter(|| {
        let text = fs::read_to_string(STATE).expect("the state");
        let mut state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        state["containers"]["half"]["pending"] = true.into();
        let containers = state["containers"].as_object_mut().expect("containers");
        containers.remove("out").expect("a record");
        fs::write(STATE, state.to_string()).expect("written");
    });
    out.run(&["ip", "link", "set", "eth0", "name", "cameout"]);
    out.run(&["ip", "link", "set", "cameout", "netns", &host.netns_path()]);
    host.run(&["ip", "-n", "dead", "link", "del", "eth0"]);
    host.start();
    let links = host.run(&["ip", "-br", "link"]);
    println!("{links}");
    for gone in ["onc-half", "onc-out", "onc-dead", "cameout"] {
        assert!(!links.contains(gone), "{gone}: {links}");
    }
    scene.reachable("leftovers cleaned");

    // What comes by the mark of ours while the daemon runs, and lives.
    host.add_netns("stranger");
    host.sh(
        "ip link add onc-stranger type veth peer name eth0 netns stranger
             ip link set onc-stranger alias 'oncache container stranger'
             ip link add onc-mark type bridge
             ip link set onc-mark alias 'oncache container mark'",
    );
    let log = host.log().len();
    host.write_config(&host.default_config().lease("5s").to_string());
    host.signal(Signal::SIGHUP);
    assert!(host.wait_notified("READY=1", 2, PATIENCE));
    let said = host.log_since(log).join("\n");
    println!("{said}");
    assert!(
        said.contains("onc-stranger") && said.contains("it stays"),
        "{said}"
    );
    host.run(&["ip", "link", "show", "onc-stranger"]);
    host.run(&["ip", "link", "show", "onc-mark"]);
    // It is nobody's name, either.
    let line = host.refused(&["container", "add", "stranger"]);
    println!("{line}");
    assert!(line.contains("/run/netns/stranger"), "{line}");
    let line = host.refused(&[
        "container",
        "add",
        "stranger",
        "--netns",
        "/run/netns/half2",
    ]);
    println!("{line}");
    host.run(&["ip", "link", "show", "onc-stranger"]);
}

#[test]
fn what_is_others_stays_at_down() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.sh("ip link add oncache0 type bridge; ip link set oncache0 up
             ip link add p0 type veth peer name p1; ip link set p0 master oncache0
             ip link add oncache-vx0 type vxlan id 5 dstport 5555 dev eth1
             ip link add oncache-room0 type veth peer name q1");
    host.write_file("kept", "somebody's");
    let before = host.snapshot();
    host.write_config(&host.default_config().to_string());
    let config = host.config_path().display().to_string();
    let output = host.oncache(&["run", "--config", &config]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    assert_eq!(said.lines().count(), 3, "one line a device: {said}");
    for device in ["oncache0", "oncache-vx0", "oncache-room0"] {
        assert!(
            said.contains(&format!("oncache: device {device}: ")),
            "{said}"
        );
    }
    assert_same(&before, &host.snapshot(), "a refused start");
    host.oncache_ok(&["down"]);
    assert_same(&before, &host.snapshot(), "down");
    let line = host.refused(&[
        "down",
        "--socket",
        "/run/testbed/kept",
        "--state",
        "/dev/null/x",
    ]);
    println!("{line}");
    host.oncache_ok(&["down", "--socket", "/run/testbed/kept"]);
    assert_eq!(host.run(&["cat", "/run/testbed/kept"]), "somebody's");
}

#[test]
fn the_hosts_own_namespace_and_a_containers_are_no_containers() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    host.add_container("web");
    host.add_netns("free");
    // As of a container on the host's network.
    let mut command = host.command("sleep");
    command.arg("600");
    let process = host.spawn(command);
    let of_process = format!("/proc/{}/ns/net", process.id());
    host.sh(
        "touch /run/netns/host; mount --bind /proc/self/ns/net /run/netns/host
             ln -s /proc/self/ns/net /run/link",
    );
    let before = host.snapshot();
    for (path, words) in [
        (&*of_process, "the host's"),
        ("/proc/self/ns/net", "the host's"),
        ("/proc/1/ns/net", "process 1"),
        ("/run/netns/host", "the host's"),
        ("/run/link", "the host's"),
        ("/run/netns/web", "container web's already"),
    ] {
        // Some machines let nobody look at process 1.
        if host.enter(|| fs::File::open(path)).is_err() {
            println!("{path}: cannot be opened here");
            continue;
        }
        for arguments in [&[][..], &["--ifname", "other0"], &["--route", "none"]] {
            let call = [&["container", "add", "new", "--netns", path][..], arguments].concat();
            let line = host.refused(&call);
            println!("{path} {arguments:?}: {line}");
            assert!(
                line.contains("container new") && line.contains(path) && line.contains(words),
                "{line}"
            );
            assert_same(&before, &host.snapshot(), path);
        }
    }
    assert_eq!(
        host.status()["containers"].as_array().map(Vec::len),
        Some(1)
    );
    host.add_container_with("new", &["--netns", "/run/netns/free"]);
}

#[test]
fn of_two_names_with_one_hash_the_second_is_told_of_the_first() {
    // Found by trying 24 million of them.
    const NAMES: [&str; 2] = ["web.1942399", "web.19261274"];
    assert_eq!(host_device(NAMES[0]), host_device(NAMES[1]));
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let host = lab.alpha();
    let first = host.add_container(NAMES[0]);
    let client = lab.beta().add_container("client");
    oncache_testbed::until_fast([host, lab.beta()], &client, &first);
    let before = host.snapshot();
    let line = host.refused(&["container", "add", NAMES[1]]);
    println!("{line}");
    assert!(
        line.contains(&format!("container {}:", NAMES[1]))
            && line.contains(&format!("that of container {};", NAMES[0]))
            && !line.contains("remove"),
        "{line}"
    );
    assert_same(&before, &host.snapshot(), "a name with the same hash");
    oncache_testbed::until_fast([host, lab.beta()], &client, &first);
}

#[test]
fn on_a_full_disk_a_deletion_is_a_deletion() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.sh("mkdir /run/small; mount -t tmpfs -o size=64k tmpfs /run/small");
    let start = || {
        host.try_start_with(|command| {
            command.args(["--state", "/run/small"]);
        })
    };
    start().expect("started");
    for name in ["one", "two", "three"] {
        host.add_container(name);
    }
    let fill = "dd if=/dev/zero of=/run/small/fill bs=4k count=64 2>/dev/null || true";
    host.sh(fill);
    let noted = || host.run(&["cat", "/run/small/state.json"]);

    host.remove_container("one");
    let list = host.oncache_ok(&["container", "list"]);
    assert!(!list.contains("one") && list.contains("two"), "{list}");
    host.sh("test ! -e /sys/class/net/onc-one; test ! -e /run/netns/one");
    let warnings = host.status()["warnings"].to_string();
    println!("{warnings}");
    for words in [
        "the state is not written",
        "/run/small",
        "No space left",
        "make room",
    ] {
        assert!(warnings.contains(words), "{words}: {warnings}");
    }
    assert!(noted().contains("\"one\""), "the disk is full");
    // What needs the disk is refused, and is not there.
    let line = host.refused(&["container", "add", "four"]);
    println!("{line}");
    assert!(
        line.contains("No space left") && line.contains("make room"),
        "{line}"
    );
    host.sh("test ! -e /sys/class/net/onc-four; test ! -e /run/netns/four");

    // A daemon that reads the old state finds the container gone.
    host.kill9();
    host.run(&["rm", "/run/small/fill"]);
    start().expect("started again");
    let list = host.oncache_ok(&["container", "list"]);
    assert!(!list.contains("one") && list.contains("two"), "{list}");

    // And one that lives writes it as soon as there is room.
    host.sh(fill);
    host.remove_container("two");
    assert!(noted().contains("\"two\""), "the disk is full");
    host.run(&["rm", "/run/small/fill"]);
    eventually("the state is written", PATIENCE, || {
        !noted().contains("\"two\"")
    });
    thread::sleep(Duration::from_millis(100));
    let warnings = host.status()["warnings"].to_string();
    assert!(!warnings.contains("not written"), "{warnings}");
    host.remove_container("three");
}
