//! What the kernel and the host offer, and what oncache lacks for want of it.
//!
//! [`Facts::gather`] looks, [`judge`] decides; only the former touches the host.

use serde::Serialize;

use crate::config::{Attach, Config, PairKind};

mod facts;

pub use facts::{Facts, Forwarding, Roots};

// Bit numbers from include/uapi/linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// The oldest long-term kernel with all that the fast path calls: `bpf_redirect_peer` (5.10, commit
/// 9aa1206e8f48) and maps charged to the cgroup rather than to `RLIMIT_MEMLOCK` (5.11).
const FAST_PATH_KERNEL: (u32, u32) = (5, 15);

/// The first kernel with tcx links (kernel/bpf/tcx.c).
const TCX_KERNEL: (u32, u32) = (6, 6);

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a stable word for scripts.
    pub id: &'static str,
    /// Whether it is as oncache wants it.
    pub ok: bool,
    /// Whether the overlay cannot run without. If false, what the message names is lacking,
    /// usually the fast path, and the rest works.
    pub required: bool,
    /// What was found; if not ok, also why it matters and what to do. One line.
    pub message: String,
}

/// All that was looked at, in a fixed order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeReport {
    /// The findings, good and bad.
    pub findings: Vec<Finding>,
}

impl ProbeReport {
    /// Whether the overlay can run, be it by the slow path alone.
    #[must_use]
    pub fn can_run(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.ok || !finding.required)
    }

    /// The findings that are not ok.
    pub fn lacking(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| !finding.ok)
    }
}

/// What the configuration asks of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// How the programs shall be attached.
    pub attach: Attach,
    /// What containers shall be connected by.
    pub device: Option<PairKind>,
}

impl From<&Config> for Wishes {
    fn from(config: &Config) -> Self {
        Self {
            attach: config.cache.attach,
            device: config.container.device,
        }
    }
}

/// Looks at this host. `underlay` is the underlay device, if it is known; `netkit` whether the kernel
/// has netkit devices.
#[must_use]
pub fn probe(roots: &Roots, underlay: Option<&str>, netkit: bool, wishes: Wishes) -> ProbeReport {
    judge(&Facts::gather(roots, underlay, netkit), wishes)
}

/// Decides what `facts` mean for oncache.
#[must_use]
pub fn judge(facts: &Facts, wishes: Wishes) -> ProbeReport {
    let version = facts.kernel_release.as_deref().and_then(kernel_version);
    let mut findings = vec![
        net_admin(facts),
        sys_admin(facts),
        load_programs(facts),
        kernel(facts, version),
        btf(facts),
        bpffs(facts),
        tcx(version, wishes.attach),
        netkit(facts.netkit, wishes.device),
        nft(facts),
        conntrack(facts),
    ];
    findings.extend(facts.forwarding.as_ref().map(forwarding));
    ProbeReport { findings }
}

/// A finding whose absence stops the overlay.
fn required(id: &'static str, result: Result<String, String>) -> Finding {
    finding(id, true, result)
}

/// A finding whose absence costs only what its message names.
fn optional(id: &'static str, result: Result<String, String>) -> Finding {
    finding(id, false, result)
}

fn finding(id: &'static str, required: bool, result: Result<String, String>) -> Finding {
    let ok = result.is_ok();
    let message = result.unwrap_or_else(|message| message);
    Finding {
        id,
        ok,
        required,
        message,
    }
}

fn capable(facts: &Facts, capability: u32) -> bool {
    facts.capabilities & (1 << capability) != 0
}

fn net_admin(facts: &Facts) -> Finding {
    required(
        "cap_net_admin",
        if capable(facts, CAP_NET_ADMIN) {
            Ok("CAP_NET_ADMIN: held".to_owned())
        } else {
            Err("CAP_NET_ADMIN: not held, so no device can be made; run as root".to_owned())
        },
    )
}

