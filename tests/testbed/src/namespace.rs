//! A place: a network namespace and a mount namespace that only file descriptors hold.

use std::{
    fmt, fs,
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    panic,
    path::Path,
    process::{Command, Output},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use serde_json::Value;

use crate::process::{Process, output_within, spawn};

/// The directory inside every place's own `/run` that belongs to the test bed.
pub(crate) const OWN_DIRECTORY: &str = "/run/testbed";

/// How long a helper command such as `ip` or `nft` may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// A network namespace and a mount namespace to run closures and programs in.
///
/// Cloning a place copies the handle. When the last handle is gone, and the last process inside,
/// the kernel removes the namespaces and all that is in them: devices, rules, mounts, pinned
/// eBPF objects.
#[derive(Clone)]
pub struct Place {
    mnt: Arc<OwnedFd>,
    net: Arc<OwnedFd>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Place(mnt {}, net {})",
            self.mnt.as_raw_fd(),
            self.net.as_raw_fd()
        )
    }
}

impl Place {
    /// Makes both namespaces new. The mount namespace sees the machine's files but has its own
    /// `/sys`, `/sys/fs/bpf`, `/run` and `/var/lib/oncache`; the network namespace has `lo` up and
    /// the kernel's own defaults, whatever the machine's settings are.
    #[must_use]
    pub fn new() -> Self {
        on_a_fresh_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .expect("new network and mount namespaces (root is needed)");
            mount_own_directories();
            neutral_sysctls();
            let place = Self {
                mnt: Arc::new(open_namespace("/proc/thread-self/ns/mnt")),
                net: Arc::new(open_namespace("/proc/thread-self/ns/net")),
            };
            place.run(&["ip", "link", "set", "lo", "up"]);
            place
        })
    }

    /// The same mount namespace with the network namespace that `path` (a file such as
    /// `/run/netns/NAME`, as seen from here) stands for.
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    pub fn with_netns(&self, path: &Path) -> Self {
        let net = self.enter(|| open_namespace(path));
        Self {
            mnt: Arc::clone(&self.mnt),
            net: Arc::new(net),
        }
    }

    /// The network namespace.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    /// A path to the network namespace that any process of the machine can open as long as this
    /// handle lives; it is what `ip link set DEVICE netns PATH` wants.
    #[must_use]
    pub fn netns_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// The same for the mount namespace; it is what `setns` and `nsenter --mount=PATH` want.
    #[must_use]
    pub fn mntns_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.mnt.as_raw_fd())
    }

    /// The network namespace's cookie-like identity: the inode number of its nsfs file.
    #[must_use]
    pub fn netns_inode(&self) -> u64 {
        inode(&self.net)
    }

    /// The mount namespace's inode number.
    #[must_use]
    pub fn mntns_inode(&self) -> u64 {
        inode(&self.mnt)
    }

    /// Runs `work` on a fresh thread inside, and returns what it returns.
    ///
    /// A socket made inside stays inside, wherever it is used afterwards.
    ///
    /// # Panics
    /// If `work` panics, with the same payload.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_a_fresh_thread(|| {
            // A thread shares its root and working directory with its process until it unshares
            // them, and the kernel refuses another mount namespace to those who share.
            unshare(CloneFlags::CLONE_FS).expect("a working directory of the thread's own");
            setns(&*self.mnt, CloneFlags::CLONE_NEWNS).expect("entering the mount namespace");
            setns(&*self.net, CloneFlags::CLONE_NEWNET).expect("entering the network namespace");
            work()
        })
    }

    /// A command that will run inside.
    ///
    /// The child is killed when the *thread* that started it ends, so it cannot outlive the test.
    /// What has to live longer than the calling thread is started by [`Place::spawn`].
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let (mnt, net) = (Arc::clone(&self.mnt), Arc::clone(&self.net));
        let parent = libc::pid_t::try_from(std::process::id()).expect("a process id is a pid_t");
        let inside = move || {
            // SAFETY: these are plain system calls on open descriptors and integers; they take no
            // lock and allocate nothing, so they are sound between fork and exec.
            let entered = unsafe {
                libc::setns(mnt.as_raw_fd(), libc::CLONE_NEWNS) == 0
                    && libc::setns(net.as_raw_fd(), libc::CLONE_NEWNET) == 0
                    && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
            };
            if !entered {
                return Err(std::io::Error::last_os_error());
            }
            // SAFETY: getppid has no preconditions. If the parent died before the signal was
            // asked for, nobody will send it.
            if unsafe { libc::getppid() } != parent {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: the closure is async-signal-safe: system calls only, and errors made of numbers.
        unsafe { command.pre_exec(inside) };
        command
    }

    /// Starts `command` (made by [`Place::command`]) so that it lives until the returned guard is
    /// dropped or this process ends.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(&self, command: Command) -> Process {
        let shown = format!("{command:?}");
        spawn(command).unwrap_or_else(|error| panic!("starting {shown}: {error}"))
    }

    /// Runs a program inside and returns what it printed, whether it succeeded or not.
    ///
    /// # Panics
    /// If it cannot be started or takes longer than a minute.
    pub fn output(&self, argv: &[&str]) -> Output {
        let (program, arguments) = argv.split_first().expect("a command has a program");
        let mut command = self.command(program);
        command.args(arguments);
        output_within(command, COMMAND_PATIENCE)
            .unwrap_or_else(|error| panic!("running {argv:?}: {error}"))
    }

    /// Runs a program inside and returns its standard output.
    ///
    /// # Panics
    /// If it fails, with what it wrote to standard error.
    pub fn run(&self, argv: &[&str]) -> String {
        let output = self.output(argv);
        assert!(
            output.status.success(),
            "{argv:?} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a shell script inside, stopping at its first failing command, and returns its output.
    ///
    /// # Panics
    /// If it fails, with what it wrote to standard error.
    pub fn sh(&self, script: &str) -> String {
        self.run(&["sh", "-ec", script])
    }

    /// What a tool such as `ip -j link` prints as JSON; an empty list where it prints nothing.
    ///
    /// # Panics
    /// If it fails, or prints something else.
    #[must_use]
    pub fn json(&self, script: &str) -> Value {
        let text = self.sh(script);
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{script}: {error}: {text}"))
    }

    /// Reads a sysctl such as `net.ipv4.ip_forward`; `None` where the kernel has none of the name.
    #[must_use]
    pub fn sysctl(&self, name: &str) -> Option<String> {
        let path = sysctl_path(name);
        self.enter(|| fs::read_to_string(path).ok())
            .map(|text| text.trim_end().to_owned())
    }

    /// Writes a sysctl.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn set_sysctl(&self, name: &str, value: &str) {
        let path = sysctl_path(name);
        self.enter(|| fs::write(&path, value))
            .unwrap_or_else(|error| panic!("setting {name} to {value}: {error}"));
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

fn on_a_fresh_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(payload) => panic::resume_unwind(payload),
    })
}

