//! Where the peers of a network come from.
//!
//! A source delivers them as plain values, checked by what is known of the network on this host
//! ([`crate::config::consistency`]). Whoever asks need not know whether they stand in a file.

use crate::config::{Config, ConfigErrors, ConfigFile, HostFacts, Peer, consistency::LocalNetwork};

mod file;

/// Something that knows the other hosts of a network.
pub trait PeerSource {
    /// What can be wrong with them, or in asking for them.
    type Error;

    /// The peers as they are now.
    ///
    /// # Errors
    /// Every fault of every peer: they come all or not at all.
    fn peers(&self, here: &LocalNetwork) -> Result<Vec<Peer>, Self::Error>;
}

/// The configuration of the host that `facts` describe, with the peers of the source that the file
/// names. There is one so far, the file itself, so the faults of both are told at once.
///
/// # Errors
/// Every fault found.
pub fn resolve(file: &ConfigFile, facts: &HostFacts) -> Result<Config, ConfigErrors> {
    file.resolve(facts, file.peers(&file.local_network(facts)))
}
