//! Anonymous network namespaces for tests: each vanishes with its last descriptor.

#[allow(dead_code, reason = "not every test has two hosts")]
pub mod hosts;

use std::{
    fs::File,
    future::Future,
    os::fd::{AsFd, BorrowedFd},
    process::Command,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that only this process knows.
pub struct Namespace(File);

impl Namespace {
    /// Makes one, with its loopback device up.
    pub fn new() -> Self {
        let namespace = thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("this test takes root");
                File::open("/proc/thread-self/ns/net").expect("a namespace")
            });
            Self(made.join().expect("a namespace"))
        });
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Runs something on a thread in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let outcome = thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("entered");
                work()
            });
            worker.join()
        });
        match outcome {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a future on a runtime whose one thread is in the namespace.
    pub fn block_on<F: Future<Output: Send>>(&self, work: impl FnOnce() -> F + Send) -> F::Output {
        self.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(work())
        })
    }

    /// Runs a shell script, which must succeed; returns its output without the last line's end.
    pub fn sh(&self, script: &str) -> String {
        self.run(|| {
            let output = Command::new("sh")
                .args(["-ec", script])
                .output()
                .expect("sh");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{script}: {errors}");
            String::from_utf8(output.stdout)
                .expect("text")
                .trim_end()
                .to_owned()
        })
    }

    /// What a tool prints as JSON.
    #[allow(dead_code, reason = "not every test reads JSON")]
    pub fn json(&self, command: &str) -> serde_json::Value {
        let text = self.sh(command);
        if text.is_empty() {
            return serde_json::json!([]);
        }
        serde_json::from_str(&text).expect("JSON")
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
