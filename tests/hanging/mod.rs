//! What others may hang on a device: the smallest programs, qdiscs and filters.
//!
//! Those that drop let small packets pass, by which a flow gets established and learned, and drop large ones:
//! a fast path that passes them by delivers those.

#![allow(dead_code, reason = "no test takes everything")]

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use oncache_testbed::Host;

/// Frames longer than this are dropped by what drops, at whichever device and with its headers.
pub const LARGEST: u32 = 600;

const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const LINK_CREATE: libc::c_long = 28;
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
/// `BPF_TCX_INGRESS`.
pub const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub const TCX_EGRESS: u32 = 47;

#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Link {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: [u64; 2],
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

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

fn load(kind: u32, instructions: &[u64]) -> OwnedFd {
    let license = CString::new("GPL").expect("no zero inside");
    let mut name = [0; 16];
    name[..7].copy_from_slice(b"foreign");
    call(
        PROG_LOAD,
        &Load {
            kind,
            instruction_count: u32::try_from(instructions.len()).expect("few"),
            instructions: instructions.as_ptr().addr() as u64,
            license: license.as_ptr().addr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name,
        },
    )
    .expect("loading a program")
}

/// Attaches a program behind those that are on a tcx hook of a host's device, by a link that ends with the descriptor.
pub fn attach_tcx(host: &Host, device: &str, hook: u32, drops: bool) -> OwnedFd {
    host.enter(|| {
        let program = load(SCHED_CLS, &classifier(drops));
        let link = Link {
            program: u32::try_from(program.as_raw_fd()).expect("a descriptor"),
            ifindex: nix::net::if_::if_nametoindex(device).expect("a device"),
            attach_type: hook,
            flags: 0,
            relative: [0; 2],
        };
        call(LINK_CREATE, &link).expect("attaching a program")
    })
}

/// Pins an XDP program on a host and returns the path, for `ip link set DEVICE xdpgeneric pinned PATH`.
pub fn pin_xdp(host: &Host, drops: bool) -> String {
    let path = format!("/sys/fs/bpf/foreign-{drops}");
    host.enter(|| {
        let program = load(XDP, &xdp(drops));
        let name = CString::new(path.clone()).expect("no zero inside");
        let pin = Pin {
            path: name.as_ptr().addr() as u64,
            fd: u32::try_from(program.as_raw_fd()).expect("a descriptor"),
            flags: 0,
        };
        // SAFETY: as in `call`; this command returns no descriptor.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, OBJ_PIN, &raw const pin, size_of::<Pin>()) };
        let error = io::Error::last_os_error();
        assert!(
            result == 0 || error.kind() == io::ErrorKind::AlreadyExists,
            "pin: {error}"
        );
    });
    path
}

/// The filter of `tc filter add ... HERE` that does the same as [`attach_tcx`]'s program.
pub fn bpf_filter(drops: bool) -> String {
    if drops {
        format!("bpf da bytecode '4,128 0 0 0,37 0 1 {LARGEST},6 0 0 2,6 0 0 4294967295'")
    } else {
        "bpf da bytecode '1,6 0 0 4294967295'".to_owned()
    }
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the pointer and the size describe `attributes`, and what it points to outlives the
    // call; these commands return a new descriptor that is nobody else's.
    unsafe {
        match libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) {
            fd if fd < 0 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(
                i32::try_from(fd).expect("a descriptor"),
            )),
        }
    }
}
