//! The server's side of the socket.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, FromRef, Path as UrlPath, State, rejection::PathRejection},
    http::header,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use nix::{
    sys::stat::{Mode, umask},
    unistd::{Gid, Group, chown},
};
use serde::Serialize;
use thiserror::Error;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
};

pub use super::refusal::{Refusal, RefusalKind};
use super::{
    GROUP,
    api::{AddContainer, Applied, ApplyPolicy, ContainerInfo, Flushed, Policy, Stats, Status},
    body::JsonBody,
    connections,
};
use crate::{
    datapath::caches::Caches,
    shown::{PATH, cut},
};

/// The answer to a request.
pub type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// A request to the daemon, with where to answer.
pub enum Request {
    /// Node, peers, containers, programs, caches.
    Status(Answer<Status>),
    /// Counters.
    Stats(Answer<Stats>),
    /// Containers.
    ListContainers(Answer<Vec<ContainerInfo>>),
    /// Add a container.
    AddContainer(AddContainer, Answer<ContainerInfo>),
    /// Delete a container.
    DeleteContainer(String, Answer<()>),
    /// The caches' content.
    Caches(Answer<Caches>),
    /// Empty the learned caches.
    Flush(Answer<Flushed>),
    /// The network policy in force.
    Policy(Answer<Policy>),
    /// Replace its run-time rules, all of them.
    ApplyPolicy(ApplyPolicy, Answer<Applied>),
    /// Remove every trace from the host, and end.
    Down(Answer<()>),
}

impl Request {
    /// Whether the asker has gone. Its request has not been begun, and need not be: it could not
    /// learn what came of it.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        match self {
            Self::Status(answer) => answer.is_closed(),
            Self::Stats(answer) => answer.is_closed(),
            Self::ListContainers(answer) => answer.is_closed(),
            Self::AddContainer(_, answer) => answer.is_closed(),
            Self::DeleteContainer(_, answer) | Self::Down(answer) => answer.is_closed(),
            Self::Caches(answer) => answer.is_closed(),
            Self::Flush(answer) => answer.is_closed(),
            Self::Policy(answer) => answer.is_closed(),
            Self::ApplyPolicy(_, answer) => answer.is_closed(),
        }
    }
}

/// The socket can't be served.
#[derive(Debug, Error)]
#[error("{action} socket {}: {source}", cut(&path.to_string_lossy(), PATH))]
pub struct SocketError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn in_the_way(path: &Path, why: &str) -> SocketError {
    SocketError {
        action: "open",
        path: path.to_owned(),
        source: io::Error::other(format!("{why}; name another path by --socket")),
    }
}

/// Refuses a path at which something is that is no socket of a dead daemon: it would be deleted.
///
/// # Errors
///
/// [`SocketError`].
pub async fn check(path: &Path) -> Result<(), SocketError> {
    refuse_file(path)?;
    match UnixStream::connect(path).await {
        // A full backlog is somebody's, too.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Ok(()),
        _ => Err(in_the_way(
            path,
            "another process answers there, a daemon of another network namespace or another program",
        )),
    }
}

fn refuse_file(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(in_the_way(path, "something else is there, and stays"))
        }
        _ => Ok(()),
    }
}

/// Opens the socket at `path`, for root and the group `oncache` only. A socket that a dead daemon
/// left is replaced; that no daemon runs is for the caller to know.
///
/// # Errors
///
/// [`SocketError`].
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |action| {
        let path = path.to_owned();
        move |source: io::Error| SocketError {
            action,
            path,
            source,
        }
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed("create the directory of"))?;
    }
    refuse_file(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace")(error));
        }
        _ => {}
    }
    // Never open to others, not even before a change of mode; nothing else makes files meanwhile.
    let former = umask(Mode::S_IXUSR | Mode::S_IXGRP | Mode::S_IRWXO);
    let bound = UnixListener::bind(path);
    umask(former);
    let listener = bound.map_err(failed("open"))?;
    if let Ok(Some(group)) = Group::from_name(GROUP) {
        chown(path, None, Some(Gid::from_raw(group.gid.as_raw())))
            .map_err(|errno| failed("set the group of")(errno.into()))?;
    }
    Ok(listener)
}

/// The most bytes of a request's body: two thousand rules of a policy with many ports.
const BODY_LIMIT: usize = 1 << 20;

/// How many listings of the caches may be on their way at once. One may have many megabytes, and is
/// held until its asker has taken it.
const LISTINGS: usize = 2;

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    requests: mpsc::Sender<Request>,
    listings: Arc<Semaphore>,
}

impl FromRef<Shared> for mpsc::Sender<Request> {
    fn from_ref(shared: &Shared) -> Self {
        shared.requests.clone()
    }
}

