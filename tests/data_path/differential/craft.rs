//! From a packet's description to the bytes that are sent.

use std::net::Ipv4Addr;

use crate::differential::{
    addresses::{self, End},
    checksum::{fold, pseudo, put_checksum, sum},
    packet::{Checksum, Offload, Outer, Packet, Tcp, Transport, Udp, Way},
};

/// One frame to be sent.
#[derive(Clone, Debug)]
pub struct Injection {
    /// Which of the sequence's packets it belongs to.
    pub index: usize,
    pub way: Way,
    /// Put on the underlay by the sender's host, not sent by the container.
    pub on_wire: bool,
    /// A `virtio_net_hdr` (Virtual I/O Device, section 5.1.6) as the kernel takes it.
    pub offload: [u8; 10],
    pub bytes: Vec<u8>,
}

/// Turns packets into frames, each packet with IPv4 identifications that no other has: by these a
/// captured frame is known again.
#[derive(Debug)]
pub struct Crafter {
    next: u16,
    /// The first identification of every packet, and its index.
    owners: Vec<(u16, usize)>,
    first: u16,
    pub injections: Vec<Injection>,
}

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP_PROTOCOL: u8 = 17;
const TCP_PROTOCOL: u8 = 6;

impl Crafter {
    /// Begins a sequence whose first packet has the identification `first`.
    pub const fn new(first: u16) -> Self {
        Self {
            next: first,
            owners: Vec::new(),
            first,
            injections: Vec::new(),
        }
    }

    /// The identification that follows those in use.
    pub const fn next_identification(&self) -> u16 {
        self.next
    }

    /// The index of the packet that an identification was given to.
    pub fn owner(&self, identification: u16) -> Option<usize> {
        let distance = identification.wrapping_sub(self.first);
        if distance >= self.next.wrapping_sub(self.first) {
            return None;
        }
        let behind = self
            .owners
            .partition_point(|(first, _)| first.wrapping_sub(self.first) <= distance);
        Some(self.owners[behind.checked_sub(1)?].1)
    }

    /// Adds a packet to the sequence.
    pub fn add(&mut self, index: usize, packet: &Packet) {
        self.owners.push((self.next, index));
        let steps: Vec<Packet> = match packet.transport {
            Transport::OpenTcp => {
                // SYN, SYN-ACK, ACK; then data both ways, by which both hosts learn both ways.
                let step = |way, flags| Packet {
                    way,
                    transport: Transport::Tcp(Tcp {
                        flags,
                        ..Tcp::default()
                    }),
                    ..packet.clone()
                };
                let (syn, ack) = (Tcp::SYN, Tcp::ACK);
                vec![
                    step(Way::Forth, syn),
                    step(Way::Back, syn | ack),
                    step(Way::Forth, ack),
                    step(Way::Back, ack),
                    step(Way::Forth, ack),
                    step(Way::Back, ack),
                ]
            }
            Transport::OpenUdp => {
                let ways = [Way::Forth, Way::Back, Way::Forth, Way::Back, Way::Forth];
                let step = |way| Packet {
                    way,
                    transport: Transport::default(),
                    ..packet.clone()
                };
                ways.map(step).to_vec()
            }
            _ => vec![packet.clone()],
        };
        for step in steps {
            for (offload, bytes) in frames(&step, self.next) {
                self.injections.push(Injection {
                    index,
                    way: step.way,
                    on_wire: step.outer.is_some(),
                    offload,
                    bytes,
                });
            }
            // The kernel counts the identification up from one segment to the next.
            let segments = match step.offload {
                Offload::Segments(size) => step.payload / size.max(1) + 1,
                _ => 1,
            };
            self.next = self.next.wrapping_add(segments);
        }
    }
}

/// The frames of a packet that is sent one way.
fn frames(packet: &Packet, id: u16) -> Vec<([u8; 10], Vec<u8>)> {
    let sender = addresses::end(packet.way);
    let receiver = addresses::other_end(packet.way);
    if let Some(ethertype) = packet.link.ethertype {
        let body = other_ethertype(packet, ethertype, sender, receiver);
        return vec![([0; 10], frame(packet, id, ethertype, &body))];
    }
    let source = packet.ip.source.unwrap_or(sender.ip);
    let destination = packet.ip.destination.unwrap_or(receiver.ip);
    let segment = segment(packet, id, source, destination);
    let ip = |fragment: u16, body: &[u8]| {
        let header = ipv4(packet, id, fragment, segment.protocol, body.len());
        frame(packet, id, 0x0800, &[&header, body].concat())
    };
    let flags = u16::from(packet.ip.dont_fragment) << 14 | u16::from(packet.ip.reserved_flag) << 15;
    let Some(fragments) = &packet.ip.fragments else {
        let bytes = ip(flags, &segment.bytes);
        return vec![(offload(packet, &segment), bytes)];
    };
    let unit = usize::from(fragments.units.max(1)) * 8;
    let count = segment.bytes.len().div_ceil(unit);
    let mut cut: Vec<_> = segment
        .bytes
        .chunks(unit)
        .enumerate()
        .filter(|(number, _)| {
            fragments
                .lost
                .is_none_or(|lost| usize::from(lost) != *number)
        })
        .map(|(number, piece)| {
            let more = u16::from(number + 1 < count) << 13;
            let offset = u16::try_from(number * unit / 8).unwrap_or(0x1fff) & 0x1fff;
            ([0; 10], ip(flags & 0x8000 | more | offset, piece))
        })
        .collect();
    if fragments.backwards {
        cut.reverse();
    }
    cut
}

