//! A host: a place on the underlay where one daemon runs.

use std::{
    fs,
    fs::{File, OpenOptions},
    net::Ipv4Addr,
    ops::Deref,
    os::unix::fs::FileExt,
    path::{Path, PathBuf, absolute},
    sync::Mutex,
};

use crate::{
    config::{Config, Peer},
    container::Container,
    daemon::Daemon,
    namespace::{OWN_DIRECTORY, Place},
    snapshot::Snapshot,
};

/// The name of every host's underlay device.
pub const UNDERLAY: &str = "eth1";

/// A host of a [`Lab`](crate::Lab). It is a [`Place`]: it can be entered, and runs commands.
#[derive(Debug)]
pub struct Host {
    /// `alpha`, `beta`, ...
    pub name: String,
    node: Peer,
    peers: Vec<Peer>,
    place: Place,
    pub(crate) oncache: PathBuf,
    pub(crate) log: File,
    pub(crate) daemon: Mutex<Option<Daemon>>,
}

impl Deref for Host {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Host {
    pub(crate) fn new(node: &Peer, all: &[Peer], oncache: &Path) -> Self {
        let place = Place::new();
        let log = place.enter(|| {
            let path = Path::new(OWN_DIRECTORY).join("oncache.log");
            OpenOptions::new()
                .create(true)
                .read(true)
                .append(true)
                .open(path)
        });
        Self {
            name: node.name.clone(),
            node: node.clone(),
            peers: all
                .iter()
                .filter(|peer| peer.name != node.name)
                .cloned()
                .collect(),
            place,
            oncache: from_anywhere(oncache),
            log: log.expect("a log file in the host's own /run"),
            daemon: Mutex::new(None),
        }
    }

    /// The address on the underlay.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.node.address
    }

    /// The subnet of the host's containers, such as `10.42.1.0/24`.
    #[must_use]
    pub fn subnet(&self) -> &str {
        &self.node.subnet
    }

    /// How the other hosts' configuration names this one.
    #[must_use]
    pub fn as_peer(&self) -> Peer {
        self.node.clone()
    }

    /// The MAC address of the underlay device.
    #[must_use]
    pub fn underlay_mac(&self) -> String {
        format!("52:54:00:32:00:{:02x}", self.node.address.octets()[3])
    }

    /// The host's own network as an end of traffic, for measuring without the overlay.
    #[must_use]
    pub fn as_container(&self) -> Container {
        self.adopt(&self.name, self.address(), self.place.clone())
    }

    /// A configuration in which all the lab's other hosts are peers.
    #[must_use]
    pub fn default_config(&self) -> Config {
        Config::new(self.node.clone(), self.peers.clone(), UNDERLAY)
    }

    /// Writes the daemon's configuration file; a running daemon has to be told.
    pub fn write_config(&self, text: &str) {
        self.write_file("config.toml", text);
    }

    /// The configuration file's path, as the host sees it.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        Path::new(OWN_DIRECTORY).join("config.toml")
    }

    /// Writes a file that vanishes with the host, and returns its path as the host sees it.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write_file(&self, name: &str, text: &str) -> PathBuf {
        let path = Path::new(OWN_DIRECTORY).join(name);
        self.enter(|| fs::write(&path, text))
            .unwrap_or_else(|error| panic!("{}: writing {}: {error}", self.name, path.display()));
        path
    }

    /// Everything of the host's network that a program could have changed.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self)
    }

    /// All that the daemons of this host have printed so far.
    ///
    /// # Panics
    /// If the log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        let length = self.log.metadata().expect("an open log has a length").len();
        let mut bytes = vec![0; usize::try_from(length).expect("a log fits into memory")];
        self.log
            .read_exact_at(&mut bytes, 0)
            .expect("a log only grows");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The lines that the daemon has logged since the log was `from` bytes long.
    #[must_use]
    pub fn log_since(&self, from: usize) -> Vec<String> {
        self.log()[from..].lines().map(str::to_owned).collect()
    }

    /// The last lines of the log.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Prints the end of the log, for a test that is failing.
    pub(crate) fn show_log(&self) {
        let tail = self.log_tail();
        if !tail.is_empty() {
            eprintln!("--- {}: the end of oncache's log\n{tail}\n---", self.name);
        }
    }

    pub(crate) fn binary(&self) -> &str {
        self.oncache
            .to_str()
            .expect("the path of the binary is UTF-8")
    }
}

/// Commands start in the root directory, so a path has to be absolute; a mere name is looked for
/// in `PATH`.
fn from_anywhere(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        absolute(program).expect("a working directory")
    } else {
        program.to_owned()
    }
}
