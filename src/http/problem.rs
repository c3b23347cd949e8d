//! The answer to a request that cannot be served.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Seconds until a retry after a 503.
pub(super) const RETRY_AFTER: &str = "1";

/// A refusal: status and reason.
#[derive(Debug)]
pub(super) struct Refused(StatusCode, String);

impl Refused {
    pub fn new(status: StatusCode, why: String) -> Refused {
        Refused(status, why)
    }

    pub fn not_found(why: String) -> Refused {
        Refused(StatusCode::NOT_FOUND, why)
    }

    pub fn bad(why: String) -> Refused {
        Refused(StatusCode::BAD_REQUEST, why)
    }

    pub fn too_large(most: usize) -> Refused {
        Refused(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {most} bytes"))
    }

    /// A retry may succeed.
    pub fn unavailable(why: String) -> Refused {
        Refused(StatusCode::SERVICE_UNAVAILABLE, why)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Refused(status, why) = self;
        let json = [(header::CONTENT_TYPE, "application/json")];
        let response = (status, json, body(&why)).into_response();
        match status {
            StatusCode::SERVICE_UNAVAILABLE => ([(header::RETRY_AFTER, RETRY_AFTER)], response).into_response(),
            _ => response,
        }
    }
}

/// A refusal as JSON.
pub(super) fn body(why: &str) -> String {
    json!({ "error": why }).to_string()
}
