//! What must survive the daemon: which containers hold which addresses, and what of the host to
//! put back on `oncache down`.
//!
//! One JSON file, replaced atomically. A container is noted before anything is made for it, so a
//! crash in the middle leaves a record to clean up by, never an unknown device.
//!
//! Most of it tells of the running kernel, and ends with it: see [`State::enter_boot`].

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    config::{Chosen, Rule},
    shown::{PATH, VALUE, cut, cut_words},
};

/// Format of the file. A file of another one is refused rather than guessed at.
///
/// Fields may be added within a format, with a default for files that lack them; fields that are
/// not known are passed over. So an upgrade and a downgrade read each other's files.
const VERSION: u32 = 1;
const FILE: &str = "state.json";

/// Another one after each boot (drivers/char/random.c, `proc_do_uuid`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The state, as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// The kernel's boot that the rest tells of; absent in files of versions that did not note it.
    #[serde(default)]
    pub boot: Option<String>,
    /// Containers by name.
    pub containers: BTreeMap<String, Container>,
    /// The address given out last: the search for the next begins behind it, so that an address
    /// rests as long as possible before it is used again.
    pub last_address: Option<Ipv4Addr>,
    /// `net.netfilter.nf_conntrack_tcp_be_liberal` before the first start, to restore on
    /// `oncache down`.
    pub tcp_be_liberal: Option<u8>,
    /// Devices that a clsact qdisc was made for.
    #[serde(default)]
    pub clsact: Vec<String>,
    /// Underlay device whose hooks carry the programs.
    pub underlay: Option<String>,
    /// The address that this host is at, which stays where another one comes beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
    /// The run-time rules of the network policy, in order.
    #[serde(default)]
    pub policy: Vec<Rule>,
}

/// What every format of the file has.
#[derive(Deserialize)]
struct Format {
    version: u32,
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
    /// What it reaches by the gateway. Absent in files of versions that knew of nothing but a default
    /// route, and passed over by them.
    #[serde(default)]
    pub route: InnerRoute,
    /// Being made: to be removed if found at a start.
    pub pending: bool,
}

/// What a container gets beside its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum InnerRoute {
    /// A default route by the gateway: all of the world
    #[default]
    Default,
    /// A route by the gateway to the network of all containers, and to nothing else
    Overlay,
    /// No route: the containers of this host's subnet, which are on its link
    None,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            boot: None,
            containers: BTreeMap::new(),
            last_address: None,
            tcp_be_liberal: None,
            clsact: Vec::new(),
            underlay: None,
            chosen: None,
            policy: Vec::new(),
        }
    }
}

impl State {
    /// Drops what a former boot of the host has taken along, and returns the names of its containers.
    ///
    /// To look for it instead would not do: inode numbers of namespaces are given out anew from the
    /// same start (fs/proc/generic.c, `proc_alloc_inum`), so that of a container that is gone may be
    /// that of somebody else's namespace at the same path; and kernel settings and qdiscs are by
    /// now what others have made them. Run-time rules and the order of addresses go on. A state without
    /// a boot is taken for one of this boot.
    pub fn enter_boot(&mut self, boot: &str) -> Vec<String> {
        let former = self.boot.replace(boot.to_owned());
        if former.is_none_or(|former| former == boot) {
            return Vec::new();
        }
        self.tcp_be_liberal = None;
        self.clsact.clear();
        self.underlay = None;
        // The host may have been given another one for good.
        self.chosen = None;
        std::mem::take(&mut self.containers).into_keys().collect()
    }
}

