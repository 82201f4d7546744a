//! What must hold between a network and its peers, each value right by itself.
//!
//! Plain values in, faults as values out. Where a value stands is for whoever has it to know: a line of
//! the file ([`super::peers`]), and nothing of the kind where peers come from elsewhere.

use std::{
    collections::{
        BTreeMap, HashMap,
        hash_map::Entry::{Occupied, Vacant},
    },
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use super::{Peer, value};

/// A network as this host has it: what its peers have to fit in with, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNetwork {
    /// The addresses of all hosts' containers.
    pub network: Option<Ipv4Net>,
    /// The addresses of this host's.
    pub subnet: Option<Ipv4Net>,
    /// This host's name.
    pub name: Option<String>,
    /// This host's own addresses, and in a few words where each is.
    pub addresses: Vec<(Ipv4Addr, String)>,
}

/// A peer as far as it is known: where one value cannot be read, the others are checked all the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct PartialPeer<'a> {
    /// [`Peer::name`].
    pub name: Option<&'a str>,
    /// [`Peer::address`].
    pub address: Option<Ipv4Addr>,
    /// [`Peer::subnet`].
    pub subnet: Option<Ipv4Net>,
    /// [`Peer::moved`].
    pub moved: &'a [Ipv4Addr],
}

impl<'a> From<&'a Peer> for PartialPeer<'a> {
    fn from(peer: &'a Peer) -> Self {
        Self {
            name: Some(&peer.name),
            address: Some(peer.address),
            subnet: Some(peer.subnet),
            moved: &peer.moved,
        }
    }
}

/// A peer that cannot be as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFault {
    /// Its place among the peers.
    pub peer: usize,
    /// What of it clashes with what.
    pub clash: Clash,
}

/// Which value of a peer cannot be, and what stands against it. Peers are meant by their place among the
/// peers, addresses that have moved by theirs within [`Peer::moved`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash {
    /// An earlier peer has the name.
    NameOfPeer(usize),
    /// This host has the name.
    NameOfHost,
    /// A host whose own address is a container's would send its tunnel's packets into the tunnel.
    AddressInNetwork,
    /// An earlier peer has the address.
    AddressOfPeer(usize),
    /// This host has the address, there.
    AddressOfHost(String),
    /// The subnet is no part of the network.
    SubnetOutsideNetwork,
    /// The subnet shares addresses with this host's.
    SubnetOfHost,
    /// The subnet shares addresses with an earlier peer's.
    SubnetOfPeer(usize),
    /// The moved address is no container's of this network.
    MovedOutsideNetwork(usize),
    /// The moved address is of the peer's own subnet.
    MovedWithinSubnet(usize),
    /// No container can have the moved address, for the reason given.
    MovedReserved(usize, &'static str),
    /// An address is behind one host; this one has moved before: to which peer, and its place there.
    MovedBefore(usize, (usize, usize)),
}

/// One of a peer's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerValue {
    /// [`Peer::name`].
    Name,
    /// [`Peer::address`].
    Address,
    /// [`Peer::subnet`].
    Subnet,
    /// The one at this place of [`Peer::moved`].
    Moved(usize),
}

impl Clash {
    /// The value that cannot be.
    #[must_use]
    pub const fn value(&self) -> PeerValue {
        match self {
            Self::NameOfPeer(_) | Self::NameOfHost => PeerValue::Name,
            Self::AddressInNetwork | Self::AddressOfPeer(_) | Self::AddressOfHost(_) => {
                PeerValue::Address
            }
            Self::SubnetOutsideNetwork | Self::SubnetOfHost | Self::SubnetOfPeer(_) => {
                PeerValue::Subnet
            }
            Self::MovedOutsideNetwork(nth)
            | Self::MovedWithinSubnet(nth)
            | Self::MovedReserved(nth, _)
            | Self::MovedBefore(nth, _) => PeerValue::Moved(*nth),
        }
    }
}

