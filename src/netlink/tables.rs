//! Tables of nftables as the kernel tells of them, kept so that they can be put back at once.
//!
//! nft(8) takes a second to parse and send five hundred rules. What the kernel lists of a table has the
//! form in which it takes it in (net/netfilter/nf_tables_api.c, `nf_tables_fill_*_info` and
//! `nf_tables_new*`), so a copy is sent back without understanding more of it than what names, handles
//! and counts are.

use std::{net::Ipv4Addr, os::fd::AsRawFd as _};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use tokio::task::spawn_blocking;

use super::{
    NetlinkError,
    conntrack::{FAMILY_HEADER, attribute_of, attributes, messages},
    ruleset_generation,
};

/// `NFNL_SUBSYS_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 10;
// NFNL_MSG_BATCH_* of the same file, and the attribute that names the generation of before.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const BATCH_GENERATION: u16 = 1;
// NFT_MSG_* of include/uapi/linux/netfilter/nf_tables.h.
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const GET_SET: u16 = 10;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;
const NEW_OBJECT: u16 = 18;
const GET_OBJECT: u16 = 19;

/// The table's name, in the messages about all kinds of things.
pub(super) const TABLE: u16 = 1;
// NFTA_SET_* and NFTA_SET_ELEM_*.
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_ID: u16 = 10;
const ELEMENT_SET: u16 = 2;
const ELEMENT_LIST: u16 = 3;
const ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_TIMEOUT: u16 = 4;
const DATA_VALUE: u16 = 1;
// NFT_SET_*.
const SET_ANONYMOUS: u32 = 0x1;
const SET_TIMEOUT: u32 = 0x10;

