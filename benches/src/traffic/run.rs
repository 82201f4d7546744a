//! What the threads of a run share, and how they look from time to time whether it is over.

use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::cpu::{SoftirqDaemon, ThreadClock, pin};

/// What the threads share.
#[derive(Default)]
pub struct Run {
    stop: AtomicBool,
    counted: AtomicU64,
    clocks: Mutex<Vec<ThreadClock>>,
    failure: Mutex<Option<String>>,
}

/// The server's port; open in the firewall of the `host` column.
pub const PORT: u16 = 5000;

/// How long a call may block before it looks whether the run is over.
pub const TURN: Duration = Duration::from_millis(100);

impl Run {
    pub fn going(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    pub fn count(&self, by: u64) {
        self.counted.fetch_add(by, Ordering::Relaxed);
    }

    /// Tells the threads that the run is over.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// How many ends have begun.
    pub fn begun(&self) -> usize {
        self.clocks.lock().expect("no holder panics").len()
    }

    /// Runs an end of the traffic on the CPU and keeps its thread, and so its clock, to the end.
    pub fn end(&self, cpu: usize, work: impl FnOnce() -> io::Result<()>) {
        pin(cpu);
        self.clocks
            .lock()
            .expect("no holder panics")
            .push(ThreadClock::own());
        if let Err(error) = work()
            && self.going()
        {
            let mut failure = self.failure.lock().expect("no holder panics");
            failure.get_or_insert_with(|| error.to_string());
        }
        while self.going() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The first failure of an end.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().expect("no holder panics").clone()
    }

    /// Time of all threads, and of ksoftirqd.
    pub fn used(&self, softirqs: &SoftirqDaemon) -> Duration {
        let clocks = self.clocks.lock().expect("no holder panics");
        clocks.iter().map(|clock| clock.read()).sum::<Duration>() + softirqs.read()
    }
}

/// Whether a call has only waited long enough for now.
pub fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
