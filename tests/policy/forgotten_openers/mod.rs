//! A rule means the one who opened a flow, also where conntrack forgets or begins in mid-flow: what a
//! rule denies stops in both directions for good, whoever sends the first packet that is seen.

mod flow;
mod history;

use std::{collections::VecDeque, net::UdpSocket};

use self::{
    flow::{CLIENT, Flow, NEVER, PORT, SERVER, SURELY},
    history::{Known, Step},
};
use crate::ONCACHE;
use oncache_testbed::{Container, Host, Lab, PATIENCE, Random, eventually, policy::rule};

/// Which of the hosts forget, and how.
#[derive(Clone, Copy, Debug)]
enum Forgetting {
    Flush(&'static [usize]),
    Delete,
    Nothing,
}

fn forget(hosts: [&Host; 2], how: Forgetting, client: &Container) {
    match how {
        Forgetting::Flush(which) => {
            for host in which {
                hosts[*host].run(&["conntrack", "-F"]);
            }
        }
        Forgetting::Delete => {
            // It fails where there is none.
            let address = client.ip.to_string();
            hosts[0].output(&["conntrack", "-D", "-s", &address]);
            hosts[0].output(&["conntrack", "-D", "-d", &address]);
        }
        Forgetting::Nothing => {}
    }
}

/// What was learned before conntrack forgot serves for a lease: the next packet is to be judged.
fn by_the_slow_path(hosts: [&Host; 2]) {
    for host in hosts {
        host.oncache(&["cache", "flush"]);
    }
}

fn deny(client: &Container, protocol: &str) -> String {
    let (from, port) = (
        format!("from = \"{}\"", client.ip),
        format!("ports = [{PORT}]"),
    );
    rule(
        "deny",
        &[&from, &format!("protocol = \"{protocol}\""), &port],
    )
}

fn allow_only(client: &Container, protocol: &str) -> String {
    let (from, port) = (
        format!("from = \"{}\"", client.ip),
        format!("ports = [{PORT}]"),
    );
    let allow = rule(
        "allow",
        &[&from, &format!("protocol = \"{protocol}\""), &port],
    );
    format!("{allow}{}", rule("deny", &[]))
}

/// The ends of flows: between hosts, on one host, and towards the host.
fn places(lab: &Lab) -> Vec<(&'static str, Container, Container)> {
    let (alpha, beta) = (lab.alpha(), lab.beta());
    // Where br_netfilter is there, it shows bridged packets to conntrack at all times by default.
    if alpha.sysctl("net.bridge.bridge-nf-call-iptables").is_some() {
        alpha.set_sysctl("net.bridge.bridge-nf-call-iptables", "0");
    }
    let one = alpha.add_container("one");
    vec![
        ("between hosts", one.clone(), beta.add_container("far")),
        ("on one host", one.clone(), alpha.add_container("two")),
        ("towards the host", one, alpha.gateway()),
    ]
}

type Make = fn(&Container, &Container) -> Flow;
const PROTOCOLS: [(&str, Make); 2] = [("tcp", Flow::tcp), ("udp", Flow::udp)];

fn a_denied_flow_stops_whoever_is_seen_first(lab: &Lab, number: usize) {
    let hosts = [lab.alpha(), lab.beta()];
    for (place, client, server) in places(lab).into_iter().take(number) {
        for (protocol, make) in PROTOCOLS {
            for how in [
                Forgetting::Nothing,
                Forgetting::Flush(&[0]),
                Forgetting::Flush(&[0, 1]),
                Forgetting::Delete,
            ] {
                for first in [SERVER, CLIENT] {
                    if matches!((how, first), (Forgetting::Nothing, CLIENT))
                        || (matches!(how, Forgetting::Flush([0, 1])) && place != "between hosts")
                    {
                        continue;
                    }
                    let mut flow = make(&client, &server);
                    let when = format!("{place}, {protocol}, {how:?}, then end {first} speaks");
                    forget(hosts, how, &client);
                    // The next packet is seen.
                    let _ = hosts[0].oncache(&["cache", "flush"]);
                    assert!(flow.say(first, SURELY), "{when}: no rule yet");
                    hosts[0].apply_policy(&deny(&client, protocol));
                    for speaker in [SERVER, CLIENT, SERVER] {
                        assert!(!flow.say(speaker, NEVER), "{when}: end {speaker} is heard");
                    }
                    assert!(hosts[0].rule_packets(1) > 0, "{when}: nothing is counted");
                    // Nor does it come back while it is denied.
                    forget(hosts, how, &client);
                    for speaker in [first, 1 - first, first] {
                        assert!(
                            !flow.say(speaker, NEVER),
                            "{when}: again, end {speaker} is heard"
                        );
                    }
                    hosts[0].clear_policy();
                    for speaker in [CLIENT, SERVER] {
                        assert!(flow.say(speaker, SURELY), "{when}: allowed again");
                    }
                }
            }
        }
    }
}

#[test]
fn a_denied_flow_stops_whoever_is_seen_first_after_conntrack_forgot() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    a_denied_flow_stops_whoever_is_seen_first(&lab, 3);
}

