//! What is to be done about the difference between the wanted overlay and the host. Pure.
//!
//! The order is the one in which the kernel accepts the steps and in which nothing that works is
//! broken on the way: devices before what hangs on them, removals before what they would drag along,
//! neighbours and forwarding entries before the routes that use them, the table last but for the
//! setting that conntrack brings with it.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use super::{
    names::{GROUP, OwnDevice},
    step::Step,
    sysctl,
    wanted::{OverlayFdb, OverlayNeighbour, OverlayRoute, WantedOverlay},
};
use crate::{
    netlink::{Link, Mac},
    nft::{ListedTable, difference},
};

/// An address of our bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedAddress {
    /// The address with its prefix length.
    pub address: Ipv4Net,
    /// Goes when the first address of its subnet goes.
    pub secondary: bool,
}

/// A neighbour of our VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedNeighbour {
    /// The address.
    pub address: Ipv4Addr,
    /// The link-layer address, if known.
    pub mac: Option<Mac>,
    /// Permanent, thus ours; the kernel's own entries are left to the kernel.
    pub permanent: bool,
}

/// A forwarding entry of our VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedFdb {
    /// The inner destination.
    pub mac: Mac,
    /// The underlay address.
    pub host: Option<Ipv4Addr>,
    /// Permanent.
    pub permanent: bool,
}

/// The host, as far as it is ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The device named like our bridge, whatever it is.
    pub bridge: Option<Link>,
    /// The device named like our VXLAN device, whatever it is.
    pub vxlan: Option<Link>,
    /// The device named like the one that carries nothing, whatever it is.
    pub headroom: Option<Link>,
    /// The bridge's IPv4 addresses.
    pub addresses: Vec<ObservedAddress>,
    /// The routes of our protocol by our devices.
    pub routes: Vec<OverlayRoute>,
    /// The VXLAN device's neighbours.
    pub neighbours: Vec<ObservedNeighbour>,
    /// The VXLAN device's forwarding entries.
    pub fdb: Vec<ObservedFdb>,
    /// Addresses that the bridge answers for.
    pub proxies: Vec<Ipv4Addr>,
    /// The values of the wanted settings; those that the kernel does not have are missing.
    pub settings: HashMap<String, String>,
    /// Whether the kernel has settings for IPv6.
    pub ipv6: bool,
    /// Our table.
    pub table: Option<ListedTable>,
}

/// The steps that lead from `observed` to `wanted`; none if they are the same.
#[must_use]
pub fn diff(wanted: &WantedOverlay, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    let bridge = observed.bridge.as_ref().filter(|link| {
        let usable = link.kind.as_deref() == Some("bridge");
        if !usable {
            steps.push(Step::DeleteDevice(OwnDevice::Bridge));
        }
        usable
    });
    let vxlan = observed.vxlan.as_ref().filter(|link| {
        let usable = link.vxlan == Some(wanted.vxlan.parameters);
        if !usable {
            steps.push(Step::DeleteDevice(OwnDevice::Vxlan));
        }
        usable
    });
    let headroom = observed.headroom.as_ref().filter(|link| {
        let usable = link.vxlan == Some(wanted.headroom.parameters) && !link.up;
        if !usable {
            steps.push(Step::DeleteDevice(OwnDevice::Headroom));
        }
        usable
    });
    if bridge.is_none() {
        steps.push(Step::CreateBridge(wanted.bridge.mac));
    }
    if vxlan.is_none() {
        steps.push(Step::CreateVxlan(wanted.vxlan));
    }
    // The bridge's MTU is set even after creation with the same: only what has been set stays when
    // ports come and go (net/bridge/br_if.c, br_mtu_auto_adjust).
    let created_mtu = vxlan.is_none().then_some(wanted.vxlan.mtu);
    links(
        &mut steps,
        OwnDevice::Bridge,
        bridge,
        (wanted.bridge.mac, wanted.bridge.mtu),
        None,
    );
    links(
        &mut steps,
        OwnDevice::Vxlan,
        vxlan,
        (wanted.vxlan.mac, wanted.vxlan.mtu),
        created_mtu,
    );
    settings(
        &mut steps,
        wanted,
        observed,
        &[bridge.is_none(), vxlan.is_none()],
    );
    keep_headroom(&mut steps, wanted, headroom, bridge);
    for (device, link) in [(OwnDevice::Bridge, bridge), (OwnDevice::Vxlan, vxlan)] {
        if link.is_none_or(|link| !link.up) {
            steps.push(Step::SetUp(device));
        }
    }
    let addresses_lost = addresses(&mut steps, wanted, observed, bridge.is_some());
    neighbours(&mut steps, wanted, observed, vxlan.is_some());
    forwarding(&mut steps, wanted, observed, vxlan.is_some());
    routes(&mut steps, wanted, observed, |route| {
        let device_lost = match route.device {
            OwnDevice::Bridge => bridge.is_none(),
            OwnDevice::Vxlan | OwnDevice::Headroom => vxlan.is_none(),
        };
        // Routes go with their device and with the address they name as their source
        // (net/ipv4/fib_frontend.c, fib_sync_down_addr).
        device_lost
            || route
                .source
                .is_some_and(|source| addresses_lost.contains(&source))
    });
    proxies(&mut steps, wanted, observed, bridge.is_some());
    let table = difference(&wanted.table, observed.table.as_ref());
    if !table.transaction.is_empty() {
        steps.push(Step::ReplaceTable(table.transaction));
    }
    let liberal = wanted
        .settings
        .iter()
        .filter(|s| s.key == sysctl::TCP_BE_LIBERAL);
    for setting in liberal {
        if observed.settings.get(&setting.key) != Some(&setting.value) {
            steps.push(Step::Set {
                setting: setting.clone(),
                before: None,
            });
        }
    }
    steps
}

