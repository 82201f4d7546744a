//! The only place that speaks rtnetlink.
//!
//! [`Netlink`] is a handle to one netlink socket, which belongs to the network namespace that it
//! was opened in for as long as it lives (the kernel stores the namespace in the socket at
//! `net/netlink/af_netlink.c`, `netlink_create`). Nothing here knows what the overlay is: the
//! operations take what they need as plain data.

mod addresses;
mod bridge_ports;
mod chains;
mod conntrack;
mod dump;
mod errors;
mod facts;
mod generation;
mod holders;
mod ipsec;
mod links;
mod namespaces;
mod neighbours;
mod qdiscs;
mod routes;
mod tables;
mod timeouts;
mod traffic_control;
mod watch;

use std::{collections::BTreeMap, fmt::Display};

use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, TokioSocket};

pub use addresses::Address;
pub use bridge_ports::{BridgeEntry, PortSettings};
pub use chains::{DeviceChain, device_chains};
pub use conntrack::forget_connections;
pub use errors::NetlinkError;
pub use facts::{host_facts, underlay_facts};
pub use generation::ruleset_generation;
pub use holders::{RouteHolder, VxlanHolder};
pub use ipsec::{Direction, IpsecPolicy, ipsec_policies};
pub use links::{Link, PairEnd, VxlanParameters};
pub use neighbours::{FdbEntry, Neighbour};
pub use routes::{MAIN_TABLE, ROUTE_PROTOCOL, Route, RouteFilter, RouteReach};
pub use tables::{TableCopy, forget_flows, restore_tables};
pub use timeouts::{Timeout, object_timeouts};
pub use traffic_control::{Filter, Hook, OnDevice, Qdisc, on_devices};
pub use watch::{Event, Hanging, LinkState, Watch};

pub use crate::config::PairKind;

/// A link-layer address in transmission order.
pub type Mac = [u8; 6];

/// How often a dump is begun again because the table changed under it.
const DUMP_ATTEMPTS: usize = 8;

/// What the kernel writes in one go at least: a page less `struct skb_shared_info`
/// (include/linux/netlink.h, `NLMSG_GOODSIZE`), and less an entry that did not fit any more.
const ONE_GO: usize = 2048;

/// What one attempt to read a table has brought.
struct Reading<T> {
    entries: Vec<T>,
    /// The entries are one consistent state of the table.
    whole: bool,
}

/// A connection to the kernel's rtnetlink, bound to one network namespace.
///
/// Clones share the socket. Every operation answers when the kernel has acknowledged it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

