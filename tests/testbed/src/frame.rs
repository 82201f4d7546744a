//! A view of an Ethernet frame's bytes.

use std::{fmt, net::Ipv4Addr};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ethernet frame. The views below return `None` where the bytes at hand end before the header
/// does, or are of another protocol.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a>(pub &'a [u8]);

impl<'a> Frame<'a> {
    /// The bytes from the Ethernet header on.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The receiver's MAC address.
    #[must_use]
    pub fn destination(&self) -> Option<Mac> {
        array(self.0, 0).map(Mac)
    }

    /// The sender's MAC address.
    #[must_use]
    pub fn source(&self) -> Option<Mac> {
        array(self.0, 6).map(Mac)
    }

    /// The EtherType, such as 0x0800.
    #[must_use]
    pub fn ethertype(&self) -> Option<u16> {
        be16(self.0, 12)
    }

    /// The IPv4 packet inside.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4<'a>> {
        if self.ethertype()? != 0x0800 {
            return None;
        }
        let packet = Ipv4(self.0.get(14..)?);
        let first = *packet.0.first()?;
        (first >> 4 == 4
            && packet.header_length() >= 20
            && packet.0.len() >= packet.header_length())
        .then_some(packet)
    }

    /// The TCP segment of an unfragmented IPv4 packet, or of a first fragment.
    #[must_use]
    pub fn tcp(&self) -> Option<Tcp<'a>> {
        self.ipv4()?.tcp()
    }

    /// The UDP datagram of an unfragmented IPv4 packet, or of a first fragment.
    #[must_use]
    pub fn udp(&self) -> Option<Udp<'a>> {
        self.ipv4()?.udp()
    }

    /// What a VXLAN packet to UDP port 4789 carries.
    #[must_use]
    pub fn vxlan(&self) -> Option<Vxlan<'a>> {
        self.vxlan_at(4789)
    }

    /// What a VXLAN packet to the given UDP port carries.
    #[must_use]
    pub fn vxlan_at(&self, port: u16) -> Option<Vxlan<'a>> {
        let udp = self.udp()?;
        if udp.destination_port() != port {
            return None;
        }
        let header: [u8; 8] = array(udp.payload(), 0)?;
        let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
        Some(Vxlan {
            header,
            vni,
            inner: Frame(&udp.payload()[8..]),
        })
    }
}

/// An IPv4 packet.
#[derive(Debug, Clone, Copy)]
pub struct Ipv4<'a>(&'a [u8]);

impl<'a> Ipv4<'a> {
    /// The header, options included.
    #[must_use]
    pub fn header(&self) -> &'a [u8] {
        &self.0[..self.header_length()]
    }

    /// The header's length in bytes.
    #[must_use]
    pub fn header_length(&self) -> usize {
        usize::from(self.0[0] & 0xf) * 4
    }

    /// The length that the header states, header included; what is at hand may be less.
    #[must_use]
    pub fn total_length(&self) -> usize {
        usize::from(be16(self.0, 2).unwrap_or(0))
    }

    /// The six DSCP bits.
    #[must_use]
    pub fn dscp(&self) -> u8 {
        self.0[1] >> 2
    }

    /// The two ECN bits.
    #[must_use]
    pub fn ecn(&self) -> u8 {
        self.0[1] & 3
    }

    /// The identification.
    #[must_use]
    pub fn id(&self) -> u16 {
        be16(self.0, 4).unwrap_or(0)
    }

    /// Whether "don't fragment" is set.
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.0[6] & 0x40 != 0
    }

    /// Whether "more fragments" is set.
    #[must_use]
    pub fn more_fragments(&self) -> bool {
        self.0[6] & 0x20 != 0
    }

    /// The fragment's offset in bytes.
    #[must_use]
    pub fn fragment_offset(&self) -> usize {
        usize::from(be16(self.0, 6).unwrap_or(0) & 0x1fff) * 8
    }

    /// The time to live.
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.0[8]
    }

    /// The protocol number: 1 ICMP, 6 TCP, 17 UDP.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.0[9]
    }

    /// The sender.
    #[must_use]
    pub fn source(&self) -> Ipv4Addr {
        array::<4>(self.0, 12).unwrap_or_default().into()
    }

    /// The receiver.
    #[must_use]
    pub fn destination(&self) -> Ipv4Addr {
        array::<4>(self.0, 16).unwrap_or_default().into()
    }

    /// Whether the header's checksum is right.
    #[must_use]
    pub fn checksum_ok(&self) -> bool {
        sum16(self.header(), 0) == 0xffff
    }

    /// What follows the header, as far as it is at hand and belongs to the packet.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        let end = self
            .total_length()
            .clamp(self.header_length(), self.0.len().max(1));
        &self.0[self.header_length()..end.min(self.0.len())]
    }

    /// The payload's length that the header states.
    #[must_use]
    pub fn payload_length(&self) -> usize {
        self.total_length().saturating_sub(self.header_length())
    }

    /// Whether the checksum of the TCP or UDP payload is right; `None` where that cannot be told:
    /// other protocols, fragments, truncated captures, UDP without a checksum. A captured packet
    /// whose checksum the device was to compute is wrong here (see `CapturedFrame`).
    #[must_use]
    pub fn transport_checksum_ok(&self) -> Option<bool> {
        let payload = self.payload();
        let whole = payload.len() == self.payload_length()
            && !self.more_fragments()
            && self.fragment_offset() == 0;
        let summed = match self.protocol() {
            6 => true,
            17 => be16(payload, 6)? != 0,
            _ => false,
        };
        if !whole || !summed {
            return None;
        }
        let length = u32::try_from(payload.len()).ok()?;
        let addresses = u32::from(sum16(&self.0[12..20], 0));
        let pseudo_header = addresses + u32::from(self.protocol()) + length;
        Some(sum16(payload, pseudo_header) == 0xffff)
    }

    /// The TCP segment inside.
    #[must_use]
    pub fn tcp(&self) -> Option<Tcp<'a>> {
        let at_hand = self.payload();
        let is = self.protocol() == 6 && self.fragment_offset() == 0 && at_hand.len() >= 20;
        is.then(|| Tcp {
            bytes: at_hand,
            length: self.payload_length(),
        })
    }

    /// The UDP datagram inside.
    #[must_use]
    pub fn udp(&self) -> Option<Udp<'a>> {
        let at_hand = self.payload();
        let is = self.protocol() == 17 && self.fragment_offset() == 0 && at_hand.len() >= 8;
        is.then_some(Udp(at_hand))
    }
}

