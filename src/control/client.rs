//! The client's side of the socket.

use std::{
    io,
    path::{Path, PathBuf},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::UnixStream;

use super::api::Failure;

/// A request that was not granted.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No daemon answers at the socket.
    #[error("connect to the daemon at {path}: {source}; {}", advice(.source))]
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

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "be root or in the group oncache",
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
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.request(Method::DELETE, path, Bytes::new()).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::Connect {
                    path: self.socket.clone(),
                    source,
                })?;
        let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "oncache")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let granted = response.status().is_success();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(broken)?
            .to_bytes();
        connection.abort();
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
}
