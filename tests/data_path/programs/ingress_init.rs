//! `ingress_init`: what is learned from packets that the slow path delivers.

use oncache_abi::{
    container::{LocalContainer, MacWord},
    mark::{EGRESS_MISS, INGRESS_MISS},
    reason::{Program, Reason::*},
};

use super::{
    case::{Case, check},
    program_bench::{Frame, key, tick_in, world::*},
};

const IP: usize = 14;
const TRANSPORT: usize = 34;

fn case(name: impl Into<String>, frame: Frame) -> Case {
    Case::new(Program::IngressInit, name, frame).given(|maps| *maps = cold())
}

fn ip(edit: impl FnOnce(&mut [u8])) -> Frame {
    delivered_udp(100).ip(IP, edit)
}

fn unfit() -> Vec<Case> {
    let bytes = |name: &str, at, bytes: &[u8], reason| {
        case(name, delivered_udp(100).bytes(at, bytes)).refused(reason)
    };
    vec![
        bytes("ARP", 12, &[8, 6], NotIpv4),
        bytes("tagged frame", 12, &[0x81, 0], NotIpv4),
        case("options", ip(|ip| ip[0] = 0x46)).refused(IpOptions),
        bytes("wrong checksum", IP + 10, &[0, 1], BadHeader),
        case("cut short", delivered_udp(100).cut(100)).refused(BadHeader),
        bytes("UDP too long", TRANSPORT + 4, &[0, 109], BadHeader),
        case(
            "no room for a UDP header",
            ip(|ip| ip[3] = 27).cut(IP + 27).ip(IP, |ip| ip[2] = 0),
        )
        .refused(Truncated),
        case("fragment", ip(|ip| ip[6] = 0x20)).refused(Fragment),
        case("ICMP", ip(|ip| ip[9] = 1)).refused(OtherProtocol),
        case("withheld", delivered_udp(100))
            .given(withhold)
            .refused(Withheld),
        case("to no container of ours", ip(|ip| ip[19] = 9)).refused(NoContainer),
        bytes("not from the gateway", 11, &[9], NotGateway),
        case("by another container's device", delivered_udp(100))
            .on(NEIGHBOUR_DEVICE)
            .refused(SourceMismatch),
    ]
}

/// Nothing is learned from a packet whose mark does not say all three: missed in `ingress`, in this
/// epoch, and established.
fn unproven() -> Vec<Case> {
    let marked = |name: &str, mark| case(name, delivered_udp(100)).marked(mark);
    let est = established(0) & !missed(0, EPOCH);
    vec![
        marked("no mark", 0).ignored(),
        marked("foreign mark", FOREIGN_MARK).ignored(),
        marked("established, not missed", established(0)).ignored(),
        marked("missed in egress", established(EGRESS_MISS)).ignored(),
        marked("missed in both", established(EGRESS_MISS | INGRESS_MISS)).ignored(),
        marked("not established", missed(INGRESS_MISS, EPOCH)).refused(NotEstablished),
        marked("missed an epoch ago", missed(INGRESS_MISS, EPOCH - 1) | est).refused(StaleMark),
        marked(
            "missed in an epoch to come",
            missed(INGRESS_MISS, EPOCH + 1) | est,
        )
        .refused(StaleMark),
        marked("stale and not established", missed(INGRESS_MISS, EPOCH - 1))
            .refused(NotEstablished),
    ]
}

fn learned() -> Vec<Case> {
    let learns = |name: &str, frame| case(name, frame).refused(Learned);
    let word = flow_entry(&flow(17), 1, EPOCH, tick_in(2 * LEASE));
    vec![
        learns("first datagram", delivered_udp(100)).then(|maps| {
            maps.containers.insert(key(LOCAL), reachable());
            maps.flows.insert(flow(17), fresh(&flow(17), 2));
        }),
        learns("first segment", delivered_tcp(DATA, 0)).then(|maps| {
            maps.containers.insert(key(LOCAL), reachable());
            maps.flows.insert(flow(6), fresh(&flow(6), 2));
        }),
        learns("the other direction is known", delivered_udp(1))
            .given(|maps| {
                maps.flows.insert(flow(17), word);
            })
            .then(|maps| {
                maps.containers.insert(key(LOCAL), reachable());
                // The lease is the first direction's still.
                maps.flows.insert(
                    flow(17),
                    flow_entry(&flow(17), 3, EPOCH, word.verdict.expiry()),
                );
            }),
        learns("all is known", delivered_udp(1)).given(|maps| *maps = warm()),
        learns("lease over", delivered_udp(1))
            .given(|maps| {
                *maps = warm();
                maps.flows
                    .insert(flow(17), flow_entry(&flow(17), 3, EPOCH, 1000));
            })
            .then(|maps| {
                maps.flows.insert(flow(17), fresh(&flow(17), 2));
            }),
        learns("the connection before has ended", delivered_udp(1))
            .given(|maps| {
                *maps = warm();
                maps.flows.insert(flow(17), live(&flow(17), 0));
            })
            .then(|maps| {
                maps.flows.insert(flow(17), fresh(&flow(17), 2));
            }),
        learns("all is of another epoch", delivered_udp(1))
            .given(|maps| {
                *maps = warm();
                let old = flow_entry(&flow(17), 3, EPOCH - 1, tick_in(2 * LEASE));
                maps.flows.insert(flow(17), old);
                let mac = MacWord::new(LOCAL_MAC, EPOCH - 1);
                maps.containers
                    .insert(key(LOCAL), LocalContainer { mac, ..reachable() });
            })
            .then(|maps| {
                maps.containers.insert(key(LOCAL), reachable());
                maps.flows.insert(flow(17), fresh(&flow(17), 2));
            }),
        learns("container has a new MAC", delivered_udp(1).bytes(5, &[77]))
            .given(|maps| *maps = warm())
            .then(|maps| {
                let [a, b, c, d, e, _] = LOCAL_MAC;
                let mac = MacWord::new([a, b, c, d, e, 77], EPOCH);
                let entry = maps.flows.get_mut(&flow(17)).expect("a warm flow");
                entry.mac.0 = entry.mac.0 & !(0xff << 40) | 77 << 40;
                maps.containers
                    .insert(key(LOCAL), LocalContainer { mac, ..reachable() });
            }),
    ]
}

pub fn cases() -> Vec<Case> {
    let all = [unfit(), unproven(), learned()];
    all.into_iter().flatten().collect()
}

#[test]
fn every_reason_of_ingress_init() {
    check(&cases());
}
