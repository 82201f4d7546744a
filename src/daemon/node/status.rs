//! What the control socket shows of the node.

use super::Node;
use crate::{
    container::namespace,
    control::api::{CacheStatus, Flushed, HitRatio, PeerInfo, Policy, RefusedCount, Stats, Status},
    daemon::{DaemonError, policy},
    datapath::{Datapath, DatapathError, caches::Caches, clock, counters::FlowTurnover},
    probe::{Roots, probe},
    slow_path::SlowPath as _,
};

impl Node {
    /// Why the fast path is off though it is configured.
    pub fn fast_path_failure(&self) -> Option<&str> {
        self.fast_path.failure()
    }

    /// The caches' content; none without a fast path.
    pub fn caches(&self) -> Result<Option<Caches>, DatapathError> {
        self.fast_path.datapath().map(Datapath::caches).transpose()
    }

    /// Empties the learned caches; nothing without a fast path.
    pub fn flush(&mut self) -> Result<Option<Flushed>, DatapathError> {
        let Some((flows, changed)) = self.fast_path.flush()? else {
            return Ok(None);
        };
        self.commit(changed);
        Ok(Some(Flushed { flows }))
    }

    /// The rules of the network policy in force with what they have counted.
    pub async fn policy(&self) -> Result<Policy, DaemonError> {
        policy::counted(&self.network).await
    }

    /// Counters and hit ratios; none of the programs' where there is no fast path.
    pub async fn stats(&self) -> Result<Stats, DaemonError> {
        let (counters, flows) = match self.fast_path.datapath() {
            Some(datapath) => (datapath.counters()?, datapath.turnover()?),
            None => (Vec::new(), FlowTurnover::default()),
        };
        let (invalidations, since) = self.coherence.counts();
        let refused = self.slow_path.refused().await?;
        let forged = refused.iter().filter(|(reason, _)| reason.is_forged());
        let spoofed = forged.map(|(_, packets)| packets).sum();
        let refused = refused.iter().filter(|(_, packets)| **packets != 0);
        let refused = refused.map(|(reason, packets)| RefusedCount {
            reason: reason.name().to_owned(),
            packets: *packets,
            meaning: reason.meaning().to_owned(),
        });
        Ok(Stats {
            invalidations,
            invalidations_since_s: since.as_secs(),
            hit_ratio: HitRatio::of(&counters),
            not_carried: self.fast_path.not_carried(),
            counters,
            flows,
            spoofed,
            refused: refused.collect(),
        })
    }

    /// Node, peers, containers, programs, caches.
    pub fn status(&self) -> Result<Status, DatapathError> {
        let config = self.network.config();
        let peers = config.peers.iter().map(|peer| PeerInfo {
            name: peer.name.clone(),
            address: peer.address,
            subnet: peer.subnet,
            moved: peer.moved.clone(),
        });
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: config.node.name.clone(),
            underlay: config.node.underlay.clone(),
            address: config.node.address,
            subnet: config.overlay.subnet,
            network: config.overlay.network,
            vni: config.overlay.vni,
            mtu: config.overlay.mtu,
            peers: peers.collect(),
            containers: self.list_containers(),
            cache: self.cache_status()?,
            not_carried: self.fast_path.not_carried(),
            warnings: self.warnings(),
        })
    }

    fn cache_status(&self) -> Result<Option<CacheStatus>, DatapathError> {
        let Some(datapath) = self.fast_path.datapath() else {
            return Ok(None);
        };
        let settings = datapath.settings()?;
        let lease = clock::from_ticks(settings.lease.into());
        let bound = self.fast_path.lease_bound();
        Ok(Some(CacheStatus {
            epoch: settings.epoch,
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            lease_bound: bound.map(|bound| format!("{}, {} s", bound.object, bound.seconds)),
            attach: datapath.mode().name().to_owned(),
            programs: datapath.attachments()?,
            entries: datapath.occupancy(),
            flows: self.network.config().cache.flows,
            hit_ratio: HitRatio::of(&datapath.counters()?),
        }))
    }

    fn warnings(&self) -> Vec<String> {
        let config = self.network.config();
        let report = probe(
            &Roots::host(),
            Some(&config.node.underlay),
            self.host.has_netkit(),
            config.into(),
        );
        let lacking = report.lacking().map(|finding| finding.message.clone());
        let failure = self
            .fast_path
            .failure()
            .into_iter()
            .map(|reason| format!("no fast path, the overlay runs without: {reason}"));
        let unreachable = self.network.containers().iter().filter_map(|(name, container)| {
            let reason = namespace::open(&container.netns).err()?;
            Some(format!(
                "container {name} is connected, but its namespace has lost its name ({reason}); `oncache container del {name}` works all the same"
            ))
        });
        let unseen = (self.fast_path.is_on() && !self.fast_path.hindrances().is_known()).then(|| {
            "nothing is carried by the fast path: what hangs on the devices could not be looked at, see the log".to_owned()
        });
        lacking
            .chain(failure)
            .chain(
                self.host
                    .address_warning(&config.node, self.network.address_remedy()),
            )
            .chain(self.slow_path.warning().map(str::to_owned))
            .chain(unreachable)
            .chain(unseen)
            .chain(self.network.record().warning().map(str::to_owned))
            .collect()
    }
}
