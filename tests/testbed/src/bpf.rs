//! Which eBPF programs are attached to a device, asked by device: indices are the network
//! namespace's own, while the kernel's list of links is the machine's.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;

/// The attach types of a device, and what they are called.
const HOOKS: [(u32, &str); 4] = [
    (46, "tcx ingress"),
    (47, "tcx egress"),
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

/// One line per program attached to the device of the calling thread's network namespace: hook,
/// program name, and whether a link or a plain attachment holds it. Empty where the kernel does
/// not know the hook or the device is of another kind.
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
        prog_ids: address(&mut programs),
        link_ids: address(&mut links),
        count: u32::try_from(MOST).expect("a small number"),
        ..Query::default()
    };
    call(PROG_QUERY, &mut attributes)?;
    let count = usize::try_from(attributes.count).expect("a small number");
    Ok(programs.into_iter().zip(links).take(count).collect())
}

fn program_name(id: u32) -> io::Result<String> {
    const NAME: std::ops::Range<usize> = 64..80;
    let fd = call(
        PROG_GET_FD_BY_ID,
        &mut GetById {
            id,
            ..GetById::default()
        },
    )?;
    let fd = i32::try_from(fd).expect("a descriptor");
    // SAFETY: the kernel has just made the descriptor for this call.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = [0_u8; 96];
    let mut attributes = GetInfo {
        fd: u32::try_from(program.as_raw_fd()).expect("a descriptor"),
        length: u32::try_from(info.len()).expect("a small number"),
        info: address(&mut info),
    };
    call(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let name: Vec<u8> = info[NAME]
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

fn address<T>(of: &mut [T]) -> u64 {
    u64::try_from(of.as_mut_ptr().addr()).expect("an address has 64 bits at most")
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