/// The flags of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// The sender has no more to send.
    pub const FIN: u8 = 0x01;
    /// The connection begins.
    pub const SYN: u8 = 0x02;
    /// The connection is broken off.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;

    /// Whether any of the given flags is set.
    #[must_use]
    pub fn any(self, flags: u8) -> bool {
        self.0 & flags != 0
    }
}

/// A TCP segment.
#[derive(Debug, Clone, Copy)]
pub struct Tcp<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl<'a> Tcp<'a> {
    /// The sender's port.
    #[must_use]
    pub fn source_port(&self) -> u16 {
        be16(self.bytes, 0).unwrap_or(0)
    }

    /// The receiver's port.
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        be16(self.bytes, 2).unwrap_or(0)
    }

    /// The sequence number.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        u32::from_be_bytes(array(self.bytes, 4).unwrap_or_default())
    }

    /// The acknowledgement number.
    #[must_use]
    pub fn acknowledgement(&self) -> u32 {
        u32::from_be_bytes(array(self.bytes, 8).unwrap_or_default())
    }

    /// The flags.
    #[must_use]
    pub fn flags(&self) -> TcpFlags {
        TcpFlags(self.bytes[13])
    }

    /// The header's length in bytes, options included.
    #[must_use]
    pub fn header_length(&self) -> usize {
        usize::from(self.bytes[12] >> 4) * 4
    }

    /// How many bytes of data the segment carries, whether they are at hand or not.
    #[must_use]
    pub fn payload_length(&self) -> usize {
        self.length.saturating_sub(self.header_length())
    }

    /// The data, as far as it is at hand.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.header_length()..).unwrap_or_default()
    }
}

/// A UDP datagram.
#[derive(Debug, Clone, Copy)]
pub struct Udp<'a>(&'a [u8]);

impl<'a> Udp<'a> {
    /// The sender's port.
    #[must_use]
    pub fn source_port(&self) -> u16 {
        be16(self.0, 0).unwrap_or(0)
    }

    /// The receiver's port.
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        be16(self.0, 2).unwrap_or(0)
    }

    /// How many bytes of data the header states.
    #[must_use]
    pub fn payload_length(&self) -> usize {
        usize::from(be16(self.0, 4).unwrap_or(0)).saturating_sub(8)
    }

    /// The checksum as it is in the header; 0 is none.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        be16(self.0, 6).unwrap_or(0)
    }

    /// The data, as far as it is at hand.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.0[8..]
    }
}

/// A VXLAN packet's header and the frame that it carries.
#[derive(Debug, Clone, Copy)]
pub struct Vxlan<'a> {
    /// The eight bytes of the VXLAN header.
    pub header: [u8; 8],
    /// The network identifier.
    pub vni: u32,
    /// The container's frame.
    pub inner: Frame<'a>,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// The ones' complement sum of the bytes and of `start`.
pub(crate) fn sum16(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u64::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]))
    });
    let mut sum = words.sum::<u64>() + u64::from(start);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("carries were folded in")
}
