//! What a notification of the kernel asks for.

use std::{collections::HashMap, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::Cause;
use crate::{
    datapath::attach::CLSACT_PRIORITY,
    netlink::{Event, Hanging, LinkState, Mac, format_mac},
};

/// What a notification asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Nothing of ours can depend on it.
    Ignore,
    /// The wanted state may be hurt: compare and mend. Mending raises the epoch.
    Reconcile,
    /// What was learned may be wrong already: raise the epoch at once, then compare and mend.
    Invalidate {
        /// Why.
        cause: Cause,
        /// Which object, for the log; empty if the cause says it all.
        object: String,
    },
}

/// A device by both of its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its interface index; zero while there is none.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// What of the host cached results depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The underlay device.
    pub underlay: Device,
    /// The bridge.
    pub bridge: Device,
    /// The VXLAN device.
    pub vxlan: Device,
    /// The containers' host-side devices, by index.
    pub containers: HashMap<u32, String>,
    /// The other hosts' underlay addresses.
    pub peers: Vec<Ipv4Addr>,
    /// This host's underlay address and the network of all containers.
    pub networks: Vec<Ipv4Net>,
}

impl Scope {
    /// The name of the device, if packets of the overlay pass it whatever container they are of.
    fn device(&self, index: u32) -> Option<&str> {
        let ours = [&self.underlay, &self.bridge, &self.vxlan];
        let found = ours.into_iter().find(|device| device.index == index)?;
        (index != 0).then_some(&found.name)
    }

    /// The name of the device, if it is any that packets of the overlay pass.
    fn passed(&self, index: u32) -> Option<&str> {
        let container = || self.containers.get(&index).map(String::as_str);
        self.device(index).or_else(container)
    }

    /// Whether a route to `destination` can change where packets of the overlay go, or whether they
    /// are taken from where they come.
    fn is_reached_by(&self, destination: &Ipv4Net) -> bool {
        self.peers.iter().any(|peer| destination.contains(peer))
            || self
                .networks
                .iter()
                .any(|network| destination.contains(network) || network.contains(destination))
    }
}

/// How many neighbours are remembered. The kernel has room for 1,024 by default.
const NEIGHBOURS: usize = 16_384;

/// What was last heard of devices and neighbours, to tell news from repetition: the kernel reports
/// a neighbour every time that it has asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    links: HashMap<u32, LinkState>,
    neighbours: HashMap<(u32, Ipv4Addr), Mac>,
}

impl Memory {
    /// Remembers a neighbour that was there before the first notification.
    pub fn remember(&mut self, device: u32, address: Ipv4Addr, mac: Mac) {
        if self.neighbours.len() >= NEIGHBOURS {
            // What is forgotten is news when it is heard again, and then compared with what was
            // learned by the reconciliation.
            self.neighbours.clear();
        }
        self.neighbours.insert((device, address), mac);
    }

    /// How the daemon answers a notification, given what cached results depend on.
    #[must_use]
    pub fn respond(&mut self, event: &Event, scope: &Scope) -> Response {
        let invalidate = |cause, object: String| Response::Invalidate { cause, object };
        match event {
            // Rules of any table may refuse what the filter cache allows.
            Event::Ruleset => invalidate(Cause::Ruleset, String::new()),
            // The transaction's end says it, too.
            Event::OwnTable => Response::Reconcile,
            // The lost ones may have been of any kind.
            Event::Overrun => invalidate(Cause::Overrun, String::new()),
            // Which packets a rule is for is not looked at: there are few, and they seldom change.
            Event::TrafficControl { device, what } => traffic_control(*device, *what, scope),
            Event::Ipsec => invalidate(Cause::Ipsec, String::new()),
            Event::RoutingRule => invalidate(Cause::RoutingRule, String::new()),
            Event::NextHop => invalidate(Cause::Route, "a next hop object".to_owned()),
            Event::Route { destination } if scope.is_reached_by(destination) => {
                invalidate(Cause::Route, destination.to_string())
            }
            Event::Route { .. } => Response::Ignore,
            Event::Address { device } => scope.device(*device).map_or(Response::Ignore, |name| {
                invalidate(Cause::Address, name.to_owned())
            }),
            Event::Forwarding { device: None } => {
                invalidate(Cause::Forwarding, "all devices".to_owned())
            }
            Event::Forwarding {
                device: Some(device),
            } => scope.device(*device).map_or(Response::Ignore, |name| {
                invalidate(Cause::Forwarding, name.to_owned())
            }),
            Event::LinkGone { device } => {
                self.links.remove(device);
                // Another one was a container's, perhaps.
                scope.device(*device).map_or(Response::Reconcile, |name| {
                    invalidate(Cause::Link, format!("{name} is gone"))
                })
            }
            Event::Link { device, state } => self.link(*device, *state, scope),
            Event::Neighbour {
                device,
                address,
                mac,
            } => self.neighbour(*device, *address, *mac, scope),
            Event::ForwardingEntry { device } if *device == scope.vxlan.index => {
                invalidate(Cause::VxlanTable, "a forwarding entry".to_owned())
            }
            Event::ForwardingEntry { .. } => Response::Ignore,
        }
    }

