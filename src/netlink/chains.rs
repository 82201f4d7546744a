//! Chains of nftables that hang on devices.

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::{
    NetlinkError,
    conntrack::{FAMILY_HEADER, attributes},
    dump::Dumps,
};

// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_* (include/uapi/linux/netfilter/nf_tables.h).
const NEW_CHAIN: u16 = 10 << 8 | 3;
const GET_CHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;
const NFTA_DEVICE_NAME: u16 = 1;
const NFTA_DEVICE_PREFIX: u16 = 2;

/// A chain of the netdev family, or of another one's ingress hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChain {
    /// The table's name.
    pub table: String,
    /// The chain's.
    pub name: String,
    devices: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Name(String),
    Prefix(String),
    /// Something that this build does not know.
    Any,
}

impl DeviceChain {
    /// Whether it hangs on the device of that name.
    #[must_use]
    pub fn is_on(&self, device: &str) -> bool {
        self.devices.iter().any(|pattern| match pattern {
            Pattern::Name(name) => name == device,
            Pattern::Prefix(prefix) => device.starts_with(prefix.as_str()),
            Pattern::Any => true,
        })
    }
}

/// All of them of the calling thread's network namespace.
///
/// # Errors
/// [`NetlinkError`].
pub fn device_chains() -> Result<Vec<DeviceChain>, NetlinkError> {
    let Some(mut dumps) = Dumps::open(NETLINK_NETFILTER)? else {
        return Ok(Vec::new());
    };
    // struct nfgenmsg: chains of all families.
    let request = [0; FAMILY_HEADER];
    match dumps.list("list chains on devices", GET_CHAIN, &request, chain) {
        // A kernel without nftables.
        Err(error)
            if [Errno::EINVAL, Errno::EOPNOTSUPP]
                .map(Some)
                .contains(&error.errno()) =>
        {
            Ok(Vec::new())
        }
        listed => listed,
    }
}

fn text(value: &[u8]) -> String {
    let ended = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(ended).into_owned()
}

fn chain(kind: u16, body: &[u8]) -> Option<DeviceChain> {
    if kind != NEW_CHAIN {
        return None;
    }
    let body = body.get(FAMILY_HEADER..)?;
    let value = |number| attributes(body).find(|(kind, _)| *kind == number);
    let (_, hook) = value(NFTA_CHAIN_HOOK)?;
    let mut devices = Vec::new();
    for (kind, value) in attributes(hook) {
        match kind {
            NFTA_HOOK_DEV => devices.push(Pattern::Name(text(value))),
            NFTA_HOOK_DEVS => devices.extend(attributes(value).map(|(kind, name)| match kind {
                NFTA_DEVICE_NAME => Pattern::Name(text(name)),
                NFTA_DEVICE_PREFIX => Pattern::Prefix(text(name)),
                _ => Pattern::Any,
            })),
            _ => {}
        }
    }
    let named = |number| value(number).map_or_else(String::new, |(_, name)| text(name));
    (!devices.is_empty()).then(|| DeviceChain {
        table: named(NFTA_CHAIN_TABLE),
        name: named(NFTA_CHAIN_NAME),
        devices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::conntrack::attribute_of;

    fn chain_on(hook: &[u8]) -> Vec<u8> {
        [
            vec![0; FAMILY_HEADER],
            attribute_of(NFTA_CHAIN_TABLE, b"shape\0"),
            attribute_of(NFTA_CHAIN_NAME, b"out\0"),
            attribute_of(NFTA_CHAIN_HOOK, hook),
        ]
        .concat()
    }

    #[test]
    fn a_chain_hangs_on_the_devices_that_it_names() {
        let several = [
            attribute_of(NFTA_DEVICE_NAME, b"eth1\0"),
            attribute_of(NFTA_DEVICE_PREFIX, b"onc-\0"),
        ];
        let several = attribute_of(NFTA_HOOK_DEVS, &several.concat());
        let found = chain(NEW_CHAIN, &chain_on(&several)).expect("a chain");
        assert!(found.is_on("eth1") && found.is_on("onc-web") && !found.is_on("eth10"));
        let one = attribute_of(NFTA_HOOK_DEV, b"eth1\0");
        let found = chain(NEW_CHAIN, &chain_on(&one)).expect("a chain");
        assert!(found.is_on("eth1") && !found.is_on("onc-web"));
        assert_eq!((&*found.table, &*found.name), ("shape", "out"));
        let unknown = attribute_of(NFTA_HOOK_DEVS, &attribute_of(9, b"x"));
        let found = chain(NEW_CHAIN, &chain_on(&unknown)).expect("a chain");
        assert!(found.is_on("whatever"));
        // Such as has a hook and no device: it is all packets'.
        assert_eq!(chain(NEW_CHAIN, &chain_on(&attribute_of(1, &[0; 4]))), None);
        let whole = chain_on(&several);
        for length in 0..whole.len() {
            let _ = chain(NEW_CHAIN, &whole[..length]);
        }
    }
}
