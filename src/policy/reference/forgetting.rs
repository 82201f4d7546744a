//! The chains on one flow whose packets come in any order, while conntrack or the sets forget at any
//! moment and the rules change: against a reference that knows who opened it.

use std::collections::BTreeSet;

use super::*;
use crate::nft::Family;

/// What happens next to the flow, whose ends are the containers one and two.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// One end sends; for TCP anything but a SYN, unless nothing was sent yet.
    Send { by_one: bool },
    /// Conntrack's entry goes: flushed, deleted, timed out, or of another zone.
    ConntrackForgets,
    /// The table is made anew.
    SetsForget,
    /// Other rules are applied, by their place in the list.
    Rules(usize),
}

#[derive(Debug)]
struct Entry {
    original: Tuple,
    label: BTreeSet<u64>,
    replied: bool,
}

/// The kernel's side.
struct World<'w> {
    tables: &'w [Table],
    watched: bool,
    rules: usize,
    entry: Option<Entry>,
    sets: BTreeMap<String, BTreeSet<String>>,
}

impl World<'_> {
    /// Whether the packet passes.
    fn send(&mut self, header: Tuple, syn: bool) -> bool {
        let fresh = self.entry.is_none();
        let mut entry = self.entry.take().unwrap_or_else(|| Entry {
            original: header,
            label: BTreeSet::new(),
            replied: false,
        });
        let reply = entry.original != header;
        entry.replied |= reply;
        let tracked = match entry.replied {
            true => Tracked::Established { reply },
            false => Tracked::New { syn },
        };
        let packet = Packet {
            flow: entry.original,
            tracked,
            opener: Opener::Unknown,
        };
        let table = &self.tables[self.rules];
        let ends = match table.name().family {
            Family::Bridge if header.destination.octets()[3] == 1 => ("onc-c2", "onc-c1"),
            Family::Bridge => ("onc-c1", "onc-c2"),
            Family::Inet => ("oncache0", "oncache-vx0"),
        };
        let machine = Machine::new(table, packet, ends.0, ends.1);
        *machine.memory.borrow_mut() = Memory {
            sets: std::mem::take(&mut self.sets),
            label: entry.label.clone(),
            confirmed: !fresh,
        };
        let passes = machine.run("forward") != Verdict::Drop;
        let memory = machine.memory.into_inner();
        self.sets = memory.sets;
        entry.label = memory.label;
        // An entry whose first packet is dropped is not kept (nf_conntrack_confirm).
        self.entry = (self.watched && (passes || !fresh)).then_some(entry);
        passes
    }
}

/// What may be known, by the documentation.
#[derive(Debug, Default)]
struct Known {
    opener: Option<Tuple>,
    by_sets: bool,
    by_entry: bool,
    /// Nobody can tell any more.
    lost: bool,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => any::<bool>().prop_map(|by_one| Event::Send { by_one }),
        1 => Just(Event::ConntrackForgets),
        1 => Just(Event::SetsForget),
        2 => (0_usize..4).prop_map(Event::Rules),
    ]
}

/// Where the packets are seen.
#[derive(Clone, Copy, Debug)]
enum Where {
    Inet,
    BridgeWithConntrack,
    BridgeWithout,
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_rule_means_who_opened_the_flow_whatever_is_forgotten(
        choices in proptest::collection::vec(proptest::collection::vec(rule(), 1..5), 3),
        events in proptest::collection::vec(event(), 1..40),
        tcp in any::<bool>(),
        place in prop_oneof![
            Just(Where::Inet), Just(Where::BridgeWithConntrack), Just(Where::BridgeWithout)
        ],
        ports in (1_u16..8, 1_u16..8),
    ) {
        let locals = locals();
        // Conntrack sees bridged packets only while there are rules.
        let none = vec![rule_for_all()];
        let rules: Vec<&Vec<Rule>> = std::iter::once(&none).chain(&choices).collect();
        let same_host = match place {
            Where::BridgeWithout => SameHost::InetHooks,
            _ => SameHost::BridgeTable,
        };
        let watched = !matches!(place, Where::BridgeWithout);
        // TCP is judged where conntrack is.
        let tcp = tcp && watched;
        let tables: Vec<Table> = rules
            .iter()
            .map(|rules| {
                let [inet, bridge] = compile(&effective(rules, &[]), &locals, &bridging(same_host));
                if matches!(place, Where::Inet) { inet } else { bridge }
            })
            .collect();
        let flow = Tuple {
            source: Ipv4Addr::new(10, 42, 1, 1),
            destination: Ipv4Addr::new(10, 42, 1, 2),
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            source_port: ports.0,
            destination_port: ports.1,
        };
        let mut world = World {
            tables: &tables, watched, rules: 0, entry: None, sets: BTreeMap::new(),
        };
        let mut known = Known::default();
        let mut opened = false;
        for (place, event) in events.iter().enumerate() {
            match *event {
                Event::ConntrackForgets => {
                    world.entry = None;
                    known.by_entry = false;
                }
                Event::SetsForget => {
                    world.sets.clear();
                    known.by_sets = false;
                    if !watched {
                        let young = BTreeSet::from(["ip".to_owned()]);
                        world.sets.insert(YOUNG.to_owned(), young);
                        known.lost = true;
                    }
                }
                Event::Rules(which) => world.rules = which,
                Event::Send { by_one } => {
                    let header = if by_one { flow } else { flow.reversed() };
                    let syn = tcp && !opened;
                    let lets = |flow| stated::lets(rules[world.rules], flow, &locals);
                    let fresh = world.entry.is_none();
                    let certain = if tcp { known.by_entry } else { known.by_sets || known.by_entry };
                    let expected = match known.opener {
                        _ if known.lost => lets(flow) && lets(flow.reversed()),
                        Some(opener) if certain => lets(opener),
                        _ if tcp && !syn => lets(flow) && lets(flow.reversed()),
                        // Opened, or both memories are gone.
                        _ => lets(header),
                    };
                    let passes = world.send(header, syn);
                    prop_assert_eq!(
                        passes, expected,
                        "event {} of {:?}, {:?}, {:?}", place, events, known, rules
                    );
                    if !known.lost && !certain && passes && (syn || !tcp) {
                        known.opener = Some(header);
                        known.by_entry = watched;
                        known.by_sets = !tcp;
                        opened = true;
                    } else if !known.lost && certain && !tcp {
                        known.by_sets = true;
                        known.by_entry |= watched && (passes || !fresh);
                    }
                }
            }
        }
    }
}

fn rule_for_all() -> Rule {
    Rule {
        action: Action::Allow,
        from: None,
        to: None,
        protocol: None,
        ports: vec![],
    }
}
