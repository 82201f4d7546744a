//! Containers: their namespaces, device pairs and addresses.

pub mod addresses;
pub mod devices;
pub mod mount_namespace;
pub mod namespace;

use std::path::PathBuf;

use thiserror::Error;

use crate::{
    netlink::{NetlinkError, RouteHolder},
    shown::{PATH, VALUE, cut},
};

pub use addresses::AddressError;
pub use namespace::NamespaceError;

/// A container could not be connected or disconnected.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// No such container.
    #[error("container {}: not known here; `oncache container list` shows those that are", cut(.0, VALUE))]
    Unknown(String),
    /// The name is taken.
    #[error("container {0}: exists already; delete it first or choose another name")]
    Exists(String),
    /// A name that can't be used.
    #[error("container {name:?}: {reason}")]
    BadName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A device of the name is there already, on the host.
    #[error(
        "container {name}: device {device} is there already and not oncache's; remove it, or name the container otherwise"
    )]
    HostDevice {
        /// The container.
        name: String,
        /// The host-side device.
        device: String,
    },
    /// Another container has the device already: their names have the same hash, or it is one that this
    /// daemon does not know.
    #[error(
        "container {name}: its host-side device would be {device}, which is that of container {holder}; name one of them otherwise"
    )]
    SameDevice {
        /// The container.
        name: String,
        /// The host-side device.
        device: String,
        /// The container that has it.
        holder: String,
    },
    /// The host-side device was given another name, and its own to another device.
    #[error(
        "container {name}: its host-side device {device} is now called {present}, and another device has its name; rename or remove that one (`ip link set {device} name NEW`)"
    )]
    NameTaken {
        /// The container.
        name: String,
        /// What the host-side device shall be called.
        device: String,
        /// What it is called.
        present: String,
    },
    /// The network namespace is the host's.
    #[error(
        "container {name}: network namespace {} is {whose}, which takes no container's addresses and routes; a container on the host's network needs no overlay: give the namespace of another process by --netns, or leave --netns away", cut(&netns.to_string_lossy(), PATH)
    )]
    HostNamespace {
        /// The container.
        name: String,
        /// The namespace as it was named.
        netns: PathBuf,
        /// Whose it is.
        whose: &'static str,
    },
    /// The network namespace is a container's already.
    #[error(
        "container {name}: network namespace {} is container {holder}'s already; delete that one first, or give another namespace", cut(&netns.to_string_lossy(), PATH)
    )]
    NamespaceTaken {
        /// The container.
        name: String,
        /// The namespace as it was named.
        netns: PathBuf,
        /// Whose it is.
        holder: String,
    },
    /// The network namespace has the route already that the container would get.
    #[error(
        "container {name}: network namespace {} has the route `{present}` already; remove it there (`ip route del {present}`), or add the container with {remedy}", cut(&netns.to_string_lossy(), PATH)
    )]
    RouteTaken {
        /// The container.
        name: String,
        /// The namespace as it was named.
        netns: PathBuf,
        /// The route that is there.
        present: Box<RouteHolder>,
        /// What else could be asked for.
        remedy: &'static str,
    },
    /// A device of the name is there already, in the container.
    #[error("container {name}: device {device} is in {} already; choose another by --ifname", cut(&netns.to_string_lossy(), PATH))]
    InnerDevice {
        /// The container.
        name: String,
        /// The device inside.
        device: String,
        /// The network namespace.
        netns: PathBuf,
    },
    /// The kernel has no netkit devices, which the configuration asks for.
    #[error(
        "container {0}: this kernel has no netkit devices (Linux 6.7, CONFIG_NETKIT), which container.device asks for; set it to \"auto\" and reload"
    )]
    NoNetkit(String),
    /// A device, address or route of the container.
    #[error("container {name}: {source}")]
    Netlink {
        /// The container.
        name: String,
        /// The operation and the kernel's answer.
        source: NetlinkError,
    },
}
