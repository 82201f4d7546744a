//! What is compared: one lab a column, each of the same shape, all there at once.

use std::path::{Path, PathBuf};

use oncache_testbed::{Config, Container, Host, Lab, UNDERLAY};

use crate::floor::Floor;

/// Which way the packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host to host, no netfilter rule.
    BareHost,
    /// Host to host behind a usual stateful firewall.
    Host,
    /// Container to container by the slow path: `cache.enabled = false`.
    Overlay,
    /// Container to container with the caches.
    Oncache,
    /// Container to container by a look-up and a redirection on both sides, without encapsulation.
    Floor,
}

/// A column: its head, its kind, and the binary where it has one.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
    pub oncache: PathBuf,
}

impl Column {
    /// The five columns of every table.
    pub fn usual(oncache: &Path) -> Vec<Self> {
        [
            ("host0", Kind::BareHost),
            ("host", Kind::Host),
            ("overlay", Kind::Overlay),
            ("oncache", Kind::Oncache),
            ("floor", Kind::Floor),
        ]
        .map(|(name, kind)| Self {
            name: name.to_owned(),
            kind,
            oncache: oncache.to_owned(),
        })
        .into()
    }
}

/// How the wire treats TCP aggregates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Wire {
    /// Hands them over whole, as veth does by default.
    Whole,
    /// Segments them and puts them together again at the receiver: TSO and GSO off, GRO on, which
    /// is nearer to a NIC.
    Segmenting,
}

impl Wire {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Segmenting => "segmenting",
        }
    }
}

/// Stateful and short: what a host with services usually has.
const FIREWALL: &str = "
table inet firewall {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iif lo accept
        ip protocol icmp accept
        tcp dport { 22, 80, 443, 5000-6999 } accept
        udp dport { 53, 4789, 5000-6999 } accept
    }
    chain forward { type filter hook forward priority filter; policy drop; ct state established,related accept; }
    chain output { type filter hook output priority filter; policy accept; ct state invalid drop; }
}
";

/// A column set up: both ends of the traffic.
pub struct Bed {
    pub column: Column,
    pub lab: Lab,
    pub client: Container,
    pub server: Container,
    pub floor: Option<Floor>,
}

impl Bed {
    /// Makes the hosts, the wire and both ends.
    pub fn new(column: &Column, wire: Wire) -> Result<Self, String> {
        Self::with(column, wire, |config| config)
    }

    /// As [`Bed::new`], with daemons that are configured otherwise.
    pub fn with(
        column: &Column,
        wire: Wire,
        adjust: impl Fn(Config) -> Config,
    ) -> Result<Self, String> {
        let lab = Lab::two_hosts(&column.oncache);
        for host in lab.all() {
            host.set_sysctl(&format!("net.ipv4.conf.{UNDERLAY}.forwarding"), "1");
            if wire == Wire::Segmenting {
                host.run(&[
                    "ethtool", "-K", UNDERLAY, "gro", "on", "tso", "off", "gso", "off",
                ]);
            }
        }
        let mut floor = None;
        let (client, server) = match column.kind {
            Kind::BareHost | Kind::Host => {
                if column.kind == Kind::Host {
                    for host in lab.all() {
                        let rules = host.write_file("firewall.nft", FIREWALL);
                        host.run(&["nft", "-f", &rules.to_string_lossy()]);
                    }
                }
                (lab.alpha().as_container(), lab.beta().as_container())
            }
            Kind::Overlay | Kind::Oncache => {
                for host in lab.all() {
                    let config = host.default_config().cache(column.kind == Kind::Oncache);
                    host.write_config(&adjust(config).to_string());
                }
                lab.start();
                (
                    lab.alpha().add_container("client"),
                    lab.beta().add_container("server"),
                )
            }
            Kind::Floor => {
                let (made, client, server) = Floor::new(&lab)?;
                floor = Some(made);
                (client, server)
            }
        };
        for end in [&client, &server] {
            // Connection after connection: ports must come back, and nothing pile up.
            end.set_sysctl("net.ipv4.tcp_tw_reuse", "1");
            end.set_sysctl("net.ipv4.tcp_max_tw_buckets", "4096");
        }
        Ok(Self {
            column: column.clone(),
            lab,
            client,
            server,
            floor,
        })
    }

    /// Both hosts.
    pub fn hosts(&self) -> [&Host; 2] {
        [self.lab.alpha(), self.lab.beta()]
    }
}
