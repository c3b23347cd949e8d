//! Readings, and the presence of devices, to an MQTT broker; commands from there.

mod batches;
mod candidates;
mod commands;
mod link;
mod reception;
mod secrets;
mod status;
mod statuses;
mod watch;

pub use commands::Instruction;
pub use link::MqttLink;

use super::encode::{self, Replay};
use super::{Budget, Destination, Encoded, Identity, Unencodable};
use crate::backoff::Failure;
use crate::clock::{Clock, Now};
use crate::config::{self, Broker, Encoding};
use crate::credentials::Credential;
use crate::device::Registry;
use crate::model::{Epochs, Numbered, Seq};
use crate::mqtt::{Connection, Options, Publish, Topics};
use crate::notes::{Note, Notes};
use crate::store::{LogEvent, with_epoch};
use anyhow::{Context, Result};
use bytes::Bytes;
use candidates::{Candidate, Fruit};
use commands::{Intake, Subscribing, Taker};
use link::{Client, Inbound, status_confirmed};
use secrets::Secrets;
use serde_json::json;
use status::Status;
use statuses::Statuses;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use watch::{Watch, Watching};

type Object = serde_json::Map<String, serde_json::Value>;

/// An MQTT broker, or several that stand in for each other.
pub struct MqttDestination {
    candidates: Vec<Candidate>,
    /// The one that was connected last, and what came of that.
    last: Option<(usize, Fruit)>,
    /// What is the same for all brokers.
    options: Options,
    secrets: Secrets,
    /// Readings of each device go to a topic of its own.
    by_device: bool,
    encoding: Encoding,
    replay_after: Duration,
    topics: Topics,
    status: Status,
    epochs: Epochs,
    /// Whose presence is told, if it is.
    registry: Option<Registry>,
    /// Tells if a broker gets none of it.
    presence_note: Note,
    /// What the broker that was connected last takes as a payload, in bytes.
    max_payload: usize,
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
        let candidate = |broker: &String| -> Result<Candidate> {
            broker.parse().map(Candidate::new).with_context(|| format!("mqtt sink {:?}", config.name))
        };
        let topics = Topics::new(&config.prefix, &identity.gateway);
        let default_id = || format!("tidegate-{}-{}", identity.gateway, config.name);
        let client_id = config.client_id.clone().unwrap_or_else(default_id);
        Ok(MqttDestination {
            registry: config.presence.then_some(registry),
            presence_note: notes.about(config.name.as_str()),
            candidates: config.brokers.iter().map(candidate).collect::<Result<_>>()?,
            last: None,
            options: Options {
                host: String::new(),
                port: 0,
                tls: None,
                version: config.version,
                client_id: client_id.clone(),
                credentials: None,
                keep_alive: config.keep_alive,
                connect_timeout: config.connect_timeout,
                confirm_timeout: config.confirm_timeout,
                max_packet: u32::try_from(config.max_packet.as_u64()).unwrap_or(u32::MAX),
                window: config.window + statuses::WINDOW,
                will: None,
                clean_session: true,
                manual_acks: false,
            },
            secrets: Secrets::of(config, clock.now().monotonic),
            by_device: config.topics == config::Topics::Device,
            encoding: config.encoding,
            replay_after: config.replay_after,
            status: Status { topic: topics.status(), identity, clock },
            watching: Watching::new(config, epochs.clone(), notes),
            client: Client::new(client_id),
            epochs,
            topics,
            max_payload: usize::MAX,
            commands: None,
        })
    }

    /// Takes commands, too. They wait at the broker while the gateway is away.
    /// None has more than `max_body` bytes. `note` tells if the broker lets none come.
    pub fn take_commands(&mut self, taker: mpsc::Sender<Instruction>, max_body: usize, note: Note) {
        self.options.clean_session = false;
        self.options.manual_acks = true;
        let subscribing = Subscribing::new(note, self.status.clock.clone());
        self.commands = Some((Taker { taker, max_body }, Arc::new(subscribing)));
    }

    /// What has to be watched, if anything.
    pub fn credential(&self) -> Option<Arc<dyn Credential>> {
        self.secrets.credential()
    }

    /// The options for one broker, with secrets and certificates read afresh: they
    /// may have been renewed since.
    fn options(&self, broker: &Broker) -> Result<Options> {
        let (tls, credentials) = (self.secrets.tls(broker)?, self.secrets.login()?);
        let will = Some(self.status.message("offline", Some("connection lost")));
        Ok(Options { host: broker.host.clone(), port: broker.port, tls, credentials, will, ..self.options.clone() })
    }

    async fn connect_to(&self, candidate: &Candidate) -> Result<MqttLink, Failure> {
        let Candidate { broker, position, reception, worked, .. } = candidate;
        let options = self
            .options(broker)
            // What is missing may come any moment, and looking for it costs nobody else anything.
            .map_err(|why| Failure { what: format!("cannot connect to {broker}: {why:#}"), permanent: false })?;
        let failed = |why: Failure| Failure { what: format!("{broker}: {why}"), permanent: why.permanent };
        let mut connection = Connection::open_at(&options, *worked).await.map_err(failed)?;
        let since = Instant::now();
        let failed = |why| failed(self.client.ended(why, since.elapsed()));
        // What the broker kept may come before anything else.
        let intake = self
            .commands
            .as_ref()
            .map(|(taker, subscribing)| Intake::new(&self.topics, subscribing.clone(), taker.clone()));
        let watch = Watch::new(self.watching.clone(), self.status.clone(), &self.topics);
        let mut inbound = Inbound { intake, watch };
        connection.publish(STATUS, self.status.message("online", None)).map_err(failed)?;
        status_confirmed(&mut connection, &mut inbound).await.map_err(failed)?;
        if let Some(intake) = &mut inbound.intake {
            intake.subscribe(&mut connection).map_err(failed)?;
        }
        // What a broker that forgot this client still has of devices is not known.
        if !connection.session_present() {
            position.store(0, std::sync::atomic::Ordering::Relaxed);
        }
        tracing::info!(%broker, version = ?options.version, client_id = options.client_id, "connected to the broker");
        let max_packet = connection.max_packet().unwrap_or(u32::MAX).min(options.max_packet);
        let max_packet = usize::try_from(max_packet).unwrap_or(usize::MAX);
        // The longest topic is that of a sub-device.
        let topic = self.topics.readings().len() + "devices//".len() + 2 * 64 + 1;
        Ok(MqttLink {
            window: usize::from(
                options
                    .window
                    .min(connection.receive_maximum().unwrap_or(u16::MAX))
                    .saturating_sub(statuses::WINDOW)
                    .max(1),
            ),
            statuses: self.registry.as_ref().map(|registry| {
                let (gateway, now) = (self.status.identity.gateway.clone(), self.status.clock.now().monotonic);
                let known = (position.clone(), reception.clone());
                Statuses::new(registry.clone(), self.topics.clone(), gateway, known, self.presence_note.clone(), now)
            }),
            max_payload: max_packet.saturating_sub(topic + OVERHEAD).max(1),
            connection,
            fruit: Fruit::default(),
            status: self.status.clone(),
            inbound,
            client: self.client.clone(),
            since,
        })
    }
}

