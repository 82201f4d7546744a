//! The daemon's socket: HTTP with JSON over a Unix socket, so that `curl --unix-socket` works too.
//!
//! | method and path | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/status` | | [`api::Status`] |
//! | `GET /v1/stats` | | [`api::Stats`] |
//! | `GET /v1/containers` | | list of [`api::ContainerInfo`] |
//! | `POST /v1/containers` | [`api::AddContainer`] | [`api::ContainerInfo`] |
//! | `DELETE /v1/containers/{name}` | | `null` |
//! | `GET /v1/cache` | | [`crate::datapath::caches::Caches`] |
//! | `POST /v1/cache/flush` | | [`api::Flushed`] |
//! | `GET /v1/policy` | | [`api::Policy`] |
//! | `POST /v1/policy` | [`api::ApplyPolicy`] | [`api::Applied`] |
//! | `DELETE /v1/policy` | | [`api::Applied`] |
//! | `POST /v1/down` | | `null`, and the daemon ends |
//!
//! A failed request is answered by status 4xx or 5xx and `{"error": "one line"}`.

pub mod api;
mod body;
pub mod client;
mod connections;
mod refusal;
pub mod server;

/// The default path of the socket.
pub const SOCKET: &str = "/run/oncache/oncache.sock";

/// The group whose members may use the socket, if it exists.
pub const GROUP: &str = "oncache";
