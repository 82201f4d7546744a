//! Makes the host what the configuration wants, and says what it took.

use std::{collections::HashMap, fmt};

use super::{
    conflicts::{self, Conflict},
    diff::{Observed, ObservedAddress, ObservedFdb, ObservedNeighbour, diff},
    names::{self, DeviceNames, GROUP, OwnDevice},
    step::Step,
    sysctl::{SysctlError, Sysctls},
    wanted::{OverlayRoute, WantedOverlay},
};
use crate::{
    netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL, Route, RouteFilter, RouteReach},
    nft::{NftError, run},
};

/// One step, or the look at the host before it, failed.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// By rtnetlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// By nft.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// By /proc/sys.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// Somebody else has what it asks for.
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// Some steps could not be taken; the others were.
#[derive(Debug, thiserror::Error)]
pub struct ReconcileErrors {
    /// The steps that succeeded, in order.
    pub done: Vec<Step>,
    /// What failed, in order. Not empty.
    pub failures: Vec<OverlayError>,
}

impl fmt::Display for ReconcileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        one_line(f, &self.failures)
    }
}

/// Errors, separated by semicolons.
pub(super) fn one_line<E: fmt::Display>(f: &mut fmt::Formatter<'_>, errors: &[E]) -> fmt::Result {
    for (position, error) in errors.iter().enumerate() {
        if position > 0 {
            f.write_str("; ")?;
        }
        write!(f, "{error}")?;
    }
    Ok(())
}

/// Looks at the host, computes the difference and applies it.
///
/// `netlink` and the calling thread must be in the same network namespace: nft and /proc/sys follow
/// the thread. Returns the steps taken, none if the host was as wanted.
///
/// # Errors
/// [`ReconcileErrors`]. A step that fails does not keep the others from being taken, unless it is
/// one that makes or removes a device.
pub async fn reconcile(
    netlink: &Netlink,
    sysctls: &Sysctls,
    wanted: &WantedOverlay,
) -> Result<Vec<Step>, ReconcileErrors> {
    let mut done = Vec::new();
    let mut failures = Vec::new();
    let steps = match observe(netlink, sysctls, wanted).await {
        Ok(observed) => {
            // What is somebody else's is not taken over, and certainly not deleted.
            let foreign = foreign(&wanted.names, &observed);
            if !foreign.is_empty() {
                failures.extend(foreign.into_iter().map(OverlayError::from));
                return Err(ReconcileErrors { done, failures });
            }
            diff(wanted, &observed)
        }
        Err(error) => {
            failures.push(error);
            return Err(ReconcileErrors { done, failures });
        }
    };
    let names = &wanted.names;
    let mut devices = Devices::new(names);
    for mut step in steps {
        let founds_others = matches!(
            step,
            Step::DeleteDevice(_)
                | Step::CreateBridge(_)
                | Step::CreateVxlan(_)
                | Step::CreateHeadroom(_)
        );
        let applied = apply(netlink, sysctls, names, &mut devices, &mut step).await;
        if founds_others || applied.is_err() {
            devices = Devices::new(names);
        }
        match applied {
            Ok(()) => done.push(step),
            Err(error) => {
                failures.push(explain(netlink, wanted, &step, error).await);
                if founds_others {
                    break;
                }
            }
        }
    }
    if failures.is_empty() {
        Ok(done)
    } else {
        Err(ReconcileErrors { done, failures })
    }
}

/// A step's failure with the holder of what it asked for, where there is one.
async fn explain(
    netlink: &Netlink,
    wanted: &WantedOverlay,
    step: &Step,
    error: OverlayError,
) -> OverlayError {
    let OverlayError::Netlink(refused) = &error else {
        return error;
    };
    let holder = conflicts::behind(netlink, wanted, step, refused).await;
    holder.map_or(error, OverlayError::from)
}

