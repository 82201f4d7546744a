//! Starting, stopping and killing a host's daemon.

use std::{
    fs, io,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    host::Host,
    namespace::{OWN_DIRECTORY, Place},
    patience,
    process::{Process, spawn},
};

/// How long a daemon may take to become ready, and to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon and the socket it reports its readiness to.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Process,
    mailbox: Mailbox,
}

impl Host {
    /// Starts `oncache run` and waits until it says that it is ready. Without a configuration
    /// file, [`Host::default_config`] is written first.
    ///
    /// # Panics
    /// If it is already running, ends, or is not ready within 20 seconds; the message holds the
    /// end of its log.
    pub fn start(&self) {
        self.try_start()
            .unwrap_or_else(|error| panic!("starting oncache on {}: {error}", self.name));
    }

    /// As [`Host::start`], for a start that may be refused.
    ///
    /// # Errors
    /// What happened instead of readiness, with the end of the log.
    pub fn try_start(&self) -> Result<(), String> {
        self.try_start_with(|_| {})
    }

    /// As [`Host::try_start`], with a chance to add arguments and environment to the command.
    ///
    /// # Errors
    /// What happened instead of readiness, with the end of the log.
    pub fn try_start_with(&self, adjust: impl FnOnce(&mut Command)) -> Result<(), String> {
        let mut slot = self.slot();
        if slot
            .as_mut()
            .is_some_and(|daemon| daemon.process.try_wait().is_none())
        {
            return Err("it is already running".to_owned());
        }
        let config = self.config_path();
        if !self.enter(|| config.exists()) {
            self.write_config(&self.default_config().to_string());
        }
        let mailbox = Mailbox::open(self).map_err(|error| format!("a notify socket: {error}"))?;
        let log = || {
            self.log
                .try_clone()
                .map(Stdio::from)
                .map_err(|error| error.to_string())
        };
        let mut command = self.command(self.binary());
        command.arg("run").arg("--config").arg(&config);
        command.env("NOTIFY_SOCKET", Mailbox::PATH);
        command.stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        adjust(&mut command);
        let process = spawn(command).map_err(|error| format!("{}: {error}", self.binary()))?;
        let mut daemon = Daemon { process, mailbox };
        let ready = daemon.wait_ready();
        *slot = ready.is_ok().then_some(daemon);
        ready.map_err(|what| format!("{what}; the end of its log:\n{}", self.log_tail()))
    }

    /// Kills the daemon with SIGKILL and waits until it is gone.
    ///
    /// # Panics
    /// If none was started.
    pub fn kill9(&self) {
        self.take_daemon().process.kill();
    }

    /// Ends the daemon with SIGTERM and returns how it ended.
    ///
    /// # Panics
    /// If none was started, or it does not end within 20 seconds.
    pub fn stop(&self) -> ExitStatus {
        let mut daemon = self.take_daemon();
        daemon.process.signal(Signal::SIGTERM);
        daemon.process.wait_within(PATIENCE).unwrap_or_else(|| {
            panic!(
                "oncache on {} ignores SIGTERM for {PATIENCE:?}:\n{}",
                self.name,
                self.log_tail()
            )
        })
    }

    /// [`Host::stop`] and [`Host::start`].
    ///
    /// # Panics
    /// As both do.
    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    /// Writes a configuration, asks for a reload, waits until the daemon is through with it, and returns
    /// what it has logged meanwhile.
    ///
    /// # Panics
    /// As [`Host::reload`].
    pub fn reload_with(&self, config: &str) -> Vec<String> {
        self.write_config(config);
        self.reload()
    }

    /// As [`Host::reload_with`], with the file as it is.
    ///
    /// # Panics
    /// If none was started, or the reload does not end.
    pub fn reload(&self) -> Vec<String> {
        let from = self.log().len();
        let ready = count_lines(&self.notifications(), "READY=1");
        self.signal(Signal::SIGHUP);
        assert!(
            self.wait_notified("READY=1", ready + 1, patience::PATIENCE),
            "{}: a reload ends",
            self.name
        );
        let lines = self.log_since(from);
        println!("{}: {lines:#?}", self.name);
        lines
    }

