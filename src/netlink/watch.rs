//! Changes of the namespace as they happen.
//!
//! The messages are read for what decides whether anything depends on them. Whoever is told that
//! something changed looks at the whole state, so an attribute that this build cannot decode must
//! not end the watch.

use std::{io, net::Ipv4Addr};

use futures_util::FutureExt as _;
use ipnet::Ipv4Net;
use netlink_packet_core::NlasIterator;
use netlink_sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::errno::Errno;

use super::{
    Mac, NetlinkError,
    conntrack::FAMILY_HEADER,
    ipsec::{NETLINK_XFRM, POLICY_GROUP},
    tables::TABLE,
};

// Groups of include/uapi/linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_NEXTHOP: u32 = 32;
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
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTCLASS: u16 = 40;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_NEWNETCONF: u16 = 80;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the last message of each committed transaction
/// (net/netfilter/nf_tables_api.c, `nf_tables_gen_notify`), and thus one for each.
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// Names of oncache's tables, as messages have them.
const OWN_TABLES: [&[u8]; 2] = [b"oncache\0", b"oncache-policy\0"];

// Attributes of include/uapi/linux/{if_link,rtnetlink,neighbour,netconf}.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const RTA_DST: u16 = 1;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NETCONFA_IFINDEX: u16 = 1;
const TCA_KIND: u16 = 1;
const TCA_INGRESS_BLOCK: u16 = 13;
const TCA_EGRESS_BLOCK: u16 = 14;

// Flags of include/uapi/linux/if.h.
const IFF_UP: u32 = 1 << 0;
const IFF_RUNNING: u32 = 1 << 6;

// Families of include/linux/socket.h.
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;

/// Length of `struct nlmsghdr`.
const HEADER_LENGTH: usize = 16;
/// Length of `struct nlattr`.
const NLA_HEADER_LENGTH: usize = 4;
/// Length of `struct ifinfomsg`.
const LINK_HEADER_LENGTH: usize = 16;
/// Length of `struct rtmsg`.
const ROUTE_HEADER_LENGTH: usize = 12;
/// Length of `struct ndmsg`.
const NEIGHBOUR_HEADER_LENGTH: usize = 12;
/// Length of `struct netconfmsg`, rounded up to the alignment of attributes.
const NETCONF_HEADER_LENGTH: usize = 4;
/// Length of `struct tcmsg`.
const TC_HEADER_LENGTH: usize = 20;
/// Where `struct tcmsg` has the priority of a filter, in the upper half of a word.
const TC_PRIORITY: usize = 16;
/// The interface index of what is shared by devices (`TCM_IFINDEX_MAGIC_BLOCK`).
const SHARED_BLOCK: u32 = 0xffff_ffff;

/// What a device is after a change, as far as packets depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkState {
    /// The link-layer address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// Up, and with a carrier.
    pub running: bool,
}

/// What of traffic control has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hanging {
    /// It came, or is another now: packets may be dropped or shaped from now on.
    Came,
    /// A filter of that priority, of kind `bpf`, came or is another now.
    Program(u16),
    /// It went, or does nothing by itself.
    Harmless,
}

/// Something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A device came or changed.
    Link {
        /// Its interface index.
        device: u32,
        /// What it is now; none if the message does not say (of a port of a bridge, of a radio).
        state: Option<LinkState>,
    },
    /// A device went.
    LinkGone {
        /// The interface index that it had.
        device: u32,
    },
    /// An IPv4 address came, went or changed.
    Address {
        /// The interface index of its device.
        device: u32,
    },
    /// An IPv4 route came, went or changed, in any table.
    Route {
        /// The destinations.
        destination: Ipv4Net,
    },
    /// A next hop that routes refer to by number came, went or changed.
    NextHop,
    /// A policy routing rule for IPv4 came or went.
    RoutingRule,
    /// Forwarding, reverse path filtering or the like was switched for IPv4.
    Forwarding {
        /// The interface index of the device; none if for all.
        device: Option<u32>,
    },
    /// An IPv4 neighbour came, went or changed.
    Neighbour {
        /// The interface index of its device.
        device: u32,
        /// Its address.
        address: Ipv4Addr,
        /// Its link-layer address; none if it went, or is not known.
        mac: Option<Mac>,
    },
    /// A forwarding entry of a bridge or VXLAN device came, went or changed.
    ForwardingEntry {
        /// The interface index of its device.
        device: u32,
    },
    /// A qdisc, class or filter came, changed or went.
    TrafficControl {
        /// The interface index of its device; none if devices share it.
        device: Option<u32>,
        /// What it is, as far as that matters.
        what: Hanging,
    },
    /// A policy of IPsec came, changed or went.
    Ipsec,
    /// A transaction changed the nftables ruleset.
    Ruleset,
    /// A transaction changed something of one of oncache's tables.
    OwnTable,
    /// Events were lost: anything may have changed.
    Overrun,
}

