//! What `egress` and `ingress` say of a flow's entry, and of a connection's beginning and end: the same,
//! whichever way the packet goes.

use std::time::Duration;

use oncache_abi::{
    container::MacWord,
    entry::{FlowEntry, FlowWord},
    flow::FlowKey,
    reason::{
        Program,
        Reason::{self, *},
    },
};

use super::{
    case::Case,
    program_bench::{Frame, Maps, tick_in, world::*},
};

/// A program that goes by entries, and the packets of the warm flows that it gets.
pub struct Carrier {
    program: Program,
    datagram: fn(usize) -> Frame,
    segment: fn(u8, usize) -> Frame,
}

pub const EGRESS: Carrier = Carrier {
    program: Program::Egress,
    datagram: sent_udp,
    segment: sent_tcp,
};
pub const INGRESS: Carrier = Carrier {
    program: Program::Ingress,
    datagram: arriving_udp,
    segment: arriving_tcp,
};

/// The TCP flow as the beginning or the end of a connection leaves it.
pub fn closed(maps: &mut Maps) {
    let verdict = &mut maps.flows.get_mut(&flow(6)).expect("known").verdict;
    *verdict = verdict.close(&flow(6)).expect("open");
}

/// A flow whose words are none of [`flow`]'s.
pub fn other_flow() -> FlowKey {
    let other = FlowKey {
        local_port: 7,
        ..flow(17)
    };
    assert_ne!(flow(17).wide_tag(), other.wide_tag());
    other
}

impl Carrier {
    /// The flow of a datagram has this entry.
    fn with(&self, name: &str, reason: Reason, entry: FlowEntry) -> Case {
        Case::new(self.program, name, (self.datagram)(100))
            .misses(reason)
            .given(|maps| {
                maps.flows.insert(flow(17), entry);
            })
    }

    /// The flow of a datagram has an entry that is good but for this.
    pub fn but(&self, name: &str, reason: Reason, edit: fn(&mut FlowEntry)) -> Case {
        let mut entry = flow_entry(&flow(17), 3, EPOCH, tick_in(LEASE));
        edit(&mut entry);
        self.with(name, reason, entry)
    }

    /// Entries that are not enough for a hit.
    pub fn entries(&self) -> Vec<Case> {
        let word = |directions, epoch, after: i64| {
            let expiry = tick_in(Duration::ZERO).saturating_add_signed(after);
            flow_entry(&flow(17), directions, epoch, expiry)
        };
        let known = |name, reason, entry| self.with(name, reason, entry);
        let but = |name, reason, edit| self.but(name, reason, edit);
        vec![
            known(
                "word of another flow",
                NoFlow,
                flow_entry(&flow(6), 3, EPOCH, tick_in(LEASE)),
            ),
            known(
                "word of the epoch before",
                StaleEpoch,
                word(3, EPOCH - 1, 1 << 20),
            ),
            known(
                "word of an epoch to come",
                StaleEpoch,
                word(3, EPOCH + 1, 1 << 20),
            ),
            known("lease over", LeaseExpired, word(3, EPOCH, -10)),
            known(
                "lease over long ago",
                LeaseExpired,
                word(3, EPOCH, i64::MIN),
            ),
            known("only egress so far", OneWay, word(1, EPOCH, 1 << 20)),
            known("only ingress so far", OneWay, word(2, EPOCH, 1 << 20)),
            known("no direction", NoFlow, word(0, EPOCH, 1 << 20)),
            but("container never reached", ContainerUnlearned, |entry| {
                entry.device = FlowWord(0);
                entry.mac = MacWord(0);
            }),
            but("device of another epoch", ContainerUnlearned, |entry| {
                entry.device = FlowWord::new(&flow(17), DEVICE, EPOCH + 1);
            }),
            but("no MAC address", ContainerUnlearned, |entry| {
                entry.mac = MacWord(0);
            }),
            but(
                "MAC address of another epoch",
                ContainerUnlearned,
                |entry| {
                    entry.mac = flow_entry(&flow(17), 3, EPOCH + 1, 0).mac;
                },
            ),
            // As if the element had been another flow's a moment ago.
            but("device of another flow", ContainerUnlearned, |entry| {
                entry.device = FlowWord::new(&other_flow(), DEVICE, EPOCH);
            }),
            but("MAC address of another flow", ContainerUnlearned, |entry| {
                entry.mac = flow_entry(&other_flow(), 3, EPOCH, 0).mac;
            }),
            but("host unknown", NoHost, |entry| entry.peer = FlowWord(0)),
            but("host of another epoch", NoHost, |entry| {
                entry.peer = flow_entry(&flow(17), 3, EPOCH + 1, 0).peer;
            }),
            but("host of another flow", NoHost, |entry| {
                entry.peer = flow_entry(&other_flow(), 3, EPOCH, 0).peer;
            }),
        ]
    }

    /// The beginning and the end of connections, as far as the caches have to do with them.
    pub fn connections(&self) -> Vec<Case> {
        let case = |name: &str, flags, payload| {
            Case::new(self.program, name, (self.segment)(flags, payload))
        };
        vec![
            case("SYN ACK", 0x12, 0).misses(SynAck).then(closed),
            case("SYN ACK with congestion notification", 0x52, 0)
                .misses(SynAck)
                .then(closed),
            case("SYN ACK of an unknown flow", 0x12, 0)
                .given(|maps| {
                    maps.flows.remove(&flow(6));
                })
                .misses(SynAck),
            case("SYN ACK of a closed flow", 0x12, 0)
                .given(closed)
                .misses(SynAck),
            case("SYN FIN ACK", 0x13, 0).refused(TcpState).then(closed),
            case("SYN RST ACK", 0x16, 0).refused(TcpState).then(closed),
            case("the last ACK", 0x10, 0).given(closed).refused(Closing),
            // Half closed, it may go on for long.
            case("data after a FIN", DATA, 1)
                .given(closed)
                .misses(NoFlow),
            case("ACK where the lease is over, too", 0x10, 0)
                .given(|maps| {
                    maps.flows
                        .insert(flow(6), flow_entry(&flow(6), 0, EPOCH, 1000));
                })
                .misses(LeaseExpired),
        ]
    }
}
