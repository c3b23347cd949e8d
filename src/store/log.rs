//! The handle that links, sinks and the writer share.

use super::cursor::SinkCursor;
use super::disk::{self, Disk};
use super::evict::{Bounds, Evictor};
use super::gap::Gap;
use super::headroom::{DiskState, Fault};
use super::lanes::Lanes;
use super::logclock::LogClock;
use super::mark::Mark;
use super::readers::Readers;
use super::reserve::Reserve;
use super::schema::{self, OpenError};
use super::state::State;
use super::tail::{Policy, Tail};
use super::writer;
use crate::clock::Clock;
use crate::config::{self, Deliver, Route};
use crate::metrics::{Metrics, ReasonLabel, SinkLabel, SinkReasonLabel, StateLabel};
use crate::model::{Batch, DeviceId, Epoch, Seq, Timestamp};
use parking_lot::{Condvar, Mutex};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// How the log is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHealth {
    /// Why the last commit failed, if it did.
    pub failure: Option<String>,
    /// For how long a commit has been due without being done.
    pub overdue: Duration,
    /// What room there is on the disk.
    pub disk: DiskState,
}

pub(super) struct Shared {
    pub state: Mutex<State>,
    /// Wakes the writer.
    pub due: Condvar,
    pub room: Notify,
    /// After each commit, successful or not.
    pub committed: Notify,
    /// A reading or an event that sinks have not seen.
    pub news: Notify,
    pub visible: AtomicU64,
    pub last_event: AtomicU64,
    pub names: Vec<Arc<str>>,
    pub readers: Arc<Readers>,
    pub path: PathBuf,
    pub epoch: Epoch,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
}

/// Devices whose marks are kept; the ones not connected go first.
const MAX_MARKS: usize = 100_000;

/// The log just opened, and what goes with it.
pub struct Opened {
    pub log: Log,
    /// One for each of the sinks that were named, in their order.
    pub cursors: Vec<SinkCursor>,
    /// Ends when the log is closed; see [`Log::close`].
    pub writer: Writer,
}

/// The thread that owns the write connection.
pub struct Writer {
    thread: std::thread::JoinHandle<()>,
    _lock: File,
}