#[test]
fn a_denied_flow_stops_with_the_cache_off_too() {
    let lab = Lab::two_hosts(ONCACHE);
    for host in lab.all() {
        let config = host.default_config().cache(false);
        host.write_config(&config.to_string());
    }
    lab.start();
    a_denied_flow_stops_whoever_is_seen_first(&lab, 1);
}

#[test]
fn an_allowed_flow_goes_on_as_long_as_its_opener_is_known() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let hosts = [lab.alpha(), lab.beta()];
    for (place, client, server) in places(&lab) {
        for (protocol, make) in PROTOCOLS {
            let mut flow = make(&client, &server);
            if place == "on one host" && protocol == "tcp" {
                // Nothing looked on when it was opened: the bridge has no conntrack without rules.
                hosts[0].apply_policy(&allow_only(&client, protocol));
                assert!(
                    !flow.say(CLIENT, NEVER),
                    "{place}, {protocol}: opened by whom?"
                );
                hosts[0].clear_policy();
                continue;
            }
            for speaker in [SERVER, CLIENT] {
                hosts[0].apply_policy(&allow_only(&client, protocol));
                for speaker in [speaker, 1 - speaker, speaker] {
                    assert!(
                        flow.say(speaker, SURELY),
                        "{place}, {protocol}: end {speaker}"
                    );
                }
                hosts[0].clear_policy();
            }
            if protocol == "udp" {
                forget(hosts, Forgetting::Flush(&[0]), &client);
                hosts[0].apply_policy(&allow_only(&client, protocol));
                for speaker in [SERVER, CLIENT] {
                    assert!(
                        flow.say(speaker, SURELY),
                        "{place}, {protocol}: after a flush"
                    );
                }
                // Asked and answered under the rules, and nothing the other way.
                drop(flow);
                assert!(Flow::udp(&client, &server).say(SERVER, SURELY));
                let own = server.enter(|| UdpSocket::bind((server.ip, 0)).expect("bind"));
                let port = client.enter(|| UdpSocket::bind((client.ip, 0)).expect("bind"));
                port.set_read_timeout(Some(NEVER)).expect("a time-out");
                let _ = own.send_to(b"x", port.local_addr().expect("bound"));
                assert!(
                    port.recv(&mut [0; 8]).is_err(),
                    "{place}: the server opens a flow"
                );
                hosts[0].clear_policy();
            }
        }
    }
}

#[test]
fn whoever_gets_an_address_next_has_opened_nothing() {
    const CLIENT_PORT: u16 = 7300;
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let alpha = lab.alpha();
    let bind = |end: &Container, port| {
        let socket = end.enter(|| UdpSocket::bind((end.ip, port)).expect("bind"));
        socket.set_read_timeout(Some(SURELY)).expect("a time-out");
        socket
    };
    let servers = [alpha.add_container("two"), lab.beta().add_container("far")];
    for server in servers {
        let former = alpha.add_container("former");
        let answering = bind(&server, PORT);
        {
            let asking = bind(&former, CLIENT_PORT);
            asking.send_to(b"x", (server.ip, PORT)).expect("sent");
            let (_, from) = answering.recv_from(&mut [0; 8]).expect("asked");
            answering.send_to(b"x", from).expect("sent");
            assert!(asking.recv(&mut [0; 8]).is_ok(), "answered");
        }
        alpha.remove_container("former");
        let address = former.ip.to_string();
        let next = alpha.add_container_with("next", &["--ip", &address]);
        let hearing = bind(&next, CLIENT_PORT);
        alpha.apply_policy(&allow_only(&next, "udp"));
        let _ = answering.send_to(b"x", (next.ip, CLIENT_PORT));
        hearing.set_read_timeout(Some(NEVER)).expect("a time-out");
        assert!(
            hearing.recv(&mut [0; 8]).is_err(),
            "{} is answered, and has not asked",
            server.name
        );
        alpha.clear_policy();
        hearing.set_read_timeout(Some(SURELY)).expect("a time-out");
        let _ = answering.send_to(b"x", (next.ip, CLIENT_PORT));
        assert!(hearing.recv(&mut [0; 8]).is_ok(), "without rules");
        alpha.remove_container("next");
    }
}

