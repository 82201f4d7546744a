//! The daemon's configuration file, as text.

use std::{fmt, net::Ipv4Addr};

/// One host as the others' configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The host's name.
    pub name: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// Its containers' subnet.
    pub subnet: String,
}

impl Peer {
    /// The lab's host number `number`, counted from one.
    pub(crate) fn of_lab((name, number): (&&str, u8)) -> Self {
        Self {
            name: (*name).to_owned(),
            address: Ipv4Addr::new(192, 168, 50, 10 + number),
            subnet: format!("10.42.{number}.0/24"),
        }
    }
}

/// Builds a `config.toml`; `to_string()` is the file's text.
#[derive(Debug, Clone)]
pub struct Config {
    node: Peer,
    underlay: String,
    network: String,
    vni: u32,
    port: u16,
    mtu: String,
    peers: Vec<Peer>,
    enabled: bool,
    flows: u32,
    lease: String,
    mark_mask: String,
    extra: String,
}

impl Config {
    pub(crate) fn new(node: Peer, peers: Vec<Peer>, underlay: &str) -> Self {
        Self {
            node,
            underlay: underlay.to_owned(),
            network: "10.42.0.0/16".to_owned(),
            vni: 42,
            port: 4789,
            mtu: "auto".to_owned(),
            peers,
            enabled: true,
            flows: 65536,
            lease: "30s".to_owned(),
            mark_mask: "0x0fff0000".to_owned(),
            extra: String::new(),
        }
    }

    /// The subnet of this host's containers.
    #[must_use]
    pub fn subnet(mut self, subnet: &str) -> Self {
        subnet.clone_into(&mut self.node.subnet);
        self
    }

    /// The network of all hosts' containers.
    #[must_use]
    pub fn network(mut self, network: &str) -> Self {
        network.clone_into(&mut self.network);
        self
    }

    /// The VXLAN network identifier.
    #[must_use]
    pub fn vni(mut self, vni: u32) -> Self {
        self.vni = vni;
        self
    }

    /// The UDP port of VXLAN.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The containers' MTU: `auto` or a number.
    #[must_use]
    pub fn mtu(mut self, mtu: impl fmt::Display) -> Self {
        self.mtu = mtu.to_string();
        self
    }

    /// The other hosts.
    #[must_use]
    pub fn peers(mut self, peers: Vec<Peer>) -> Self {
        self.peers = peers;
        self
    }

    /// Whether there is a fast path at all.
    #[must_use]
    pub fn cache(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// The number of filter cache entries.
    #[must_use]
    pub fn flows(mut self, flows: u32) -> Self {
        self.flows = flows;
        self
    }

    /// How long a cached flow serves, such as `2s`.
    #[must_use]
    pub fn lease(mut self, lease: &str) -> Self {
        lease.clone_into(&mut self.lease);
        self
    }

    /// The bits of the packet mark that oncache may use, such as `0x0fff0000`.
    #[must_use]
    pub fn mark_mask(mut self, mask: &str) -> Self {
        mask.clone_into(&mut self.mark_mask);
        self
    }

    /// Adds lines at the end of the file, such as a `[[policy]]` table.
    #[must_use]
    pub fn extra(mut self, lines: &str) -> Self {
        self.extra.push_str(lines);
        self.extra.push('\n');
        self
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Peer {
            name,
            address,
            subnet,
        } = &self.node;
        writeln!(f, "[node]\nname = \"{name}\"")?;
        writeln!(
            f,
            "underlay = \"{}\"\naddress = \"{address}\"\n",
            self.underlay
        )?;
        writeln!(
            f,
            "[overlay]\nsubnet = \"{subnet}\"\nnetwork = \"{}\"",
            self.network
        )?;
        writeln!(f, "vni = {}\nport = {}", self.vni, self.port)?;
        match self.mtu.parse::<u32>() {
            Ok(number) => writeln!(f, "mtu = {number}\n")?,
            Err(_) => writeln!(f, "mtu = \"{}\"\n", self.mtu)?,
        }
        for Peer {
            name,
            address,
            subnet,
        } in &self.peers
        {
            writeln!(f, "[[peers]]\nname = \"{name}\"")?;
            writeln!(f, "address = \"{address}\"\nsubnet = \"{subnet}\"\n")?;
        }
        writeln!(
            f,
            "[cache]\nenabled = {}\nflows = {}",
            self.enabled, self.flows
        )?;
        writeln!(
            f,
            "lease = \"{}\"\nmark_mask = \"{}\"",
            self.lease, self.mark_mask
        )?;
        if !self.extra.is_empty() {
            write!(f, "\n{}", self.extra)?;
        }
        Ok(())
    }
}
