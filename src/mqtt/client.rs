//! One connection to one broker.
//!
//! rumqttc's event loop runs alone in a task of its own, because its `poll` is not
//! cancel-safe; publishes are queued from outside and never awaited there.

use super::inflight::Inflight;
use super::{trouble, v4, v5};
use crate::backoff::Failure;
use crate::config::MqttVersion as Version;
use bytes::Bytes;
use parking_lot::Mutex;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    pub host: String,
    pub port: u16,
    /// Plain TCP if `None`.
    pub tls: Option<Arc<ClientConfig>>,
    pub version: Version,
    pub client_id: String,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// 5 s or more.
    pub keep_alive: Duration,
    pub connect_timeout: Duration,
    /// Largest packet sent or accepted, in bytes.
    pub max_packet: u32,
    /// Publishes that may be outstanding; the caller keeps to it.
    pub window: u16,
    pub will: Option<Publish>,
    /// Whether the broker forgets subscriptions, and what it holds for them, when the
    /// connection ends.
    pub clean_session: bool,
    /// Messages are confirmed to the broker by their [`Acker`] and not before.
    pub manual_acks: bool,
}

/// Something to publish, with QoS 1.
#[derive(Debug, Clone)]
pub struct Publish {
    pub topic: String,
    pub payload: Bytes,
    pub retain: bool,
    /// MIME type; told with MQTT 5 only.
    pub content_type: &'static str,
    /// Name of the encoding; told with MQTT 5 only.
    pub encoding: &'static str,
}

/// A message that came for a subscription.
#[derive(Debug, Clone)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    /// The broker had kept it for whoever subscribes.
    pub retained: bool,
    /// For how long it is wanted, if its sender told the broker (MQTT 5).
    pub wanted_for: Option<Duration>,
    pub acker: Acker,
}

/// Confirms a message to the broker, which keeps it until then and sends it again over
/// the next connection of a session that it keeps. In a connection without manual acks it
/// has nothing to do.
#[derive(Debug, Clone, Default)]
pub struct Acker(Option<(u16, mpsc::Sender<u16>)>);

impl Acker {
    /// Of the message in this packet, which is confirmed by way of `acks`.
    pub fn new(packet: u16, acks: mpsc::Sender<u16>) -> Acker {
        Acker(Some((packet, acks)))
    }

    /// The message is taken. Over a connection that is gone this does nothing: it comes
    /// again.
    pub fn ack(&self) {
        if let Some((packet, acks)) = &self.0 {
            // Where more are waiting than any broker has outstanding it comes again, too.
            let _ = acks.try_send(*packet);
        }
    }
}

/// What happens on a connection.
#[derive(Debug)]
pub enum Event {
    /// The broker has taken the publish with this token.
    Acked(u64),
    /// The broker took the packet but refuses the publish with this token (MQTT 5).
    Refused(u64, Failure),
    /// The broker accepted or refused a subscription.
    Subscribed(Result<(), Failure>),
    Message(Message),
    /// The connection is over; nothing follows.
    Closed(Failure),
}

/// What the broker allows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Allowance {
    pub receive_maximum: Option<u16>,
    pub max_packet: Option<u32>,
    pub session_present: bool,
}

/// What rumqttc's event loop, of either version, is seen to do.
pub(super) enum Seen {
    Connected(Allowance),
    Sent(u16),
    Acked(u16, Result<(), Failure>),
    Subscribed(Result<(), Failure>),
    /// With the id of its packet; 0 if it wants no confirmation.
    Message(Message, u16),
    Nothing,
}

/// rumqttc's event loop, of either version.
pub(super) trait EventLoop: Send + 'static {
    /// The next thing that happens; not cancel-safe. Over after an error.
    fn next(&mut self) -> impl Future<Output = Result<Seen, Failure>> + Send;

    /// What had been received when the loop failed.
    fn rest(&mut self) -> Vec<Seen>;
}

