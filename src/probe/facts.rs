//! Looking at the host: what is there, without an opinion on it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// In place of `/sys`.
    pub sys: PathBuf,
    /// In place of `/proc`.
    pub proc: PathBuf,
    /// In place of the environment's `PATH`.
    pub path: OsString,
}

impl Roots {
    /// The host's own.
    #[must_use]
    pub fn host() -> Self {
        Self {
            sys: PathBuf::from("/sys"),
            proc: PathBuf::from("/proc"),
            path: env::var_os("PATH").unwrap_or_default(),
        }
    }
}

/// What was found. Whatever could not be read counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Effective capabilities of this process, bit n for capability n.
    pub capabilities: u64,
    /// Release of the kernel, as `uname -r` prints it.
    pub kernel_release: Option<String>,
    /// Whether the kernel shows its BTF type information.
    pub btf: bool,
    /// Whether a bpffs is mounted at `/sys/fs/bpf`.
    pub bpffs: bool,
    /// The `nft` program.
    pub nft: Option<PathBuf>,
    /// Whether conntrack is there, by the sysctl that oncache sets.
    pub conntrack: bool,
    /// Whether the kernel has netkit devices.
    pub netkit: bool,
    /// IPv4 forwarding of the underlay device, if that is known.
    pub forwarding: Option<Forwarding>,
}

/// IPv4 forwarding of packets that enter by one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// Name of the device.
    pub device: String,
    /// Whether it is on; absent if the device has no such sysctl.
    pub enabled: Option<bool>,
}

impl Facts {
    /// Looks below `roots`; `underlay` is the underlay device, if it is known. No file says whether there
    /// is `netkit`: [`crate::netlink::Netlink::has_netkit`] asks.
    #[must_use]
    pub fn gather(roots: &Roots, underlay: Option<&str>, netkit: bool) -> Self {
        let sysctl = roots.proc.join("sys");
        Self {
            capabilities: effective_capabilities(&roots.proc).unwrap_or_default(),
            kernel_release: read_word(&sysctl.join("kernel/osrelease")),
            btf: roots.sys.join("kernel/btf/vmlinux").is_file(),
            bpffs: is_bpffs(&roots.sys.join("fs/bpf")),
            nft: find_program("nft", &roots.path),
            // Set at start, so that this one, not only its directory, must be there.
            conntrack: sysctl
                .join("net/netfilter/nf_conntrack_tcp_be_liberal")
                .is_file(),
            netkit,
            forwarding: underlay.map(|device| forwarding(&sysctl, device)),
        }
    }
}

/// `CapEff` of proc_pid_status(5).
fn effective_capabilities(proc: &Path) -> Option<u64> {
    let status = fs::read_to_string(proc.join("self/status")).ok()?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

fn read_word(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// The directory exists on hosts without the mount as well, so the filesystem itself is asked.
fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn find_program(name: &str, path: &OsStr) -> Option<PathBuf> {
    let executable = |file: &PathBuf| {
        fs::metadata(file)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(path)
        .map(|directory| directory.join(name))
        .find(executable)
}

fn forwarding(sysctl: &Path, device: &str) -> Forwarding {
    // Joined as a path, a VLAN's dotted name needs no escape as it would with sysctl(8).
    let file = sysctl.join("net/ipv4/conf").join(device).join("forwarding");
    Forwarding {
        device: device.to_owned(),
        enabled: read_word(&file).map(|word| word != "0"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn roots(root: &Path) -> Roots {
        Roots {
            sys: root.join("sys"),
            proc: root.join("proc"),
            path: env::join_paths([root.join("bin"), root.join("sbin")]).unwrap(),
        }
    }

    #[test]
    fn an_empty_host_has_nothing() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(
            Facts::gather(&roots(root.path()), None, false),
            Facts::default()
        );
    }

    #[test]
    fn what_is_there_is_found() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(
            root,
            "proc/self/status",
            "Name:\tcat\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n",
        );
        write(root, "proc/sys/kernel/osrelease", "6.18.44-generic\n");
        write(
            root,
            "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
            "0\n",
        );
        write(root, "proc/sys/net/ipv4/conf/eth1.7/forwarding", "1\n");
        write(root, "proc/sys/net/ipv4/conf/eth2/forwarding", "0\n");
        write(root, "sys/kernel/btf/vmlinux", "");
        fs::create_dir_all(root.join("sys/fs/bpf")).unwrap();
        // A directory and a file that is not executable come first, and are passed over.
        fs::create_dir_all(root.join("bin/nft")).unwrap();
        write(root, "sbin/nft", "");
        assert_eq!(Facts::gather(&roots(root), None, true).nft, None);
        let nft = root.join("sbin/nft");
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();

        let found = Facts::gather(&roots(root), Some("eth1.7"), true);
        let expected = Facts {
            capabilities: 0x1ff_ffff_ffff,
            kernel_release: Some("6.18.44-generic".to_owned()),
            btf: true,
            bpffs: false, // the directory alone is no mount
            nft: Some(nft),
            conntrack: true,
            netkit: true,
            forwarding: Some(Forwarding {
                device: "eth1.7".to_owned(),
                enabled: Some(true),
            }),
        };
        assert_eq!(found, expected);

        let enabled = |device| forwarding(&root.join("proc/sys"), device).enabled;
        assert_eq!(enabled("eth2"), Some(false));
        assert_eq!(enabled("eth3"), None);
    }

    #[test]
    fn the_host_itself_tells_its_kernel() {
        let found = Facts::gather(&Roots::host(), Some("lo"), false);
        assert!(found.kernel_release.is_some());
        assert!(found.forwarding.unwrap().enabled.is_some());
    }
}
