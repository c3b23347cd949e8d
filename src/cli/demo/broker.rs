//! A small MQTT broker in this process, for the demo and for experiments.

use crate::mqtt::{Connection, Options, Version};
use anyhow::{Context, Result, bail};
use rumqttd::{ConnectionSettings, RouterConfig, ServerSettings};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;
use tokio::time::Instant;

/// A broker on the loopback interface. It stores nothing on disk, cannot be stopped, and
/// ends with the process.
#[derive(Debug, Clone, Copy)]
pub struct Broker {
    v4: SocketAddr,
    v5: SocketAddr,
}

/// Time until the broker accepts connections.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
const MAX_CONNECTIONS: usize = 1_000;
/// Largest packet, and size of a segment of what is kept for slow subscribers, in bytes;
/// segments of each filter.
const MAX_PACKET: usize = 256 << 10;
const SEGMENT: usize = 16 << 20;
const SEGMENTS: usize = 8;
const INFLIGHT: usize = 200;

impl Broker {
    /// Starts a broker for MQTT 3.1.1 and MQTT 5 on these ports, any free ones if they
    /// are 0, and waits until it answers.
    ///
    /// # Errors
    /// If a port is in use, or the broker does not answer.
    pub async fn start(v4: u16, v5: u16) -> Result<Broker> {
        let broker = Broker::find(v4, v5)?;
        let config = broker.config();
        let serve = move || {
            if let Err(why) = rumqttd::Broker::new(config).start() {
                tracing::error!(%why, "the embedded broker ended");
            }
        };
        std::thread::Builder::new().name("broker".into()).spawn(serve).context("cannot start the broker's thread")?;
        let deadline = Instant::now() + START_TIMEOUT;
        answers(broker.v4, Version::V3_1_1, deadline).await?;
        answers(broker.v5, Version::V5, deadline).await?;
        Ok(broker)
    }

    /// URL for MQTT 3.1.1.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.v4)
    }

    /// URL for MQTT 5.
    pub fn v5_url(&self) -> String {
        format!("mqtt://{}", self.v5)
    }

    /// The broker does not report which port it got, so free ones are found first.
    fn find(v4: u16, v5: u16) -> Result<Broker> {
        let bind = |port| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            TcpListener::bind(address).with_context(|| format!("the broker cannot listen on {address}"))
        };
        let listeners = (bind(v4)?, bind(v5)?);
        Ok(Broker { v4: listeners.0.local_addr()?, v5: listeners.1.local_addr()? })
    }

    fn config(&self) -> rumqttd::Config {
        let server = |name: &str, listen| {
            let connections = ConnectionSettings {
                connection_timeout_ms: 10_000,
                max_payload_size: MAX_PACKET,
                max_inflight_count: INFLIGHT,
                auth: None,
                external_auth: None,
                // Otherwise a publish without subscribers is an error.
                dynamic_filters: true,
            };
            let settings =
                ServerSettings { name: name.into(), listen, tls: None, next_connection_delay_ms: 0, connections };
            Some(HashMap::from([(name.to_owned(), settings)]))
        };
        rumqttd::Config {
            router: RouterConfig {
                max_connections: MAX_CONNECTIONS,
                max_outgoing_packet_count: INFLIGHT as u64,
                max_segment_size: SEGMENT,
                max_segment_count: SEGMENTS,
                ..RouterConfig::default()
            },
            v4: server("mqtt", self.v4),
            v5: server("mqtt5", self.v5),
            ..rumqttd::Config::default()
        }
    }
}

async fn answers(address: SocketAddr, version: Version, deadline: Instant) -> Result<()> {
    let options = Options {
        version,
        connect_timeout: Duration::from_secs(1),
        ..Options::new(address.ip().to_string(), address.port(), "tidegate-probe")
    };
    loop {
        match Connection::open(&options).await {
            Ok(connection) => {
                connection.close(Duration::from_secs(1)).await;
                return Ok(());
            }
            Err(why) if Instant::now() >= deadline => bail!("the embedded broker at {address} does not answer: {why}"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
