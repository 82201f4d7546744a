//! Which address of the underlay device is the tunnel's, where the file does not say: generated sequences of
//! addresses that come and go, against a reference.

use std::{net::Ipv4Addr, thread::sleep, time::Duration};

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache_testbed::{Host, Lab, PATIENCE, Random, eventually, traffic};

/// Longer than the daemon gathers notifications.
const SETTLED: Duration = Duration::from_millis(200);
const OWN: &str = "192.168.50.11/24";
const VIP: &str = "192.168.50.99/32";
/// Given to a host that has none to choose.
const LAST: &str = "192.168.52.11/24";
/// All that the sequences add and remove: its own, service addresses, further ones of the same subnet and
/// of others.
const ADDRESSES: [&str; 7] = [
    OWN,
    VIP,
    "192.168.50.98/32",
    "192.168.50.97/24",
    "192.168.51.11/24",
    "172.30.0.1/16",
    LAST,
];

/// A configuration that leaves the address to the daemon.
fn without_address(host: &Host) -> String {
    let text = host.default_config().to_string();
    let line = format!("address = \"{}\"\n", host.address());
    assert_eq!(text.matches(&line).count(), 1, "{text}");
    text.replace(&line, "")
}

/// The underlay device's addresses in the kernel's order: prefix length, whether secondary.
fn present(host: &Host) -> Vec<(Ipv4Addr, u64, bool)> {
    let text = host.run(&["ip", "-4", "-j", "address", "show", "dev", "eth1"]);
    let text = if text.trim().is_empty() { "[]" } else { &text };
    let listing: serde_json::Value = serde_json::from_str(text).expect("ip prints JSON");
    let entries = listing[0]["addr_info"].as_array();
    let entries = entries.into_iter().flatten().filter_map(|it| {
        let address = it["local"].as_str()?.parse().ok()?;
        Some((address, it["prefixlen"].as_u64()?, it["secondary"] == true))
    });
    entries.collect()
}

/// What a host chooses that has not chosen yet.
fn reference(present: &[(Ipv4Addr, u64, bool)]) -> Option<Ipv4Addr> {
    let mut own = present
        .iter()
        .filter(|(_, prefix, secondary)| *prefix < 32 && !secondary);
    own.next().map(|(address, ..)| *address)
}

fn tunnel(host: &Host) -> Ipv4Addr {
    let text = host.run(&["ip", "-d", "-j", "link", "show", "dev", "oncache-vx0"]);
    let listing: serde_json::Value = serde_json::from_str(&text).expect("ip prints JSON");
    let local = listing[0]["linkinfo"]["info_data"]["local"].as_str();
    local.expect("a local address").parse().expect("an address")
}

fn warns(host: &Host) -> bool {
    let status = host.status();
    let warnings = status["warnings"].as_array().expect("warnings");
    warnings
        .iter()
        .any(|it| it.as_str().is_some_and(|it| it.contains("has lost")))
}

fn has(host: &Host, address: Ipv4Addr) -> bool {
    present(host).iter().any(|(it, ..)| *it == address)
}

/// The tunnel is at `chosen`, and `status` says whether the device is, too.
fn check(host: &Host, chosen: Ipv4Addr, history: &[String]) {
    assert_eq!(tunnel(host), chosen, "{history:#?}");
    let status = host.status();
    assert_eq!(status["address"], chosen.to_string(), "{history:#?}");
    let away = !has(host, chosen);
    eventually(
        &format!("status warns: {away}; {history:#?}"),
        PATIENCE,
        || warns(host) == away,
    );
    assert_eq!(tunnel(host), chosen, "{history:#?}");
}

