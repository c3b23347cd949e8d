//! `[http]`.

use super::listener::{listener_section, with_listener_keys};
use super::{Authentication, ClientCertificates, ListenerConfig};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

with_listener_keys! {
    listener_section {
        /// `[http]`: metrics, health, and devices over WebSocket.
        Http(listen: 7412, max_connections: 1000) {
            enabled: bool = true,
            /// File with the token that requests must bear; needed beyond loopback.
            token_file: Option<PathBuf> = None,
            /// Pages of these origins may ask, beside those of this server itself.
            allowed_origins: Vec<String> = Vec::new(),
            /// Whether devices may connect at `/ws/device`.
            devices: bool = false,
        }
    }
}

impl Http {
    /// Whether devices may connect.
    pub fn serves_devices(&self) -> bool {
        self.enabled && self.devices
    }

    /// A client that is no device has none.
    fn client_certificates(&self) -> ClientCertificates {
        ClientCertificates::Optional
    }
}
