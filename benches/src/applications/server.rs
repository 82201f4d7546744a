//! A server inside a namespace, and what it and its children use of the CPU.

use std::{
    fs,
    net::TcpStream,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use oncache_testbed::{Container, Process};

/// How long a server may take until it listens, and to end.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running server; it ends with this, by its own way of ending.
pub struct Server {
    name: &'static str,
    process: Process,
    ending: Signal,
}

impl Server {
    /// Starts a command on one CPU as another user than root, and waits until it listens.
    pub fn start(
        name: &'static str,
        place: &Container,
        user: &str,
        command: &[&str],
        (cpu, port, ending): (usize, u16, Signal),
    ) -> Result<Self, String> {
        let cpu = cpu.to_string();
        let mut whole = place.command("taskset");
        // Both put the command in their own place: the process id is the server's.
        whole.args(["--cpu-list", &cpu, "setpriv"]);
        whole.args(as_user(user)).args(command);
        whole.stdin(Stdio::null());
        whole.stdout(Stdio::null()).stderr(Stdio::null());
        let process = place.spawn(whole);
        let mut server = Self {
            name,
            process,
            ending,
        };
        let deadline = Instant::now() + PATIENCE;
        let listens = || TcpStream::connect((place.ip, port)).is_ok();
        while !place.enter(listens) {
            if let Some(status) = server.process.try_wait() {
                return Err(format!("{name} ended before it listened, with {status}"));
            }
            if Instant::now() >= deadline {
                return Err(format!("{name} does not listen within {PATIENCE:?}"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// What the server and its children have used so far, those that have ended included.
    pub fn used(&self) -> Duration {
        let mut sum = Duration::ZERO;
        let mut all = vec![self.process.id()];
        let parents = parents();
        let mut next = 0;
        while let Some(parent) = all.get(next).copied() {
            let children = parents.iter().filter(|(_, its)| *its == parent);
            all.extend(children.map(|(child, _)| *child));
            next += 1;
        }
        for process in all {
            // A child that has ended meanwhile counts as its parent's.
            sum += used(process).unwrap_or_default();
        }
        sum
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.signal(self.ending);
        if self.process.wait_within(PATIENCE).is_none() {
            eprintln!("{} does not end; killing it", self.name);
        }
    }
}

/// `setpriv`'s arguments for a user without any of root's rights.
pub fn as_user(user: &str) -> [String; 3] {
    [
        format!("--reuid={user}"),
        "--regid=nogroup".to_owned(),
        "--clear-groups".to_owned(),
    ]
}

/// All processes with their parents.
fn parents() -> Vec<(u32, u32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(|id| Some((id, fields(id)?.first()?.parse().ok()?)))
        .collect()
}

/// The fields of /proc/PID/stat from the fourth on: before them is the name, which may hold
/// anything (proc(5)).
fn fields(process: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split(' ').skip(1).map(str::to_owned).collect())
}

/// User and system time of a process and of its children that have ended.
fn used(process: u32) -> Option<Duration> {
    let fields = fields(process)?;
    let times = fields.get(10..14)?;
    let ticks: u64 = times.iter().filter_map(|it| it.parse::<u64>().ok()).sum();
    // A hundred a second on every architecture (USER_HZ).
    Some(Duration::from_millis(ticks * 10))
}
