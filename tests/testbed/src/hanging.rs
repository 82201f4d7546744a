//! What others may hang on a device: the smallest programs, qdiscs and filters.
//!
//! Those that drop let small packets pass, by which a flow gets established and learned, and drop large ones:
//! a fast path that passes them by delivers those.

use std::{io, os::fd::OwnedFd};

use crate::{bpf, namespace::Place};

/// Frames longer than this are dropped by what drops, at whichever device and with its headers.
pub const LARGEST: u32 = 600;

pub use bpf::{TCX_EGRESS, TCX_INGRESS};

/// The name of the programs.
const NAME: &str = "foreign";

/// One instruction; `registers` is the source's number times sixteen plus the destination's.
const fn instruction(code: u8, registers: u8, offset: u16, immediate: u32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset as u64) << 16 | (immediate as u64) << 32
}

/// `TCX_NEXT` for all, or `TC_ACT_SHOT` for long packets.
fn classifier(drops: bool) -> Vec<u64> {
    let next = instruction(0xb7, 0x00, 0, u32::MAX);
    let exit = instruction(0x95, 0, 0, 0);
    if !drops {
        return vec![next, exit];
    }
    vec![
        // r2 = skb->len
        instruction(0x61, 0x12, 0, 0),
        next,
        instruction(0xb5, 0x02, 1, LARGEST),
        instruction(0xb7, 0x00, 0, 2),
        exit,
    ]
}

/// `XDP_PASS` for all, or `XDP_DROP` for long packets.
fn xdp(drops: bool) -> Vec<u64> {
    let pass = instruction(0xb7, 0x00, 0, 2);
    let exit = instruction(0x95, 0, 0, 0);
    if !drops {
        return vec![pass, exit];
    }
    vec![
        // r2 = data, r3 = data_end; packets that have LARGEST bytes are dropped.
        instruction(0x61, 0x12, 0, 0),
        instruction(0x61, 0x13, 4, 0),
        instruction(0x07, 0x02, 0, LARGEST),
        pass,
        instruction(0x2d, 0x32, 1, 0),
        instruction(0xb7, 0x00, 0, 1),
        exit,
    ]
}

/// Attaches a program behind those that are on a tcx hook of a device, by a link that ends with the
/// descriptor.
///
/// # Panics
/// If there is no such device, or the kernel refuses.
#[must_use]
pub fn attach_tcx(place: &Place, device: &str, hook: u32, drops: bool) -> OwnedFd {
    place.enter(|| {
        let program =
            bpf::load(bpf::SCHED_CLS, NAME, &classifier(drops)).expect("loading a program");
        let index = nix::net::if_::if_nametoindex(device).expect("a device");
        bpf::link(&program, index, hook).expect("attaching a program")
    })
}

/// Pins an XDP program, unless it is pinned already, and returns the path, for
/// `ip link set DEVICE xdpgeneric pinned PATH`.
///
/// # Panics
/// If the kernel refuses.
#[must_use]
pub fn pin_xdp(place: &Place, drops: bool) -> String {
    let path = format!("/sys/fs/bpf/foreign-{drops}");
    place.enter(|| {
        let program = bpf::load(bpf::XDP, NAME, &xdp(drops)).expect("loading a program");
        if let Err(error) = bpf::pin(&program, &path) {
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "pin: {error}");
        }
    });
    path
}

/// The filter of `tc filter add ... HERE` that does the same as [`attach_tcx`]'s program.
#[must_use]
pub fn bpf_filter(drops: bool) -> String {
    if drops {
        format!("bpf da bytecode '4,128 0 0 0,37 0 1 {LARGEST},6 0 0 2,6 0 0 4294967295'")
    } else {
        "bpf da bytecode '1,6 0 0 4294967295'".to_owned()
    }
}