impl MqttDestination {
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

fn json_publish(topic: String, value: &serde_json::Value, retain: bool) -> Publish {
    let payload = Bytes::from(value.to_string());
    Publish { topic, payload, retain, content_type: "application/json", encoding: "json" }
}

impl Destination for MqttDestination {
    type Payload = Publish;
    type Link = MqttLink;

    fn lane(publish: &Publish) -> &str {
        &publish.topic
    }

    async fn connect(&mut self) -> Result<MqttLink, Failure> {
        let mut failures = Vec::new();
        let now = self.status.clock.now().monotonic;
        if let Some((number, fruit)) = self.last.take() {
            self.candidates[number].ended(&fruit, now); // one of them
        }
        for number in candidates::order(&self.candidates, now) {
            match self.connect_to(&self.candidates[number]).await {
                Ok(link) => {
                    self.candidates[number].worked = Some(link.connection.peer());
                    self.last = Some((number, link.fruit.clone()));
                    self.max_payload = link.max_payload;
                    return Ok(link);
                }
                Err(failure) => failures.push(failure),
            }
        }
        Err(Failure {
            permanent: failures.iter().all(|failure| failure.permanent),
            what: failures.into_iter().map(|failure| failure.what).collect::<Vec<_>>().join("; "),
        })
    }

    fn encode(
        &self,
        chunk: &[Numbered],
        after: Seq,
        budget: Budget,
        now: Now,
    ) -> Result<Encoded<Publish>, Unencodable> {
        let entries = encode::entries(chunk, after, Replay::new(self.replay_after, now, self.status.clock.boot()));
        let (identity, entries) = encode::of_one_epoch(&self.status.identity, &self.epochs, entries);
        if self.by_device { self.each_device(&identity, entries, budget) } else { self.all(&identity, entries, budget) }
    }

    fn event(&self, event: &LogEvent) -> Publish {
        let mut body = with_epoch(event.body.clone(), &self.epochs);
        body.insert("gateway".into(), json!(self.status.identity.gateway));
        body.insert("time".into(), json!(event.time.to_string()));
        if event.is_command_result() {
            // Its `id` is the command's.
            body.insert("event".into(), json!(event.id));
            let device = body.get("device").and_then(|device| device.as_str()?.parse().ok());
            let topic = self.topics.result(device.as_ref());
            return self.fitting(topic, body, |body| {
                body.insert("payload".into(), json!({ "error": LEFT_OUT }));
            });
        }
        body.insert("id".into(), json!(event.id));
        self.fitting(self.topics.events(), body, |body| {
            body.retain(|key, _| ["type", "gateway", "epoch", "time", "id"].contains(&key.as_str()));
            body.insert("error".into(), json!(LEFT_OUT));
        })
    }
}
