//! The overlay of oncache's own making: put right, and what cached results depend on of it.

use std::collections::BTreeSet;

use tracing::{debug, info, warn};

use super::{
    DaemonError,
    host::Host,
    network::Network,
    own_tables::{Own, OwnTables},
    ports,
};
use crate::{
    coherence::{self, Changed, Scope},
    netlink::NetlinkError,
    slow_path::own::{
        names::{BRIDGE, VXLAN},
        network_route,
        reconcile::reconcile,
        source_guard::{self, Source},
    },
};

/// How many changes of one comparison are logged singly.
const STEPS_LOGGED: usize = 100;

/// The slow path.
pub struct SlowPath {
    /// Copies of the tables, for the watcher.
    tables: OwnTables,
    /// Somebody else's route for the overlay's network, in a line.
    route_taken: Option<String>,
}

impl SlowPath {
    /// A slow path that has not been looked at yet.
    pub const fn new(tables: OwnTables) -> Self {
        Self {
            tables,
            route_taken: None,
        }
    }

    /// The copies of the tables.
    pub const fn tables(&self) -> &OwnTables {
        &self.tables
    }

    /// What an operator has to know of the overlay's network.
    pub fn warning(&self) -> Option<&str> {
        self.route_taken.as_deref()
    }

    /// Applies what the host lacks of devices, routes and rules.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]; part of it may have been done.
    pub async fn mend(
        &mut self,
        host: &Host,
        network: &mut Network,
    ) -> Result<Changed, DaemonError> {
        let wanted = network.wanted();
        self.tables.make_from(&[Own::SlowPath], &wanted.table);
        let (done, failure) = match reconcile(host.netlink(), host.sysctls(), &wanted).await {
            Ok(done) => (done, None),
            Err(mut failure) => (std::mem::take(&mut failure.done), Some(failure)),
        };
        for (number, step) in done.iter().enumerate() {
            // Of thousands of peers each would be three lines.
            if number < STEPS_LOGGED {
                info!("{}", step.named(&wanted.names));
            } else {
                debug!("{}", step.named(&wanted.names));
            }
            let record = network.record_mut();
            if record.note_tcp_be_liberal(step.previous_tcp_be_liberal()) {
                record.save()?;
            }
        }
        if let Some(more) = done
            .len()
            .checked_sub(STEPS_LOGGED)
            .filter(|more| *more > 0)
        {
            info!("and {more} more changes to the overlay; log.level = \"debug\" shows them all");
        }
        let route = self.keep_network_route(host, network).await;
        match failure {
            Some(failure) => Err(failure.into()),
            None => Ok(route?.and(Changed::mended(!done.is_empty()))),
        }
    }

    /// Keeps what is for nobody from leaving by the default route.
    async fn keep_network_route(
        &mut self,
        host: &Host,
        network: &Network,
    ) -> Result<Changed, DaemonError> {
        let wanted = network_route::wanted(&network.config().overlay);
        let kept = network_route::keep(host.netlink(), wanted).await?;
        for line in &kept.done {
            info!("{line}");
        }
        if let Some(line) = kept.taken.as_ref()
            && kept.taken != self.route_taken
        {
            warn!("{line}");
        }
        self.route_taken = kept.taken;
        Ok(Changed::mended(!kept.done.is_empty()))
    }

    /// What of the host cached results depend on.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub async fn scope(&self, host: &Host, network: &Network) -> Result<Scope, NetlinkError> {
        let device = async |name: &str| {
            let link = host.netlink().link_by_name(name).await?;
            Ok::<_, NetlinkError>(coherence::Device {
                index: link.map_or(0, |link| link.index),
                name: name.to_owned(),
            })
        };
        let config = network.config();
        Ok(Scope {
            underlay: device(&config.node.underlay).await?,
            bridge: device(BRIDGE).await?,
            vxlan: device(VXLAN).await?,
            containers: network.device_names(),
            peers: config.peers.iter().map(|peer| peer.address).collect(),
            networks: vec![config.node.address.into(), config.overlay.network],
        })
    }

    /// Lets every container send from its own addresses, and from no others.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]; nothing has changed then.
    pub async fn guard(&self, sources: &BTreeSet<Source>) -> Result<Changed, DaemonError> {
        self.tables.make_from(&[Own::Sources], sources);
        let done = source_guard::reconcile(sources).await?;
        for line in &done {
            info!("{line}");
        }
        Ok(Changed::mended(!done.is_empty()))
    }

    /// See [`ports::mend`].
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub async fn mend_ports(
        &self,
        host: &Host,
        network: &Network,
    ) -> Result<Changed, NetlinkError> {
        ports::mend(host.netlink(), network).await
    }
}
