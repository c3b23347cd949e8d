//! How a gateway starts a sink, and what it sees of one that runs, whatever its kind.

use super::{Destination, Identity, Liveness, Pump};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::{Commands, Start};
use crate::credentials::Credential;
use crate::device::Registry;
use crate::metrics::Metrics;
use crate::model::{Epochs, InboundCommand};
use crate::notes::{Note, Notes};
use crate::store::SinkCursor;
use anyhow::Result;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

/// A sink that can be started.
pub struct Sink {
    /// Names it in the log, in metrics and in messages. No other sink has it.
    pub name: String,
    /// Where it begins if the log does not know its name.
    pub start: Start,
    /// Memory for what is encoded and in flight, in bytes.
    pub memory: u64,
    pub build: Build,
}

/// Makes the sink of its place in the log.
pub type Build = Box<dyn FnOnce(SinkCursor, &Context) -> Result<Running> + Send>;

/// What a gateway has for its sinks.
pub struct Context {
    pub identity: Identity,
    pub epochs: Epochs,
    pub registry: Registry,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub notes: Notes,
    /// Takes commands, if the gateway takes any.
    pub commands: Option<CommandIntake>,
}

/// Takes commands from the destinations of sinks.
#[derive(Clone)]
pub struct CommandIntake {
    pub sender: mpsc::Sender<InboundCommand>,
    /// A body of more bytes is no command.
    pub max_body: usize,
}

/// Commands from all sinks together that may wait to be taken.
const INBOUND_COMMANDS: usize = 64;

impl CommandIntake {
    /// And where its commands come out; `None` in its place if `config` wants none.
    pub fn new(config: &Commands) -> (Option<CommandIntake>, mpsc::Receiver<InboundCommand>) {
        let (sender, commands) = mpsc::channel(INBOUND_COMMANDS);
        let intake = CommandIntake { sender, max_body: config.max_body() };
        (Some(intake).filter(|_| config.enabled), commands)
    }
}

/// How a sink sends, and tries again.
#[derive(Debug, Clone, Copy)]
pub struct PumpSettings {
    /// Pauses between attempts to connect: the first, and the longest.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// How long a connection must last before the pauses start over.
    pub stable_after: Duration,
    /// Largest batch, in bytes.
    pub max_batch: usize,
}

/// A sink that is ready to run, as the gateway sees it.
pub struct Running {
    pub name: Arc<str>,
    pub liveness: Liveness,
    /// Of its connection.
    pub note: Note,
    /// Notified, it connects anew.
    pub restart: Arc<Notify>,
    /// What of its files has to be watched, if anything.
    pub credential: Option<Arc<dyn Credential>>,
    run: Box<dyn FnOnce(watch::Receiver<bool>, Duration) -> Task + Send>,
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Running {
    /// A pump from `cursor` to `destination`.
    pub fn new(
        destination: impl Destination + 'static,
        cursor: SinkCursor,
        settings: &PumpSettings,
        context: &Context,
    ) -> Running {
        let Context { clock, metrics, notes, .. } = context;
        let name = cursor.name().clone();
        let backoff =
            Backoff::new(settings.backoff_min, settings.backoff_max, settings.stable_after, fastrand::u64(..));
        let liveness = Liveness::new(clock.now().monotonic);
        let (clock, metrics) = (clock.clone(), metrics.clone());
        let mut pump = Pump::new(destination, cursor, backoff, settings.max_batch, clock, metrics, liveness.clone());
        pump.note_aside(notes.about(name.clone()));
        let (note, restart) = (pump.note(), pump.restarter());
        let run = Box::new(move |stop, drain| -> Task { Box::pin(pump.run(stop, drain)) });
        Running { name, liveness, note, restart, credential: None, run }
    }

    /// Runs until `stop` turns true; what is in flight then has `drain` to be confirmed.
    pub async fn run(self, stop: watch::Receiver<bool>, drain: Duration) {
        (self.run)(stop, drain).await;
    }
}
