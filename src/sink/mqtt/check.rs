//! A look at each broker, by each way out: the way there, and what may be done there.
//!
//! What is published is nothing that a consumer takes for news: batches without readings,
//! empty messages of a device that is none, and messages to a topic of its own.

use super::options::for_a_look;
use crate::config::{self, Topics as Sorted, Way};
use crate::model::{DeviceId, GatewayId};
use crate::mqtt::{self, Connection, Event, Finding, Message, Options, Publish, Topics, Verdict, Version, took};
use crate::sink::check::{CheckAs, Report};
use anyhow::Result;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a message may take on its way back.
const RETURN: Duration = Duration::from_secs(5);
/// Publishes that the round-trip time is taken from.
const ROUND_TRIPS: usize = 5;
/// Messages that are kept until somebody looks for one: a busy gateway's readings come, too.
const INBOX: usize = 1000;
/// No device: a name that stands in topics only.
const NOBODY: &str = "tidegate-check";

/// Looks at every broker of the section at `path`. Returns how much is wrong.
///
/// # Errors
/// If a broker's address is malformed, which a loaded configuration's are not.
pub(in crate::sink) async fn check(
    sink: &config::Mqtt,
    path: &str,
    check_as: &CheckAs<'_>,
    report: Report<'_>,
) -> Result<usize> {
    let CheckAs { gateway, client_id, nonce } = *check_as;
    let mut wrong = 0;
    for way in sink.ways()? {
        report(format!("{path} {}, {way}", sink.name));
        let mut tell = |finding: Finding| {
            wrong += usize::from(finding.verdict == Verdict::Wrong);
            report(format!("  {finding}"));
        };
        match options(sink, gateway, &way, client_id) {
            Ok(options) => {
                let (topics, as_given) = (Topics::new(&sink.prefix, gateway), client_id.is_some());
                let look = Look { sink, topics, gateway, nonce, as_given };
                look.at(options, &mut tell).await;
            }
            Err(why) => tell(Finding::wrong("files", format!("{why:#}"))),
        }
    }
    Ok(wrong)
}

fn options(sink: &config::Mqtt, gateway: &GatewayId, way: &Way, client_id: Option<&str>) -> Result<Options> {
    let mut options = for_a_look(sink, gateway, way)?;
    options.client_id = client_id.map_or_else(|| format!("{}-check", options.client_id), str::to_owned);
    options.confirm_timeout = options.connect_timeout;
    let topics = Topics::new(&sink.prefix, gateway);
    // Brokers that refuse the gateway's Last Will refuse this one. It says nothing.
    options.will = Some(message(topics.check(), Vec::new(), true));
    Ok(options)
}

fn message(topic: String, payload: impl Into<bytes::Bytes>, retain: bool) -> Publish {
    Publish { topic, payload: payload.into(), retain, content_type: "application/json", encoding: "json" }
}

/// What is looked at.
struct Look<'a> {
    sink: &'a config::Mqtt,
    topics: Topics,
    gateway: &'a GatewayId,
    nonce: &'a str,
    /// The client id is one of the command line.
    as_given: bool,
}

type Tell<'a> = &'a mut (dyn FnMut(Finding) + Send);

