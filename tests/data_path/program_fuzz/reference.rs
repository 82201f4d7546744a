//! What the fast path may carry, and what may be learned from: the rules as they are documented,
//! read off a frame byte by byte. Written without regard to the programs, so slow and plain.

use oncache::datapath::PacketContext;

use super::program_bench::{sum16, world::*};

/// What the rules ask of an IPv4 packet.
struct Packet<'a> {
    source: &'a [u8],
    destination: &'a [u8],
    ttl: u8,
    ecn: u8,
    protocol: u8,
    ports: [u16; 2],
    length: usize,
    /// SYN, FIN or RST, or a TCP segment without ACK.
    changes_state: bool,
    payload: &'a [u8],
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// An IPv4 packet without options that is no fragment, whose checksum is right and that ends where
/// it says; of TCP or UDP, with a header that is all there and lengths that are true.
fn packet(bytes: &[u8]) -> Option<Packet<'_>> {
    let header = bytes.get(..20)?;
    let length = usize::from(number(header, 2)?);
    let fragment = number(header, 6)? & 0x3fff != 0;
    if header[0] != 0x45 || fragment || length != bytes.len() || sum16(header) != 0xffff {
        return None;
    }
    let payload = &bytes[20..];
    let ports = [number(payload, 0)?, number(payload, 2)?];
    let changes_state = match header[9] {
        17 => {
            let complete = payload.len() >= 8 && usize::from(number(payload, 4)?) == payload.len();
            if !complete {
                return None;
            }
            false
        }
        6 => {
            let header_length = usize::from(payload.get(12)? >> 4) * 4;
            if payload.len() < 20 || header_length < 20 || header_length > payload.len() {
                return None;
            }
            let [syn_fin_rst, ack] = [payload[13] & 7, payload[13] & 0x10];
            syn_fin_rst != 0 || ack == 0
        }
        _ => return None,
    };
    Some(Packet {
        source: &header[12..16],
        destination: &header[16..20],
        ttl: header[8],
        ecn: header[1] & 3,
        protocol: header[9],
        ports,
        length,
        changes_state,
        payload,
    })
}

impl Packet<'_> {
    /// Not about to expire, not one that conntrack has to see, not larger than the overlay takes.
    fn is_fit(&self) -> bool {
        self.ttl > 1 && !self.changes_state && self.length <= usize::from(MTU)
    }
}

/// A VXLAN packet of our overlay between whichever hosts: its outer header, and the frame in it.
fn tunnel(frame: &[u8]) -> Option<(Packet<'_>, &[u8])> {
    let outer = packet(frame.get(14..)?)?;
    let is_ours = number(frame, 12)? == 0x0800
        && outer.protocol == 17
        && outer.ports[1] == PORT
        && number(outer.payload, 6)? == 0;
    let (vxlan, inner) = outer.payload.get(8..)?.split_at_checked(8)?;
    let [_, v, n, i] = VNI.to_be_bytes();
    (is_ours && vxlan == [8, 0, 0, 0, v, n, i, 0]).then_some((outer, inner))
}

/// Whether `egress` may carry the frame to the peer, where all is cached as in [`warm`].
pub fn egress(frame: &[u8], context: PacketContext) -> bool {
    let accepts = || {
        let inner = packet(frame.get(14..)?)?;
        let right = context.ifindex == DEVICE
            && frame[0..6] == GATEWAY_MAC
            && frame[6..12] == LOCAL_MAC
            && number(frame, 12)? == 0x0800
            && inner.source == LOCAL.octets()
            && inner.destination == REMOTE.octets()
            && inner.ports == OUTBOUND.ports;
        Some(right && inner.is_fit())
    };
    accepts().unwrap_or(false)
}

/// Whether `ingress` may carry the frame to the container, where all is cached as in [`warm`].
pub fn ingress(frame: &[u8], context: PacketContext) -> bool {
    let accepts = || {
        let (outer, inside) = tunnel(frame)?;
        let device = DEVICES
            .iter()
            .find(|(_, index, _)| *index == context.ifindex)?;
        let inner = packet(inside.get(14..)?)?;
        // Congestion marked on what is not capable of ECN is for the kernel to drop.
        let ecn_stays = outer.ecn != 3 || inner.ecn != 0;
        let right = frame[0..6] == device.2
            && outer.source == PEER.octets()
            && outer.destination == HOST.octets()
            && ecn_stays
            && inside[0..6] == VTEP_MAC
            && inside[6..12] != VTEP_MAC
            && number(inside, 12)? == 0x0800
            && inner.source == REMOTE.octets()
            && inner.destination == LOCAL.octets()
            && inner.ports == DELIVERED.ports;
        Some(right && inner.is_fit())
    };
    accepts().unwrap_or(false)
}

/// Whether `egress_init` may learn from the frame, given a mark that allows it.
pub fn egress_init(frame: &[u8], _: PacketContext) -> bool {
    let accepts = || {
        let (outer, inside) = tunnel(frame)?;
        let inner = packet(inside.get(14..)?)?;
        Some(
            outer.source == HOST.octets()
                && [PEER.octets(), OTHER_PEER.octets()]
                    .contains(&outer.destination.try_into().ok()?)
                && number(inside, 12)? == 0x0800
                && [LOCAL.octets(), NEIGHBOUR.octets()].contains(&inner.source.try_into().ok()?)
                && inner.destination[0..2] == [10, 42],
        )
    };
    accepts().unwrap_or(false)
}

/// Whether `ingress_init` may learn from the frame, given a mark that allows it.
pub fn ingress_init(frame: &[u8], context: PacketContext) -> bool {
    let accepts = || {
        let inner = packet(frame.get(14..)?)?;
        let device = [(LOCAL, DEVICE), (NEIGHBOUR, NEIGHBOUR_DEVICE)]
            .into_iter()
            .find(|(container, _)| inner.destination == container.octets())?;
        Some(
            frame[6..12] == GATEWAY_MAC
                && number(frame, 12)? == 0x0800
                && device.1 == context.ifindex,
        )
    };
    accepts().unwrap_or(false)
}
