//! What hangs on the devices that the fast path skips: looked for, told to the programs, said once.

use std::collections::{HashMap, HashSet};

use tracing::{info, warn};

use super::{super::DaemonError, FastPath, Network};
use crate::{
    coherence::{
        Cause, Changed, Hold,
        hindrance::{self, Ends, Flows, Hindrance, Hindrances, Way},
    },
    control::api::NotCarried,
    datapath::foreign::foreign,
    netlink::{OnDevice, PairKind, device_chains, ipsec_policies, on_devices},
};

impl FastPath {
    /// Looks at all devices that packets pass, and at IPsec's policies. Where something has come,
    /// flows that it is in the way of are not learned any more, and the epoch is raised after; ends the hold on
    /// learning that was there when the look began.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]: what is there is not known, and a hold stays.
    pub fn look_at_devices(&mut self, network: &Network) -> Result<(), DaemonError> {
        let hold = self.coherence.held(Hold::Devices);
        if !self.is_on() {
            self.hindrances = Hindrances::default();
            return Ok(());
        }
        let found = self.find_hindrances(network)?;
        let former = std::mem::replace(&mut self.hindrances, found);
        if self.hindrances != former {
            let told = self
                .sync_peers(network)
                .and_then(|peers| Ok(peers.and(self.sync_containers(network)?)));
            let told = match told {
                Ok(told) => told,
                Err(reason) => {
                    // The next look has to tell it again.
                    self.hindrances = former;
                    return Err(reason.into());
                }
            };
            for gone in former.iter().filter(|it| !self.hindrances.has(it)) {
                let Hindrance {
                    device,
                    reason,
                    flows,
                } = gone;
                info!("{device}: {reason}: gone, carried again ({flows})");
            }
            let came: Vec<Hindrance> = self.hindrances.iter().cloned().collect();
            let mut came = came.into_iter().filter(|it| !former.has(it)).peekable();
            let first = came.peek().map(|it| it.device.clone());
            came.for_each(|it| warn!("{it}; docs/troubleshooting.md says what can be done"));
            match first.filter(|_| former.is_known()) {
                Some(device) => {
                    let changed = Changed::new(Cause::TrafficControl, &device);
                    self.commit(changed.covering(told), network);
                }
                // Before the first look nothing was learned, nor of flows that something was in the way of.
                None => told.owes_nothing(),
            }
        }
        if let Some(hold) = hold {
            self.coherence.release(Hold::Devices, hold)?;
        }
        Ok(())
    }

    fn find_hindrances(&self, network: &Network) -> Result<Hindrances, DaemonError> {
        let Some(datapath) = &self.datapath else {
            return Ok(Hindrances::default());
        };
        let ours = datapath.program_ids()?;
        let ways = self.ways(network);
        let config = network.config();
        let devices: HashSet<u32> = ways.keys().copied().collect();
        let on = on_devices(&devices, config.node.underlay_index)?;
        let chains = device_chains()?;
        let none = OnDevice::default();
        let mut found = Vec::new();
        for (index, (device, way)) in &ways {
            if config.cache.ignore_traffic_control.contains(device) {
                continue;
            }
            let programs = foreign(*index, &ours).map_err(|source| DaemonError::Programs {
                device: device.clone(),
                source,
            })?;
            let hung = on.get(index).unwrap_or(&none);
            let chains: Vec<_> = chains.iter().filter(|chain| chain.is_on(device)).collect();
            let reasons = hindrance::on_device(way, hung, &programs, &chains, &ours);
            let flows = match way {
                Way::Container(name) | Way::Netkit(name) => Flows::Container(name.clone()),
                Way::Skipped | Way::Underlay => Flows::All,
            };
            found.extend(reasons.into_iter().map(|reason| Hindrance {
                device: device.clone(),
                reason,
                flows: flows.clone(),
            }));
        }
        let containers = network.containers().iter();
        let ends = Ends {
            host: config.node.address,
            peers: config.peers.iter().map(|peer| peer.address).collect(),
            network: config.overlay.network,
            containers: containers.map(|(name, it)| (&**name, it.ip)).collect(),
        };
        found.extend(hindrance::by_ipsec(&ipsec_policies()?, &ends));
        Ok(Hindrances::found(found))
    }

    /// The devices that packets pass, by index.
    fn ways(&self, network: &Network) -> HashMap<u32, (String, Way)> {
        let scope = self.coherence.scope();
        let skipped = [&scope.bridge, &scope.vxlan].into_iter();
        let skipped = skipped.map(|device| (device.index, (device.name.clone(), Way::Skipped)));
        let containers = network.connected().map(|(name, container, device)| {
            let way = match device.kind {
                PairKind::Veth => Way::Container(name.to_owned()),
                PairKind::Netkit => Way::Netkit(name.to_owned()),
            };
            (device.index, (container.device.clone(), way))
        });
        let node = &network.config().node;
        let underlay = (node.underlay_index, (node.underlay.clone(), Way::Underlay));
        skipped
            .chain(containers)
            .chain([underlay])
            .filter(|(index, _)| *index != 0)
            .collect()
    }

    /// The hindrances as the control socket tells them.
    pub fn not_carried(&self) -> Vec<NotCarried> {
        self.hindrances.iter().map(not_carried).collect()
    }
}

fn not_carried(hindrance: &Hindrance) -> NotCarried {
    NotCarried {
        device: hindrance.device.clone(),
        reason: hindrance.reason.clone(),
        flows: hindrance.flows.to_string(),
    }
}