/// The device that carries nothing: a port of the bridge, and down as it was made.
fn keep_headroom(
    steps: &mut Vec<Step>,
    wanted: &WantedOverlay,
    headroom: Option<&Link>,
    bridge: Option<&Link>,
) {
    if headroom.is_none() {
        steps.push(Step::CreateHeadroom(wanted.headroom));
    }
    let joined = headroom.zip(bridge);
    if joined.is_none_or(|(headroom, bridge)| headroom.controller != Some(bridge.index)) {
        steps.push(Step::JoinBridge(OwnDevice::Headroom));
    }
}

/// What of a device can be changed while it lives.
fn links(
    steps: &mut Vec<Step>,
    device: OwnDevice,
    link: Option<&Link>,
    (mac, mtu): (Mac, u32),
    created_mtu: Option<u32>,
) {
    if link.is_some_and(|link| link.controller.is_some()) {
        steps.push(Step::Release(device));
    }
    if link.is_some_and(|link| link.mac != Some(mac)) {
        steps.push(Step::SetMac(device, mac));
    }
    if link.map(|link| link.mtu).or(created_mtu) != Some(mtu) {
        steps.push(Step::SetMtu(device, mtu));
    }
    // Before the table, whose rules would take the device for somebody else's.
    if link.is_none_or(|link| link.group != GROUP) {
        steps.push(Step::SetGroup(device));
    }
}

/// The least MTU of a device with IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// The devices' settings, before the devices go up. The namespace-wide one comes later.
fn settings(
    steps: &mut Vec<Step>,
    wanted: &WantedOverlay,
    observed: &Observed,
    created: &[bool; 2],
) {
    // A device whose MTU is below the least of IPv6 has no settings for it (net/ipv6/addrconf.c,
    // `addrconf_notify`).
    let ipv6 = observed.ipv6 && wanted.bridge.mtu >= IPV6_MIN_MTU;
    for setting in wanted
        .settings
        .iter()
        .filter(|s| s.key != sysctl::TCP_BE_LIBERAL)
    {
        let fresh = [OwnDevice::Bridge, OwnDevice::Vxlan]
            .iter()
            .zip(created)
            .any(|(device, created)| {
                let of_device = format!("/{}/", wanted.names.of(*device));
                *created && setting.key.contains(&of_device)
            });
        // What was read belonged to a device that is being replaced.
        let value = observed.settings.get(&setting.key).filter(|_| !fresh);
        if value == Some(&setting.value) || (setting.optional && !ipv6) {
            continue;
        }
        steps.push(Step::Set {
            setting: setting.clone(),
            before: None,
        });
    }
}

