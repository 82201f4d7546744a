//! New flows while the filter cache is crowded: one packet in 64 enters its flow.

use oncache::datapath::{PacketContext, clock};
use oncache_abi::{
    admission::ONE_OF,
    mark::{EGRESS_MISS, INGRESS_MISS},
    reason::{Program, Reason},
};

use super::program_bench::{
    Bench, Frame, Maps, UNSPEC, on_a_bench,
    world::{self, delivered_udp, encapsulated_udp},
};

const PACKETS: u32 = 20 * ONE_OF;

/// What the learning programs say of one packet each, `PACKETS` times, with the caches as given:
/// how many they learned from, and how many were one too many.
fn said(bench: &mut Bench, given: &Maps, program: Program) -> (u64, u64) {
    let (frame, ifindex, miss): (Frame, u32, u32) = match program {
        Program::EgressInit => (encapsulated_udp(1), world::UNDERLAY, EGRESS_MISS),
        _ => (delivered_udp(1), world::DEVICE, INGRESS_MISS),
    };
    let count = |bench: &Bench| {
        [Reason::Learned, Reason::Crowded].map(|reason| bench.count(program, reason))
    };
    let before = count(bench);
    for _ in 0..PACKETS {
        bench.set(given);
        let context = PacketContext {
            mark: world::established(miss),
            ifindex,
            gso_size: 0,
        };
        let outcome = bench.run(program, &frame.0, context);
        assert_eq!(outcome.action, UNSPEC);
        assert_eq!(outcome.packet, frame.0, "the packet goes on as it is");
        assert_eq!(outcome.mark, world::FOREIGN_MARK);
    }
    let now = count(bench);
    (now[0] - before[0], now[1] - before[1])
}

/// A while ago: the programs' clock is a little behind ours, and a window of the future is over.
fn begun() -> u64 {
    clock::now() - 10
}

#[test]
fn one_packet_in_sixty_four_enters_a_new_flow() {
    on_a_bench(|bench| {
        for program in [Program::EgressInit, Program::IngressInit] {
            let all = u64::from(PACKETS);
            bench.crowd(begun());
            let (learned, crowded) = said(bench, &world::cold(), program);
            println!(
                "{}: crowded: {learned} learned, {crowded} turned away",
                program.name()
            );
            assert_eq!(learned + crowded, all);
            // Twenty are to be expected.
            assert!((2..=60).contains(&learned), "{learned}");

            // What is there already is renewed as ever.
            bench.crowd(begun());
            assert_eq!(said(bench, &world::warm(), program), (all, 0));

            // And with the next lease there is room again.
            bench.crowd(begun() - u64::from(clock::to_ticks(world::LEASE)));
            assert_eq!(said(bench, &world::cold(), program), (all, 0));
        }
    });
}