/// Serves the socket for as long as it is polled.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>) {
    let shared = Shared {
        requests,
        listings: Arc::new(Semaphore::new(LISTINGS)),
    };
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/stats", get(stats))
        .route("/v1/containers", get(list_containers).post(add_container))
        .route("/v1/containers/{name}", delete(delete_container))
        .route("/v1/cache", get(caches))
        .route("/v1/cache/flush", post(flush))
        .route(
            "/v1/policy",
            get(policy).post(apply_policy).delete(clear_policy),
        )
        .route("/v1/down", post(down))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(shared);
    connections::serve(listener, routes).await;
}

type Requests = State<mpsc::Sender<Request>>;

async fn status(requests: Requests) -> Response {
    ask(requests, Request::Status).await
}

async fn stats(requests: Requests) -> Response {
    ask(requests, Request::Stats).await
}

async fn list_containers(requests: Requests) -> Response {
    ask(requests, Request::ListContainers).await
}

async fn add_container(
    requests: Requests,
    container: Result<JsonBody<AddContainer>, Refusal>,
) -> Response {
    match container {
        Ok(JsonBody(container)) => {
            ask(requests, |answer| Request::AddContainer(container, answer)).await
        }
        Err(refusal) => Refusal {
            line: format!("add container: {}", refusal.line),
            ..refusal
        }
        .into_response(),
    }
}

async fn delete_container(
    requests: Requests,
    name: Result<UrlPath<String>, PathRejection>,
) -> Response {
    match name {
        Ok(UrlPath(name)) => ask(requests, |answer| Request::DeleteContainer(name, answer)).await,
        Err(rejection) => Refusal {
            kind: RefusalKind::Bad,
            line: format!("delete container: {}", rejection.body_text()),
        }
        .into_response(),
    }
}

/// A listing and its place among those on their way.
struct Listing {
    text: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Listing {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

async fn caches(State(shared): State<Shared>) -> Response {
    let Ok(place) = shared.listings.acquire_owned().await else {
        return ending().into_response();
    };
    let caches = match request(&shared.requests, Request::Caches).await {
        Ok(caches) => caches,
        Err(refusal) => return refusal.into_response(),
    };
    match serde_json::to_vec(&caches) {
        Ok(text) => {
            let listing = Listing {
                text,
                _place: place,
            };
            let json = [(header::CONTENT_TYPE, "application/json")];
            (json, Body::from(Bytes::from_owner(listing))).into_response()
        }
        Err(error) => Refusal {
            kind: RefusalKind::Failed,
            line: format!("list the caches: {error}"),
        }
        .into_response(),
    }
}

async fn flush(requests: Requests) -> Response {
    ask(requests, Request::Flush).await
}

async fn policy(requests: Requests) -> Response {
    ask(requests, Request::Policy).await
}

async fn apply_policy(
    requests: Requests,
    policy: Result<JsonBody<ApplyPolicy>, Refusal>,
) -> Response {
    match policy {
        Ok(JsonBody(policy)) => ask(requests, |answer| Request::ApplyPolicy(policy, answer)).await,
        Err(refusal) => Refusal {
            line: format!("apply policy: {}", refusal.line),
            ..refusal
        }
        .into_response(),
    }
}

async fn clear_policy(requests: Requests) -> Response {
    let none = ApplyPolicy { rules: Vec::new() };
    ask(requests, |answer| Request::ApplyPolicy(none, answer)).await
}

async fn down(requests: Requests) -> Response {
    ask(requests, Request::Down).await
}

async fn unknown_path() -> Response {
    Refusal {
        kind: RefusalKind::Unknown,
        line: "no such path; docs/architecture.md lists the socket's API".to_owned(),
    }
    .into_response()
}

async fn unknown_method() -> Response {
    Refusal {
        kind: RefusalKind::Method,
        line: "the path does not know this method; docs/architecture.md lists the socket's API"
            .to_owned(),
    }
    .into_response()
}

fn ending() -> Refusal {
    Refusal {
        kind: RefusalKind::Failed,
        line: "the daemon is ending; ask again when it runs".to_owned(),
    }
}

/// Hands a request to the daemon and waits for its answer.
async fn request<T>(
    requests: &mpsc::Sender<Request>,
    request: impl FnOnce(Answer<T>) -> Request,
) -> Result<T, Refusal> {
    let (answer, answered) = oneshot::channel();
    let sent = requests.send(request(answer)).await;
    sent.map_err(|_| ending())?;
    answered.await.map_err(|_| ending())?
}

async fn ask<T: Serialize>(
    State(requests): Requests,
    asked: impl FnOnce(Answer<T>) -> Request,
) -> Response {
    match request(&requests, asked).await {
        Ok(value) => Json(value).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}