/// A stream of [`Event`]s of one network namespace: that of the thread that opened it.
pub struct Watch {
    route: TokioSocket,
    netfilter: TokioSocket,
    /// None where the kernel has no IPsec.
    ipsec: Option<TokioSocket>,
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
            RTNLGRP_TC,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV4_NETCONF,
            RTNLGRP_NEXTHOP,
        ];
        let route = listen(NETLINK_ROUTE, &groups).map_err(NetlinkError::Open)?;
        let netfilter =
            listen(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]).map_err(NetlinkError::Open)?;
        let ipsec = match listen(NETLINK_XFRM, &[POLICY_GROUP]) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => None,
            Err(error) => return Err(NetlinkError::Open(error)),
        };
        Ok(Self {
            route,
            netfilter,
            ipsec,
            pending: Vec::new(),
        })
    }

    /// Sets how many bytes of unread events the kernel keeps before it reports an overrun. It counts
    /// its own bookkeeping too, and at most `net.core.rmem_max`.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] when the kernel refuses.
    pub fn set_receive_buffer(&self, bytes: i32) -> Result<(), NetlinkError> {
        for socket in [&self.route, &self.netfilter]
            .into_iter()
            .chain(&self.ipsec)
        {
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
            let ipsec = async {
                match &mut self.ipsec {
                    Some(socket) => socket.recv_from_full().await,
                    None => std::future::pending().await,
                }
            };
            let received = tokio::select! {
                received = self.route.recv_from_full() => received,
                received = self.netfilter.recv_from_full() => received,
                received = ipsec => match received {
                    // Whatever of its policies: they change seldom.
                    Ok(_) => return Ok(Event::Ipsec),
                    Err(error) => Err(error),
                },
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

impl Watch {
    /// Waits for the next event and returns it with those that are there already, at most
    /// [`BATCH`], in order of arrival from each of the two sources. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn next_batch(&mut self) -> Result<Vec<Event>, NetlinkError> {
        let mut events = vec![self.next().await?];
        while events.len() < BATCH {
            match self.next().now_or_never() {
                Some(event) => events.push(event?),
                None => break,
            }
        }
        Ok(events)
    }
}

/// How many events are handed over at once: enough for a burst, few enough to be judged in no time.
const BATCH: usize = 1024;

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
    // ifinfomsg, ifaddrmsg and ndmsg all have the interface index as their second word, and all
    // headers begin with the family.
    let device = || field(message, HEADER_LENGTH + 4);
    let family = || message.get(HEADER_LENGTH).copied();
    match kind {
        // A bridge tells of its ports by the same messages.
        RTM_NEWLINK => Some(Event::Link {
            device: device()?,
            state: (family()? == AF_UNSPEC)
                .then(|| link_state(message))
                .flatten(),
        }),
        RTM_DELLINK if family()? == AF_UNSPEC => Some(Event::LinkGone { device: device()? }),
        RTM_DELLINK => Some(Event::Link {
            device: device()?,
            state: None,
        }),
        RTM_NEWADDR | RTM_DELADDR => Some(Event::Address { device: device()? }),
        RTM_NEWNEIGH | RTM_DELNEIGH if family()? == AF_BRIDGE => {
            Some(Event::ForwardingEntry { device: device()? })
        }
        RTM_NEWNEIGH | RTM_DELNEIGH if family()? == AF_INET => {
            let mac = attribute(message, NEIGHBOUR_HEADER_LENGTH, NDA_LLADDR);
            Some(Event::Neighbour {
                device: device()?,
                address: address(attribute(message, NEIGHBOUR_HEADER_LENGTH, NDA_DST)?)?,
                mac: mac
                    .and_then(|mac| mac.try_into().ok())
                    .filter(|_| kind == RTM_NEWNEIGH),
            })
        }
        RTM_NEWROUTE | RTM_DELROUTE => Some(Event::Route {
            destination: destination(message)?,
        }),
        RTM_NEWNEXTHOP | RTM_DELNEXTHOP => Some(Event::NextHop),
        RTM_NEWRULE | RTM_DELRULE => Some(Event::RoutingRule),
        RTM_NEWQDISC | RTM_DELQDISC | RTM_NEWTCLASS | RTM_NEWTFILTER | RTM_DELTFILTER => {
            Some(Event::TrafficControl {
                device: device().filter(|device| *device != SHARED_BLOCK),
                what: hanging(kind, message),
            })
        }
        RTM_NEWNETCONF => {
            // Negative for all devices, and for those to come (NETCONFA_IFINDEX_ALL, _DEFAULT).
            let index = field(
                attribute(message, NETCONF_HEADER_LENGTH, NETCONFA_IFINDEX)?,
                0,
            )?;
            Some(Event::Forwarding {
                device: i32::try_from(index).is_ok().then_some(index),
            })
        }
        NEW_GENERATION => Some(Event::Ruleset),
        _ if kind >> 8 == NEW_GENERATION >> 8 => {
            // The table's name is the first attribute of whatever the message is about.
            let table = attribute(message, FAMILY_HEADER, TABLE)?;
            OWN_TABLES.contains(&table).then_some(Event::OwnTable)
        }
        _ => None,
    }
}

/// What a message of traffic control tells of.
fn hanging(kind: u16, message: &[u8]) -> Hanging {
    let get = |number| attribute(message, TC_HEADER_LENGTH, number);
    let name = get(TCA_KIND).and_then(|name| name.split(|byte| *byte == 0).next());
    let shares = get(TCA_INGRESS_BLOCK).or(get(TCA_EGRESS_BLOCK)).is_some();
    match (kind, name) {
        (RTM_DELQDISC | RTM_DELTFILTER, _) => Hanging::Harmless,
        // Filters hang there, each of which is told of; but for those that others share already.
        (RTM_NEWQDISC, Some(b"clsact" | b"ingress")) if !shares => Hanging::Harmless,
        (RTM_NEWTFILTER, Some(b"bpf")) => match field(message, HEADER_LENGTH + TC_PRIORITY) {
            Some(word) => Hanging::Program(u16::try_from(word >> 16).unwrap_or_default()),
            None => Hanging::Came,
        },
        _ => Hanging::Came,
    }
}

fn link_state(message: &[u8]) -> Option<LinkState> {
    let flags = field(message, HEADER_LENGTH + 8)?;
    let get = |kind| attribute(message, LINK_HEADER_LENGTH, kind);
    Some(LinkState {
        mac: get(IFLA_ADDRESS)?.try_into().ok()?,
        mtu: field(get(IFLA_MTU)?, 0)?,
        up: flags & IFF_UP != 0,
        running: flags & IFF_RUNNING != 0,
    })
}

/// A route's destination; without the attribute it is everything, the default route.
fn destination(message: &[u8]) -> Option<Ipv4Net> {
    let length = *message.get(HEADER_LENGTH + 1)?;
    let address = match attribute(message, ROUTE_HEADER_LENGTH, RTA_DST) {
        Some(bytes) => address(bytes)?,
        None => Ipv4Addr::UNSPECIFIED,
    };
    Ipv4Net::new(address, length).ok()
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.try_into().ok()?;
    Some(octets.into())
}

/// The value of the first attribute of a kind, behind a header of `length` bytes.
fn attribute(message: &[u8], length: usize, kind: u16) -> Option<&[u8]> {
    let attributes = message.get(HEADER_LENGTH + length..)?;
    let mut all = NlasIterator::new(attributes).map_while(Result::ok);
    let found = all.find(|attribute| attribute.kind() == kind)?;
    let length = found.value_length();
    found.into_inner().get(NLA_HEADER_LENGTH..)?.get(..length)
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

    fn with_index(family: u8, index: u32) -> Vec<u8> {
        let mut payload = vec![family, 0, 0, 0];
        payload.extend(index.to_ne_bytes());
        payload
    }

    fn with_attributes(mut payload: Vec<u8>, length: usize, all: &[(u16, &[u8])]) -> Vec<u8> {
        payload.resize(length, 0);
        for (kind, value) in all {
            let whole = u16::try_from(NLA_HEADER_LENGTH + value.len()).expect("short");
            payload.extend(whole.to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(*value);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
        payload
    }

    #[test]
    fn several_messages_of_a_datagram_are_told_apart() {
        let index = |index| with_index(0, index);
        let mut datagram = message(RTM_NEWLINK, &index(7));
        datagram.extend(message(RTM_DELADDR, &[&index(8)[..], &[1]].concat()));
        datagram.extend(message(999, &index(1)));
        datagram.extend(message(RTM_DELLINK, &index(9)));
        datagram.extend(message(RTM_DELLINK, &with_index(AF_BRIDGE, 9)));
        datagram.extend(message(RTM_NEWNEIGH, &with_index(AF_BRIDGE, 6)));
        // IPv6 neighbours are none of ours.
        datagram.extend(message(RTM_NEWNEIGH, &with_index(10, 6)));
        datagram.extend(message(RTM_DELRULE, &with_index(AF_INET, 0)));
        datagram.extend(message(RTM_NEWNEXTHOP, &[0; 8]));
        datagram.extend(message(NEW_GENERATION, &[0; 4]));
        for name in [&b"oncache-policy\0"[..], b"oncache2\0"] {
            let all = [(TABLE, name)];
            let rule = with_attributes(vec![1], FAMILY_HEADER, &all);
            datagram.extend(message(10 << 8 | 8, &rule));
        }
        let state = None;
        assert_eq!(
            events(&datagram),
            [
                Event::Link { device: 7, state },
                Event::Address { device: 8 },
                Event::LinkGone { device: 9 },
                Event::Link { device: 9, state },
                Event::ForwardingEntry { device: 6 },
                Event::RoutingRule,
                Event::NextHop,
                Event::Ruleset,
                Event::OwnTable,
            ]
        );
    }

    #[test]
    fn a_link_tells_what_it_is() {
        let mut payload = with_index(0, 7);
        payload.extend((IFF_UP | IFF_RUNNING).to_ne_bytes());
        let mac = [2, 0, 0, 0, 0, 1];
        let all: [(u16, &[u8]); 3] = [
            (3, b"eth1\0"),
            (IFLA_ADDRESS, &mac),
            (IFLA_MTU, &1500_u32.to_ne_bytes()),
        ];
        let whole = with_attributes(payload.clone(), LINK_HEADER_LENGTH, &all);
        let state = LinkState {
            mac,
            mtu: 1500,
            up: true,
            running: true,
        };
        let link = |state| [Event::Link { device: 7, state }];
        assert_eq!(events(&message(RTM_NEWLINK, &whole)), link(Some(state)));
        let partial = with_attributes(payload, LINK_HEADER_LENGTH, &all[..2]);
        assert_eq!(events(&message(RTM_NEWLINK, &partial)), link(None));
    }

    #[test]
    fn a_route_names_its_destination() {
        let route = |length: u8, all: &[(u16, &[u8])]| {
            let payload = with_attributes(vec![AF_INET, length], ROUTE_HEADER_LENGTH, all);
            events(&message(RTM_DELROUTE, &payload))
        };
        let to = |text: &str| {
            let destination = text.parse().expect("a network");
            [Event::Route { destination }]
        };
        assert_eq!(route(0, &[]), to("0.0.0.0/0"));
        let all: [(u16, &[u8]); 2] = [(15, &[254, 0, 0, 0]), (RTA_DST, &[10, 42, 2, 0])];
        assert_eq!(route(24, &all), to("10.42.2.0/24"));
        assert_eq!(route(33, &all), []);
    }

    #[test]
    fn a_neighbour_has_an_address_and_perhaps_a_mac() {
        let all: [(u16, &[u8]); 2] = [(NDA_DST, &[10, 0, 0, 1]), (NDA_LLADDR, &[2, 0, 0, 0, 0, 9])];
        let of = |kind, all| {
            let payload = with_attributes(with_index(AF_INET, 5), NEIGHBOUR_HEADER_LENGTH, all);
            events(&message(kind, &payload))
        };
        let neighbour = |mac| {
            [Event::Neighbour {
                device: 5,
                address: Ipv4Addr::new(10, 0, 0, 1),
                mac,
            }]
        };
        assert_eq!(of(RTM_NEWNEIGH, &all), neighbour(Some([2, 0, 0, 0, 0, 9])));
        assert_eq!(of(RTM_NEWNEIGH, &all[..1]), neighbour(None));
        assert_eq!(of(RTM_DELNEIGH, &all), neighbour(None));
    }

    #[test]
    fn forwarding_is_switched_for_one_device_or_for_all() {
        let of = |index: i32| {
            let all: [(u16, &[u8]); 1] = [(NETCONFA_IFINDEX, &index.to_ne_bytes())];
            let payload = with_attributes(vec![AF_INET], NETCONF_HEADER_LENGTH, &all);
            events(&message(RTM_NEWNETCONF, &payload))
        };
        assert_eq!(of(7), [Event::Forwarding { device: Some(7) }]);
        assert_eq!(of(-1), [Event::Forwarding { device: None }]);
    }

    #[test]
    fn truncated_and_lying_datagrams_end_quietly() {
        let whole = message(RTM_NEWLINK, &with_index(0, 7));
        for length in 0..whole.len() {
            assert_eq!(events(&whole[..length]), []);
        }
        let mut lying = whole;
        lying[..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert_eq!(events(&lying), []);
        assert_eq!(events(&message(RTM_NEWLINK, &[0; 4])), []);
    }
}