fn frame(packet: &Packet, id: u16, ethertype: u16, body: &[u8]) -> Vec<u8> {
    let sender = addresses::end(packet.way);
    let mut bytes = Vec::with_capacity(ETHERNET + body.len());
    let macs = match &packet.outer {
        None => [sender.gateway, sender.mac],
        Some(outer) => {
            let receiver = addresses::other_end(packet.way);
            [
                outer.inner_destination.unwrap_or(receiver.vtep),
                sender.vtep,
            ]
        }
    };
    bytes.extend(packet.link.destination.unwrap_or(macs[0]));
    bytes.extend(packet.link.source.unwrap_or(macs[1]));
    for tag in &packet.link.vlans {
        bytes.extend(0x8100_u16.to_be_bytes());
        bytes.extend(tag.to_be_bytes());
    }
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len() + usize::from(packet.trailing), 0xee);
    if let Some(cut) = packet.cut {
        bytes.truncate(usize::from(cut).max(ETHERNET));
    }
    match &packet.outer {
        None => bytes,
        Some(outer) => encapsulate(outer, packet.way, id, &bytes),
    }
}

fn ipv4(packet: &Packet, id: u16, fragment: u16, protocol: u8, body: usize) -> Vec<u8> {
    let ip = &packet.ip;
    let words = 5 + ip.options.len() / 4;
    let length = clamped(IPV4 + ip.options.len() + body, ip.length_error);
    let mut header = vec![0x40 | u8::try_from(words).unwrap_or(15), ip.tos];
    header.extend(length.to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([ip.ttl, protocol, 0, 0]);
    header.extend(ip.source.unwrap_or(addresses::end(packet.way).ip).octets());
    let destination = ip.destination;
    header.extend(
        destination
            .unwrap_or(addresses::other_end(packet.way).ip)
            .octets(),
    );
    header.extend(&ip.options);
    if let Some(byte) = ip.version_and_length {
        header[0] = byte;
    }
    let checksum = (!fold(sum(&header))).wrapping_add(ip.checksum_error);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// A transport header and its data.
struct Segment {
    protocol: u8,
    header: usize,
    /// Where the checksum is.
    checksum: usize,
    bytes: Vec<u8>,
}

fn segment(packet: &Packet, id: u16, source: Ipv4Addr, destination: Ipv4Addr) -> Segment {
    let data = data(usize::from(packet.payload), id);
    let [from, to] = addresses::ports(packet.way, packet.flow);
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    match &packet.transport {
        Transport::Tcp(tcp) => {
            let header = 20 + tcp.options.len();
            let words = tcp
                .data_offset
                .unwrap_or(u8::try_from(header / 4).unwrap_or(15));
            let mut bytes = ports;
            bytes.extend(tcp.sequence.to_be_bytes());
            bytes.extend(tcp.acknowledgement.to_be_bytes());
            bytes.extend([words << 4 | tcp.reserved & 15, tcp.flags]);
            bytes.extend(tcp.window.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(tcp.urgent.to_be_bytes());
            bytes.extend(&tcp.options);
            bytes.extend(data);
            let pseudo = pseudo(source, destination, TCP_PROTOCOL, bytes.len());
            put_checksum(&mut bytes, 16, pseudo, tcp.checksum, packet.offload);
            Segment {
                protocol: TCP_PROTOCOL,
                header,
                checksum: 16,
                bytes,
            }
        }
        Transport::Udp(Udp {
            checksum,
            length_error,
        }) => {
            let mut bytes = ports;
            bytes.extend(clamped(8 + data.len(), *length_error).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(data);
            let pseudo = pseudo(source, destination, UDP_PROTOCOL, bytes.len());
            put_checksum(&mut bytes, 6, pseudo, *checksum, packet.offload);
            Segment {
                protocol: UDP_PROTOCOL,
                header: 8,
                checksum: 6,
                bytes,
            }
        }
        Transport::Icmp(kind, code) => {
            let mut bytes = vec![*kind, *code, 0, 0];
            bytes.extend([0, packet.flow, id.to_be_bytes()[0], id.to_be_bytes()[1]]);
            if matches!(kind, 3 | 4 | 5 | 11 | 12) {
                bytes.extend(quotation(packet, id));
            }
            bytes.extend(data);
            put_checksum(&mut bytes, 2, 0, Checksum::Right, Offload::Nothing);
            Segment {
                protocol: 1,
                header: 8,
                checksum: 2,
                bytes,
            }
        }
        Transport::Other(protocol) => Segment {
            protocol: *protocol,
            header: 0,
            checksum: 0,
            bytes: data,
        },
        Transport::OpenTcp | Transport::OpenUdp => unreachable!("taken apart before"),
    }
}

/// The beginning of a UDP packet of the flow that goes the other way, as an error quotes it.
fn quotation(packet: &Packet, id: u16) -> Vec<u8> {
    let way = match packet.way {
        Way::Forth => Way::Back,
        Way::Back => Way::Forth,
    };
    let quoted = Packet {
        way,
        flow: packet.flow,
        payload: 32,
        ..Packet::default()
    };
    let body = segment(
        &quoted,
        id,
        addresses::end(way).ip,
        addresses::other_end(way).ip,
    );
    let header = ipv4(&quoted, id, 0x4000, body.protocol, body.bytes.len());
    [&header, &body.bytes[..8]].concat()
}

fn offload(packet: &Packet, segment: &Segment) -> [u8; 10] {
    let (kind, size) = match (packet.offload, segment.protocol) {
        (Offload::Nothing, _) => return [0; 10],
        (Offload::Checksum, _) => (0, 0),
        // VIRTIO_NET_HDR_GSO_TCPV4 and VIRTIO_NET_HDR_GSO_UDP_L4.
        (Offload::Segments(size), TCP_PROTOCOL) => (1, size),
        (Offload::Segments(size), _) => (5, size),
    };
    let short = |number: usize| u16::try_from(number).unwrap_or(u16::MAX).to_ne_bytes();
    let start = ETHERNET + 4 * packet.link.vlans.len() + IPV4 + packet.ip.options.len();
    let [length, start, at] = [start + segment.header, start, segment.checksum].map(short);
    let size = size.to_ne_bytes();
    // VIRTIO_NET_HDR_F_NEEDS_CSUM.
    [
        1, kind, length[0], length[1], size[0], size[1], start[0], start[1], at[0], at[1],
    ]
}

fn encapsulate(outer: &Outer, way: Way, id: u16, inner: &[u8]) -> Vec<u8> {
    let (from, to) = (addresses::end(way), addresses::other_end(way));
    let [mut source, mut destination] = [from.host, to.host].map(|host| host.octets());
    source[3] = outer.source.unwrap_or(source[3]);
    destination[3] = outer.destination.unwrap_or(destination[3]);
    let mut udp = Vec::with_capacity(16 + inner.len());
    udp.extend(outer.source_port.to_be_bytes());
    udp.extend(outer.port.to_be_bytes());
    udp.extend(clamped(16 + inner.len(), outer.udp_length_error).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(outer.flags);
    udp.extend((outer.vni << 8 | u32::from(outer.reserved)).to_be_bytes());
    udp.extend(inner);
    let pseudo = pseudo(source.into(), destination.into(), UDP_PROTOCOL, udp.len());
    put_checksum(&mut udp, 6, pseudo, outer.udp_checksum, Offload::Nothing);
    let length = clamped(IPV4 + outer.options.len() + udp.len(), outer.length_error);
    let words = u8::try_from(5 + outer.options.len() / 4).unwrap_or(15);
    let mut ip = vec![0x40 | words, outer.tos];
    ip.extend(length.to_be_bytes());
    ip.extend(id.to_be_bytes());
    ip.extend(outer.fragment.to_be_bytes());
    ip.extend([outer.ttl, UDP_PROTOCOL, 0, 0]);
    ip.extend(source);
    ip.extend(destination);
    ip.extend(&outer.options);
    let checksum = (!fold(sum(&ip))).wrapping_add(outer.checksum_error);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut bytes = Vec::with_capacity(ETHERNET + ip.len() + udp.len());
    bytes.extend(outer.destination_mac.unwrap_or(to.underlay));
    bytes.extend(from.underlay);
    bytes.extend([8, 0]);
    bytes.extend(ip);
    bytes.extend(udp);
    bytes
}

/// ARP for the gateway or for the other end, by request or answer; otherwise mere bytes.
fn other_ethertype(packet: &Packet, ethertype: u16, sender: &End, receiver: &End) -> Vec<u8> {
    if ethertype != 0x0806 {
        return data(usize::from(packet.payload), 0x6000);
    }
    let [operation, target] = [packet.flow % 2 + 1, packet.flow / 2 % 2];
    let target = if target == 0 {
        sender.gateway_ip
    } else {
        receiver.ip
    };
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(sender.mac);
    body.extend(sender.ip.octets());
    body.extend([0; 6]);
    body.extend(target.octets());
    body
}

/// Bytes that differ from packet to packet.
fn data(length: usize, id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let pattern: Vec<u8> = (0..=250).map(|at: u8| at.wrapping_mul(31) ^ low).collect();
    let mut bytes = vec![high; length.min(2)];
    while bytes.len() < length {
        bytes.extend(&pattern[..pattern.len().min(length - bytes.len())]);
    }
    bytes
}

fn clamped(length: usize, error: i16) -> u16 {
    let length = i64::try_from(length).unwrap_or(0) + i64::from(error);
    u16::try_from(length.clamp(0, 0xffff)).unwrap_or(0)
}
