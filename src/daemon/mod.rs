//! The daemon: start order, reconcile loop, readiness, shutdown.
//!
//! One task owns the [`Node`] and does one thing after the other: requests from the socket, the
//! clock, signals, comparisons of the host with what it should be. A thread beside it hears the
//! kernel and raises the epoch at once. Neither is in the data path: what the daemon has set up goes
//! on without it.

mod clsact;
mod dispatch;
mod fast_path;
mod host;
mod lock;
mod node;
mod policy;
pub mod preflight;
mod signals;
pub mod teardown;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use sd_notify::NotifyState;
use thiserror::Error;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, error, info, warn};

pub use lock::{Lock, LockError, until_free};

use self::{
    fast_path::FastPath,
    host::Host,
    node::Node,
    signals::{Asked, Signals},
};
use crate::{
    coherence::{
        Coherence,
        own_tables::OwnTables,
        watcher::{self, News, WatcherError},
    },
    config::{self, Chosen, Config, ConfigErrors, ConfigFile},
    container::{
        ContainerError,
        mount_namespace::{MountNamespaceError, use_paths_of},
    },
    control::server::{self, Request, SocketError},
    datapath::{DatapathError, PIN_ROOT},
    netlink::{Netlink, NetlinkError, host_facts},
    network::{Network, NetworkError, Record},
    peers,
    policy::kernel::PolicyError,
    probe::{Finding, Roots, probe},
    shown::{LINE, cut},
    slow_path::{
        SlowPathError,
        own::{self, OwnSlowPath, sysctl::SysctlError},
    },
    state::{StateError, Store},
};

/// Where the configuration is unless `--config` says otherwise.
pub const CONFIG: &str = "/etc/oncache/config.toml";
/// Where the state is unless `--state` says otherwise.
pub const STATE: &str = "/var/lib/oncache";

/// How often the wanted state is compared with the host though nothing was heard.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);
/// How often dead entries are cleared from the caches. They are not used, and they make room by
/// themselves; a walk over a large map takes a while.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How long notifications are gathered before they are acted upon: changes come in bursts.
const SETTLE: Duration = Duration::from_millis(100);

/// Paths that a command line can change.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The configuration file.
    pub config: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The directory of the state.
    pub state: PathBuf,
    /// The mount namespace that paths of network namespaces belong to, if not the daemon's own.
    pub mount_namespace: Option<PathBuf>,
}

