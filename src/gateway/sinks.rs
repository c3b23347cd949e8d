//! Starts the sinks.

use super::health::Watched;
use super::parts::{Core, Part};
use crate::config::Config;
use crate::credentials;
use crate::model::InboundCommand;
use crate::sink::{CommandIntake, Context, Sink, kinds};
use crate::store::SinkCursor;
use anyhow::{Context as _, Result, ensure};
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// The running sinks of a gateway.
pub(super) struct Sinks {
    pub part: Part,
    pub watched: Vec<Watched>,
    /// Each sink's name, and the signal that makes it reconnect.
    pub restarters: Vec<(Arc<str>, Arc<Notify>)>,
    /// Commands that the sinks receive.
    pub commands: mpsc::Receiver<InboundCommand>,
}

/// The sinks of `config`, and `others`.
///
/// # Errors
/// If two sinks have the same name.
pub(super) fn all(config: &Config, others: Vec<Sink>) -> Result<Vec<Sink>> {
    let mut all = kinds::configured(config);
    for sink in others {
        ensure!(all.iter().all(|other| other.name != sink.name), "two sinks are named {:?}", sink.name);
        all.push(sink);
    }
    Ok(all)
}

/// Starts each of `sinks` at its cursor.
///
/// # Errors
/// If a sink's configuration is unusable.
pub(super) fn start(config: &Config, sinks: Vec<Sink>, cursors: Vec<SinkCursor>, core: &Core) -> Result<Sinks> {
    let Core { base, identity, log, registry, .. } = core.clone();
    let (intake, commands) = CommandIntake::new(&config.commands);
    let context = Context {
        identity,
        epochs: log.epochs().clone(),
        registry,
        clock: base.clock.clone(),
        metrics: base.metrics.clone(),
        notes: base.notes.clone(),
        commands: intake,
    };
    let drain = config.gateway.shutdown_timeout / 5;
    let (mut part, mut own) = (Part::new(), Vec::new());
    let (mut watched, mut restarters) = (Vec::new(), Vec::new());
    for (sink, cursor) in sinks.into_iter().zip(cursors) {
        let running =
            (sink.build)(cursor, &context).with_context(|| format!("cannot start the sink {:?}", sink.name))?;
        let (name, liveness, note) = (running.name.clone(), running.liveness.clone(), running.note.clone());
        restarters.push((name.clone(), running.restart.clone()));
        watched.push(Watched { name, liveness, note });
        own.extend(running.credential.clone());
        part.spawn(|stop| running.run(stop, drain));
    }
    part.spawn(|stop| credentials::watch(own, base.clock, base.notes, base.metrics, stop));
    Ok(Sinks { part, watched, restarters, commands })
}
