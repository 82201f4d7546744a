//! A container that is to be added: what is asked for, and what it will be.

use std::{net::Ipv4Addr, path::PathBuf};

use super::Network;
use crate::{
    config::check_name,
    container::{
        ContainerError,
        addresses::{claim, next_free},
        devices::host_device,
        namespace,
    },
    shown::{PATH, VALUE, cut},
    state::{Container, InnerRoute},
};

/// The longest device name (include/uapi/linux/if.h, `IFNAMSIZ` less the NUL).
const IFNAME_LENGTH: usize = 15;

/// A container that is to be added, as somebody asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewContainer {
    /// Its name.
    pub name: String,
    /// Path of its network namespace; one called like the container is made without.
    pub netns: Option<PathBuf>,
    /// Its address; the next free one without.
    pub ip: Option<Ipv4Addr>,
    /// Name of the device inside.
    pub ifname: String,
    /// What it reaches by the gateway.
    pub route: InnerRoute,
}

impl Network {
    /// The container that a request describes, with its address.
    ///
    /// # Errors
    ///
    /// [`ContainerError`].
    pub fn plan(&self, request: NewContainer) -> Result<Container, ContainerError> {
        let name = request.name;
        let bad = |reason: String| ContainerError::BadName {
            // A bad name may be a long one.
            name: cut(&name, VALUE),
            reason,
        };
        check_name(&name).map_err(&bad)?;
        if self.containers().contains_key(&name) {
            return Err(ContainerError::Exists(name));
        }
        check_ifname(&request.ifname).map_err(&bad)?;
        if let Some(path) = request.netns.as_ref().filter(|path| !path.is_absolute()) {
            return Err(bad(format!(
                "network namespace {}: give an absolute path",
                cut(&path.to_string_lossy(), PATH)
            )));
        }
        // Known before anything is made: to undo it would take the other one's programs away.
        let device = host_device(&name);
        let mut others = self.containers().iter();
        if let Some((holder, _)) = others.find(|(_, it)| it.device == device) {
            return Err(ContainerError::SameDevice {
                name,
                device,
                holder: holder.clone(),
            });
        }
        let held = || {
            let containers = self.containers().iter();
            containers.map(|(name, it)| (it.ip, name.as_str()))
        };
        let ip = match request.ip {
            Some(wish) => claim(&self.config, held(), wish)?,
            None => {
                let here = held().map(|(ip, _)| ip);
                let taken = here.chain(self.config.away()).collect();
                let last = self.record.state().last_address;
                next_free(self.config.overlay.subnet, &taken, last)?
            }
        };
        Ok(Container {
            ip,
            owned_netns: None,
            netns: request.netns.unwrap_or_else(|| namespace::path(&name)),
            ifname: request.ifname,
            device,
            route: request.route,
            pending: true,
        })
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
            "device name {:?}: give 1 to {IFNAME_LENGTH} letters, digits or signs, without '/' and ':'",
            cut(ifname, VALUE)
        ))
    }
}