/// Displays a link-layer address as colon-separated hexadecimal bytes.
#[must_use]
pub fn format_mac(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace and serves it on the current
    /// tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] when the socket cannot be had.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn new() -> Result<Self, NetlinkError> {
        // The type says Connection<_, TokioSocket>; its default parameter is that very socket.
        let (mut connection, handle, _unsolicited) =
            rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        let socket: &mut TokioSocket = connection.socket_mut();
        let socket = socket.socket_mut();
        // Strict: the kernel filters dumps by the header's fields instead of ignoring them
        // (net/ipv4/fib_frontend.c, ip_valid_fib_dump_req), so that a host with a full routing
        // table is not read whole at every reconciliation.
        socket
            .set_netlink_get_strict_chk(true)
            .map_err(NetlinkError::Open)?;
        // Refusals come with the kernel's own words, and without our request repeated before them.
        socket.set_ext_ack(true).map_err(NetlinkError::Open)?;
        socket.set_cap_ack(true).map_err(NetlinkError::Open)?;
        // Otherwise success and a connection that died are the same empty answer.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Sends one request and waits for the kernel's verdict.
    async fn change(
        &self,
        operation: impl Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| NetlinkError::closed(&operation))?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::Error(verdict) if verdict.code.is_none() => return Ok(()),
                NetlinkPayload::Error(verdict) => {
                    return Err(NetlinkError::refused(&operation, &verdict));
                }
                _ => {}
            }
        }
        Err(NetlinkError::closed(&operation))
    }

    /// Like [`Netlink::change`], naming the device in the error. Its name is looked up only then.
    async fn change_on(
        &self,
        device: u32,
        operation: impl Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        match self.change(operation, message, flags).await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.on(&self.label(device).await)),
        }
    }

    /// Reads one object.
    async fn get(
        &self,
        operation: impl Display,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        let mut request = NetlinkMessage::from(message);
        // Without NLM_F_ACK: the object itself is the answer.
        request.header.flags = NLM_F_REQUEST;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| NetlinkError::closed(&operation))?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(object) => return Ok(object),
                NetlinkPayload::Error(verdict) => {
                    return Err(NetlinkError::refused(&operation, &verdict));
                }
                _ => {}
            }
        }
        Err(NetlinkError::closed(&operation))
    }

    /// Reads a whole table, again from the start if it changed meanwhile. `parse` takes each entry
    /// as it comes, and leaves out what is none: a table of thousands of entries is never held whole
    /// in the kernel's form, which is several times as large.
    ///
    /// The kernel marks a dump that is not one consistent state (include/net/netlink.h,
    /// `nl_dump_check_consistent`); such a dump may lack entries that were there all the time. It
    /// marks it for changes of others' entries, too: what anybody may change at any rate is read by
    /// [`Netlink::gather`], or by a request for ours alone.
    async fn dump<T>(
        &self,
        operation: &str,
        message: RouteNetlinkMessage,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let reading = self.dump_once(operation, message.clone(), &parse).await?;
            if reading.whole {
                return Ok(reading.entries);
            }
        }
        Err(NetlinkError::Interrupted {
            operation: operation.to_owned(),
            attempts: DUMP_ATTEMPTS,
        })
    }

    /// As [`Netlink::dump`] of a table that others may change faster than it can be read: then all
    /// that any attempt has brought, each entry, by its `key`, as it was last seen. The second half
    /// of the answer says whether it is one state of the table; if not, it may name what has gone.
    async fn gather<T, K: Ord>(
        &self,
        operation: &str,
        message: RouteNetlinkMessage,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
        key: impl Fn(&T) -> K,
    ) -> Result<(Vec<T>, bool), NetlinkError> {
        let mut seen = BTreeMap::new();
        for _ in 0..DUMP_ATTEMPTS {
            let reading = self.dump_once(operation, message.clone(), &parse).await?;
            if reading.whole {
                return Ok((reading.entries, true));
            }
            seen.extend(
                reading
                    .entries
                    .into_iter()
                    .map(|entry| (key(&entry), entry)),
            );
        }
        Ok((seen.into_values().collect(), false))
    }

    async fn dump_once<T>(
        &self,
        operation: &str,
        message: RouteNetlinkMessage,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Reading<T>, NetlinkError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| NetlinkError::closed(operation))?;
        let mut entries = Vec::new();
        let mut consistent = true;
        let mut length = 0;
        while let Some(answer) = answers.next().await {
            let marked = answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(entry) => {
                    consistent &= !marked;
                    length += answer.header.length as usize;
                    entries.extend(parse(entry));
                }
                NetlinkPayload::Done(end) if end.code == 0 => {
                    // The end comes by another call than the last entry (net/netlink/af_netlink.c,
                    // `netlink_dump`), and is marked if anybody changed anything between the two:
                    // nothing to those that were all written in one go.
                    let whole = consistent && (!marked || length <= ONE_GO);
                    return Ok(Reading { entries, whole });
                }
                NetlinkPayload::Done(end) => {
                    return Err(NetlinkError::Refused {
                        operation: operation.to_owned(),
                        errno: nix::errno::Errno::from_raw(end.code.saturating_abs()),
                        reason: None,
                    });
                }
                NetlinkPayload::Error(verdict) => {
                    return Err(NetlinkError::refused(operation, &verdict));
                }
                // Messages were lost: the rest of this dump cannot be trusted.
                NetlinkPayload::Overrun(_) => {
                    let whole = false;
                    return Ok(Reading { entries, whole });
                }
                _ => {}
            }
        }
        Err(NetlinkError::closed(operation))
    }
}
