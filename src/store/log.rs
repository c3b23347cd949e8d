//! The handle that links, sinks and the writer share.

use super::attendance::KnownDevices;
use super::cursor::SinkCursor;
use super::events::Lost;
use super::gap::Gap;
use super::headroom::DiskState;
use super::heal;
use super::mark::Mark;
use super::opening::{Prepared, opened, prepare};
use super::place::Astray;
use super::readers::Readers;
use super::restore;
use super::schema::OpenError;
use super::sinks::{Forgotten, Wanted};
use super::small_tables::MAX_MARKS;
use super::space::Gauge;
use super::state::State;
use super::writer::{self, Stepper, Writer};
use crate::clock::{Clock, Now};
use crate::config::{self, Route};
use crate::metrics::{Metrics, ReasonLabel, SinkLabel, SinkReasonLabel};
use crate::model::{Batch, DeviceId, Epoch, Epochs, Seq, Timestamp};
use parking_lot::{Condvar, Mutex};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// The store-and-forward log. Cheap to clone; its methods never wait for the disk
/// unless they say so.
#[derive(Clone)]
pub struct Log {
    pub(super) shared: Arc<Shared>,
}

/// Memory for unsettled readings is used up, and here is the batch again: wait
/// for [`Log::room`], then try once more.
#[derive(Debug)]
pub struct Saturated(pub Batch);

/// Something about the gateway itself that is told upstream, such as a gap; kept
/// until each sink confirmed it.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEvent {
    /// Increasing; never reused in an epoch.
    pub id: u64,
    pub time: Timestamp,
    /// A JSON object with at least `type`.
    pub body: serde_json::Map<String, serde_json::Value>,
}

impl LogEvent {
    /// Whether it tells how a command ended.
    pub fn is_command_result(&self) -> bool {
        self.body.get("type").is_some_and(|kind| kind == "command-result")
    }
}

/// How the log is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHealth {
    /// Why the last commit failed, if it did.
    pub failure: Option<String>,
    /// For how long a commit has been due without being done.
    pub overdue: Duration,
    /// What room there is on the disk.
    pub disk: DiskState,
    /// What an operator should look at, though the log works.
    pub notes: Vec<String>,
}

pub(super) struct Shared {
    pub state: Mutex<State>,
    /// Wakes the writer.
    pub due: Condvar,
    pub room: Notify,
    /// An append was refused, and nothing was settled since.
    pub saturated: AtomicBool,
    /// After each commit, successful or not.
    pub committed: Notify,
    /// A reading or an event that sinks have not seen.
    pub news: Notify,
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

/// The log just opened, and what goes with it.
pub struct Opened<W = Writer> {
    pub log: Log,
    /// One for each of the sinks that were named, in their order.
    pub cursors: Vec<SinkCursor>,
    /// What was told of devices' presence.
    pub devices: KnownDevices,
    /// Ends when the log is closed; see [`Log::close`].
    pub writer: W,
}

impl Log {
    /// [`Log::open_with`], without routes.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        config: &config::Store,
        sinks: &[&str],
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Opened, OpenError> {
        Log::open_with(config, &[], sinks, clock, metrics)
    }

    /// Opens the log in the configured directory, creating both if need be, for
    /// the sinks named, and starts its writer. A damaged log is moved aside and what
    /// is sound in it taken over into a new one. Readings that a route of high priority
    /// matches outlive the others. If the disk is full, the reserve file is given up.
    ///
    /// # Errors
    /// See [`OpenError`]; some of them pass, see [`OpenError::may_pass`].
    pub fn open_with<'a, S: Into<Wanted<'a>> + Copy>(
        config: &config::Store,
        routes: &[Route],
        sinks: &[S],
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Opened, OpenError> {
        let Prepared { shared, disk, jobs, devices, reserve } =
            prepare(config, routes, &wanted(sinks), clock, metrics, None)?;
        let for_writer = shared.clone();
        let failed = |why| OpenError::Directory { path: config.directory.clone(), why };
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer::run(&for_writer, disk, reserve))
            .map_err(failed)?;
        let log = Log { shared: shared.clone() };
        let salvage = match jobs.is_empty() {
            true => None,
            false => Some(restore::start(log, config.directory.clone(), jobs).map_err(failed)?),
        };
        Ok(opened(shared, devices, Writer::new(thread, salvage)))
    }

