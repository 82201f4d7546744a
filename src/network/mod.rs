//! One network on this host, as a value: its configuration, its containers, and what of it is on disk.

mod plan;
mod record;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

pub use self::{plan::NewContainer, record::Record};

use crate::{
    config::{Chosen, Config, ConfigFile},
    container::{
        AddressError, ContainerError, addresses,
        devices::{HostDevice, Uplink},
    },
    slow_path::{Endpoint, Wanted},
    state::Container,
};

/// A configuration that containers are in the way of.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A change that needs the containers gone.
    #[error(
        "overlay.subnet {wanted}: {count} containers hold addresses of {present}; delete them first, or keep the subnet"
    )]
    SubnetInUse {
        /// What the file says.
        wanted: ipnet::Ipv4Net,
        /// What the containers have.
        present: ipnet::Ipv4Net,
        /// How many.
        count: usize,
    },
    /// A container's address that the configuration does not leave to it.
    #[error("container {name}: {reason}; delete the container first")]
    AddressInUse {
        /// The container.
        name: String,
        /// Why it can't have its address.
        reason: AddressError,
    },
}

/// One network on this host.
pub struct Network {
    /// The configuration as written: what the host decides of it may change.
    file: ConfigFile,
    config: Config,
    record: Record,
    /// The containers' host-side devices, by container name.
    devices: BTreeMap<String, HostDevice>,
    /// Containers whose device has no carrier: they have set it down inside.
    silent: BTreeSet<String>,
}

impl Network {
    /// A network none of whose devices has been seen yet.
    pub const fn new(file: ConfigFile, config: Config, record: Record) -> Self {
        Self {
            file,
            config,
            record,
            devices: BTreeMap::new(),
            silent: BTreeSet::new(),
        }
    }

    /// The configuration in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The configuration as written.
    pub const fn file(&self) -> &ConfigFile {
        &self.file
    }

    /// What the state tells.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// What the state is to tell.
    pub const fn record_mut(&mut self) -> &mut Record {
        &mut self.record
    }

    /// Puts another configuration in place, and returns the former one.
    pub const fn replace_config(&mut self, config: Config) -> Config {
        std::mem::replace(&mut self.config, config)
    }

    /// The file that the configuration in force is from.
    pub fn set_file(&mut self, file: ConfigFile) {
        self.file = file;
    }

    /// The address that this host is at.
    pub fn chosen(&self) -> Chosen {
        (&self.config.node).into()
    }

    /// What brings this host's address back, where it has gone.
    pub const fn address_remedy(&self) -> &'static str {
        if self.file.names_address() {
            "add it to the device again, or change node.address and the peers' files"
        } else {
            "add it to the device again, or, if this host has moved, set node.address and change the peers' files"
        }
    }

    /// What configuration and containers ask of a slow path.
    pub fn wanted(&self) -> Wanted<'_> {
        Wanted::new(&self.config, self.endpoints())
    }

    /// The containers as a slow path sees them.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let containers = self.containers().iter();
        containers
            .map(|(name, container)| Endpoint {
                index: self.device(name).map(|device| device.index),
                silent: self.is_silent(name),
                ..Endpoint::of(container)
            })
            .collect()
    }

    /// The containers by name.
    pub const fn containers(&self) -> &BTreeMap<String, Container> {
        &self.record.state().containers
    }

    /// A container's record.
    ///
    /// # Errors
    ///
    /// [`ContainerError::Unknown`].
    pub fn container(&self, name: &str) -> Result<&Container, ContainerError> {
        let unknown = || ContainerError::Unknown(name.to_owned());
        self.containers().get(name).ok_or_else(unknown)
    }

    /// The containers that were being added when a daemon ended.
    pub fn half_made(&self) -> Vec<String> {
        let halves = self.containers().iter().filter(|(_, it)| it.pending);
        halves.map(|(name, _)| name.clone()).collect()
    }

    /// Whether an address has come from elsewhere.
    pub fn is_visitor(&self, ip: Ipv4Addr) -> bool {
        !self.config.overlay.subnet.contains(&ip)
    }

    /// What a container is connected to where the slow path's bridge has this name.
    pub fn uplink<'a>(&self, bridge: &'a str) -> Uplink<'a> {
        let overlay = &self.config.overlay;
        Uplink {
            bridge,
            subnet: overlay.subnet,
            network: overlay.network,
            gateway: overlay.gateway(),
            mtu: overlay.mtu,
            kind: self.config.container.pair_kind(),
        }
    }

    /// The host-side device of a container.
    pub fn device(&self, name: &str) -> Option<HostDevice> {
        self.devices.get(name).copied()
    }

    /// Notes the host-side device of a container, and returns the one that was known before.
    pub fn connect(&mut self, name: &str, device: HostDevice) -> Option<HostDevice> {
        self.devices.insert(name.to_owned(), device)
    }

    /// Notes that a container has no device any more. Returns whether one was known.
    pub fn disconnect(&mut self, name: &str) -> bool {
        self.silent.remove(name);
        self.devices.remove(name).is_some()
    }

    /// No container has a device any more, and nothing is recorded.
    pub fn forget_all(&mut self) {
        self.devices.clear();
        self.record.forget_all();
    }

    /// The containers whose devices are known, with these.
    pub fn connected(&self) -> impl Iterator<Item = (&str, &Container, HostDevice)> {
        let devices = self.devices.iter();
        devices.filter_map(|(name, device)| Some((&**name, self.containers().get(name)?, *device)))
    }

    /// The containers' host-side devices, by index.
    pub fn device_names(&self) -> HashMap<u32, String> {
        self.connected()
            .map(|(_, container, device)| (device.index, container.device.clone()))
            .collect()
    }

    /// Whether a container has set its device down inside.
    pub fn is_silent(&self, name: &str) -> bool {
        self.silent.contains(name)
    }

    /// Notes that a container that was not known before has its device set down inside.
    pub fn note_silent(&mut self, name: &str) {
        self.silent.insert(name.to_owned());
    }

    /// Which containers have their devices set down inside. Returns whether that is news.
    pub fn set_silent(&mut self, silent: BTreeSet<String>) -> bool {
        let news = self.silent != silent;
        self.silent = silent;
        news
    }

    /// Addresses of this host's subnet that were not away under the configuration `old`.
    pub fn newly_away(&self, old: &Config) -> Vec<Ipv4Addr> {
        let before: Vec<Ipv4Addr> = old.away().collect();
        let now = self.config.away();
        now.filter(|address| !before.contains(address)).collect()
    }

    /// Refuses a configuration that can't follow the present one while the containers live.
    ///
    /// # Errors
    ///
    /// [`NetworkError`].
    pub fn check_change(&self, config: &Config) -> Result<(), NetworkError> {
        let (wanted, present) = (config.overlay.subnet, self.config.overlay.subnet);
        let count = self.containers().len();
        if wanted != present && count > 0 {
            return Err(NetworkError::SubnetInUse {
                wanted,
                present,
                count,
            });
        }
        self.check_addresses(config)
    }

    /// Refuses a configuration under which a container can't have the address that it has.
    ///
    /// # Errors
    ///
    /// [`NetworkError::AddressInUse`].
    pub fn check_addresses(&self, config: &Config) -> Result<(), NetworkError> {
        for (name, container) in self.containers() {
            addresses::check(config, container.ip).map_err(|reason| {
                NetworkError::AddressInUse {
                    name: name.clone(),
                    reason,
                }
            })?;
        }
        Ok(())
    }
}
