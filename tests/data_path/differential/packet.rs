//! What a test packet is, field by field: everything that is not said is as an ordinary packet has
//! it, so that a shrunk packet shows what matters.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Flows of each protocol that stay established.
pub const STEADY_FLOWS: u8 = 12;
/// All flows of each protocol; TCP flags that change a connection's state go to the rest.
pub const FLOWS: u8 = 20;

macro_rules! classes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What a packet is meant to try.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Class {
            $($(#[doc = $doc])+ $variant,)+
            /// a connection's beginning, so that both labs know the flow
            #[default]
            Opening,
        }

        impl Class {
            /// All classes that are generated.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in listings and in `ONCACHE_DIFFERENTIAL_CLASSES`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ Self::Opening => "opening" }
            }
        }
    };
}

classes! {
    /// sizes from nothing to above the MTU
    Size = "size",
    /// TCP with every combination of flags
    TcpFlags = "tcp-flags",
    /// TCP options and header lengths, true and false
    TcpOptions = "tcp-options",
    /// UDP with a right, a wrong and no checksum
    UdpChecksum = "udp-checksum",
    /// a checksum that the device is to compute
    PendingChecksum = "pending-checksum",
    /// TCP segmentation aggregates
    TcpAggregate = "tcp-aggregate",
    /// UDP segmentation aggregates
    UdpAggregate = "udp-aggregate",
    /// every DSCP and ECN
    Tos = "tos",
    /// every TTL
    Ttl = "ttl",
    /// "don't fragment" and the reserved flag
    Flags = "ip-flags",
    /// fragmented datagrams, complete or not, in order or not
    Fragments = "fragments",
    /// IP options
    Options = "ip-options",
    /// ICMP echo requests and answers
    Echo = "icmp-echo",
    /// ICMP errors that quote a live flow
    Error = "icmp-error",
    /// other protocols than TCP, UDP and ICMP
    Protocol = "other-protocol",
    /// VLAN tags
    Vlan = "vlan",
    /// IPv6, ARP and other EtherTypes
    Ethertype = "ethertype",
    /// multicast, broadcast and unknown destinations
    Destination = "destination",
    /// source addresses that are not the sender's
    Source = "source",
    /// wrong IP checksums
    IpChecksum = "ip-checksum",
    /// wrong lengths, versions, cut frames and trailing bytes
    Length = "length",
    /// frames to and from other stations
    Station = "mac",
    /// odd outer headers on the wire
    Outer = "outer",
    /// anything together
    Mixture = "mixture",
}

/// Who sends.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The client, to the server.
    #[default]
    Forth,
    /// The server, to the client.
    Back,
}

/// One packet, or the few that a fragmented datagram or a connection's beginning consist of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Packet {
    pub class: Class,
    pub way: Way,
    /// Which flow, below [`FLOWS`].
    pub flow: u8,
    #[serde(skip_serializing_if = "is_default")]
    pub link: Link,
    #[serde(skip_serializing_if = "is_default")]
    pub ip: Ip,
    pub transport: Transport,
    /// Bytes of data.
    pub payload: u16,
    /// Bytes behind the packet's end.
    #[serde(skip_serializing_if = "is_default")]
    pub trailing: u8,
    /// Where the frame is cut off.
    #[serde(skip_serializing_if = "is_default")]
    pub cut: Option<u16>,
    #[serde(skip_serializing_if = "is_default")]
    pub offload: Offload,
    /// Set: the packet is put on the wire, in these headers, behind the sender's host's back.
    #[serde(skip_serializing_if = "is_default")]
    pub outer: Option<Outer>,
}

/// The Ethernet header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    pub destination: Option<[u8; 6]>,
    pub source: Option<[u8; 6]>,
    pub vlans: Vec<u16>,
    /// Set: no IPv4 packet follows but the payload's bytes.
    pub ethertype: Option<u16>,
}

