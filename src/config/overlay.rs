//! `[overlay]`: the network of the containers as the file has it.

use std::fmt::Display;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::fault::{Fault, Faults, refuse};
use super::table::{At, Table};
use super::value::{self, Mtu};

/// `[overlay]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OverlaySection {
    pub(super) subnet: At<Ipv4Net>,
    pub(super) network: At<Ipv4Net>,
    pub(super) vni: u32,
    pub(super) port: u16,
    pub(super) mtu: At<Mtu>,
}

/// `[overlay]` with whatever of it could be read, so that the rest can be checked all the same.
pub(super) struct OverlayDraft {
    pub(super) subnet: Option<At<Ipv4Net>>,
    pub(super) network: Option<At<Ipv4Net>>,
    pub(super) vni: Option<At<u32>>,
    pub(super) port: u16,
    pub(super) mtu: At<Mtu>,
}

pub(super) fn read_overlay(file: &Table<'_>, faults: &mut Faults) -> OverlayDraft {
    let mut draft = OverlayDraft {
        subnet: None,
        network: None,
        vni: None,
        port: 4789, // RFC 7348 section 5
        mtu: At {
            value: Mtu::Auto,
            line: file.line,
        },
    };
    let Some(table) = file.table("overlay", faults) else {
        let missing = refuse("missing", "add [overlay] with subnet, network and vni");
        file.refuse_absent("overlay", &missing, faults);
        return draft;
    };
    draft.mtu.line = table.line;
    table.refuse_unknown(&["subnet", "network", "vni", "port", "mtu"], faults);
    draft.subnet = table.required("subnet", "subnet = \"10.42.1.0/24\"", value::subnet, faults);
    draft.network = table.required(
        "network",
        "network = \"10.42.0.0/16\"",
        value::network,
        faults,
    );
    draft.vni = table.required("vni", "vni = 42", value::vni, faults);
    if let Some(port) = table.optional("port", value::port, faults) {
        draft.port = port.value;
    }
    if let Some(mtu) = table.optional("mtu", value::mtu, faults) {
        draft.mtu = mtu;
    }
    draft
}

pub(super) fn check_overlay(overlay: &OverlayDraft, faults: &mut Faults) {
    if let (Some(subnet), Some(network)) = (&overlay.subnet, &overlay.network)
        && !network.value.contains(&subnet.value)
    {
        let fault = outside_network(network);
        faults.value(
            subnet.line,
            "overlay.subnet",
            &subnet.value.to_string(),
            &fault,
        );
    }
}

/// A host whose own address is a container's would send its VXLAN packets into the VXLAN device.
pub(super) fn check_node_address(
    address: &At<Ipv4Addr>,
    network: &At<Ipv4Net>,
    faults: &mut Faults,
) {
    if network.value.contains(&address.value) {
        let fault = inside_network(network);
        faults.value(
            address.line,
            "node.address",
            &address.value.to_string(),
            &fault,
        );
    }
}

/// A subnet is no part of the network.
pub(super) fn outside_network(At { value, line }: &At<impl Display>) -> Fault {
    refuse(
        format!("not inside overlay.network {value} (line {line})"),
        "use a part of that network, or widen it on every host",
    )
}

/// A host's address is one of the network's.
pub(super) fn inside_network(At { value, line }: &At<impl Display>) -> Fault {
    refuse(
        format!("an underlay address inside overlay.network {value} (line {line})"),
        "use an overlay network that no host has an address in",
    )
}

/// All of it, if all of it could be read.
pub(super) fn complete_overlay(draft: OverlayDraft) -> Option<OverlaySection> {
    Some(OverlaySection {
        subnet: draft.subnet?,
        network: draft.network?,
        vni: draft.vni?.value,
        port: draft.port,
        mtu: draft.mtu,
    })
}