    /// Opens the log as [`Log::open_with`] does, without any thread: the caller steps the
    /// writer, and sinks read on the thread that asks; `gauge` tells the disk's room.
    /// Segments of a quarantined log wait for an opening with threads. For simulations.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_stepped<'a, S: Into<Wanted<'a>> + Copy>(
        config: &config::Store,
        routes: &[Route],
        sinks: &[S],
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        gauge: Gauge,
    ) -> Result<Opened<Stepper>, OpenError> {
        let Prepared { shared, disk, devices, reserve, .. } =
            prepare(config, routes, &wanted(sinks), clock, metrics, Some(gauge))?;
        Ok(opened(shared.clone(), devices, Stepper::new(shared, disk, reserve)))
    }

    /// The mark of a device's session. A session that the log knows resumes where
    /// it stood, also after a restart; a new one starts at 0.
    pub fn mark(&self, device: &DeviceId, session: u64) -> Arc<Mark> {
        self.shared.state.lock().marks.of(device, session)
    }

    /// Numbers the readings and takes them over; those that the mark's session
    /// had sent before are dropped. Without a mark nothing is known to be a
    /// duplicate. The batch's device may be a sub-device of the mark's.
    ///
    /// # Errors
    /// [`Saturated`] with the batch: nothing of it was taken over.
    pub fn append(&self, mark: Option<&Arc<Mark>>, mut batch: Batch) -> Result<(), Saturated> {
        let shared = &*self.shared;
        let now = shared.clock.now().monotonic;
        let mut state = shared.state.lock();
        if state.close {
            return Err(Saturated(batch));
        }
        if let Some(mark) = mark {
            let accepted = mark.accepted();
            let known = batch.readings.iter().take_while(|reading| reading.origin_seq <= accepted).count();
            if known > 0 {
                batch.readings.drain(..known);
                shared.metrics.readings_duplicate.inc_by(known as u64);
            }
        }
        let last = batch.readings.last().map(|reading| reading.origin_seq);
        let basis = batch.basis;
        if let Err(batch) = state.tail.append(batch, mark, now) {
            shared.saturated.store(true, Ordering::Relaxed);
            if !state.sleeping_until.is_zero() {
                state.sleeping_until = Duration::ZERO;
                shared.due.notify_one();
            }
            return Err(Saturated(batch));
        }
        state.boots.appended(basis);
        if let (Some(mark), Some(last)) = (mark, last) {
            mark.accept(last);
        }
        let wake = now + state.tail.policy().commit_within < state.sleeping_until || state.tail.segment_is_full();
        if wake && !state.sleeping_until.is_zero() {
            state.sleeping_until = Duration::ZERO;
            shared.due.notify_one();
        }
        shared.show(state.tail.visible());
        let given_way = state.tail.take_given_way();
        drop(state);
        if given_way > 0 {
            shared.metrics.store_history_lost.inc_by(given_way);
            shared.announce(&[]);
        }
        Ok(())
    }

    /// Whether an append was refused and nothing has been settled since: what is read
    /// from devices now would only have to wait. Cheap.
    pub fn is_saturated(&self) -> bool {
        self.shared.saturated.load(Ordering::Relaxed)
    }

    /// The clock can be believed, and showed `now`: readings that came before get their
    /// times from it, once and for all of this boot.
    pub fn synchronised(&self, now: Now) {
        let mut state = self.shared.state.lock();
        if state.boots.synchronised(now.start()) && !state.sleeping_until.is_zero() {
            state.sleeping_until = Duration::ZERO;
            self.shared.due.notify_one();
        }
    }

    /// Whether that was so already in this boot of the machine, maybe before a restart.
    pub fn is_synchronised(&self) -> bool {
        self.shared.state.lock().boots.is_synchronised()
    }

    /// Waits until something was settled or reserved, or history gives way, after which
    /// an append may succeed again. Cancel-safe.
    pub async fn room(&self) {
        let mut room = std::pin::pin!(self.shared.room.notified());
        room.as_mut().enable();
        if !self.is_saturated() {
            return;
        }
        let gives_way = self.shared.state.lock().tail.gives_way_at();
        match gives_way {
            None => room.await,
            Some(at) => {
                let left = at.saturating_sub(self.shared.clock.now().monotonic);
                if tokio::time::timeout(left, room).await.is_err() {
                    self.shared.saturated.store(false, Ordering::Relaxed);
                }
            }
        }
    }

