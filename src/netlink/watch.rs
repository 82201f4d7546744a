//! Changes of the namespace as they happen.
//!
//! The messages are read for their kind and device only: whoever is told that something changed
//! looks at the whole state, so an attribute that this build cannot decode must not end the watch.

use std::io;

use netlink_packet_core::NlasIterator;
use netlink_sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::errno::Errno;

use super::NetlinkError;

// Groups of include/uapi/linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
/// Group of include/uapi/linux/netfilter/nfnetlink.h.
const NFNLGRP_NFTABLES: u32 = 7;

// Message types of include/uapi/linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the last message of each committed transaction
/// (net/netfilter/nf_tables_api.c, `nf_tables_gen_notify`), and thus one for each.
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// `RTA_OIF`: a route's outgoing device.
const RTA_OIF: u16 = 4;
/// Length of `struct nlmsghdr`.
const HEADER_LENGTH: usize = 16;
/// Length of `struct rtmsg`.
const ROUTE_HEADER_LENGTH: usize = 12;

/// Something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A device came, went or changed.
    Link {
        /// Its interface index.
        device: u32,
    },
    /// An IPv4 address came, went or changed.
    Address {
        /// The interface index of its device.
        device: u32,
    },
    /// An IPv4 route came, went or changed.
    Route {
        /// The interface index of its device; none if it has several next hops, or none (blackhole).
        device: Option<u32>,
    },
    /// A neighbour or a forwarding entry came, went or changed.
    Neighbour {
        /// The interface index of its device.
        device: u32,
    },
    /// A transaction changed the nftables ruleset.
    Ruleset,
    /// Events were lost: anything may have changed.
    Overrun,
}

/// A stream of [`Event`]s of one network namespace: that of the thread that opened it.
pub struct Watch {
    route: TokioSocket,
    netfilter: TokioSocket,
    /// Events of the last datagram that were not yet asked for, in reverse.
    pending: Vec<Event>,
}

impl Watch {
    /// Begins to watch. What changes after the call is reported; what changed before is not.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] when a socket cannot be had, which for the ruleset takes
    /// `CAP_NET_ADMIN`.
    pub fn new() -> Result<Self, NetlinkError> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
        ];
        let route = listen(NETLINK_ROUTE, &groups).map_err(NetlinkError::Open)?;
        let netfilter =
            listen(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]).map_err(NetlinkError::Open)?;
        Ok(Self {
            route,
            netfilter,
            pending: Vec::new(),
        })
    }

    /// Sets how many bytes of unread events the kernel keeps before it reports an overrun. It counts
    /// its own bookkeeping too, and at most `net.core.rmem_max`.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] when the kernel refuses.
    pub fn set_receive_buffer(&self, bytes: i32) -> Result<(), NetlinkError> {
        for socket in [&self.route, &self.netfilter] {
            let socket = socket.socket_ref();
            socket.set_rx_buf_sz(bytes).map_err(NetlinkError::Open)?;
        }
        Ok(())
    }

    /// Waits for the next event. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] when a socket is broken; the watch is then of no more use.
    pub async fn next(&mut self) -> Result<Event, NetlinkError> {
        loop {
            if let Some(event) = self.pending.pop() {
                return Ok(event);
            }
            let received = tokio::select! {
                received = self.route.recv_from_full() => received,
                received = self.netfilter.recv_from_full() => received,
            };
            match received {
                Ok((datagram, _)) => {
                    self.pending = events(&datagram);
                    self.pending.reverse();
                }
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Ok(Event::Overrun);
                }
                Err(error) => return Err(NetlinkError::Open(error)),
            }
        }
    }
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
    Ok(socket)
}

/// The events of one datagram, in order. What is of no known kind is passed over.
fn events(mut datagram: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(length) = field(datagram, 0) {
        let length = length as usize;
        if length < HEADER_LENGTH || length > datagram.len() {
            break;
        }
        let (message, _) = datagram.split_at(length);
        events.extend(event(message));
        // Messages are aligned to four bytes (NLMSG_ALIGNTO).
        let next = length.next_multiple_of(4).min(datagram.len());
        datagram = &datagram[next..];
    }
    events
}

/// The event of one message, header included.
fn event(message: &[u8]) -> Option<Event> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    // ifinfomsg, ifaddrmsg and ndmsg all have the interface index as their second word.
    let device = || field(message, HEADER_LENGTH + 4);
    match kind {
        RTM_NEWLINK | RTM_DELLINK => Some(Event::Link { device: device()? }),
        RTM_NEWADDR | RTM_DELADDR => Some(Event::Address { device: device()? }),
        RTM_NEWNEIGH | RTM_DELNEIGH => Some(Event::Neighbour { device: device()? }),
        RTM_NEWROUTE | RTM_DELROUTE => {
            let attributes = message.get(HEADER_LENGTH + ROUTE_HEADER_LENGTH..)?;
            let device = NlasIterator::new(attributes)
                .filter_map(Result::ok)
                .find(|attribute| attribute.kind() == RTA_OIF)
                .and_then(|attribute| field(attribute.value(), 0));
            Some(Event::Route { device })
        }
        NEW_GENERATION => Some(Event::Ruleset),
        _ => None,
    }
}

/// A 32-bit word in host byte order.
fn field(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_LENGTH + payload.len()).expect("short");
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(payload);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn with_index(index: u32) -> Vec<u8> {
        let mut payload = vec![0; 4];
        payload.extend(index.to_ne_bytes());
        payload
    }

    #[test]
    fn several_messages_of_a_datagram_are_told_apart() {
        let mut datagram = message(RTM_NEWLINK, &with_index(7));
        datagram.extend(message(RTM_DELADDR, &[&with_index(8)[..], &[1]].concat()));
        datagram.extend(message(999, &with_index(1)));
        datagram.extend(message(RTM_NEWNEIGH, &with_index(9)));
        datagram.extend(message(NEW_GENERATION, &[0; 4]));
        assert_eq!(
            events(&datagram),
            [
                Event::Link { device: 7 },
                Event::Address { device: 8 },
                Event::Neighbour { device: 9 },
                Event::Ruleset,
            ]
        );
    }

    #[test]
    fn a_route_names_its_device_if_it_has_one() {
        let mut payload = vec![0; ROUTE_HEADER_LENGTH];
        assert_eq!(
            events(&message(RTM_NEWROUTE, &payload)),
            [Event::Route { device: None }]
        );
        payload.extend(8_u16.to_ne_bytes());
        payload.extend(RTA_OIF.to_ne_bytes());
        payload.extend(5_u32.to_ne_bytes());
        assert_eq!(
            events(&message(RTM_DELROUTE, &payload)),
            [Event::Route { device: Some(5) }]
        );
    }

    #[test]
    fn truncated_and_lying_datagrams_end_quietly() {
        let whole = message(RTM_NEWLINK, &with_index(7));
        for length in 0..whole.len() {
            assert_eq!(events(&whole[..length]), []);
        }
        let mut lying = whole;
        lying[..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert_eq!(events(&lying), []);
        assert_eq!(events(&message(RTM_NEWLINK, &[0; 4])), []);
    }
}
