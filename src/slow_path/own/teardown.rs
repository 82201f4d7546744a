//! Removes the slow path from the host.

use std::fmt;

use super::{
    conflicts::whose,
    names::{DeviceNames, OwnDevice, TABLE},
    network_route,
    reconcile::{OverlayError, absent_is_done, one_line},
    sysctl::{Sysctls, TCP_BE_LIBERAL},
};
use crate::{
    netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL, RouteFilter},
    nft::{Transaction, run},
};

/// Something could not be removed; everything else was.
#[derive(Debug, thiserror::Error)]
pub struct OverlayErrors(pub Vec<OverlayError>);

impl fmt::Display for OverlayErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        one_line(f, &self.0)
    }
}

/// Removes what [`reconcile`](super::reconcile::reconcile) made: the table, the routes by our
/// devices, the VXLAN devices with their neighbours and forwarding entries, and the bridge. What is not
/// there is done already. `names` are the devices'. `tcp_be_liberal` is the value kept from before the overlay, which is
/// restored; none leaves the setting alone. The containers' devices are not ours to remove: they
/// lose their bridge.
///
/// # Errors
/// [`OverlayErrors`] with everything that failed, after everything was tried.
pub async fn teardown(
    netlink: &Netlink,
    sysctls: &Sysctls,
    names: &DeviceNames,
    tcp_be_liberal: Option<u8>,
) -> Result<(), OverlayErrors> {
    let mut errors: Vec<OverlayError> = Vec::new();
    // Before the table goes: with its last rule conntrack may leave the namespace.
    if let Some(value) = tcp_be_liberal {
        errors.extend(restore(sysctls, value).err());
    }
    let removal = Transaction::removal(TABLE);
    let operation = format!("remove table {TABLE}");
    let removed = run::apply(&removal, &operation).await;
    errors.extend(removed.err().map(OverlayError::from));
    let route = network_route::remove(netlink).await;
    errors.extend(route.err().map(OverlayError::from));
    match netlink.links().await {
        Ok(links) => {
            for device in [OwnDevice::Vxlan, OwnDevice::Headroom, OwnDevice::Bridge] {
                let Some(link) = links.iter().find(|link| link.name == names.of(device)) else {
                    continue;
                };
                // Somebody else's by the name of ours stays.
                if whose(names, device, link, &links).is_some() {
                    continue;
                }
                for error in remove(netlink, device, link.index).await {
                    errors.push(error.into());
                }
            }
        }
        Err(error) => errors.push(error.into()),
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(OverlayErrors(errors))
    }
}

fn restore(sysctls: &Sysctls, value: u8) -> Result<(), OverlayError> {
    if sysctls.tcp_be_liberal()?.is_some_and(|now| now != value) {
        sysctls.write(TCP_BE_LIBERAL, &value.to_string())?;
    }
    Ok(())
}

/// Removes what hangs on a device and then the device. The kernel would remove the former with the
/// latter; should the device resist, at least nothing is sent by it any more.
async fn remove(netlink: &Netlink, device: OwnDevice, index: u32) -> Vec<NetlinkError> {
    let mut errors = Vec::new();
    match netlink.routes(RouteFilter::Protocol(ROUTE_PROTOCOL)).await {
        Ok(routes) => {
            for route in routes.iter().filter(|route| route.device == index) {
                errors.extend(absent_is_done(netlink.delete_route(route).await).err());
            }
        }
        Err(error) => errors.push(error),
    }
    if device == OwnDevice::Vxlan {
        match netlink.neighbours_of(index).await {
            Ok(all) => {
                for entry in all.iter().filter(|entry| entry.permanent) {
                    let deleted = netlink.delete_neighbour(index, entry.address).await;
                    errors.extend(absent_is_done(deleted).err());
                }
            }
            Err(error) => errors.push(error),
        }
        match netlink.fdb(index).await {
            Ok(entries) => {
                for entry in entries {
                    let deleted = netlink.delete_fdb(index, entry.mac, entry.host).await;
                    errors.extend(absent_is_done(deleted).err());
                }
            }
            Err(error) => errors.push(error),
        }
    }
    errors.extend(absent_is_done(netlink.delete_link(index).await).err());
    errors
}
