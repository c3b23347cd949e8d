//! The HTTP server: metrics, health, the API, and devices over WebSocket.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | every metric, as Prometheus text, or OpenMetrics |
//! | `/health/live` | 200 while the process makes progress, else 503 and why |
//! | `/health/ready` | 200 while readings are accepted and stored, else 503 and why |
//! | `/api/v1/...` | see `docs/http.md` |
//! | `/ws/device` | a device's WebSocket, if configured |
//!
//! Everything except `/health/live` and `/ws/device` requires authorisation by [`Access`]. Devices
//! authenticate as their link requires.

mod access;
mod bounded_listener;
mod commands;
mod devices;
mod extract;
mod metrics;
mod problem;
mod turns;
mod upgrade;
mod upgraded;

pub use access::{Access, Denied};
pub use bounded_listener::{BoundedListener, Client};

use crate::device::Registry;
use crate::downlink::Handle;
use crate::ingest::RefusedLog;
use crate::link::websocket::UpgradeSender;
use crate::metrics::{Metrics, ReasonLabel};
use crate::stop;
use crate::store::Log;
use axum::Router;
use axum::body::HttpBody;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use bounded_listener::WithClient;
use problem::Refused;
use serde::Serialize;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// A problem to report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The part of the gateway, such as `log` or a sink's name.
    pub part: String,
    pub reason: String,
    /// Since when, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// The gateway's condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// Problems that make the answer 503.
    pub problems: Vec<Problem>,
    /// Notes that are no fault of the gateway, such as a broker that cannot be reached.
    pub notes: Vec<Problem>,
}

/// The source of the gateway's health.
pub trait Health: Send + Sync {
    /// Whether it makes progress at all; if not, a restart may help.
    fn live(&self) -> Condition;
    /// Whether it accepts and stores readings.
    fn ready(&self) -> Condition;
}

/// The parts that the API serves.
#[derive(Clone)]
pub struct Parts {
    pub registry: Registry,
    pub refused: RefusedLog,
    pub log: Log,
    pub commands: Handle,
    /// Takes upgraded connections of devices, if they connect here.
    pub devices: Option<UpgradeSender>,
}

/// The parts, once the log is open.
pub type Later = Arc<OnceLock<Parts>>;

/// The server's data, and who may read it.
pub struct Site {
    pub metrics: Metrics,
    pub health: Arc<dyn Health>,
    pub access: Access,
    pub parts: Later,
    /// Whether devices connect here.
    pub devices: bool,
}

/// State of every request.
type Shared = Arc<Site>;

/// Serves requests until `stop` turns true. The listener is a [`BoundedListener`], or bounds its
/// connections itself.
pub async fn serve<L>(listener: L, site: Site, mut stop: watch::Receiver<bool>)
where
    L: Listener<Addr = Client>,
{
    let stopped = async move {
        // A dropped sender is a stop as well.
        let () = stop::requested(&mut stop).await;
    };
    let service = routes(Arc::new(site)).into_make_service_with_connect_info::<Client>();
    if let Err(why) = axum::serve(WithClient(listener), service).with_graceful_shutdown(stopped).await {
        tracing::error!(%why, "the HTTP server failed");
    }
}

fn routes(site: Shared) -> Router {
    let mut open = Router::new()
        .route("/health/live", get(|State(site): State<Shared>| async move { answer(&site.health.live()) }));
    if site.devices {
        open = open.route("/ws/device", get(upgrade::device));
    }
    guarded(&site)
        .merge(open)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(track_request))
        .with_state(site)
}

/// Answers a request to an unknown path.
async fn not_found(uri: Uri) -> Refused {
    let why = match uri.path() {
        "/ws/device" => "devices cannot connect here; set [http] devices = true".to_owned(),
        path => format!(
            "there is nothing at {path}; see /metrics, /health/ready, /api/v1/devices, /api/v1/commands and others \
             (docs/http.md); a device behind a hub is HUB%2FSUB in a path"
        ),
    };
    Refused::not_found(why)
}

/// A method that the path does not support. The header `Allow` is added to this.
async fn method_not_allowed(method: Method, uri: Uri) -> Refused {
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not answer to {method}", uri.path()))
}

/// Routes that need authorisation.
fn guarded(site: &Shared) -> Router<Shared> {
    Router::new()
        .route("/metrics", get(metrics::metrics))
        .route("/health/ready", get(|State(site): State<Shared>| async move { answer(&site.health.ready()) }))
        .merge(turns::bounded(devices::routes().merge(commands::routes())))
        .route_layer(middleware::from_fn_with_state(site.clone(), guard))
}

/// Passes authorised requests on.
async fn guard(State(site): State<Shared>, request: Request, next: Next) -> Response {
    match site.access.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(denied) => site.deny(denied),
    }
}

/// Keeps the slot of a connection until its request is answered.
async fn track_request(ConnectInfo(client): ConnectInfo<Client>, request: Request, next: Next) -> Response {
    let last = client.head_arrived();
    // Other requests have a body, which is still incomplete; its handler reports when it is complete.
    if request.method() != Method::POST || request.body().is_end_stream() {
        client.request_complete();
    }
    let mut response = next.run(request).await;
    client.response_started();
    if last {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

impl Site {
    fn parts(&self) -> Result<&Parts, Refused> {
        self.parts.get().ok_or_else(|| Refused::unavailable("the gateway is starting; try again soon".to_owned()))
    }

    fn deny(&self, denied: Denied) -> Response {
        let refused = self.denied(denied);
        match denied {
            Denied::Token => ([(header::WWW_AUTHENTICATE, "Bearer realm=\"tidegate\"")], refused).into_response(),
            Denied::NoToken | Denied::Origin | Denied::Host => refused.into_response(),
        }
    }

    /// Counts a denied request.
    fn denied(&self, denied: Denied) -> Refused {
        self.metrics.http_denied.get_or_create(&ReasonLabel { reason: denied.label() }).inc();
        let status = match denied {
            Denied::Token => StatusCode::UNAUTHORIZED,
            Denied::NoToken => StatusCode::SERVICE_UNAVAILABLE,
            Denied::Origin | Denied::Host => StatusCode::FORBIDDEN,
        };
        Refused::new(status, denied.to_string())
    }
}

/// A refusal with its reason.
fn refuse(status: StatusCode, why: &str) -> Response {
    Refused::new(status, why.to_owned()).into_response()
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
