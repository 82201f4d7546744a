//! The overlay of oncache's own making, as a slow path.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use tracing::{debug, info, warn};

use super::{
    conflicts::conflicts,
    names::{DeviceNames, GROUP, SOURCE_TABLE, TABLE, gateway_mac, vtep_mac},
    network_route, ports,
    reconcile::{OverlayError, absent_is_done, reconcile},
    refused::{self, Refused},
    source_guard::{self, Source},
    sysctl::Sysctls,
    teardown::{OverlayErrors, teardown},
    wanted::WantedOverlay,
};
use crate::{
    coherence::{self, Changed, Scope, own_tables::OwnTables},
    config::{Config, Overlay},
    netlink::{Netlink, NetlinkError},
    nft::TableName,
    slow_path::{Encapsulation, Endpoint, Facts, SlowPath, SlowPathError, Wanted},
};

/// How many changes of one comparison are logged singly.
const STEPS_LOGGED: usize = 100;

/// The tables that it has.
pub const TABLES: [TableName; 2] = [TABLE, SOURCE_TABLE];

/// The overlay of oncache's own making.
pub struct OwnSlowPath {
    netlink: Netlink,
    sysctls: Sysctls,
    names: DeviceNames,
    /// Copies of the tables, for the watcher.
    tables: OwnTables,
    /// Somebody else's route for the overlay's network, in a line.
    route_taken: Option<String>,
    /// See [`SlowPath::former_tcp_be_liberal`].
    tcp_be_liberal: Option<u8>,
}

impl OwnSlowPath {
    /// One that has not been looked at yet. `tables` has copies of its tables, if anything puts them back.
    #[must_use]
    pub fn new(netlink: Netlink, tables: OwnTables) -> Self {
        Self {
            netlink,
            sysctls: Sysctls::default(),
            names: DeviceNames::of_only_network(),
            tables,
            route_taken: None,
            tcp_be_liberal: None,
        }
    }

    /// Keeps what is for nobody from leaving by the default route.
    async fn keep_network_route(&mut self, overlay: &Overlay) -> Result<Changed, NetlinkError> {
        let wanted = network_route::wanted(overlay);
        let kept = network_route::keep(&self.netlink, wanted).await?;
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
}

/// The devices, routes and rules that are wanted.
fn overlay(wanted: &Wanted<'_>) -> WantedOverlay {
    let subnet = wanted.config.overlay.subnet;
    let held = wanted.endpoints.iter().map(|endpoint| endpoint.ip);
    let visitors = held.filter(|ip| !subnet.contains(ip));
    WantedOverlay::new(wanted.config, wanted.marks).with_visitors(visitors)
}

/// See [`SlowPath::facts`]: all of them follow from the configuration.
#[must_use]
pub fn facts(config: &Config) -> Facts {
    let overlay = &config.overlay;
    Facts {
        encapsulation: Encapsulation::Vxlan {
            vni: overlay.vni,
            port: overlay.port,
        },
        underlay: config.node.address,
        vtep: vtep_mac(config.node.address),
        gateway: overlay.gateway(),
        gateway_mac: gateway_mac(overlay.gateway()),
        mtu: overlay.mtu,
    }
}

impl SlowPath for OwnSlowPath {
    async fn obstacles(&self, wanted: &Wanted<'_>) -> Result<Vec<String>, NetlinkError> {
        let conflicts = conflicts(&self.netlink, &overlay(wanted)).await?;
        Ok(conflicts.iter().map(ToString::to_string).collect())
    }

    async fn present_gateway(&self) -> Result<Option<Ipv4Net>, NetlinkError> {
        let Some(bridge) = self.netlink.link_by_name(&self.names.bridge).await? else {
            return Ok(None);
        };
        // The bridge's link-layer address says which of its addresses is the gateway.
        let addresses = self.netlink.addresses().await?;
        Ok(addresses
            .iter()
            .filter(|entry| entry.device == bridge.index)
            .map(|entry| entry.address)
            .find(|address| bridge.mac == Some(gateway_mac(address.addr()))))
    }