/// setns(2) and mount(2) both ask for it, so no container can be attached without.
fn sys_admin(facts: &Facts) -> Finding {
    required(
        "cap_sys_admin",
        if capable(facts, CAP_SYS_ADMIN) {
            Ok("CAP_SYS_ADMIN: held".to_owned())
        } else {
            Err(
                "CAP_SYS_ADMIN: not held, so no container's namespace can be entered; \
                 run as root"
                    .to_owned(),
            )
        },
    )
}

/// `bpf_capable` (include/linux/capability.h): either capability will do.
fn load_programs(facts: &Facts) -> Finding {
    optional(
        "cap_bpf",
        if capable(facts, CAP_BPF) || capable(facts, CAP_SYS_ADMIN) {
            Ok("CAP_BPF or CAP_SYS_ADMIN: held".to_owned())
        } else {
            Err(
                "CAP_BPF or CAP_SYS_ADMIN: neither held, so there is no fast path; \
                 run as root"
                    .to_owned(),
            )
        },
    )
}

fn kernel(facts: &Facts, version: Option<(u32, u32)>) -> Finding {
    let (major, minor) = FAST_PATH_KERNEL;
    let release = facts.kernel_release.as_deref().unwrap_or("unknown");
    optional(
        "kernel",
        match version {
            Some(version) if version >= FAST_PATH_KERNEL => Ok(format!("kernel: {release}")),
            Some(_) => Err(format!(
                "kernel: {release} is older than {major}.{minor}, so there is no fast path; \
                 upgrade the kernel"
            )),
            None => Err(format!(
                "kernel: release {release:?} tells no version, so the fast path may fail to \
                 load; see that /proc is mounted"
            )),
        },
    )
}

fn btf(facts: &Facts) -> Finding {
    optional(
        "btf",
        if facts.btf {
            Ok("kernel BTF: present".to_owned())
        } else {
            Err(
                "kernel BTF: no /sys/kernel/btf/vmlinux, so the programs cannot be fitted to this \
                 kernel and the fast path may fail to load; use a kernel built with \
                 CONFIG_DEBUG_INFO_BTF=y"
                    .to_owned(),
            )
        },
    )
}

fn bpffs(facts: &Facts) -> Finding {
    optional(
        "bpffs",
        if facts.bpffs {
            Ok("bpffs: mounted at /sys/fs/bpf".to_owned())
        } else {
            Err(
                "bpffs: not mounted at /sys/fs/bpf, so programs cannot outlive the daemon and \
                 there is no fast path; mount -t bpf bpf /sys/fs/bpf"
                    .to_owned(),
            )
        },
    )
}

fn tcx(version: Option<(u32, u32)>, attach: Attach) -> Finding {
    let (major, minor) = TCX_KERNEL;
    let available = version.is_some_and(|version| version >= TCX_KERNEL);
    optional(
        "tcx",
        match (attach, available) {
            (Attach::Clsact, _) => Ok("tcx: not asked for, clsact will be used".to_owned()),
            (Attach::Auto | Attach::Tcx, true) => Ok("tcx: available".to_owned()),
            (Attach::Auto, false) => Ok(format!(
                "tcx: needs kernel {major}.{minor}, clsact will be used"
            )),
            (Attach::Tcx, false) => Err(format!(
                "tcx: needs kernel {major}.{minor} and cache.attach asks for it, so there is no \
                 fast path; set cache.attach = \"auto\""
            )),
        },
    )
}

fn netkit(present: bool, device: Option<PairKind>) -> Finding {
    optional(
        "netkit",
        match (device, present) {
            (Some(PairKind::Netkit), true) => Ok("netkit: available".to_owned()),
            (Some(PairKind::Netkit), false) => Err(
                "netkit: this kernel has none (Linux 6.7, CONFIG_NETKIT) and container.device asks \
                 for it, so no container can be added; set container.device = \"auto\""
                    .to_owned(),
            ),
            (None | Some(PairKind::Veth), _) => {
                Ok("netkit: not asked for, veth will be used".to_owned())
            }
        },
    )
}

fn nft(facts: &Facts) -> Finding {
    required(
        "nft",
        match &facts.nft {
            Some(path) => Ok(format!("nft: {}", path.display())),
            None => Err(
                "nft: no such program on PATH, so the slow path's rules cannot be set; \
                         install nftables"
                    .to_owned(),
            ),
        },
    )
}

