//! New flows while the filter cache is crowded: one packet in 64 is marked as missed and enters its
//! flow, the others cost the look-up and are not marked at all.

use oncache::datapath::{PacketContext, clock};
use oncache_abi::{
    admission::ONE_OF,
    mark::{EGRESS_MISS, INGRESS_MISS},
    reason::{Program, Reason},
};

use super::program_bench::{
    Bench, Frame, Maps, REDIRECT, UNSPEC, on_a_bench, tick_in,
    world::{
        self, arriving_tcp, arriving_udp, delivered_udp, encapsulated_udp, flow_entry, sent_tcp,
        sent_udp,
    },
};

const PACKETS: u32 = 20 * ONE_OF;

/// What the programs say of one packet each, `PACKETS` times, with the caches as given and every CPU
/// crowded since a tick: how many were turned away. The others count for `reason`, and those that miss are
/// marked.
fn turned_away(
    bench: &mut Bench,
    (program, frame, given): (Program, &Frame, &Maps),
    since: u64,
    reason: Reason,
) -> u64 {
    let (ifindex, miss) = match program {
        Program::Egress => (world::DEVICE, EGRESS_MISS),
        Program::EgressInit => (world::UNDERLAY, EGRESS_MISS),
        Program::Ingress => (world::UNDERLAY, INGRESS_MISS),
        Program::IngressInit => (world::DEVICE, INGRESS_MISS),
    };
    let learns = matches!(program, Program::EgressInit | Program::IngressInit);
    let mark = match program {
        _ if learns => world::established(miss),
        _ => world::FOREIGN_MARK | world::MASK,
    };
    let mut crowded = 0;
    for _ in 0..PACKETS {
        bench.set(given);
        bench.crowd(since);
        let before = [reason, Reason::Crowded].map(|reason| bench.count(program, reason));
        let context = PacketContext {
            mark,
            ifindex,
            gso_size: 0,
        };
        let outcome = bench.run(program, &frame.0, context);
        assert_eq!(outcome.action, UNSPEC);
        assert_eq!(outcome.packet, frame.0, "the packet goes on as it is");
        let now = [reason, Reason::Crowded].map(|reason| bench.count(program, reason));
        let away = now[1] - before[1];
        assert_eq!(now[0] - before[0] + away, 1, "{}", program.name());
        let marked = match away {
            0 if !learns => world::missed(miss, world::EPOCH),
            _ => world::FOREIGN_MARK,
        };
        assert_eq!(outcome.mark, marked, "{}", program.name());
        crowded += away;
    }
    crowded
}

/// A while ago: the programs' clock is a little behind ours, and a window of the future is over.
fn begun() -> u64 {
    clock::now() - 10
}

/// Of a new flow's packets all but about twenty, which is one in 64.
fn most(away: u64) -> bool {
    (2..=60).contains(&(u64::from(PACKETS) - away))
}

/// A lease ago and longer.
fn over() -> u64 {
    begun() - u64::from(clock::to_ticks(world::LEASE))
}

#[test]
fn one_packet_in_sixty_four_misses_while_the_cache_is_crowded() {
    on_a_bench(|bench| {
        for (program, frames) in [
            (Program::Egress, [sent_udp(17), sent_tcp(0x12, 0)]),
            (Program::Ingress, [arriving_udp(17), arriving_tcp(0x12, 0)]),
        ] {
            for (frame, reason) in frames.iter().zip([Reason::NoFlow, Reason::SynAck]) {
                let mut said = |given: &Maps, since, reason| {
                    turned_away(bench, (program, frame, given), since, reason)
                };
                let cold = without_flows();
                let away = said(&cold, begun(), reason);
                println!(
                    "{}, {reason:?}: {away} of {PACKETS} turned away",
                    program.name()
                );
                assert!(most(away), "{away}");
                // A flow that has a place is renewed as ever, whatever it lacks.
                let known = world::warm().but(|maps| {
                    for (key, entry) in &mut maps.flows {
                        *entry = flow_entry(key, 3, world::EPOCH - 1, tick_in(world::LEASE));
                    }
                });
                let lacks = match reason {
                    Reason::NoFlow => Reason::StaleEpoch,
                    other => other,
                };
                assert_eq!(said(&known, begun(), lacks), 0);
                // And with the next lease there is room again.
                assert_eq!(said(&cold, over(), reason), 0);
            }
        }
    });
}

#[test]
fn what_is_in_the_cache_is_carried_while_it_is_crowded() {
    on_a_bench(|bench| {
        for (program, frame, ifindex) in [
            (Program::Egress, sent_udp(17), world::DEVICE),
            (Program::Ingress, arriving_udp(17), world::UNDERLAY),
        ] {
            bench.set(&world::warm());
            bench.crowd(begun());
            let context = PacketContext {
                mark: 0,
                ifindex,
                gso_size: 0,
            };
            assert_eq!(bench.run(program, &frame.0, context).action, REDIRECT);
        }
    });
}

/// Keeps the thread on the CPU it is on: what is drawn is each CPU's own.
fn stay() {
    let cpu = nix::sched::sched_getcpu().expect("the number of a CPU");
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).expect("a CPU that the kernel can name");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .expect("a CPU that is there");
}

#[test]
fn a_place_that_was_drawn_is_taken() {
    on_a_bench(|bench| {
        stay();
        for (missing, frame, learning, learned) in [
            (
                Program::Egress,
                sent_udp(17),
                Program::EgressInit,
                encapsulated_udp(1),
            ),
            (
                Program::Ingress,
                arriving_udp(17),
                Program::IngressInit,
                delivered_udp(1),
            ),
        ] {
            let (at, then, miss) = match missing {
                Program::Egress => (world::DEVICE, world::UNDERLAY, EGRESS_MISS),
                _ => (world::UNDERLAY, world::DEVICE, INGRESS_MISS),
            };
            bench.crowd(begun());
            let mut taken = 0;
            for _ in 0..PACKETS {
                bench.set(&without_flows());
                let context = |ifindex, mark| PacketContext {
                    mark,
                    ifindex,
                    gso_size: 0,
                };
                let outcome = bench.run(missing, &frame.0, context(at, world::FOREIGN_MARK));
                if outcome.mark != world::missed(miss, world::EPOCH) {
                    continue;
                }
                let before = bench.count(learning, Reason::Learned);
                bench.run(
                    learning,
                    &learned.0,
                    context(then, world::established(miss)),
                );
                assert_eq!(
                    bench.count(learning, Reason::Learned),
                    before + 1,
                    "{}",
                    learning.name()
                );
                taken += 1;
            }
            println!("{}: {taken} drawn and taken", missing.name());
            assert!(most(u64::from(PACKETS) - taken), "{taken}");
        }
    });
}

#[test]
fn what_has_missed_elsewhere_draws_where_it_is_learned_from() {
    on_a_bench(|bench| {
        for (program, frame) in [
            (Program::EgressInit, encapsulated_udp(1)),
            (Program::IngressInit, delivered_udp(1)),
        ] {
            let mut said = |given: &Maps, since| {
                turned_away(bench, (program, &frame, given), since, Reason::Learned)
            };
            let away = said(&world::cold(), begun());
            println!("{}: {away} of {PACKETS} turned away", program.name());
            assert!(most(away), "{away}");
            // What is there already is renewed as ever.
            assert_eq!(said(&world::warm(), begun()), 0);
            // And with the next lease there is room again.
            assert_eq!(said(&world::cold(), over()), 0);
        }
    });
}

/// All is known but the flows.
fn without_flows() -> Maps {
    world::warm().but(|maps| maps.flows.clear())
}
