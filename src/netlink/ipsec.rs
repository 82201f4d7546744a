//! The policies of IPsec (xfrm).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{NetlinkError, conntrack::attributes, dump::Dumps};

/// `NETLINK_XFRM` of include/uapi/linux/netlink.h.
pub(super) const NETLINK_XFRM: isize = 6;
/// `XFRMNLGRP_POLICY` of include/uapi/linux/xfrm.h.
pub(super) const POLICY_GROUP: u32 = 4;

// Message types and attributes of include/uapi/linux/xfrm.h.
const NEW_POLICY: u16 = 0x13;
const GET_POLICY: u16 = 0x15;
const XFRMA_TMPL: u16 = 5;
const XFRMA_IF_ID: u16 = 31;
/// Length of `struct xfrm_userpolicy_info`.
const POLICY_INFO: usize = 168;
/// Length of `struct xfrm_userpolicy_id`.
const POLICY_ID: usize = 64;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const UDP: u8 = 17;

/// For which packets a policy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// For this host.
    In,
    /// That leave it.
    Out,
    /// That it forwards.
    Forward,
}

/// A policy that lets no packet pass as it is: it blocks, or wants packets transformed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpsecPolicy {
    /// For which packets.
    pub direction: Direction,
    /// Their sources.
    pub source: Ipv4Net,
    /// Their destinations.
    pub destination: Ipv4Net,
    /// Whether UDP's can be among them.
    pub udp: bool,
}

/// All of them that can be for IPv4 packets of the calling thread's network namespace. Not those of single
/// sockets, and not those of xfrm devices, which are for packets sent by such a device alone
/// (net/xfrm/xfrm_policy.c, `xfrm_policy_match`).
///
/// # Errors
/// [`NetlinkError`].
pub fn ipsec_policies() -> Result<Vec<IpsecPolicy>, NetlinkError> {
    match Dumps::open(NETLINK_XFRM)? {
        Some(mut dumps) => {
            let request = [0; POLICY_ID];
            dumps.list("list IPsec policies", GET_POLICY, &request, policy)
        }
        None => Ok(Vec::new()),
    }
}

fn policy(kind: u16, body: &[u8]) -> Option<IpsecPolicy> {
    /// `XFRM_POLICY_BLOCK`.
    const BLOCK: u8 = 1;
    if kind != NEW_POLICY {
        return None;
    }
    let family = u16::from_ne_bytes(*body.get(40..)?.first_chunk()?);
    let direction = match *body.get(160)? {
        0 => Direction::In,
        1 => Direction::Out,
        2 => Direction::Forward,
        _ => return None,
    };
    let (mut transforms, mut of_a_device) = (false, false);
    for (kind, value) in attributes(body.get(POLICY_INFO..)?) {
        match kind {
            XFRMA_TMPL => transforms = true,
            XFRMA_IF_ID => of_a_device = value.iter().any(|byte| *byte != 0),
            _ => {}
        }
    }
    let passes = *body.get(161)? != BLOCK && !transforms;
    if passes || of_a_device || family == AF_INET6 {
        return None;
    }
    let (destination, source) = if family == AF_INET {
        (net(body, 0, 42)?, net(body, 16, 43)?)
    } else {
        (Ipv4Net::default(), Ipv4Net::default())
    };
    Some(IpsecPolicy {
        direction,
        source,
        destination,
        udp: [0, UDP].contains(body.get(44)?),
    })
}

fn net(body: &[u8], address: usize, length: usize) -> Option<Ipv4Net> {
    let octets: [u8; 4] = *body.get(address..)?.first_chunk()?;
    // One that makes no sense covers everything.
    let net = Ipv4Net::new(Ipv4Addr::from(octets), *body.get(length)?);
    Some(net.unwrap_or_default().trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::conntrack::attribute_of;

    fn message(family: u16, direction: u8, action: u8, attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![0; POLICY_INFO];
        body[..4].copy_from_slice(&[192, 168, 50, 12]);
        body[16..20].copy_from_slice(&[10, 42, 1, 0]);
        body[40..42].copy_from_slice(&family.to_ne_bytes());
        (body[42], body[43]) = (32, 24);
        (body[160], body[161]) = (direction, action);
        body.extend(attributes);
        body
    }

    #[test]
    fn only_what_keeps_packets_from_passing_as_they_are_counts() {
        let template = attribute_of(XFRMA_TMPL, &[0; 64]);
        let device = [template.clone(), attribute_of(XFRMA_IF_ID, &[1, 0, 0, 0])].concat();
        for (body, counts) in [
            (message(AF_INET, 1, 0, &[]), false),
            (message(AF_INET, 1, 1, &[]), true),
            (message(AF_INET, 0, 0, &template), true),
            (message(AF_INET, 2, 0, &device), false),
            (message(AF_INET, 4, 0, &template), false),
            (message(AF_INET6, 1, 1, &[]), false),
        ] {
            assert_eq!(policy(NEW_POLICY, &body).is_some(), counts, "{body:?}");
            for length in 0..POLICY_INFO {
                assert_eq!(policy(NEW_POLICY, &body[..length]), None);
            }
        }
        let found = policy(NEW_POLICY, &message(AF_INET, 1, 1, &[])).expect("a policy");
        assert_eq!(found.destination.to_string(), "192.168.50.12/32");
        assert_eq!(found.source.to_string(), "10.42.1.0/24");
        assert!(found.udp && found.direction == Direction::Out);
    }
}