/// Mends the bridge's addresses and says which ones disappear on the way.
fn addresses(
    steps: &mut Vec<Step>,
    wanted: &WantedOverlay,
    observed: &Observed,
    bridge_stays: bool,
) -> Vec<Ipv4Addr> {
    let wanted = wanted.bridge.address;
    let present: &[ObservedAddress] = if bridge_stays {
        &observed.addresses
    } else {
        &[]
    };
    let mut lost = Vec::new();
    if !bridge_stays {
        lost.extend(
            observed
                .addresses
                .iter()
                .map(|address| address.address.addr()),
        );
    }
    let unwanted = present.iter().filter(|address| address.address != wanted);
    for address in unwanted.clone() {
        steps.push(Step::DeleteAddress(address.address));
        lost.push(address.address.addr());
    }
    let kept = present.iter().any(|address| {
        // A secondary address is dragged along when the first one of its subnet is removed.
        address.address == wanted
            && !(address.secondary && unwanted.clone().any(|gone| !gone.secondary))
    });
    if !kept {
        lost.push(wanted.addr());
        steps.push(Step::AddAddress(wanted));
    }
    lost
}

fn neighbours(steps: &mut Vec<Step>, wanted: &WantedOverlay, observed: &Observed, stays: bool) {
    let present: &[ObservedNeighbour] = if stays { &observed.neighbours } else { &[] };
    let permanent = || present.iter().filter(|entry| entry.permanent);
    let addresses: HashSet<_> = wanted.neighbours.iter().map(|it| it.address).collect();
    for entry in permanent() {
        if !addresses.contains(&entry.address) {
            steps.push(Step::DeleteNeighbour(entry.address));
        }
    }
    let there: HashSet<_> = permanent().map(|it| (it.address, it.mac)).collect();
    for wanted @ OverlayNeighbour { address, mac } in &wanted.neighbours {
        if !there.contains(&(*address, Some(*mac))) {
            steps.push(Step::ReplaceNeighbour(*wanted));
        }
    }
}

fn forwarding(steps: &mut Vec<Step>, wanted: &WantedOverlay, observed: &Observed, stays: bool) {
    let present: &[ObservedFdb] = if stays { &observed.fdb } else { &[] };
    let macs: HashSet<Mac> = wanted.fdb.iter().map(|it| it.mac).collect();
    for entry in present {
        if !macs.contains(&entry.mac) {
            steps.push(Step::DeleteFdb(entry.mac, entry.host));
        }
    }
    let permanent = present.iter().filter(|entry| entry.permanent);
    let there: HashSet<_> = permanent.map(|it| (it.mac, it.host)).collect();
    for wanted @ OverlayFdb { mac, host } in &wanted.fdb {
        // A unicast address has one destination: the kernel takes more for the zero address and
        // for multicast only (drivers/net/vxlan/vxlan_core.c, vxlan_fdb_update_existing).
        if !there.contains(&(*mac, Some(*host))) {
            steps.push(Step::ReplaceFdb(*wanted));
        }
    }
}

/// After the routes: the kernel answers for an address only if its route leads elsewhere
/// (net/ipv4/arp.c, arp_process).
fn proxies(steps: &mut Vec<Step>, wanted: &WantedOverlay, observed: &Observed, stays: bool) {
    let present: &[Ipv4Addr] = if stays { &observed.proxies } else { &[] };
    let all: HashSet<_> = wanted.proxies.iter().collect();
    for address in present {
        if !all.contains(address) {
            steps.push(Step::DeleteProxy(*address));
        }
    }
    let there: HashSet<_> = present.iter().collect();
    for address in &wanted.proxies {
        if !there.contains(address) {
            steps.push(Step::AddProxy(*address));
        }
    }
}

fn routes(
    steps: &mut Vec<Step>,
    wanted: &WantedOverlay,
    observed: &Observed,
    lost: impl Fn(&OverlayRoute) -> bool,
) {
    let present: Vec<&OverlayRoute> = observed
        .routes
        .iter()
        .filter(|route| !lost(route))
        .collect();
    // The kernel overwrites the one route that is the same in these three
    // (net/ipv4/fib_trie.c, fib_table_insert).
    let key = |route: &OverlayRoute| (route.destination, route.metric, route.table);
    let wanted_keys: HashSet<_> = wanted.routes.iter().map(key).collect();
    for route in &present {
        if !wanted_keys.contains(&key(route)) {
            steps.push(Step::DeleteRoute(**route));
        }
    }
    let there: HashSet<&OverlayRoute> = present.iter().copied().collect();
    let keys: HashSet<_> = present.iter().map(|route| key(route)).collect();
    for route in &wanted.routes {
        if there.contains(route) {
            continue;
        }
        // Only our own is ever overwritten: another program's route to the same destination is
        // refused by the kernel and reported.
        steps.push(if keys.contains(&key(route)) {
            Step::ReplaceRoute(*route)
        } else {
            Step::AddRoute(*route)
        });
    }
}

#[cfg(test)]
mod tests;