#[test]
fn a_flap_beside_a_service_address_does_not_move_the_tunnel() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    alpha.write_config(&without_address(alpha));
    lab.start();
    let (client, server) = (
        alpha.add_container("client"),
        lab.beta().add_container("server"),
    );
    oncache_testbed::until_fast([alpha, lab.beta()], &client, &server);
    alpha.run(&["ip", "address", "add", VIP, "dev", "eth1"]);
    let (from, in_part) = (alpha.log().len(), alpha.invalidations("mended-in-part"));

    alpha.run(&["ip", "address", "del", OWN, "dev", "eth1"]);
    eventually("status warns", PATIENCE, || warns(alpha));
    let warning = alpha.oncache_ok(&["status"]);
    assert!(
        warning.contains("warning: eth1 has lost 192.168.50.11"),
        "{warning}"
    );
    assert!(
        !traffic::ping(&client, server.ip, 1).lossless(),
        "who would answer?"
    );
    sleep(Duration::from_millis(1500));
    assert_eq!(tunnel(alpha), alpha.address());

    alpha.run(&["ip", "address", "add", OWN, "dev", "eth1"]);
    eventually("status warns no more", PATIENCE, || !warns(alpha));
    oncache_testbed::until_fast_again([alpha, lab.beta()], &client, &server);
    let lines = alpha.log_since(from);
    println!("{lines:#?}");
    let said = |level: &str, what: &str| {
        let found = lines
            .iter()
            .filter(|it| it.contains(level) && it.contains(what));
        found.count()
    };
    assert_eq!(said("ERROR", "192.168.50.11"), 1, "one line, once");
    assert_eq!(said("INFO", "has 192.168.50.11 again"), 1);
    assert_eq!(said("", "192.168.50.99"), 0);
    assert_eq!(alpha.invalidations("mended-in-part"), in_part);
}

#[test]
fn whatever_comes_and_goes_the_tunnel_is_where_the_reference_says() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    alpha.write_config(&without_address(alpha));
    alpha.start();
    let mut random = Random::seeded();
    let mut chosen = alpha.address();
    let mut history = vec![];
    let (mut anew, mut refused, mut away) = (0, 0, 0);
    for _ in 0..40 {
        let address = *random.one_of(&ADDRESSES);
        // Half of the time it is the address in force that is meant.
        let net = if random.below(2) == 0 {
            let named = ADDRESSES
                .iter()
                .find(|it| it.starts_with(&format!("{chosen}/")));
            named.copied().unwrap_or(address)
        } else {
            address
        };
        let ip: Ipv4Addr = net
            .split('/')
            .next()
            .expect("an address")
            .parse()
            .expect("an address");
        let change = |verb| alpha.run(&["ip", "address", verb, net, "dev", "eth1"]);
        match random.below(12) {
            0..=6 if has(alpha, ip) => {
                change("del");
                history.push(format!("del {net}"));
            }
            0..=6 => {
                change("add");
                history.push(format!("add {net}"));
            }
            7 | 8 if has(alpha, ip) => {
                change("del");
                sleep(Duration::from_millis(u64::from(10 * random.below(30))));
                change("add");
                history.push(format!("flap {net}"));
            }
            9 => {
                alpha.signal(Signal::SIGHUP);
                history.push("reload".to_owned());
            }
            10 => {
                if random.below(2) == 0 {
                    alpha.kill9();
                } else {
                    alpha.stop();
                }
                alpha.start();
                history.push("restart".to_owned());
            }
            11 => {
                alpha.oncache_ok(&["down"]);
                history.push("down, start".to_owned());
                let wanted = reference(&present(alpha));
                match (wanted, alpha.try_start()) {
                    (Some(wanted), Ok(())) => {
                        anew += usize::from(wanted != chosen);
                        chosen = wanted;
                    }
                    (None, Err(why)) => {
                        refused += 1;
                        assert!(why.contains("node.underlay \"eth1\""), "{why}");
                        let only = present(alpha).is_empty() || why.contains("set node.address");
                        assert!(only, "{why}");
                        alpha.run(&["ip", "address", "add", LAST, "dev", "eth1"]);
                        alpha.start();
                        chosen = reference(&present(alpha)).expect("one that was just added");
                        alpha.run(&["ip", "address", "del", LAST, "dev", "eth1"]);
                    }
                    (wanted, started) => panic!("{wanted:?}, {started:?}: {history:#?}"),
                }
            }
            _ => continue,
        }
        sleep(SETTLED);
        check(alpha, chosen, &history);
        away += usize::from(!has(alpha, chosen));
    }
    println!(
        "{} steps, {away} with the address away, {anew} chosen anew, {refused} refused",
        history.len()
    );
    assert!(away > 0, "the test shows nothing: {history:#?}");
}
