//! `/api/v1/devices` and `/api/v1/history`: presence and its history; `/api/v1/refused`: samples
//! that were refused.

use super::Shared;
use super::extract::{Path, Query};
use super::problem::Refused;
use crate::model::DeviceId;
use crate::store::PresenceEntry;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

/// Entries in one answer: the default, and the most.
const DEFAULT: usize = 1000;
const MAX: usize = 10_000;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/devices", get(list))
        .route("/api/v1/devices/{device}", get(one))
        .route("/api/v1/devices/{device}/history", get(history_of))
        .route("/api/v1/history", get(history))
        .route("/api/v1/devices/{device}/refused", get(refused_of))
        .route("/api/v1/refused", get(refused))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    /// Only devices after this one.
    after: Option<DeviceId>,
    limit: Option<usize>,
}

async fn list(State(shared): State<Shared>, Query(page): Query<Page>) -> Result<Json<Value>, Refused> {
    let parts = shared.parts()?;
    let limit = page.limit.unwrap_or(DEFAULT).clamp(1, MAX);
    let devices = parts.registry.statuses(page.after.as_ref(), limit);
    let next = devices.last().filter(|_| devices.len() == limit).map(|last| last.device.clone());
    Ok(Json(json!({ "devices": devices, "next": next })))
}

async fn one(State(shared): State<Shared>, Path(device): Path<DeviceId>) -> Result<Json<Value>, Refused> {
    match shared.parts()?.registry.status(&device) {
        Some(status) => Ok(Json(json!(status))),
        None => Err(Refused::not_found(format!("no device {device} is known"))),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Past {
    /// Only entries before the one with this id.
    before: Option<u64>,
    limit: Option<usize>,
}

async fn history_of(
    State(shared): State<Shared>,
    Path(device): Path<DeviceId>,
    Query(past): Query<Past>,
) -> Result<Json<Value>, Refused> {
    entries(&shared, Some(device), &past).await
}

async fn history(State(shared): State<Shared>, Query(past): Query<Past>) -> Result<Json<Value>, Refused> {
    entries(&shared, None, &past).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Latest {
    limit: Option<usize>,
}

async fn refused_of(
    State(shared): State<Shared>,
    Path(device): Path<DeviceId>,
    Query(latest): Query<Latest>,
) -> Result<Json<Value>, Refused> {
    refused_samples(&shared, Some(&device), &latest)
}

async fn refused(State(shared): State<Shared>, Query(latest): Query<Latest>) -> Result<Json<Value>, Refused> {
    refused_samples(&shared, None, &latest)
}

/// Refused samples are few: there are no pages.
fn refused_samples(shared: &Shared, device: Option<&DeviceId>, latest: &Latest) -> Result<Json<Value>, Refused> {
    let limit = latest.limit.unwrap_or(DEFAULT).clamp(1, MAX);
    let mut refused = shared.parts()?.refused.list(device);
    refused.truncate(limit);
    Ok(Json(json!({ "refused": refused })))
}

async fn entries(shared: &Shared, device: Option<DeviceId>, past: &Past) -> Result<Json<Value>, Refused> {
    let limit = past.limit.unwrap_or(DEFAULT).clamp(1, MAX);
    let entries = shared.parts()?.log.presence_entries(device, past.before, limit).await;
    let entries = entries.map_err(|why| Refused::unavailable(format!("the log cannot be read: {why:#}")))?;
    let next = entries.last().filter(|_| entries.len() == limit).map(|last| last.id);
    let shown: Vec<Value> = entries.iter().map(entry).collect();
    Ok(Json(json!({ "history": shown, "next": next })))
}

fn entry(entry: &PresenceEntry) -> Value {
    let mut shown = json!({ "id": entry.id, "time": entry.time.to_string() });
    if let (Some(shown), Value::Object(status)) = (shown.as_object_mut(), json!(entry.status)) {
        shown.extend(status);
    }
    shown
}
