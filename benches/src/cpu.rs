//! Where the time goes: one CPU for both ends, and what their threads have used of it.
//!
//! On a kernel without `CONFIG_IRQ_TIME_ACCOUNTING` the softirq that carries a packet on is charged
//! to the thread in whose context it runs, to the nanosecond (kernel/sched/core.c,
//! `task_sched_runtime`): the time of both threads together is the cost of the whole path, whatever
//! else the machine does. What is put off to ksoftirqd is added.

use std::{fs, mem::MaybeUninit, time::Duration};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// The CPU-time clock of a thread.
#[derive(Clone, Copy)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// The calling thread's.
    pub fn own() -> Self {
        let mut clock = MaybeUninit::uninit();
        // SAFETY: the thread is the calling one, and the pointer is to a place for the answer.
        let result =
            unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), clock.as_mut_ptr()) };
        assert_eq!(result, 0, "a thread has a clock");
        // SAFETY: written by the successful call.
        Self(unsafe { clock.assume_init() })
    }

    /// What the thread has used so far; it must be alive.
    pub fn read(self) -> Duration {
        let time = nix::time::clock_gettime(nix::time::ClockId::from_raw(self.0));
        Duration::from(time.expect("the clock of a living thread"))
    }
}

/// Keeps the calling thread on `cpu`.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU that the kernel can name");
    sched_setaffinity(Pid::from_raw(0), &set).expect("a CPU that the machine has");
}

/// `ksoftirqd` of a CPU.
#[derive(Clone)]
pub struct SoftirqDaemon {
    statistics: String,
}

impl SoftirqDaemon {
    /// Finds it.
    pub fn of(cpu: usize) -> Result<Self, String> {
        let wanted = format!("ksoftirqd/{cpu}");
        let all = fs::read_dir("/proc").map_err(|error| format!("read /proc: {error}"))?;
        for entry in all.flatten() {
            let path = entry.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == wanted) {
                let statistics = path.join("schedstat").to_string_lossy().into_owned();
                return Ok(Self { statistics });
            }
        }
        Err(format!(
            "no {wanted}; is the bench in a container of its own?"
        ))
    }

    /// What it has used so far.
    pub fn read(&self) -> Duration {
        let text = fs::read_to_string(&self.statistics).expect("statistics of a kernel thread");
        let first = text
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok());
        Duration::from_nanos(first.expect("schedstat begins with nanoseconds"))
    }
}
