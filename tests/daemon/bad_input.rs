//! Wrong commands: one line that says what is wrong, the right exit status, and nothing changed.

use std::{thread, time::Duration};

use crate::ONCACHE;
use oncache_testbed::{Lab, assert_same};

#[test]
fn misuse_is_status_two() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    let before = host.snapshot();
    for (arguments, word) in [
        (&[][..], "Usage"),
        (&["fly"], "fly"),
        (&["container"], "Usage"),
        (&["container", "add"], "<NAME>"),
        (&["container", "del"], "<NAME>"),
        (&["container", "add", "a", "b"], "'b'"),
        (&["container", "add", "a", "--ip", "10.42.1"], "'10.42.1'"),
        (
            &["container", "add", "a", "--ip", "10.42.1.2/24"],
            "'10.42.1.2/24'",
        ),
        (&["container", "add", "a", "--ip", "fd00::1"], "'fd00::1'"),
        (&["container", "add", "a", "--netns"], "--netns"),
        (&["cache", "list", "sideways"], "sideways"),
        (&["run", "--config"], "--config"),
        (&["run", "here"], "here"),
        (&["status", "--yaml"], "--yaml"),
        (&["down", "now"], "now"),
    ] {
        let output = host.oncache(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{arguments:?}: {}", said.lines().next().unwrap_or_default());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {word}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    assert_same(&before, &host.snapshot(), "misuse");
}

#[test]
fn commands_without_a_daemon_say_so() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    let before = host.snapshot();
    let commands: [&[&str]; 9] = [
        &["status"],
        &["status", "--json"],
        &["stats"],
        &["container", "add", "web"],
        &["container", "del", "web"],
        &["container", "list"],
        &["cache", "list"],
        &["cache", "flush"],
        &["status", "--socket", "/run/elsewhere.sock"],
    ];
    let all_refused = |why: &str| {
        for arguments in commands {
            let line = host.refused(arguments);
            println!("{arguments:?}: {line}");
            let socket = arguments.last().filter(|last| last.starts_with('/'));
            let socket = socket.unwrap_or(&"/run/oncache/oncache.sock");
            let why = if socket.contains("elsewhere") {
                "No such file"
            } else {
                why
            };
            for words in [socket, why, "is `oncache run` running?"] {
                assert!(line.contains(words), "{words}: {line}");
            }
        }
    };
    all_refused("No such file");
    assert_same(&before, &host.snapshot(), "without a daemon");
    host.start();
    let running = host.snapshot();
    host.kill9();
    all_refused("Connection refused");
    assert_same(&running, &host.snapshot(), "with a dead daemon");
}

