//! The configuration file as a source: `[[peers]]`.

use super::PeerSource;
use crate::config::{ConfigErrors, ConfigFile, Peer, consistency::LocalNetwork};

impl PeerSource for ConfigFile {
    type Error = ConfigErrors;

    fn peers(&self, here: &LocalNetwork) -> Result<Vec<Peer>, ConfigErrors> {
        self.peers_in(here)
    }
}
