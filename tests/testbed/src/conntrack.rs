//! The connections that a host's netfilter tracks.

use std::{fs, net::IpAddr};

use crate::namespace::Place;

/// One direction of a tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuple {
    /// The sender.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// The sender's port; none for ICMP.
    pub source_port: Option<u16>,
    /// The receiver's port; none for ICMP.
    pub destination_port: Option<u16>,
}

/// One tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// `tcp`, `udp`, `icmp`, ...
    pub protocol: String,
    /// `ESTABLISHED`, `TIME_WAIT`, ...; only TCP and its like have one.
    pub state: Option<String>,
    /// Seconds until the entry is forgotten; none once it is offloaded.
    pub timeout: Option<u32>,
    /// The direction of the first packet.
    pub original: Tuple,
    /// The direction of the answers.
    pub reply: Tuple,
    /// Whether no answer was seen yet.
    pub unreplied: bool,
    /// Whether the entry survives a full table.
    pub assured: bool,
    /// The connection's mark.
    pub mark: u32,
}

/// The connections tracked in a place's network namespace, from the kernel's file where it has
/// one, otherwise from conntrack(8).
///
/// # Panics
/// If neither is there, or a line cannot be understood.
#[must_use]
pub fn conntrack(place: &Place) -> Vec<ConntrackEntry> {
    // /proc/net is the network of the process, not of the thread.
    let text = place.enter(|| fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
    let text = text.unwrap_or_else(|_| place.run(&["conntrack", "-L", "-o", "extended"]));
    let parsed = text.lines().filter(|line| !line.trim().is_empty());
    parsed
        .map(|line| parse(line).unwrap_or_else(|| panic!("a conntrack entry, not {line:?}")))
        .collect()
}

/// `ipv4 2 tcp 6 431999 ESTABLISHED src=... dst=... sport=1 dport=2 src=... [ASSURED] mark=0 use=2`
fn parse(line: &str) -> Option<ConntrackEntry> {
    let (head, _) = line.split_once("src=")?;
    let mut head = head.split_whitespace().skip(2);
    let protocol = head.next()?.to_owned();
    let rest: Vec<&str> = head.skip(1).collect();
    let state = rest
        .iter()
        .find(|word| word.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
    let all = |key: &str| -> Vec<&str> {
        let words = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='));
        words
            .filter(|(found, _)| *found == key)
            .map(|(_, value)| value)
            .collect()
    };
    let tuple = |index: usize| {
        let port = |key: &str| all(key).get(index).and_then(|value| value.parse().ok());
        Some(Tuple {
            source: all("src").get(index)?.parse().ok()?,
            destination: all("dst").get(index)?.parse().ok()?,
            source_port: port("sport"),
            destination_port: port("dport"),
        })
    };
    Some(ConntrackEntry {
        protocol,
        state: state.map(|word| (*word).to_owned()),
        timeout: rest.iter().find_map(|word| word.parse().ok()),
        original: tuple(0)?,
        reply: tuple(1)?,
        unreplied: line.contains("[UNREPLIED]"),
        assured: line.contains("[ASSURED]"),
        mark: all("mark")
            .first()
            .and_then(|value| value.parse().ok())
            .unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_tcp_line_and_an_icmp_line_are_understood() {
        let tcp = parse(
            "ipv4     2 tcp      6 431999 ESTABLISHED src=10.42.1.2 dst=10.42.2.2 sport=40000 \
             dport=80 src=10.42.2.2 dst=10.42.1.2 sport=80 dport=40000 [ASSURED] mark=7 zone=0 use=2",
        )
        .expect("a TCP entry");
        assert_eq!(tcp.protocol, "tcp");
        assert_eq!(tcp.state.as_deref(), Some("ESTABLISHED"));
        assert_eq!(tcp.timeout, Some(431_999));
        assert_eq!(
            (tcp.original.source_port, tcp.reply.source_port),
            (Some(40000), Some(80))
        );
        assert!(tcp.assured && !tcp.unreplied);
        assert_eq!(tcp.mark, 7);
        let icmp = parse(
            "ipv4     2 icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=5 [UNREPLIED] \
             src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=5 mark=0 use=1",
        )
        .expect("an ICMP entry");
        assert_eq!((icmp.protocol.as_str(), icmp.state), ("icmp", None));
        assert!(icmp.unreplied);
        assert_eq!(icmp.reply.source.to_string(), "10.0.0.2");
    }
}
