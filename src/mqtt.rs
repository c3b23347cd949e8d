//! The MQTT transport, used by the sink and by everything else that connects to a broker.
//!
//! rumqttc encodes and decodes packets; the rest is ours: a [`Connection`] is one connection
//! and one session, is never reused after an error, and reports which publishes were
//! acknowledged. The caller sends the others again.
//!
//! ```text
//! dial (addresses, TCP, proxy, TLS, WebSocket) -> connection (reads, writes) -> client (what it means) -> packet (bytes)
//!                                                                                -> pacing (how much at once)
//! ```

mod cause;
mod client;
mod connection;
mod dial;
mod http;
mod hub;
mod message;
mod options;
mod pacing;
mod packet;
mod percent;
mod probe;
mod proxy;
mod reach;
mod reason;
mod tls;
mod topics;
mod transport;
mod verifier;
mod websocket;

pub use crate::config::MqttVersion as Version;
pub use cause::{Cause, Refusal};
pub use client::{Client, Seen};
pub use connection::Connection;
pub use message::{Acker, Event, Message, Publish};
pub use options::Options;
pub use pacing::Learnt;
pub use packet::Allowance;
pub use percent::percent_encoded;
pub use probe::{Finding, Verdict, probe, took};
pub use proxy::{Proxy, tunnel};
pub use reach::is_reachable;
pub use tls::{ClientTls, TlsFiles, client_config, of_sink as tls_of};
pub use topics::Topics;
pub use transport::{Request, Transport};
pub use websocket::{Socket, open as open_websocket};
