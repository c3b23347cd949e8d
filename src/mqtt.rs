//! The MQTT transport, below the sink and whatever else talks to a broker.
//!
//! rumqttc encodes and decodes packets; the rest is ours: a [`Connection`] is one
//! connection and one session, is never reused after an error, and says which publish was
//! acknowledged. Whatever was not is the caller's to send again.
//!
//! ```text
//! dial (addresses, TCP, TLS) -> connection (reads, writes) -> client (what it means) -> packet (bytes)
//!                                                             -> pacing (how much at once)
//! ```

mod client;
mod connection;
mod dial;
mod pacing;
mod packet;
mod reason;
mod tls;
mod topics;

pub use crate::config::MqttVersion as Version;
pub use connection::{Acker, Connection, Event, Message, Options, Publish};
pub use tls::{ClientTls, TlsFiles, client_config, of_sink as tls_of};
pub use topics::Topics;
