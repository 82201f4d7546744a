//! A packet that missed in one epoch, while the next one begins: whatever it teaches is of its own
//! epoch, so that it dies with it. A program that read the epoch twice would enter what passed the
//! old rules as learned under the new ones.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use oncache::datapath::PacketContext;
use oncache_abi::{
    mark::{EGRESS_MISS, INGRESS_MISS},
    reason::Program,
};

use super::program_bench::{
    Bench, Frame, Maps, on_a_bench,
    world::{DATA, DEVICE, EPOCH, UNDERLAY, cold, delivered_tcp, encapsulated_tcp, established},
};

const RUNS: usize = 40_000;

/// What is remembered of the epoch that has only begun.
fn of_the_next_epoch(maps: &Maps) -> usize {
    let next = EPOCH + 1;
    let low = (next & 0xffff) as u16;
    let flows = maps
        .flows
        .values()
        .filter(|word| word.verdict.epoch() == low)
        .count();
    let peers = maps
        .peers
        .values()
        .filter(|headers| headers.epoch == next)
        .count();
    let containers = maps.containers.values();
    let macs = containers
        .filter(|container| container.mac.is_current(next))
        .count();
    flows + peers + macs
}

fn learn_while_epochs_change(bench: &mut Bench, program: Program, frame: &Frame, mark: u32) {
    let ifindex = if program == Program::EgressInit {
        UNDERLAY
    } else {
        DEVICE
    };
    let context = PacketContext {
        mark,
        ifindex,
        gso_size: 0,
    };
    let ended = AtomicBool::new(false);
    let mut epochs = bench.epochs();
    let (mut learned, mut wrong) = (0, 0);
    thread::scope(|scope| {
        let ended = &ended;
        scope.spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                epochs.set(EPOCH);
                epochs.set(EPOCH + 1);
            }
        });
        for _ in 0..RUNS / 100 {
            bench.set(&cold());
            for _ in 0..100 {
                bench.run(program, &frame.0, context);
                let maps = bench.maps();
                learned += usize::from(!maps.flows.is_empty());
                wrong += of_the_next_epoch(&maps);
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    println!(
        "{}: {RUNS} packets while epochs change, after {learned} of them a flow was known, {wrong} times of the wrong epoch",
        program.name()
    );
    assert!(learned > 0, "nothing was learned at all");
    assert_eq!(
        wrong,
        0,
        "{} learned for an epoch in which the packet did not miss",
        program.name()
    );
}

#[test]
fn what_a_packet_teaches_is_of_the_epoch_in_which_it_missed() {
    on_a_bench(|bench| {
        learn_while_epochs_change(
            bench,
            Program::EgressInit,
            &encapsulated_tcp(DATA, 0),
            established(EGRESS_MISS),
        );
        learn_while_epochs_change(
            bench,
            Program::IngressInit,
            &delivered_tcp(DATA, 0),
            established(INGRESS_MISS),
        );
    });
}
