//! Tables of nftables as the kernel tells of them, kept so that they can be put back at once.
//!
//! nft(8) takes a second to parse and send five hundred rules. What the kernel lists of a table has the
//! form in which it takes it in (net/netfilter/nf_tables_api.c, `nf_tables_fill_*_info` and
//! `nf_tables_new*`), so a copy is sent back without understanding more of it than what names, handles
//! and counts are.

mod flows;
mod messages;
mod socket;

use nix::errno::Errno;

pub use flows::forget_flows;
pub(super) use messages::TABLE;
use messages::{
    DATA_VALUE, DELETE_ELEMENT, DELETE_RULE, DELETE_TABLE, ELEMENT, ELEMENT_KEY, ELEMENT_TIMEOUT,
    GET_CHAIN, GET_OBJECT, GET_RULE, GET_SET, GET_TABLE, Message, NEW_CHAIN, NEW_ELEMENT,
    NEW_OBJECT, NEW_RULE, NEW_SET, NEW_TABLE, SET_ANONYMOUS, SET_FLAGS, SET_ID, SET_NAME,
    SET_TIMEOUT, attribute, element_message, family_number, text, word,
};
use socket::Tables;

use super::{
    NetlinkError,
    conntrack::{attribute_of, attributes},
    ruleset_generation,
};

// What is taken back of each kind: not handles, uses, positions and counts.
const OF_TABLE: &[u16] = &[1, 2, 6];
const OF_CHAIN: &[u16] = &[1, 3, 4, 5, 7, 12];
const OF_RULE: &[u16] = &[1, 2, 4, 7];
const OF_SET: &[u16] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15];
const OF_OBJECT: &[u16] = &[1, 2, 3, 4, 8];
// What two of a kind are compared by: not what is counted. A rule's comment names its wanted form.
const COMPARED_OF_RULE: &[u16] = &[1, 2, 7];
const COMPARED_OF_OBJECT: &[u16] = &[1, 2, 3];

/// Elements of one message, whose list is an attribute of at most 64 kB.
const ELEMENTS: usize = 128;
/// How often a transaction is begun again because another came first.
const ATTEMPTS: usize = 8;

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

impl Tables {
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

fn refused(operation: String, errno: Errno) -> NetlinkError {
    NetlinkError::Refused {
        operation,
        errno,
        reason: None,
    }
}