impl Writer {
    /// Waits for the thread to end, which [`Log::close`] asks it to. Blocks.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the log's writer ended with a panic");
        }
    }
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

    /// Opens the log in the configured directory, creating both if need be, for the
    /// sinks named, and starts its writer. Readings that a route of high priority
    /// matches outlive the others. If the disk is full, the reserve file is given up.
    ///
    /// # Errors
    /// See [`OpenError`]; some of them pass.
    pub fn open_with(
        config: &config::Store,
        routes: &[Route],
        sinks: &[&str],
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Opened, OpenError> {
        let mut opened = Log::try_open(config, routes, sinks, &clock, &metrics);
        let mut reserve = Reserve::new(&config.directory, config.max_size.as_u64());
        if let Err(why) = &opened
            && disk::open_fault(why) == Fault::NoSpace
            && reserve.is_there()
            && reserve.release()
        {
            tracing::warn!(bytes = reserve.size(), "the disk is full; the reserve file was given up to make room");
            opened = Log::try_open(config, routes, sinks, &clock, &metrics);
        }
        if let Err(why) = &opened {
            let now = match disk::open_fault(why) {
                Fault::NoSpace => DiskState::Full,
                Fault::Other => DiskState::Failing,
            };
            for state in DiskState::ALL {
                let label = StateLabel { state: state.name() };
                metrics.store_state.get_or_create(&label).set(i64::from(state == now));
            }
        }
        opened
    }

    fn try_open(
        config: &config::Store,
        routes: &[Route],
        sinks: &[&str],
        clock: &Arc<dyn Clock>,
        metrics: &Metrics,
    ) -> Result<Opened, OpenError> {
        let directory = config.directory.as_path();
        let lock = lock(directory)?;
        let path = directory.join(schema::FILE_NAME);
        let mut connection = schema::open(&path, config.durability)?;
        let now = clock.now();
        let lanes = Lanes::new(routes);
        let failed = |why| OpenError::Database { path: path.clone(), why };
        let found = schema::recover(&mut connection, sinks, now.wall, Epoch(fastrand::u32(1..)), lanes.fingerprint())
            .map_err(failed)?;
        for name in &found.forgotten {
            tracing::warn!(sink = name, "a sink that is no longer configured is forgotten");
        }
        let policy = Policy {
            commit_within: config.commit_within,
            history_within: config.history_within,
            after_commit: config.deliver == Deliver::AfterCommit,
            max_pending: usize::try_from(config.max_pending.as_u64()).unwrap_or(usize::MAX),
            segment_bytes: usize::try_from(config.segment_size.as_u64()).unwrap_or(usize::MAX),
        };
        let confirmed = found.sinks.iter().map(|(confirmed, _)| *confirmed).collect();
        let tail = Tail::new(policy, found.next, found.reserved, confirmed);
        let marks = found
            .marks
            .into_iter()
            .map(|(device, session, seq)| (device.clone(), Mark::new(device, session, seq)))
            .collect();
        let bounds = Bounds {
            max_size: config.max_size.as_u64(),
            max_age: config.max_age.map(|max_age| max_age.as_secs()),
            thin: config.thin,
        };
        let evictor = Evictor::new(bounds, lanes, found.generation);
        let readers = Arc::new(Readers::default());
        let disk = Disk::new(path.clone(), config.durability, config.min_free, connection, readers.clone(), evictor)
            .map_err(|why| OpenError::Directory { path: path.clone(), why: std::io::Error::other(why) })?;
        let shared = Arc::new(Shared {
            visible: AtomicU64::new(tail.visible().0),
            last_event: AtomicU64::new(found.last_event),
            state: Mutex::new(State {
                tail,
                marks,
                events: found.sinks.iter().map(|(_, event)| *event).collect(),
                persisted: found.sinks,
                places_due: None,
                holes: found.holes,
                gaps: Vec::new(),
                notices: Vec::new(),
                disk: DiskState::Normal,
                log_clock: LogClock::new(found.clock.0, found.clock.1, now),
                check_due: now.monotonic,
                warned: None,
                seen_event: found.last_event,
                sleeping_until: Duration::ZERO,
                flush: false,
                close: false,
                failure: None,
                last_progress: now.monotonic,
            }),
            due: Condvar::new(),
            room: Notify::new(),
            committed: Notify::new(),
            news: Notify::new(),
            names: sinks.iter().map(|name| Arc::from(*name)).collect(),
            readers,
            path,
            epoch: found.epoch,
            clock: clock.clone(),
            metrics: metrics.clone(),
        });
        let cursors = (0..sinks.len()).map(|index| SinkCursor::new(shared.clone(), index)).collect();
        let for_writer = shared.clone();
        let reserve = Reserve::new(directory, config.max_size.as_u64());
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer::run(&for_writer, disk, reserve))
            .map_err(|why| OpenError::Directory { path: directory.to_owned(), why })?;
        Ok(Opened { log: Log { shared }, cursors, writer: Writer { thread, _lock: lock } })
    }

    /// The mark of a device's session. A session that the log knows resumes where
    /// it stood, also after a restart; a new one starts at 0.
    pub fn mark(&self, device: &DeviceId, session: u64) -> Arc<Mark> {
        let mut state = self.shared.state.lock();
        if let Some(mark) = state.marks.get(device).filter(|mark| mark.session() == session) {
            return mark.clone();
        }
        if state.marks.len() >= MAX_MARKS && !state.marks.contains_key(device) {
            let idle = state.marks.iter().find(|(_, mark)| Arc::strong_count(mark) == 1).map(|(name, _)| name.clone());
            if let Some(idle) = idle {
                state.marks.remove(&idle);
            }
        }
        let mark = Mark::new(device.clone(), session, 0);
        state.marks.insert(device.clone(), mark.clone());
        mark
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
        if let Some(mark) = mark {
            let accepted = mark.accepted();
            let known = batch.readings.iter().take_while(|reading| reading.origin_seq <= accepted).count();
            if known > 0 {
                batch.readings.drain(..known);
                shared.metrics.readings_duplicate.inc_by(known as u64);
            }
        }
        let last = batch.readings.last().map(|reading| reading.origin_seq);
        state.tail.append(batch, mark, now).map_err(Saturated)?;
        if let (Some(mark), Some(last)) = (mark, last) {
            mark.accept(last);
        }
        let wake = now + state.tail.policy().commit_within < state.sleeping_until || state.tail.segment_is_full();
        if wake && !state.sleeping_until.is_zero() {
            state.sleeping_until = Duration::ZERO;
            shared.due.notify_one();
        }
        shared.show(state.tail.visible());
        Ok(())
    }

    /// Waits until something was settled or reserved, after which an append may
    /// succeed again. Cancel-safe.
    pub async fn room(&self) {
        let mut room = std::pin::pin!(self.shared.room.notified());
        room.as_mut().enable();
        {
            let state = self.shared.state.lock();
            if state.tail.unsettled_bytes() < state.tail.policy().max_pending / 2 && state.tail.reserve_left() > 0 {
                return;
            }
        }
        room.await;
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

    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    pub fn health(&self) -> LogHealth {
        let now = self.shared.clock.now().monotonic;
        let state = self.shared.state.lock();
        let overdue = match state.tail.due() {
            Some(due) => now.saturating_sub(due.max(state.last_progress)),
            None => Duration::ZERO,
        };
        LogHealth { failure: state.failure.clone(), overdue, disk: state.disk }
    }
}

/// Takes the directory for this process alone.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let failed = |why| OpenError::Directory { path: directory.to_owned(), why };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let file = File::options().create(true).write(true).truncate(false).open(directory.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse { path: directory.to_owned() }),
        Err(std::fs::TryLockError::Error(why)) => Err(failed(why)),
    }
}

impl Shared {
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
        self.room.notify_waiters();
    }

    pub fn label(&self, sink: usize) -> SinkLabel {
        SinkLabel { sink: self.names[sink].clone() } // cursors are made one for each name
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
