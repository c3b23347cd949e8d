//! Metrics, health and what is known of devices over HTTP, on loopback.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | every figure, in the OpenMetrics text format |
//! | `/health/live` | 200 while the process makes progress, else 503 and why |
//! | `/health/ready` | 200 while readings are taken and kept, else 503 and why |
//! | `/api/v1/...` | see `docs/http.md` |

mod commands;
mod devices;
mod door;
mod problem;

pub use door::Door;

use crate::device::Registry;
use crate::downlink::Handle;
use crate::metrics::Metrics;
use crate::stop;
use crate::store::Log;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use problem::Refused;
use serde::Serialize;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which part of the gateway, such as `log` or a sink's name.
    pub part: String,
    pub reason: String,
}

/// How the gateway is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// What makes the answer 503.
    pub problems: Vec<Problem>,
    /// What a person may want to know, but which is no fault of the gateway's, such
    /// as a broker that cannot be reached.
    pub notes: Vec<Problem>,
}

/// Who knows how the gateway is.
pub trait Health: Send + Sync {
    /// Whether it makes progress at all; if not, a restart may help.
    fn live(&self) -> Condition;
    /// Whether it takes readings and keeps them.
    fn ready(&self) -> Condition;
}

/// What the API tells of.
#[derive(Clone)]
pub struct Parts {
    pub registry: Registry,
    pub log: Log,
    pub commands: Handle,
}

/// The parts, once the log is open.
pub type Later = Arc<OnceLock<Parts>>;

#[derive(Clone)]
struct Shared {
    metrics: Metrics,
    health: Arc<dyn Health>,
    parts: Later,
}

impl Shared {
    fn parts(&self) -> Result<&Parts, Refused> {
        self.parts.get().ok_or_else(|| Refused::unavailable("the gateway is starting; try again soon".to_owned()))
    }
}

/// Answers requests until `stop` turns true. Behind a [`Door`], unless the listener
/// lets in a few at a time itself.
pub async fn serve<L>(
    listener: L,
    metrics: Metrics,
    health: Arc<dyn Health>,
    parts: Later,
    mut stop: watch::Receiver<bool>,
) where
    L: Listener<Addr: std::fmt::Debug>,
{
    let routes = Router::new()
        .route("/metrics", get(figures))
        .route("/health/live", get(|State(shared): State<Shared>| async move { answer(&shared.health.live()) }))
        .route("/health/ready", get(|State(shared): State<Shared>| async move { answer(&shared.health.ready()) }))
        .merge(devices::routes())
        .merge(commands::routes())
        .with_state(Shared { metrics, health, parts });
    let stopped = async move {
        // A sender that is gone is a stop as well.
        let () = stop::requested(&mut stop).await;
    };
    if let Err(why) = axum::serve(listener, routes).with_graceful_shutdown(stopped).await {
        tracing::error!(%why, "the HTTP server failed");
    }
}

async fn figures(State(shared): State<Shared>) -> impl IntoResponse {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPENMETRICS)], shared.metrics.encode())
}

fn answer(condition: &Condition) -> Response {
    let Condition { problems, notes } = condition;
    let (code, status) = match problems.is_empty() {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    let body = serde_json::json!({ "status": status, "problems": problems, "notes": notes });
    (code, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}