/// Looks at what on the host is ours.
///
/// # Errors
/// [`OverlayError`] when a table cannot be read.
pub async fn observe(
    netlink: &Netlink,
    sysctls: &Sysctls,
    wanted: &WantedOverlay,
) -> Result<Observed, OverlayError> {
    // Three of what may be hundreds of devices, so not by a list of all.
    let names = &wanted.names;
    let bridge = netlink.link_by_name(&names.bridge).await?;
    let vxlan = netlink.link_by_name(&names.vxlan).await?;
    let headroom = netlink.link_by_name(&names.headroom).await?;
    let bridge_index = bridge.as_ref().map(|link| link.index);
    let vxlan_index = vxlan.as_ref().map(|link| link.index);

    let mut observed = Observed {
        ipv6: sysctls.has_ipv6(),
        table: run::list(names::TABLE).await?,
        settings: settings(sysctls, wanted)?,
        ..Observed::default()
    };
    let routes = netlink
        .routes(RouteFilter::Protocol(ROUTE_PROTOCOL))
        .await?;
    observed.routes = routes
        .iter()
        .filter_map(|route| {
            let device = match Some(route.device) {
                index if index == bridge_index => OwnDevice::Bridge,
                index if index == vxlan_index => OwnDevice::Vxlan,
                _ => return None,
            };
            Some(overlay_route(route, device))
        })
        .collect();
    if let Some(device) = bridge_index {
        observed.proxies = netlink.proxy_neighbours(device).await?;
        let addresses = netlink.addresses_of(device).await?;
        observed.addresses = addresses
            .iter()
            .map(|entry| ObservedAddress {
                address: entry.address,
                secondary: entry.secondary,
            })
            .collect();
    }
    if let Some(device) = vxlan_index {
        let neighbours = netlink.neighbours_of(device).await?;
        observed.neighbours = neighbours
            .iter()
            .map(|entry| ObservedNeighbour {
                address: entry.address,
                mac: entry.mac,
                permanent: entry.permanent,
            })
            .collect();
        observed.fdb = netlink
            .fdb(device)
            .await?
            .iter()
            .map(|entry| ObservedFdb {
                mac: entry.mac,
                host: entry.host,
                permanent: entry.permanent,
            })
            .collect();
    }
    observed.bridge = bridge;
    observed.vxlan = vxlan;
    observed.headroom = headroom;
    Ok(observed)
}

/// Devices with the names of ours that are of another kind.
fn foreign(names: &DeviceNames, observed: &Observed) -> Vec<Conflict> {
    let kinds = [
        (OwnDevice::Bridge, &observed.bridge, "bridge"),
        (OwnDevice::Vxlan, &observed.vxlan, "vxlan"),
        (OwnDevice::Headroom, &observed.headroom, "vxlan"),
    ];
    kinds
        .into_iter()
        .filter_map(|(device, link, kind)| {
            let link = link
                .as_ref()
                .filter(|link| link.kind.as_deref() != Some(kind))?;
            conflicts::name(names, device, std::slice::from_ref(link))
        })
        .collect()
}

fn settings(
    sysctls: &Sysctls,
    wanted: &WantedOverlay,
) -> Result<HashMap<String, String>, SysctlError> {
    let mut present = HashMap::new();
    for setting in &wanted.settings {
        if let Some(value) = sysctls.read(&setting.key)? {
            present.insert(setting.key.clone(), value);
        }
    }
    Ok(present)
}

/// Our devices' interface indices as far as they were asked for: thousands of steps are about the
/// same two devices. Forgotten when a device is made or removed, and when a step fails.
#[derive(Debug)]
struct Devices<'a> {
    names: &'a DeviceNames,
    indices: HashMap<OwnDevice, u32>,
}

impl<'a> Devices<'a> {
    fn new(names: &'a DeviceNames) -> Self {
        Self {
            names,
            indices: HashMap::new(),
        }
    }

    async fn index(&mut self, netlink: &Netlink, device: OwnDevice) -> Result<u32, NetlinkError> {
        if let Some(index) = self.indices.get(&device) {
            return Ok(*index);
        }
        let index = netlink.index_of(self.names.of(device)).await?;
        self.indices.insert(device, index);
        Ok(index)
    }
}

