//! Timeouts of connections that are set by objects and not by sysctl: nftables' `ct timeout` and those of
//! nfct(8), which iptables' `CT --timeout` refers to.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::{
    NetlinkError,
    conntrack::{FAMILY_HEADER, attribute_of, attributes},
    dump::Dumps,
};

// NFNL_SUBSYS_* << 8 | message (include/uapi/linux/netfilter/{nf_tables,nfnetlink_cttimeout}.h).
const NEW_OBJECT: u16 = 10 << 8 | 18;
const GET_OBJECT: u16 = 10 << 8 | 19;
const NEW_TIMEOUT: u16 = 8 << 8;
const GET_TIMEOUT: u16 = 8 << 8 | 1;

// Attributes of include/uapi/linux/netfilter/nf_tables.h.
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_CT_TIMEOUT_L4PROTO: u16 = 2;
const NFTA_CT_TIMEOUT_DATA: u16 = 3;
/// `NFT_OBJECT_CT_TIMEOUT`.
const CT_TIMEOUT: u32 = 7;
// Attributes of include/uapi/linux/netfilter/nfnetlink_cttimeout.h.
const CTA_TIMEOUT_NAME: u16 = 1;
const CTA_TIMEOUT_L4PROTO: u16 = 3;
const CTA_TIMEOUT_DATA: u16 = 4;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// States of TCP that packets of a cached flow can find their connection in, by their attribute
/// (`CTA_TIMEOUT_TCP_*`): as `FLOW_TIMEOUTS` of the sysctls.
const TCP_STATES: [(u16, &str); 6] = [
    (2, "syn_recv"),
    (3, "established"),
    (4, "fin_wait"),
    (5, "close_wait"),
    (10, "retrans"),
    (11, "unack"),
];
/// The same of UDP (`CTA_TIMEOUT_UDP_*`).
const UDP_STATES: [(u16, &str); 2] = [(1, "unreplied"), (2, "replied")];

/// The kernel has no timeouts of nfct(8), and could not load them: it would start modprobe(8) at each question
/// (net/netfilter/nfnetlink.c, `nfnetlink_rcv_msg`).
static WITHOUT_NFCT: AtomicBool = AtomicBool::new(false);

/// A timeout that a flow may have to live by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timeout {
    /// In seconds.
    pub seconds: u64,
    /// Whose it is.
    pub object: String,
}

/// The timeouts of all such objects of the calling thread's network namespace.
///
/// # Errors
/// [`NetlinkError`].
pub fn object_timeouts() -> Result<Vec<Timeout>, NetlinkError> {
    let Some(mut dumps) = Dumps::open(NETLINK_NETFILTER)? else {
        return Ok(Vec::new());
    };
    // struct nfgenmsg: objects of all families.
    let mut of_nft = vec![0; FAMILY_HEADER];
    of_nft.extend(attribute_of(NFTA_OBJ_TYPE, &CT_TIMEOUT.to_be_bytes()));
    let of_nfct = [0; FAMILY_HEADER];
    let objects = dumps.list("list ct timeouts", GET_OBJECT, &of_nft, of_object);
    let mut found = or_none(objects)?;
    if !WITHOUT_NFCT.load(Relaxed) {
        let policies = dumps.list("list nfct timeouts", GET_TIMEOUT, &of_nfct, of_policy);
        if matches!(&policies, Err(error) if error.errno() == Some(Errno::EINVAL)) {
            WITHOUT_NFCT.store(true, Relaxed);
        }
        found.extend(or_none(policies)?);
    }
    Ok(found.into_iter().flatten().collect())
}

/// A kernel without such objects has none.
fn or_none<T>(listed: Result<Vec<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    match listed {
        Err(error)
            if [Errno::EINVAL, Errno::ENOENT, Errno::EOPNOTSUPP]
                .map(Some)
                .contains(&error.errno()) =>
        {
            Ok(Vec::new())
        }
        listed => listed,
    }
}

