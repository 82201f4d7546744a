//! The server's side of the socket.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use nix::unistd::{Gid, Group, chown};
use serde::Serialize;
use thiserror::Error;
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use super::api::{
    AddContainer, Applied, ApplyPolicy, ContainerInfo, Failure, Flushed, Policy, Stats, Status,
};
use crate::datapath::caches::Caches;

/// A failed request: its HTTP status and one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of failure.
    pub kind: RefusalKind,
    /// One line: what, which object, why, what to do.
    pub line: String,
}

/// Kinds of failure, as HTTP knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request can't be granted as it is (400).
    Bad,
    /// The object is unknown (404).
    Unknown,
    /// The object exists already (409).
    Conflict,
    /// Granting it failed (500).
    Failed,
}

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

/// The socket can't be served.
#[derive(Debug, Error)]
#[error("{action} socket {path}: {source}")]
pub struct SocketError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The group whose members may use the socket, if it exists.
const GROUP: &str = "oncache";

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
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("open"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))
        .map_err(failed("set the mode of"))?;
    if let Ok(Some(group)) = Group::from_name(GROUP) {
        chown(path, None, Some(Gid::from_raw(group.gid.as_raw())))
            .map_err(|errno| failed("set the group of")(errno.into()))?;
    }
    Ok(listener)
}

/// Serves the socket until the daemon drops the receiving end.
///
/// # Errors
///
/// The error of the listening socket.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>) -> io::Result<()> {
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
        .with_state(requests);
    axum::serve(listener, routes).await
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
    body: Result<Json<AddContainer>, JsonRejection>,
) -> Response {
    match body {
        Ok(Json(container)) => {
            ask(requests, |answer| Request::AddContainer(container, answer)).await
        }
        Err(rejection) => refuse(Refusal {
            kind: RefusalKind::Bad,
            line: format!("add container: {}", rejection.body_text()),
        }),
    }
}

async fn delete_container(requests: Requests, UrlPath(name): UrlPath<String>) -> Response {
    ask(requests, |answer| Request::DeleteContainer(name, answer)).await
}

async fn caches(requests: Requests) -> Response {
    ask(requests, Request::Caches).await
}

async fn flush(requests: Requests) -> Response {
    ask(requests, Request::Flush).await
}

async fn policy(requests: Requests) -> Response {
    ask(requests, Request::Policy).await
}

async fn apply_policy(
    requests: Requests,
    body: Result<Json<ApplyPolicy>, JsonRejection>,
) -> Response {
    match body {
        Ok(Json(policy)) => ask(requests, |answer| Request::ApplyPolicy(policy, answer)).await,
        Err(rejection) => refuse(Refusal {
            kind: RefusalKind::Bad,
            line: format!("apply policy: {}", rejection.body_text()),
        }),
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
    refuse(Refusal {
        kind: RefusalKind::Unknown,
        line: "no such path; docs/architecture.md lists the socket's API".to_owned(),
    })
}

async fn ask<T: Serialize>(
    State(requests): Requests,
    request: impl FnOnce(Answer<T>) -> Request,
) -> Response {
    let (answer, answered) = oneshot::channel();
    let ending = || Refusal {
        kind: RefusalKind::Failed,
        line: "the daemon is ending; ask again when it runs".to_owned(),
    };
    if requests.send(request(answer)).await.is_err() {
        return refuse(ending());
    }
    match answered.await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(refusal)) => refuse(refusal),
        Err(_) => refuse(ending()),
    }
}

fn refuse(refusal: Refusal) -> Response {
    let status = match refusal.kind {
        RefusalKind::Bad => StatusCode::BAD_REQUEST,
        RefusalKind::Unknown => StatusCode::NOT_FOUND,
        RefusalKind::Conflict => StatusCode::CONFLICT,
        RefusalKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (
        status,
        Json(Failure {
            error: refusal.line,
        }),
    )
        .into_response()
}
