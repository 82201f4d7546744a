//! The state as the daemon holds it, and whether the file says the same.

use std::{net::Ipv4Addr, path::Path};

use tracing::{error, info, warn};

use crate::{
    config::{Chosen, Rule},
    state::{Container, State, StateError, Store},
};

/// The state, and the file that it is written to.
pub struct Record {
    store: Store,
    state: State,
    /// Why the state on disk is not the present one.
    unsaved: Option<String>,
}

impl Record {
    /// Reads the state. What a former boot of the host has taken along is told of.
    ///
    /// # Errors
    ///
    /// [`StateError`]: it can't be read.
    pub fn open(store: Store) -> Result<Self, StateError> {
        let (state, gone) = store.load_present()?;
        for name in gone {
            warn!(
                "container {name}: gone with the host's last boot; add it again, or by a unit at each boot"
            );
        }
        Ok(Self {
            store,
            state,
            unsaved: None,
        })
    }

    /// The state.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The store that it is read from and written to.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// The directory of the file.
    pub fn directory(&self) -> &Path {
        self.store.directory()
    }

    /// Writes the state.
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub fn save(&self) -> Result<(), StateError> {
        self.store.save(&self.state)
    }

    /// Writes what is so whether it can be written or not.
    pub fn save_or_note(&mut self) {
        let Err(reason) = self.save() else {
            return;
        };
        let line = format!(
            "the state is not written, a daemon that starts now would read the former one: {reason}"
        );
        if self.unsaved.as_ref() != Some(&line) {
            error!("{line}");
            self.unsaved = Some(line);
        }
    }

    /// Writes what could not be written before.
    pub fn save_again(&mut self) {
        if self.unsaved.is_none() {
            return;
        }
        match self.save() {
            Ok(()) => {
                info!("the state is written");
                self.unsaved = None;
            }
            Err(_) => self.save_or_note(),
        }
    }

    /// What an operator has to know while the file is not the present state.
    pub fn warning(&self) -> Option<&str> {
        self.unsaved.as_deref()
    }

    /// Nothing is left of what it told of.
    pub fn forget_all(&mut self) {
        self.state = State::default();
    }

    /// Notes a container, before anything is made of it.
    pub fn admit(&mut self, name: &str, container: Container) {
        self.state.containers.insert(name.to_owned(), container);
    }

    /// Notes that a container is made. `last`: its address is the last one that was given out here.
    pub fn settle(&mut self, name: &str, last: Option<Ipv4Addr>) {
        if let Some(container) = self.state.containers.get_mut(name) {
            container.pending = false;
        }
        self.state.last_address = last.or(self.state.last_address);
    }

    /// Notes that a container is gone.
    pub fn dismiss(&mut self, name: &str) {
        self.state.containers.remove(name);
    }

    /// Puts other run-time rules in place, and returns the former ones.
    pub fn replace_policy(&mut self, rules: Vec<Rule>) -> Vec<Rule> {
        std::mem::replace(&mut self.state.policy, rules)
    }

    /// Notes the address that this host is at.
    pub fn choose(&mut self, chosen: Chosen) {
        self.state.chosen = Some(chosen);
    }

    /// Notes what the sysctl was before it was changed first. Returns whether that was news.
    pub fn note_tcp_be_liberal(&mut self, value: Option<u8>) -> bool {
        let news = self.state.tcp_be_liberal.is_none() && value.is_some();
        if news {
            self.state.tcp_be_liberal = value;
        }
        news
    }

    /// Notes the device whose hooks carry the programs. Returns whether that was news.
    pub fn note_underlay(&mut self, device: &str) -> bool {
        let news = self.state.underlay.as_deref() != Some(device);
        if news {
            self.state.underlay = Some(device.to_owned());
        }
        news
    }

    /// Notes that a device's clsact qdisc is ours to remove. Returns whether that was news.
    pub fn note_clsact(&mut self, device: &str) -> bool {
        let news = !self.has_clsact(device);
        if news {
            self.state.clsact.push(device.to_owned());
        }
        news
    }

    /// Whether a device's clsact qdisc is ours to remove.
    pub fn has_clsact(&self, device: &str) -> bool {
        self.state.clsact.iter().any(|made| made == device)
    }

    /// Notes that a device has no clsact qdisc of ours any more. Returns whether that was news.
    pub fn forget_clsact(&mut self, device: &str) -> bool {
        let news = self.has_clsact(device);
        self.state.clsact.retain(|made| made != device);
        news
    }
}
