//! How a sink connects, by its configuration.

use super::secrets::Secrets;
use super::statuses;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, MqttVersion, Way};
use crate::model::GatewayId;
use crate::mqtt::Options;
use anyhow::Result;
use std::sync::Arc;
use std::time::Duration;

/// The ways to all brokers of one sink. Clones share the secrets.
#[derive(Clone)]
pub(super) struct Ways {
    /// What is the same for all brokers.
    pub common: Options,
    pub secrets: Arc<Secrets>,
}

impl Ways {
    /// The options for one of them, without credentials. Certificates and the proxy's password are
    /// read afresh: they may have been renewed.
    ///
    /// # Errors
    /// If a file that they need cannot be used.
    pub fn to(&self, way: &Way) -> Result<Options> {
        let broker = &way.broker;
        let (tls, transport) = (self.secrets.tls(broker)?, self.secrets.transport(way)?);
        Ok(Options { host: broker.host.clone(), port: broker.port, tls, transport, ..self.common.clone() })
    }
}

/// What is the same for all brokers.
pub(super) fn common(config: &config::Mqtt, client_id: &str) -> Options {
    Options {
        version: config.version().unwrap_or(MqttVersion::V5),
        keep_alive: config.keep_alive,
        connect_timeout: config.connect_timeout,
        confirm_timeout: config.confirm_timeout,
        max_packet: u32::try_from(config.max_packet.as_u64()).unwrap_or(u32::MAX),
        window: config.window + statuses::WINDOW,
        ..Options::new("", 0, client_id)
    }
}

/// How the sink connects by one of its ways, for a look at that, with files read now.
///
/// # Errors
/// If a file that it needs cannot be used.
pub(super) fn for_a_look(config: &config::Mqtt, gateway: &GatewayId, way: &Way) -> Result<Options> {
    let client_id = config.client_id(gateway);
    let secrets = Arc::new(Secrets::of(config, client_id.clone(), Duration::ZERO));
    let ways = Ways { common: common(config, &client_id), secrets };
    let credentials = ways.secrets.login(&way.broker, SystemClock::new().now())?;
    Ok(Options { credentials, ..ways.to(way)? })
}
