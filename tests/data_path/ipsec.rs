//! IPsec's policies: what they are for does not leave in the clear by the fast path, nor come in by it.

use std::{thread, time::Duration};

use oncache_testbed::{
    Container, Hits, Host, Lab, PATIENCE, eventually, traffic::Rounds, until_fast,
};

/// `alpha` and two peers, a container on each and a second one on `alpha`.
struct Scene {
    lab: Lab,
    web: Container,
    other: Container,
    beta: Container,
    gamma: Container,
}

fn scene() -> Scene {
    let lab = Lab::hosts(3, crate::ONCACHE);
    for host in lab.all() {
        host.write_config(&host.default_config().to_string());
    }
    lab.start();
    let [alpha, beta, gamma] = [0, 1, 2].map(|number| &lab[number]);
    Scene {
        web: alpha.add_container("web"),
        other: alpha.add_container("other"),
        beta: beta.add_container("beta"),
        gamma: gamma.add_container("gamma"),
        lab,
    }
}

fn not_carried(host: &Host) -> Vec<String> {
    let status = host.status();
    let all = status["not_carried"].as_array().expect("a list");
    all.iter()
        .map(|it| format!("{} {}", it["reason"], it["flows"]).replace('"', ""))
        .collect()
}

fn until_known(host: &Host, expected: &[&str]) {
    eventually(&format!("status says {expected:?}"), PATIENCE, || {
        not_carried(host) == expected
    });
}

impl Scene {
    fn hosts(&self, number: usize) -> [&Host; 2] {
        [&self.lab[0], &self.lab[number]]
    }

    fn all_fast(&self) {
        until_fast(self.hosts(1), &self.web, &self.beta);
        until_fast(self.hosts(1), &self.other, &self.beta);
        until_fast(self.hosts(2), &self.web, &self.gamma);
    }
}

/// Packets that the fast path of `alpha` carries while datagrams are exchanged, however many of them.
fn carried(scene: &Scene, from: &Container, to: &Container) -> u64 {
    let before = Hits::of(&scene.lab[0]);
    let _ = Rounds::new(2).udp(from, to, 0);
    let now = Hits::of(&scene.lab[0]);
    (now.egress - before.egress) + (now.ingress - before.ingress)
}

#[test]
fn a_policy_for_a_peer_ends_the_fast_path_to_that_peer() {
    let scene = scene();
    let alpha = &scene.lab[0];
    scene.all_fast();
    let (here, there) = ("192.168.50.11/32", "192.168.50.12/32");
    for (direction, source, destination, level) in [
        // Passes as it is while there is no security association, and some day there is.
        ("out", here, there, "use"),
        ("in", there, here, "use"),
        // Dropped for want of one.
        ("out", here, there, "required"),
    ] {
        let selector = format!("src {source} dst {destination} dir {direction}");
        let raised = alpha.invalidations("ipsec");
        alpha.sh(&format!(
            "ip xfrm policy add {selector} tmpl src {} dst {} proto esp mode transport reqid 1 level {level}",
            source.trim_end_matches("/32"),
            destination.trim_end_matches("/32"),
        ));
        let line = format!("policy {source} to {destination} ({direction}) peer 192.168.50.12");
        // At once: no comparison is waited for.
        eventually("a new epoch", PATIENCE, || {
            alpha.invalidations("ipsec") > raised
        });
        assert_eq!(carried(&scene, &scene.web, &scene.beta), 0, "{line}");
        until_known(alpha, &[&line]);
        for _ in 0..5 {
            assert_eq!(carried(&scene, &scene.web, &scene.beta), 0, "{line}");
        }
        until_fast(scene.hosts(2), &scene.web, &scene.gamma);
        alpha.sh(&format!("ip xfrm policy delete {selector}"));
        until_known(alpha, &[]);
        scene.all_fast();
    }
}

#[test]
fn a_policy_for_a_container_ends_the_fast_path_of_that_container() {
    let scene = scene();
    let alpha = &scene.lab[0];
    scene.all_fast();
    let ip = scene.web.ip;
    for direction in ["fwd", "out"] {
        let selector = format!("src {ip}/32 dst 10.42.2.0/24 dir {direction}");
        alpha.sh(&format!("ip xfrm policy add {selector} action block"));
        let line = format!("policy {ip}/32 to 10.42.2.0/24 ({direction}) container web");
        until_known(alpha, &[&line]);
        assert_eq!(carried(&scene, &scene.web, &scene.beta), 0, "{line}");
        assert!(alpha.counters().get("egress", "withheld") > 0);
        until_fast(scene.hosts(1), &scene.other, &scene.beta);
        alpha.sh(&format!("ip xfrm policy delete {selector}"));
        until_known(alpha, &[]);
        scene.all_fast();
    }
    // What lets packets pass as they are is in nobody's way; nor is what is for an xfrm device's packets.
    alpha.sh(&format!(
        "ip xfrm policy add src {ip}/32 dst 0.0.0.0/0 dir out action allow
         ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out if_id 7 tmpl proto esp mode tunnel"
    ));
    thread::sleep(Duration::from_millis(500));
    until_known(alpha, &[]);
    scene.all_fast();
}
