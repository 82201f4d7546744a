//! Which address a container gets.

use std::{collections::HashSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use thiserror::Error;

use crate::config::{Config, reserved_in};

/// No address can be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    /// The wish is not an address a container may have.
    #[error("address {ip}: not a container address of {net}: {reason}")]
    Unusable {
        /// The wish.
        ip: Ipv4Addr,
        /// This host's subnet or, for an address outside of it, the overlay network.
        net: Ipv4Net,
        /// Why not.
        reason: &'static str,
    },
    /// The configuration says that it lives on another host.
    #[error(
        "address {ip}: has moved to {peer} by this host's configuration; take it out of `moved` there and reload first"
    )]
    Away {
        /// The wish.
        ip: Ipv4Addr,
        /// The peer.
        peer: String,
    },
    /// The wish is somebody's.
    #[error("address {ip}: held by container {holder}; delete that one first or choose another")]
    Taken {
        /// The wish.
        ip: Ipv4Addr,
        /// The holder's name.
        holder: String,
    },
    /// All are taken.
    #[error("no free address in {subnet}: all {count} are held; delete a container first")]
    Exhausted {
        /// This host's subnet.
        subnet: Ipv4Net,
        /// How many there are.
        count: u32,
    },
}

/// Whether a container of this host may have `ip`: one of the host's subnet, or one that has moved
/// here from somewhere else in the overlay network.
///
/// # Errors
///
/// [`AddressError`] with the reason.
pub fn check(config: &Config, ip: Ipv4Addr) -> Result<(), AddressError> {
    let overlay = &config.overlay;
    let net = if overlay.subnet.contains(&ip) {
        overlay.subnet
    } else {
        overlay.network
    };
    let unusable = |reason| Err(AddressError::Unusable { ip, net, reason });
    if !net.contains(&ip) {
        return unusable("outside of it");
    }
    if ip == overlay.network.network() || ip == overlay.network.broadcast() {
        return unusable("it stands for the whole network");
    }
    let peers = config.peers.iter().map(|peer| &peer.subnet);
    let mut subnets = std::iter::once(&overlay.subnet).chain(peers);
    if let Some(reason) = subnets.find_map(|subnet| reserved_in(subnet, ip)) {
        return unusable(reason);
    }
    match config.moved_to(ip) {
        Some(peer) => Err(AddressError::Away {
            ip,
            peer: peer.name.clone(),
        }),
        None => Ok(()),
    }
}

/// Checks a wished address against the configuration and the holders (address and name).
///
/// # Errors
///
/// [`AddressError`]: not usable, or taken.
pub fn claim<'a>(
    config: &Config,
    mut holders: impl Iterator<Item = (Ipv4Addr, &'a str)>,
    wish: Ipv4Addr,
) -> Result<Ipv4Addr, AddressError> {
    check(config, wish)?;
    match holders.find(|(ip, _)| *ip == wish) {
        Some((ip, holder)) => Err(AddressError::Taken {
            ip,
            holder: holder.to_owned(),
        }),
        None => Ok(wish),
    }
}