    /// Sends a signal to the daemon, such as SIGHUP.
    ///
    /// # Panics
    /// If none was started.
    pub fn signal(&self, signal: Signal) {
        let mut slot = self.slot();
        slot.as_mut()
            .unwrap_or_else(|| self.no_daemon())
            .process
            .signal(signal);
    }

    /// The daemon's process id, while it runs.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        let mut slot = self.slot();
        let daemon = slot.as_mut()?;
        daemon
            .process
            .try_wait()
            .is_none()
            .then(|| daemon.process.id())
    }

    /// The messages that the daemon has sent to its notify socket since its start, oldest first:
    /// `READY=1`, `RELOADING=1`, `WATCHDOG=1`, ...
    ///
    /// # Panics
    /// If none was started.
    #[must_use]
    pub fn notifications(&self) -> Vec<String> {
        let slot = self.slot();
        slot.as_ref()
            .unwrap_or_else(|| self.no_daemon())
            .mailbox
            .letters()
    }

    /// Waits until the daemon has sent a line such as `RELOADING=1` at least `times` times.
    ///
    /// # Panics
    /// If none was started.
    pub fn wait_notified(&self, line: &str, times: usize, patience: Duration) -> bool {
        let shared = {
            let slot = self.slot();
            Arc::clone(
                &slot
                    .as_ref()
                    .unwrap_or_else(|| self.no_daemon())
                    .mailbox
                    .shared,
            )
        };
        shared.wait_until(patience, |letters| count_lines(letters, line) >= times)
    }

    fn slot(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_daemon(&self) -> Daemon {
        self.slot().take().unwrap_or_else(|| self.no_daemon())
    }

    fn no_daemon(&self) -> ! {
        panic!("no daemon was started on {}", self.name)
    }
}

impl Daemon {
    fn wait_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = |letters: &[String]| count_lines(letters, "READY=1") > 0;
            if self
                .mailbox
                .shared
                .wait_until(Duration::from_millis(20), ready)
            {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait() {
                return Err(format!("it ended before it was ready, with {status}"));
            }
            if Instant::now() >= deadline {
                return Err(format!("it was not ready within {PATIENCE:?}"));
            }
        }
    }
}

fn count_lines(letters: &[String], line: &str) -> usize {
    letters
        .iter()
        .flat_map(|letter| letter.lines())
        .filter(|found| *found == line)
        .count()
}

/// The other end of the daemon's notify socket. It is read all the time, since a sender to a full
/// datagram socket blocks.
#[derive(Debug)]
struct Mailbox {
    shared: Arc<Shared>,
    reader: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    letters: Mutex<Vec<String>>,
    arrived: Condvar,
    closed: AtomicBool,
}

impl Shared {
    fn wait_until(&self, patience: Duration, enough: impl Fn(&[String]) -> bool) -> bool {
        let letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self
            .arrived
            .wait_timeout_while(letters, patience, |found| !enough(found));
        !waiting
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .timed_out()
    }
}

impl Mailbox {
    const PATH: &str = "/run/testbed/notify";

    fn open(place: &Place) -> io::Result<Self> {
        debug_assert!(Path::new(Self::PATH).starts_with(OWN_DIRECTORY));
        let socket = place.enter(|| {
            fs::remove_file(Self::PATH).ok();
            UnixDatagram::bind(Self::PATH)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let shared = Arc::new(Shared::default());
        let reader = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let mut bytes = [0; 4096];
                while !shared.closed.load(Ordering::Relaxed) {
                    let Ok(length) = socket.recv(&mut bytes) else {
                        continue;
                    };
                    let letter = String::from_utf8_lossy(&bytes[..length]).into_owned();
                    shared
                        .letters
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(letter);
                    shared.arrived.notify_all();
                }
            }
        });
        Ok(Self {
            shared,
            reader: Some(reader),
        })
    }

    fn letters(&self) -> Vec<String> {
        self.shared
            .letters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
    }
}