#[test]
fn the_labels_know_what_a_flush_of_the_ruleset_forgets() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let alpha = lab.alpha();
    for (place, client, server) in places(&lab) {
        for (protocol, make) in PROTOCOLS {
            for rules in [false, true] {
                let mut flow = make(&client, &server);
                let when = format!("{place}, {protocol}, rules before: {rules}");
                if rules {
                    alpha.apply_policy(&deny(&client, protocol));
                }
                alpha.run(&["nft", "flush", "ruleset"]);
                eventually("the tables are back", PATIENCE, || {
                    let tables = alpha.run(&["nft", "list", "tables"]);
                    tables.matches("oncache-policy").count() == 2
                });
                let _ = flow.leaks(NEVER);
                if rules {
                    assert!(!flow.say(SERVER, NEVER), "{when}: the server first");
                } else {
                    assert!(flow.say(SERVER, SURELY), "{when}: no rule");
                }
                alpha.apply_policy(&deny(&client, protocol));
                for speaker in [SERVER, CLIENT, SERVER] {
                    assert!(!flow.say(speaker, NEVER), "{when}: end {speaker} is heard");
                }
                alpha.clear_policy();
            }
        }
    }
}

#[test]
fn whatever_is_forgotten_at_whatever_moment_nothing_denied_passes() {
    const STEPS: usize = 24;
    let mut random = Random::seeded();
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let hosts = [lab.alpha(), lab.beta()];
    let (mut said, mut stopped) = (0, 0);
    for (place, client, server) in places(&lab) {
        for (protocol, make) in PROTOCOLS {
            for _ in 0..2 {
                let mut flow = make(&client, &server);
                let mut known = Known {
                    // Over a bridge nothing looks on before the first rule.
                    opener: protocol == "udp" || place != "on one host",
                    rules: Step::Clear,
                };
                let mut done = VecDeque::new();
                for _ in 0..STEPS {
                    let step = match random.below(12) {
                        0..6 => Step::Say(*random.one_of(&[CLIENT, SERVER])),
                        6 => Step::Flush(0),
                        7 => Step::Flush(1),
                        8 => Step::Delete,
                        9 => Step::Deny,
                        10 => Step::AllowOnly,
                        _ => Step::Clear,
                    };
                    done.push_back(step);
                    known.after(step, protocol);
                    match step {
                        Step::Say(speaker) => {
                            let passes = known.passes();
                            let patience = if passes { SURELY } else { NEVER };
                            let heard = flow.say(speaker, patience);
                            said += 1;
                            stopped += usize::from(!heard);
                            assert_eq!(heard, passes, "{place}, {protocol}: {done:?}, {known:?}");
                        }
                        Step::Flush(host) => {
                            hosts[host].run(&["conntrack", "-F"]);
                            by_the_slow_path(hosts);
                        }
                        Step::Delete => {
                            forget(hosts, Forgetting::Delete, &client);
                            by_the_slow_path(hosts);
                        }
                        Step::Deny => {
                            hosts[0].apply_policy(&deny(&client, protocol));
                        }
                        Step::AllowOnly => {
                            hosts[0].apply_policy(&allow_only(&client, protocol));
                        }
                        Step::Clear => hosts[0].clear_policy(),
                    }
                }
                hosts[0].clear_policy();
                for speaker in [CLIENT, SERVER] {
                    assert!(
                        flow.say(speaker, SURELY),
                        "{place}, {protocol}: without rules again"
                    );
                }
            }
        }
    }
    println!("{said} times an end spoke, {stopped} times it had to be stopped and was");
    assert!(stopped > 5 && said > stopped + 5, "{said}, {stopped}");
}
