//! The socket's connections: how many at once, and how long each may keep the daemon waiting.
//!
//! A caller can hold its own connection only, and that not for ever: the limits here bound what
//! callers that are slow, silent or many cost the daemon in descriptors and memory. Who finds no
//! room waits in the socket's backlog.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    time::sleep,
};
use tracing::{debug, warn};

/// How many connections are served at once: well below the usual limit of 1,024 descriptors.
const AT_ONCE: usize = 256;

/// How long a request's head may take to arrive, from the connection or the answer before it on.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection may go on while no request of its is at work: what a caller has to take
/// an answer.
const IDLE_PATIENCE: Duration = Duration::from_secs(10);

/// The most bytes of a request's head, and of what is read ahead of it.
const HEAD_LIMIT: usize = 16 << 10;

/// The pause after a connection could not be accepted, for want of descriptors or memory.
const RECOVERY: Duration = Duration::from_secs(1);

/// Serves connections for as long as it is polled; those that were accepted go on by themselves.
pub(super) async fn serve(listener: UnixListener, routes: Router) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    // Never closed.
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let routes = routes.clone();
                tokio::spawn(async move {
                    serve_one(stream, routes).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!("accept a connection on the control socket: {error}");
                sleep(RECOVERY).await;
            }
        }
    }
}

async fn serve_one(stream: UnixStream, routes: Router) {
    let (at_work, mut work) = watch::channel(false);
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(|request| {
        at_work.send_replace(true);
        let answering = routes.call(request);
        async {
            let answer = answering.await;
            at_work.send_replace(false);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    loop {
        let is_at_work = *work.borrow_and_update();
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    debug!("control socket: {error}");
                }
                return;
            }
            _ = work.changed() => {}
            () = sleep(IDLE_PATIENCE), if !is_at_work => {
                debug!("control socket: the caller neither takes its answer nor asks");
                return;
            }
        }
    }
}
