//! `/api/v1/devices/DEVICE/commands` and `/api/v1/commands`: commands to devices and to the
//! gateway, given and looked up.

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

/// Commands in one answer, if nothing else is asked for, and at most.
const USUAL: u32 = 100;
const MOST: u32 = 1000;
/// A request does not wait longer than this: it keeps a place that others may need.
const MAX_WAIT: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/devices/{device}/commands", get(list_of_device).post(give_device))
        .route("/api/v1/devices/{device}/commands/{id}", get(one_of_device))
        .route("/api/v1/commands", get(list_of_gateway).post(give_gateway))
        .route("/api/v1/commands/{id}", get(one_of_gateway))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

type Answer = Result<(StatusCode, Json<Value>), Refused>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patience {
    /// Answer when the command has ended, or this has passed.
    wait: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Latest {
    limit: Option<u32>,
}

impl Patience {
    fn wait(&self) -> Result<Option<Duration>, Refused> {
        let parse = |text: &String| {
            let wait = humantime::parse_duration(text)
                .map_err(|_| Refused::bad(format!("wait is {text:?}, which is no duration; give one such as 5s")))?;
            Ok(wait.min(MAX_WAIT))
        };
        self.wait.as_ref().map(parse).transpose()
    }
}

async fn give_device(
    State(shared): State<Shared>,
    Path(device): Path<DeviceId>,
    Query(asked): Query<Patience>,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer {
    give(&shared, Target::Device(device), &asked, &headers, &body).await
}

async fn give_gateway(
    State(shared): State<Shared>,
    Query(asked): Query<Patience>,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer {
    give(&shared, Target::Gateway, &asked, &headers, &body).await
}

async fn one_of_device(
    State(shared): State<Shared>,
    Path((device, id)): Path<(DeviceId, CommandId)>,
    Query(asked): Query<Patience>,
) -> Answer {
    one(&shared, CommandKey { target: Target::Device(device), id }, asked.wait()?).await
}

async fn one_of_gateway(
    State(shared): State<Shared>,
    Path(id): Path<CommandId>,
    Query(asked): Query<Patience>,
) -> Answer {
    one(&shared, CommandKey { target: Target::Gateway, id }, asked.wait()?).await
}

async fn list_of_device(State(shared): State<Shared>, Path(device): Path<DeviceId>, asked: Query<Latest>) -> Answer {
    list(&shared, &Target::Device(device), &asked.0).await
}

async fn list_of_gateway(State(shared): State<Shared>, asked: Query<Latest>) -> Answer {
    list(&shared, &Target::Gateway, &asked.0).await
}

async fn give(shared: &Shared, target: Target, asked: &Patience, headers: &HeaderMap, body: &[u8]) -> Answer {
    from_here(shared, headers)?;
    let wait = asked.wait()?;
    let commands = &shared.parts()?.commands;
    let request: CommandRequest = commands.request(target, body).map_err(|invalid| Refused::bad(invalid.why))?;
    let key = request.key();
    let given = commands.submit(request).await.map_err(|why| Refused::unavailable(why.to_string()))?;
    let state = given.map_err(|refusal| {
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
        Some(Record::Whole(command)) => Ok((status(command.state()), Json(shown(&command)))),
        Some(Record::End(state)) => Ok(shown_briefly(&key, state)),
        None => {
            let CommandKey { target, id } = key;
            Err(Refused::not_found(format!("{target} was given no command {id}, or it is not remembered")))
        }
    }
}

/// What was just given, which may be more than is remembered.
async fn show(commands: &Handle, key: &CommandKey, state: CommandState) -> Answer {
    Ok(match commands.command(key).await.map_err(unreadable)? {
        Some(Record::Whole(command)) => (status(command.state()), Json(shown(&command))),
        Some(Record::End(state)) => shown_briefly(key, state),
        None => shown_briefly(key, state),
    })
}

/// A command of which no more is known.
fn shown_briefly(key: &CommandKey, state: CommandState) -> (StatusCode, Json<Value>) {
    (status(state), Json(json!({ "device": key.target.device(), "id": key.id, "state": state })))
}

async fn list(shared: &Shared, target: &Target, asked: &Latest) -> Answer {
    let limit = asked.limit.unwrap_or(USUAL).clamp(1, MOST);
    let commands = shared.parts()?.commands.commands(target, limit).await.map_err(unreadable)?;
    let commands: Vec<Value> = commands.iter().map(shown).collect();
    Ok((StatusCode::OK, Json(json!({ "commands": commands }))))
}

/// Accepted, or done with.
fn status(state: CommandState) -> StatusCode {
    if state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED }
}

fn shown(command: &Command) -> Value {
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

/// Lets in what no web page from elsewhere can send: a browser asks before it sends JSON to
/// another host, which is not allowed here, and says where the page is from.
fn from_here(shared: &Shared, headers: &HeaderMap) -> Result<(), Refused> {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !media.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json")) {
        let why = "send JSON, with Content-Type: application/json".to_owned();
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    // Also of a page that knows the token.
    shared.access.check_origin(headers).map_err(|denied| shared.denied(denied))
}

fn unreadable(why: anyhow::Error) -> Refused {
    Refused::unavailable(format!("the log cannot be read: {why:#}"))
}
