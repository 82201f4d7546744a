//! What a container reaches by its gateway is chosen when it is added, and stays so.

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache_testbed::{Container, Lab, PATIENCE, Place, assert_same, eventually, traffic};

fn routes(place: &Place) -> Vec<String> {
    let text = place.run(&["ip", "-4", "route"]);
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn link(ip: &str) -> String {
    format!("10.42.1.0/24 dev eth0 proto kernel scope link src {ip}")
}

#[test]
fn default_overlay_and_none_are_what_they_say_and_stay_so() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let host = lab.alpha();
    let client = lab.beta().add_container("client");
    let by_default = host.add_container("plain");
    let default = host.add_container_with("default", &["--route", "default"]);
    let overlay = host.add_container_with("overlay", &["--route", "overlay"]);
    let none = host.add_container_with("none", &["--route", "none"]);
    // An address of elsewhere has nothing on its link but the gateway.
    let visitor = ["--ip", "10.42.2.77", "--route", "overlay"];
    let visitor = host.add_container_with("visitor", &visitor);
    let alone = host.add_container_with("alone", &["--ip", "10.42.2.78", "--route", "none"]);
    let gateway = |what: &str, more: &str| format!("{what} via 10.42.1.1 dev eth0 proto 79{more}");
    let wanted: [(&Container, Vec<String>); 6] = [
        (&by_default, vec![gateway("default", ""), link("10.42.1.2")]),
        (&default, vec![gateway("default", ""), link("10.42.1.3")]),
        (
            &overlay,
            vec![gateway("10.42.0.0/16", ""), link("10.42.1.4")],
        ),
        (&none, vec![link("10.42.1.5")]),
        (&visitor, vec![gateway("10.42.0.0/16", " onlink")]),
        (&alone, vec![]),
    ];
    let as_wanted = |when: &str| {
        for (container, wanted) in &wanted {
            assert_eq!(&routes(container), wanted, "{when}: {}", container.name);
        }
        for reached in [&by_default, &overlay] {
            eventually("the other host's container", PATIENCE, || {
                traffic::ping(reached, client.ip, 2).lossless()
            });
        }
        assert!(
            traffic::ping(&none, overlay.ip, 2).lossless(),
            "on its link"
        );
        let outside = |from: &Container, to: &str| {
            let found = from.output(&["ip", "route", "get", to]);
            found.status.success()
        };
        assert!(outside(&default, "192.0.2.1"));
        for shut in [&overlay, &none, &alone] {
            assert!(!outside(shut, "192.0.2.1"), "{when}: {}", shut.name);
        }
        assert!(!outside(&none, "10.42.2.2"), "{when}");
    };
    as_wanted("added");
    let list = host.oncache_json(&["container", "list", "--json"]);
    let of = |name: &str| {
        let all = list.as_array().expect("a list");
        let found = all.iter().find(|it| it["name"] == name).expect("it");
        found["route"].as_str().expect("a route").to_owned()
    };
    assert_eq!(
        ["plain", "default", "overlay", "none"].map(of),
        ["default", "default", "overlay", "none"]
    );
    host.restart();
    as_wanted("after a restart");
    host.write_config(&host.default_config().mtu(1400).to_string());
    host.signal(Signal::SIGHUP);
    assert!(host.wait_notified("READY=1", 2, PATIENCE));
    as_wanted("after another MTU");
    // The network of all containers is another one: the route to it is, too.
    host.remove_container("visitor");
    host.remove_container("alone");
    host.write_config(&host.default_config().network("10.42.0.0/18").to_string());
    host.signal(Signal::SIGHUP);
    assert!(host.wait_notified("READY=1", 3, PATIENCE));
    assert_eq!(
        routes(&overlay),
        [gateway("10.42.0.0/18", ""), link("10.42.1.4")]
    );
    assert_eq!(
        routes(&default),
        [gateway("default", ""), link("10.42.1.3")]
    );
    // State files of builds that knew of no other route.
    host.stop();
    host.sh("sed -i '/\"route\"/d' /var/lib/oncache/state.json; ! grep -q route /var/lib/oncache/state.json");
    host.start();
    let list = host.oncache_ok(&["container", "list", "--json"]);
    assert_eq!(list.matches("\"route\": \"default\"").count(), 4, "{list}");
}

#[test]
fn a_route_that_is_there_is_named_and_stays() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    let place = host.add_netns("old");
    host.sh("ip link add up0 type veth peer name up1 netns old; ip link set up0 up");
    place.sh("ip link set up1 up; ip address add 192.0.2.2/24 dev up1");
    let cases: &[(&str, &str, &[&str], &[&str])] = &[
        (
            "default via 192.0.2.1",
            "default",
            &[
                "`default via 192.0.2.1 dev up1`",
                "--route overlay or --route none",
            ],
            &["overlay", "none"],
        ),
        (
            "unreachable default",
            "default",
            &["`unreachable default`", "--route overlay"],
            &["overlay", "none"],
        ),
        (
            "10.42.0.0/16 via 192.0.2.1",
            "overlay",
            &["`10.42.0.0/16 via 192.0.2.1 dev up1`", "--route none"],
            &["default", "none"],
        ),
    ];
    for (route, taken, words, free) in cases {
        place.sh(&format!("ip route add {route}"));
        let before = (host.snapshot(), routes(&place));
        let add = [
            "container",
            "add",
            "new",
            "--netns",
            "/run/netns/old",
            "--route",
        ];
        let line = host.refused(&[&add[..], &[taken]].concat());
        println!("{route}: {line}");
        assert!(
            line.contains("container new") && line.contains("/run/netns/old"),
            "{line}"
        );
        for words in *words {
            assert!(line.contains(words), "{words}: {line}");
        }
        assert_same(&before.0, &host.snapshot(), route);
        assert_eq!(routes(&place), before.1, "{route}");
        for other in *free {
            host.oncache_ok(&[&add[..], &[other]].concat());
            let now = routes(&place);
            assert!(
                before.1.iter().all(|line| now.contains(line)),
                "{other}: {now:?}"
            );
            host.remove_container("new");
            assert_eq!(routes(&place), before.1, "{other} gone");
        }
        place.sh(&format!("ip route del {route}"));
    }
    // A namespace in which nothing has happened yet, not even to its loopback device.
    host.run(&["ip", "netns", "add", "bare"]);
    host.oncache_ok(&["container", "add", "bare", "--netns", "/run/netns/bare"]);
    // One of another metric is in nobody's way.
    place.sh("ip route add default via 192.0.2.1 metric 100");
    host.oncache_ok(&["container", "add", "new", "--netns", "/run/netns/old"]);
}
