//! The thread that hears the kernel.
//!
//! It does nothing else, so that no work of the node's (a reconciliation with its calls of nft, a
//! walk over a large cache, a grace period) stands between somebody's change and the new epoch.

use std::{sync::mpsc as blocking, thread};

use tokio::{runtime, sync::mpsc};
use tracing::debug;

use super::{DaemonError, invalidation::Invalidator, own_tables::OwnTables};
use crate::{
    coherence::{Cause, Memory, Response},
    datapath::epoch::Hold,
    netlink::{Event, Netlink, NetlinkError, Watch},
};

/// What the node hears: that a comparison of the host with the wanted state is due, or why nothing
/// will be heard any more. Closed without such an error, the thread has died.
pub type News = mpsc::Receiver<Result<(), NetlinkError>>;

/// Begins to watch: what changes after the call is noticed.
///
/// # Errors
///
/// [`DaemonError`] if the kernel gives no sockets, or the system no thread.
pub fn spawn(invalidator: Invalidator, own_tables: OwnTables) -> Result<News, DaemonError> {
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
                    let _ = ready.send(Err(DaemonError::Watcher(error)));
                    return;
                }
            };
            runtime.block_on(async move {
                match begin().await {
                    Ok((watch, memory)) => {
                        let _ = ready.send(Ok(()));
                        listen(watch, memory, &invalidator, &own_tables, &sender).await;
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error.into()));
                    }
                }
            });
        })
        .map_err(DaemonError::Watcher)?;
    match begun.recv() {
        Ok(outcome) => outcome.map(|()| news),
        Err(_) => Err(DaemonError::Deaf),
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
    invalidator: &Invalidator,
    own_tables: &OwnTables,
    news: &mpsc::Sender<Result<(), NetlinkError>>,
) {
    loop {
        match watch.next_batch().await {
            Ok(events) => {
                let hurt = events.iter().any(may_hurt) && own_tables.are_kept();
                if hurt {
                    invalidator.hold(Hold::Tables);
                }
                let mut due = heed(&events, &mut memory, invalidator);
                if hurt {
                    due |= mend(invalidator, own_tables);
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

/// Puts back what is hurt of oncache's tables, learning being held. Returns whether there was
/// anything.
fn mend(invalidator: &Invalidator, own_tables: &OwnTables) -> bool {
    let hold = invalidator.held(Hold::Tables);
    let mended = own_tables.mend();
    if mended == Some(true) {
        let _ = invalidator.raise(&[(Cause::Mended, "nftables".to_owned())]);
    }
    // What can't be put back at once is left to the comparison, which then ends the hold.
    if mended.is_some() {
        invalidator.release_tables(hold);
    }
    mended != Some(false)
}

/// Whether something of oncache's tables may be gone.
const fn may_hurt(event: &Event) -> bool {
    matches!(event, Event::OwnTable | Event::Overrun)
}

/// Raises the epoch if one of the events asks for it, once for all of them: what they tell of has
/// been made before. Returns whether a comparison is due.
fn heed(events: &[Event], memory: &mut Memory, invalidator: &Invalidator) -> bool {
    let scope = invalidator.scope();
    let mut causes: Vec<(Cause, String)> = Vec::new();
    let mut due = false;
    for event in events {
        match memory.respond(event, &scope) {
            Response::Ignore => {}
            Response::Reconcile => due = true,
            Response::Invalidate { cause, object } => {
                if !causes.iter().any(|known| *known == (cause, object.clone())) {
                    causes.push((cause, object));
                }
            }
        }
    }
    if !causes.is_empty() {
        due = true;
        // A failure is kept for the node, which then ends the fast path.
        let _ = invalidator.raise_unseen(&causes);
    }
    due
}
