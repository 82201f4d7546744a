//! Frames and packets, byte by byte. Every one carries a number, by which its arrival is told.

use std::net::Ipv4Addr;

/// What stands before the number.
pub const MAGIC: [u8; 8] = *b"forgery#";

pub const TUNNEL_PORT: u16 = 4789;

/// The mark that tells a packet among others: twelve bytes, and twelve more of no meaning.
pub fn payload(number: u32) -> Vec<u8> {
    [&MAGIC[..], &number.to_be_bytes(), &[0x55; 12]].concat()
}

/// The number of what was captured, if it is one of ours.
pub fn number_in(bytes: &[u8]) -> Option<u32> {
    let at = bytes.windows(MAGIC.len()).position(|it| it == MAGIC)?;
    let number = bytes.get(at + MAGIC.len()..at + MAGIC.len() + 4)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], rest: &[u8]) -> Vec<u8> {
    [&to[..], &from, rest].concat()
}

/// An EtherType, or a length, and what follows.
pub fn typed(ethertype: u16, rest: &[u8]) -> Vec<u8> {
    [&ethertype.to_be_bytes()[..], rest].concat()
}

/// The ones' complement sum that IP and its transports carry (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// What of an IPv4 header differs from packet to packet here.
#[derive(Clone, Debug)]
pub struct Ip {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub protocol: u8,
    pub id: u16,
    /// Flags and offset.
    pub fragment: u16,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
}

impl Ip {
    pub fn packet(&self, body: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let words = u8::try_from(header / 4).expect("a short header");
        let length = u16::try_from(header + body.len()).expect("a short packet");
        let mut bytes = vec![0x40 | words, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(self.from.octets());
        bytes.extend(self.to.octets());
        bytes.extend(&self.options);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(body);
        bytes
    }
}

pub fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let ip = Ip {
        from,
        to,
        protocol,
        id: 0,
        fragment: 0,
        options: Vec::new(),
    };
    ip.packet(body)
}

/// Without a checksum, as IPv4 allows (RFC 768).
pub fn udp(from: u16, to: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + body.len()).expect("a short datagram");
    let mut bytes = [from, to, length, 0].map(u16::to_be_bytes).concat();
    bytes.extend(body);
    bytes
}

/// A SYN with data.
pub fn tcp(from: u16, to: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(body);
    bytes
}

/// An ICMP message that nobody answers: an echo reply.
pub fn icmp(body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[0, 0, 0, 0, 0, 1, 0, 1][..], body].concat();
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// ARP of IPv4 over Ethernet; `operation` is 1 for a request, 2 for an answer.
pub fn arp(operation: u16, mac: [u8; 6], ip: Ipv4Addr, about: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    bytes.extend(mac);
    bytes.extend(ip.octets());
    bytes.extend([0; 6]);
    bytes.extend(about.octets());
    bytes
}

/// IPv6 from and to link-local addresses.
pub fn ipv6(next: u8, to: [u8; 16], body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a short packet");
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([next, 255]);
    bytes.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x66]);
    bytes.extend(to);
    bytes.extend(body);
    bytes
}

/// All nodes of the link.
pub const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A router advertisement with a lifetime of half an hour (RFC 4861, section 4.2).
pub fn router_advertisement() -> Vec<u8> {
    let mut body = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut pseudo = ipv6(58, ALL_NODES, &[])[8..40].to_vec();
    pseudo.extend([0, 0, 0, 16, 0, 0, 0, 58]);
    pseudo.extend(&body);
    let sum = checksum(&pseudo);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv6(58, ALL_NODES, &body)
}

/// A VXLAN packet's UDP payload.
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    [&[8, 0, 0, 0, a, b, c, 0][..], frame].concat()
}
