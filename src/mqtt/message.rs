//! Publishes, received messages, and events of a connection.

use crate::backoff::Failure;
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::mpsc;

/// A publish with QoS 1.
#[derive(Debug, Clone)]
pub struct Publish {
    pub topic: String,
    pub payload: Bytes,
    pub retain: bool,
    /// MIME type; sent with MQTT 5 only.
    pub content_type: &'static str,
    /// Name of the encoding; sent with MQTT 5 only.
    pub encoding: &'static str,
}

/// A received message.
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    /// It is a retained message.
    pub retained: bool,
    /// Its message expiry, if the sender set one (MQTT 5).
    pub wanted_for: Option<Duration>,
    pub acker: Acker,
}

/// An event of a connection.
#[derive(Debug)]
pub enum Event {
    /// The broker confirmed the publish with this token.
    Acked(u64),
    /// The broker refuses the publish with this token (MQTT 5), or the publish exceeds the
    /// broker's largest packet.
    Refused(u64, Failure),
    /// The broker accepted or refused a subscription.
    Subscribed(Result<(), Failure>),
    Message(Message),
    /// A message that cannot be used; it was confirmed, because the broker would send it
    /// again and again.
    Unusable {
        topic: String,
        size: usize,
        why: &'static str,
    },
    /// This many messages were confirmed by their [`Acker`]s.
    Confirmed(usize),
    /// There may be room for another publish.
    Room,
    /// The connection has ended; nothing follows.
    Closed(Failure),
}

/// Confirms a message to the broker. Until then the broker keeps it, and sends it again over
/// the next connection of a persistent session. Without manual acknowledgement this does
/// nothing.
#[derive(Debug, Clone, Default)]
pub struct Acker(Option<(u16, mpsc::UnboundedSender<u16>)>);

impl Acker {
    /// Confirms the message in this packet by sending to `acks`.
    pub fn new(packet: u16, acks: mpsc::UnboundedSender<u16>) -> Acker {
        Acker(Some((packet, acks)))
    }

    /// The message was accepted. If the connection has ended, this does nothing: the message
    /// is sent again.
    pub fn ack(&self) {
        if let Some((packet, acks)) = &self.0 {
            let _ = acks.send(*packet);
        }
    }
}
