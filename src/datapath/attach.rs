//! Attaching the programs to devices.
//!
//! By tcx links where the kernel has them (6.6 and later): pinned, replaced atomically, gone with
//! their device. Elsewhere by filters on a clsact qdisc, at a fixed priority and handle, so that a
//! later daemon finds and replaces them. `egress` of a netkit device by a netkit link in either case,
//! see [`super::netkit_link`].

use std::{
    io, mem,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    programs::{
        LinkOrder, ProgramError, TcAttachType,
        links::{FdLink, Link as _, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    sys::SyscallError,
    util::KernelVersion,
};
use nix::net::if_::if_nametoindex;
use oncache_abi::reason::Program;
use serde::{Deserialize, Serialize};

use super::{Datapath, DatapathError, chain, classifier, netkit_link::NetkitLink, pins};

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// tcx links.
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

impl AttachMode {
    /// The mode's name, as `oncache status` shows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// What this kernel offers.
    #[must_use]
    pub fn detect() -> Self {
        let tcx = KernelVersion::new(6, 6, 0);
        if KernelVersion::current().is_ok_and(|kernel| kernel >= tcx) {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }
}

/// Priority of our filters on a clsact qdisc: behind those that are set by hand (49152 and down).
pub const CLSACT_PRIORITY: u16 = 0xcace;
/// Handle of our filters.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

/// A program on a device, as found pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The device's name.
    pub device: String,
    /// The program's name.
    pub program: String,
    /// By which kind of link: `tcx`, or `netkit` (the peer hook).
    #[serde(default)]
    pub link: String,
    /// The kernel's program ID.
    pub program_id: u32,
    /// The kernel's link ID.
    pub link_id: u32,
}

/// What an attach did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// A program was not there before.
    pub fresh: bool,
    /// A clsact qdisc was made.
    pub made_clsact: bool,
}

/// What a device is to the data path: which programs it has, and where they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The underlay device.
    Underlay,
    /// The host-side end of a container's veth pair.
    Veth,
    /// The primary end of a container's netkit pair.
    Netkit,
}

impl Role {
    /// The learner before the one that uses what is learned.
    const fn programs(self) -> [Program; 2] {
        match self {
            Self::Underlay => [Program::EgressInit, Program::Ingress],
            Self::Veth | Self::Netkit => [Program::IngressInit, Program::Egress],
        }
    }

    /// Whether a program runs where the container's end sends, not on the host-side end.
    const fn is_at_peer(self, program: Program) -> bool {
        matches!((self, program), (Self::Netkit, Program::Egress))
    }
}

/// Where a program is attached on its device, but for those of [`Role::is_at_peer`].
const fn hook(program: Program) -> TcAttachType {
    match program {
        Program::Egress | Program::Ingress => TcAttachType::Ingress,
        Program::EgressInit | Program::IngressInit => TcAttachType::Egress,
    }
}

fn pin(root: &Path, device: &str, program: Program) -> PathBuf {
    pins::links(root).join(format!("{}:{}", escape(device), program.name()))
}

/// Of a link to the peer hook. Another name than the tcx link of the same program has: a build that
/// knows nothing of netkit puts that one there, and takes this one for a leftover.
fn peer_pin(root: &Path, device: &str, program: Program) -> PathBuf {
    pins::links(root).join(format!(
        "{}:{}{PEER_SUFFIX}",
        escape(device),
        program.name()
    ))
}

/// What tells the pin of a link to the peer hook.
const PEER_SUFFIX: &str = "-netkit";

/// A device's name as part of a file name: the bpffs refuses names with dots (kernel/bpf/inode.c,
/// `bpf_lookup`), which VLAN devices have.
fn escape(device: &str) -> String {
    device.replace('%', "%25").replace('.', "%2e")
}

