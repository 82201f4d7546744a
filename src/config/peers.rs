//! `[[peers]]`: the other hosts as the file has them, and on which lines it has what is wrong with them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::consistency::{Clash, LocalNetwork, PartialPeer, PeerValue, check};
use super::fault::{Fault, Faults, refuse};
use super::overlay::{inside_network, outside_network};
use super::table::{At, Table};
use super::{Peer, value};

/// One `[[peers]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PeerSection {
    pub(super) peer: Peer,
    lines: PeerLines,
}

/// A `[[peers]]` with whatever of it could be read, so that the rest can be checked all the same.
pub(super) struct PeerDraft {
    name: Option<String>,
    address: Option<Ipv4Addr>,
    subnet: Option<Ipv4Net>,
    moved: Vec<Ipv4Addr>,
    lines: PeerLines,
}

/// Where a peer's values stand. What could not be read is on line 0: no fault speaks of it.
#[derive(Clone, Debug, PartialEq)]
struct PeerLines {
    name: usize,
    address: usize,
    subnet: usize,
    moved: Vec<usize>,
}

/// Where the values of `[overlay]` stand that peers are checked against, as in [`PeerLines`].
#[derive(Clone, Copy)]
pub(super) struct NetworkLines {
    network: usize,
    subnet: usize,
}

impl NetworkLines {
    pub(super) fn new(network: Option<&At<Ipv4Net>>, subnet: Option<&At<Ipv4Net>>) -> Self {
        Self {
            network: line_of(network),
            subnet: line_of(subnet),
        }
    }
}

fn line_of<T>(at: Option<&At<T>>) -> usize {
    at.map_or(0, |at| at.line)
}

pub(super) fn read_peers(file: &Table<'_>, faults: &mut Faults) -> Vec<PeerDraft> {
    let mut peers = Vec::new();
    for table in file.tables("peers", faults) {
        table.refuse_unknown(&["name", "address", "subnet", "moved"], faults);
        let name = table.required("name", "name = \"beta\"", value::name, faults);
        let address = table.required(
            "address",
            "address = \"192.168.50.12\"",
            value::underlay_address,
            faults,
        );
        let subnet = table.required("subnet", "subnet = \"10.42.2.0/24\"", value::subnet, faults);
        let moved = table.elements("moved", value::container_address, faults);
        peers.push(PeerDraft {
            lines: PeerLines {
                name: line_of(name.as_ref()),
                address: line_of(address.as_ref()),
                subnet: line_of(subnet.as_ref()),
                moved: moved.iter().map(|at| at.line).collect(),
            },
            name: name.map(|at| at.value),
            address: address.map(|at| at.value),
            subnet: subnet.map(|at| at.value),
            moved: moved.into_iter().map(|at| at.value).collect(),
        });
    }
    peers
}

/// All of them, if all of each could be read.
pub(super) fn complete_peers(drafts: Vec<PeerDraft>) -> Option<Vec<PeerSection>> {
    let complete = |draft: PeerDraft| {
        Some(PeerSection {
            peer: Peer {
                name: draft.name?,
                address: draft.address?,
                subnet: draft.subnet?,
                moved: draft.moved,
            },
            lines: draft.lines,
        })
    };
    drafts.into_iter().map(complete).collect()
}

impl<'a> From<&'a PeerDraft> for PartialPeer<'a> {
    fn from(draft: &'a PeerDraft) -> Self {
        Self {
            name: draft.name.as_deref(),
            address: draft.address,
            subnet: draft.subnet,
            moved: &draft.moved,
        }
    }
}

/// Checks what could be read, on the lines where it stands.
pub(super) fn check_drafts(
    drafts: &[PeerDraft],
    here: &LocalNetwork,
    network_lines: NetworkLines,
    faults: &mut Faults,
) {
    let peers = drafts.iter().map(|draft| (draft.into(), &draft.lines));
    Placed::new(peers, here, network_lines).check(faults);
}

/// As [`check_drafts`], of peers that are right as far as the text alone can tell.
pub(super) fn check_sections(
    sections: &[PeerSection],
    here: &LocalNetwork,
    network_lines: NetworkLines,
    faults: &mut Faults,
) {
    let peers = sections
        .iter()
        .map(|section| ((&section.peer).into(), &section.lines));
    Placed::new(peers, here, network_lines).check(faults);
}

