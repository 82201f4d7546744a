//! The values a key may have: from a TOML value to a checked one, each knowing nothing of the rest
//! of the file.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use toml::de::DeValue;

use super::fault::{Fault, refuse};
use super::{Attach, LogLevel, MarkMask, PairKind};

/// Longest interface name: `IFNAMSIZ` (16) less the terminating zero, include/uapi/linux/if.h.
const INTERFACE_NAME_MAX: usize = 15;

/// RFC 1123 section 2.1: hosts should handle names of at least 63 characters.
const NAME_MAX: usize = 63;

/// Longest subnet prefix with two usable addresses: one for the gateway, one for a container.
const SUBNET_PREFIX_MAX: u8 = 30;

/// The smallest MTU with which every IPv4 datagram that a host must accept needs no fragmentation
/// (RFC 791 section 3.1).
pub(super) const MTU_MIN: u32 = 576;

const LEASE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
const LEASE_REMEDY: &str = "write 1s to 10m, such as \"30s\", \"1500ms\" or \"5m\"";

/// Addresses no host on an underlay and no container can have (RFC 6890, RFC 5771).
const NOT_UNICAST: [(Ipv4Net, &str); 4] = [
    (ipv4_net([0, 0, 0, 0], 8), "unspecified"),
    (ipv4_net([127, 0, 0, 0], 8), "loopback"),
    (ipv4_net([224, 0, 0, 0], 4), "multicast"),
    (ipv4_net([240, 0, 0, 0], 4), "reserved"),
];

const fn ipv4_net(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// The MTU of the containers' devices as the file asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mtu {
    /// As large as the underlay allows.
    Auto,
    /// So many bytes.
    Bytes(u32),
}

/// The text of a string value.
fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Fault> {
    value
        .as_str()
        .ok_or_else(|| refuse("must be a string", "put it between quotes"))
}

/// A whole number within `range`; `bound` says where the range comes from.
fn integer(value: &DeValue<'_>, range: RangeInclusive<u32>, bound: &str) -> Result<u32, Fault> {
    let number = value.as_integer().ok_or_else(|| {
        refuse(
            "must be an integer",
            "write digits only, without quotes or a fraction",
        )
    })?;
    u32::from_str_radix(number.as_str(), number.radix())
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            let (first, last) = (range.start(), range.end());
            refuse(
                format!("out of range: {bound}"),
                format!("write {first} to {last}"),
            )
        })
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, Fault> {
    value
        .as_bool()
        .ok_or_else(|| refuse("must be a boolean", "write true or false, without quotes"))
}

/// A VXLAN network identifier.
pub(super) fn vni(value: &DeValue<'_>) -> Result<u32, Fault> {
    integer(value, 1..=0xff_ffff, "a VNI has 24 bits (RFC 7348)")
}

/// A UDP port.
pub(super) fn port(value: &DeValue<'_>) -> Result<u16, Fault> {
    const BOUND: &str = "a UDP port has 16 bits and is not 0";
    let port = integer(value, 1..=u32::from(u16::MAX), BOUND)?;
    u16::try_from(port).map_err(|_| refuse(BOUND, "write 1 to 65535"))
}

/// Entries of the filter cache.
pub(super) fn flows(value: &DeValue<'_>) -> Result<u32, Fault> {
    integer(
        value,
        64..=16_777_216,
        "a filter cache has 64 to 16777216 entries",
    )
}

/// The name of a node, a peer or a container.
pub(super) fn name(value: &DeValue<'_>) -> Result<String, Fault> {
    let name = text(value)?;
    check_name(name).map_err(|why| {
        refuse(
            why,
            "use a letter or digit, then up to 62 of A-Z a-z 0-9 . _ -",
        )
    })?;
    Ok(name.to_owned())
}

/// Whether `name` may name a node, a peer or a container: 1 to 63 of `A-Z a-z 0-9 . _ -`, the first
/// a letter or a digit. So a name is safe as a file name and never looks like an option.
///
/// # Errors
/// The reason why not.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() {
        Err("a name must not be empty".to_owned())
    } else if name.len() > NAME_MAX {
        Err(format!(
            "a name has at most {NAME_MAX} characters, this has {}",
            name.len()
        ))
    } else if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        Err(format!("a name must not contain {bad:?}"))
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Err("a name must begin with a letter or a digit".to_owned())
    } else {
        Ok(())
    }
}