/// Undoes [`escape`].
fn unescape(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

impl Datapath {
    /// Attaches its programs to `device`, or replaces those of an earlier load that are on it, in
    /// whichever way they were attached.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Attach`] with the kernel's answer.
    pub fn attach(&mut self, device: &str, role: Role) -> Result<Attached, DatapathError> {
        let mut attached = Attached::default();
        for program in role.programs() {
            // What an earlier load attached the other way goes second: no packet may meet a device
            // without a program.
            if role.is_at_peer(program) {
                attached.fresh |= self.attach_to_peer(device, program)?;
                pins::remove(&pin(&self.root, device, program))?;
                detach_clsact(device, program)?;
                continue;
            }
            match self.mode {
                AttachMode::Tcx => {
                    attached.fresh |= self.attach_tcx(device, program)?;
                    detach_clsact(device, program)?;
                }
                AttachMode::Clsact => {
                    let (fresh, made) = self.attach_clsact(device, program)?;
                    attached.fresh |= fresh;
                    attached.made_clsact |= made;
                    pins::remove(&pin(&self.root, device, program))?;
                }
            }
        }
        Ok(attached)
    }

    /// Returns whether the program was not there.
    fn attach_to_peer(&mut self, device: &str, program: Program) -> Result<bool, DatapathError> {
        let path = peer_pin(&self.root, device, program);
        let failed = |reason: String| DatapathError::Attach {
            program: program.name(),
            device: device.to_owned(),
            reason: format!("netkit peer hook: {reason}"),
        };
        let loaded = classifier(&mut self.programs, program)?;
        let loaded = loaded.fd().map_err(|error| failed(chain(&error)))?;
        match NetkitLink::from_pin(&path) {
            Ok(link) => {
                if link.replace(loaded.as_fd()).is_ok() {
                    return Ok(false);
                }
                // As of tcx links: its device is gone, or somebody has detached it.
                pins::remove(&path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error.to_string())),
        }
        let primary = if_nametoindex(device).map_err(|error| failed(error.to_string()))?;
        let link = NetkitLink::attach_to_peer(loaded.as_fd(), primary)
            .map_err(|error| failed(error.to_string()))?;
        link.pin(&path).map_err(|error| failed(error.to_string()))?;
        Ok(true)
    }

    /// Returns whether the program was not there.
    fn attach_tcx(&mut self, device: &str, program: Program) -> Result<bool, DatapathError> {
        let path = pin(&self.root, device, program);
        let failed = |reason: String| DatapathError::Attach {
            program: program.name(),
            device: device.to_owned(),
            reason,
        };
        let loaded = classifier(&mut self.programs, program)?;
        match PinnedLink::from_pin(&path) {
            Ok(pinned) => {
                let link: SchedClassifierLink = FdLink::from(pinned)
                    .try_into()
                    .map_err(|error: LinkError| failed(chain(&error)))?;
                if let Ok(id) = loaded.attach_to_link(link) {
                    // The pin keeps the link; only this process's descriptor closes.
                    drop(loaded.take_link(id));
                    return Ok(false);
                }
                // The link's device is gone and another one has its name, or somebody detached it.
                pins::remove(&path)?;
            }
            Err(LinkError::SyscallError(SyscallError { io_error, .. }))
                if io_error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(chain(&error))),
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = loaded
            .attach_with_options(device, hook(program), order)
            .map_err(|error| failed(chain(&error)))?;
        let link = loaded
            .take_link(id)
            .map_err(|error| failed(chain(&error)))?;
        let link: FdLink = link
            .try_into()
            .map_err(|error: LinkError| failed(chain(&error)))?;
        link.pin(&path).map_err(|error| failed(chain(&error)))?;
        Ok(true)
    }

    /// Returns whether the program was not there, and whether a qdisc was made for it.
    fn attach_clsact(
        &mut self,
        device: &str,
        program: Program,
    ) -> Result<(bool, bool), DatapathError> {
        let failed = |reason: String| DatapathError::Attach {
            program: program.name(),
            device: device.to_owned(),
            reason,
        };
        let made = match tc::qdisc_add_clsact(device) {
            Ok(()) => true,
            Err(error) if is_there_already(&error) => false,
            Err(error) => return Err(failed(chain(&error))),
        };
        let loaded = classifier(&mut self.programs, program)?;
        let options = NlOptions {
            priority: CLSACT_PRIORITY,
            handle: CLSACT_HANDLE,
            classid: None,
        };
        let fresh =
            loaded.attach_with_options(device, hook(program), TcAttachOptions::Netlink(options));
        let was_absent = fresh.is_ok();
        let id = match fresh {
            Ok(id) => id,
            Err(first) => {
                let link = SchedClassifierLink::attached(
                    device,
                    hook(program),
                    CLSACT_PRIORITY,
                    CLSACT_HANDLE,
                    None,
                )
                .map_err(|error| failed(error.to_string()))?;
                loaded.attach_to_link(link).map_err(|error| {
                    failed(format!(
                        "{}; replacing it: {}",
                        chain(&first),
                        chain(&error)
                    ))
                })?
            }
        };
        let link = loaded
            .take_link(id)
            .map_err(|error| failed(chain(&error)))?;
        // Dropped, it would take the filter away; the filter has to outlive the daemon.
        mem::forget(link);
        Ok((was_absent, made))
    }

    /// Takes our programs off `device`; no error where there are none.
    ///
    /// # Errors
    ///
    /// [`DatapathError`] of the first program that stayed, after all were tried.
    pub fn detach(&self, device: &str) -> Result<(), DatapathError> {
        detach(&self.root, device)
    }

    /// Removes the pinned links that are none of `wanted`: those of devices that are gone or not
    /// ours any more. To be called once the wanted ones are attached. Returns their names.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Pin`] if the bpffs can't be read or written.
    pub fn remove_other_links(
        &self,
        wanted: &[(&str, Role)],
    ) -> Result<Vec<String>, DatapathError> {
        let kept: Vec<PathBuf> = wanted
            .iter()
            .flat_map(|(device, role)| role.programs().map(|program| (device, role, program)))
            .filter_map(|(device, role, program)| {
                if role.is_at_peer(program) {
                    return Some(peer_pin(&self.root, device, program));
                }
                (self.mode == AttachMode::Tcx).then(|| pin(&self.root, device, program))
            })
            .collect();
        let links = pins::links(&self.root);
        let mut others = pins::names(&links)?;
        others.retain(|name| !kept.contains(&links.join(name)));
        for name in &others {
            pins::remove(&links.join(name))?;
        }
        Ok(others)
    }

    /// How this load attaches programs.
    #[must_use]
    pub const fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Every pinned link below the root.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Pin`] if the bpffs can't be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>, DatapathError> {
        attachments(&self.root)
    }
}

/// Takes our programs off `device`, whoever loaded them. See [`Datapath::detach`].
///
/// # Errors
///
/// As [`Datapath::detach`].
pub fn detach(root: &Path, device: &str) -> Result<(), DatapathError> {
    let mut first = Ok(());
    for program in Program::ALL {
        let unpinned = pins::remove(&pin(root, device, program));
        let unpinned = unpinned.and(pins::remove(&peer_pin(root, device, program)));
        first = first.and(unpinned).and(detach_clsact(device, program));
    }
    first
}

/// Removes the filter of `program`, known by its hook, priority and handle: another program's may
/// have its name. Finding no filter, qdisc or device is what was wanted.
fn detach_clsact(device: &str, program: Program) -> Result<(), DatapathError> {
    let failed = |reason: String| DatapathError::Attach {
        program: program.name(),
        device: device.to_owned(),
        reason: format!("detach: {reason}"),
    };
    let filter =
        SchedClassifierLink::attached(device, hook(program), CLSACT_PRIORITY, CLSACT_HANDLE, None);
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) if is_absent(error.raw_os_error()) => return Ok(()),
        Err(error) => return Err(failed(error.to_string())),
    };
    match filter.detach() {
        Err(ProgramError::NetlinkError(error)) if is_absent(error.raw_os_error()) => Ok(()),
        outcome => outcome.map_err(|error| failed(chain(&error))),
    }
}

/// Names of devices that have pinned links below `root`.
///
/// # Errors
///
/// [`DatapathError::Pin`] if the bpffs can't be read.
pub fn attachments(root: &Path) -> Result<Vec<Attachment>, DatapathError> {
    let mut found = Vec::new();
    for name in pins::names(&pins::links(root))? {
        let Some((device, program)) = name.rsplit_once(':') else {
            continue;
        };
        let Ok(pinned) = PinnedLink::from_pin(pins::links(root).join(&name)) else {
            continue;
        };
        let Ok(info) = FdLink::from(pinned).info() else {
            continue;
        };
        let (program, link) = match program.strip_suffix(PEER_SUFFIX) {
            Some(program) => (program, "netkit"),
            None => (program, "tcx"),
        };
        found.push(Attachment {
            device: unescape(device),
            program: program.to_owned(),
            link: link.to_owned(),
            program_id: info.program_id(),
            link_id: info.id(),
        });
    }
    found.sort_by(|a, b| (&a.device, &a.program).cmp(&(&b.device, &b.program)));
    Ok(found)
}

fn raw_os_error(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}

fn is_there_already(error: &TcError) -> bool {
    matches!(error, TcError::AlreadyAttached)
        || raw_os_error(error) == Some(nix::errno::Errno::EEXIST as i32)
}

fn is_absent(code: Option<i32>) -> bool {
    use nix::errno::Errno;
    let absent = [Errno::ENOENT, Errno::EINVAL, Errno::ENODEV, Errno::ENXIO];
    code.is_some_and(|code| absent.iter().any(|errno| *errno as i32 == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names_have_no_dots_and_come_back() {
        for device in ["eth1", "eth0.100", "a%2eb.c", "%25."] {
            let name = escape(device);
            assert!(!name.contains('.'), "{name}");
            assert_eq!(unescape(&name), device);
        }
    }
}