enum Publisher {
    V4(rumqttc::AsyncClient),
    V5(rumqttc::v5::AsyncClient),
}

/// A live connection. Dropping it cuts it off, which makes the broker publish the
/// Last Will; [`Connection::close`] takes leave.
pub struct Connection {
    publisher: Publisher,
    inflight: Arc<Mutex<Inflight>>,
    events: mpsc::Receiver<Event>,
    allowance: Allowance,
    /// Ends with this.
    _poller: JoinSet<()>,
}

/// Requests beyond the window that may be queued: subscriptions and the like.
const SPARE: u16 = 8;
/// Confirmations of messages that may wait to be sent.
const ACKS: usize = 1024;

/// What names, TLS and the network may take beyond the connection's own timeouts.
const CONNECT_SPARE: Duration = Duration::from_secs(1);

impl Connection {
    /// Connects and waits for the broker's CONNACK.
    ///
    /// # Errors
    /// If the broker cannot be reached, does not answer in time, or refuses.
    pub async fn open(options: &Options) -> Result<Connection, Failure> {
        let capacity = options.window.saturating_add(SPARE);
        let (events_in, mut events) = mpsc::channel(usize::from(capacity));
        let (connected_in, connected) = oneshot::channel();
        let inflight = Arc::new(Mutex::new(Inflight::default()));
        let (acks_in, acks) = mpsc::channel(ACKS);
        let known = Known { inflight: inflight.clone(), acks: options.manual_acks.then_some(acks_in) };
        let mut poller = JoinSet::new();
        let publisher = match options.version {
            Version::V3_1_1 => {
                let (client, event_loop) = v4::client(options, capacity);
                poller.spawn(poll(event_loop, known, connected_in, events_in));
                poller.spawn(v4::ack(client.clone(), acks));
                Publisher::V4(client)
            }
            Version::V5 => {
                let (client, event_loop) = v5::client(options, capacity);
                poller.spawn(poll(event_loop, known, connected_in, events_in));
                poller.spawn(v5::ack(client.clone(), acks));
                Publisher::V5(client)
            }
        };
        let Ok(connected) = tokio::time::timeout(options.connect_timeout + CONNECT_SPARE, connected).await else {
            let what = format!("no answer within {}", humantime::format_duration(options.connect_timeout));
            return Err(Failure { what, permanent: false });
        };
        match connected {
            Ok(allowance) => Ok(Connection { publisher, inflight, events, allowance, _poller: poller }),
            Err(_) => match events.recv().await {
                Some(Event::Closed(Failure { what, permanent })) => {
                    Err(Failure { what: trouble::with_hint(&what, options.tls.is_none()), permanent })
                }
                _ => Err(Failure { what: "the connection was given up".into(), permanent: false }),
            },
        }
    }

    /// How many publishes the broker accepts outstanding, if it said so (MQTT 5).
    pub fn receive_maximum(&self) -> Option<u16> {
        self.allowance.receive_maximum
    }

    /// The largest packet the broker accepts, in bytes, if it said so (MQTT 5).
    pub fn max_packet(&self) -> Option<u32> {
        self.allowance.max_packet
    }

    /// Whether the broker kept what an earlier connection of this client subscribed to.
    pub fn session_present(&self) -> bool {
        self.allowance.session_present
    }

    /// Queues a publish; [`Event::Acked`] or [`Event::Refused`] will name `token`.
    ///
    /// # Errors
    /// If more is queued than the window allows, or the connection is gone.
    pub fn publish(&self, token: u64, publish: Publish) -> Result<(), Failure> {
        let mut inflight = self.inflight.lock();
        inflight.queue(token, &publish.topic);
        let Publish { topic, payload, retain, content_type, encoding } = publish;
        let queued = match &self.publisher {
            Publisher::V4(client) => client.try_publish(topic, rumqttc::QoS::AtLeastOnce, retain, payload).is_ok(),
            Publisher::V5(client) => {
                let properties = v5::properties(content_type, encoding);
                client.try_publish_with_properties(topic, v5::QOS, retain, payload, properties).is_ok()
            }
        };
        if !queued {
            inflight.unqueue();
        }
        accepted(queued)
    }

