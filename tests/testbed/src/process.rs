//! Child processes that never outlive the test.

use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// The kernel sends the parent-death signal when the *thread* that forked ends, so whatever has to
/// live long is forked by one thread that lives as long as this process.
fn spawner() -> &'static mpsc::Sender<Order> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        let serve = move || {
            for (mut command, answer) in queue {
                // Nobody is left to guard the child of somebody who is gone.
                if let Err(mpsc::SendError(Ok(mut orphan))) = answer.send(command.spawn()) {
                    orphan.kill().and_then(|()| orphan.wait()).ok();
                }
            }
        };
        thread::Builder::new()
            .name("spawner".into())
            .spawn(serve)
            .expect("a thread that forks");
        orders
    })
}

/// Starts a command in a process group of its own; it ends with the guard or with this process.
///
/// That holds for commands of [`Place::command`](crate::Place::command), which ask for the
/// parent-death signal; any other ends with the guard only.
///
/// # Errors
/// If the program cannot be started.
pub fn spawn(mut command: Command) -> io::Result<Process> {
    command.process_group(0);
    let (answer, child) = mpsc::sync_channel(1);
    spawner()
        .send((command, answer))
        .expect("the forking thread never ends");
    let child = child
        .recv()
        .expect("the forking thread answers every order")?;
    Ok(Process { child, ended: None })
}

/// A running child process; dropping it kills it and its process group, and waits.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child's standard streams, where the command asked for pipes.
    pub fn streams(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self
                .child
                .try_wait()
                .expect("waiting for a child of our own");
        }
        self.ended
    }

    /// Waits until it has ended, but no longer than `patience`.
    pub fn wait_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(500);
        loop {
            if let Some(status) = self.try_wait() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Sends a signal to the process alone; nothing happens if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.try_wait().is_none() {
            kill(self.pid(), signal).expect("signalling a child that was not waited for");
        }
    }

    /// Kills the process alone with SIGKILL, and waits.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        match self.ended {
            Some(status) => status,
            None => {
                let status = self.child.wait().expect("waiting for a killed child");
                self.ended = Some(status);
                status
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id is a pid_t"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            // Not waited for yet, so the id still names this very group.
            killpg(self.pid(), Signal::SIGKILL).ok();
            self.child.wait().ok();
        }
    }
}

/// Runs a command to its end and collects what it prints.
///
/// # Errors
/// If it cannot be started, or has not ended after `patience`; then it is killed.
pub fn output_within(mut command: Command, patience: Duration) -> io::Result<Output> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let shown = format!("{command:?}");
    let mut process = spawn(command)?;
    let mut stdout = process.child.stdout.take().expect("a pipe was asked for");
    let mut stderr = process.child.stderr.take().expect("a pipe was asked for");
    let (read, pieces) = mpsc::channel();
    let errors = read.clone();
    thread::spawn(move || read.send((true, drain(&mut stdout))));
    thread::spawn(move || errors.send((false, drain(&mut stderr))));
    let deadline = Instant::now() + patience;
    let status = process.wait_within(patience);
    if status.is_none() {
        // Closes the pipes, so that both readers end.
        killpg(process.pid(), Signal::SIGKILL).ok();
    }
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        // A process in the background may hold a pipe open for ever.
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_secs(1));
        match pieces.recv_timeout(left) {
            Ok((true, bytes)) => stdout = bytes?,
            Ok((false, bytes)) => stderr = bytes?,
            Err(_) => {
                let what = format!("{shown} has left a process that holds its output open");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
        }
    }
    let Some(status) = status else {
        let said = String::from_utf8_lossy(&stderr);
        let what = format!("{shown} did not end within {patience:?}; it said: {said}");
        return Err(io::Error::new(io::ErrorKind::TimedOut, what));
    };
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

fn drain(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).map(|_| bytes)
}
