//! Who is behind which port of the bridge, and which address is whose: told to the kernel by the daemon, learned
//! from nobody.

use std::collections::{HashMap, HashSet};

use tracing::info;

use super::network::Network;
use crate::{
    coherence::Changed,
    container::devices::container_mac,
    netlink::{BridgeEntry, Mac, Netlink, NetlinkError, format_mac},
    slow_path::own::names::BRIDGE,
};

/// Makes the bridge's forwarding entries and the host's neighbours behind it those of the containers.
///
/// # Errors
///
/// [`NetlinkError`].
pub async fn mend(netlink: &Netlink, network: &Network) -> Result<Changed, NetlinkError> {
    let bridge = match netlink.index_of(BRIDGE).await {
        Ok(bridge) => bridge,
        // It is mended before; if it has gone since, so has all that is on it.
        Err(error) if error.is_absent() => return Ok(Changed::nothing()),
        Err(error) => return Err(error),
    };
    let entries = mend_entries(netlink, network, bridge).await?;
    Ok(entries.and(mend_neighbours(netlink, network, bridge).await?))
}

async fn mend_entries(
    netlink: &Netlink,
    network: &Network,
    bridge: u32,
) -> Result<Changed, NetlinkError> {
    let ports = network.connected();
    let ports: HashMap<u32, Mac> = ports
        .map(|(_, container, device)| (device.index, container_mac(container.ip)))
        .collect();
    let present = netlink.bridge_entries(bridge).await?;
    let (lacking, foreign) = differences(&ports, &present);
    for (port, mac) in &lacking {
        netlink.fix_bridge_entry(*port, *mac).await?;
        info!("fix forwarding entry {} of {BRIDGE}", format_mac(*mac));
    }
    for (port, mac) in &foreign {
        absent_is_done(netlink.delete_bridge_entry(*port, *mac).await)?;
        info!("delete forwarding entry {} of {BRIDGE}", format_mac(*mac));
    }
    Ok(Changed::mended(!lacking.is_empty() || !foreign.is_empty()))
}

async fn mend_neighbours(
    netlink: &Netlink,
    network: &Network,
    bridge: u32,
) -> Result<Changed, NetlinkError> {
    let neighbours = netlink.neighbours().await?;
    let mut permanent: HashMap<_, _> = neighbours
        .iter()
        .filter(|entry| entry.device == bridge && entry.permanent)
        .map(|entry| (entry.address, entry.mac))
        .collect();
    let mut changed = false;
    // Of one that is down inside the host asks, and tells senders that there is nobody; no other
    // container can answer for it.
    let speaking = network.connected();
    for (_, container, _) in speaking.filter(|(name, ..)| !network.is_silent(name)) {
        let known = permanent.remove(&container.ip).flatten();
        let mac = container_mac(container.ip);
        if known == Some(mac) {
            continue;
        }
        netlink.replace_neighbour(bridge, container.ip, mac).await?;
        info!(
            "replace neighbour {} lladdr {} dev {BRIDGE}",
            container.ip,
            format_mac(mac)
        );
        changed = true;
    }
    for address in permanent.into_keys() {
        absent_is_done(netlink.delete_neighbour(bridge, address).await)?;
        info!("delete neighbour {address} dev {BRIDGE}");
        changed = true;
    }
    Ok(Changed::mended(changed))
}

fn absent_is_done(outcome: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match outcome {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
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
