//! What is answered to a request that cannot be served.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
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

    pub fn bad(why: String) -> Refused {
        Refused(StatusCode::BAD_REQUEST, why)
    }

    pub fn too_large(most: usize) -> Refused {
        Refused(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {most} bytes"))
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
