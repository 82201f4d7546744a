//! nf_tables' messages (include/uapi/linux/netfilter/nf_tables.h): kinds, attributes, and how they are written.

use super::super::conntrack::{FAMILY_HEADER, attribute_of, attributes};

/// `NFNL_SUBSYS_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
pub(super) const SUBSYSTEM: u16 = 10;
// NFNL_MSG_BATCH_* of the same file, and the attribute that names the generation of before.
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;
pub(super) const BATCH_GENERATION: u16 = 1;
// NFT_MSG_* of include/uapi/linux/netfilter/nf_tables.h.
pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
pub(super) const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
pub(super) const DELETE_RULE: u16 = 8;
pub(super) const NEW_SET: u16 = 9;
pub(super) const GET_SET: u16 = 10;
pub(super) const NEW_ELEMENT: u16 = 12;
pub(super) const GET_ELEMENT: u16 = 13;
pub(super) const DELETE_ELEMENT: u16 = 14;
pub(super) const NEW_OBJECT: u16 = 18;
pub(super) const GET_OBJECT: u16 = 19;

/// The table's name, in the messages about all kinds of things.
pub(in crate::netlink) const TABLE: u16 = 1;
// NFTA_SET_* and NFTA_SET_ELEM_*.
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_ID: u16 = 10;
pub(super) const ELEMENT_SET: u16 = 2;
pub(super) const ELEMENT_LIST: u16 = 3;
pub(super) const ELEMENT: u16 = 1;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_TIMEOUT: u16 = 4;
pub(super) const DATA_VALUE: u16 = 1;
// NFT_SET_*.
pub(super) const SET_ANONYMOUS: u32 = 0x1;
pub(super) const SET_TIMEOUT: u32 = 0x10;

/// A message without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u16,
    pub(super) attributes: Vec<u8>,
}

/// A family's number (include/uapi/linux/netfilter.h) by nft's name; for those that are asked for.
pub(super) fn family_number(name: &str) -> u8 {
    match name {
        "bridge" => 7,
        // NFPROTO_INET
        _ => 1,
    }
}

pub(super) fn message(
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

pub(super) fn element_message(kind: u16, table: &str, set: &str, list: &[u8]) -> Message {
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

pub(super) fn attribute(body: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(body)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

pub(super) fn word(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A name as the kernel has it, with its end.
pub(super) fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}