/// The name of a network device, by the rules of `dev_valid_name` (net/core/dev.c).
pub(super) fn interface(value: &DeValue<'_>) -> Result<String, Fault> {
    const REMEDY: &str = "name a device as `ip link` lists it";
    let name = text(value)?;
    if name.len() > INTERFACE_NAME_MAX {
        let length = name.len();
        let why = format!(
            "an interface name has at most {INTERFACE_NAME_MAX} characters, this has {length}"
        );
        return Err(refuse(why, REMEDY));
    }
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.is_empty() || name == "." || name == ".." || name.contains(bad) {
        return Err(refuse("not an interface name", REMEDY));
    }
    Ok(name.to_owned())
}

/// The IPv4 address of a host on the underlay.
pub(super) fn underlay_address(value: &DeValue<'_>) -> Result<Ipv4Addr, Fault> {
    let address = address(value)?;
    match not_unicast(address) {
        Some(kind) => Err(refuse(
            format!("{kind}, not the address of a host"),
            "use the host's unicast address",
        )),
        None => Ok(address),
    }
}

/// The IPv4 address of a container; where it may lie is for other values to say.
pub(super) fn container_address(value: &DeValue<'_>) -> Result<Ipv4Addr, Fault> {
    address(value)
}

fn address(value: &DeValue<'_>) -> Result<Ipv4Addr, Fault> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        if text.parse::<Ipv6Addr>().is_ok() {
            refuse(
                "IPv6 is not supported by this version",
                "use an IPv4 address",
            )
        } else {
            refuse(
                "not an IPv4 address",
                "write it as 192.168.50.11, without a prefix length",
            )
        }
    })
}

/// What `address` is if it cannot be the address of one host.
pub(super) fn not_unicast(address: Ipv4Addr) -> Option<&'static str> {
    let (_, kind) = NOT_UNICAST.iter().find(|(net, _)| net.contains(&address))?;
    Some(kind)
}

/// An IPv4 network that containers can live in: no host bits, no special addresses.
pub(super) fn network(value: &DeValue<'_>) -> Result<Ipv4Net, Fault> {
    let text = text(value)?;
    let net: Ipv4Net = text.parse().map_err(|_| {
        if text.parse::<Ipv6Net>().is_ok() {
            refuse(
                "IPv6 is not supported by this version",
                "use an IPv4 network",
            )
        } else {
            refuse(
                "not an IPv4 network",
                "write address/prefix, such as 10.42.1.0/24",
            )
        }
    })?;
    if net.trunc() != net {
        let why = format!("has bits set beyond its prefix length {}", net.prefix_len());
        return Err(refuse(why, format!("write {}", net.trunc())));
    }
    if let Some((special, kind)) = NOT_UNICAST
        .iter()
        .find(|(special, _)| overlap(special, &net))
    {
        return Err(refuse(
            format!("overlaps the {kind} addresses {special}"),
            "use a private network, such as 10.42.0.0/16 (RFC 1918)",
        ));
    }
    Ok(net)
}

/// One host's share of the overlay network.
pub(super) fn subnet(value: &DeValue<'_>) -> Result<Ipv4Net, Fault> {
    let net = network(value)?;
    if net.prefix_len() > SUBNET_PREFIX_MAX {
        return Err(refuse(
            "has no room for a gateway and a container",
            format!("use a prefix length of at most {SUBNET_PREFIX_MAX}"),
        ));
    }
    Ok(net)
}

/// What `address` is in `subnet` if it is there and no container can have it.
pub fn reserved_in(subnet: &Ipv4Net, address: Ipv4Addr) -> Option<&'static str> {
    if address == subnet.network() {
        Some("the network's own address")
    } else if address == subnet.broadcast() {
        Some("the broadcast address")
    } else if address == gateway(subnet) {
        Some("the gateway has it")
    } else {
        None
    }
}