    fn link(&mut self, device: u32, state: Option<LinkState>, scope: &Scope) -> Response {
        let (Some(name), Some(state)) = (scope.device(device), state) else {
            return Response::Reconcile;
        };
        // Reported for much that no packet depends on, such as a new port.
        match self.links.insert(device, state) {
            Some(before) if before == state => Response::Reconcile,
            before => Response::Invalidate {
                cause: Cause::Link,
                object: format!("{name} is {}", differences(before, state)),
            },
        }
    }

    fn neighbour(
        &mut self,
        device: u32,
        address: Ipv4Addr,
        mac: Option<Mac>,
        scope: &Scope,
    ) -> Response {
        let Some(name) = scope.device(device) else {
            return Response::Ignore;
        };
        if device == scope.vxlan.index {
            // Permanent, all of them, and the kernel by itself changes none.
            return Response::Invalidate {
                cause: Cause::VxlanTable,
                object: address.to_string(),
            };
        }
        // One that goes is remembered: it may come back as another.
        let Some(mac) = mac else {
            return Response::Reconcile;
        };
        match self.neighbours.get(&(device, address)) {
            Some(before) if *before == mac => Response::Ignore,
            before => {
                let moved = before.is_some();
                self.remember(device, address, mac);
                if moved {
                    Response::Invalidate {
                        cause: Cause::NeighbourMoved,
                        object: format!("{address} on {name} is at {}", format_mac(mac)),
                    }
                } else {
                    Response::Reconcile
                }
            }
        }
    }
}

fn traffic_control(device: Option<u32>, what: Hanging, scope: &Scope) -> Response {
    let named = match device {
        Some(device) => scope.passed(device),
        None => Some("a block of filters that devices share"),
    };
    match (named, what) {
        (None, _) => Response::Ignore,
        // Ours, which is put there again at each comparison.
        (_, Hanging::Program(CLSACT_PRIORITY)) => Response::Ignore,
        (_, Hanging::Harmless) => Response::Reconcile,
        (Some(name), Hanging::Came | Hanging::Program(_)) => Response::Invalidate {
            cause: Cause::TrafficControl,
            object: name.to_owned(),
        },
    }
}

