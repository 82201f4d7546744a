//! A container: a network namespace that the daemon has joined to the overlay.

use std::{net::Ipv4Addr, ops::Deref, path::Path};

use serde_json::Value;

use crate::{host::Host, namespace::Place};

/// A network namespace on a host, and its address. It is a [`Place`]: it can be entered, and runs
/// commands; its files are the host's.
///
/// The handle keeps the namespace alive even after `oncache container del`.
#[derive(Debug, Clone)]
pub struct Container {
    /// The container's name.
    pub name: String,
    /// Its address on the overlay.
    pub ip: Ipv4Addr,
    /// The name of the host that it is on.
    pub host: String,
    place: Place,
}

impl Deref for Container {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Host {
    /// Adds a container by `oncache container add NAME`.
    ///
    /// # Panics
    /// If the command fails, or `container list` does not show the container.
    pub fn add_container(&self, name: &str) -> Container {
        self.add_container_with(name, &[])
    }

    /// Adds a container with further arguments, such as `--ip ADDRESS`.
    ///
    /// # Panics
    /// As [`Host::add_container`].
    pub fn add_container_with(&self, name: &str, arguments: &[&str]) -> Container {
        let call = [&["container", "add", name], arguments].concat();
        self.oncache_ok(&call);
        self.container(name)
    }

    /// The container of that name, from `oncache container list --json`.
    ///
    /// # Panics
    /// If there is none, or what is printed lacks `ip` or `netns`.
    #[must_use]
    pub fn container(&self, name: &str) -> Container {
        let list = self.oncache_json(&["container", "list", "--json"]);
        let rows = list
            .as_array()
            .or_else(|| list.get("containers")?.as_array());
        let row = rows.into_iter().flatten().find(|row| row["name"] == name);
        let row = row.unwrap_or_else(|| panic!("{}: no container {name} in {list}", self.name));
        let text = |field: &str| {
            let value = row.get(field).and_then(Value::as_str);
            value.unwrap_or_else(|| panic!("{}: container {row} has no {field}", self.name))
        };
        let ip = text("ip").split('/').next().and_then(|ip| ip.parse().ok());
        let ip = ip.unwrap_or_else(|| panic!("{}: container {row} has no IPv4 address", self.name));
        self.adopt(name, ip, self.with_netns(Path::new(text("netns"))))
    }

    /// Removes a container by `oncache container del NAME`.
    ///
    /// # Panics
    /// If the command fails.
    pub fn remove_container(&self, name: &str) {
        self.oncache_ok(&["container", "del", name]);
    }

    /// Makes an empty network namespace `/run/netns/NAME`, with `lo` up, as a container runtime
    /// does before it calls anybody; the path is what `container add --netns` wants.
    pub fn add_netns(&self, name: &str) -> Place {
        self.sh(&format!("ip netns add {name}; ip -n {name} link set lo up"));
        self.with_netns(&Path::new("/run/netns").join(name))
    }

    /// A container that somebody else than the daemon has made.
    #[must_use]
    pub fn adopt(&self, name: &str, ip: Ipv4Addr, place: Place) -> Container {
        Container {
            name: name.to_owned(),
            ip,
            host: self.name.clone(),
            place,
        }
    }
}
