//! What must hold between the values of the file, each of them right by itself.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::fault::{Faults, refuse};
use super::schema::{OverlayDraft, PeerDraft};
use super::table::At;
use super::value;

pub(super) fn check_overlay(overlay: &OverlayDraft, faults: &mut Faults) {
    if let Some(subnet) = &overlay.subnet {
        check_inside_overlay("overlay.subnet", subnet, overlay.network.as_ref(), faults);
    }
}

pub(super) fn check_peers(peers: &[PeerDraft], overlay: &OverlayDraft, faults: &mut Faults) {
    for (index, peer) in peers.iter().enumerate() {
        let earlier = peers.get(..index).unwrap_or_default();
        if let Some(name) = &peer.name {
            check_new_name(name, earlier, faults);
        }
        if let Some(address) = &peer.address {
            check_outside_overlay("peers.address", address, overlay.network.as_ref(), faults);
            check_new_address(address, earlier, faults);
        }
        if let Some(subnet) = &peer.subnet {
            check_inside_overlay("peers.subnet", subnet, overlay.network.as_ref(), faults);
            check_free_subnet(subnet, overlay.subnet.as_ref(), earlier, faults);
        }
    }
    check_moved(peers, overlay, faults);
}

/// Addresses that have moved: each inside the overlay network, one that a container can have, and
/// behind one host.
fn check_moved(peers: &[PeerDraft], overlay: &OverlayDraft, faults: &mut Faults) {
    let moved = || {
        peers
            .iter()
            .flat_map(|peer| peer.moved.iter().map(move |address| (peer, address)))
    };
    for (index, (peer, address)) in moved().enumerate() {
        let shown = address.value.to_string();
        let mut fault = |why: String, remedy: &str| {
            faults.value(address.line, "peers.moved", &shown, &refuse(why, remedy));
        };
        if let Some(At { value, line }) = &overlay.network
            && !value.contains(&address.value)
        {
            fault(
                format!("not inside overlay.network {value} (line {line})"),
                "only containers' addresses move",
            );
        }
        if let Some(At { value, line }) = &peer.subnet
            && value.contains(&address.value)
        {
            fault(
                format!("inside the peer's own subnet {value} (line {line})"),
                "remove it: its subnet leads there already",
            );
        }
        let own = overlay.subnet.as_ref();
        let subnets = peers.iter().filter_map(|peer| peer.subnet.as_ref());
        let reserved = own
            .into_iter()
            .chain(subnets)
            .find_map(|subnet| value::reserved_in(&subnet.value, address.value));
        if let Some(kind) = reserved {
            fault(kind.to_owned(), "only containers' addresses move");
        }
        if let Some((_, first)) = moved()
            .take(index)
            .find(|(_, it)| it.value == address.value)
        {
            fault(
                format!("moved already (line {})", first.line),
                "an address is behind one host: keep one of the two",
            );
        }
    }
}

fn check_inside_overlay(
    key: &str,
    subnet: &At<Ipv4Net>,
    network: Option<&At<Ipv4Net>>,
    faults: &mut Faults,
) {
    if let Some(At { value, line }) = network
        && !value.contains(&subnet.value)
    {
        let refusal = refuse(
            format!("not inside overlay.network {value} (line {line})"),
            "use a part of that network, or widen it on every host",
        );
        faults.value(subnet.line, key, &subnet.value.to_string(), &refusal);
    }
}

/// A host whose own address is a container's would send its VXLAN packets into the VXLAN device.
pub(super) fn check_outside_overlay(
    key: &str,
    address: &At<Ipv4Addr>,
    network: Option<&At<Ipv4Net>>,
    faults: &mut Faults,
) {
    if let Some(At { value, line }) = network
        && value.contains(&address.value)
    {
        let refusal = refuse(
            format!("an underlay address inside overlay.network {value} (line {line})"),
            "use an overlay network that no host has an address in",
        );
        faults.value(address.line, key, &address.value.to_string(), &refusal);
    }
}

fn check_new_name(name: &At<String>, earlier: &[PeerDraft], faults: &mut Faults) {
    let mut names = earlier.iter().filter_map(|peer| peer.name.as_ref());
    if let Some(first) = names.find(|first| first.value == name.value) {
        let why = format!("already the name of the peer on line {}", first.line);
        let refusal = refuse(why, "give every peer its own name");
        faults.value(name.line, "peers.name", &name.value, &refusal);
    }
}

fn check_new_address(address: &At<Ipv4Addr>, earlier: &[PeerDraft], faults: &mut Faults) {
    let mut addresses = earlier.iter().filter_map(|peer| peer.address.as_ref());
    if let Some(first) = addresses.find(|first| first.value == address.value) {
        let why = format!("already the address of the peer on line {}", first.line);
        let refusal = refuse(why, "give every peer its own address");
        faults.value(
            address.line,
            "peers.address",
            &address.value.to_string(),
            &refusal,
        );
    }
}

fn check_free_subnet(
    subnet: &At<Ipv4Net>,
    own: Option<&At<Ipv4Net>>,
    earlier: &[PeerDraft],
    faults: &mut Faults,
) {
    let own = own.map(|own| ("overlay.subnet", own));
    let others = earlier
        .iter()
        .filter_map(|peer| Some(("peers.subnet", peer.subnet.as_ref()?)));
    for (key, taken) in own.into_iter().chain(others) {
        if value::overlap(&subnet.value, &taken.value) {
            let refusal = refuse(
                format!("overlaps {key} {} (line {})", taken.value, taken.line),
                "give every host its own subnet",
            );
            faults.value(
                subnet.line,
                "peers.subnet",
                &subnet.value.to_string(),
                &refusal,
            );
        }
    }
}

/// Refuses the peers that are called `own`, as this host is.
pub(super) fn check_own_name<'n>(
    own: &str,
    peers: impl Iterator<Item = &'n At<String>>,
    faults: &mut Faults,
) {
    for peer in peers.filter(|peer| peer.value == own) {
        let refusal = refuse(
            "this host's own name",
            "remove this peer, or rename one of the two",
        );
        faults.value(peer.line, "peers.name", &peer.value, &refusal);
    }
}

/// Refuses the peers at `own`, an address of this host; `whose` says where it is.
pub(super) fn check_own_address<'a>(
    own: Ipv4Addr,
    whose: &str,
    peers: impl Iterator<Item = &'a At<Ipv4Addr>>,
    faults: &mut Faults,
) {
    for peer in peers.filter(|peer| peer.value == own) {
        let why = format!("this host's own address ({whose})");
        let refusal = refuse(why, "remove this peer: a host is no peer of itself");
        faults.value(peer.line, "peers.address", &own.to_string(), &refusal);
    }
}
