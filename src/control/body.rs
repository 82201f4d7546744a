//! A request's body: JSON, whole within a time.

use std::time::Duration;

use axum::{
    Json,
    extract::{FromRequest, Request, rejection::JsonRejection},
    http::StatusCode,
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::refusal::{Refusal, RefusalKind};
use crate::shown::{VALUE, cut_words};

/// How long a body may take to arrive. The asker is on this host.
const PATIENCE: Duration = Duration::from_secs(5);

/// A body that is a `T` in JSON.
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match timeout(PATIENCE, Json::from_request(request, state)).await {
            Ok(Ok(Json(value))) => Ok(Self(value)),
            Ok(Err(rejection)) => Err(refusal(&rejection)),
            Err(_) => Err(Refusal {
                kind: RefusalKind::Late,
                line: format!("the request's body did not arrive within {PATIENCE:?}"),
            }),
        }
    }
}

fn refusal(rejection: &JsonRejection) -> Refusal {
    let kind = match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => RefusalKind::Large,
        _ => RefusalKind::Bad,
    };
    Refusal {
        kind,
        line: cut_words(&rejection.body_text(), VALUE),
    }
}
