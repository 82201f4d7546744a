//! Making frames. The checksums here are the tests' own, byte by byte, not the programs'.

use std::net::Ipv4Addr;

/// Where a packet comes from and goes to.
#[derive(Clone, Copy)]
pub struct Ends {
    pub macs: [[u8; 6]; 2],
    pub addresses: [Ipv4Addr; 2],
    pub ports: [u16; 2],
}

/// A frame being made; valid unless it was spoilt on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

/// Length of an Ethernet header: where the IPv4 header of a container's frame begins.
pub const ETHERNET: usize = 14;

impl Frame {
    /// A UDP datagram, source first in `ends`.
    pub fn udp(ends: &Ends, payload: usize) -> Self {
        let length = u16::try_from(8 + payload).expect("a short datagram");
        let mut transport = Vec::new();
        for word in [ends.ports[0], ends.ports[1], length, 0xbeef] {
            transport.extend(word.to_be_bytes());
        }
        Self::ipv4(ends, 17, &filled(transport, payload))
    }

    /// A TCP segment with `flags`.
    pub fn tcp(ends: &Ends, flags: u8, payload: usize) -> Self {
        let mut transport = Vec::new();
        for port in ends.ports {
            transport.extend(port.to_be_bytes());
        }
        transport.extend([
            0, 0, 1, 0, 0, 0, 2, 0, 0x50, flags, 0x20, 0, 0xbe, 0xef, 0, 0,
        ]);
        Self::ipv4(ends, 6, &filled(transport, payload))
    }

    fn ipv4(ends: &Ends, protocol: u8, transport: &[u8]) -> Self {
        let mut bytes = Vec::new();
        bytes.extend(ends.macs[1]);
        bytes.extend(ends.macs[0]);
        bytes.extend([8, 0]);
        let total = u16::try_from(20 + transport.len()).expect("a short packet");
        bytes.extend([0x45, 0]);
        bytes.extend(total.to_be_bytes());
        bytes.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
        for address in ends.addresses {
            bytes.extend(address.octets());
        }
        bytes.extend(transport);
        Self(bytes).ip(ETHERNET, |_| ())
    }

    /// This frame in a VXLAN packet, as the kernel makes it: DF off, no UDP checksum.
    pub fn in_tunnel(self, ends: &Ends, vni: u32) -> Self {
        let mut outer = Self::udp(ends, 8 + self.0.len());
        outer.0.truncate(ETHERNET + 28);
        outer.0.extend([8, 0, 0, 0]);
        outer.0.extend((vni << 8).to_be_bytes());
        outer.0.extend(self.0);
        let outer = outer.bytes(ETHERNET + 26, &[0, 0]);
        outer.ip(ETHERNET, |ip| ip[6..8].copy_from_slice(&[0, 0]))
    }

    /// Edits the IPv4 header at `at` and makes its checksum right again.
    pub fn ip(mut self, at: usize, edit: impl FnOnce(&mut [u8])) -> Self {
        let header = &mut self.0[at..at + 20];
        edit(header);
        header[10..12].fill(0);
        let sum = !sum16(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// Overwrites bytes at `at`, right or wrong.
    pub fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The first `length` bytes, whose headers say what they said.
    pub fn cut(mut self, length: usize) -> Self {
        self.0.truncate(length);
        self
    }

    /// With bytes behind the end of what the headers say.
    pub fn trailed(mut self, by: usize) -> Self {
        self.0.extend(vec![0; by]);
        self
    }
}

fn filled(mut transport: Vec<u8>, payload: usize) -> Vec<u8> {
    transport.extend((0..=u8::MAX).cycle().take(payload));
    transport
}

/// The ones' complement sum of an even number of bytes.
pub fn sum16(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("carries were folded in")
}
