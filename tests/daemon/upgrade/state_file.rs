//! State files of other versions.

use crate::ONCACHE;
use oncache_testbed::{Lab, assert_same, until_fast};

const STATE: &str = "/var/lib/oncache/state.json";

#[test]
fn a_newer_state_is_refused_and_everything_goes_on() {
    let lab = Lab::two_hosts(ONCACHE);
    let (alpha, beta) = (lab.alpha(), lab.beta());
    lab.start();
    let web = alpha.add_container("web");
    let server = beta.add_container("server");
    until_fast([alpha, beta], &web, &server);
    alpha.stop();
    alpha.sh(&format!(
        "sed -i 's/\"version\": [0-9]*/\"version\": 99, \"shape\": [[]]/' {STATE}"
    ));
    let before = (alpha.snapshot(), alpha.sh(&format!("cat {STATE}")));
    let config = alpha.config_path();
    let line = alpha.refused(&["run", "--config", config.to_str().expect("a path of ours")]);
    println!("{line}");
    for words in [STATE, "format 99", "newer", "run the newer one again"] {
        assert!(line.contains(words), "{words}: {line}");
    }
    let line = alpha.refused(&["down"]);
    assert!(line.contains("format 99"), "{line}");
    assert_same(
        &before.0,
        &alpha.snapshot(),
        "a refused start and a refused down",
    );
    assert_eq!(before.1, alpha.sh(&format!("cat {STATE}")));
    let report = oncache_testbed::traffic::Rounds::new(200).udp(&web, &server, 0);
    assert_eq!(report.completed, 200, "{report}");

    // The newer one is back: it finds its state.
    alpha.sh(&format!(
        "sed -i 's/\"version\": 99, \"shape\": \\[\\[\\]\\]/\"version\": 1/' {STATE}"
    ));
    alpha.start();
    until_fast([alpha, beta], &web, &server);
}

#[test]
fn a_state_with_fields_that_are_not_known_is_read() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    alpha.start();
    let web = alpha.add_container("web");
    alpha.stop();
    let before = alpha.snapshot();
    alpha.sh(&format!(
        "sed -i 's/\"version\": \\([0-9]*\\)/\"version\": \\1, \"later\": {{}}/; s/\"ifname\"/\"later\": 1, \"ifname\"/' {STATE}
         grep -q later {STATE}"
    ));
    alpha.start();
    assert_same(
        &before.without("file"),
        &alpha.snapshot().without("file"),
        "an added field",
    );
    assert_eq!(alpha.container("web").ip, web.ip);
}

#[test]
fn what_a_reboot_has_taken_is_not_looked_for() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    alpha.start();
    let web = alpha.add_container("web");
    alpha.add_container("db");
    alpha.stop();
    // A reboot takes the devices. Then somebody makes a namespace of the name, which gets the number that the
    // container's had.
    alpha.sh(&format!(
        "ip link del onc-web; ip link del onc-db; ip netns del db
         sed -i 's/\"boot\": \"[^\"]*\"/\"boot\": \"another\"/' {STATE}
         grep -q '\"boot\": \"another\"' {STATE}"
    ));
    let namespace = "stat --format %i /run/netns/web";
    let before = alpha.sh(namespace);
    alpha.start();
    assert_eq!(alpha.sh(namespace), before, "it is somebody else's");
    let log = alpha.log();
    for name in ["web", "db"] {
        let line = format!("container {name}: gone with the host's last boot");
        assert_eq!(log.matches(&line).count(), 1, "{log}");
    }
    let listed = alpha.oncache_json(&["container", "list", "--json"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(0), "{listed}");
    // Its address is free, and the name.
    let address = web.ip.to_string();
    alpha.oncache_ok(&["container", "add", "db", "--ip", &address]);
    alpha.oncache_ok(&["container", "add", "web", "--netns", "/run/netns/web"]);
    alpha.stop();
    alpha.start();
    let listed = alpha.oncache_json(&["container", "list", "--json"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    alpha.oncache_ok(&["down"]);
    assert_eq!(
        alpha.sh(namespace),
        before,
        "down leaves what it has not made"
    );
}