fn conntrack(facts: &Facts) -> Finding {
    optional(
        "conntrack",
        if facts.conntrack {
            Ok("conntrack: present".to_owned())
        } else {
            Err(
                "conntrack: no nf_conntrack sysctls, so no flow counts as established and there \
                 is no fast path; modprobe nf_conntrack"
                    .to_owned(),
            )
        },
    )
}

/// Not set by oncache, which touches the sysctls of its own devices only: what else the host would
/// then forward is its owner's decision.
fn forwarding(forwarding: &Forwarding) -> Finding {
    let device = &forwarding.device;
    optional(
        "forwarding",
        match forwarding.enabled {
            Some(true) => Ok(format!("forwarding: on for {device}")),
            Some(false) => Err(format!(
                "forwarding: off for {device}, so containers reach each other but nothing outside \
                 the overlay; sysctl -w net/ipv4/conf/{device}/forwarding=1 if they should"
            )),
            None => Err(format!(
                "forwarding: unknown for {device}, which has no IPv4 sysctls; see that the device \
                 exists"
            )),
        },
    )
}

/// Major and minor number of a release such as `6.18.44-generic`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next()?, numbers.next()?) {
        (Ok(major), Ok(minor)) => Some((major, minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::path::PathBuf;

    use super::*;

    /// A host that has everything.
    fn good() -> Facts {
        Facts {
            capabilities: 0x1ff_ffff_ffff,
            kernel_release: Some("6.18.44-generic".to_owned()),
            btf: true,
            bpffs: true,
            nft: Some(PathBuf::from("/usr/sbin/nft")),
            conntrack: true,
            netkit: false,
            forwarding: Some(Forwarding {
                device: "eth1".to_owned(),
                enabled: Some(true),
            }),
        }
    }

    fn forwarding_of_eth1(enabled: Option<bool>) -> Option<Forwarding> {
        Some(Forwarding {
            device: "eth1".to_owned(),
            enabled,
        })
    }

    #[test]
    fn a_good_host_lacks_nothing() {
        let report = judge(&good(), Wishes::default());
        assert_eq!(report.lacking().collect::<Vec<_>>(), Vec::<&Finding>::new());
        assert!(report.can_run());
        assert_eq!(report.findings.len(), 11);
    }

    #[test]
    fn each_lack_is_found_alone() {
        type Change = fn(&mut Facts);
        #[rustfmt::skip]
        let cases: &[(&str, bool, Change, &str)] = &[
            // id, required, change of the good host, message
            ("cap_net_admin", true, |f| f.capabilities &= !(1 << 12), "run as root"),
            ("cap_sys_admin", true, |f| f.capabilities &= !(1 << 21), "run as root"),
            ("kernel", false, |f| f.kernel_release = Some("5.14.99-lts".to_owned()), "5.14.99-lts is older than 5.15"),
            ("kernel", false, |f| f.kernel_release = None, "\"unknown\" tells no version"),
            ("kernel", false, |f| f.kernel_release = Some("tip".to_owned()), "\"tip\" tells no version"),
            ("btf", false, |f| f.btf = false, "CONFIG_DEBUG_INFO_BTF=y"),
            ("bpffs", false, |f| f.bpffs = false, "; mount -t bpf bpf /sys/fs/bpf"),
            ("nft", true, |f| f.nft = None, "install nftables"),
            ("conntrack", false, |f| f.conntrack = false, "modprobe nf_conntrack"),
            ("forwarding", false, |f| f.forwarding = forwarding_of_eth1(Some(false)), "sysctl -w net/ipv4/conf/eth1/forwarding=1"),
            ("forwarding", false, |f| f.forwarding = forwarding_of_eth1(None), "unknown for eth1"),
        ];
        for (id, required, change, text) in cases {
            let mut facts = good();
            change(&mut facts);
            let report = judge(&facts, Wishes::default());
            let lacking: Vec<&Finding> = report.lacking().collect();
            assert_eq!(lacking.len(), 1, "{id}: {lacking:?}");
            assert_eq!((lacking[0].id, lacking[0].required), (*id, *required));
            assert!(
                lacking[0].message.contains(text),
                "{id}: {}",
                lacking[0].message
            );
            assert!(lacking[0].message.contains("; "), "{id}: says what to do");
            assert!(!lacking[0].message.contains('\n'), "{id}: one line");
            assert_eq!(report.can_run(), !required, "{id}");
        }
    }

    #[test]
    fn either_capability_loads_programs() {
        for (capabilities, ok) in [
            (0, false),
            (1 << 39, true),
            (1 << 21, true),
            (1 << 12, false),
        ] {
            let facts = Facts {
                capabilities,
                ..good()
            };
            assert_eq!(load_programs(&facts).ok, ok, "{capabilities:#x}");
        }
    }

    #[test]
    fn tcx_is_missed_only_where_it_is_asked_for() {
        let old = Some((6, 5));
        let new = Some((6, 6));
        let cases = [
            (Attach::Auto, new, true, "tcx: available"),
            (Attach::Auto, old, true, "clsact will be used"),
            (Attach::Auto, None, true, "clsact will be used"),
            (Attach::Clsact, new, true, "clsact will be used"),
            (Attach::Clsact, old, true, "clsact will be used"),
            (Attach::Tcx, new, true, "tcx: available"),
            (Attach::Tcx, old, false, "set cache.attach = \"auto\""),
        ];
        for (attach, version, ok, text) in cases {
            let finding = tcx(version, attach);
            assert_eq!(finding.ok, ok, "{attach:?} {version:?}");
            assert!(finding.message.contains(text), "{}", finding.message);
        }
    }

    #[test]
    fn netkit_is_missed_only_where_it_is_asked_for() {
        let cases = [
            (None, false, true, "veth will be used"),
            (None, true, true, "veth will be used"),
            (Some(PairKind::Veth), true, true, "veth will be used"),
            (Some(PairKind::Netkit), true, true, "netkit: available"),
            (
                Some(PairKind::Netkit),
                false,
                false,
                "set container.device = \"auto\"",
            ),
        ];
        for (device, netkit, ok, text) in cases {
            let facts = Facts { netkit, ..good() };
            let wishes = Wishes {
                device,
                ..Wishes::default()
            };
            let report = judge(&facts, wishes);
            let finding = report.findings.iter().find(|it| it.id == "netkit").unwrap();
            assert_eq!(finding.ok, ok, "{device:?} {netkit}");
            assert!(finding.message.contains(text), "{}", finding.message);
            assert!(report.can_run(), "{device:?} {netkit}");
        }
    }

    #[test]
    fn the_oldest_kernel_with_all_it_takes_is_old_enough() {
        let facts = Facts {
            kernel_release: Some("5.15.0".to_owned()),
            ..good()
        };
        assert!(
            judge(&facts, Wishes::default())
                .lacking()
                .all(|finding| finding.id != "kernel")
        );
    }

    #[test]
    fn without_an_underlay_there_is_no_word_on_its_forwarding() {
        let facts = Facts {
            forwarding: None,
            ..good()
        };
        let report = judge(&facts, Wishes::default());
        assert!(
            report
                .findings
                .iter()
                .all(|finding| finding.id != "forwarding")
        );
    }

    #[test]
    fn kernel_versions() {
        assert_eq!(kernel_version("6.18.44-generic"), Some((6, 18)));
        assert_eq!(kernel_version("5.15"), Some((5, 15)));
        assert_eq!(kernel_version("6.6-rc1"), Some((6, 6)));
        assert_eq!(kernel_version("6"), None);
        assert_eq!(kernel_version("linux-6.6"), None);
        assert_eq!(kernel_version(""), None);
    }

    #[test]
    fn scripts_see_the_words_of_the_fields() {
        let json = serde_json::to_value(judge(&good(), Wishes::default())).unwrap();
        assert_eq!(json["findings"][0]["id"], "cap_net_admin");
        assert_eq!(json["findings"][0]["ok"], true);
    }
}