/// What of a device is not what it was; everything, if that is not known.
fn differences(before: Option<LinkState>, now: LinkState) -> String {
    let other = |differs: fn(&LinkState, &LinkState) -> bool| {
        before.is_none_or(|before| differs(&before, &now))
    };
    let mut words = Vec::new();
    if other(|before, now| (before.up, before.running) != (now.up, now.running)) {
        words.push(match (now.up, now.running) {
            (false, _) => "down".to_owned(),
            (true, false) => "without carrier".to_owned(),
            (true, true) => "up".to_owned(),
        });
    }
    if other(|before, now| before.mtu != now.mtu) {
        words.push(format!("of MTU {}", now.mtu));
    }
    if other(|before, now| before.mac != now.mac) {
        words.push(format!("at {}", format_mac(now.mac)));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    fn scope() -> Scope {
        let network = |text: &str| text.parse().expect("a network");
        let device = |index, name: &str| Device {
            index,
            name: name.to_owned(),
        };
        Scope {
            underlay: device(7, "eth1"),
            bridge: device(8, "oncache0"),
            vxlan: device(9, "oncache-vx0"),
            containers: HashMap::from([(10, "onc-web".to_owned())]),
            peers: vec![Ipv4Addr::new(192, 168, 50, 12)],
            networks: vec![network("192.168.50.11/32"), network("10.42.0.0/16")],
        }
    }

    /// The causes for which events raise the epoch, one after the other; `None` for a comparison
    /// only, and nothing for what is ignored.
    fn causes(events: &[Event]) -> Vec<Option<Cause>> {
        let mut memory = Memory::default();
        memory.remember(7, Ipv4Addr::new(192, 168, 50, 12), MAC);
        let responses = events.iter().map(|event| memory.respond(event, &scope()));
        responses
            .filter_map(|response| match response {
                Response::Ignore => None,
                Response::Reconcile => Some(None),
                Response::Invalidate { cause, .. } => Some(Some(cause)),
            })
            .collect()
    }

    #[test]
    fn what_may_have_changed_any_verdict_invalidates_at_once() {
        let events = [
            Event::Ruleset,
            Event::Overrun,
            Event::RoutingRule,
            Event::NextHop,
            Event::Forwarding { device: None },
        ];
        let expected = [
            Cause::Ruleset,
            Cause::Overrun,
            Cause::RoutingRule,
            Cause::Route,
            Cause::Forwarding,
        ];
        assert_eq!(causes(&events), expected.map(Some));
    }

    #[test]
    fn what_hangs_on_devices_counts_where_packets_pass() {
        let on = |device, what| Event::TrafficControl { device, what };
        let (came, lost) = (Hanging::Came, Hanging::Harmless);
        for device in [Some(7), Some(8), Some(9), Some(10), None] {
            let events = [
                came,
                Hanging::Program(1),
                Hanging::Program(CLSACT_PRIORITY),
                lost,
            ];
            let events = events.map(|what| on(device, what));
            let news = Some(Cause::TrafficControl);
            assert_eq!(causes(&events), [news, news, None], "{device:?}");
        }
        assert_eq!(causes(&[on(Some(20), came), on(Some(20), lost)]), []);
        assert_eq!(causes(&[Event::Ipsec]), [Some(Cause::Ipsec)]);
    }

    #[test]
    fn routes_count_where_they_can_lead_our_packets_elsewhere() {
        let route = |text: &str| Event::Route {
            destination: text.parse().expect("a network"),
        };
        for ours in [
            "0.0.0.0/0",
            "192.168.50.0/24",
            "192.168.50.12/32",
            "192.168.50.11/32",
            "10.42.2.0/24",
            "10.42.2.7/32",
            "10.0.0.0/8",
        ] {
            assert_eq!(causes(&[route(ours)]), [Some(Cause::Route)], "{ours}");
        }
        for other in ["192.168.51.0/24", "192.168.50.13/32", "10.43.0.0/16"] {
            assert_eq!(causes(&[route(other)]), [], "{other}");
        }
    }

    #[test]
    fn other_devices_are_no_concern() {
        let device = 20;
        let address = Ipv4Addr::new(192, 168, 50, 12);
        let events = [
            Event::Address { device },
            Event::Forwarding {
                device: Some(device),
            },
            Event::ForwardingEntry { device },
            Event::ForwardingEntry { device: 8 },
            Event::Neighbour {
                device,
                address,
                mac: Some(OTHER),
            },
        ];
        assert_eq!(causes(&events), []);
        // One that goes may have been a container's.
        let state = None;
        let links = [Event::LinkGone { device }, Event::Link { device, state }];
        assert_eq!(causes(&links), [None, None]);
        for device in [7, 8, 9] {
            assert_eq!(causes(&[Event::Address { device }]), [Some(Cause::Address)]);
            assert_eq!(causes(&[Event::LinkGone { device }]), [Some(Cause::Link)]);
        }
    }

    #[test]
    fn a_device_is_news_when_it_is_another() {
        let state = LinkState {
            mac: MAC,
            mtu: 1500,
            up: true,
            running: true,
        };
        let link = |state| Event::Link {
            device: 7,
            state: Some(state),
        };
        let events = [
            link(state),
            link(state),
            Event::Link {
                device: 7,
                state: None,
            },
            link(LinkState { mtu: 1400, ..state }),
            link(LinkState {
                mac: OTHER,
                ..state
            }),
            link(LinkState { up: false, ..state }),
            link(LinkState {
                running: false,
                ..state
            }),
        ];
        let news = Some(Cause::Link);
        assert_eq!(causes(&events), [news, None, None, news, news, news, news]);
    }

    #[test]
    fn a_neighbour_is_news_when_it_has_moved() {
        let of = |device, host, mac| Event::Neighbour {
            device,
            address: Ipv4Addr::new(192, 168, 50, host),
            mac,
        };
        let events = [
            of(7, 12, Some(MAC)),
            of(7, 13, Some(MAC)),
            of(7, 12, None),
            of(7, 12, Some(OTHER)),
            of(7, 12, Some(OTHER)),
            of(9, 14, Some(MAC)),
        ];
        let (moved, table) = (Some(Cause::NeighbourMoved), Some(Cause::VxlanTable));
        assert_eq!(causes(&events), [None, None, moved, table]);
        let entry = Event::ForwardingEntry { device: 9 };
        assert_eq!(causes(&[entry]), [table]);
    }

    #[test]
    fn the_log_says_what_changed_in_a_device() {
        let state = LinkState {
            mac: MAC,
            mtu: 1500,
            up: true,
            running: true,
        };
        let smaller = LinkState { mtu: 1400, ..state };
        assert_eq!(differences(Some(state), smaller), "of MTU 1400");
        let down = LinkState {
            up: false,
            running: false,
            ..state
        };
        assert_eq!(differences(Some(state), down), "down");
        assert_eq!(
            differences(None, state),
            "up, of MTU 1500, at 02:00:00:00:00:01"
        );
    }
}