/// Every fault of `peers`, between each other and beside this host's part in the network.
#[must_use]
pub fn check(peers: &[PartialPeer<'_>], here: &LocalNetwork) -> Vec<PeerFault> {
    let mut faults = Vec::new();
    let mut clash = |peer, clash| faults.push(PeerFault { peer, clash });
    let (mut names, mut addresses) = (HashMap::new(), HashMap::new());
    let overlaps = overlaps(peers);
    for (index, peer) in peers.iter().enumerate() {
        if let Some(name) = peer.name {
            match names.entry(name) {
                Occupied(first) => clash(index, Clash::NameOfPeer(*first.get())),
                Vacant(entry) => drop(entry.insert(index)),
            }
        }
        if let Some(address) = peer.address {
            if here.network.is_some_and(|net| net.contains(&address)) {
                clash(index, Clash::AddressInNetwork);
            }
            match addresses.entry(address) {
                Occupied(first) => clash(index, Clash::AddressOfPeer(*first.get())),
                Vacant(entry) => drop(entry.insert(index)),
            }
        }
        if let Some(subnet) = peer.subnet {
            if here.network.is_some_and(|net| !net.contains(&subnet)) {
                clash(index, Clash::SubnetOutsideNetwork);
            }
            if here.subnet.is_some_and(|own| value::overlap(&subnet, &own)) {
                clash(index, Clash::SubnetOfHost);
            }
            for earlier in overlaps.get(&index).into_iter().flatten() {
                clash(index, Clash::SubnetOfPeer(*earlier));
            }
        }
    }
    check_moved(peers, here, &mut clash);
    for (index, peer) in peers.iter().enumerate() {
        if peer.name.is_some() && peer.name == here.name.as_deref() {
            clash(index, Clash::NameOfHost);
        }
    }
    for (own, place) in &here.addresses {
        for (index, peer) in peers.iter().enumerate() {
            if peer.address == Some(*own) {
                clash(index, Clash::AddressOfHost(place.clone()));
            }
        }
    }
    faults
}

/// Addresses that have moved: each inside the network, one that a container can have, and behind one
/// host.
fn check_moved(
    peers: &[PartialPeer<'_>],
    here: &LocalNetwork,
    clash: &mut impl FnMut(usize, Clash),
) {
    let mut before = HashMap::new();
    for (index, peer) in peers.iter().enumerate() {
        for (nth, address) in peer.moved.iter().enumerate() {
            if here.network.is_some_and(|net| !net.contains(address)) {
                clash(index, Clash::MovedOutsideNetwork(nth));
            }
            if peer.subnet.is_some_and(|net| net.contains(address)) {
                clash(index, Clash::MovedWithinSubnet(nth));
            }
            let subnets = peers.iter().filter_map(|peer| peer.subnet);
            let reserved = here
                .subnet
                .into_iter()
                .chain(subnets)
                .find_map(|subnet| value::reserved_in(&subnet, *address));
            if let Some(kind) = reserved {
                clash(index, Clash::MovedReserved(nth, kind));
            }
            match before.entry(*address) {
                Occupied(first) => clash(index, Clash::MovedBefore(nth, *first.get())),
                Vacant(entry) => drop(entry.insert((index, nth))),
            }
        }
    }
}

/// Of each peer whose subnet shares addresses with earlier peers': which ones, in order.
///
/// Not by comparing each with each: there may be thousands, and the daemon asks every few seconds. Of two
/// networks that share an address one contains the other, so with those that begin first, and of them the
/// widest, in front, a network lies in all that have begun and not yet ended.
fn overlaps(peers: &[PartialPeer<'_>]) -> BTreeMap<usize, Vec<usize>> {
    let known = peers.iter().enumerate();
    let mut subnets: Vec<(Ipv4Net, usize)> = known
        .filter_map(|(index, peer)| Some((peer.subnet?, index)))
        .collect();
    subnets.sort_by_key(|(net, index)| (net.network(), net.prefix_len(), *index));
    let mut overlaps: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut around: Vec<(Ipv4Net, usize)> = Vec::new();
    for (net, index) in subnets {
        while around.last().is_some_and(|(last, _)| !last.contains(&net)) {
            around.pop();
        }
        for (_, other) in &around {
            let (earlier, later) = (index.min(*other), index.max(*other));
            overlaps.entry(later).or_default().push(earlier);
        }
        around.push((net, index));
    }
    for earlier in overlaps.values_mut() {
        earlier.sort_unstable();
    }
    overlaps
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    fn here() -> LocalNetwork {
        LocalNetwork {
            network: Some("10.42.0.0/16".parse().unwrap()),
            subnet: Some("10.42.1.0/24".parse().unwrap()),
            name: Some("alpha".to_owned()),
            addresses: vec![(Ipv4Addr::new(192, 168, 50, 11), "on eth1".to_owned())],
        }
    }

    fn peer(name: &str, last: u8, subnet: &str, moved: &[&str]) -> Peer {
        Peer {
            name: name.to_owned(),
            address: Ipv4Addr::new(192, 168, 50, last),
            subnet: subnet.parse().unwrap(),
            moved: moved.iter().map(|it| it.parse().unwrap()).collect(),
        }
    }

    fn clashes(peers: &[Peer]) -> Vec<(usize, Clash)> {
        let partial: Vec<_> = peers.iter().map(PartialPeer::from).collect();
        let faults = check(&partial, &here());
        faults.into_iter().map(|it| (it.peer, it.clash)).collect()
    }

    #[test]
    fn peers_that_fit_have_no_fault() {
        let peers = [
            peer("beta", 12, "10.42.2.0/24", &["10.42.1.7", "10.42.3.7"]),
            peer("gamma", 13, "10.42.3.0/24", &["10.42.2.7", "10.42.200.7"]),
        ];
        assert_eq!(clashes(&peers), []);
    }

    #[test]
    fn every_clash_is_told_with_what_it_is_with() {
        let beta = || peer("beta", 12, "10.42.2.0/24", &[]);
        let moved = |addresses| peer("beta", 12, "10.42.2.0/24", addresses);
        let cases = [
            (peer("beta", 13, "10.42.3.0/24", &[]), Clash::NameOfPeer(0)),
            (peer("alpha", 13, "10.42.3.0/24", &[]), Clash::NameOfHost),
            (
                peer("gamma", 12, "10.42.3.0/24", &[]),
                Clash::AddressOfPeer(0),
            ),
            (
                peer("gamma", 11, "10.42.3.0/24", &[]),
                Clash::AddressOfHost("on eth1".to_owned()),
            ),
            (
                Peer {
                    address: Ipv4Addr::new(10, 42, 9, 9),
                    ..peer("gamma", 13, "10.42.3.0/24", &[])
                },
                Clash::AddressInNetwork,
            ),
            (
                peer("gamma", 13, "10.43.3.0/24", &[]),
                Clash::SubnetOutsideNetwork,
            ),
            (peer("gamma", 13, "10.42.1.0/25", &[]), Clash::SubnetOfHost),
            (
                peer("gamma", 13, "10.42.2.128/25", &[]),
                Clash::SubnetOfPeer(0),
            ),
        ];
        for (second, expected) in cases {
            assert_eq!(clashes(&[beta(), second]), [(1, expected)]);
        }
        let cases = [
            (moved(&["10.43.0.7"]), Clash::MovedOutsideNetwork(0)),
            (moved(&["10.42.2.7"]), Clash::MovedWithinSubnet(0)),
            (
                moved(&["10.42.1.7", "10.42.1.1"]),
                Clash::MovedReserved(1, "the gateway has it"),
            ),
            (
                moved(&["10.42.1.7", "10.42.1.8", "10.42.1.7"]),
                Clash::MovedBefore(2, (0, 0)),
            ),
        ];
        for (only, expected) in cases {
            assert_eq!(clashes(&[only]), [(0, expected)]);
        }
    }

    #[test]
    fn what_is_not_known_clashes_with_nothing() {
        let known = peer("alpha", 11, "10.43.1.0/24", &["10.44.1.1"]);
        let unknown = [PartialPeer::default(), PartialPeer::from(&known)];
        assert_eq!(check(&unknown, &LocalNetwork::default()), []);
        assert_eq!(check(&[PartialPeer::default(); 2], &here()), []);
    }

    #[test]
    fn subnets_overlap_as_they_do_one_by_one() {
        // Every network of four addresses' space, twice, in an order that is none.
        let mut nets: Vec<Ipv4Net> = (29..=32)
            .flat_map(|length| {
                let whole: Ipv4Net = "10.42.2.0/29".parse().unwrap();
                whole.subnets(length).unwrap()
            })
            .collect();
        nets.extend(nets.clone());
        let count = nets.len();
        let nets: Vec<Ipv4Net> = (0..count).map(|it| nets[it * 11 % count]).collect();
        let peers = nets.iter().map(|net| PartialPeer {
            subnet: Some(*net),
            ..PartialPeer::default()
        });
        let found = overlaps(&peers.collect::<Vec<_>>());
        for (later, net) in nets.iter().enumerate() {
            let expected: Vec<usize> = (0..later)
                .filter(|earlier| value::overlap(&nets[*earlier], net))
                .collect();
            assert_eq!(found.get(&later).cloned().unwrap_or_default(), expected);
        }
    }
}