    /// Remembers the sessions of so many devices; of those not connected, the ones that
    /// were away for longest are forgotten. What a forgotten device sends again is not
    /// known for a duplicate.
    pub fn remember_devices(&self, most: usize) {
        self.shared.state.lock().marks.remember(most.clamp(1, MAX_MARKS));
    }

    /// Writes everything that is not on disk and waits until it is, or until the
    /// attempt fails.
    ///
    /// # Errors
    /// Why it could not be written; it is still in memory then, and tried again.
    pub async fn flush(&self) -> Result<(), String> {
        loop {
            let mut committed = std::pin::pin!(self.shared.committed.notified());
            committed.as_mut().enable();
            {
                let mut state = self.shared.state.lock();
                if let Some(failure) = &state.failure {
                    return Err(failure.clone());
                }
                if state.tail.saved_upto().next() == state.tail.next() {
                    return Ok(());
                }
                state.flush = true;
            }
            self.shared.due.notify_one();
            committed.await;
        }
    }

    /// Asks the writer to write everything, note the clean stop, and end. Nothing
    /// may be appended afterwards.
    pub fn close(&self) {
        self.shared.state.lock().close = true;
        self.shared.due.notify_one();
    }

    /// The epoch that new readings are of.
    pub fn epoch(&self) -> Epoch {
        self.shared.epochs.current()
    }

    /// Which epoch each seq is of.
    pub fn epochs(&self) -> &Epochs {
        &self.shared.epochs
    }

    pub fn health(&self) -> LogHealth {
        let now = self.shared.clock.now().monotonic;
        let state = self.shared.state.lock();
        let overdue = match state.tail.due() {
            Some(due) => now.saturating_sub(due.max(state.last_progress)),
            None => Duration::ZERO,
        };
        let mut notes = self.shared.notes.clone();
        notes.extend(state.retired.iter().filter_map(|sink| state.waits_for(sink)));
        LogHealth { failure: state.failure.clone(), overdue, disk: state.disk, notes }
    }

    /// Waits until the database turns out to be damaged. The log takes no more then,
    /// and heals when it is opened again; what it did not settle, devices send again.
    /// Cancel-safe.
    pub async fn damaged(&self) {
        let mut damaged = std::pin::pin!(self.shared.damaged.notified());
        damaged.as_mut().enable();
        if !self.shared.state.lock().damaged {
            damaged.await;
        }
    }
}

fn wanted<'a, S: Into<Wanted<'a>> + Copy>(sinks: &[S]) -> Vec<Wanted<'a>> {
    sinks.iter().map(|sink| (*sink).into()).collect()
}

impl Shared {
    /// Stops writing if `why` says that the database is damaged, or older than what was
    /// written, and sees to it that it heals when it is opened again.
    pub fn examine(&self, why: &anyhow::Error) -> bool {
        let is_older = matches!(why.downcast_ref(), Some(Astray::Older { .. }));
        if !is_older && !heal::is_damage(why, &self.path) {
            return false;
        }
        let found = format!("{why:#}");
        let first = !std::mem::replace(&mut self.state.lock().damaged, true);
        if first {
            tracing::error!(error = found, "the log is damaged; it is opened again to heal it");
            // What is whole, only older, is gone on with as after a crash.
            if !is_older {
                heal::remember(&self.path, &found);
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
            self.news.notify_waiters();
        }
    }

    /// Tells devices and links that something was settled. Call without the lock.
    pub fn announce(&self, advanced: &[Arc<Mark>]) {
        if !advanced.is_empty() {
            advanced.iter().for_each(|mark| mark.announce());
        }
        if self.saturated.load(Ordering::Relaxed) {
            self.saturated.store(false, Ordering::Relaxed);
        }
        self.room.notify_waiters();
    }

    pub fn label(&self, sink: usize) -> SinkLabel {
        SinkLabel { sink: self.names[sink].clone() } // cursors are made one for each name
    }

    /// Counts events that sinks will never get, and readings that were kept for sinks that
    /// are forgotten.
    pub fn count_lost(&self, events: &[Lost], forgotten: &[Forgotten]) {
        for Lost { sink, kind, count } in events {
            let label = SinkReasonLabel { sink: sink.clone(), reason: kind };
            self.metrics.sink_events_dropped.get_or_create(&label).inc_by(*count);
        }
        for Forgotten { name, count, .. } in forgotten {
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
}
