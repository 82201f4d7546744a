//! The node's containers: added, deleted, adopted, mended.

use std::path::Path;

use tracing::{info, warn};

use super::{DaemonError, Node};
use crate::{
    config::check_name,
    container::{
        ContainerError,
        addresses::{claim, next_free},
        devices::{self, Attachment, bring_up, connect, host_device, remove_device},
        namespace,
    },
    control::api::{AddContainer, ContainerInfo},
    datapath::{PIN_ROOT, attach},
    overlay::{
        names::container_mac,
        source_guard::{self, Source},
    },
    state::Container,
};

/// The longest device name (include/uapi/linux/if.h, `IFNAMSIZ` less the NUL).
const IFNAME_LENGTH: usize = 15;

/// How many characters of a refused name are repeated.
const LONGEST_SHOWN: usize = 80;

impl Node {
    /// Adds a container to the overlay.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]; nothing is left behind.
    pub async fn add_container(
        &mut self,
        request: AddContainer,
    ) -> Result<ContainerInfo, DaemonError> {
        let name = request.name.clone();
        let make_netns = request.netns.is_none();
        let mut container = self.plan(request)?;
        if make_netns {
            let inode = namespace::create(&container.netns).map_err(ContainerError::from)?;
            container.owned_netns = Some(inode);
        }
        // Noted before its devices are made: a crash leaves a record to clean up by.
        self.state.containers.insert(name.clone(), container);
        let made = self.make(&name).await;
        if made.is_err() {
            for failure in self.unmake(&name).await {
                warn!("undo adding container {name}: {failure}");
            }
        }
        made
    }

    /// The container that a request describes, with its address.
    fn plan(&self, request: AddContainer) -> Result<Container, ContainerError> {
        let name = request.name;
        let bad = |reason: String| ContainerError::BadName {
            // A bad name may be a long one.
            name: name.chars().take(LONGEST_SHOWN).collect(),
            reason,
        };
        check_name(&name).map_err(&bad)?;
        if self.state.containers.contains_key(&name) {
            return Err(ContainerError::Exists(name));
        }
        check_ifname(&request.ifname).map_err(&bad)?;
        if let Some(path) = request.netns.as_ref().filter(|path| !path.is_absolute()) {
            return Err(bad(format!(
                "network namespace {}: give an absolute path",
                path.display()
            )));
        }
        let overlay = &self.config.overlay;
        let held = || {
            self.state
                .containers
                .iter()
                .map(|(name, it)| (it.ip, name.as_str()))
        };
        let ip = match request.ip {
            Some(wish) => claim(overlay.subnet, overlay.gateway(), held(), wish)?,
            None => {
                let taken = held().map(|(ip, _)| ip).collect();
                let last = self.state.last_address;
                next_free(overlay.subnet, overlay.gateway(), &taken, last)?
            }
        };
        Ok(Container {
            ip,
            owned_netns: None,
            netns: request.netns.unwrap_or_else(|| namespace::path(&name)),
            ifname: request.ifname,
            device: host_device(&name),
            pending: true,
        })
    }

    async fn make(&mut self, name: &str) -> Result<ContainerInfo, DaemonError> {
        let container = self.record(name)?.clone();
        self.store.save(&self.state)?;
        let overlay = &self.config.overlay;
        let attachment = Attachment {
            subnet: overlay.subnet,
            gateway: overlay.gateway(),
            mtu: overlay.mtu,
        };
        let index = connect(&self.netlink, name, &container, attachment).await?;
        self.devices.insert(name.to_owned(), index);
        // Before the device is up: its first frame finds its source known and the programs there.
        self.guard_sources().await?;
        self.sync_containers()?;
        if let Some(datapath) = &mut self.datapath {
            datapath.attach(&container.device, attach::CONTAINER)?;
        }
        bring_up(&self.netlink, name, &container, attachment).await?;
        if let Some(record) = self.state.containers.get_mut(name) {
            record.pending = false;
        }
        self.state.last_address = Some(container.ip);
        self.store.save(&self.state)?;
        info!(
            "container {name} added: {} in {}",
            container.ip,
            container.netns.display()
        );
        Ok(describe(name, &container))
    }

    /// Deletes a container, whatever is left of it.
    ///
    /// # Errors
    ///
    /// [`DaemonError`] of the first step that failed, after all were tried.
    pub async fn delete_container(&mut self, name: &str) -> Result<(), DaemonError> {
        self.record(name)?;
        let mut failures = self.unmake(name).await.into_iter();
        match failures.next() {
            None => {
                info!("container {name} deleted");
                Ok(())
            }
            Some(first) => {
                failures.for_each(|failure| warn!("delete container {name}: {failure}"));
                Err(first)
            }
        }
    }

