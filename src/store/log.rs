//! The handle that links, sinks and the writer share.

use super::boots::{self, Boots};
use super::cursor::SinkCursor;
use super::disk::{Commit, Disk, Gap};
use super::mark::Mark;
use super::schema::{self, OpenError};
use super::tail::{Policy, Tail};
use super::writer;
use crate::clock::{Clock, Now};
use crate::config::{self, Deliver};
use crate::metrics::{Metrics, ReasonLabel, SinkLabel, SinkReasonLabel};
use crate::model::{Batch, DeviceId, Epoch, Seq, Timestamp};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
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
    pub path: PathBuf,
    pub epoch: Epoch,
    /// On the monotonic clock.
    pub opened: Duration,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
}

pub(super) struct State {
    pub tail: Tail,
    pub marks: HashMap<DeviceId, Arc<Mark>>,
    /// Confirmed event of each sink.
    pub events: Vec<u64>,
    /// What the disk has of each sink's confirmed seq and event.
    pub persisted: Vec<(Seq, u64)>,
    /// When places that moved on without a commit are written all the same.
    pub places_due: Option<Duration>,
    /// Ranges of seqs without readings, oldest first: last seq before, length.
    pub holes: Vec<(Seq, u64)>,
    pub gaps: Vec<Gap>,
    pub boots: Boots,
    /// The last event that was shown to a sink.
    pub seen_event: u64,
    /// Until when the writer sleeps; zero while it works.
    pub sleeping_until: Duration,
    pub flush: bool,
    pub close: bool,
    pub failure: Option<String>,
    pub last_progress: Duration,
}

/// Sinks' places are written at the latest this long after they moved over
/// readings that are on disk; a crash redelivers at most what they moved over since.
const PLACES_WITHIN: Duration = Duration::from_secs(5);
/// So few redelivered readings are not worth a write.
const PLACES_SLACK: u64 = 256;
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
    /// Opens the log in the configured directory, creating both if need be, for
    /// the sinks named, and starts its writer.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        config: &config::Store,
        sinks: &[&str],
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Opened, OpenError> {
        let directory = config.directory.as_path();
        let lock = lock(directory)?;
        let path = directory.join(schema::FILE_NAME);
        let mut connection = schema::open(&path, config.durability)?;
        let now = clock.now();
        let failed = |why| OpenError::Database { path: path.clone(), why };
        let found = schema::recover(&mut connection, sinks, now.wall, Epoch(fastrand::u32(1..))).map_err(failed)?;
        let boots = boots::load(&connection, clock.boot(), found.next).map_err(failed)?;
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
        let disk = Disk::new(path.clone(), config.durability, config.max_size.as_u64(), connection)
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
                boots,
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
            path,
            epoch: found.epoch,
            opened: now.monotonic,
            clock,
            metrics,
        });
        let cursors = (0..sinks.len()).map(|index| SinkCursor::new(shared.clone(), index)).collect();
        let for_writer = shared.clone();
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer::run(&for_writer, disk))
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
        state.boots.appended(batch.basis);
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
        LogHealth { failure: state.failure.clone(), overdue }
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

impl State {
    /// When the writer has something to do next.
    pub fn due(&self) -> Option<Duration> {
        let reserve = (self.tail.reserve_left() < schema::SEQ_BLOCK / 2).then_some(Duration::ZERO);
        let news = !self.gaps.is_empty() || self.boots.is_due();
        let asked = (self.flush || self.close || news).then_some(Duration::ZERO);
        [reserve, asked, self.tail.due(), self.places_due].into_iter().flatten().min()
    }

    /// Collects what the next commit writes.
    pub fn commit(&mut self, names: &[Arc<str>], now: Timestamp) -> (Commit, Seq) {
        let unsaved = self.tail.unsaved();
        let sinks = names.iter().enumerate().map(|(i, name)| (name.clone(), self.tail.confirmed(i), self.events[i]));
        let reserve =
            (self.tail.reserve_left() < schema::SEQ_BLOCK / 2).then(|| self.tail.next().plus(schema::SEQ_BLOCK));
        let commit = Commit {
            batches: unsaved.batches,
            marks: unsaved.marks,
            sinks: sinks.collect(),
            reserve,
            gaps: std::mem::take(&mut self.gaps),
            boot: self.boots.news(),
            clean: self.close.then(|| self.tail.next()),
            now,
            seen_event: self.seen_event,
        };
        self.places_due = None;
        self.flush = false;
        (commit, unsaved.upto)
    }

    /// Notes that sink number `sink` moved on, and when that must be on disk.
    pub fn moved(&mut self, sink: usize, now: Duration) {
        let on_disk = self.tail.confirmed(sink).min(self.tail.saved_upto());
        let (seq, event) = self.persisted[sink]; // one for each sink
        if on_disk.0 > seq.0 + PLACES_SLACK || self.events[sink] != event {
            self.places_due.get_or_insert(now + PLACES_WITHIN);
        }
    }

    /// Readings between the sink's place and the newest that it may see.
    pub fn pending(&self, sink: usize) -> u64 {
        let (from, upto) = (self.tail.confirmed(sink).0, self.tail.visible().0);
        let missing: u64 = self
            .holes
            .iter()
            .map(|(before, length)| (before.0 + length).min(upto).saturating_sub(before.0.max(from)))
            .sum();
        upto.saturating_sub(from).saturating_sub(missing)
    }
}
