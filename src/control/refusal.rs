//! How a request is refused: a kind, which HTTP has a status for, and one line.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::api::Failure;
use crate::shown::{LINE, cut};

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
    /// The path knows no such method (405).
    Method,
    /// The request did not come to its end in time (408).
    Late,
    /// The object exists already (409).
    Conflict,
    /// The request is larger than any that makes sense (413).
    Large,
    /// Granting it failed (500).
    Failed,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.kind {
            RefusalKind::Bad => StatusCode::BAD_REQUEST,
            RefusalKind::Unknown => StatusCode::NOT_FOUND,
            RefusalKind::Method => StatusCode::METHOD_NOT_ALLOWED,
            RefusalKind::Late => StatusCode::REQUEST_TIMEOUT,
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Large => StatusCode::PAYLOAD_TOO_LARGE,
            RefusalKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        // Whatever it quotes of the request.
        let error = cut(&self.line, LINE);
        (status, Json(Failure { error })).into_response()
    }
}
