//! The host that the daemon runs on: how it is spoken to, and what is known of its underlay.

use tracing::{error, info};

use crate::{
    config::{self, HostFacts},
    netlink::{Netlink, NetlinkError, underlay_facts},
    slow_path::own::sysctl::Sysctls,
};

/// The host.
pub struct Host {
    netlink: Netlink,
    sysctls: Sysctls,
    has_netkit: bool,
    /// The underlay device has lost this host's address.
    address_away: bool,
}

impl Host {
    /// A host of which nothing is known yet but whether its kernel has netkit devices.
    pub fn new(netlink: Netlink, has_netkit: bool) -> Self {
        Self {
            netlink,
            sysctls: Sysctls::default(),
            has_netkit,
            address_away: false,
        }
    }

    /// The connection to rtnetlink.
    pub const fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// The kernel's settings.
    pub const fn sysctls(&self) -> &Sysctls {
        &self.sysctls
    }

    /// Whether the kernel has netkit devices.
    pub const fn has_netkit(&self) -> bool {
        self.has_netkit
    }

    /// Looks at the underlay device of `node`, and says once that this host's address has gone, and
    /// that it has come back.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub async fn look_at_underlay(
        &mut self,
        node: &config::Node,
        remedy: &str,
    ) -> Result<HostFacts, NetlinkError> {
        let facts = underlay_facts(&self.netlink, &node.underlay).await?;
        let Some(device) = facts.device(&node.underlay) else {
            return Ok(facts);
        };
        let away = !device.has(node.address);
        if self.address_away != away {
            self.address_away = away;
            match self.address_warning(node, remedy) {
                Some(line) => error!("{line}"),
                None => info!(
                    "{} has {} again, this host's address",
                    node.underlay, node.address
                ),
            }
        }
        Ok(facts)
    }

    /// Another address is this host's: nothing is known of it yet.
    pub const fn take_another_address(&mut self) {
        self.address_away = false;
    }

    /// What an operator has to know while this host's address is away.
    pub fn address_warning(&self, node: &config::Node, remedy: &str) -> Option<String> {
        self.address_away.then(|| {
            format!(
                "{} has lost {}, this host's address: nothing leaves by the tunnel until it is back; {remedy}",
                node.underlay, node.address
            )
        })
    }
}
