//! What the handle, its cursors and the writer share.

use super::disk::damage;
use super::disk::file_identity::FilesChanged;
use super::disk::readers::Readers;
use super::retention::gap::Gap;
use super::sinks::events::Lost;
use super::sinks::positions::ForgottenSink;
use super::state::State;
use super::tail::high_water::HighWater;
use super::tail::room::Waiter;
use crate::clock::Clock;
use crate::metrics::{Metrics, ReasonLabel, SinkLabel, SinkReasonLabel};
use crate::model::{Epochs, Seq};
use anyhow::{Context, Result};
use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

pub(super) struct Shared {
    pub state: Mutex<State>,
    /// Wakes the writer.
    pub due: Condvar,
    /// Somebody waits for room.
    pub saturated: AtomicBool,
    /// Those who append without a share of their own.
    pub unnamed: Arc<Waiter>,
    /// After each commit, successful or not.
    pub committed: Notify,
    /// A reading or an event that sinks have not seen.
    pub advanced: Notify,
    pub visible: AtomicU64,
    pub last_event: AtomicU64,
    /// The database turned out to be damaged.
    pub damaged: Notify,
    /// What an operator should look at.
    pub notes: Vec<String>,
    pub names: Vec<Arc<str>>,
    pub readers: Arc<Readers>,
    pub path: PathBuf,
    pub epochs: Epochs,
    /// On the monotonic clock.
    pub opened: Duration,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    /// No thread but the caller's reads or writes.
    pub stepped: bool,
}

impl Shared {
    /// Stops writing if `why` says that the database is damaged, or older than what was
    /// written, and sees to it that it recovers when it is opened again.
    pub fn examine(&self, why: &anyhow::Error) -> bool {
        let is_older = matches!(why.downcast_ref(), Some(FilesChanged::Older { .. }));
        if !is_older && !damage::is_damage(why, &self.path) {
            return false;
        }
        let found = format!("{why:#}");
        let first = !std::mem::replace(&mut self.state.lock().damaged, true);
        if first {
            tracing::error!(error = found, "the log is damaged; it is opened again to recover it");
            // What is whole, only older, is gone on with as after a crash.
            if !is_older {
                damage::remember(&self.path, &found);
            }
            self.state.lock().failure = Some(found);
            self.damaged.notify_waiters();
            self.committed.notify_waiters();
            self.due.notify_one();
        }
        true
    }

    /// Tells waiting sinks how far they may read.
    pub fn show(&self, visible: Seq) {
        if self.visible.fetch_max(visible.0, Ordering::Release) < visible.0 {
            self.advanced.notify_waiters();
        }
    }

    /// Tells devices and links that something was settled. Call without the lock.
    pub fn announce(&self, advanced: &[Arc<HighWater>]) {
        if !advanced.is_empty() {
            advanced.iter().for_each(|high_water| high_water.announce());
        }
        if self.saturated.load(Ordering::Relaxed) {
            let now = self.clock.now().monotonic;
            self.serve(&mut self.state.lock(), now);
        }
    }

    /// Grants what room there is to those who wait for it, and has the rest hasten a commit.
    pub fn serve(&self, state: &mut State, now: Duration) {
        if !state.close {
            state.room.serve(&mut state.tail, now);
        }
        self.saturated.store(state.room.is_awaited(), Ordering::Relaxed);
        state.wake(&self.due);
    }

    pub fn label(&self, sink: usize) -> SinkLabel {
        SinkLabel { sink: self.names[sink].clone() } // cursors are made one for each name
    }

    /// Counts events that sinks will never get, and readings that were kept for sinks that
    /// are forgotten.
    pub fn count_lost(&self, events: &[Lost], forgotten: &[ForgottenSink]) {
        for Lost { sink, kind, count } in events {
            let label = SinkReasonLabel { sink: sink.clone(), reason: kind };
            self.metrics.sink_events_dropped.get_or_create(&label).inc_by(*count);
        }
        for ForgottenSink { name, count, .. } in forgotten {
            let label = SinkReasonLabel { sink: name.clone(), reason: "forgotten" };
            self.metrics.sink_dropped.get_or_create(&label).inc_by(*count);
        }
    }

    /// Counts readings that sinks will never get.
    pub fn count_gap(&self, gap: &Gap) {
        if gap.undelivered.iter().all(|(_, count)| *count == 0) {
            return;
        }
        self.metrics.readings_dropped.get_or_create(&ReasonLabel { reason: gap.reason }).inc_by(gap.count);
        for (sink, count) in &gap.undelivered {
            let label = SinkReasonLabel { sink: sink.clone(), reason: gap.reason };
            self.metrics.sink_dropped.get_or_create(&label).inc_by(*count);
        }
    }

    /// Runs `work` with a reading connection that is kept for `owner`, on a thread that
    /// may block if there are threads.
    pub async fn on_disk<T: Send + 'static>(
        self: &Arc<Shared>,
        owner: usize,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.clone();
        let read = move || {
            let path = &shared.path;
            let reader = shared.readers.take(owner, path).with_context(|| format!("cannot read {}", path.display()))?;
            let result = work(&reader);
            // A connection that failed is not used again.
            shared.readers.give_back(owner, result.is_ok().then_some(reader));
            // This may read the whole database.
            result.inspect_err(|why| {
                shared.examine(why);
            })
        };
        if self.stepped {
            return read();
        }
        tokio::task::spawn_blocking(read).await.context("reading the log was cut off")?
    }
}