impl Look<'_> {
    async fn at(&self, mut options: Options, tell: Tell<'_>) {
        let mut refused = false;
        let automatic = self.sink.version().is_none();
        let mut notice = |mut finding: Finding| {
            if finding.step == "connect" && finding.verdict == Verdict::Wrong {
                refused = true;
                if automatic {
                    finding.verdict = Verdict::Note;
                }
            }
            tell(finding);
        };
        let mut connection = mqtt::probe(&options, &mut notice).await;
        if automatic && refused {
            // As the gateway does.
            options.version = Version::V3_1_1;
            refused = false;
            let mut again = |finding: Finding| {
                if finding.step == "connect" {
                    refused |= finding.verdict == Verdict::Wrong;
                    tell(finding);
                }
            };
            connection = mqtt::probe(&options, &mut again).await;
        }
        let Some(connection) = connection else {
            if refused && !self.as_given {
                let id = options.client_id;
                let what = format!(
                    "this was as {id:?}; where a broker lets in only the gateway's own client id, stop the gateway and give \
                     that as --client-id"
                );
                tell(Finding::note("connect", what));
            }
            return;
        };
        let within = options.connect_timeout;
        let mut session = Session { options, connection: Some(connection), within, inbox: Vec::new() };
        self.echo(&mut session, tell).await;
        self.rights(&mut session, tell).await;
        self.commands(&mut session, tell).await;
        self.retain(&mut session, tell).await;
        self.size(&mut session, tell).await;
        if let Some(connection) = session.connection.take() {
            connection.close(Duration::from_secs(1)).await;
        }
    }

    /// Round trips to the topic that is this program's own.
    async fn echo(&self, session: &mut Session, tell: Tell<'_>) {
        let mut times = Vec::new();
        for _ in 0..ROUND_TRIPS {
            let since = Instant::now();
            match session.publish(message(self.topics.check(), self.nonce.to_owned(), false)).await {
                Ok(()) => times.push(since.elapsed()),
                Err(why) => return tell(Finding::wrong("publish", format!("{}: {why}", self.topics.check()))),
            }
        }
        let (least, most) =
            (times.iter().min().copied().unwrap_or_default(), times.iter().max().copied().unwrap_or_default());
        let what = format!(
            "a publish is confirmed after {} to {} ms ({ROUND_TRIPS} of them)",
            least.as_millis(),
            most.as_millis()
        );
        tell(Finding::fine("time", what));
    }

    /// Whether each topic may be published to, as far as the broker lets that be seen.
    async fn rights(&self, session: &mut Session, tell: Tell<'_>) {
        let Ok(nobody) = DeviceId::new(NOBODY) else { return };
        let batch = json!({ "gateway": self.gateway, "epoch": 0, "readings": [], "check": self.nonce }).to_string();
        let event = json!({ "gateway": self.gateway, "type": "check", "check": self.nonce }).to_string();
        let readings = match self.sink.topics {
            Sorted::Device => self.topics.device_readings(&nobody),
            Sorted::Gateway => self.topics.readings(),
        };
        self.right(session, message(self.topics.check(), self.nonce.to_owned(), false), tell).await;
        self.right(session, message(readings, batch, false), tell).await;
        self.right(session, message(self.topics.events(), event, false), tell).await;
        if self.sink.presence {
            self.right(session, message(self.topics.device_status(&nobody), Vec::new(), false), tell).await;
        }
        if self.sink.commands {
            self.right(session, message(self.topics.result(Some(&nobody)), Vec::new(), false), tell).await;
        }
        self.status(session, tell).await;
    }

    /// The gateway's own status is told again as it is, if there is one: a wrong one would be
    /// news to somebody.
    async fn status(&self, session: &mut Session, tell: Tell<'_>) {
        let topic = self.topics.status();
        if session.subscribe(&topic).await.is_ok()
            && let Some(now) = session.comes(|message| message.topic == topic && message.retained).await
        {
            return self.right(session, message(topic, now.payload, false), tell).await;
        }
        tell(Finding::note(
            "right",
            format!("{topic}: not tried, since it holds nothing that could be told once more"),
        ));
    }

    async fn right(&self, session: &mut Session, publish: Publish, tell: Tell<'_>) {
        let (topic, payload) = (publish.topic.clone(), publish.payload.clone());
        let readable = session.subscribe(&topic).await;
        if let Err(why) = session.publish(publish).await {
            return tell(Finding::wrong("right", format!("{topic}: {why}")));
        }
        let finding = match readable {
            Err(why) => {
                let what = format!("{topic}: confirmed; that it arrives cannot be seen, since {why}");
                Finding::note("right", what)
            }
            Ok(()) => {
                let since = Instant::now();
                let back =
                    session.comes(|message| message.topic == topic && message.payload == payload && !message.retained);
                match (back.await.is_some(), session.options.version) {
                    (true, _) => Finding::fine("right", format!("{topic}: published, and came back ({})", took(since))),
                    (false, Version::V5) => Finding::note(
                        "right",
                        format!("{topic}: confirmed; it did not come back, so reading may be forbidden"),
                    ),
                    (false, Version::V3_1_1) => Finding::wrong(
                        "right",
                        format!(
                            "{topic}: confirmed, and did not come back: brokers of MQTT 3.1.1 confirm what they do not \
                             allow; allow the user to write and read it, or set version = \"5\", which tells"
                        ),
                    ),
                }
            }
        };
        tell(finding);
    }

    async fn commands(&self, session: &mut Session, tell: Tell<'_>) {
        if !self.sink.commands {
            return;
        }
        for filter in self.topics.command_filters() {
            tell(match session.subscribe(&filter).await {
                Ok(()) => Finding::fine("commands", format!("{filter}: subscribed")),
                Err(why) => Finding::wrong("commands", format!("{filter}: {why}; allow it, or set commands = false")),
            });
        }
    }

    /// Whether the broker keeps what is published with retain.
    async fn retain(&self, session: &mut Session, tell: Tell<'_>) {
        let topic = self.topics.check();
        let kept = format!("{}-kept", self.nonce);
        if let Err(why) = session.publish(message(topic.clone(), kept.clone(), true)).await {
            return tell(Finding::wrong("retain", format!("{topic}: {why}")));
        }
        let finding = match session.subscribe(&topic).await {
            Err(_) => {
                Finding::note("retain", "confirmed; that it is kept cannot be seen without a right to read".into())
            }
            Ok(()) => match session.comes(|message| message.retained && message.payload == kept).await {
                Some(_) => Finding::fine("retain", "a retained message is kept".into()),
                None => Finding::wrong(
                    "retain",
                    "a retained message did not come to who subscribes: statuses are known only while they change"
                        .into(),
                ),
            },
        };
        tell(finding);
        // It is not left behind.
        let _ = session.publish(message(topic, Vec::new(), true)).await;
    }

    /// Whether a payload of the largest size that is put together passes.
    async fn size(&self, session: &mut Session, tell: Tell<'_>) {
        let size = usize::try_from(self.sink.max_batch.as_u64()).unwrap_or(usize::MAX);
        let told =
            session.connection.as_ref().and_then(Connection::max_packet).and_then(|most| usize::try_from(most).ok());
        if let Some(told) = told.filter(|told| *told < size) {
            let what = format!(
                "the broker takes packets of at most {told} bytes, less than max_batch ({size}): batches will be smaller"
            );
            return tell(Finding::note("size", what));
        }
        let since = Instant::now();
        let payload = vec![b'x'; size.saturating_sub(self.topics.check().len() + 64)];
        tell(match session.publish(message(self.topics.check(), payload, false)).await {
            Ok(()) => {
                Finding::fine("size", format!("a message of {size} bytes (max_batch) is taken ({})", took(since)))
            }
            Err(why) => {
                Finding::wrong("size", format!("a message of {size} bytes (max_batch): {why}; lower max_batch"))
            }
        });
    }
}

