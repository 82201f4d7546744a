//! The number of the nftables ruleset's generation.

use netlink_packet_core::NLM_F_REQUEST;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::conntrack::{FAMILY_HEADER, attributes, message, messages};

// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_* (include/uapi/linux/netfilter/nf_tables.h).
const NEW_GENERATION: u16 = 10 << 8 | 15;
const GET_GENERATION: u16 = 10 << 8 | 16;
const NFTA_GEN_ID: u16 = 1;

/// The generation of the ruleset of the calling thread's network namespace: each transaction, of
/// whoever it is, makes another (net/netfilter/nf_tables_api.c, `nf_tables_commit`). None where it
/// can't be had.
///
/// Two equal answers say that no table, chain, rule or set was changed by anybody in between.
/// Counters count on without one.
#[must_use]
pub fn ruleset_generation() -> Option<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER).ok()?;
    socket.bind_auto().ok()?;
    socket.connect(&SocketAddr::new(0, 0)).ok()?;
    let request = message(GET_GENERATION, NLM_F_REQUEST, 1, &[]);
    socket.send(&request, 0).ok()?;
    // The kernel answers while it takes the request: this does not wait.
    let (answer, _) = socket.recv_from_full().ok()?;
    generation(&answer)
}

fn generation(answer: &[u8]) -> Option<u32> {
    let (kind, body) = messages(answer).into_iter().next()?;
    if kind != NEW_GENERATION {
        return None;
    }
    let mut all = attributes(body.get(FAMILY_HEADER..)?);
    let (_, value) = all.find(|(kind, _)| *kind == NFTA_GEN_ID)?;
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::conntrack::attribute_of;

    #[test]
    fn an_answer_has_its_number_in_network_byte_order() {
        let answer = |kind, attributes: &[u8]| message(kind, 0, 1, attributes);
        let number = attribute_of(NFTA_GEN_ID, &[0, 0, 1, 2]);
        let whole = answer(NEW_GENERATION, &number);
        assert_eq!(generation(&whole), Some(0x0102));
        assert_eq!(generation(&answer(NEW_GENERATION, &[])), None);
        // A refusal.
        assert_eq!(generation(&answer(2, &number)), None);
        for length in 0..whole.len() {
            assert_eq!(generation(&whole[..length]), None);
        }
    }
}
