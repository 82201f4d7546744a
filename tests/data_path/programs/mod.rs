//! The eBPF programs, packet by packet: for every program and every reason it can give, packets
//! that make it give that reason, and all that must come of them.

mod case;
mod complete;
mod crowded;
mod egress;
mod egress_init;
mod entries;
mod epoch_race;
mod ingress;
mod ingress_init;
use crate::program_bench;
