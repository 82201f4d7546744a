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
mod family;
mod inner;
mod jiffy;
mod learning;
mod maps;
mod packet;
mod programs;
mod tunnel;

use aya_ebpf::{
    bindings::__sk_buff, bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext,
};
use family::V4;
use oncache_abi::reason::Program;
use packet::Skb;
use programs::{egress, egress_init, ingress, ingress_init};
use tunnel::Vxlan;

/// Runs one program and counts its reason.
macro_rules! program {
    ($name:ident, $run:expr, $program:expr) => {
        #[classifier]
        pub fn $name(context: TcContext) -> i32 {
            let raw: *mut __sk_buff = context.skb.skb;
            match $run(&Skb::new(raw)) {
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

program!(egress, egress::run::<V4, Vxlan>, Program::Egress);
program!(
    egress_init,
    egress_init::run::<V4, Vxlan>,
    Program::EgressInit
);
program!(ingress, ingress::run::<V4, Vxlan>, Program::Ingress);
program!(ingress_init, ingress_init::run::<V4>, Program::IngressInit);

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
