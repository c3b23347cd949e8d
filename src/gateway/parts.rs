//! The parts of a gateway, and what they share.

use crate::clock::Clock;
use crate::device::Registry;
use crate::ingest::Ingest;
use crate::metrics::Metrics;
use crate::net::Pool;
use crate::notes::Notes;
use crate::sink::Identity;
use crate::store::Log;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Tasks that stop together.
pub(super) struct Part {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Part {
    pub fn new() -> Part {
        Part { stop: watch::Sender::new(false), tasks: JoinSet::new() }
    }

    /// Runs a task that gets the stop signal.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&mut self, task: impl FnOnce(watch::Receiver<bool>) -> F) {
        self.tasks.spawn(task(self.stop.subscribe()));
    }

    /// Stops the tasks and waits until they have ended, for `within` at most.
    pub async fn stop(mut self, within: Duration, what: &str) {
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(within, all).await.is_err() {
            tracing::warn!(what, ?within, "did not stop in time and is aborted");
        }
    }
}

/// Shared before the log is open.
#[derive(Clone)]
pub(super) struct Base {
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub notes: Notes,
    /// Memory for the buffers of connections.
    pub pool: Pool,
}

/// Shared once the log is open.
#[derive(Clone)]
pub(super) struct Core {
    pub base: Base,
    pub identity: Identity,
    pub log: Log,
    pub registry: Registry,
    pub ingest: Ingest,
}
