//! Readings, and the presence of devices, to an MQTT broker; commands from there.

mod batches;
mod candidates;
mod capabilities;
mod check;
mod commands;
mod connecting;
mod connection;
mod feature_breaker;
mod kind;
mod leaving;
mod options;
mod sas;
mod secrets;
mod status;
mod statuses;
mod watch;

pub(super) use check::check;
pub use connection::MqttConnection;
pub(super) use kind::{build, certificates};

use super::encode::{self, Replay};
use super::{Budget, Destination, Encoded, Identity, Unencodable};
use crate::backoff::Failure;
use crate::clock::{Clock, Now};
use crate::config::{self, Encoding, Profile};
use crate::credentials::Credential;
use crate::device::Registry;
use crate::model::{Epochs, InboundCommand, Seq, SequencedBatch};
use crate::mqtt::{Publish, Topics};
use crate::notes::{Note, Notes};
use crate::store::LogEvent;
use anyhow::{Context, Result};
use bytes::Bytes;
use candidates::{Candidate, Fruit};
use capabilities::Wanted;
use commands::{Subscribing, Taker};
use connection::Client;
use options::Ways;
use secrets::Secrets;
use serde_json::json;
use status::Status;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use watch::Watching;

type Object = serde_json::Map<String, serde_json::Value>;

/// An MQTT broker, or several that stand in for each other.
pub struct MqttDestination {
    /// Of the sink.
    name: String,
    candidates: Vec<Candidate>,
    /// The one that was connected last, and what came of that.
    last: Option<(usize, Fruit)>,
    /// What is asked of a broker first.
    wanted: Wanted,
    ways: Ways,
    /// Readings of each device go to a topic of its own.
    by_device: bool,
    encoding: Encoding,
    replay_after: Duration,
    /// How long one broker is used before those that stand before it are looked at.
    return_after: Duration,
    topics: Topics,
    status: Status,
    epochs: Epochs,
    /// Whose presence is told, if it is.
    registry: Option<Registry>,
    /// Tells if a broker gets none of it.
    presence_note: Note,
    /// What the broker that was connected last takes as a payload, in bytes.
    max_payload: usize,
    /// What the cloud takes as a message, in bytes, whatever the broker says.
    most: usize,
    /// Takes the commands that come, if they are wanted.
    commands: Option<(Taker, Arc<Subscribing>)>,
    watching: Arc<Watching>,
    client: Client,
}

/// The token of status messages; readings count up from 0.
const STATUS: u64 = u64::MAX;
/// What a packet has beside topic and payload, in bytes, with MQTT 5's properties.
const OVERHEAD: usize = 128;
/// In place of what no packet holds.
const LEFT_OUT: &str = "left out: the broker takes no packet so large";

impl MqttDestination {
    /// # Errors
    /// If a broker's address is malformed, which a loaded configuration's are not.
    pub fn new(
        config: &config::Mqtt,
        identity: Identity,
        epochs: Epochs,
        registry: Registry,
        clock: Arc<dyn Clock>,
        notes: &Notes,
    ) -> Result<MqttDestination> {
        let mut candidates = Vec::new();
        for way in config.ways().with_context(|| format!("mqtt sink {:?}", config.name))? {
            candidates.push(Candidate::new(way, &candidates));
        }
        let client_id = config.client_id(&identity.gateway);
        let mut topics = Topics::new(&config.prefix, &identity.gateway);
        if config.profile == Some(Profile::AzureIotHub) {
            topics = topics.in_hub(&client_id, content_type(config.encoding).0);
        }
        Ok(MqttDestination {
            name: config.name.clone(),
            registry: config.presence.then_some(registry),
            presence_note: notes.about(config.name.as_str()),
            candidates,
            last: None,
            wanted: Wanted { version: config.version(), retain: config.retains() },
            ways: Ways {
                common: options::common(config, &client_id),
                secrets: Arc::new(Secrets::of(config, client_id.clone(), clock.now().monotonic)),
            },
            client: Client::new(client_id),
            by_device: config.topics == config::Topics::Device,
            encoding: config.encoding,
            replay_after: config.replay_after,
            return_after: config.return_after,
            status: Status { topic: topics.status(), retain: config.retains(), identity, clock },
            watching: Watching::new(config, epochs.clone(), notes),
            epochs,
            topics,
            max_payload: usize::MAX,
            most: usize::try_from(config.profile.map_or(u64::MAX, Profile::max_payload)).unwrap_or(usize::MAX),
            commands: None,
        })
    }