#[test]
fn containers_that_cannot_be_are_refused_and_leave_nothing() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    let web = host.add_container("web");
    assert_eq!(web.ip.to_string(), "10.42.1.2");
    let taken = host.add_netns("taken");
    taken.run(&[
        "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth9",
    ]);
    host.add_netns("free");
    // A device of somebody else's that has the name a container's would have.
    host.sh("ip link add onc-theirs type veth peer name theirs");
    host.write_file("no-namespace", "");
    let before = host.snapshot();
    let inside = || ["taken", "free"].map(|name| host.run(&["ip", "-n", name, "-br", "address"]));
    let before_inside = inside();
    // The events of all that are over.
    thread::sleep(Duration::from_secs(1));
    let before_epoch = host.epoch();
    let list = host.oncache_ok(&["container", "list", "--json"]);
    let long = "n".repeat(64);
    let cases: &[(&[&str], &[&str])] = &[
        (&["web"], &["web", "exists already", "delete it first"]),
        (&["taken"], &["/run/netns/taken", "File exists", "--netns"]),
        (&[""], &["\"\"", "must not be empty"]),
        (&[&long], &["at most 63"]),
        (&["a/b"], &["\"a/b\"", "must not contain '/'"]),
        (&[".."], &["\"..\"", "begin with a letter or a digit"]),
        (&["two words"], &["must not contain ' '"]),
        (&["two\nlines"], &["must not contain '\\n'"]),
        (
            &["new", "--ip", "10.42.1.2"],
            &["10.42.1.2", "held by container web"],
        ),
        (&["new", "--ip", "10.42.1.1"], &["10.42.1.1", "gateway"]),
        (
            &["new", "--ip", "10.42.1.0"],
            &["10.42.1.0", "network's own"],
        ),
        (
            &["new", "--ip", "10.42.1.255"],
            &["10.42.1.255", "broadcast"],
        ),
        (
            &["new", "--ip", "10.43.2.2"],
            &["10.43.2.2", "10.42.0.0/16", "outside"],
        ),
        (
            &["new", "--netns", "/run/netns/none"],
            &["/run/netns/none", "No such file"],
        ),
        (
            &["new", "--netns", "/run/testbed/no-namespace"],
            &["/run/testbed/no-namespace"],
        ),
        (&["new", "--netns", "/run/testbed"], &["/run/testbed"]),
        (
            &["new", "--netns", "/proc/self/ns/mnt"],
            &["/proc/self/ns/mnt"],
        ),
        (
            &["new", "--ifname", "sixteen-letters-"],
            &["\"sixteen-letters-\"", "1 to 15"],
        ),
        (&["new", "--ifname", ""], &["\"\"", "1 to 15"]),
        (&["new", "--ifname", "a/b"], &["\"a/b\"", "without '/'"]),
        (&["new", "--ifname", "lo"], &["\"lo\""]),
        (
            &["new", "--netns", "/run/netns/taken"],
            &["new", "eth0", "/run/netns/taken"],
        ),
        (&["theirs"], &["theirs", "onc-theirs", "not oncache's"]),
    ];
    for (arguments, said) in cases {
        let call = [&["container", "add"][..], arguments].concat();
        let line = host.refused(&call);
        println!("{arguments:?}: {line}");
        for words in *said {
            assert!(line.contains(words), "{arguments:?}: {words:?}: {line}");
        }
        assert_same(&before, &host.snapshot(), &format!("{arguments:?}"));
        assert_eq!(inside(), before_inside, "{arguments:?}");
        assert_eq!(host.oncache_ok(&["container", "list", "--json"]), list);
    }
    assert_eq!(host.epoch(), before_epoch, "no flow had to be learned anew");
    // None of the refused ones holds an address.
    assert_eq!(host.add_container("new").ip.to_string(), "10.42.1.3");
}

#[test]
fn only_the_container_that_is_named_is_deleted() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    host.add_container("web");
    let before = host.snapshot();
    for name in [
        "web2",
        "",
        "we",
        "web?",
        "web?force=1",
        "web#1",
        "%77eb",
        "web/",
        "../containers/web",
        "w b",
        "w\nb",
    ] {
        let line = host.refused(&["container", "del", name]);
        println!("{name:?}: {line}");
        assert!(line.contains("container"), "{line}");
        assert_same(&before, &host.snapshot(), name);
    }
    assert_eq!(
        host.status()["containers"].as_array().map(Vec::len),
        Some(1)
    );
    host.remove_container("web");
}

#[test]
fn a_second_daemon_is_refused() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    host.add_container("web");
    let before = host.snapshot();
    let config = host.config_path();
    let line = host.refused(&["run", "--config", config.to_str().expect("a path of ours")]);
    println!("{line}");
    assert!(
        line.contains("another oncache daemon runs on this host"),
        "{line}"
    );
    // Neither with a socket of its own.
    let elsewhere = [
        "run",
        "--config",
        config.to_str().expect("a path of ours"),
        "--socket",
        "/run/other.sock",
    ];
    let line = host.refused(&elsewhere);
    assert!(line.contains("stop it first"), "{line}");
    assert_same(&before, &host.snapshot(), "a second daemon");
    assert_eq!(
        host.status()["containers"].as_array().map(Vec::len),
        Some(1)
    );
    // Nor is there anything to take down behind a daemon's back.
    let line = host.refused(&["down", "--socket", "/run/other.sock"]);
    println!("{line}");
    assert_same(&before, &host.snapshot(), "down by a wrong socket");
}
