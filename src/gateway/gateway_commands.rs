//! Commands to the gateway itself; `docs/commands.md` lists them.

use super::parts::Core;
use crate::clock::Clock;
use crate::downlink::{GatewayCommands, GatewayOutcome};
use crate::logging::Logging;
use crate::metrics::{Metrics, SinkLabel};
use crate::sink::Identity;
use crate::store::Log;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Carries out commands to the gateway.
pub struct GatewayCommandHandler {
    identity: Identity,
    log: Log,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// On the monotonic clock.
    started: Duration,
    /// Each sink's name, and the signal that makes it reconnect.
    sinks: Vec<(Arc<str>, Arc<Notify>)>,
    /// None if the embedding program logs by other means.
    logging: Option<Logging>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestartSink {
    sink: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevel {
    level: String,
}

impl GatewayCommands for GatewayCommandHandler {
    fn execute(&self, name: &str, payload: Option<&str>) -> GatewayOutcome {
        let outcome = match name {
            "ping" => Ok(GatewayOutcome::Done(json!({ "time": self.clock.now().wall.to_string() }))),
            "status" => Ok(self.status()),
            "restart-sink" => {
                let example = json!({ "sink": self.sinks.first().map_or("mqtt", |(name, _)| name) });
                read(name, payload, &example).map(|RestartSink { sink }| self.restart_sink(&sink))
            }
            "set-log-level" => {
                let example = json!({ "level": "debug" });
                read(name, payload, &example).map(|LogLevel { level }| self.set_log_level(&level))
            }
            _ => Err(format!("the gateway has no command {name}; it has ping, status, restart-sink and set-log-level")),
        };
        outcome.unwrap_or_else(GatewayOutcome::Rejected)
    }
}

/// Parses the payload of the command `name`; `example` shows its format.
fn read<T: DeserializeOwned>(name: &str, payload: Option<&str>, example: &serde_json::Value) -> Result<T, String> {
    let payload = payload.filter(|payload| *payload != "null");
    let Some(payload) = payload else {
        return Err(format!("{name} has no payload; give it one such as {example}"));
    };
    serde_json::from_str(payload).map_err(|_| format!("the payload of {name} is not as expected; give {example}"))
}

impl GatewayCommandHandler {
    pub(super) fn new(
        core: &Core,
        sinks: Vec<(Arc<str>, Arc<Notify>)>,
        logging: Option<Logging>,
    ) -> GatewayCommandHandler {
        let Core { base, identity, log, .. } = core.clone();
        let started = base.clock.now().monotonic;
        GatewayCommandHandler { identity, log, clock: base.clock, metrics: base.metrics, started, sinks, logging }
    }

    fn status(&self) -> GatewayOutcome {
        let now = self.clock.now();
        let sink = |(name, _): &(Arc<str>, Arc<Notify>)| {
            let label = SinkLabel { sink: name.clone() };
            json!({
                "sink": name,
                "connected": self.metrics.sink_connected.get_or_create(&label).get() == 1,
                "pending": self.metrics.sink_pending.get_or_create(&label).get(),
            })
        };
        let health = self.log.health();
        GatewayOutcome::Done(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "gateway": self.identity.gateway,
            "epoch": self.identity.epoch,
            "uptime": now.monotonic.saturating_sub(self.started).as_secs(),
            "time": now.wall.to_string(),
            "time_trusted": now.trusted,
            "devices": self.metrics.devices_connected.get(),
            "sinks": self.sinks.iter().map(sink).collect::<Vec<_>>(),
            "disk": health.disk.name(),
            "failure": health.failure,
        }))
    }

    fn restart_sink(&self, sink: &str) -> GatewayOutcome {
        match self.sinks.iter().find(|(name, _)| **name == *sink) {
            Some((_, restart)) => {
                restart.notify_one();
                GatewayOutcome::Done(json!({ "sink": sink }))
            }
            None => {
                let names: Vec<&str> = self.sinks.iter().map(|(name, _)| &**name).collect();
                GatewayOutcome::Rejected(format!("there is no sink {sink:?}; there is {}", names.join(", ")))
            }
        }
    }

    fn set_log_level(&self, level: &str) -> GatewayOutcome {
        let Some(logging) = &self.logging else {
            return GatewayOutcome::Rejected("this gateway does not log by itself".to_owned());
        };
        match logging.set_levels(level) {
            Ok(()) => GatewayOutcome::Done(json!({ "level": level })),
            Err(why) => GatewayOutcome::Rejected(why),
        }
    }
}
