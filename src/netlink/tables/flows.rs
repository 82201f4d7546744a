//! Sets of flows, as far as they are to be forgotten.

use std::net::Ipv4Addr;

use nix::errno::Errno;
use tokio::task::spawn_blocking;

use super::{
    super::{
        NetlinkError,
        conntrack::{attribute_of, attributes},
    },
    messages::{DATA_VALUE, DELETE_ELEMENT, ELEMENT, ELEMENT_KEY, element_message, family_number},
    refused,
    socket::Tables,
};

/// Removes from a set of flows, keyed by two addresses and whatever follows, those of `address`. Returns
/// how many there were; none as well where there is no such set.
///
/// # Errors
/// [`NetlinkError`]: some may be left.
pub async fn forget_flows(
    family: &'static str,
    table: &'static str,
    sets: Vec<&'static str>,
    address: Ipv4Addr,
) -> Result<usize, NetlinkError> {
    // A set may be large.
    match spawn_blocking(move || forget(family, table, &sets, address)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(NetlinkError::closed(format_args!(
            "forget flows of {address}"
        ))),
    }
}

fn forget(
    family: &str,
    table: &str,
    sets: &[&str],
    address: Ipv4Addr,
) -> Result<usize, NetlinkError> {
    let number = family_number(family);
    let failed = |errno| {
        refused(
            format!("forget flows of {address} in table {family} {table}"),
            errno,
        )
    };
    let mut socket = Tables::open()?;
    let mut forgotten = 0;
    for set in sets {
        let elements = match socket.elements(number, table, set) {
            Ok(elements) => elements,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        for element in elements.iter().filter(|element| has_end(element, address)) {
            let key = attributes(element).find(|(kind, _)| *kind == ELEMENT_KEY);
            let key = attribute_of(ELEMENT_KEY, key.map_or(&[], |(_, key)| key));
            let delete = element_message(DELETE_ELEMENT, table, set, &attribute_of(ELEMENT, &key));
            match socket.transact(&[(number, delete)], None) {
                // It has gone by itself.
                Ok(()) | Err(Errno::ENOENT) => forgotten += 1,
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    Ok(forgotten)
}

/// Whether a flow's key begins with the address, or has it in second place.
fn has_end(element: &[u8], address: Ipv4Addr) -> bool {
    let key = attributes(element).find(|(kind, _)| *kind == ELEMENT_KEY);
    let value = key.and_then(|(_, key)| attributes(key).find(|(kind, _)| *kind == DATA_VALUE));
    let mut ends = value.map_or(&[][..], |(_, value)| value).chunks(4).take(2);
    ends.any(|end| end == address.octets())
}
