//! What must survive the daemon: which containers hold which addresses, and what of the host to
//! put back on `oncache down`.
//!
//! One JSON file, replaced atomically. A container is noted before anything is made for it, so a
//! crash in the middle leaves a record to clean up by, never an unknown device.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::Rule;

/// Format of the file. A file of another one is refused rather than guessed at.
const VERSION: u32 = 1;
const FILE: &str = "state.json";

/// The state, as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Containers by name.
    pub containers: BTreeMap<String, Container>,
    /// The address given out last: the search for the next begins behind it, so that an address
    /// rests as long as possible before it is used again.
    pub last_address: Option<Ipv4Addr>,
    /// `net.netfilter.nf_conntrack_tcp_be_liberal` before the first start, to restore on
    /// `oncache down`.
    pub tcp_be_liberal: Option<u8>,
    /// Devices that a clsact qdisc was made for.
    pub clsact: Vec<String>,
    /// Underlay device whose hooks carry the programs.
    pub underlay: Option<String>,
    /// The run-time rules of the network policy, in order.
    #[serde(default)]
    pub policy: Vec<Rule>,
}

/// A container's place in the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Inode number of the namespace if it was made by oncache, and goes with the container.
    pub owned_netns: Option<u64>,
    /// Name of the device inside.
    pub ifname: String,
    /// Name of the host-side device.
    pub device: String,
    /// Being made: to be removed if found at a start.
    pub pending: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            containers: BTreeMap::new(),
            last_address: None,
            tcp_be_liberal: None,
            clsact: Vec::new(),
            underlay: None,
            policy: Vec::new(),
        }
    }
}

/// The state file could not be read or written.
#[derive(Debug, Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    File {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Not a state file of ours.
    #[error(
        "read {path}: {reason}; it is not a state file of this version: move it away and run `oncache down`, then start again"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The directory that holds the state.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store in `directory`, which need not exist yet.
    #[must_use]
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Reads the state; the empty state where there is none.
    ///
    /// # Errors
    ///
    /// [`StateError`] if the file can't be read or understood.
    pub fn load(&self) -> Result<State, StateError> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(source) => {
                return Err(StateError::File {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        let state: State = serde_json::from_str(&text).map_err(|error| StateError::Content {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        if state.version != VERSION {
            let reason = format!("format {} instead of {VERSION}", state.version);
            return Err(StateError::Content { path, reason });
        }
        Ok(state)
    }

    /// Writes the state: all of it or, after a crash, the old one.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let path = self.path();
        let partial = self.directory.join(".state.json.new");
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::File {
                action,
                path,
                source,
            }
        };
        fs::create_dir_all(&self.directory).map_err(failed("create", &self.directory))?;
        let text = serde_json::to_vec_pretty(state)
            .map_err(|error| failed("encode", &path)(io::Error::other(error)))?;
        let mut file = File::create(&partial).map_err(failed("create", &partial))?;
        file.write_all(&text).map_err(failed("write", &partial))?;
        file.sync_all().map_err(failed("write", &partial))?;
        fs::rename(&partial, &path).map_err(failed("replace", &path))
    }

    /// Removes the state file; no error where there is none. The directory stays: it may be the
    /// service manager's.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn remove(&self) -> Result<(), StateError> {
        let path = self.path();
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::File {
                action: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("below"));
        assert_eq!(store.load().unwrap(), State::default());
        let state = State {
            tcp_be_liberal: Some(0),
            last_address: Some(Ipv4Addr::new(10, 42, 1, 9)),
            ..State::default()
        };
        store.save(&state).unwrap();
        assert_eq!(store.load().unwrap(), state);
        store.remove().unwrap();
        store.remove().unwrap();
        assert_eq!(store.load().unwrap(), State::default());
    }

    #[test]
    fn a_file_from_before_the_policy_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"version":1,"containers":{},"last_address":null,"tcp_be_liberal":null,"clsact":[],"underlay":null}"#;
        fs::write(directory.path().join(FILE), text).unwrap();
        let store = Store::new(directory.path().to_owned());
        assert_eq!(store.load().unwrap(), State::default());
    }

    #[test]
    fn another_format_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().to_owned());
        let state = State {
            version: 2,
            ..State::default()
        };
        store.save(&state).unwrap();
        let message = store.load().unwrap_err().to_string();
        assert!(
            message.contains("state.json") && message.contains("format 2"),
            "{message}"
        );
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(matches!(store.load(), Err(StateError::Content { .. })));
    }
}
