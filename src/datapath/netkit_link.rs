//! Links of programs to netkit devices, which aya 0.14 does not make: it takes a link of that type
//! for none of its own.
//!
//! A netkit pair has two hooks, both managed through its primary end (drivers/net/netkit.c,
//! `netkit_dev_fetch`). What the *peer* hook runs sees each frame that the other end sends, in the
//! sender's own context: already with the primary end as its device and scrubbed for the host's
//! namespace, but before it is queued for it (`netkit_xmit`).
//!
//! The calls beside the first work on links of any type.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `BPF_NETKIT_PEER` of `enum bpf_attach_type` (include/uapi/linux/bpf.h, since Linux 6.7).
const NETKIT_PEER: u32 = 55;

// `enum bpf_cmd` (include/uapi/linux/bpf.h).
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;

/// `bpf_attr.link_create` up to where the attach types begin to differ: what follows is zero for the
/// kernel, so that the program goes behind those that are there (kernel/bpf/syscall.c, `__sys_bpf`).
#[repr(C)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// `bpf_attr.link_update`.
#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    expected_program: u32,
}

/// `bpf_attr` of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Object {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// A link, kept by this descriptor and by its pins.
#[derive(Debug)]
pub struct NetkitLink(OwnedFd);

impl NetkitLink {
    /// Runs the classifier `program` on what the other end of `primary`'s pair sends; `primary` is the
    /// interface index of the end that the pair was made by, in this network namespace.
    ///
    /// # Errors
    ///
    /// The kernel's answer: `ENXIO` for a device that is no netkit, `EACCES` for the other end of a
    /// pair, `EINVAL` from a kernel without netkit.
    pub fn attach_to_peer(program: BorrowedFd<'_>, primary: u32) -> io::Result<Self> {
        let attributes = LinkCreate {
            program: number(program),
            ifindex: primary,
            attach_type: NETKIT_PEER,
            flags: 0,
        };
        descriptor(bpf(LINK_CREATE, &attributes)?).map(Self)
    }

    /// The link pinned at `path`.
    ///
    /// # Errors
    ///
    /// The kernel's answer: `ENOENT` where there is no pin.
    pub fn from_pin(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let attributes = Object {
            path: path.as_ptr() as u64,
            descriptor: 0,
            flags: 0,
        };
        descriptor(bpf(OBJ_GET, &attributes)?).map(Self)
    }

    /// Pins the link at `path`, on a bpffs: it stays when the descriptor is closed.
    ///
    /// # Errors
    ///
    /// The kernel's answer: `EEXIST` where there is something.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let attributes = Object {
            path: path.as_ptr() as u64,
            descriptor: number(self.0.as_fd()),
            flags: 0,
        };
        bpf(OBJ_PIN, &attributes).map(|_| ())
    }

    /// Puts `program` in the place of the one that the link has; every packet meets one of the two.
    ///
    /// # Errors
    ///
    /// The kernel's answer: `ENOLINK` where the device is gone, or somebody has detached the link.
    pub fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let attributes = LinkUpdate {
            link: number(self.0.as_fd()),
            program: number(program),
            flags: 0,
            expected_program: 0,
        };
        bpf(LINK_UPDATE, &attributes).map(|_| ())
    }
}

/// An open descriptor as the kernel's unsigned fields have it.
fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().unsigned_abs()
}

fn descriptor(outcome: libc::c_long) -> io::Result<OwnedFd> {
    let raw = i32::try_from(outcome).map_err(io::Error::other)?;
    // SAFETY: `bpf` has just returned it as a new descriptor, of which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// bpf(2). What `attributes` point to must live through the call.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    let attributes: *const T = attributes;
    // SAFETY: the kernel reads as many bytes as it is told, which `attributes` have; the commands of
    // this file write none of them.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes and places as the kernel's header has them; all fields are of one size but the path.
    #[test]
    fn attributes_are_laid_out_as_the_kernels() {
        assert_eq!(size_of::<LinkCreate>(), 16);
        assert_eq!(std::mem::offset_of!(LinkCreate, attach_type), 8);
        assert_eq!(size_of::<LinkUpdate>(), 16);
        assert_eq!(size_of::<Object>(), 16);
        assert_eq!(std::mem::offset_of!(Object, descriptor), 8);
    }
}
