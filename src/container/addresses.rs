//! Which address a container gets.

use std::{collections::HashSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use thiserror::Error;

/// No address can be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    /// The wish is not an address a container may have.
    #[error("address {ip}: not a container address of {subnet}: {reason}")]
    Unusable {
        /// The wish.
        ip: Ipv4Addr,
        /// This host's subnet.
        subnet: Ipv4Net,
        /// Why not.
        reason: &'static str,
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

/// Whether a container may have `ip` in `subnet` with `gateway`.
fn check(subnet: Ipv4Net, gateway: Ipv4Addr, ip: Ipv4Addr) -> Result<(), AddressError> {
    let unusable = |reason| Err(AddressError::Unusable { ip, subnet, reason });
    if !subnet.contains(&ip) {
        unusable("outside of it")
    } else if ip == gateway {
        unusable("the gateway has it")
    } else if ip == subnet.network() {
        unusable("the network's own address")
    } else if ip == subnet.broadcast() {
        unusable("the broadcast address")
    } else {
        Ok(())
    }
}

/// Checks a wished address against the holders (address and name).
///
/// # Errors
///
/// [`AddressError`]: not usable, or taken.
pub fn claim<'a>(
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    mut holders: impl Iterator<Item = (Ipv4Addr, &'a str)>,
    wish: Ipv4Addr,
) -> Result<Ipv4Addr, AddressError> {
    check(subnet, gateway, wish)?;
    match holders.find(|(ip, _)| *ip == wish) {
        Some((ip, holder)) => Err(AddressError::Taken {
            ip,
            holder: holder.to_owned(),
        }),
        None => Ok(wish),
    }
}

/// The next free address behind `last`, round the subnet's end.
///
/// # Errors
///
/// [`AddressError::Exhausted`].
pub fn next_free(
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
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
        .find(|ip| check(subnet, gateway, *ip).is_ok() && !taken.contains(ip))
        .ok_or(AddressError::Exhausted {
            subnet,
            count: size.saturating_sub(3),
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 1);

    fn subnet(length: u8) -> Ipv4Net {
        Ipv4Net::new(Ipv4Addr::new(10, 42, 1, 0), length).unwrap()
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, 1, last)
    }

    #[test]
    fn the_first_is_behind_the_gateway() {
        assert_eq!(
            next_free(subnet(24), GATEWAY, &HashSet::new(), None),
            Ok(ip(2))
        );
    }

    #[test]
    fn a_freed_address_rests_until_the_others_were_used() {
        let taken = HashSet::from([ip(2)]);
        assert_eq!(
            next_free(subnet(24), GATEWAY, &taken, Some(ip(3))),
            Ok(ip(4))
        );
        assert_eq!(
            next_free(subnet(24), GATEWAY, &taken, Some(ip(254))),
            Ok(ip(3))
        );
    }

    #[test]
    fn all_are_given_out_once_and_then_none() {
        let mut taken = HashSet::new();
        let mut last = None;
        for _ in 0..5 {
            let next = next_free(subnet(29), GATEWAY, &taken, last).unwrap();
            assert!(taken.insert(next), "{next} twice");
            last = Some(next);
        }
        assert_eq!(taken, (2..=6).map(ip).collect());
        assert_eq!(
            next_free(subnet(29), GATEWAY, &taken, last),
            Err(AddressError::Exhausted {
                subnet: subnet(29),
                count: 5
            })
        );
    }

    #[test]
    fn wishes_are_checked() {
        let holders = || [(ip(5), "web")].into_iter();
        assert_eq!(claim(subnet(24), GATEWAY, holders(), ip(6)), Ok(ip(6)));
        for bad in [ip(0), ip(1), ip(255), Ipv4Addr::new(10, 42, 2, 5)] {
            let refused = claim(subnet(24), GATEWAY, holders(), bad);
            assert!(
                matches!(refused, Err(AddressError::Unusable { .. })),
                "{bad}: {refused:?}"
            );
        }
        let message = claim(subnet(24), GATEWAY, holders(), ip(5))
            .unwrap_err()
            .to_string();
        assert!(message.contains("web"), "{message}");
    }

    #[test]
    fn a_last_address_of_another_subnet_is_no_start() {
        let elsewhere = Some(Ipv4Addr::new(10, 42, 9, 9));
        assert_eq!(
            next_free(subnet(24), GATEWAY, &HashSet::new(), elsewhere),
            Ok(ip(2))
        );
    }
}