/// The state file could not be read or written.
#[derive(Debug, Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("{action} {}: {source}{}", cut(&path.to_string_lossy(), PATH), advice(.source))]
    File {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A state file of a later oncache.
    #[error(
        "read {}: format {found}, and this oncache knows {VERSION}: a newer one wrote it; run the newer one again, or, to give up the containers, move the file away, run `oncache down` and start again", cut(&path.to_string_lossy(), PATH)
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Not a state file of ours.
    #[error(
        "read {}: {}; it is not a state file of this version: move it away and run `oncache down`, then start again", cut(&path.to_string_lossy(), PATH), cut_words(reason, VALUE)
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What to do about a file operation that failed.
fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => "; make room there",
        Kind::ReadOnlyFilesystem => "; --state names another directory",
        Kind::PermissionDenied => "; run as root",
        Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidFilename => {
            "; --state names the directory of the state"
        }
        _ => "",
    }
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

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Where a new state is written before it replaces the old one.
    fn partial(&self) -> PathBuf {
        self.directory.join(".state.json.new")
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
        let unreadable = |error: serde_json::Error| StateError::Content {
            path: path.clone(),
            reason: error.to_string(),
        };
        // By itself, and first: what else a newer file holds is not for us to understand.
        match serde_json::from_str(&text).map_err(unreadable)? {
            Format { version } if version > VERSION => {
                let found = version;
                Err(StateError::Newer { path, found })
            }
            Format { version } if version < VERSION => {
                let reason = format!("format {version} instead of {VERSION}");
                Err(StateError::Content { path, reason })
            }
            _ => serde_json::from_str(&text).map_err(unreadable),
        }
    }

    /// Reads the state as it is in this boot of the host, and names the containers of a former one.
    ///
    /// # Errors
    ///
    /// [`StateError`] if the file can't be read or understood, or the kernel does not name its boot.
    pub fn load_present(&self) -> Result<(State, Vec<String>), StateError> {
        let mut state = self.load()?;
        let boot = fs::read_to_string(BOOT_ID).map_err(|source| StateError::File {
            action: "read",
            path: BOOT_ID.into(),
            source,
        })?;
        let gone = state.enter_boot(boot.trim());
        Ok((state, gone))
    }

    /// Writes the state: all of it or, after a crash, the old one.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let path = self.path();
        let partial = self.partial();
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
        let written = File::create(&partial)
            .map_err(failed("create", &partial))
            .and_then(|mut file| {
                file.write_all(&text)
                    .and_then(|()| file.sync_all())
                    .map_err(failed("write", &partial))
            });
        if let Err(error) = written {
            // What there is of it takes room that is wanted. Why that fails would hide the reason.
            let _ = fs::remove_file(&partial);
            return Err(error);
        }
        fs::rename(&partial, &path).map_err(failed("replace", &path))
    }

    /// Removes the state file; no error where there is none. The directory stays: it may be the
    /// service manager's.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn remove(&self) -> Result<(), StateError> {
        // The partial one is there after a crash in the middle of a save.
        for path in [self.partial(), self.path()] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::File {
                        action: "remove",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
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
        fs::write(store.partial(), "{").unwrap();
        store.remove().unwrap();
        store.remove().unwrap();
        assert_eq!(fs::read_dir(&store.directory).unwrap().count(), 0);
        assert_eq!(store.load().unwrap(), State::default());
    }

    #[test]
    fn a_reboot_ends_what_was_of_the_kernel() {
        let container = Container {
            ip: Ipv4Addr::new(10, 42, 1, 10),
            netns: "/run/netns/web".into(),
            owned_netns: Some(4_026_532_300),
            ifname: "eth0".into(),
            device: "onc-web".into(),
            route: InnerRoute::Overlay,
            pending: false,
        };
        let before = State {
            containers: BTreeMap::from([("web".to_owned(), container)]),
            last_address: Some(Ipv4Addr::new(10, 42, 1, 10)),
            tcp_be_liberal: Some(0),
            clsact: vec!["eth1".to_owned()],
            underlay: Some("eth1".to_owned()),
            chosen: Some(Chosen {
                device: "eth1".to_owned(),
                address: Ipv4Addr::new(192, 168, 50, 11),
            }),
            ..State::default()
        };
        let mut state = before.clone();
        // Of a version that did not note it: of this boot, as far as is known.
        assert!(state.enter_boot("one").is_empty());
        assert!(state.enter_boot("one").is_empty());
        assert_eq!(state.containers, before.containers);
        assert_eq!(state.enter_boot("two"), ["web"]);
        let wanted = State {
            boot: Some("two".to_owned()),
            last_address: before.last_address,
            ..State::default()
        };
        assert_eq!(state, wanted);
    }

    #[test]
    fn files_of_other_versions_within_the_format_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().to_owned());
        let write = |text| fs::write(directory.path().join(FILE), text).unwrap();
        write(r#"{"version": 1, "containers": {}}"#);
        assert_eq!(store.load().unwrap(), State::default());
        write(r#"{"version": 1, "containers": {}, "invented_later": [1, 2]}"#);
        assert_eq!(store.load().unwrap(), State::default());
    }

    #[test]
    fn a_container_of_a_build_that_knew_one_route_has_that() {
        let text = r#"{"version": 1, "containers": {"web": {"ip": "10.42.1.2", "netns": "/run/netns/web",
            "owned_netns": null, "ifname": "eth0", "device": "onc-web", "pending": false}},
            "last_address": null, "tcp_be_liberal": null, "underlay": null}"#;
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), text).unwrap();
        let state = Store::new(directory.path().to_owned()).load().unwrap();
        assert_eq!(state.containers["web"].route, InnerRoute::Default);
    }

    #[test]
    fn a_newer_format_is_named_whatever_else_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().to_owned());
        let text = r#"{"version": 7, "containers": [["web"]]}"#;
        fs::write(directory.path().join(FILE), text).unwrap();
        let message = store.load().unwrap_err().to_string();
        for words in ["state.json", "format 7", "newer", "run the newer one again"] {
            assert!(message.contains(words), "{words}: {message}");
        }
    }

    #[test]
    fn another_format_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().to_owned());
        let state = State {
            version: 0,
            ..State::default()
        };
        store.save(&state).unwrap();
        let message = store.load().unwrap_err().to_string();
        assert!(
            message.contains("state.json") && message.contains("format 0"),
            "{message}"
        );
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(matches!(store.load(), Err(StateError::Content { .. })));
    }
}
