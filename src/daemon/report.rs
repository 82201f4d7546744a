//! Answers to the control socket.

use super::{DaemonError, Node};
use crate::{
    coherence::Cause,
    container::{AddressError, ContainerError, namespace},
    control::{
        api::{CacheStatus, Flushed, HitRatio, PeerInfo, RefusedCount, Stats, Status},
        server::{Refusal, RefusalKind, Request},
    },
    datapath::{DatapathError, clock, counters::FlowTurnover},
    overlay::refused::refused,
    policy::kernel::PolicyError,
    probe::{Roots, probe},
};

/// A failure of the daemon's own, as an answer.
pub(super) fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal {
        kind: RefusalKind::Failed,
        line: error.to_string(),
    }
}

fn refusal(error: &DaemonError) -> Refusal {
    let kind = match error {
        DaemonError::Container(container) => match container {
            ContainerError::Unknown(_) => RefusalKind::Unknown,
            ContainerError::Exists(_)
            | ContainerError::HostDevice { .. }
            | ContainerError::InnerDevice { .. }
            | ContainerError::SameDevice { .. }
            | ContainerError::NamespaceTaken { .. }
            | ContainerError::RouteTaken { .. }
            | ContainerError::Address(
                AddressError::Taken { .. } | AddressError::Exhausted { .. },
            ) => RefusalKind::Conflict,
            ContainerError::BadName { .. }
            | ContainerError::Address(AddressError::Unusable { .. } | AddressError::Away { .. })
            | ContainerError::HostNamespace { .. }
            | ContainerError::Namespace(_) => RefusalKind::Bad,
            ContainerError::NoNetkit(_)
            | ContainerError::NameTaken { .. }
            | ContainerError::Netlink { .. } => RefusalKind::Failed,
        },
        DaemonError::Policy(PolicyError::TooMany(_) | PolicyError::Rule { .. }) => RefusalKind::Bad,
        _ => RefusalKind::Failed,
    };
    Refusal {
        kind,
        line: error.to_string(),
    }
}

impl Node {
    /// Grants or refuses a request. An asker that is gone misses the answer, nothing else.
    pub async fn answer(&mut self, request: Request) {
        match request {
            Request::Status(answer) => {
                let _ = answer.send(self.status().map_err(failed));
            }
            Request::Stats(answer) => {
                let _ = answer.send(self.stats().await.map_err(failed));
            }
            Request::ListContainers(answer) => {
                let _ = answer.send(Ok(self.list_containers()));
            }
            Request::AddContainer(container, answer) => {
                let added = self.add_container(container).await;
                let _ = answer.send(added.map_err(|error| refusal(&error)));
            }
            Request::DeleteContainer(name, answer) => {
                let deleted = self.delete_container(&name).await;
                let _ = answer.send(deleted.map_err(|error| refusal(&error)));
            }
            Request::Caches(answer) => {
                let caches = match &self.datapath {
                    Some(datapath) => datapath.caches().map_err(failed),
                    None => Err(self.no_fast_path()),
                };
                let _ = answer.send(caches);
            }
            Request::Flush(answer) => {
                let _ = answer.send(self.flush());
            }
            Request::Policy(answer) => {
                let _ = answer.send(self.policy().await.map_err(failed));
            }
            Request::ApplyPolicy(policy, answer) => {
                let applied = self.apply_policy(policy.rules).await;
                let _ = answer.send(applied.map_err(|error| refusal(&error)));
            }
            Request::Down(answer) => {
                let _ = answer.send(self.down().await.map_err(failed));
            }
        }
    }

    fn no_fast_path(&self) -> Refusal {
        let reason = self
            .fast_path_failure
            .as_deref()
            .unwrap_or("cache.enabled is false");
        Refusal {
            kind: RefusalKind::Bad,
            line: format!("there is no fast path: {reason}"),
        }
    }

    fn flush(&mut self) -> Result<Flushed, Refusal> {
        let Some(datapath) = &mut self.datapath else {
            return Err(self.no_fast_path());
        };
        let flows = datapath.flush().map_err(failed)?;
        self.invalidate(Cause::Flush, "");
        Ok(Flushed { flows })
    }

    /// Counters and hit ratios; none of the programs' where there is no fast path.
    async fn stats(&self) -> Result<Stats, DaemonError> {
        let (counters, flows) = match &self.datapath {
            Some(datapath) => (datapath.counters()?, datapath.turnover()?),
            None => (Vec::new(), FlowTurnover::default()),
        };
        let (invalidations, since) = self.invalidator.counts();
        let refused = refused().await?;
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
            not_carried: self.not_carried(),
            counters,
            flows,
            spoofed,
            refused: refused.collect(),
        })
    }

    fn status(&self) -> Result<Status, DatapathError> {
        let config = &self.config;
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
            not_carried: self.not_carried(),
            warnings: self.warnings(),
        })
    }

    fn cache_status(&self) -> Result<Option<CacheStatus>, DatapathError> {
        let Some(datapath) = &self.datapath else {
            return Ok(None);
        };
        let settings = datapath.settings()?;
        let lease = clock::from_ticks(settings.lease.into());
        let bound = self.lease_bound.as_ref();
        Ok(Some(CacheStatus {
            epoch: settings.epoch,
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            lease_bound: bound.map(|bound| format!("{}, {} s", bound.object, bound.seconds)),
            attach: datapath.mode().name().to_owned(),
            programs: datapath.attachments()?,
            entries: datapath.occupancy(),
            flows: self.config.cache.flows,
            hit_ratio: HitRatio::of(&datapath.counters()?),
        }))
    }

    fn warnings(&self) -> Vec<String> {
        let config = &self.config;
        let report = probe(
            &Roots::host(),
            Some(&config.node.underlay),
            self.has_netkit,
            config.into(),
        );
        let lacking = report.lacking().map(|finding| finding.message.clone());
        let failure = self
            .fast_path_failure
            .iter()
            .map(|reason| format!("no fast path, the overlay runs without: {reason}"));
        let unreachable = self.state.containers.iter().filter_map(|(name, container)| {
            let reason = namespace::open(&container.netns).err()?;
            Some(format!(
                "container {name} is connected, but its namespace has lost its name ({reason}); `oncache container del {name}` works all the same"
            ))
        });
        let unseen = (self.has_fast_path() && !self.hindrances.is_known()).then(|| {
            "nothing is carried by the fast path: what hangs on the devices could not be looked at, see the log".to_owned()
        });
        lacking
            .chain(failure)
            .chain(self.address_warning())
            .chain(self.network_route_taken.clone())
            .chain(unreachable)
            .chain(unseen)
            .chain(self.unsaved.iter().cloned())
            .collect()
    }
}