/// The daemon can't start, or can't go on.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// Another daemon runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The host lacks what the overlay needs.
    #[error("{}", .0.join("\n"))]
    Host(Vec<String>),
    /// rtnetlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The slow path.
    #[error(transparent)]
    SlowPath(#[from] SlowPathError),
    /// The network policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A container.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The fast path.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Programs of others.
    #[error("ask which programs are on {device}: {source}")]
    Programs {
        /// The device.
        device: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A change that containers are in the way of.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Paths of network namespaces.
    #[error(transparent)]
    MountNamespace(#[from] MountNamespaceError),
    /// The thread that watches the kernel.
    #[error(transparent)]
    Watcher(#[from] WatcherError),
    /// Signals can't be received.
    #[error("listen for signals: {0}")]
    Signals(io::Error),
}

/// Reads the configuration and fills in what the host says; an address that was `chosen` before
/// stays.
///
/// # Errors
///
/// [`ConfigErrors`] and [`NetlinkError`].
pub async fn load_config(
    path: &Path,
    netlink: &Netlink,
    chosen: Option<Chosen>,
) -> Result<(ConfigFile, Config), DaemonError> {
    let file = config::read(path)?;
    let facts = host_facts(netlink, file.underlay()).await?;
    let config = peers::resolve(&file, &facts.with_chosen(chosen))?;
    Ok((file, config))
}

/// Refuses a host without what the overlay needs. Returns what else is lacking, one line each.
fn check_host(config: &Config, netkit: bool) -> Result<Vec<String>, DaemonError> {
    let underlay = &config.node.underlay;
    let report = probe(&Roots::host(), Some(underlay), netkit, config.into());
    let (missing, lacking): (Vec<&Finding>, Vec<&Finding>) =
        report.lacking().partition(|finding| finding.required);
    let messages = |findings: Vec<&Finding>| -> Vec<String> {
        findings.iter().map(|it| it.message.clone()).collect()
    };
    if missing.is_empty() {
        Ok(messages(lacking))
    } else {
        Err(DaemonError::Host(messages(missing)))
    }
}

/// Runs the daemon until a signal or `oncache down` ends it.
///
/// # Errors
///
/// [`DaemonError`].
pub async fn run(paths: &Paths) -> Result<(), DaemonError> {
    // First of all: a reload that is asked for during the start waits for its end, where the
    // signal's default would be the end of the daemon.
    let mut signals = Signals::new().map_err(DaemonError::Signals)?;
    // A start that is refused leaves nothing, not even a lock.
    let netlink = Netlink::new()?;
    let store = Store::new(paths.state.clone());
    // A state that can't be read is told of later, when it is needed.
    let chosen = store.load_present().ok().and_then(|(it, _)| it.chosen);
    let (file, config) = load_config(&paths.config, &netlink, chosen).await?;
    // Where it can't be asked, the host lacks more than that.
    let netkit = netlink.has_netkit().await.unwrap_or(false);
    let lacking = check_host(&config, netkit)?;
    if let Some(path) = &paths.mount_namespace {
        use_paths_of(path)?;
    }
    let lock = Lock::take()?;
    server::check(&paths.socket).await?;
    // Before the first look at the host, so that no change falls between the two.
    let coherence = Coherence::default();
    let own_tables = OwnTables::new(own::TABLES.into_iter().chain(crate::policy::TABLES));
    let news = watcher::spawn(coherence.clone(), own_tables.clone())?;
    let slow_path = OwnSlowPath::new(netlink.clone(), own_tables.clone());
    let mut node = Node::new(
        Host::new(netlink, netkit),
        Network::new(file, config, Record::open(store)?),
        slow_path,
        FastPath::new(PIN_ROOT.into(), coherence.clone()),
        own_tables,
        coherence,
    );
    node.refuse_obstacles().await?;
    for message in lacking {
        warn!("{message}");
    }
    tokio::select! {
        started = node.start() => started?,
        // What is half done is done whole by the next start.
        () = signals.end() => return Ok(()),
    }
    let listener = server::listen(&paths.socket)?;
    let (sender, requests) = mpsc::channel(64);
    let serving = tokio::spawn(server::serve(listener, sender));
    notify(&[NotifyState::Ready, NotifyState::Status(&node.summary())]);
    info!("ready: {}", node.summary());

    let ended = serve_node(&mut node, paths, signals, news, requests).await;
    notify(&[NotifyState::Stopping]);
    serving.abort();
    // The next daemon or `down` finds no socket rather than a dead one.
    let _ = std::fs::remove_file(&paths.socket);
    drop(lock);
    if matches!(ended, Ok(Ended::Down)) {
        // Ours only if nobody put anything else there.
        let _ = paths.socket.parent().map(std::fs::remove_dir);
    }
    ended.map(|_| ())
}

/// Why the loop ended.
enum Ended {
    /// A signal: the data path stays.
    Signal,
    /// `oncache down`: nothing is left.
    Down,
}

async fn serve_node(
    node: &mut Node,
    paths: &Paths,
    mut signals: Signals,
    mut news: News,
    mut requests: mpsc::Receiver<Request>,
) -> Result<Ended, DaemonError> {
    let mut ticks = interval(tick_interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reconciled = Instant::now();
    // At once: nobody knows when the last daemon did.
    let mut swept: Option<Instant> = None;
    let mut settled: Option<Instant> = None;
    loop {
        let due = settled.unwrap_or_else(|| Instant::now() + RECONCILE_INTERVAL);
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::End => return Ok(Ended::Signal),
                Asked::Reload => reload(node, paths).await,
            },
            heard = news.recv() => {
                heard.ok_or(WatcherError::Ended)??;
                node.heed_failure();
                settled.get_or_insert_with(|| Instant::now() + SETTLE);
            }
            request = requests.recv() => match request {
                Some(request) if request.is_abandoned() => {
                    debug!("control socket: a caller has gone before its request was begun");
                }
                Some(request) => if dispatch::answer(node, request).await.is_break() {
                    // Let the answer out before the socket closes.
                    tokio::time::sleep(SETTLE).await;
                    return Ok(Ended::Down);
                },
                None => return Ok(Ended::Signal),
            },
            () = sleep_until(due), if settled.is_some() => {
                settled = None;
                reconciled = Instant::now();
                node.reconcile().await;
            }
            _ = ticks.tick() => {
                if reconciled.elapsed() >= RECONCILE_INTERVAL {
                    reconciled = Instant::now();
                    node.reconcile().await;
                }
                if swept.is_none_or(|swept| swept.elapsed() >= SWEEP_INTERVAL) {
                    swept = Some(Instant::now());
                    node.sweep();
                }
                notify(&[NotifyState::Watchdog]);
            }
        }
    }
}

/// How often the loop turns by itself: at twice the rate that the watchdog asks for.
fn tick_interval() -> Duration {
    let watchdog = sd_notify::watchdog_enabled().map_or(Duration::from_secs(1), |limit| limit / 2);
    watchdog.min(Duration::from_secs(1))
}

/// Reads the configuration again. A bad one changes nothing.
async fn reload(node: &mut Node, paths: &Paths) {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
    let outcome = match load_config(&paths.config, node.netlink(), Some(node.chosen())).await {
        Ok((file, config)) => node.reconfigure(file, config).await,
        Err(error) => Err(error),
    };
    // The service manager has no word for a reload that failed; the status line has.
    let said = match outcome {
        Ok(()) => {
            info!("reloaded {}: {}", paths.config.display(), node.summary());
            node.summary()
        }
        Err(reason) => {
            // One line, however many faults; in the status a line's end would begin another assignment
            // (sd_notify(3)).
            let said = format!("reload refused, the running configuration stays: {reason}")
                .replace('\n', "; ");
            let said = cut(&said, 4 * LINE);
            error!("{said}");
            said
        }
    };
    notify(&[NotifyState::Ready, NotifyState::Status(&said)]);
}

/// Tells the service manager, if there is one.
fn notify(states: &[NotifyState]) {
    if let Err(reason) = sd_notify::notify(states) {
        warn!("notify the service manager: {reason}");
    }
}
