//! oncache's data path: four tc programs and their maps.
//!
//! | program | where | does |
//! | --- | --- | --- |
//! | `egress` | tc ingress of a container's host-side device, or netkit's peer hook | container to NIC by the cache |
//! | `egress_init` | tc egress of the underlay device | learns from encapsulated packets |
//! | `ingress` | tc ingress of the underlay device | NIC to container by the cache |
//! | `ingress_init` | tc egress of a container's host-side device | learns from delivered packets |
//!
//! None of them drops a packet: what a program does not fully understand goes on to the slow path
//! (`TC_ACT_UNSPEC`, so that other programs and filters on the hook still run), counted by reason.
#![no_std]
#![no_main]

mod counters;
mod egress;
mod egress_init;
mod ingress;
mod ingress_init;
mod inner;
mod jiffy;
mod learning;
mod maps;
mod outer;
mod packet;

use aya_ebpf::{
    bindings::__sk_buff, bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext,
};
use oncache_abi::reason::Program;
use packet::Skb;

/// Runs one program and counts its reason.
macro_rules! program {
    ($name:ident, $program:expr) => {
        #[classifier]
        pub fn $name(context: TcContext) -> i32 {
            let raw: *mut __sk_buff = context.skb.skb;
            match $name::run(&Skb::new(raw)) {
                Ok(action) => action,
                Err(None) => TC_ACT_UNSPEC,
                Err(Some(reason)) => {
                    counters::count($program, reason);
                    TC_ACT_UNSPEC
                }
            }
        }
    };
}

program!(egress, Program::Egress);
program!(egress_init, Program::EgressInit);
program!(ingress, Program::Ingress);
program!(ingress_init, Program::IngressInit);

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // SAFETY: no code of these programs can panic (no indexing, no overflow checks in release); the
    // verifier refuses the object if this were reachable.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The programs call only helpers that are open to any licence; tracing tools want this one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
