//! What is published, and what comes.

use crate::backoff::Failure;
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::mpsc;

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
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    /// The broker had kept it for whoever subscribes.
    pub retained: bool,
    /// For how long it is wanted, if its sender told the broker (MQTT 5).
    pub wanted_for: Option<Duration>,
    pub acker: Acker,
}

/// What happens on a connection.
#[derive(Debug)]
pub enum Event {
    /// The broker has taken the publish with this token.
    Acked(u64),
    /// The broker refuses the publish with this token (MQTT 5), or it is larger than the
    /// broker takes.
    Refused(u64, Failure),
    /// The broker accepted or refused a subscription.
    Subscribed(Result<(), Failure>),
    Message(Message),
    /// A message that cannot be taken; it was confirmed to the broker, which would send it
    /// again and again.
    Unusable {
        topic: String,
        size: usize,
        why: &'static str,
    },
    /// So many messages were confirmed to the broker by their [`Acker`]s.
    Confirmed(usize),
    /// There may be room for a publish that there was none for.
    Room,
    /// The connection is over; nothing follows.
    Closed(Failure),
}

/// Confirms a message to the broker, which keeps it until then and sends it again over
/// the next connection of a session that it keeps. In a connection without manual acks it
/// has nothing to do.
#[derive(Debug, Clone, Default)]
pub struct Acker(Option<(u16, mpsc::UnboundedSender<u16>)>);

impl Acker {
    /// Of the message in this packet, which is confirmed by way of `acks`.
    pub fn new(packet: u16, acks: mpsc::UnboundedSender<u16>) -> Acker {
        Acker(Some((packet, acks)))
    }

    /// The message is taken. Over a connection that is gone this does nothing: it comes
    /// again.
    pub fn ack(&self) {
        if let Some((packet, acks)) = &self.0 {
            let _ = acks.send(*packet);
        }
    }
}
