//! Why a packet was refused as forged, and how often.
//!
//! The rules that refuse stand in two tables, `bridge oncache` ([`source_guard`](super::source_guard)) and
//! `inet oncache` ([`tunnel_guard`](super::tunnel_guard)). The comment of each names its reason, behind the
//! hash of its form: what a listing counts is told by the listing alone.

use std::collections::BTreeMap;

use super::names::{SOURCE_TABLE, TABLE};
use crate::nft::{ListedTable, NftError, run};

macro_rules! reasons {
    ($($reason:ident, $name:literal, $meaning:literal;)*) => {
        /// Why a packet was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Refused {
            $(#[doc = $meaning] $reason,)*
        }

        impl Refused {
            /// All reasons, in the order in which they are shown.
            pub const ALL: &[Self] = &[$(Self::$reason),*];

            /// The name in rules' comments, in `oncache stats` and in its JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$reason => $name),* }
            }

            /// One line for people.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$reason => $meaning),* }
            }
        }
    };
}

reasons! {
    Source, "source", "IPv4 from an address or MAC address that is not the container's";
    Arp, "arp", "ARP that claims an address or MAC address that is not the container's, or is no request or answer";
    Tagged, "tagged", "a frame with a VLAN tag";
    Disguised, "disguised", "a frame that says it is IPv4 or ARP and was sent as something else";
    Ipv6, "ipv6", "IPv6, which is not carried; every kernel sends some by itself";
    Protocol, "protocol", "a frame that is neither IPv4 nor ARP";
    LinkLocal, "link-local", "to an address that bridges keep for themselves (01:80:c2:00:00:0x)";
    PastBridge, "past-bridge", "handed to the host by a container's device without passing the bridge";
    TunnelPort, "tunnel-port", "from a container to the tunnel's UDP port of this host or outside the overlay";
    Encapsulation, "encapsulation", "from a container to this host or outside the overlay, of a protocol that may carry other packets";
    Fragment, "fragment", "from a container to outside the overlay, a fragment that was not put together";
    NotPeer, "not-peer", "into the tunnel from an address that is no peer's";
    Behind, "behind-no-peer", "out of the tunnel from an address that is behind no peer";
}

impl Refused {
    /// Whether the sender claimed to be who it is not: what `spoofed` is the sum of. Kernels send IPv6 by
    /// themselves, with nothing false in it.
    #[must_use]
    pub fn is_forged(self) -> bool {
        self != Self::Ipv6
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.name() == name)
    }
}

/// What was refused so far, by reason; all of it, since the tables were made.
///
/// # Errors
/// [`NftError`] when what nft lists is not what it should be. A table that is not there has refused nothing.
pub async fn refused() -> Result<BTreeMap<Refused, u64>, NftError> {
    let mut counts = BTreeMap::new();
    for table in [SOURCE_TABLE, TABLE] {
        if let Some(listed) = run::list(table).await? {
            count(&listed, &mut counts);
        }
    }
    Ok(counts)
}

fn count(listed: &ListedTable, counts: &mut BTreeMap<Refused, u64>) {
    for rule in &listed.rules {
        if let Some(reason) = rule.reason().and_then(Refused::of_name) {
            *counts.entry(reason).or_default() += rule.packets;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_listing_tells_the_reasons_and_the_counts() {
        for reason in Refused::ALL {
            assert_eq!(Refused::of_name(reason.name()), Some(*reason));
        }
        let rule = |comment: &str, packets: u64| json!({ "rule": { "comment": comment, "expr": [{ "counter": { "packets": packets } }] } });
        let listing = json!({ "nftables": [
            rule("oncache:1 arp", 2),
            rule("oncache:2 arp", 3),
            rule("oncache:3", 5),
            rule("somebody's arp", 7),
        ] });
        let mut counts = BTreeMap::new();
        count(&ListedTable::of(&listing), &mut counts);
        assert_eq!(counts, BTreeMap::from([(Refused::Arp, 5)]));
    }
}
