//! `[http]`.

use super::{Authentication, ClientCertificates, ListenerConfig};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[http]`: metrics, health, and devices over WebSocket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    pub enabled: bool,
    pub listen: SocketAddr,
    /// File with the token that requests must bear; needed beyond loopback.
    pub token_file: Option<PathBuf>,
    /// PEM file of the server's certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file of its private key.
    pub key_file: Option<PathBuf>,
    /// PEM file of the authorities that vouch for devices.
    pub client_ca_file: Option<PathBuf>,
    /// Pages of these origins may ask, beside those of this server itself.
    pub allowed_origins: Vec<String>,
    /// Whether devices may connect at `/ws/device`.
    pub devices: bool,
    /// How devices prove who they are; if not given, not at all on loopback, else `Hmac`.
    pub authentication: Option<Authentication>,
    /// Devices beyond this many are refused.
    pub max_connections: usize,
    /// Of one address; no fewer than of all if not given.
    pub max_connections_per_address: Option<usize>,
    /// For a request to be complete; where a device asks, for all of its handshake.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Largest frame body and longest text message accepted, in bytes.
    pub max_frame: ByteSize,
    /// How long a frame may stay incomplete without another byte.
    #[serde(with = "humantime_serde")]
    pub frame_timeout: Duration,
    /// As in `[devices]`, if not given.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Option<Duration>,
    /// As in `[devices]`, if not given.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Option<Duration>,
}

impl Default for Http {
    fn default() -> Http {
        Http {
            enabled: true,
            listen: SocketAddr::from(([127, 0, 0, 1], 7412)),
            token_file: None,
            cert_file: None,
            key_file: None,
            client_ca_file: None,
            allowed_origins: Vec::new(),
            devices: false,
            authentication: None,
            max_connections: 1000,
            max_connections_per_address: None,
            handshake_timeout: Duration::from_secs(5),
            max_frame: ByteSize::kib(64),
            frame_timeout: Duration::from_secs(2),
            heartbeat_interval: None,
            idle_timeout: None,
        }
    }
}

impl Http {
    /// Whether devices may connect.
    pub fn serves_devices(&self) -> bool {
        self.enabled && self.devices
    }

    /// The settings of the listener. Client certificates are optional: a client that is no device
    /// has none.
    pub fn listener(&self) -> ListenerConfig {
        ListenerConfig {
            listen: self.listen,
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            handshake_timeout: self.handshake_timeout,
            max_frame: self.max_frame,
            frame_timeout: self.frame_timeout,
            heartbeat_interval: self.heartbeat_interval,
            idle_timeout: self.idle_timeout,
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            client_ca_file: self.client_ca_file.clone(),
            client_certificates: ClientCertificates::Optional,
            authentication: self.authentication.unwrap_or(Authentication::of(self.listen)),
        }
    }
}