async fn apply(
    netlink: &Netlink,
    sysctls: &Sysctls,
    names: &DeviceNames,
    devices: &mut Devices<'_>,
    step: &mut Step,
) -> Result<(), OverlayError> {
    let mut index = async |device: OwnDevice| devices.index(netlink, device).await;
    match step {
        Step::DeleteDevice(device) => {
            let deleted = netlink.delete_link(index(*device).await?).await;
            absent_is_done(deleted)?;
        }
        Step::CreateBridge(mac) => netlink.create_bridge(&names.bridge, *mac).await?,
        Step::CreateVxlan(vxlan) => {
            let created =
                netlink.create_vxlan(&names.vxlan, vxlan.mac, vxlan.mtu, vxlan.parameters);
            created.await?;
        }
        Step::CreateHeadroom(headroom) => {
            let created = netlink.create_vxlan(
                &names.headroom,
                headroom.mac,
                headroom.mtu,
                headroom.parameters,
            );
            created.await?;
        }
        Step::JoinBridge(device) => {
            let bridge = index(OwnDevice::Bridge).await?;
            netlink
                .set_controller(index(*device).await?, Some(bridge))
                .await?;
        }
        Step::Release(device) => netlink.set_controller(index(*device).await?, None).await?,
        Step::SetMac(device, mac) => netlink.set_mac(index(*device).await?, *mac).await?,
        Step::SetMtu(device, mtu) => netlink.set_mtu(index(*device).await?, *mtu).await?,
        Step::SetGroup(device) => {
            netlink.set_group(index(*device).await?, GROUP).await?;
        }
        Step::SetUp(device) => netlink.set_up(index(*device).await?, true).await?,
        Step::Set { setting, before } => {
            // Read now, not when the host was looked at: conntrack's settings come with the table.
            *before = sysctls.read(&setting.key)?;
            sysctls.write(&setting.key, &setting.value)?;
        }
        Step::DeleteAddress(address) => {
            let device = index(OwnDevice::Bridge).await?;
            absent_is_done(netlink.delete_address(device, *address).await)?;
        }
        Step::AddAddress(address) => {
            netlink
                .add_address(index(OwnDevice::Bridge).await?, *address)
                .await?;
        }
        Step::DeleteRoute(route) => {
            let route = kernel_route(route, index(route.device).await?);
            absent_is_done(netlink.delete_route(&route).await)?;
        }
        Step::AddRoute(route) => {
            let route = kernel_route(route, index(route.device).await?);
            netlink.add_route(&route).await?;
        }
        Step::ReplaceRoute(route) => {
            let route = kernel_route(route, index(route.device).await?);
            netlink.replace_route(&route).await?;
        }
        Step::DeleteNeighbour(address) => {
            let device = index(OwnDevice::Vxlan).await?;
            absent_is_done(netlink.delete_neighbour(device, *address).await)?;
        }
        Step::ReplaceNeighbour(neighbour) => {
            let device = index(OwnDevice::Vxlan).await?;
            netlink
                .replace_neighbour(device, neighbour.address, neighbour.mac)
                .await?;
        }
        Step::DeleteFdb(mac, host) => {
            let device = index(OwnDevice::Vxlan).await?;
            absent_is_done(netlink.delete_fdb(device, *mac, *host).await)?;
        }
        Step::ReplaceFdb(entry) => {
            let device = index(OwnDevice::Vxlan).await?;
            netlink.replace_fdb(device, entry.mac, entry.host).await?;
        }
        Step::DeleteProxy(address) => {
            let device = index(OwnDevice::Bridge).await?;
            absent_is_done(netlink.delete_proxy_neighbour(device, *address).await)?;
        }
        Step::AddProxy(address) => {
            let device = index(OwnDevice::Bridge).await?;
            netlink.add_proxy_neighbour(device, *address).await?;
        }
        Step::ReplaceTable(transaction) => {
            let operation = format!("replace table {}", names::TABLE);
            run::apply(transaction, &operation).await?;
        }
    }
    Ok(())
}

/// Somebody else was quicker to remove what we wanted removed.
pub(super) fn absent_is_done(outcome: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match outcome {
        Err(error) if error.is_absent() => Ok(()),
        outcome => outcome,
    }
}

fn overlay_route(route: &Route, device: OwnDevice) -> OverlayRoute {
    OverlayRoute {
        destination: route.destination,
        gateway: route.gateway,
        device,
        onlink: route.onlink,
        source: route.source,
        metric: route.metric,
        table: route.table,
    }
}

fn kernel_route(route: &OverlayRoute, device: u32) -> Route {
    Route {
        destination: route.destination,
        gateway: route.gateway,
        device,
        onlink: route.onlink,
        source: route.source,
        // Without a next hop the destination is on the link itself.
        reach: match route.gateway {
            Some(_) => RouteReach::Universe,
            None => RouteReach::Link,
        },
        metric: route.metric,
        table: route.table,
        protocol: ROUTE_PROTOCOL,
    }
}
