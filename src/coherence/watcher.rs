//! The thread that hears the kernel.
//!
//! It does nothing else, so that no work of the node's (a reconciliation with its calls of nft, a
//! walk over a large cache, a grace period) stands between somebody's change and the new epoch.

use std::{io, sync::mpsc as blocking, thread};

use thiserror::Error;
use tokio::{runtime, sync::mpsc};
use tracing::debug;

use super::{Changed, Coherence, Hold, Memory, Response, own_tables::OwnTables};
use crate::netlink::{Event, Netlink, NetlinkError, Watch};

/// What the node hears: that a comparison of the host with the wanted state is due, or why nothing
/// will be heard any more. Closed without such an error, the thread has died.
pub type News = mpsc::Receiver<Result<(), NetlinkError>>;

/// Nothing is watched.
#[derive(Debug, Error)]
pub enum WatcherError {
    /// The kernel gives no sockets.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No thread to watch the kernel.
    #[error("watch the kernel: {0}")]
    Thread(io::Error),
    /// Changes would not be noticed any more.
    #[error("the thread that watches the kernel has ended; start the daemon again and report this")]
    Ended,
}

/// Begins to watch: what changes after the call is noticed. What of `tables` is hurt is put back as soon as
/// it is heard of.
///
/// # Errors
///
/// [`WatcherError`].
pub fn spawn(coherence: Coherence, tables: OwnTables) -> Result<News, WatcherError> {
    // One place: a comparison that is due covers all changes before it.
    let (sender, news) = mpsc::channel(1);
    let (ready, begun) = blocking::sync_channel(1);
    thread::Builder::new()
        .name("oncache-watcher".into())
        .spawn(move || {
            go_first();
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = ready.send(Err(WatcherError::Thread(error)));
                    return;
                }
            };
            runtime.block_on(async move {
                match begin().await {
                    Ok((watch, memory)) => {
                        let _ = ready.send(Ok(()));
                        listen(watch, memory, &coherence, &tables, &sender).await;
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error.into()));
                    }
                }
            });
        })
        .map_err(WatcherError::Thread)?;
    match begun.recv() {
        Ok(outcome) => outcome.map(|()| news),
        Err(_) => Err(WatcherError::Ended),
    }
}

/// Lets this thread go before others that want the same CPU: it works for microseconds at a time,
/// and what waits for it is a change of rules. Where that is not allowed it waits its turn.
fn go_first() {
    const NICE: libc::c_int = -10;
    // SAFETY: takes three integers. Of a thread on Linux, whatever POSIX says (setpriority(2)).
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        let reason = std::io::Error::last_os_error();
        debug!("the watcher waits its turn like others: set its priority: {reason}");
    }
}

/// The watch, and the neighbours that were there when it began.
async fn begin() -> Result<(Watch, Memory), NetlinkError> {
    let watch = Watch::new()?;
    let mut memory = Memory::default();
    for neighbour in Netlink::new()?.neighbours().await? {
        if let Some(mac) = neighbour.mac {
            memory.remember(neighbour.device, neighbour.address, mac);
        }
    }
    Ok((watch, memory))
}

async fn listen(
    mut watch: Watch,
    mut memory: Memory,
    coherence: &Coherence,
    tables: &OwnTables,
    news: &mpsc::Sender<Result<(), NetlinkError>>,
) {
    loop {
        match watch.next_batch().await {
            Ok(events) => {
                let hurt = events.iter().any(may_hurt) && tables.is_ready();
                if hurt {
                    coherence.hold(Hold::Tables);
                }
                let mut due = heed(&events, &mut memory, coherence);
                if hurt {
                    due |= mend(coherence, tables);
                }
                if due {
                    // Full: one is due already.
                    let _ = news.try_send(Ok(()));
                }
            }
            Err(error) => {
                let _ = news.send(Err(error)).await;
                return;
            }
        }
        if news.is_closed() {
            return;
        }
    }
}

/// Puts back what is hurt of oncache's tables, learning being held. Returns whether a comparison is
/// due.
fn mend(coherence: &Coherence, tables: &OwnTables) -> bool {
    let hold = coherence.held(Hold::Tables);
    let Some(mended) = tables.restore() else {
        // What can't be put back at once is left to the comparison, which then ends the hold.
        return true;
    };
    let due = !mended.is_nothing();
    // A failure is kept for the node, which then ends the fast path.
    let _ = coherence.commit(mended.heard());
    coherence.release_tables(hold);
    due
}

/// Whether something of oncache's tables may be gone.
const fn may_hurt(event: &Event) -> bool {
    matches!(event, Event::OwnTable | Event::Overrun)
}

/// Raises the epoch if one of the events asks for it, once for all of them: what they tell of has
/// been made before. Returns whether a comparison is due.
fn heed(events: &[Event], memory: &mut Memory, coherence: &Coherence) -> bool {
    let scope = coherence.scope();
    let mut changed = Changed::nothing();
    let mut due = false;
    for event in events {
        match memory.respond(event, &scope) {
            Response::Ignore => {}
            Response::Reconcile => due = true,
            Response::Invalidate { cause, object } => {
                changed = changed.and(Changed::new(cause, &object));
            }
        }
    }
    due |= !changed.is_nothing();
    // A failure is kept for the node, which then ends the fast path.
    let _ = coherence.commit(changed.heard());
    due
}