/// The values that are checked, and where each stands.
struct Placed<'a> {
    peers: Vec<PartialPeer<'a>>,
    lines: Vec<&'a PeerLines>,
    here: &'a LocalNetwork,
    network_lines: NetworkLines,
}

impl<'a> Placed<'a> {
    fn new(
        peers: impl Iterator<Item = (PartialPeer<'a>, &'a PeerLines)>,
        here: &'a LocalNetwork,
        network_lines: NetworkLines,
    ) -> Self {
        let (peers, lines) = peers.unzip();
        Self {
            peers,
            lines,
            here,
            network_lines,
        }
    }

    fn check(&self, faults: &mut Faults) {
        for fault in check(&self.peers, self.here) {
            self.tell(fault.peer, &fault.clash, faults);
        }
    }

    /// Notes a fault on the line of the value that it is about.
    fn tell(&self, index: usize, clash: &Clash, faults: &mut Faults) {
        let (peer, lines) = (&self.peers[index], self.lines[index]);
        let (line, key, value) = match clash.value() {
            PeerValue::Name => (lines.name, "peers.name", shown(peer.name)),
            PeerValue::Address => (lines.address, "peers.address", shown(peer.address)),
            PeerValue::Subnet => (lines.subnet, "peers.subnet", shown(peer.subnet)),
            PeerValue::Moved(nth) => (lines.moved[nth], "peers.moved", shown(peer.moved.get(nth))),
        };
        faults.value(line, key, &value, &self.words(index, clash));
    }

    fn words(&self, index: usize, clash: &Clash) -> Fault {
        const ONLY_CONTAINERS: &str = "only containers' addresses move";
        let network = || At {
            value: shown(self.here.network),
            line: self.network_lines.network,
        };
        match clash {
            Clash::NameOfPeer(first) => refuse(
                format!(
                    "already the name of the peer on line {}",
                    self.lines[*first].name
                ),
                "give every peer its own name",
            ),
            Clash::NameOfHost => refuse(
                "this host's own name",
                "remove this peer, or rename one of the two",
            ),
            Clash::AddressInNetwork => inside_network(&network()),
            Clash::AddressOfPeer(first) => refuse(
                format!(
                    "already the address of the peer on line {}",
                    self.lines[*first].address
                ),
                "give every peer its own address",
            ),
            Clash::AddressOfHost(place) => refuse(
                format!("this host's own address ({place})"),
                "remove this peer: a host is no peer of itself",
            ),
            Clash::SubnetOutsideNetwork => outside_network(&network()),
            Clash::SubnetOfHost => {
                let subnet = shown(self.here.subnet);
                overlapping("overlay.subnet", &subnet, self.network_lines.subnet)
            }
            Clash::SubnetOfPeer(other) => {
                let subnet = shown(self.peers[*other].subnet);
                overlapping("peers.subnet", &subnet, self.lines[*other].subnet)
            }
            Clash::MovedOutsideNetwork(_) => {
                let At { value, line } = network();
                refuse(
                    format!("not inside overlay.network {value} (line {line})"),
                    ONLY_CONTAINERS,
                )
            }
            Clash::MovedWithinSubnet(_) => {
                let subnet = shown(self.peers[index].subnet);
                let line = self.lines[index].subnet;
                refuse(
                    format!("inside the peer's own subnet {subnet} (line {line})"),
                    "remove it: its subnet leads there already",
                )
            }
            Clash::MovedReserved(_, kind) => refuse(*kind, ONLY_CONTAINERS),
            Clash::MovedBefore(_, (peer, nth)) => refuse(
                format!("moved already (line {})", self.lines[*peer].moved[*nth]),
                "an address is behind one host: keep one of the two",
            ),
        }
    }
}

/// A value that is known: of another no fault speaks.
fn shown(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn overlapping(key: &str, subnet: &str, line: usize) -> Fault {
    refuse(
        format!("overlaps {key} {subnet} (line {line})"),
        "give every host its own subnet",
    )
}
