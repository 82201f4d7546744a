//! The smallest program at tc ingress.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;

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

/// Attaches a program that lets the next one decide, by a link that ends with the descriptor.
pub fn attach_pass(device: &str, name: &str) -> OwnedFd {
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    // r0 = TCX_NEXT (-1); exit
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let license = CString::new("GPL").expect("no zero inside");
    let load = Load {
        kind: SCHED_CLS,
        instruction_count: 2,
        instructions: instructions.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: padded,
    };
    let program = call(PROG_LOAD, &load).expect("loading a program");
    let index = nix::net::if_::if_nametoindex(device).expect("a device");
    let link = Link {
        program: u32::try_from(program.as_raw_fd()).expect("a descriptor"),
        ifindex: index,
        attach_type: TCX_INGRESS,
        flags: 0,
        relative: [0; 2],
    };
    call(LINK_CREATE, &link).expect("attaching a program")
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the pointer and the size describe `attributes`, and what it points to outlives the
    // call; both commands return a new descriptor that is nobody else's.
    unsafe {
        match libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) {
            fd if fd < 0 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(
                i32::try_from(fd).expect("a descriptor"),
            )),
        }
    }
}
