//! Why the epoch was raised, and how often.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What made everything learned before it dead.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Cause {
            /// All causes, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name in `oncache stats`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One line for a reader of the log or of `oncache stats`.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii_start(),)+ }
            }
        }
    };
}

causes! {
    /// the daemon has started: what changed while none ran was seen by nobody
    Start = "start",
    /// the nftables ruleset changed
    Ruleset = "ruleset",
    /// a route changed
    Route = "route",
    /// a policy routing rule changed
    RoutingRule = "routing-rule",
    /// an address changed
    Address = "address",
    /// a device changed
    Link = "link",
    /// forwarding or reverse path filtering was switched
    Forwarding = "forwarding",
    /// a neighbour has another MAC address
    NeighbourMoved = "neighbour",
    /// a next hop on the underlay has another MAC address
    NextHopMoved = "next-hop",
    /// a neighbour or forwarding entry of the VXLAN device changed
    VxlanTable = "vxlan-table",
    /// a qdisc, filter or program on a device that packets pass came, changed or went
    TrafficControl = "traffic-control",
    /// an IPsec policy came, changed or went
    Ipsec = "ipsec",
    /// the lease is shorter
    Lease = "lease",
    /// notifications were lost
    Overrun = "overrun",
    /// the overlay was mended
    Mended = "mended",
    /// the overlay was mended in part
    MendedInPart = "mended-in-part",
    /// a container is gone
    ContainerGone = "container-gone",
    /// a container has come from another host, or has left for one
    ContainerMoved = "container-moved",
    /// the network policy was changed
    Policy = "policy",
    /// the underlay device is another or has another MTU or address
    Underlay = "underlay",
    /// the configuration was reloaded
    Reload = "reload",
    /// what was learned belongs to another configuration
    Configuration = "configuration",
    /// the caches were flushed
    Flush = "flush",
}

impl Cause {
    /// Whether nothing may be learned until the node has looked what has come: what a packet has passed once
    /// may stop the next.
    #[must_use]
    pub const fn holds(self) -> bool {
        matches!(self, Self::TrafficControl | Self::Ipsec | Self::Overrun)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// How often each cause has raised the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CauseCounts([u64; Cause::ALL.len()]);

/// One of them, as `oncache stats` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseCount {
    /// The cause's name.
    pub cause: String,
    /// How often it raised the epoch.
    pub count: u64,
    /// The cause in words.
    pub meaning: String,
}

impl CauseCounts {
    /// Counts one.
    pub fn add(&mut self, cause: Cause) {
        if let Some(count) = self.0.get_mut(cause as usize) {
            *count += 1;
        }
    }

    /// Those that are not zero.
    #[must_use]
    pub fn list(&self) -> Vec<CauseCount> {
        let counted = Cause::ALL
            .iter()
            .zip(self.0)
            .filter(|(_, count)| *count != 0);
        counted
            .map(|(cause, count)| CauseCount {
                cause: cause.name().to_owned(),
                count,
                meaning: cause.describe().to_owned(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_numbered_in_order() {
        let names: std::collections::BTreeSet<_> =
            Cause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
        for (index, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, index);
        }
    }

    #[test]
    fn what_is_counted_is_listed() {
        let mut counts = CauseCounts::default();
        assert_eq!(counts.list(), []);
        counts.add(Cause::Ruleset);
        counts.add(Cause::Flush);
        counts.add(Cause::Ruleset);
        let listed: Vec<_> = counts
            .list()
            .into_iter()
            .map(|it| (it.cause, it.count, it.meaning))
            .collect();
        let row = |cause: Cause, count| (cause.name().into(), count, cause.to_string());
        assert_eq!(listed, [row(Cause::Ruleset, 2), row(Cause::Flush, 1)]);
    }
}
