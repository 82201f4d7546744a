//! The connections that netfilter tracks, as far as they are to be forgotten.
//!
//! Spoken to by ctnetlink's own messages (net/netfilter/nf_conntrack_netlink.c), of which only the
//! attributes that tell one connection from another are read.

use std::{io, net::Ipv4Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use tokio::task::spawn_blocking;

use super::NetlinkError;

// Message types: NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_* (include/uapi/linux/netfilter/).
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;

// Attributes of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;

/// `NLA_F_NESTED` of include/uapi/linux/netlink.h, and the mask that leaves an attribute's number.
const NESTED: u16 = 1 << 15;
const NUMBER: u16 = 0x3fff;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Family of IPv4 (include/linux/socket.h).
const AF_INET: u8 = 2;
/// Length of `struct nfgenmsg`.
pub(super) const FAMILY_HEADER: usize = 4;

/// Forgets every IPv4 connection from or to `address` in the calling thread's network namespace,
/// with all that netfilter has concluded of it. A packet of one of them that comes later is new.
/// Returns how many there were; none as well where the kernel tracks no connections.
///
/// It takes a walk over the kernel's whole table, which is one for all namespaces (10 ms for
/// 262,144 buckets), so a thread of its own does it.
///
/// # Errors
/// [`NetlinkError`]: some may be left.
pub async fn forget_connections(address: Ipv4Addr) -> Result<usize, NetlinkError> {
    match spawn_blocking(move || forget(address)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(NetlinkError::closed(format_args!(
            "forget connections of {address}"
        ))),
    }
}

fn forget(address: Ipv4Addr) -> Result<usize, NetlinkError> {
    let mut socket = Connections::open()?;
    let mut forgotten = 0;
    for connection in socket.list(address)? {
        forgotten += usize::from(socket.delete(&connection, address)?);
    }
    Ok(forgotten)
}

/// A socket for requests about connections.
struct Connections {
    socket: Socket,
    sequence: u32,
}

impl Connections {
    fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        let kernel = SocketAddr::new(0, 0);
        socket.connect(&kernel).map_err(NetlinkError::Open)?;
        socket.set_cap_ack(true).map_err(NetlinkError::Open)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The attributes by which each of the connections can be deleted. The kernel could filter by
    /// one place of an address at a time; three walks cost more than to look at what one brings.
    fn list(&mut self, address: Ipv4Addr) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let mut found = Vec::new();
        let outcome = self.exchange(GET, NLM_F_DUMP, &[], |message| {
            if has_address(message, address) {
                found.push(identity(message));
            }
        });
        match outcome {
            Ok(()) => Ok(found),
            // This kernel tracks no connections: nothing to forget.
            Err(Errno::EINVAL | Errno::ENOENT | Errno::EOPNOTSUPP) if found.is_empty() => Ok(found),
            Err(errno) => Err(refused(format!("list connections of {address}"), errno)),
        }
    }

    /// Deletes one connection; `false` where it has ended meanwhile.
    fn delete(&mut self, identity: &[u8], address: Ipv4Addr) -> Result<bool, NetlinkError> {
        match self.exchange(DELETE, NLM_F_ACK, identity, |_| {}) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(refused(format!("delete a connection of {address}"), errno)),
        }
    }

    /// Sends a request and reads the answers until the kernel says that it is done.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        attributes: &[u8],
        mut answer: impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        self.sequence += 1;
        let request = message(kind, NLM_F_REQUEST | flags, self.sequence, attributes);
        self.socket
            .send(&request, 0)
            .map_err(|error| errno(&error))?;
        loop {
            let (datagram, _) = self
                .socket
                .recv_from_full()
                .map_err(|error| errno(&error))?;
            for (kind, body) in messages(&datagram) {
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => return outcome(body),
                    _ => answer(body.get(FAMILY_HEADER..).unwrap_or_default()),
                }
            }
        }
    }
}

/// What a message that ends the answers says: the kernel's error code, 0 if it did as it was asked.
pub(super) fn outcome(body: &[u8]) -> Result<(), Errno> {
    let code = body
        .first_chunk()
        .map_or(0, |code| i32::from_ne_bytes(*code));
    match code {
        0 => Ok(()),
        code => Err(Errno::from_raw(code.saturating_abs())),
    }
}