fn open_namespace(path: impl AsRef<Path>) -> OwnedFd {
    let path = path.as_ref();
    let file = File::open(path);
    file.unwrap_or_else(|error| panic!("opening the namespace {}: {error}", path.display()))
        .into()
}

fn inode(fd: &OwnedFd) -> u64 {
    nix::sys::stat::fstat(fd)
        .expect("an open namespace has an inode")
        .st_ino
}

/// `net.ipv4.conf.eth0/1.forwarding` names a device `eth0.1`, as sysctl(8) has it.
fn sysctl_path(name: &str) -> String {
    let swapped = name.chars().map(|c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    format!("/proc/sys/{}", swapped.collect::<String>())
}

fn mount_own_directories() {
    let nothing: Option<&str> = None;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .expect("mounts that do not spread to the machine");
    let own = |kind: &str, at: &str| {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), nothing)
            .unwrap_or_else(|error| panic!("mounting {kind} on {at}: {error}"));
    };
    own("sysfs", "/sys");
    own("bpf", "/sys/fs/bpf");
    // Where the system's programs are found through /run, they still have to be.
    let programs = fs::read_link("/run/current-system");
    own("tmpfs", "/run");
    if let Ok(target) = programs {
        std::os::unix::fs::symlink(target, "/run/current-system").expect("a link in a new /run");
    }
    fs::create_dir(OWN_DIRECTORY).expect("a directory in a new /run");
    for (parent, state) in [("/var/lib", "/var/lib/oncache"), ("/etc", "/etc/oncache")] {
        if Path::new(state).is_dir() {
            own("tmpfs", state);
        } else if parent == "/var/lib" {
            own("tmpfs", parent);
            fs::create_dir(state).expect("a directory in a new /var/lib");
        }
    }
}

/// A new network namespace takes its IPv4 settings from the machine; tests want the same ones
/// everywhere. IPv6 is kept from chatting: no address detection, no router solicitation.
fn neutral_sysctls() {
    for (path, value) in [
        ("/proc/sys/net/ipv4/ip_forward", "0"),
        ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
        ("/proc/sys/net/ipv4/conf/default/rp_filter", "0"),
        ("/proc/sys/net/ipv6/conf/all/accept_dad", "0"),
        ("/proc/sys/net/ipv6/conf/default/accept_dad", "0"),
        ("/proc/sys/net/ipv6/conf/default/router_solicitations", "0"),
    ] {
        if Path::new(path).exists() {
            fs::write(path, value).unwrap_or_else(|error| panic!("{path} = {value}: {error}"));
        }
    }
}
