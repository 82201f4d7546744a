//! Containers: their namespaces, device pairs and addresses.

pub mod addresses;
pub mod devices;
pub mod mount_namespace;
pub mod namespace;

use std::path::PathBuf;

use thiserror::Error;

use crate::netlink::NetlinkError;

pub use addresses::AddressError;
pub use namespace::NamespaceError;

/// A container could not be connected or disconnected.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// No such container.
    #[error("container {0}: not known here; `oncache container list` shows those that are")]
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
    /// A device of the name is there already, in the container.
    #[error("container {name}: device {device} is in {netns} already; choose another by --ifname")]
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
