//! A rule of the network policy: what it says, and how it is written in TOML, in JSON and for people.

use std::{fmt, net::Ipv4Addr, net::Ipv6Addr, str::FromStr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::value::check_name;

/// One rule. The first one that matches a flow decides; a flow that none matches is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Draft")]
pub struct Rule {
    /// What becomes of a flow that matches.
    pub action: Action,
    /// Who opens the flow; anybody if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Party>,
    /// To whom; anybody if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Party>,
    /// Of which protocol; any if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// To which ports of `to`; any if empty. Only with TCP and UDP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortRange>,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Its packets pass, in both directions.
    Allow,
    /// Its packets are dropped, in both directions.
    Deny,
}

/// One side of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Party {
    /// Addresses.
    Net(Ipv4Net),
    /// The container of this name on this host.
    Container(String),
}

/// A protocol that rules know by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP of its own: echo and the like. Errors about a flow go with that flow.
    Icmp,
}

impl Protocol {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }

    /// Whether it has ports.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

impl Action {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// A port, or several that follow each other; host byte order, from 1, first not after last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports from `first` to `last`; none if that is no range of ports.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last {
            None
        } else {
            Some(Self { first, last })
        }
    }

    /// The lowest port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }
}

/// A part of a rule that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{why}; {remedy}")]
pub struct RuleError {
    /// What is wrong.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

fn wrong(why: impl Into<String>, remedy: impl Into<String>) -> RuleError {
    RuleError {
        why: why.into(),
        remedy: remedy.into(),
    }
}

/// A rule whose parts are right and may not fit together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    action: Action,
    from: Option<Party>,
    to: Option<Party>,
    protocol: Option<Protocol>,
    #[serde(default)]
    ports: Vec<PortRange>,
}

impl TryFrom<Draft> for Rule {
    type Error = RuleError;

    fn try_from(draft: Draft) -> Result<Self, RuleError> {
        let Draft {
            action,
            from,
            to,
            protocol,
            ports,
        } = draft;
        if !ports.is_empty() {
            check_ports(protocol)?;
        }
        Ok(Self {
            action,
            from,
            to,
            protocol,
            ports,
        })
    }
}

/// Refuses ports for a protocol that has none.
pub(super) fn check_ports(protocol: Option<Protocol>) -> Result<(), RuleError> {
    const REMEDY: &str = "set protocol to \"tcp\" or \"udp\", or remove the ports";
    match protocol {
        Some(protocol) if protocol.has_ports() => Ok(()),
        Some(protocol) => Err(wrong(format!("{} has no ports", protocol.name()), REMEDY)),
        None => Err(wrong("ports without a protocol", REMEDY)),
    }
}

impl FromStr for Party {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        const REMEDY: &str = "write an IPv4 network such as 10.42.1.0/24, or a container's name";
        if let Ok(net) = text.parse::<Ipv4Net>() {
            if net.trunc() != net {
                let why = format!("has bits set beyond its prefix length {}", net.prefix_len());
                return Err(wrong(why, format!("write {}", net.trunc())));
            }
            return Ok(Self::Net(net));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Net(address.into()));
        }
        if text.parse::<Ipv6Addr>().is_ok() || text.parse::<Ipv6Net>().is_ok() {
            return Err(wrong(
                "IPv6 is not supported by this version",
                "use an IPv4 network or a container's name",
            ));
        }
        // A mistyped address must not become the name of a container that nobody has.
        let numeric = |c: char| c.is_ascii_digit() || c == '.';
        if text.contains('/') || (!text.is_empty() && text.chars().all(numeric)) {
            return Err(wrong("not an IPv4 network", REMEDY));
        }
        check_name(text)
            .map_err(|why| wrong(format!("neither network nor name: {why}"), REMEDY))?;
        Ok(Self::Container(text.to_owned()))
    }
}

impl TryFrom<String> for Party {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse().map_err(|error: RuleError| RuleError {
            why: format!("{text:?}: {}", error.why),
            ..error
        })
    }
}

impl From<Party> for String {
    fn from(party: Party) -> Self {
        party.to_string()
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Container(name) => f.write_str(name),
        }
    }
}

