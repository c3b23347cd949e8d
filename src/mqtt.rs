//! The MQTT transport, below the sink and whatever else talks to a broker.
//!
//! rumqttc carries packets and is trusted with nothing else: a [`Connection`] is one
//! TCP connection and one clean session, is never reused after an error, and says
//! which publish was acknowledged. Whatever was not is the caller's to send again.

mod client;
mod inflight;
mod tls;
mod topics;
mod v4;
mod v5;

pub use crate::config::MqttVersion as Version;
pub use client::{Acker, Connection, Event, Message, Options, Publish};
pub use tls::{ClientTls, TlsFiles, client_config, of_sink as tls_of};
pub use topics::Topics;
