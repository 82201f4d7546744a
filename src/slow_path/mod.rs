//! What carries a network's packets without the caches: the trait [`SlowPath`], and a folder for each kind.
//!
//! A slow path is handed plain values, and knows nothing of the daemon: what the configuration asks for,
//! and the containers of this host as [`Endpoint`]s. Of a change that it makes it returns a
//! [`Changed`], which the caller commits.

pub mod own;

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use oncache_abi::mark::MarkField;

use self::own::{reconcile::ReconcileErrors, refused::Refused, teardown::OverlayErrors};
use crate::{
    coherence::{Changed, Scope},
    config::Config,
    container::devices::container_mac,
    netlink::{Mac, NetlinkError},
    nft::NftError,
    state::Container,
};

/// Which bits of `skb->mark` the slow path reads and sets, host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// A packet that has any of these missed the fast path and may be learned from.
    pub miss: u32,
    /// These say that conntrack holds its flow established.
    pub est: u32,
}

impl Marks {
    /// Those that `config` gives to oncache.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let field = MarkField::trusted(config.cache.mark_mask.bits());
        Self {
            miss: field.miss_bits(),
            est: field.established_bit(),
        }
    }
}

/// A container's end of the network, on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host-side device.
    pub device: String,
    /// That device's interface index; none where it has not been seen yet.
    pub index: Option<u32>,
    /// The container's MAC address.
    pub mac: Mac,
    /// The container's address.
    pub ip: Ipv4Addr,
    /// The container has set its device down: it answers nobody.
    pub silent: bool,
}

impl Endpoint {
    /// That of a container whose device has not been seen yet.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        Self {
            device: container.device.clone(),
            index: None,
            mac: container_mac(container.ip),
            ip: container.ip,
            silent: false,
        }
    }
}

/// What a slow path is to do for a network.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Addresses, tunnel, peers.
    pub config: &'a Config,
    /// How it marks a packet that may be learned from, if conntrack holds its flow established and
    /// nothing of it is rewritten.
    pub marks: Marks,
    /// The containers of this host.
    pub endpoints: Vec<Endpoint>,
}

impl<'a> Wanted<'a> {
    /// What `config` asks for with these containers.
    #[must_use]
    pub fn new(config: &'a Config, endpoints: Vec<Endpoint>) -> Self {
        Self {
            config,
            marks: Marks::of(config),
            endpoints,
        }
    }
}

/// The outer headers of a network's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// VXLAN (RFC 7348).
    Vxlan {
        /// VXLAN network identifier, 24 bits.
        vni: u32,
        /// UDP destination port.
        port: u16,
    },
}

/// What the programs have to know to send and take in what the slow path would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The outer headers.
    pub encapsulation: Encapsulation,
    /// This host's underlay address.
    pub underlay: Ipv4Addr,
    /// The inner MAC address that this host's end of the tunnel is known by.
    pub vtep: Mac,
    /// The containers' gateway.
    pub gateway: Ipv4Addr,
    /// The MAC address that containers know it by.
    pub gateway_mac: Mac,
    /// The containers' MTU in bytes.
    pub mtu: u32,
}

/// A slow path could not be had, looked at or removed.
#[derive(Debug, thiserror::Error)]
pub enum SlowPathError {
    /// Devices, routes, settings and rules.
    #[error("set up the overlay: {0}")]
    Reconcile(#[from] ReconcileErrors),
    /// What could not be removed of these.
    #[error(transparent)]
    TearDown(#[from] OverlayErrors),
    /// rtnetlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// nft.
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// What carries a network's packets without the caches.
///
/// A slow path that is ours is made what it should be; of one that others have made, what is called a
/// change here is only looked for. The caller's thread is in the network namespace of the host.
#[allow(
    async_fn_in_trait,
    reason = "one task calls it, which knows the type and spawns nothing of it"
)]
pub trait SlowPath {
    /// What of the host stands in the way of `wanted`, a line each. Touches nothing.
    ///
    /// # Errors
    /// [`NetlinkError`]: the host can't be looked at.
    async fn obstacles(&self, wanted: &Wanted<'_>) -> Result<Vec<String>, NetlinkError>;

    /// The gateway's address that living containers go by, with their subnet's length; none where there
    /// is no slow path yet. It may be of another configuration than the present one.
    ///
    /// # Errors
    /// [`NetlinkError`]: the host can't be looked at.
    async fn present_gateway(&self) -> Result<Option<Ipv4Net>, NetlinkError>;

    /// Makes it what is wanted.
    ///
    /// # Errors
    /// [`SlowPathError`]; part of it may have been done.
    async fn reconcile(&mut self, wanted: &Wanted<'_>) -> Result<Changed, SlowPathError>;

    /// The sysctl `nf_conntrack_tcp_be_liberal` as it was before [`reconcile`](Self::reconcile) changed it
    /// first, to be kept for [`tear_down`](Self::tear_down); none where it did not.
    fn former_tcp_be_liberal(&self) -> Option<u8>;

    /// Removes it, whatever is left of it. `tcp_be_liberal` is what that sysctl is to be again; none leaves
    /// it alone.
    ///
    /// # Errors
    /// [`SlowPathError`] with all that stayed.
    async fn tear_down(&self, tcp_be_liberal: Option<u8>) -> Result<(), SlowPathError>;

    /// What an operator has to know of it.
    fn warning(&self) -> Option<&str>;

    /// What of the host cached results depend on.
    ///
    /// # Errors
    /// [`NetlinkError`]: the host can't be looked at.
    async fn scope(&self, wanted: &Wanted<'_>) -> Result<Scope, NetlinkError>;

    /// What the programs have to know of it under `config`.
    fn facts(&self, config: &Config) -> Facts;

    /// The bridge that the containers' host-side devices are ports of.
    fn bridge(&self) -> &str;

    /// The group of that bridge and of what leads from it into the tunnel (`ip link set group`): rules know by
    /// it whether a packet is of the network.
    fn group(&self) -> u32;

    /// Lets each endpoint send from its own addresses, and from no others.
    ///
    /// # Errors
    /// [`SlowPathError`]; nothing has changed then.
    async fn guard(&self, endpoints: &[Endpoint]) -> Result<Changed, SlowPathError>;

    /// Lets one more endpoint send, without a look at the others.
    ///
    /// # Errors
    /// [`SlowPathError`]; [`guard`](Self::guard) knows more.
    async fn allow(&self, endpoint: &Endpoint) -> Result<(), SlowPathError>;

    /// Stops one endpoint; as [`allow`](Self::allow).
    ///
    /// # Errors
    /// [`SlowPathError`], also where it was not let send.
    async fn forbid(&self, endpoint: &Endpoint) -> Result<(), SlowPathError>;

    /// How many packets were refused as forged so far, by reason.
    ///
    /// # Errors
    /// [`SlowPathError`]: the rules can't be listed.
    async fn refused(&self) -> Result<BTreeMap<Refused, u64>, SlowPathError>;

    /// Tells the host which endpoint is where. Nothing of it is learned from packets.
    ///
    /// # Errors
    /// [`NetlinkError`].
    async fn place(&self, endpoints: &[Endpoint]) -> Result<Changed, NetlinkError>;

    /// Tells the host's neighbour table where one more endpoint is.
    ///
    /// # Errors
    /// [`NetlinkError`].
    async fn announce(&self, endpoint: &Endpoint) -> Result<(), NetlinkError>;

    /// Makes that table forget who has an address.
    ///
    /// # Errors
    /// [`NetlinkError`]; that nobody has it is none.
    async fn forget(&self, address: Ipv4Addr) -> Result<(), NetlinkError>;
}
