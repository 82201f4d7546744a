//! The client's side of the socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use super::{GROUP, api::Failure};
use crate::shown::{PATH, cut};

/// How long a daemon may take to end.
const ENDING: Duration = Duration::from_secs(10);

/// How long to try where the socket's backlog is full.
const CROWDED: Duration = Duration::from_secs(10);

/// A request that was not granted.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The socket is not for this user.
    #[error("permission denied on {}: run as root or join group {GROUP}", cut(&path.to_string_lossy(), PATH))]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// No daemon answers at the socket.
    #[error("connect to the daemon at {}: {source}; {}", cut(&path.to_string_lossy(), PATH), advice(.source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("talk to the daemon: {0}")]
    Broken(String),
}

impl ClientError {
    /// Whether there is no daemon at the socket, not one that does not answer.
    #[must_use]
    pub fn is_no_daemon(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect { source, .. } if [NotFound, ConnectionRefused].contains(&source.kind()))
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::WouldBlock => "too many others ask it, or it hangs: look at its log",
        _ => "is `oncache run` running? --socket names another socket",
    }
}

/// The daemon as seen from a command.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Reads `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// Sends `body` to `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body =
            serde_json::to_vec(body).map_err(|error| ClientError::Broken(error.to_string()))?;
        self.request(Method::POST, path, body.into()).await
    }

    /// Deletes `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::DELETE, path, Bytes::new()).await
    }

    /// Asks the daemon to remove every trace and to end, and waits until it has: what is started
    /// next does not meet it any more.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn down(&self) -> Result<(), ClientError> {
        let (mut sender, connection) = self.connect().await?;
        let mut connection = tokio::spawn(connection);
        let body = Bytes::from_static(b"null");
        let () = ask(&mut sender, Method::POST, "/v1/down", body).await?;
        // The daemon's end of the connection closes with the daemon; ours is open while `sender` is.
        let ended = timeout(ENDING, &mut connection).await;
        drop(sender);
        match ended {
            Ok(_) => Ok(()),
            Err(_) => Err(ClientError::Broken(format!(
                "it has removed everything, but has not ended within {ENDING:?}; kill it"
            ))),
        }
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let (mut sender, connection) = self.connect().await?;
        let connection = tokio::spawn(connection);
        let answer = ask(&mut sender, method, path, body).await;
        connection.abort();
        answer
    }

    /// A connection. While the socket's backlog is full, the kernel refuses those who do not want
    /// to be blocked (net/unix/af_unix.c, `unix_stream_connect`).
    async fn stream(&self) -> io::Result<UnixStream> {
        let begun = Instant::now();
        loop {
            match UnixStream::connect(&self.socket).await {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < CROWDED =>
                {
                    sleep(Duration::from_millis(20)).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn connect(&self) -> Result<(Sender, Connection), ClientError> {
        let stream = self.stream().await.map_err(|source| {
            let path = self.socket.clone();
            if source.kind() == io::ErrorKind::PermissionDenied {
                ClientError::Denied { path }
            } else {
                ClientError::Connect { path, source }
            }
        })?;
        http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))
    }
}

type Sender = http1::SendRequest<Full<Bytes>>;
type Connection = http1::Connection<TokioIo<UnixStream>, Full<Bytes>>;

fn broken(error: &hyper::Error) -> ClientError {
    ClientError::Broken(error.to_string())
}

/// One request and its answer.
async fn ask<T: DeserializeOwned>(
    sender: &mut Sender,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<T, ClientError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "oncache")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| ClientError::Broken(error.to_string()))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| broken(&error))?;
    let granted = response.status().is_success();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| broken(&error))?
        .to_bytes();
    let unreadable = |error: serde_json::Error| {
        ClientError::Broken(format!(
            "unexpected answer ({error}): is it another version?"
        ))
    };
    if granted {
        serde_json::from_slice(&body).map_err(unreadable)
    } else {
        let failure: Failure = serde_json::from_slice(&body).map_err(unreadable)?;
        Err(ClientError::Refused(failure.error))
    }
}
