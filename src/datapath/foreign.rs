//! Programs of others on the hooks that ours are on.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya::programs::SchedClassifier;
use nix::errno::Errno;
use oncache_abi::reason::Program;

use super::{Datapath, DatapathError};

// Commands of include/uapi/linux/bpf.h.
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;

/// Hooks of a device that eBPF programs are attached to without a filter (`BPF_TCX_*`, `BPF_NETKIT_*`), and
/// what they are called.
const HOOKS: [(u32, &str); 4] = [
    (46, "tcx ingress"),
    (47, "tcx egress"),
    (54, "netkit primary"),
    (55, "netkit peer"),
];

/// How many programs a hook takes (`BPF_MPROG_MAX`).
const MOST: usize = 64;

/// A program of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its name, or its number.
    pub program: String,
    /// Such as `tcx egress`.
    pub hook: &'static str,
}

/// The part of `union bpf_attr` for `BPF_PROG_QUERY`.
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

impl Datapath {
    /// The kernel's ids of this load's programs.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]: the kernel does not tell.
    pub fn program_ids(&self) -> Result<HashSet<u32>, DatapathError> {
        let ids = Program::ALL.iter().map(|program| {
            let name = program.name();
            let failed = |source| DatapathError::Program {
                program: name,
                source,
            };
            let loaded = self.programs.program(name);
            let loaded = loaded.ok_or(DatapathError::Missing(name))?;
            let loaded: &SchedClassifier = loaded.try_into().map_err(failed)?;
            Ok(loaded.info().map_err(failed)?.id())
        });
        ids.collect()
    }
}

/// The programs on a device's tcx and netkit hooks that are none of `ours`. None where there is no such device
/// any more.
///
/// # Errors
///
/// The system's: it may have some.
pub fn foreign(ifindex: u32, ours: &HashSet<u32>) -> io::Result<Vec<Foreign>> {
    let mut found = Vec::new();
    for (attach_type, hook) in HOOKS {
        for id in query(ifindex, attach_type)? {
            if !ours.contains(&id) {
                let program = name(id).unwrap_or_else(|_| id.to_string());
                found.push(Foreign { program, hook });
            }
        }
    }
    Ok(found)
}

/// Ids of the programs on a hook, in the order in which they run.
fn query(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST];
    let mut attributes = Query {
        ifindex,
        attach_type,
        prog_ids: address(&mut ids),
        count: u32::try_from(MOST).unwrap_or_default(),
        ..Query::default()
    };
    match call(BPF_PROG_QUERY, &mut attributes) {
        Ok(_) => {
            let count = usize::try_from(attributes.count).unwrap_or(MOST);
            Ok(ids.into_iter().take(count).collect())
        }
        // A kernel without the hook, a device of another kind (drivers/net/netkit.c,
        // `netkit_dev_fetch`), one without any program, or none at all.
        Err(error)
            if [
                Errno::EINVAL,
                Errno::ENOENT,
                Errno::ENODEV,
                Errno::ENXIO,
                Errno::EACCES,
            ]
            .iter()
            .any(|errno| error.raw_os_error() == Some(*errno as i32)) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn name(id: u32) -> io::Result<String> {
    /// Where `struct bpf_prog_info` has the name.
    const NAME: usize = 64;
    const LENGTH: usize = 16;
    let mut by_id = GetById {
        id,
        ..GetById::default()
    };
    let fd = call(BPF_PROG_GET_FD_BY_ID, &mut by_id)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made the descriptor for this call.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = [0_u8; NAME + LENGTH];
    let mut attributes = GetInfo {
        fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        length: u32::try_from(info.len()).map_err(io::Error::other)?,
        info: address(&mut info),
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let named = info.iter().skip(NAME).copied();
    let named: Vec<u8> = named.take_while(|byte| *byte != 0).collect();
    if named.is_empty() {
        return Ok(id.to_string());
    }
    Ok(String::from_utf8_lossy(&named).into_owned())
}

fn address<T>(of: &mut [T]) -> u64 {
    of.as_mut_ptr().addr() as u64
}

fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: pointer and size describe `attributes`, which is all initialised; the addresses inside are
    // those of buffers that outlive the call, with their lengths beside them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
