//! Network policy at run time.

use std::net::Ipv4Addr;

use crate::{Container, Host};

/// A rule in TOML: `deny` and lines such as `from = "web"`.
#[must_use]
pub fn rule(action: &str, lines: &[&str]) -> String {
    format!("[[policy]]\naction = \"{action}\"\n{}\n", lines.join("\n"))
}

impl Host {
    /// Applies rules in TOML at run time, and returns what `oncache policy apply` prints.
    ///
    /// # Panics
    /// If they are refused.
    pub fn apply_policy(&self, rules: &str) -> String {
        let path = self.write_file("rules.toml", rules);
        self.oncache_ok(&["policy", "apply", path.to_str().expect("a path of ours")])
    }

    /// Removes the run-time rules.
    ///
    /// # Panics
    /// Without a daemon.
    pub fn clear_policy(&self) {
        self.oncache_ok(&["policy", "clear"]);
    }

    /// Packets that a rule has counted, by its place from 1.
    ///
    /// # Panics
    /// If there are fewer rules.
    #[must_use]
    pub fn rule_packets(&self, place: usize) -> u64 {
        let list = self.oncache_json(&["policy", "list", "--json"]);
        list["rules"][place - 1]["packets"]
            .as_u64()
            .expect("a count")
    }

    /// The host itself as its containers reach it: at the gateway's address, the first of their subnet.
    ///
    /// # Panics
    /// If the subnet is none.
    #[must_use]
    pub fn gateway(&self) -> Container {
        let network = self.subnet().split('/').next().map(str::parse::<Ipv4Addr>);
        let network = network.and_then(Result::ok).expect("a subnet");
        let address = Ipv4Addr::from(u32::from(network) + 1);
        self.adopt("gateway", address, (**self).clone())
    }
}