/// The next free address of `subnet` behind `last`, round the subnet's end. `taken` are those that
/// containers hold, here or where they have moved to.
///
/// # Errors
///
/// [`AddressError::Exhausted`].
pub fn next_free(
    subnet: Ipv4Net,
    taken: &HashSet<Ipv4Addr>,
    last: Option<Ipv4Addr>,
) -> Result<Ipv4Addr, AddressError> {
    let first = u32::from(subnet.network());
    let size = u32::from(subnet.broadcast()) - first + 1;
    let start = last
        .filter(|ip| subnet.contains(ip))
        .map_or(0, |ip| u32::from(ip) - first);
    (1..=size)
        .map(|step| Ipv4Addr::from(first + (start + step) % size))
        .find(|ip| reserved_in(&subnet, *ip).is_none() && !taken.contains(ip))
        .ok_or(AddressError::Exhausted {
            subnet,
            count: size.saturating_sub(3),
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use std::path::Path;

    use super::*;
    use crate::config::{DeviceFacts, HostFacts, parse};

    fn subnet(length: u8) -> Ipv4Net {
        Ipv4Net::new(Ipv4Addr::new(10, 42, 1, 0), length).unwrap()
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, 1, last)
    }

    #[test]
    fn the_first_is_behind_the_gateway() {
        assert_eq!(next_free(subnet(24), &HashSet::new(), None), Ok(ip(2)));
    }

    #[test]
    fn a_freed_address_rests_until_the_others_were_used() {
        let taken = HashSet::from([ip(2)]);
        assert_eq!(next_free(subnet(24), &taken, Some(ip(3))), Ok(ip(4)));
        assert_eq!(next_free(subnet(24), &taken, Some(ip(254))), Ok(ip(3)));
    }

    #[test]
    fn all_are_given_out_once_and_then_none() {
        let mut taken = HashSet::new();
        let mut last = None;
        for _ in 0..5 {
            let next = next_free(subnet(29), &taken, last).unwrap();
            assert!(taken.insert(next), "{next} twice");
            last = Some(next);
        }
        assert_eq!(taken, (2..=6).map(ip).collect());
        assert_eq!(
            next_free(subnet(29), &taken, last),
            Err(AddressError::Exhausted {
                subnet: subnet(29),
                count: 5
            })
        );
    }

    fn config() -> Config {
        let text = r#"
            [node]
            name = "alpha"
            [overlay]
            subnet = "10.42.1.0/24"
            network = "10.42.0.0/16"
            vni = 42
            [[peers]]
            name = "beta"
            address = "192.168.50.12"
            subnet = "10.42.2.0/24"
            moved = ["10.42.1.7", "10.42.3.7"]
        "#;
        let device = DeviceFacts {
            name: "eth1".into(),
            index: 3,
            mtu: 1500,
            mac: [2, 0, 0, 0, 0, 1],
            ipv4: vec!["192.168.50.11/24".parse().unwrap()],
            ..DeviceFacts::default()
        };
        let facts = HostFacts {
            hostname: "alpha".into(),
            default_route_device: Some("eth1".into()),
            devices: vec![device],
            chosen: None,
        };
        let file = parse(Path::new("config.toml"), text).unwrap();
        let peers = file.peers_in(&file.local_network(&facts));
        file.resolve(&facts, peers).unwrap()
    }

    #[test]
    fn wishes_are_checked() {
        let holders = || [(ip(5), "web")].into_iter();
        assert_eq!(claim(&config(), holders(), ip(6)), Ok(ip(6)));
        for bad in [ip(0), ip(1), ip(255), Ipv4Addr::new(10, 43, 2, 5)] {
            let refused = claim(&config(), holders(), bad);
            assert!(
                matches!(refused, Err(AddressError::Unusable { .. })),
                "{bad}: {refused:?}"
            );
        }
        let message = claim(&config(), holders(), ip(5)).unwrap_err().to_string();
        assert!(message.contains("web"), "{message}");
    }

    #[test]
    fn an_address_of_elsewhere_may_come_unless_it_is_known_to_be_somewhere() {
        let of_beta = Ipv4Addr::new(10, 42, 2, 7);
        assert_eq!(claim(&config(), [].into_iter(), of_beta), Ok(of_beta));
        for bad in [
            [10, 42, 2, 0],
            [10, 42, 2, 1],
            [10, 42, 2, 255],
            [10, 42, 255, 255],
        ] {
            let refused = check(&config(), bad.into());
            assert!(
                matches!(refused, Err(AddressError::Unusable { .. })),
                "{bad:?}: {refused:?}"
            );
        }
        for away in [ip(7), Ipv4Addr::new(10, 42, 3, 7)] {
            let message = check(&config(), away).unwrap_err().to_string();
            assert!(message.contains("moved to beta"), "{message}");
        }
    }

    #[test]
    fn a_last_address_of_another_subnet_is_no_start() {
        let elsewhere = Some(Ipv4Addr::new(10, 42, 9, 9));
        assert_eq!(next_free(subnet(24), &HashSet::new(), elsewhere), Ok(ip(2)));
    }
}