/// The IPv4 header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ip {
    pub tos: u8,
    pub ttl: u8,
    pub dont_fragment: bool,
    pub reserved_flag: bool,
    /// A multiple of four, at most 40.
    pub options: Vec<u8>,
    pub version_and_length: Option<u8>,
    pub length_error: i16,
    /// Added to the right checksum.
    pub checksum_error: u16,
    pub source: Option<Ipv4Addr>,
    pub destination: Option<Ipv4Addr>,
    pub fragments: Option<Fragments>,
}

impl Default for Ip {
    fn default() -> Self {
        Self {
            tos: 0,
            ttl: 64,
            dont_fragment: true,
            reserved_flag: false,
            options: Vec::new(),
            version_and_length: None,
            length_error: 0,
            checksum_error: 0,
            source: None,
            destination: None,
            fragments: None,
        }
    }
}

/// How a datagram is cut up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fragments {
    /// Eight-byte units a fragment.
    pub units: u8,
    /// The last one is sent first.
    pub backwards: bool,
    /// Which one is not sent.
    pub lost: Option<u8>,
}

/// What follows the IPv4 header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    Tcp(Tcp),
    Udp(Udp),
    /// Type and code; errors quote a packet of the flow that goes the other way.
    Icmp(u8, u8),
    /// The payload's bytes alone.
    Other(u8),
    /// The handshake of a TCP flow, or question and answer of a UDP flow, and some data both ways.
    OpenTcp,
    OpenUdp,
}

impl Default for Transport {
    fn default() -> Self {
        Self::Udp(Udp::default())
    }
}

/// A TCP header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tcp {
    pub flags: u8,
    pub reserved: u8,
    /// A multiple of four, at most 40.
    pub options: Vec<u8>,
    pub data_offset: Option<u8>,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub window: u16,
    pub urgent: u16,
    pub checksum: Checksum,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            flags: Self::ACK,
            reserved: 0,
            options: Vec::new(),
            data_offset: None,
            sequence: 1,
            acknowledgement: 1,
            window: 512,
            urgent: 0,
            checksum: Checksum::Right,
        }
    }
}

impl Tcp {
    pub const SYN: u8 = 2;
    pub const ACK: u8 = 16;
    /// FIN, SYN and RST.
    pub const STATE: u8 = 7;
}

/// A UDP header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Udp {
    pub checksum: Checksum,
    pub length_error: i16,
}

/// A TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checksum {
    #[default]
    Right,
    Wrong,
    Zero,
}

/// What is left for the device to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offload {
    #[default]
    Nothing,
    /// Compute the TCP or UDP checksum.
    Checksum,
    /// Cut the data into segments of this size, and compute their checksums.
    Segments(u16),
}

/// Outer headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outer {
    pub destination_mac: Option<[u8; 6]>,
    /// The IPv4 source's last byte.
    pub source: Option<u8>,
    pub destination: Option<u8>,
    pub tos: u8,
    pub ttl: u8,
    /// The flags and fragment offset word.
    pub fragment: u16,
    pub options: Vec<u8>,
    pub length_error: i16,
    pub checksum_error: u16,
    pub source_port: u16,
    pub port: u16,
    pub udp_length_error: i16,
    pub udp_checksum: Checksum,
    pub flags: [u8; 4],
    pub vni: u32,
    pub reserved: u8,
    pub inner_destination: Option<[u8; 6]>,
}

impl Default for Outer {
    fn default() -> Self {
        Self {
            destination_mac: None,
            source: None,
            destination: None,
            tos: 0,
            ttl: 64,
            fragment: 0,
            options: Vec::new(),
            length_error: 0,
            checksum_error: 0,
            source_port: 40_000,
            port: 4789,
            udp_length_error: 0,
            udp_checksum: Checksum::Zero,
            flags: [8, 0, 0, 0],
            vni: 42,
            reserved: 0,
            inner_destination: None,
        }
    }
}

impl Packet {
    /// The beginning of a flow.
    pub fn opening(transport: Transport, flow: u8) -> Self {
        Self {
            flow,
            transport,
            ..Self::default()
        }
    }

    /// Whether conntrack or the caches may think otherwise of the packet's TCP flow after it.
    pub const fn unsettles(&self) -> bool {
        matches!(&self.transport, Transport::Tcp(tcp) if tcp.flags & Tcp::STATE != 0)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