/// A connection that is made anew where the broker ends it.
struct Session {
    options: Options,
    connection: Option<Connection>,
    /// For each step.
    within: Duration,
    inbox: Vec<Message>,
}

impl Session {
    async fn connection(&mut self) -> Result<&mut Connection, String> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.options).await.map_err(|why| why.what)?,
        };
        Ok(self.connection.insert(connection))
    }

    /// The next event, until then; what came is kept.
    async fn event(&mut self, until: Instant) -> Option<Event> {
        let connection = self.connection.as_mut()?;
        match timeout_at(until, connection.event()).await.ok()? {
            Event::Message(message) => {
                if self.inbox.len() < INBOX {
                    self.inbox.push(message);
                }
                Some(Event::Confirmed(0))
            }
            Event::Closed(why) => {
                self.connection = None;
                Some(Event::Closed(why))
            }
            event => Some(event),
        }
    }

    async fn publish(&mut self, publish: Publish) -> Result<(), String> {
        let until = Instant::now() + self.within;
        self.connection().await?.publish(0, publish).map_err(|why| why.what)?;
        loop {
            match self.event(until).await {
                Some(Event::Acked(_)) => return Ok(()),
                Some(Event::Refused(_, why) | Event::Closed(why)) => return Err(why.what),
                Some(_) => {}
                None => {
                    // A late answer must not be taken for one to something else.
                    self.connection = None;
                    return Err(format!("not confirmed within {}", humantime::format_duration(self.within)));
                }
            }
        }
    }

    async fn subscribe(&mut self, filter: &str) -> Result<(), String> {
        let until = Instant::now() + self.within;
        self.connection().await?.subscribe(filter).map_err(|why| why.what)?;
        loop {
            match self.event(until).await {
                Some(Event::Subscribed(outcome)) => return outcome.map_err(|why| why.what),
                Some(Event::Closed(why)) => return Err(why.what),
                Some(_) => {}
                None => {
                    self.connection = None;
                    return Err(format!(
                        "the subscription is not answered within {}",
                        humantime::format_duration(self.within)
                    ));
                }
            }
        }
    }

    /// The first message of this kind that came or comes soon; others are forgotten.
    async fn comes(&mut self, wanted: impl Fn(&Message) -> bool) -> Option<Message> {
        let until = Instant::now() + RETURN.min(self.within);
        loop {
            if let Some(found) = self.inbox.drain(..).find(&wanted) {
                return Some(found);
            }
            self.event(until).await?;
        }
    }
}