fn value(all: &[u8], number: u16) -> Option<&[u8]> {
    let mut all = attributes(all);
    all.find(|(kind, _)| *kind == number)
        .map(|(_, value)| value)
}

fn text(value: &[u8]) -> String {
    let ended = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(ended).into_owned()
}

fn of_object(kind: u16, body: &[u8]) -> Option<Vec<Timeout>> {
    let body = body.get(FAMILY_HEADER..)?;
    if kind != NEW_OBJECT || value(body, NFTA_OBJ_TYPE)? != CT_TIMEOUT.to_be_bytes() {
        return None;
    }
    let name = format!(
        "ct timeout {} of table {}",
        text(value(body, NFTA_OBJ_NAME)?),
        text(value(body, NFTA_OBJ_TABLE)?),
    );
    let data = value(body, NFTA_OBJ_DATA)?;
    let protocol = value(data, NFTA_CT_TIMEOUT_L4PROTO)?;
    Some(states(protocol, value(data, NFTA_CT_TIMEOUT_DATA)?, &name))
}

fn of_policy(kind: u16, body: &[u8]) -> Option<Vec<Timeout>> {
    if kind != NEW_TIMEOUT {
        return None;
    }
    let body = body.get(FAMILY_HEADER..)?;
    let name = format!("nfct timeout {}", text(value(body, CTA_TIMEOUT_NAME)?));
    let protocol = value(body, CTA_TIMEOUT_L4PROTO)?;
    Some(states(protocol, value(body, CTA_TIMEOUT_DATA)?, &name))
}

fn states(protocol: &[u8], data: &[u8], name: &str) -> Vec<Timeout> {
    let known: &[(u16, &str)] = match protocol {
        [TCP] => &TCP_STATES,
        [UDP] => &UDP_STATES,
        _ => &[],
    };
    let named = attributes(data).filter_map(|(kind, value)| {
        let (_, state) = known.iter().find(|(number, _)| *number == kind)?;
        let seconds = u32::from_be_bytes(value.try_into().ok()?).into();
        let object = format!("{name} ({state})");
        Some(Timeout { seconds, object })
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(protocol: u8, states: &[(u16, u32)]) -> Vec<u8> {
        let data: Vec<u8> = states
            .iter()
            .flat_map(|(state, seconds)| attribute_of(*state, &seconds.to_be_bytes()))
            .collect();
        let data = [
            attribute_of(NFTA_CT_TIMEOUT_L4PROTO, &[protocol]),
            attribute_of(NFTA_CT_TIMEOUT_DATA, &data),
        ];
        [
            vec![0; FAMILY_HEADER],
            attribute_of(NFTA_OBJ_TABLE, b"fw\0"),
            attribute_of(NFTA_OBJ_NAME, b"short\0"),
            attribute_of(NFTA_OBJ_TYPE, &CT_TIMEOUT.to_be_bytes()),
            attribute_of(NFTA_OBJ_DATA, &data.concat()),
        ]
        .concat()
    }

    #[test]
    fn states_that_carry_packets_count() {
        // Established, and time_wait, in which there are no packets to cache.
        let tcp = of_object(NEW_OBJECT, &object(TCP, &[(3, 4), (7, 1)])).expect("an object");
        let established = Timeout {
            seconds: 4,
            object: "ct timeout short of table fw (established)".to_owned(),
        };
        assert_eq!(tcp, [established]);
        let udp = of_object(NEW_OBJECT, &object(UDP, &[(1, 2), (2, 9)])).expect("an object");
        let seconds: Vec<u64> = udp.iter().map(|timeout| timeout.seconds).collect();
        assert_eq!(seconds, [2, 9]);
        let icmp = of_object(NEW_OBJECT, &object(1, &[(1, 2)])).expect("an object");
        assert_eq!(icmp, []);
        let whole = object(UDP, &[(1, 2)]);
        for length in 0..whole.len() {
            let _ = of_object(NEW_OBJECT, &whole[..length]);
        }
    }
}
