//! The eBPF programs against frames that somebody spoilt.
//!
//! Every frame is judged by a reference that knows the documented rules and not the programs: what
//! takes the fast path must be allowed to, and must come out as the slow path would have sent it;
//! what is refused must be as it was. And the other way round: a good frame that is refused shows a
//! reference, or a world, that tests nothing.
//!
//! `ONCACHE_FUZZ_INPUTS` sets how many frames (200000), `ONCACHE_FUZZ_SEED` which ones. A failure
//! prints what to store in `found.rs`.

mod found;
mod mutate;
use crate::program_bench;
mod reference;

use crate::program_bench::{Bench, Frame, Maps, REDIRECT, UNSPEC, hex, on_a_bench, world};
use mutate::{Rng, SHORTEST, mutate, noise};
use oncache::datapath::PacketContext;
use oncache_abi::{
    mark::{EGRESS_MISS, INGRESS_MISS},
    reason::{Program, Reason},
};

/// One program under test.
struct Target {
    program: Program,
    /// The rule.
    allows: fn(&[u8], PacketContext) -> bool,
    /// Whether its frames are VXLAN packets.
    is_tunnel: bool,
    /// Its share of the frames, in tenths.
    share: u64,
    device: u32,
    /// The mark that its frames bear.
    mark: u32,
    /// Valid frames, by size.
    valid: [fn(usize) -> Frame; 2],
    world: fn() -> Maps,
}

fn target(program: Program) -> Target {
    let noise = world::FOREIGN_MARK | world::MASK;
    match program {
        Program::Egress => Target {
            program,
            allows: reference::egress,
            is_tunnel: false,
            share: 4,
            device: world::DEVICE,
            mark: noise,
            valid: [world::sent_udp, |size| world::sent_tcp(world::DATA, size)],
            world: world::warm_with_a_way_out,
        },
        Program::Ingress => Target {
            program,
            allows: reference::ingress,
            is_tunnel: true,
            share: 4,
            device: world::UNDERLAY,
            mark: noise,
            valid: [world::arriving_udp, |size| {
                world::arriving_tcp(world::DATA, size)
            }],
            world: world::warm_with_traps,
        },
        Program::EgressInit => Target {
            program,
            allows: reference::egress_init,
            is_tunnel: true,
            share: 1,
            device: world::UNDERLAY,
            mark: world::established(EGRESS_MISS),
            valid: [world::encapsulated_udp, |size| {
                world::encapsulated_tcp(world::DATA, size)
            }],
            world: world::cold,
        },
        Program::IngressInit => Target {
            program,
            allows: reference::ingress_init,
            is_tunnel: false,
            share: 1,
            device: world::DEVICE,
            mark: world::established(INGRESS_MISS),
            valid: [world::delivered_udp, |size| {
                world::delivered_tcp(world::DATA, size)
            }],
            world: world::cold,
        },
    }
}

impl Target {
    /// Runs a frame and says what is wrong with the outcome; else whether the program took it: to
    /// the fast path, or to learn from it.
    fn judge(&self, bench: &Bench, frame: &[u8], context: PacketContext) -> Result<bool, String> {
        let learns = matches!(self.program, Program::EgressInit | Program::IngressInit);
        let learned = || bench.count(self.program, Reason::Learned);
        let before = if learns { learned() } else { 0 };
        let outcome = bench.run(self.program, frame, context);
        let foreign = |mark: u32| mark & !world::MASK;
        let taken = match outcome.action {
            REDIRECT if !learns => true,
            UNSPEC => learns && learned() != before,
            other => return Err(format!("returned {other}")),
        };
        let allowed = (self.allows)(frame, context);
        if taken && !allowed {
            return Err("taken against the rules".to_owned());
        }
        // The kernel redirects no aggregate whose kind it does not know; a test run has no kinds.
        if allowed && !taken && (learns || context.gso_size == 0) {
            return Err("refused, though the rules allow it".to_owned());
        }
        let (packet, mark) = match self.program {
            Program::Egress if taken => {
                let packet = world::on_the_wire(&Frame(frame.to_vec()), &outcome.packet);
                (packet.0, foreign(context.mark))
            }
            Program::Ingress if taken => (world::at_the_container(&Frame(frame.to_vec())).0, 0),
            _ => (frame.to_vec(), foreign(context.mark)),
        };
        if outcome.packet != packet {
            return Err(format!(
                "came out as {}\n           not {}",
                hex(&outcome.packet),
                hex(&packet)
            ));
        }
        let missed = match self.program {
            Program::Egress => world::missed(EGRESS_MISS, world::EPOCH),
            Program::Ingress => world::missed(INGRESS_MISS, world::EPOCH),
            Program::EgressInit | Program::IngressInit => mark,
        };
        if outcome.mark != mark && (taken || outcome.mark != missed) {
            return Err(format!("marked {:#x}", outcome.mark));
        }
        Ok(taken)
    }

