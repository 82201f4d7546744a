//! What kinds of traffic there are, and what is measured of each.

use std::fmt;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// One byte each way over one connection.
    TcpRounds,
    /// The same by datagrams.
    UdpRounds,
    /// A connection for each byte asked and answered.
    TcpConnections,
    /// Datagrams of a size, one way.
    Datagrams(usize),
    /// So many connections at once, one way.
    TcpStreams(usize),
    /// Small datagrams, each of another of so many flows, one way; their entries have to be in the
    /// filter caches before, see `entries.rs`.
    Spread(u32),
    /// An exchange of each of so many flows in turn, see `crowd.rs`.
    Crowd(u32),
}

impl Workload {
    /// All of `make bench`.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::TcpRounds,
            Self::UdpRounds,
            Self::TcpConnections,
            Self::Datagrams(64),
            Self::Datagrams(1400),
        ];
        all.extend([1, 2, 4, 8, 16, 32].map(Self::TcpStreams));
        all
    }

    /// What `make bench-quick` takes of them.
    pub fn quick() -> Vec<Self> {
        vec![
            Self::TcpRounds,
            Self::UdpRounds,
            Self::TcpConnections,
            Self::Datagrams(64),
            Self::TcpStreams(1),
            Self::TcpStreams(8),
        ]
    }

    /// What the rate counts.
    pub const fn rate_unit(self) -> &'static str {
        match self {
            Self::TcpRounds | Self::UdpRounds | Self::TcpConnections | Self::Crowd(_) => {
                "thousand/s"
            }
            Self::Datagrams(64) | Self::Spread(_) => "thousand packets/s",
            Self::Datagrams(_) | Self::TcpStreams(_) => "Gbit/s",
        }
    }

    /// What the CPU time is per.
    pub const fn cost_unit(self) -> &'static str {
        match self {
            Self::TcpRounds | Self::UdpRounds | Self::TcpConnections | Self::Crowd(_) => {
                "us per transaction"
            }
            Self::Datagrams(_) | Self::Spread(_) => "us per packet",
            Self::TcpStreams(_) => "us per MB",
        }
    }

    /// Units in `cost_unit` per counted one.
    pub fn units(self, counted: u64) -> f64 {
        match self {
            Self::TcpStreams(_) => counted as f64 / 1e6,
            _ => counted as f64,
        }
    }

    /// In `rate_unit`.
    pub fn rate(self, counted: u64, seconds: f64) -> f64 {
        let counted = counted as f64 / seconds;
        match self {
            Self::Datagrams(64) => counted / 1e3,
            Self::Datagrams(size) => counted * size as f64 * 8.0 / 1e9,
            Self::TcpStreams(_) => counted * 8.0 / 1e9,
            _ => counted / 1e3,
        }
    }

    /// The least share of the packets that the caches must have carried. A connection of a
    /// transaction or two is never established long enough.
    pub const fn least_hit_ratio(self) -> Option<f64> {
        match self {
            Self::TcpConnections | Self::Crowd(_) => None,
            _ => Some(0.99),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TcpRounds => f.write_str("TCP_RR"),
            Self::UdpRounds => f.write_str("UDP_RR"),
            Self::TcpConnections => f.write_str("TCP_CRR"),
            Self::Datagrams(size) => write!(f, "UDP {size} B"),
            Self::TcpStreams(1) => f.write_str("TCP stream"),
            Self::TcpStreams(flows) => write!(f, "TCP {flows} streams"),
            Self::Spread(flows) => write!(f, "UDP over {flows} flows"),
            Self::Crowd(flows) => write!(f, "UDP_RR of {flows} flows"),
        }
    }
}