    fn record(&self, name: &str) -> Result<&Container, ContainerError> {
        let unknown = || ContainerError::Unknown(name.to_owned());
        self.state.containers.get(name).ok_or_else(unknown)
    }

    /// Removes all that belongs to a container, ending with its record and address, which stay if
    /// anything else does: the address must not be given out again while something answers to it.
    async fn unmake(&mut self, name: &str) -> Vec<DaemonError> {
        let Some(container) = self.state.containers.get(name).cloned() else {
            return Vec::new();
        };
        let mut failures: Vec<DaemonError> = Vec::new();
        let root = Path::new(PIN_ROOT);
        failures.extend(
            attach::detach(root, &container.device)
                .err()
                .map(DaemonError::from),
        );
        let removed = remove_device(&self.netlink, &container.device).await;
        failures.extend(removed.err().map(DaemonError::from));
        if let Some(inode) = container.owned_netns {
            let removed = namespace::remove(&container.netns, inode).map_err(ContainerError::from);
            failures.extend(removed.err().map(DaemonError::from));
        }
        let was_connected = self.devices.remove(name).is_some();
        failures.extend(self.sync_containers().err().map(DaemonError::from));
        // Nothing was learned of one that never had a device.
        if was_connected {
            self.invalidate(&format!("container {name} is gone"));
        }
        if failures.is_empty() {
            self.state.containers.remove(name);
            failures.extend(self.guard_sources().await.err());
        }
        failures.extend(self.store.save(&self.state).err().map(DaemonError::from));
        failures
    }

    /// All containers.
    #[must_use]
    pub fn list_containers(&self) -> Vec<ContainerInfo> {
        self.state
            .containers
            .iter()
            .map(|(name, container)| describe(name, container))
            .collect()
    }

    /// Takes over the containers of an earlier daemon, and removes what it left half made.
    pub(super) async fn adopt_containers(&mut self) -> Result<(), DaemonError> {
        let halves: Vec<String> = self
            .state
            .containers
            .iter()
            .filter(|(_, container)| container.pending)
            .map(|(name, _)| name.clone())
            .collect();
        for name in halves {
            info!("container {name}: was being added when the daemon ended; removing it");
            for failure in self.unmake(&name).await {
                warn!("remove container {name}: {failure}");
            }
        }
        self.remove_leftovers().await?;
        self.mend_containers().await?;
        Ok(())
    }

    /// Lets every container send from its own addresses, and from no others. Returns whether that
    /// took a change.
    async fn guard_sources(&self) -> Result<bool, DaemonError> {
        let sources = self.state.containers.values().map(|container| Source {
            device: container.device.clone(),
            mac: container_mac(container.ip),
            ip: container.ip,
        });
        let done = source_guard::reconcile(&sources.collect()).await?;
        for line in &done {
            info!("{line}");
        }
        Ok(!done.is_empty())
    }

    /// Puts the containers' host-side devices right and notices those that vanished. Returns
    /// whether anything changed.
    pub(super) async fn mend_containers(&mut self) -> Result<bool, DaemonError> {
        let mtu = self.config.overlay.mtu;
        let mut changed = false;
        let mut vanished = Vec::new();
        for (name, container) in &self.state.containers {
            match devices::mend(&self.netlink, name, container, mtu).await? {
                Some((index, mended)) => {
                    changed |= mended | (self.devices.insert(name.clone(), index) != Some(index));
                }
                None => vanished.push(name.clone()),
            }
        }
        for name in vanished {
            warn!("container {name}: its device is gone, and with it the container; removing it");
            for failure in self.unmake(&name).await {
                warn!("remove container {name}: {failure}");
            }
            changed = true;
        }
        changed |= self.guard_sources().await?;
        changed |= self.sync_containers()?;
        Ok(changed)
    }
}

fn describe(name: &str, container: &Container) -> ContainerInfo {
    ContainerInfo {
        name: name.to_owned(),
        ip: container.ip,
        netns: container.netns.clone(),
        ifname: container.ifname.clone(),
        device: container.device.clone(),
    }
}

/// What the kernel takes for a device name (net/core/dev.c, `dev_valid_name`).
fn check_ifname(ifname: &str) -> Result<(), String> {
    let valid = !ifname.is_empty()
        && ifname.len() <= IFNAME_LENGTH
        && ![".", "..", "lo"].contains(&ifname)
        && ifname
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if valid {
        Ok(())
    } else {
        Err(format!(
            "device name {ifname:?}: give 1 to {IFNAME_LENGTH} letters, digits or signs, without '/' and ':'"
        ))
    }
}
