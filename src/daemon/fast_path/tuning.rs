//! What the programs are told beside the epoch: lease and ports as the host's settings ask for them.

use tracing::info;

use super::{super::DaemonError, FastPath, Host, Network};
use crate::{
    coherence::{Changed, effective_lease, fingerprint},
    config::Config,
    datapath::epoch::Tuning,
    netlink::{Timeout, object_timeouts},
};

/// Whose a connection timeout is if it is no object's.
const SYSCTL: &str = "the shortest of sysctl net.netfilter.nf_conntrack_*";

impl FastPath {
    /// Lease and ports as the host's settings ask for, and what learned results depend on.
    pub(super) fn tuning(&mut self, host: &Host, config: &Config) -> Result<Tuning, DaemonError> {
        let mut timeouts = object_timeouts()?;
        timeouts.extend(
            host.sysctls()
                .conntrack_timeouts()?
                .into_iter()
                .map(|seconds| {
                    let object = SYSCTL.to_owned();
                    Timeout { seconds, object }
                }),
        );
        let seconds: Vec<u64> = timeouts.iter().map(|timeout| timeout.seconds).collect();
        let lease = effective_lease(config.cache.lease, &seconds);
        let shortest = timeouts
            .into_iter()
            .filter(|timeout| timeout.seconds > 0)
            .min();
        let bound = shortest.filter(|_| lease < config.cache.lease);
        if bound != self.lease_bound {
            let is_object = |bound: &Option<Timeout>| {
                bound.as_ref().is_some_and(|bound| bound.object != SYSCTL)
            };
            let told = is_object(&bound) || is_object(&self.lease_bound);
            match bound.as_ref().filter(|_| told) {
                Some(Timeout { seconds, object }) => {
                    info!("lease {lease:?}: half of {object}, {seconds} s");
                }
                None if told => info!("lease {lease:?}, as configured"),
                None => {}
            }
            self.lease_bound = bound;
        }
        let ports = host.sysctls().local_port_range()?;
        Ok(Tuning {
            lease,
            is_cut: self.lease_bound.is_some(),
            ports: (*ports.start(), *ports.end()),
            fingerprint: fingerprint(config),
        })
    }

    /// The programs' settings as host and configuration ask for them now.
    ///
    /// # Errors
    ///
    /// [`DaemonError`].
    pub fn tuned(&mut self, host: &Host, network: &Network) -> Result<Changed, DaemonError> {
        self.tuning(host, network.config()).map(Changed::tuned)
    }
}
