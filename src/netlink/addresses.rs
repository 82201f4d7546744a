//! IPv4 addresses of devices.

use std::net::IpAddr;

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
};
use rtnetlink::AddressMessageBuilder;

use super::{Netlink, NetlinkError};

/// An IPv4 address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The device's interface index.
    pub device: u32,
    /// The address with its prefix length.
    pub address: Ipv4Net,
    /// Another address of the same subnet came first. Unless `promote_secondaries` is set, it goes
    /// when the first one goes (net/ipv4/devinet.c, `__inet_del_ifa`).
    pub secondary: bool,
}

impl Netlink {
    /// All IPv4 addresses of the namespace. While others add and remove addresses faster than they
    /// can be read, some that are just gone may be among them.
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let key = |entry: &Address| (entry.device, entry.address);
        let request = RouteNetlinkMessage::GetAddress(filter(0));
        let gathered = self.gather("list addresses", request, parse, key).await?;
        Ok(gathered.0)
    }

    /// The IPv4 addresses of one device, in the kernel's order; none where there is no such device.
    /// What happens to other devices' addresses does not matter (net/ipv4/devinet.c,
    /// `inet_dump_ifaddr`).
    ///
    /// # Errors
    /// [`NetlinkError`] when the table cannot be read.
    pub async fn addresses_of(&self, device: u32) -> Result<Vec<Address>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(filter(device));
        let ours = |entry| parse(entry).filter(|address| address.device == device);
        match self.dump("list addresses", request, ours).await {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            Err(error) => Err(error.on(&self.label(device).await)),
            listed => listed,
        }
    }

    /// Adds an address to a device; done as well if it is there already.
    ///
    /// # Errors
    /// [`NetlinkError`] naming address and device.
    pub async fn add_address(&self, device: u32, address: Ipv4Net) -> Result<(), NetlinkError> {
        let operation = format!("add address {address}");
        self.change_on(
            device,
            operation,
            RouteNetlinkMessage::NewAddress(message(device, address)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Removes an address from a device.
    ///
    /// # Errors
    /// [`NetlinkError`] naming address and device; [`NetlinkError::is_absent`] if it was not there.
    pub async fn delete_address(&self, device: u32, address: Ipv4Net) -> Result<(), NetlinkError> {
        let operation = format!("delete address {address}");
        self.change_on(
            device,
            operation,
            RouteNetlinkMessage::DelAddress(message(device, address)),
            0,
        )
        .await
    }
}

/// Asks for the addresses of one device, or of all (0).
fn filter(device: u32) -> AddressMessage {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    request.header.index = device;
    request
}

fn message(device: u32, address: Ipv4Net) -> AddressMessage {
    AddressMessageBuilder::<std::net::Ipv4Addr>::new()
        .index(device)
        .address(address.addr(), address.prefix_len())
        .build()
}

fn parse(entry: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = entry else {
        return None;
    };
    // IFA_LOCAL is the device's own address; IFA_ADDRESS is the other end of a point-to-point link.
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        })?;
    Some(Address {
        device: message.header.index,
        address: Ipv4Net::new(local, message.header.prefix_len).ok()?,
        secondary: message.header.flags.contains(AddressHeaderFlags::Secondary),
    })
}