// What is taken back of each kind: not handles, uses, positions and counts.
const OF_TABLE: &[u16] = &[1, 2, 6];
const OF_CHAIN: &[u16] = &[1, 3, 4, 5, 7, 12];
const OF_RULE: &[u16] = &[1, 2, 4, 7];
const OF_SET: &[u16] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15];
const OF_OBJECT: &[u16] = &[1, 2, 3, 4, 8];
// What two of a kind are compared by: not what is counted. A rule's comment names its wanted form.
const COMPARED_OF_RULE: &[u16] = &[1, 2, 7];
const COMPARED_OF_OBJECT: &[u16] = &[1, 2, 3];

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_APPEND`: behind the rules that are there.
const APPEND: u16 = 0x800;
/// Elements of one message, whose list is an attribute of at most 64 kB.
const ELEMENTS: usize = 128;
/// How often a transaction is begun again because another came first.
const ATTEMPTS: usize = 8;

/// A message without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    kind: u16,
    attributes: Vec<u8>,
}

/// A table as it was when it was copied.
#[derive(Clone, Debug)]
pub struct TableCopy {
    family: u8,
    name: String,
    /// The table, its chains, its named sets and objects; as what they are compared by, sorted.
    frame: Vec<Message>,
    shape: Vec<Message>,
    /// Elements of the named sets whose elements do not go by themselves, sorted.
    elements: Vec<Message>,
    /// The anonymous sets with their elements, then the rules.
    rules: Vec<Message>,
    /// The rules' comments in order.
    comments: Vec<Message>,
    /// What a table without a past begins with.
    beginning: Vec<Message>,
}

/// A family's number (include/uapi/linux/netfilter.h) by nft's name; for those that are asked for.
fn family_number(name: &str) -> u8 {
    match name {
        "bridge" => 7,
        // NFPROTO_INET
        _ => 1,
    }
}

impl TableCopy {
    /// Copies a table of the calling thread's network namespace; none if there is no such table.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel does not tell.
    pub fn of(family: &str, name: &str) -> Result<Option<Self>, NetlinkError> {
        let operation = || format!("copy table {family} {name}");
        let refused = |errno| refused(operation(), errno);
        Tables::open()?
            .copy(family_number(family), name)
            .map_err(refused)
    }

    /// Lets a table that has to be made anew, whose sets are empty, begin with `value` in `set` for so
    /// many milliseconds.
    pub fn begin_with(&mut self, set: &str, value: &[u8], milliseconds: u64) {
        let key = attribute_of(ELEMENT_KEY, &attribute_of(DATA_VALUE, value));
        let timeout = attribute_of(ELEMENT_TIMEOUT, &milliseconds.to_be_bytes());
        let element = attribute_of(ELEMENT, &[key, timeout].concat());
        self.beginning = vec![element_message(NEW_ELEMENT, &self.name, set, &element)];
    }

    /// What it takes to make the present table this one; nothing if it is.
    fn mending(&self, present: Option<&Self>) -> Vec<Message> {
        let table = || attribute_of(TABLE, &text(&self.name));
        let message = |kind| Message {
            kind,
            attributes: table(),
        };
        match present {
            Some(present) if present.shape == self.shape => {
                let mut all = Vec::new();
                if present.comments != self.comments {
                    all.push(message(DELETE_RULE));
                    all.extend(self.rules.iter().cloned());
                }
                for (from, other, kind) in [
                    (&present.elements, &self.elements, DELETE_ELEMENT),
                    (&self.elements, &present.elements, NEW_ELEMENT),
                ] {
                    let lacking = from.iter().filter(|it| {
                        other
                            .binary_search_by(|o| o.attributes.cmp(&it.attributes))
                            .is_err()
                    });
                    all.extend(lacking.map(|it| Message { kind, ..it.clone() }));
                }
                all
            }
            _ => {
                // Added first so that deleting cannot fail.
                let mut all = vec![message(NEW_TABLE), message(DELETE_TABLE)];
                all.extend(self.frame.iter().cloned());
                all.extend(self.elements.iter().cloned());
                all.extend(self.beginning.iter().cloned());
                all.extend(self.rules.iter().cloned());
                all
            }
        }
    }
}

/// Puts back those tables of the calling thread's network namespace that are not as they were copied,
/// all in one transaction. Returns their names.
///
/// # Errors
/// [`NetlinkError`]: nothing has changed.
pub fn restore_tables(copies: &[TableCopy]) -> Result<Vec<&str>, NetlinkError> {
    let mut socket = Tables::open()?;
    let mut attempt = 0;
    'again: loop {
        attempt += 1;
        let generation = ruleset_generation();
        let mut batch = Vec::new();
        let mut names = Vec::new();
        for copy in copies {
            let present = match socket.copy(copy.family, &copy.name) {
                Ok(present) => present,
                // It went while it was looked at.
                Err(Errno::ENOENT) if attempt < ATTEMPTS => continue 'again,
                Err(errno) => {
                    return Err(refused(format!("look at table {}", copy.name), errno));
                }
            };
            let mending = copy.mending(present.as_ref());
            if !mending.is_empty() {
                names.push(copy.name.as_str());
                batch.extend(mending.into_iter().map(|message| (copy.family, message)));
            }
        }
        if batch.is_empty() {
            return Ok(names);
        }
        match socket.transact(&batch, generation) {
            Ok(()) => return Ok(names),
            // Another transaction came in between: what was looked at is no more.
            Err(Errno::ERESTART) if attempt < ATTEMPTS => {}
            Err(errno) => {
                return Err(refused(
                    format!("restore tables {}", names.join(", ")),
                    errno,
                ));
            }
        }
    }
}

/// Removes from a set of flows, keyed by two addresses and whatever follows, those of `address`. Returns
/// how many there were; none as well where there is no such set.
///
/// # Errors
/// [`NetlinkError`]: some may be left.
pub async fn forget_flows(
    family: &'static str,
    table: &'static str,
    sets: Vec<&'static str>,
    address: Ipv4Addr,
) -> Result<usize, NetlinkError> {
    // A set may be large.
    match spawn_blocking(move || forget(family, table, &sets, address)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(NetlinkError::closed(format_args!(
            "forget flows of {address}"
        ))),
    }
}

fn forget(
    family: &str,
    table: &str,
    sets: &[&str],
    address: Ipv4Addr,
) -> Result<usize, NetlinkError> {
    let number = family_number(family);
    let failed = |errno| {
        refused(
            format!("forget flows of {address} in table {family} {table}"),
            errno,
        )
    };
    let mut socket = Tables::open()?;
    let mut forgotten = 0;
    for set in sets {
        let elements = match socket.elements(number, table, set) {
            Ok(elements) => elements,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        for element in elements.iter().filter(|element| has_end(element, address)) {
            let key = attributes(element).find(|(kind, _)| *kind == ELEMENT_KEY);
            let key = attribute_of(ELEMENT_KEY, key.map_or(&[], |(_, key)| key));
            let delete = element_message(DELETE_ELEMENT, table, set, &attribute_of(ELEMENT, &key));
            match socket.transact(&[(number, delete)], None) {
                // It has gone by itself.
                Ok(()) | Err(Errno::ENOENT) => forgotten += 1,
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    Ok(forgotten)
}

/// Whether a flow's key begins with the address, or has it in second place.
fn has_end(element: &[u8], address: Ipv4Addr) -> bool {
    let key = attributes(element).find(|(kind, _)| *kind == ELEMENT_KEY);
    let value = key.and_then(|(_, key)| attributes(key).find(|(kind, _)| *kind == DATA_VALUE));
    let mut ends = value.map_or(&[][..], |(_, value)| value).chunks(4).take(2);
    ends.any(|end| end == address.octets())
}

/// A socket for requests about tables.
struct Tables {
    socket: Socket,
    sequence: u32,
}

impl Tables {
    fn open() -> Result<Self, NetlinkError> {
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

    fn copy(&mut self, family: u8, name: &str) -> Result<Option<TableCopy>, Errno> {
        let mut list = |get, new, wanted: &[u16]| -> Result<Vec<Message>, Errno> {
            let mut found = Vec::new();
            self.dump(family, get, &attribute_of(TABLE, &text(name)), |body| {
                // Not every kernel lists by table.
                if attribute(body, TABLE) == Some(&text(name)) {
                    found.push(Message {
                        kind: new,
                        attributes: only(body, wanted),
                    });
                }
            })?;
            Ok(found)
        };
        let mut frame = list(GET_TABLE, NEW_TABLE, OF_TABLE)?;
        if frame.is_empty() {
            return Ok(None);
        }
        frame.extend(list(GET_CHAIN, NEW_CHAIN, OF_CHAIN)?);
        let sets = list(GET_SET, NEW_SET, OF_SET)?;
        let objects = list(GET_OBJECT, NEW_OBJECT, OF_OBJECT)?;
        let only_rules = list(GET_RULE, NEW_RULE, OF_RULE)?;

        let mut elements = Vec::new();
        let mut rules = Vec::new();
        for (number, mut set) in (1_u32..).zip(sets) {
            let flags = attribute(&set.attributes, SET_FLAGS)
                .and_then(word)
                .unwrap_or(0);
            let set_name = attribute(&set.attributes, SET_NAME)
                .unwrap_or_default()
                .to_vec();
            let set_name = String::from_utf8_lossy(&set_name)
                .trim_end_matches('\0')
                .to_owned();
            set.attributes
                .extend(attribute_of(SET_ID, &number.to_be_bytes()));
            let mut of_set = match flags & SET_TIMEOUT {
                0 => self.elements(family, name, &set_name)?,
                _ => Vec::new(),
            };
            of_set.sort();
            if flags & SET_ANONYMOUS == 0 {
                frame.push(set);
                let one = |element: &Vec<u8>| {
                    element_message(
                        NEW_ELEMENT,
                        name,
                        &set_name,
                        &attribute_of(ELEMENT, element),
                    )
                };
                elements.extend(of_set.iter().map(one));
            } else {
                rules.push(set);
                for some in of_set.chunks(ELEMENTS) {
                    let list: Vec<u8> = some
                        .iter()
                        .flat_map(|it| attribute_of(ELEMENT, it))
                        .collect();
                    rules.push(element_message(NEW_ELEMENT, name, &set_name, &list));
                }
            }
        }
        let cut = |message: &Message, wanted: &[u16]| Message {
            kind: message.kind,
            attributes: only(&message.attributes, wanted),
        };
        let shape = frame.iter().map(|it| cut(it, compared_of(it.kind)));
        let shape = shape.chain(objects.iter().map(|it| cut(it, COMPARED_OF_OBJECT)));
        let mut shape: Vec<Message> = shape.collect();
        shape.sort_by(|one, other| one.attributes.cmp(&other.attributes));
        elements.sort_by(|one, other| one.attributes.cmp(&other.attributes));
        frame.extend(objects);
        let comments = only_rules
            .iter()
            .map(|it| cut(it, COMPARED_OF_RULE))
            .collect();
        rules.extend(only_rules);
        Ok(Some(TableCopy {
            family,
            name: name.to_owned(),
            frame,
            shape,
            elements,
            rules,
            comments,
            beginning: Vec::new(),
        }))
    }

    /// The elements of a set, each without its header.
    fn elements(&mut self, family: u8, table: &str, set: &str) -> Result<Vec<Vec<u8>>, Errno> {
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

    fn dump(
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
    fn transact(&mut self, batch: &[(u8, Message)], generation: Option<u32>) -> Result<(), Errno> {
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
                flags |= APPEND;
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

fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    (family, resource): (u8, u16),
    attributes: &[u8],
) -> Vec<u8> {
    let length = u32::try_from(16 + FAMILY_HEADER + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // Port: the socket's own.
    bytes.extend([0; 4]);
    // struct nfgenmsg: family, version, resource in network byte order.
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn element_message(kind: u16, table: &str, set: &str, list: &[u8]) -> Message {
    let attributes = [
        attribute_of(TABLE, &text(table)),
        attribute_of(ELEMENT_SET, &text(set)),
        attribute_of(ELEMENT_LIST, list),
    ];
    Message {
        kind,
        attributes: attributes.concat(),
    }
}

/// The attributes of these kinds, in the order in which they come.
fn only(body: &[u8], wanted: &[u16]) -> Vec<u8> {
    let wanted = attributes(body).filter(|(kind, _)| wanted.contains(kind));
    wanted
        .flat_map(|(kind, value)| attribute_of(kind, value))
        .collect()
}

/// What things of a table other than rules are compared by.
fn compared_of(kind: u16) -> &'static [u16] {
    match kind {
        NEW_TABLE => OF_TABLE,
        NEW_CHAIN => OF_CHAIN,
        _ => OF_SET,
    }
}

pub(super) fn attribute(body: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(body)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

fn word(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A name as the kernel has it, with its end.
fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn outcome(body: &[u8]) -> Result<(), Errno> {
    let code = body
        .first_chunk()
        .map_or(0, |code| i32::from_ne_bytes(*code));
    match code {
        0 => Ok(()),
        code => Err(Errno::from_raw(code.saturating_abs())),
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

fn refused(operation: String, errno: Errno) -> NetlinkError {
    NetlinkError::Refused {
        operation,
        errno,
        reason: None,
    }
}