    /// Takes commands, too. They wait at the broker while the gateway is away.
    /// None has more than `max_body` bytes. `note` tells if the broker lets none come.
    pub fn take_commands(&mut self, taker: mpsc::Sender<InboundCommand>, max_body: usize, note: Note) {
        self.ways.common.clean_session = false;
        self.ways.common.manual_acks = true;
        let subscribing = Subscribing::new(note, self.status.clock.clone());
        self.commands = Some((Taker { taker, max_body }, Arc::new(subscribing)));
    }

    /// What has to be watched, if anything.
    pub fn credential(&self) -> Option<Arc<dyn Credential>> {
        self.ways.secrets.credential()
    }

    /// The message with this body; if no packet of the broker's holds it, what `leave_out`
    /// leaves of it. One that the broker does not take would hold up all that follows.
    fn fitting(&self, topic: String, mut body: Object, leave_out: impl FnOnce(&mut Object)) -> Publish {
        let whole = json_publish(topic.clone(), &body.clone().into(), false);
        if whole.payload.len() <= self.max_payload {
            return whole;
        }
        leave_out(&mut body);
        json_publish(topic, &body.into(), false)
    }
}

/// The MIME type of readings in this encoding, and its name.
fn content_type(encoding: Encoding) -> (&'static str, &'static str) {
    match encoding {
        Encoding::Json => ("application/json", "json"),
        Encoding::Postcard => ("application/octet-stream", "postcard"),
    }
}

fn json_publish(topic: String, value: &serde_json::Value, retain: bool) -> Publish {
    let payload = Bytes::from(value.to_string());
    Publish { topic, payload, retain, content_type: "application/json", encoding: "json" }
}

fn words(failures: Vec<Failure>) -> String {
    failures.into_iter().map(|failure| failure.what).collect::<Vec<_>>().join("; ")
}

impl Destination for MqttDestination {
    type Payload = Publish;
    type Connection = MqttConnection;

    fn lane(publish: &Publish) -> &str {
        &publish.topic
    }

    async fn connect(&mut self) -> Result<MqttConnection, Failure> {
        let mut failures = Vec::new();
        let now = self.status.clock.now().monotonic;
        if let Some((number, fruit)) = self.last.take() {
            self.candidates[number].ended(&fruit, now); // one of them
        }
        for number in candidates::order(&self.candidates, now) {
            match self.connect_with_fallback(number, now).await {
                Ok(link) => {
                    self.candidates[number].worked = Some(link.connection.peer());
                    self.last = Some((number, link.fruit.clone()));
                    self.max_payload = link.max_payload;
                    if !failures.is_empty() {
                        tracing::info!(sink = self.name, why = words(failures), "what comes first cannot be used");
                    }
                    return Ok(link);
                }
                Err(failure) => failures.push(failure),
            }
        }
        Err(Failure { permanent: failures.iter().all(|failure| failure.permanent), what: words(failures) })
    }

    fn encode(
        &self,
        chunk: &[SequencedBatch],
        after: Seq,
        budget: Budget,
        now: Now,
    ) -> Result<Encoded<Publish>, Unencodable> {
        let entries = encode::entries(chunk, after, Replay::new(self.replay_after, now, self.status.clock.boot()));
        let (identity, entries) = encode::of_one_epoch(&self.status.identity, &self.epochs, entries);
        if self.by_device { self.each_device(&identity, entries, budget) } else { self.all(&identity, entries, budget) }
    }

    fn event(&self, event: &LogEvent) -> Publish {
        let body = encode::event(event, &self.status.identity.gateway, &self.epochs);
        if event.is_command_result() {
            let device = body.get("device").and_then(|device| device.as_str()?.parse().ok());
            let topic = self.topics.result(device.as_ref());
            return self.fitting(topic, body, |body| {
                body.insert("payload".into(), json!({ "error": LEFT_OUT }));
            });
        }
        self.fitting(self.topics.events(), body, |body| {
            body.retain(|key, _| ["type", "gateway", "epoch", "time", "id"].contains(&key.as_str()));
            body.insert("error".into(), json!(LEFT_OUT));
        })
    }
}
