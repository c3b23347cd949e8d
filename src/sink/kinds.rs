//! The kinds of sinks that a configuration can name. A new kind is a line in each function.

use super::check::{Certificates, CheckAs, Report};
use super::lifecycle::Sink;
use super::{file, mqtt};
use crate::config::{self, Config, SinkKind};
use anyhow::Result;

/// The sinks that `config` names.
pub fn configured(config: &Config) -> Vec<Sink> {
    let sink = |section: config::Sink<'_>| {
        let build = match section.kind {
            SinkKind::Mqtt(mqtt) => mqtt::build(mqtt.clone()),
            SinkKind::File(section) => file::build(section.clone()),
        };
        Sink { name: section.name.to_owned(), start: section.start, memory: section.memory, build }
    };
    config.sinks().into_iter().map(sink).collect()
}

/// Looks at the certificates of a sink; `None` if it uses no TLS.
pub fn certificates(sink: &config::Sink<'_>) -> Option<Certificates> {
    match sink.kind {
        SinkKind::Mqtt(mqtt) => mqtt::certificates(mqtt),
        SinkKind::File(_) => None,
    }
}

/// Connects to each server of the sink's destination, and says what is found at each step.
/// Sends nothing that looks like a reading. Returns how much is wrong.
///
/// # Errors
/// If the section itself cannot be understood.
pub async fn check(sink: &config::Sink<'_>, check_as: &CheckAs<'_>, report: Report<'_>) -> Result<usize> {
    match sink.kind {
        SinkKind::Mqtt(mqtt) => mqtt::check(mqtt, &sink.path, check_as, report).await,
        SinkKind::File(section) => Ok(file::check(section, &sink.path, report)),
    }
}
