//! The overlay behind a firewall as NixOS has it, by either of its backends: what the module tells it
//! (`nixos/firewall.nix`) lets the overlay pass, and nobody else.
//!
//! The firewall here is a model of NixOS's with the chains that those rules are for: input, and with
//! nftables forward, refuse what they do not know, and prerouting refuses what has no way back.

use std::process::Command;

use crate::ONCACHE;
use oncache_testbed::{
    Container, Host, Lab, PATIENCE, eventually,
    traffic::{self, Direction},
    until_fast_again,
};
use serde::Deserialize;

/// What `firewall.nix` says.
#[derive(Debug, Deserialize)]
struct Rules {
    nftables: Nftables,
    iptables: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Nftables {
    input: String,
    reverse_path: String,
    forward: String,
}

/// The rules for a host of `nixos/hosts.nix`: alpha, beta or gamma, whose peers are the other two.
fn rules(host: &Host) -> Rules {
    let nixos = concat!(env!("CARGO_MANIFEST_DIR"), "/nixos");
    let expression = format!(
        "import {nixos}/firewall.nix {{
           settings = (import {nixos}/hosts.nix).settings {:?};
           open = true; reversePath = true; forward = true; outside = true;
         }}",
        host.name
    );
    let output = Command::new("nix-instantiate")
        .args(["--eval", "--strict", "--json", "--expr", &expression])
        .output()
        .expect("nix-instantiate, which `make setup` installs");
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Puts up a firewall by nftables.
fn nftables(host: &Host, rules: &Nftables) {
    let ruleset = format!(
        "table inet nixos-fw
         delete table inet nixos-fw
         table inet nixos-fw {{
           chain rpfilter {{
             type filter hook prerouting priority mangle + 10; policy drop;
             fib saddr . mark . iif oif exists accept
             jump rpfilter-allow
           }}
           chain rpfilter-allow {{
             {}
           }}
           chain input {{
             type filter hook input priority filter; policy drop;
             iifname lo accept
             ct state vmap {{
               invalid : drop, established : accept, related : accept,
               new : jump input-allow, untracked : jump input-allow
             }}
           }}
           chain input-allow {{
             {}
           }}
           chain forward {{
             type filter hook forward priority filter; policy drop;
             ct state vmap {{
               invalid : drop, established : accept, related : accept,
               new : jump forward-allow, untracked : jump forward-allow
             }}
           }}
           chain forward-allow {{
             {}
           }}
         }}",
        rules.reverse_path, rules.input, rules.forward
    );
    let path = host.write_file("firewall.nft", &ruleset);
    host.run(&["nft", "-f", path.to_str().expect("a path of ours")]);
}

/// Puts up a firewall by iptables; `commands` are run where NixOS runs extraCommands.
fn iptables(host: &Host, commands: &str) {
    host.sh(&format!(
        "iptables -w -t mangle -D PREROUTING -j nixos-fw-rpfilter 2>/dev/null || true
         iptables -w -t mangle -F nixos-fw-rpfilter 2>/dev/null || true
         iptables -w -t mangle -X nixos-fw-rpfilter 2>/dev/null || true
         iptables -w -D INPUT -j nixos-fw 2>/dev/null || true
         for chain in nixos-fw nixos-fw-accept; do
           iptables -w -F $chain 2>/dev/null || true
           iptables -w -X $chain 2>/dev/null || true
         done
         iptables -w -N nixos-fw-accept
         iptables -w -A nixos-fw-accept -j ACCEPT
         iptables -w -N nixos-fw
         iptables -w -t mangle -N nixos-fw-rpfilter
         iptables -w -t mangle -A nixos-fw-rpfilter -m rpfilter --validmark -j RETURN
         iptables -w -t mangle -A nixos-fw-rpfilter -j DROP
         iptables -w -t mangle -A PREROUTING -j nixos-fw-rpfilter
         iptables -w -A nixos-fw -i lo -j nixos-fw-accept
         iptables -w -A nixos-fw -m conntrack --ctstate ESTABLISHED,RELATED -j nixos-fw-accept
         {commands}
         iptables -w -A nixos-fw -j DROP
         iptables -w -A INPUT -j nixos-fw"
    ));
}

fn reaches(from: &Container, to: &Container) -> bool {
    traffic::ping(from, to.ip, 1).lossless()
}

/// `put_up` makes a firewall of a host, with the module's rules or without.
fn overlay_behind(put_up: impl Fn(&Host, bool)) {
    let lab = Lab::hosts(4, ONCACHE);
    let [alpha, beta, _, delta] = lab.all() else {
        unreachable!("four hosts were asked for")
    };
    let hosts = [alpha, beta];
    for host in [alpha, beta, delta] {
        host.start();
    }
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    // To oncache a peer of alpha's, but not to the module's settings.
    let stranger = delta.add_container("stranger");
    until_fast_again(hosts, &client, &server);
    assert!(reaches(&stranger, &client), "without a firewall");

    // A host that sends its own traffic to the containers elsewhere than what it forwards: the way back
    // that the filter looks for is another.
    for (host, to) in [(alpha, beta.subnet()), (beta, alpha.subnet())] {
        host.sh(&format!(
            "ip route add unreachable default table 99; ip rule add iif lo to {to} lookup 99"
        ));
    }
    for host in hosts {
        put_up(host, false);
    }
    assert!(
        !reaches(&client, &server),
        "such a firewall alone refuses the overlay"
    );

    for host in hosts {
        put_up(host, true);
    }
    let took = until_fast_again(hosts, &client, &server);
    println!("on the fast path {took:.1?} after the firewall");
    let report = traffic::transfer(&client, &server, 0, 20_000_000, Direction::Both);
    println!("{report}");
    assert!(report.intact(), "{report}");

    // Nobody else gets in, even with the right VNI.
    eventually("the firewall refuses a stranger", PATIENCE, || {
        !reaches(&stranger, &client)
    });
    assert!(reaches(&client, &server));
}

#[test]
fn by_nftables() {
    overlay_behind(|host, told| {
        let rules = if told {
            rules(host).nftables
        } else {
            Nftables::default()
        };
        println!("{}: {rules:#?}", host.name);
        nftables(host, &rules);
    });
}

#[test]
fn by_iptables() {
    overlay_behind(|host, told| {
        let commands = if told {
            rules(host).iptables
        } else {
            String::new()
        };
        println!("{}:\n{commands}", host.name);
        iptables(host, &commands);
    });
}
