//! Starts the sinks.

use super::Part;
use super::health::Watched;
use crate::config::Config;
use crate::credentials::Credential;
use crate::sink::{Context, Sink, kinds};
use crate::store::SinkCursor;
use anyhow::{Context as _, Result, ensure};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The sinks of a gateway, which run.
pub(super) struct Sinks {
    pub part: Part,
    pub watched: Vec<Watched>,
    /// Each one's name, and what makes it connect anew.
    pub restarters: Vec<(Arc<str>, Arc<Notify>)>,
    pub credentials: Vec<Arc<dyn Credential>>,
}

/// The sinks of `config`, and `others`.
///
/// # Errors
/// If two have one name.
pub(super) fn all(config: &Config, others: Vec<Sink>) -> Result<Vec<Sink>> {
    let mut all = kinds::configured(config);
    for sink in others {
        ensure!(all.iter().all(|other| other.name != sink.name), "two sinks are named {:?}", sink.name);
        all.push(sink);
    }
    Ok(all)
}

/// Starts each of `sinks` at its cursor. When they stop, what is in flight has `drain` to be
/// confirmed.
///
/// # Errors
/// If one cannot be made of its configuration.
pub(super) fn start(sinks: Vec<Sink>, cursors: Vec<SinkCursor>, context: &Context, drain: Duration) -> Result<Sinks> {
    let mut started = Sinks { part: Part::new(), watched: Vec::new(), restarters: Vec::new(), credentials: Vec::new() };
    for (sink, cursor) in sinks.into_iter().zip(cursors) {
        let running =
            (sink.build)(cursor, context).with_context(|| format!("cannot start the sink {:?}", sink.name))?;
        let (name, pulse, note) = (running.name.clone(), running.pulse.clone(), running.note.clone());
        started.restarters.push((name.clone(), running.restart.clone()));
        started.watched.push(Watched { name, pulse, note });
        started.credentials.extend(running.credential.clone());
        let stop = started.part.stop.subscribe();
        started.part.tasks.spawn(running.run(stop, drain));
    }
    Ok(started)
}
