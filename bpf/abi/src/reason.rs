//! Why a packet went which way: the counters of `oncache stats`.

/// The four programs, in the order of their counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// tc ingress of a container's host-side device: container to NIC.
    Egress = 0,
    /// tc egress of the underlay device: learns from encapsulated packets.
    EgressInit = 1,
    /// tc ingress of the underlay device: NIC to container.
    Ingress = 2,
    /// tc egress of a container's host-side device: learns from delivered packets.
    IngressInit = 3,
}

impl Program {
    /// All programs.
    pub const ALL: [Self; 4] = [
        Self::Egress,
        Self::EgressInit,
        Self::Ingress,
        Self::IngressInit,
    ];

    /// The program's name, in the object file and in every listing.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::EgressInit => "egress_init",
            Self::Ingress => "ingress",
            Self::IngressInit => "ingress_init",
        }
    }
}

/// Counters a program has room for.
pub const REASONS_PER_PROGRAM: u32 = 64;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What a program did with a packet, and why.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name in `oncache stats`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One line for a reader of `oncache stats`.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii_start(),)+ }
            }
        }
    };
}

reasons! {
    /// carried by the fast path
    Hit = "hit",
    /// results of the slow path entered into the caches
    Learned = "learned",
    /// not an IPv4 frame, or VLAN-tagged
    NotIpv4 = "not-ipv4",
    /// not VXLAN to this host's overlay address and port
    NotOverlay = "not-overlay",
    /// shorter than its headers
    Truncated = "truncated",
    /// lengths or header checksum do not add up
    BadHeader = "bad-header",
    /// IP options
    IpOptions = "ip-options",
    /// fragment of a datagram
    Fragment = "fragment",
    /// TTL would expire
    TtlExpires = "ttl-expires",
    /// neither TCP nor UDP
    OtherProtocol = "other-protocol",
    /// SYN, FIN or RST, or no ACK: conntrack must see it; the flow's entry is closed
    TcpState = "tcp-state",
    /// larger than the overlay's MTU
    OverMtu = "over-mtu",
    /// UDP segmentation aggregate, which decapsulation would not keep intact
    UdpAggregate = "udp-aggregate",
    /// destination outside the overlay network, or this host itself
    OutsideNetwork = "outside-network",
    /// not sent to the gateway's MAC address
    NotGateway = "not-gateway",
    /// source address, MAC address or device is not the container's
    SourceMismatch = "source-mismatch",
    /// no local container has the address
    NoContainer = "no-container",
    /// container's MAC headers not learned in this epoch
    ContainerUnlearned = "container-unlearned",
    /// flow not in the filter cache
    NoFlow = "no-flow",
    /// flow passed by the slow path in one direction only so far
    OneWay = "one-way",
    /// entry learned before the last change of rules or topology
    StaleEpoch = "stale-epoch",
    /// lease over: the slow path must see the flow again
    LeaseExpired = "lease-expired",
    /// host of the remote container not learned in this epoch
    NoHost = "no-host",
    /// outer headers to the remote host not learned in this epoch
    HostUnlearned = "host-unlearned",
    /// the remote container is not behind the host that sent the packet
    WrongHost = "wrong-host",
    /// outer UDP checksum present and not verified yet: the kernel must do it
    OuterChecksum = "outer-checksum",
    /// congestion marked on the outer header of a packet without ECN inside
    OuterCongestion = "outer-congestion",
    /// VXLAN flags or VNI are not ours
    OtherVni = "other-vni",
    /// outer source is not a configured peer
    NotPeer = "not-peer",
    /// inner frame is not to this host's VTEP from another one
    NotVtep = "not-vtep",
    /// missed, but the slow path did not find the flow established
    NotEstablished = "not-established",
    /// missed before the last change of rules or topology: not learned from
    StaleMark = "stale-mark",
    /// a kernel helper failed
    HelperFailed = "helper-failed",
    /// larger, with its outer headers, than the underlay device's MTU, or that device is gone
    OverUnderlay = "over-underlay",
    /// not entered: more new flows within a lease than the filter cache has room for
    Crowded = "crowded",
    /// SYN-ACK: conntrack must see it; the flow is entered anew
    SynAck = "syn-ack",
    /// last acknowledgements of a connection that ends: not worth entering
    Closing = "closing",
    /// not carried: something that hangs on a device or an IPsec policy is in the way (`oncache status` names it)
    Withheld = "withheld",
}

impl Reason {
    /// Whether the packet may be learned from: the caches alone were missing for it, or it is the
    /// one that a connection is entered by.
    #[inline(always)]
    pub const fn is_miss(self) -> bool {
        matches!(
            self,
            Self::NoFlow
                | Self::OneWay
                | Self::StaleEpoch
                | Self::LeaseExpired
                | Self::ContainerUnlearned
                | Self::NoHost
                | Self::HostUnlearned
                | Self::WrongHost
                | Self::SynAck
        )
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn reasons_fit_and_are_numbered_in_order() {
        assert!(Reason::ALL.len() <= REASONS_PER_PROGRAM as usize);
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn names_are_unique_and_described() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert_eq!(Reason::Hit.describe(), "carried by the fast path");
    }
}