impl FromStr for PortRange {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        const REMEDY: &str = "write ports from 1 to 65535, such as 5432 or \"8000-8100\"";
        // u16::from_str would take a sign.
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u16>().ok()).flatten()
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first > last => {
                Err(wrong("the range ends before it begins", REMEDY))
            }
            (Some(first), Some(last)) => {
                Self::new(first, last).ok_or_else(|| wrong("0 is no port", REMEDY))
            }
            _ => Err(wrong("neither a port nor a range of ports", REMEDY)),
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse().map_err(|error: RuleError| RuleError {
            why: format!("{text:?}: {}", error.why),
            ..error
        })
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Ports as people write them: separated by commas.
#[must_use]
pub fn port_list(ports: &[PortRange]) -> String {
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    ports.join(",")
}

/// `deny from web to 10.42.2.0/24 tcp 5432,8000-8100`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action.name())?;
        let any = || "any".to_owned();
        let party = |party: &Option<Party>| party.as_ref().map_or_else(any, Party::to_string);
        write!(f, " from {} to {}", party(&self.from), party(&self.to))?;
        if let Some(protocol) = self.protocol {
            write!(f, " {}", protocol.name())?;
        }
        if !self.ports.is_empty() {
            write!(f, " {}", port_list(&self.ports))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn a_party_is_a_network_or_a_name_and_never_a_guess() {
        let net = |text: &str| Party::Net(text.parse().unwrap());
        for (text, party) in [
            ("10.42.1.0/24", net("10.42.1.0/24")),
            ("10.42.1.7", net("10.42.1.7/32")),
            ("0.0.0.0/0", net("0.0.0.0/0")),
            ("web-1.example", Party::Container("web-1.example".into())),
            ("10b", Party::Container("10b".into())),
        ] {
            assert_eq!(text.parse::<Party>(), Ok(party.clone()), "{text}");
            let shown: Party = party.to_string().parse().unwrap();
            assert_eq!(shown, party, "shown as it is read");
        }
        for (text, why) in [
            ("10.42.1.7/24", "beyond its prefix length 24"),
            ("10.42.1.300", "not an IPv4 network"),
            ("10.42.1.0/33", "not an IPv4 network"),
            ("10", "not an IPv4 network"),
            ("fd00::1", "IPv6"),
            ("fd00::/64", "IPv6"),
            ("", "must not be empty"),
            ("-x", "must begin with"),
            ("a b", "must not contain"),
        ] {
            let error = text.parse::<Party>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn ports_are_numbers_and_ranges() {
        let range = |first, last| PortRange::new(first, last).unwrap();
        assert_eq!("5432".parse(), Ok(range(5432, 5432)));
        assert_eq!("1-65535".parse(), Ok(range(1, 65535)));
        for bad in [
            "", "0", "65536", "-1", "+1", "7-", "-", "9-8", "a", "1-2-3", "0-5",
        ] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rule_survives_json_and_bad_ones_do_not() {
        let text = r#"{"action":"deny","from":"web","to":"10.42.2.0/24","protocol":"tcp","ports":["5432","8000-8100"]}"#;
        let rule: Rule = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&rule).unwrap(), text);
        assert_eq!(
            rule.to_string(),
            "deny from web to 10.42.2.0/24 tcp 5432,8000-8100"
        );
        let all: Rule = serde_json::from_str(r#"{"action":"allow"}"#).unwrap();
        assert_eq!(all.to_string(), "allow from any to any");
        for (text, why) in [
            (
                r#"{"action":"deny","ports":["1"]}"#,
                "ports without a protocol",
            ),
            (
                r#"{"action":"deny","protocol":"icmp","ports":["1"]}"#,
                "icmp has no ports",
            ),
            (
                r#"{"action":"deny","from":"10.0.0.999"}"#,
                "\"10.0.0.999\": not an IPv4",
            ),
            (r#"{"action":"deny","form":"x"}"#, "unknown field"),
            (r#"{"action":"drop"}"#, "unknown variant"),
        ] {
            let error = serde_json::from_str::<Rule>(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