    async fn reconcile(&mut self, wanted: &Wanted<'_>) -> Result<Changed, SlowPathError> {
        let overlay = overlay(wanted);
        self.tables.make_from(&[TABLE], &overlay.table);
        let (done, failure) = match reconcile(&self.netlink, &self.sysctls, &overlay).await {
            Ok(done) => (done, None),
            Err(mut failure) => (std::mem::take(&mut failure.done), Some(failure)),
        };
        for (number, step) in done.iter().enumerate() {
            // Of thousands of peers each would be three lines.
            if number < STEPS_LOGGED {
                info!("{}", step.named(&self.names));
            } else {
                debug!("{}", step.named(&self.names));
            }
            self.tcp_be_liberal = self.tcp_be_liberal.or(step.previous_tcp_be_liberal());
        }
        if let Some(more) = done
            .len()
            .checked_sub(STEPS_LOGGED)
            .filter(|more| *more > 0)
        {
            info!("and {more} more changes to the overlay; log.level = \"debug\" shows them all");
        }
        let route = self.keep_network_route(&wanted.config.overlay).await;
        match failure {
            Some(failure) => Err(failure.into()),
            None => Ok(route?.and(Changed::mended(!done.is_empty()))),
        }
    }

    fn former_tcp_be_liberal(&self) -> Option<u8> {
        self.tcp_be_liberal
    }

    async fn tear_down(&self, tcp_be_liberal: Option<u8>) -> Result<(), SlowPathError> {
        let guard = source_guard::remove().await;
        let mut errors: Vec<OverlayError> = guard.err().into_iter().map(Into::into).collect();
        let overlay = teardown(&self.netlink, &self.sysctls, &self.names, tcp_be_liberal).await;
        errors.extend(overlay.err().into_iter().flat_map(|it| it.0));
        if errors.is_empty() {
            Ok(())
        } else {
            Err(OverlayErrors(errors).into())
        }
    }

    fn warning(&self) -> Option<&str> {
        self.route_taken.as_deref()
    }

    async fn scope(&self, wanted: &Wanted<'_>) -> Result<Scope, NetlinkError> {
        let device = async |name: &str| {
            let link = self.netlink.link_by_name(name).await?;
            Ok::<_, NetlinkError>(coherence::Device {
                index: link.map_or(0, |link| link.index),
                name: name.to_owned(),
            })
        };
        let config = wanted.config;
        let endpoints = wanted.endpoints.iter();
        Ok(Scope {
            underlay: device(&config.node.underlay).await?,
            bridge: device(&self.names.bridge).await?,
            vxlan: device(&self.names.vxlan).await?,
            containers: endpoints
                .filter_map(|it| Some((it.index?, it.device.clone())))
                .collect(),
            peers: config.peers.iter().map(|peer| peer.address).collect(),
            networks: vec![config.node.address.into(), config.overlay.network],
        })
    }

    fn facts(&self, config: &Config) -> Facts {
        facts(config)
    }

    fn bridge(&self) -> &str {
        &self.names.bridge
    }

    fn group(&self) -> u32 {
        GROUP
    }

    async fn guard(&self, endpoints: &[Endpoint]) -> Result<Changed, SlowPathError> {
        let sources: BTreeSet<Source> = endpoints.iter().map(Source::of).collect();
        self.tables.make_from(&[SOURCE_TABLE], &sources);
        let done = source_guard::reconcile(&sources).await?;
        for line in &done {
            info!("{line}");
        }
        Ok(Changed::mended(!done.is_empty()))
    }

    async fn allow(&self, endpoint: &Endpoint) -> Result<(), SlowPathError> {
        self.tables.forget(&[SOURCE_TABLE]);
        Ok(source_guard::allow(&Source::of(endpoint)).await?)
    }

    async fn forbid(&self, endpoint: &Endpoint) -> Result<(), SlowPathError> {
        self.tables.forget(&[SOURCE_TABLE]);
        Ok(source_guard::forbid(&Source::of(endpoint)).await?)
    }

    async fn refused(&self) -> Result<BTreeMap<Refused, u64>, SlowPathError> {
        Ok(refused::refused().await?)
    }

    async fn place(&self, endpoints: &[Endpoint]) -> Result<Changed, NetlinkError> {
        ports::mend(&self.netlink, &self.names.bridge, endpoints).await
    }

    async fn announce(&self, endpoint: &Endpoint) -> Result<(), NetlinkError> {
        // It asks nobody: whoever answers first would be believed.
        let bridge = self.netlink.index_of(&self.names.bridge).await?;
        self.netlink
            .replace_neighbour(bridge, endpoint.ip, endpoint.mac)
            .await
    }

    async fn forget(&self, address: Ipv4Addr) -> Result<(), NetlinkError> {
        let gone = async {
            let bridge = self.netlink.index_of(&self.names.bridge).await?;
            self.netlink.delete_neighbour(bridge, address).await
        };
        absent_is_done(gone.await)
    }
}