    /// Subscribes with QoS 1; [`Event::Subscribed`] answers.
    ///
    /// # Errors
    /// If too much is queued, or the connection is gone.
    pub fn subscribe(&self, filter: &str) -> Result<(), Failure> {
        let queued = match &self.publisher {
            Publisher::V4(client) => client.try_subscribe(filter, rumqttc::QoS::AtLeastOnce).is_ok(),
            Publisher::V5(client) => client.try_subscribe(filter, v5::QOS).is_ok(),
        };
        accepted(queued)
    }

    /// Waits for what happens next. Cancel-safe.
    pub async fn event(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => Event::Closed(Failure { what: "the connection is closed".into(), permanent: false }),
        }
    }

    /// Takes leave of the broker, which then forgets the Last Will.
    pub async fn close(mut self, within: Duration) {
        let queued = match &self.publisher {
            Publisher::V4(client) => client.try_disconnect().is_ok(),
            Publisher::V5(client) => client.try_disconnect().is_ok(),
        };
        if queued {
            let closed = async { while !matches!(self.event().await, Event::Closed(_)) {} };
            // A broker that does not close in time is left all the same.
            let _ = tokio::time::timeout(within, closed).await;
        }
    }
}

/// What comes of a request that was or was not `queued`.
fn accepted(queued: bool) -> Result<(), Failure> {
    let what = "more is waiting to be sent to the broker than may be, or the connection is gone";
    if queued { Ok(()) } else { Err(Failure { what: what.into(), permanent: false }) }
}

/// What it takes to make events of what is seen.
struct Known {
    inflight: Arc<Mutex<Inflight>>,
    /// Where confirmations go, if they are given by hand.
    acks: Option<mpsc::Sender<u16>>,
}

/// Runs the event loop until it fails, which is when its connection is gone.
async fn poll(
    mut event_loop: impl EventLoop,
    known: Known,
    connected: oneshot::Sender<Allowance>,
    events: mpsc::Sender<Event>,
) {
    let mut connected = Some(connected);
    let failure = loop {
        match event_loop.next().await {
            Ok(Seen::Connected(allowance)) => match connected.take() {
                Some(connected) => drop(connected.send(allowance)),
                None => {
                    break Failure { what: "the broker answered the connection twice".into(), permanent: false };
                }
            },
            Ok(Seen::Sent(packet)) => known.inflight.lock().sent(packet),
            Ok(seen) => {
                let event = known.event(seen);
                if let Some(event) = event
                    && events.send(event).await.is_err()
                {
                    return;
                }
            }
            Err(failure) => break failure,
        }
    };
    drop(connected);
    for seen in event_loop.rest() {
        if let Some(event) = known.event(seen) {
            // Whoever is gone needs no events.
            let _ = events.send(event).await;
        }
    }
    let _ = events.send(Event::Closed(failure)).await;
}

impl Known {
    fn event(&self, seen: Seen) -> Option<Event> {
        match seen {
            Seen::Acked(packet, outcome) => {
                let (token, topic) = self.inflight.lock().acked(packet)?;
                Some(match outcome {
                    Ok(()) => Event::Acked(token),
                    Err(Failure { what, permanent }) => {
                        let what = format!("{what}, which went to the topic {topic}");
                        Event::Refused(token, Failure { what, permanent })
                    }
                })
            }
            Seen::Subscribed(outcome) => Some(Event::Subscribed(outcome)),
            Seen::Message(message, packet) => {
                let acks = self.acks.clone().filter(|_| packet != 0);
                let acker = acks.map_or_else(Acker::default, |acks| Acker::new(packet, acks));
                Some(Event::Message(Message { acker, ..message }))
            }
            Seen::Connected(_) | Seen::Sent(_) | Seen::Nothing => None,
        }
    }
}
