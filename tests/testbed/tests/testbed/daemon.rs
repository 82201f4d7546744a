//! The daemon's life, with a stand-in for the binary.

use std::{panic, thread, time::Duration};

use nix::sys::signal::Signal;
use oncache_testbed::Lab;

const STAND_IN: &str = env!("CARGO_BIN_EXE_oncache-stand-in");

#[test]
fn a_daemon_starts_reloads_restarts_and_stops() {
    let lab = Lab::two_hosts(STAND_IN);
    lab.start();
    let alpha = lab.alpha();
    let first = alpha.daemon_pid().expect("it runs");
    assert!(
        alpha
            .try_start()
            .is_err_and(|error| error.contains("already"))
    );
    alpha.signal(Signal::SIGHUP);
    assert!(alpha.wait_notified("RELOADING=1", 1, Duration::from_secs(5)));
    assert!(alpha.wait_notified("READY=1", 2, Duration::from_secs(5)));
    assert!(!alpha.wait_notified("READY=1", 3, Duration::from_millis(50)));
    alpha.restart();
    assert_ne!(alpha.daemon_pid().expect("it runs again"), first);
    assert!(alpha.stop().success());
    assert_eq!(alpha.daemon_pid(), None);
    assert_eq!(
        alpha
            .log()
            .matches("serving /run/testbed/config.toml")
            .count(),
        2
    );
    lab.beta().kill9();
    assert_eq!(lab.beta().daemon_pid(), None);
    lab.beta().start();
    assert!(!lab.beta().log().contains("stopping"));
}

#[test]
fn a_refused_start_says_why() {
    let lab = Lab::two_hosts(STAND_IN);
    lab.alpha().write_config("refuse-me");
    let error = lab.alpha().try_start().expect_err("a refusal");
    assert!(
        error.contains("exit status: 1") && error.contains("refuse-me is refused"),
        "{error}"
    );
    let panic = panic::catch_unwind(|| lab.alpha().start()).expect_err("a panic");
    let message = panic.downcast::<String>().expect("a message");
    assert!(
        message.contains("on alpha") && message.contains("refuse-me is refused"),
        "{message}"
    );
    lab.alpha().write_config("");
    lab.alpha().start();
}

#[test]
fn containers_come_from_the_command_line() {
    let lab = Lab::two_hosts(STAND_IN);
    let container = lab.alpha().add_container("web");
    assert_eq!(
        (container.name.as_str(), container.host.as_str()),
        ("web", "alpha")
    );
    assert_eq!(container.ip.to_string(), "10.42.1.2");
    assert_ne!(container.netns_inode(), lab.alpha().netns_inode());
    assert_eq!(container.mntns_inode(), lab.alpha().mntns_inode());
    let elsewhere = container.clone();
    let devices = thread::spawn(move || elsewhere.run(&["ip", "-br", "link"])).join();
    assert_eq!(
        devices.expect("a thread").lines().count(),
        1,
        "a loopback device"
    );
    assert_eq!(container.run(&["ip", "-br", "link"]).lines().count(), 1);
    let list = lab.alpha().oncache_json(&["container", "list", "--json"]);
    assert_eq!(list[0]["more"], 1);
    let failed = lab.alpha().oncache(&["nonsense"]);
    assert_eq!(failed.status.code(), Some(2));
    let panic = panic::catch_unwind(|| lab.alpha().oncache_ok(&["nonsense"])).expect_err("a panic");
    let message = panic.downcast::<String>().expect("a message");
    assert!(message.contains("is not understood"), "{message}");
}

#[test]
fn the_configuration_names_the_other_hosts() {
    let lab = Lab::hosts(3, STAND_IN);
    let config = lab
        .beta()
        .default_config()
        .lease("2s")
        .cache(false)
        .mtu(1400);
    let config = config.extra("[[policy]]\naction = \"deny\"").to_string();
    let wanted = r#"[node]
name = "beta"
underlay = "eth1"
address = "192.168.50.12"

[overlay]
subnet = "10.42.2.0/24"
network = "10.42.0.0/16"
vni = 42
port = 4789
mtu = 1400

[[peers]]
name = "alpha"
address = "192.168.50.11"
subnet = "10.42.1.0/24"

[[peers]]
name = "gamma"
address = "192.168.50.13"
subnet = "10.42.3.0/24"

[cache]
enabled = false
flows = 65536
lease = "2s"
mark_mask = "0x0fff0000"

[[policy]]
action = "deny"
"#;
    assert_eq!(config, wanted);
}