/// The system's answer to a call of a socket.
pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

fn refused(operation: String, errno: Errno) -> NetlinkError {
    NetlinkError::Refused {
        operation,
        errno,
        reason: None,
    }
}

/// A whole netlink message of netfilter's for IPv4.
pub(super) fn message(kind: u16, flags: u16, sequence: u32, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + FAMILY_HEADER + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // Port: the socket's own.
    bytes.extend([0; 4]);
    // struct nfgenmsg: family, version, resource.
    bytes.extend([AF_INET, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// An attribute with its padding.
pub(super) fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Type and body of each message of a datagram.
pub(super) fn messages(mut datagram: &[u8]) -> Vec<(u16, &[u8])> {
    let mut messages = Vec::new();
    while let Some((header, _)) = datagram.split_first_chunk::<HEADER>() {
        let [a, b, c, d, kind, kind_high, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some(body) = datagram.get(HEADER..length) else {
            break;
        };
        messages.push((u16::from_ne_bytes([kind, kind_high]), body));
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    messages
}

pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .map(|attribute| (attribute.kind() & NUMBER, attribute.into_inner()))
        .filter_map(|(kind, whole)| {
            let length = usize::from(u16::from_ne_bytes(*whole.first_chunk()?));
            Some((kind, whole.get(4..length)?))
        })
}

/// Whether one of the connection's ends, in one of its directions, is `address`.
fn has_address(connection: &[u8], address: Ipv4Addr) -> bool {
    let tuples =
        attributes(connection).filter(|(kind, _)| [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].contains(kind));
    let ips =
        tuples.flat_map(|(_, tuple)| attributes(tuple).filter(|(kind, _)| *kind == CTA_TUPLE_IP));
    let mut ends = ips.flat_map(|(_, ip)| attributes(ip));
    ends.any(|(kind, value)| {
        [CTA_IP_V4_SRC, CTA_IP_V4_DST].contains(&kind) && value == address.octets()
    })
}

/// What names a connection in a request: the tuple of its first packet, its zone, and the number that
/// keeps an heir by the same tuple from being taken for it.
fn identity(connection: &[u8]) -> Vec<u8> {
    let mut identity = Vec::new();
    for (kind, value) in attributes(connection) {
        match kind {
            CTA_TUPLE_ORIG => identity.extend(attribute_of(NESTED | kind, value)),
            CTA_ID | CTA_ZONE => identity.extend(attribute_of(kind, value)),
            _ => {}
        }
    }
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let ends = [
            attribute_of(CTA_IP_V4_SRC, &source),
            attribute_of(CTA_IP_V4_DST, &destination),
        ];
        let ip = attribute_of(NESTED | CTA_TUPLE_IP, &ends.concat());
        [
            attribute_of(NESTED | CTA_TUPLE_ORIG, &ip),
            attribute_of(3, &[0, 0, 0, 8]),
            attribute_of(CTA_ID, &[1, 2, 3, 4]),
        ]
        .concat()
    }

    #[test]
    fn an_address_is_found_at_either_end_and_nowhere_else() {
        let entry = connection([10, 42, 1, 2], [10, 42, 2, 2]);
        for (ip, found) in [
            (Ipv4Addr::new(10, 42, 1, 2), true),
            (Ipv4Addr::new(10, 42, 2, 2), true),
            (Ipv4Addr::new(1, 2, 3, 4), false),
            (Ipv4Addr::new(0, 0, 0, 8), false),
        ] {
            assert_eq!(has_address(&entry, ip), found, "{ip}");
        }
    }

    #[test]
    fn a_connection_is_named_by_tuple_and_number() {
        let entry = connection([10, 42, 1, 2], [10, 42, 2, 2]);
        let named = identity(&entry);
        let kinds: Vec<u16> = attributes(&named).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [CTA_TUPLE_ORIG, CTA_ID]);
    }

    #[test]
    fn truncated_datagrams_end_quietly() {
        let whole = message(GET, 0, 1, &connection([1; 4], [2; 4]));
        assert_eq!(messages(&whole).len(), 1);
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).len(), 0);
        }
    }
}
