//! Checks whether a broker can be reached, without connecting to it by MQTT.

use super::dial;
use super::options::Options;
use std::net::SocketAddr;
use tokio::time::timeout;

/// Whether the broker's address can be reached, over TLS if that is wanted.
pub async fn is_reachable(options: &Options, worked: Option<SocketAddr>) -> bool {
    matches!(timeout(options.connect_timeout, dial::dial(options, worked)).await, Ok(Ok(_)))
}
