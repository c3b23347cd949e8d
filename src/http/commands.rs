//! `/api/v1/devices/DEVICE/commands` and `/api/v1/commands`: sends commands to devices and to
//! the gateway, and looks them up.

use super::Shared;
use super::extract::{Body, MAX_BODY, Path, Query};
use super::problem::Refused;
use crate::downlink::{self, CommandRequest, Handle, Refusal};
use crate::model::{Command, CommandId, CommandKey, CommandState, DeviceId, Target};
use crate::store::Record;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Commands in one answer: the default, and the most.
const DEFAULT: u32 = 100;
const MAX: u32 = 1000;
/// Longest wait of a request: it occupies a connection that others may need.
const MAX_WAIT: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/devices/{device}/commands", get(list_of_device).post(submit_to_device))
        .route("/api/v1/devices/{device}/commands/{id}", get(one_of_device))
        .route("/api/v1/commands", get(list_of_gateway).post(submit_to_gateway))
        .route("/api/v1/commands/{id}", get(one_of_gateway))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

type Answer = Result<(StatusCode, Json<Value>), Refused>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitQuery {
    /// Answer when the command has ended, or after this time.
    wait: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Latest {
    limit: Option<u32>,
}

impl WaitQuery {
    fn wait(&self) -> Result<Option<Duration>, Refused> {
        let parse = |text: &String| {
            let wait = humantime::parse_duration(text)
                .map_err(|_| Refused::bad(format!("wait is {text:?}, which is not a duration; give one such as 5s")))?;
            Ok(wait.min(MAX_WAIT))
        };
        self.wait.as_ref().map(parse).transpose()
    }
}

async fn submit_to_device(
    State(shared): State<Shared>,
    Path(device): Path<DeviceId>,
    Query(query): Query<WaitQuery>,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer {
    submit(&shared, Target::Device(device), &query, &headers, &body).await
}

async fn submit_to_gateway(
    State(shared): State<Shared>,
    Query(query): Query<WaitQuery>,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer {
    submit(&shared, Target::Gateway, &query, &headers, &body).await
}

async fn one_of_device(
    State(shared): State<Shared>,
    Path((device, id)): Path<(DeviceId, CommandId)>,
    Query(query): Query<WaitQuery>,
) -> Answer {
    one(&shared, CommandKey { target: Target::Device(device), id }, query.wait()?).await
}

async fn one_of_gateway(
    State(shared): State<Shared>,
    Path(id): Path<CommandId>,
    Query(query): Query<WaitQuery>,
) -> Answer {
    one(&shared, CommandKey { target: Target::Gateway, id }, query.wait()?).await
}

async fn list_of_device(State(shared): State<Shared>, Path(device): Path<DeviceId>, query: Query<Latest>) -> Answer {
    list(&shared, &Target::Device(device), &query.0).await
}

async fn list_of_gateway(State(shared): State<Shared>, query: Query<Latest>) -> Answer {
    list(&shared, &Target::Gateway, &query.0).await
}

async fn submit(shared: &Shared, target: Target, query: &WaitQuery, headers: &HeaderMap, body: &[u8]) -> Answer {
    check_sender(shared, headers)?;
    let wait = query.wait()?;
    let commands = &shared.parts()?.commands;
    let request: CommandRequest = commands.request(target, body).map_err(|invalid| Refused::bad(invalid.why))?;
    let key = request.key();
    let submitted = commands.submit(request).await.map_err(|why| Refused::unavailable(why.to_string()))?;
    let state = submitted.map_err(|refusal| {
        let status = match refusal {
            Refusal::Disabled | Refusal::NotAllowed => StatusCode::FORBIDDEN,
            Refusal::QueueFull | Refusal::Busy => StatusCode::TOO_MANY_REQUESTS,
            Refusal::TooLong => StatusCode::BAD_REQUEST,
        };
        Refused::new(status, refusal.to_string())
    })?;
    match wait {
        Some(_) => one(shared, key, wait).await,
        None => show(commands, &key, state).await,
    }
}

async fn one(shared: &Shared, key: CommandKey, wait: Option<Duration>) -> Answer {
    let commands = &shared.parts()?.commands;
    if let Some(wait) = wait {
        commands.ended(&key, wait).await;
    }
    match commands.command(&key).await.map_err(unreadable)? {
        Some(Record::Whole(command)) => Ok((status(command.state()), Json(command_json(&command)))),
        Some(Record::End(state)) => Ok(state_json(&key, state)),
        None => {
            let CommandKey { target, id } = key;
            Err(Refused::not_found(format!("{target} has no command {id}, or it is not remembered")))
        }
    }
}

/// The command that was just sent; its state alone if it is not remembered.
async fn show(commands: &Handle, key: &CommandKey, state: CommandState) -> Answer {
    Ok(match commands.command(key).await.map_err(unreadable)? {
        Some(Record::Whole(command)) => (status(command.state()), Json(command_json(&command))),
        Some(Record::End(state)) => state_json(key, state),
        None => state_json(key, state),
    })
}

/// A command of which only the state is known.
fn state_json(key: &CommandKey, state: CommandState) -> (StatusCode, Json<Value>) {
    (status(state), Json(json!({ "device": key.target.device(), "id": key.id, "state": state })))
}

async fn list(shared: &Shared, target: &Target, query: &Latest) -> Answer {
    let limit = query.limit.unwrap_or(DEFAULT).clamp(1, MAX);
    let commands = shared.parts()?.commands.commands(target, limit).await.map_err(unreadable)?;
    let commands: Vec<Value> = commands.iter().map(command_json).collect();
    Ok((StatusCode::OK, Json(json!({ "commands": commands }))))
}

/// 200 if it has ended, else 202.
fn status(state: CommandState) -> StatusCode {
    if state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED }
}

fn command_json(command: &Command) -> Value {
    let ending = command.ended.as_ref();
    json!({
        "device": command.target.device(),
        "id": command.id,
        "name": command.name,
        "payload": command.payload.as_deref().map(downlink::value),
        "source": command.source,
        "received": command.received.to_string(),
        "expires": command.deadline.wall.map(|wall| wall.to_string()),
        "state": command.state(),
        "result": ending.and_then(|ending| ending.payload.as_deref()).map(downlink::value),
        "ended": ending.map(|ending| ending.time.to_string()),
    })
}

/// Denies requests of web pages from elsewhere: a browser asks before it sends JSON to another
/// host, which is not allowed here, and sends the page's origin.
fn check_sender(shared: &Shared, headers: &HeaderMap) -> Result<(), Refused> {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !media.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json")) {
        let why = "send JSON, with Content-Type: application/json".to_owned();
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    // Also for a page that knows the token.
    shared.access.check_origin(headers).map_err(|denied| shared.denied(denied))
}

fn unreadable(why: anyhow::Error) -> Refused {
    Refused::unavailable(format!("the log cannot be read: {why:#}"))
}
