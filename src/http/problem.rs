//! What is answered to a request that cannot be served, and what finds out that it cannot.

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::json;

/// A refusal: its status, and in words why.
#[derive(Debug)]
pub(super) struct Refused(StatusCode, String);

impl Refused {
    pub fn new(status: StatusCode, why: String) -> Refused {
        Refused(status, why)
    }

    pub fn not_found(why: String) -> Refused {
        Refused(StatusCode::NOT_FOUND, why)
    }

    /// Another try later may succeed.
    pub fn unavailable(why: String) -> Refused {
        Refused(StatusCode::SERVICE_UNAVAILABLE, why)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

/// As axum's, but what makes no sense is refused as everything else is.
pub(super) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, Refused> {
        let found = axum::extract::Path::from_request_parts(parts, state).await;
        found.map(|axum::extract::Path(value)| Path(value)).map_err(|why| Refused(why.status(), why.body_text()))
    }
}

/// Likewise.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Refused> {
        let found = axum::extract::Query::from_request_parts(parts, state).await;
        found.map(|axum::extract::Query(value)| Query(value)).map_err(|why| Refused(why.status(), why.body_text()))
    }
}