/// The containers' gateway: the first usable address of their subnet.
pub fn gateway(subnet: &Ipv4Net) -> Ipv4Addr {
    // No subnet ends at 255.255.255.255: the addresses from 224.0.0.0 on are refused.
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

/// Whether two networks share an address; of two such, one contains the other.
pub(super) fn overlap(one: &Ipv4Net, other: &Ipv4Net) -> bool {
    one.contains(other) || other.contains(one)
}

/// `"auto"` or a number of bytes; whether it fits the underlay is for the host to say.
pub(super) fn mtu(value: &DeValue<'_>) -> Result<Mtu, Fault> {
    let limits = MTU_MIN..=u32::from(u16::MAX);
    match value {
        DeValue::Integer(_) => integer(
            value,
            limits,
            "IPv4 needs an MTU of 576 (RFC 791) and has no packet beyond 65535",
        )
        .map(Mtu::Bytes),
        DeValue::String(text) if text == "auto" => Ok(Mtu::Auto),
        _ => Err(refuse(
            "must be \"auto\" or an integer",
            "write \"auto\" or a number of bytes",
        )),
    }
}

/// How long a cache entry serves.
pub(super) fn lease(value: &DeValue<'_>) -> Result<Duration, Fault> {
    let lease =
        parse_lease(text(value)?).ok_or_else(|| refuse("not a length of time", LEASE_REMEDY))?;
    if !LEASE.contains(&lease) {
        return Err(refuse(
            "out of range: a lease lasts 1s to 10m",
            LEASE_REMEDY,
        ));
    }
    Ok(lease)
}

/// A whole number and its unit: `ms`, `s` or `m`.
fn parse_lease(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

/// A lease in the largest unit that shows it whole: what [`lease`] reads.
pub(super) fn lease_text(lease: Duration) -> String {
    match lease.as_millis() {
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// The bits of `skb->mark` that are oncache's.
pub(super) fn mark_mask(value: &DeValue<'_>) -> Result<MarkMask, Fault> {
    const REMEDY: &str = "use one run of at least 8 bits, such as \"0x0fff0000\"";
    let bits = match value {
        DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
        DeValue::String(text) => text
            .strip_prefix("0x")
            // from_str_radix would take a sign.
            .filter(|digits| !digits.starts_with('+'))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok()),
        _ => None,
    };
    let bits = bits.ok_or_else(|| refuse("not a hexadecimal number of 32 bits", REMEDY))?;
    MarkMask::new(bits).map_err(|error| refuse(error.to_string(), REMEDY))
}

/// How the programs are attached.
pub(super) fn attach(value: &DeValue<'_>) -> Result<Attach, Fault> {
    match value.as_str() {
        Some("auto") => Ok(Attach::Auto),
        Some("tcx") => Ok(Attach::Tcx),
        Some("clsact") => Ok(Attach::Clsact),
        _ => Err(refuse(
            "no way to attach",
            "write \"auto\", \"tcx\" or \"clsact\"",
        )),
    }
}

/// What a container's device pair is; none leaves it to oncache.
pub(super) fn container_device(value: &DeValue<'_>) -> Result<Option<PairKind>, Fault> {
    match value.as_str() {
        Some("auto") => Ok(None),
        Some("veth") => Ok(Some(PairKind::Veth)),
        Some("netkit") => Ok(Some(PairKind::Netkit)),
        _ => Err(refuse(
            "no device that containers have",
            "write \"auto\", \"veth\" or \"netkit\"",
        )),
    }
}

/// How much is logged.
pub(super) fn log_level(value: &DeValue<'_>) -> Result<LogLevel, Fault> {
    let level = LogLevel::ALL
        .into_iter()
        .find(|level| value.as_str() == Some(level.name()));
    let names = LogLevel::ALL.map(|level| format!("{:?}", level.name()));
    level.ok_or_else(|| refuse("no level", format!("write one of {}", names.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_a_number_and_a_unit() {
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!(parse_lease("30s"), seconds(30));
        assert_eq!(parse_lease("1500ms"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_lease("5m"), seconds(300));
        for bad in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "30 s",
            "30h",
            "1m30s",
            "99999999999999999999s",
        ] {
            assert_eq!(parse_lease(bad), None, "{bad}");
        }
        assert_eq!(parse_lease(&format!("{}m", u64::MAX)), None, "overflow");
    }

    #[test]
    fn a_lease_is_shown_as_it_is_read() {
        for shown in ["1500ms", "30s", "90s", "1m", "10m"] {
            assert_eq!(parse_lease(shown).map(lease_text).as_deref(), Some(shown));
        }
    }

    #[test]
    fn names_are_safe_as_file_names_and_arguments() {
        let longest = "a".repeat(63);
        for good in [
            "a",
            "alpha",
            "web-1",
            "node_2",
            "alpha.example.org",
            "9",
            &longest,
        ] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in [
            "", ".", "..", "-x", ".hidden", "a/b", "a b", "é", "a\n", &too_long,
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