    fn context(&self) -> PacketContext {
        PacketContext {
            mark: self.mark,
            ifindex: self.device,
            gso_size: 0,
        }
    }

    fn input(&self, rng: &mut Rng) -> (Vec<u8>, PacketContext) {
        let mut context = self.context();
        if rng.once_in(32) {
            context.ifindex = rng.pick(&world::DEVICES).1;
        }
        if rng.once_in(32) {
            context.gso_size = rng.pick(&[1, 500, 1410, 1411, 60000]);
        }
        if rng.once_in(64) {
            return (noise(rng), context);
        }
        let size = rng.pick(&[0, 1, 2, 9, 60, 333, 1410, 1421, 1422, 1423]);
        let valid = rng.pick(&self.valid)(size);
        (mutate(rng, valid, self.is_tunnel), context)
    }

    fn fuzz(&self) {
        let number = |name, default| match std::env::var(name) {
            Ok(text) => text
                .parse()
                .unwrap_or_else(|_| panic!("{name}={text} is no number")),
            Err(_) => default,
        };
        let inputs = number("ONCACHE_FUZZ_INPUTS", 200_000) * self.share / 10;
        let seed = number("ONCACHE_FUZZ_SEED", 0x006f_6e63_6163_6865);
        let name = self.program.name();
        let taken = on_a_bench(|bench| {
            let mut taken = 0;
            for input in 0..inputs {
                // What earlier frames were learned from, or ended, is forgotten.
                if input % 256 == 0 {
                    bench.set(&(self.world)());
                }
                let (frame, context) = self.input(&mut Rng::new(seed, input));
                match self.judge(bench, &frame, context) {
                    Ok(was_taken) => taken += u64::from(was_taken),
                    Err(wrong) => panic!(
                        "{name}, input {input} of seed {seed}: {wrong}\n{context:x?}\nframe {}",
                        hex(&frame)
                    ),
                }
                // A SYN, FIN or RST has ended its flow.
                bench.enter_flows(&world::carried_flows());
            }
            taken
        });
        println!("{name}: {taken} of {inputs} inputs taken");
        assert!(
            inputs < 1000 || taken * 50 > inputs,
            "{name}: hardly a frame was good: {taken}"
        );
    }

    /// Valid frames of some sizes, cut at every byte.
    fn cut_everywhere(&self) {
        on_a_bench(|bench| {
            for valid in self.valid {
                for size in [0, 1, 100] {
                    let frame = valid(size).0;
                    for length in SHORTEST..=frame.len() {
                        bench.set(&(self.world)());
                        let judged = self.judge(bench, &frame[..length], self.context());
                        let should = length == frame.len();
                        assert_eq!(judged, Ok(should), "{} of {}", length, hex(&frame));
                    }
                }
            }
        });
    }
}

macro_rules! targets {
    ($($name:ident: $program:ident,)+) => {$(
        mod $name {
            use super::{Program, target};

            #[test]
            fn survives_spoilt_frames() {
                target(Program::$program).fuzz();
            }

            #[test]
            fn survives_frames_cut_at_every_byte() {
                target(Program::$program).cut_everywhere();
            }
        }
    )+};
}

targets! {
    egress: Egress,
    egress_init: EgressInit,
    ingress: Ingress,
    ingress_init: IngressInit,
}
