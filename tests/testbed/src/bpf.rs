//! bpf(2): which programs are attached to a device, and small ones loaded, attached and pinned.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;

/// `BPF_PROG_TYPE_SCHED_CLS`.
pub(crate) const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`.
pub(crate) const XDP: u32 = 6;

/// `BPF_TCX_INGRESS`.
pub const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub const TCX_EGRESS: u32 = 47;

/// The attach types of a device, and what they are called.
const HOOKS: [(u32, &str); 4] = [
    (TCX_INGRESS, "tcx ingress"),
    (TCX_EGRESS, "tcx egress"),
    (54, "netkit primary"),
    (55, "netkit peer"),
];

/// More programs than anybody attaches to one hook.
const MOST: usize = 64;

#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct GetById {
    id: u32,
    next_id: u32,
    open_flags: u32,
    reserved: u32,
}

#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
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
#[derive(Default)]
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

/// Loads a program of up to 15 bytes of name.
pub(crate) fn load(kind: u32, name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    let mut attributes = Load {
        kind,
        instruction_count: u32::try_from(instructions.len()).expect("a small program"),
        instructions: address(instructions),
        license: address(c"GPL".to_bytes_with_nul()),
        name: padded,
        ..Load::default()
    };
    new_descriptor(PROG_LOAD, &mut attributes)
}

/// Attaches a program behind those that are on a tcx hook of a device of the calling thread's
/// network namespace, by a link that ends with the descriptor.
pub(crate) fn link(program: &impl AsFd, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attributes = Link {
        program: number(program),
        ifindex,
        attach_type,
        ..Link::default()
    };
    new_descriptor(LINK_CREATE, &mut attributes)
}

/// Pins a program to a path of the calling thread's mount namespace.
pub(crate) fn pin(program: &impl AsFd, path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    let mut attributes = Pin {
        path: address(path.as_bytes_with_nul()),
        fd: number(program),
        flags: 0,
    };
    call(OBJ_PIN, &mut attributes).map(drop)
}

/// One line per program attached to the device of the calling thread's network namespace: hook,
/// program name, and whether a link or a plain attachment holds it. Empty where the kernel does
/// not know the hook or the device is of another kind.
///
/// It is asked by device: indices are the network namespace's own, while the kernel's list of links
/// is the machine's.
pub(crate) fn attached(ifindex: u32) -> Vec<String> {
    let hooks = HOOKS.iter().flat_map(|(attach_type, name)| {
        let programs = query(ifindex, *attach_type).unwrap_or_default();
        programs.into_iter().map(move |(program, link)| {
            let held = if link == 0 { "no link" } else { "link" };
            let program = program_name(program).unwrap_or_else(|_| format!("program {program}"));
            format!("{name}: {program} ({held})")
        })
    });
    hooks.collect()
}

/// Program and link ids, in the order in which the programs run.
fn query(ifindex: u32, attach_type: u32) -> io::Result<Vec<(u32, u32)>> {
    let mut programs = [0_u32; MOST];
    let mut links = [0_u32; MOST];
    let mut attributes = Query {
        ifindex,
        attach_type,
        prog_ids: address_to_fill(&mut programs),
        link_ids: address_to_fill(&mut links),
        count: u32::try_from(MOST).expect("a small number"),
        ..Query::default()
    };
    call(PROG_QUERY, &mut attributes)?;
    let count = usize::try_from(attributes.count).expect("a small number");
    Ok(programs.into_iter().zip(links).take(count).collect())
}

fn program_name(id: u32) -> io::Result<String> {
    const NAME: std::ops::Range<usize> = 64..80;
    let program = new_descriptor(
        PROG_GET_FD_BY_ID,
        &mut GetById {
            id,
            ..GetById::default()
        },
    )?;
    let mut info = [0_u8; 96];
    let mut attributes = GetInfo {
        fd: number(&program),
        length: u32::try_from(info.len()).expect("a small number"),
        info: address_to_fill(&mut info),
    };
    call(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let name: Vec<u8> = info[NAME]
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

fn number(of: &impl AsFd) -> u32 {
    u32::try_from(of.as_fd().as_raw_fd()).expect("a descriptor")
}

/// Where the kernel reads.
fn address<T>(of: &[T]) -> u64 {
    u64::try_from(of.as_ptr().expose_provenance()).expect("an address has 64 bits at most")
}

/// Where the kernel writes.
fn address_to_fill<T>(of: &mut [T]) -> u64 {
    u64::try_from(of.as_mut_ptr().expose_provenance()).expect("an address has 64 bits at most")
}

/// A command that makes a descriptor.
fn new_descriptor<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = i32::try_from(call(command, attributes)?).expect("a descriptor");
    // SAFETY: the kernel has just made the descriptor for this call; it is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the pointer and the size describe `attributes`; the addresses inside it are those
    // of buffers that live longer than the call, with their lengths beside them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
