//! The socket that requests about tables go by.

use std::os::fd::AsRawFd as _;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

use super::{
    super::{
        NetlinkError,
        conntrack::{FAMILY_HEADER, attribute_of, attributes, errno, messages, outcome},
    },
    messages::{
        BATCH_BEGIN, BATCH_END, BATCH_GENERATION, ELEMENT_LIST, ELEMENT_SET, GET_ELEMENT, Message,
        NEW_CHAIN, NEW_ELEMENT, NEW_OBJECT, NEW_RULE, NEW_SET, NEW_TABLE, SUBSYSTEM, TABLE,
        attribute, message, text,
    },
};

/// A socket for requests about tables.
pub(super) struct Tables {
    socket: Socket,
    sequence: u32,
}

impl Tables {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(NetlinkError::Open)?;
        socket.set_cap_ack(true).map_err(NetlinkError::Open)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The elements of a set, each without its header.
    pub(super) fn elements(
        &mut self,
        family: u8,
        table: &str,
        set: &str,
    ) -> Result<Vec<Vec<u8>>, Errno> {
        let request = [
            attribute_of(TABLE, &text(table)),
            attribute_of(ELEMENT_SET, &text(set)),
        ];
        let mut found = Vec::new();
        self.dump(family, GET_ELEMENT, &request.concat(), |body| {
            let list = attribute(body, ELEMENT_LIST).unwrap_or_default();
            found.extend(attributes(list).map(|(_, element)| element.to_vec()));
        })?;
        Ok(found)
    }

    pub(super) fn dump(
        &mut self,
        family: u8,
        kind: u16,
        attributes: &[u8],
        mut answer: impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        self.sequence += 1;
        let kind = SUBSYSTEM << 8 | kind;
        let request = message(
            kind,
            NLM_F_REQUEST | NLM_F_DUMP,
            self.sequence,
            (family, 0),
            attributes,
        );
        self.send(&request)?;
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

    /// Sends a batch: all of it is done or none, and none if the ruleset is of another generation.
    pub(super) fn transact(
        &mut self,
        batch: &[(u8, Message)],
        generation: Option<u32>,
    ) -> Result<(), Errno> {
        let first = self.sequence + 1;
        let of_subsystem = (0, SUBSYSTEM);
        let generation = generation.map(|it| attribute_of(BATCH_GENERATION, &it.to_be_bytes()));
        let mut bytes = message(
            BATCH_BEGIN,
            NLM_F_REQUEST,
            first,
            of_subsystem,
            &generation.unwrap_or_default(),
        );
        self.sequence = first;
        for (position, (family, sent)) in batch.iter().enumerate() {
            self.sequence += 1;
            let mut flags = NLM_F_REQUEST;
            if [
                NEW_TABLE,
                NEW_CHAIN,
                NEW_RULE,
                NEW_SET,
                NEW_ELEMENT,
                NEW_OBJECT,
            ]
            .contains(&sent.kind)
            {
                flags |= NLM_F_CREATE;
            }
            if sent.kind == NEW_RULE {
                // Behind the rules that are there.
                flags |= NLM_F_APPEND;
            }
            if position + 1 == batch.len() {
                flags |= NLM_F_ACK;
            }
            let kind = SUBSYSTEM << 8 | sent.kind;
            bytes.extend(message(
                kind,
                flags,
                self.sequence,
                (*family, 0),
                &sent.attributes,
            ));
        }
        self.sequence += 1;
        bytes.extend(message(
            BATCH_END,
            NLM_F_REQUEST,
            self.sequence,
            of_subsystem,
            &[],
        ));
        self.make_room(bytes.len())?;
        self.send(&bytes)?;
        // Faults of single messages come first, then the answer to the last.
        loop {
            let (datagram, _) = self
                .socket
                .recv_from_full()
                .map_err(|error| errno(&error))?;
            if let Some((_, body)) = messages(&datagram)
                .into_iter()
                .find(|(kind, _)| *kind == NLMSG_ERROR)
            {
                return outcome(body);
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        self.socket
            .send(bytes, 0)
            .map(|_| ())
            .map_err(|error| errno(&error))
    }

    /// Lets the socket take in so many bytes at once.
    fn make_room(&self, bytes: usize) -> Result<(), Errno> {
        const LENGTH: libc::socklen_t = 4;
        let bytes: i32 = i32::try_from(bytes).map_err(|_| Errno::EMSGSIZE)?;
        // SAFETY: the option's value is an int that lives through the call, and its size is given.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUFFORCE,
                (&raw const bytes).cast(),
                LENGTH,
            )
        };
        Errno::result(done).map(|_| ())
    }
}
