//! Options of a connection to a broker.

use super::message::Publish;
use super::transport::Transport;
use crate::config::MqttVersion as Version;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    pub host: String,
    pub port: u16,
    /// Plain TCP if `None`.
    pub tls: Option<Arc<ClientConfig>>,
    pub transport: Transport,
    pub version: Version,
    pub client_id: String,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// 5 s or more.
    pub keep_alive: Duration,
    /// For names, TCP, TLS and CONNACK together.
    pub connect_timeout: Duration,
    /// How long the oldest publish may stay unconfirmed, beside its transmission on the slowest
    /// link, until the connection is given up.
    pub confirm_timeout: Duration,
    /// Largest packet sent or accepted, in bytes.
    pub max_packet: u32,
    /// Publishes that may be outstanding; the caller respects it.
    pub window: u16,
    pub will: Option<Publish>,
    /// Whether the broker discards subscriptions, and messages for them, when the connection
    /// ends.
    pub clean_session: bool,
    /// Messages are confirmed to the broker only by their [`Acker`](super::Acker).
    pub manual_acks: bool,
}

impl Options {
    /// With MQTT 5 over plain TCP, as nobody in particular, with no will and a clean session.
    pub fn new(host: impl Into<String>, port: u16, client_id: impl Into<String>) -> Options {
        Options {
            host: host.into(),
            port,
            tls: None,
            transport: Transport::default(),
            version: Version::V5,
            client_id: client_id.into(),
            credentials: None,
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(30),
            max_packet: 256 * 1024,
            window: 32,
            will: None,
            clean_session: true,
            manual_acks: false,
        }
    }
}
