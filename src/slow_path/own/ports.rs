//! Who is behind which port of the bridge, and which address is whose: told to the kernel by the daemon, learned
//! from nobody.

use std::collections::{HashMap, HashSet};

use tracing::info;

use super::reconcile::absent_is_done;
use crate::{
    coherence::Changed,
    netlink::{BridgeEntry, Mac, Netlink, NetlinkError, format_mac},
    slow_path::Endpoint,
};

/// Makes the forwarding entries of the bridge called `bridge`, and the host's neighbours behind it, those of
/// the containers whose devices are known.
///
/// # Errors
///
/// [`NetlinkError`].
pub(super) async fn mend(
    netlink: &Netlink,
    bridge: &str,
    endpoints: &[Endpoint],
) -> Result<Changed, NetlinkError> {
    let index = match netlink.index_of(bridge).await {
        Ok(index) => index,
        // It is mended before; if it has gone since, so has all that is on it.
        Err(error) if error.is_absent() => return Ok(Changed::nothing()),
        Err(error) => return Err(error),
    };
    let bridge = (bridge, index);
    let entries = mend_entries(netlink, endpoints, bridge).await?;
    Ok(entries.and(mend_neighbours(netlink, endpoints, bridge).await?))
}

async fn mend_entries(
    netlink: &Netlink,
    endpoints: &[Endpoint],
    (bridge, index): (&str, u32),
) -> Result<Changed, NetlinkError> {
    let ports = endpoints.iter();
    let ports: HashMap<u32, Mac> = ports.filter_map(|it| Some((it.index?, it.mac))).collect();
    let present = netlink.bridge_entries(index).await?;
    let (lacking, foreign) = differences(&ports, &present);
    for (port, mac) in &lacking {
        netlink.fix_bridge_entry(*port, *mac).await?;
        info!("fix forwarding entry {} of {bridge}", format_mac(*mac));
    }
    for (port, mac) in &foreign {
        absent_is_done(netlink.delete_bridge_entry(*port, *mac).await)?;
        info!("delete forwarding entry {} of {bridge}", format_mac(*mac));
    }
    Ok(Changed::mended(!lacking.is_empty() || !foreign.is_empty()))
}

async fn mend_neighbours(
    netlink: &Netlink,
    endpoints: &[Endpoint],
    (bridge, index): (&str, u32),
) -> Result<Changed, NetlinkError> {
    let neighbours = netlink.neighbours().await?;
    let mut permanent: HashMap<_, _> = neighbours
        .iter()
        .filter(|entry| entry.device == index && entry.permanent)
        .map(|entry| (entry.address, entry.mac))
        .collect();
    let mut changed = false;
    // Of one that is down inside the host asks, and tells senders that there is nobody; no other
    // container can answer for it.
    let connected = endpoints.iter().filter(|it| it.index.is_some());
    for Endpoint { mac, ip, .. } in connected.filter(|it| !it.silent) {
        let known = permanent.remove(ip).flatten();
        if known == Some(*mac) {
            continue;
        }
        netlink.replace_neighbour(index, *ip, *mac).await?;
        info!(
            "replace neighbour {ip} lladdr {} dev {bridge}",
            format_mac(*mac)
        );
        changed = true;
    }
    for address in permanent.into_keys() {
        absent_is_done(netlink.delete_neighbour(index, address).await)?;
        info!("delete neighbour {address} dev {bridge}");
        changed = true;
    }
    Ok(Changed::mended(changed))
}

/// Ports with their addresses.
type Places = Vec<(u32, Mac)>;

/// Which entries lack, and which are at a container's port though they are no address of its.
fn differences(ports: &HashMap<u32, Mac>, present: &[BridgeEntry]) -> (Places, Places) {
    let fixed: HashSet<(u32, Mac)> = present
        .iter()
        .filter(|entry| entry.fixed)
        .map(|entry| (entry.port, entry.mac))
        .collect();
    let mut lacking: Places = ports
        .iter()
        .map(|(port, mac)| (*port, *mac))
        .filter(|place| !fixed.contains(place))
        .collect();
    lacking.sort_unstable();
    // Putting an address where it belongs takes it away from where it is.
    let moving: HashSet<Mac> = lacking.iter().map(|(_, mac)| *mac).collect();
    let foreign = present
        .iter()
        .filter(|entry| !entry.local && !moving.contains(&entry.mac))
        .filter(|entry| ports.get(&entry.port).is_some_and(|mac| *mac != entry.mac))
        .map(|entry| (entry.port, entry.mac))
        .collect();
    (lacking, foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_fixed_to_its_port_and_no_other_is_there() {
        let mac = |last| [0x0a, 0x63, 10, 42, 1, last];
        let entry = |port, last, local, fixed| BridgeEntry {
            port,
            mac: mac(last),
            local,
            fixed,
        };
        let ports = HashMap::from([(7, mac(2)), (8, mac(3)), (9, mac(4))]);
        let present = [
            entry(7, 2, false, true),
            entry(7, 99, true, false),
            // Stolen, and learned.
            entry(7, 3, false, true),
            entry(9, 4, false, false),
            entry(9, 98, false, false),
            // Somebody else's port.
            entry(20, 97, false, false),
        ];
        let (lacking, foreign) = differences(&ports, &present);
        assert_eq!(lacking, [(8, mac(3)), (9, mac(4))]);
        assert_eq!(foreign, [(9, mac(98))]);
    }
}
