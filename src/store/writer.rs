//! Whoever writes: sleeps until a commit is due, then writes all that is pending
//! in one transaction. A thread of its own, or a simulation step by step.

use super::disk::{Disk, Gap, Outcome};
use super::log::Shared;
use super::schema::OpenError;
use crate::model::Seq;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pause after a commit that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How often the bytes written are read from the operating system.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// The thread that owns the write connection, and what goes with it.
pub struct Writer {
    thread: JoinHandle<()>,
    salvage: Option<JoinHandle<()>>,
    _lock: File,
}

impl Writer {
    pub(super) fn new(thread: JoinHandle<()>, salvage: Option<JoinHandle<()>>, lock: File) -> Writer {
        Writer { thread, salvage, _lock: lock }
    }

    /// Waits for the thread to end, which [`super::Log::close`] asks it to. Blocks.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the log's writer ended with a panic");
        }
        if self.salvage.is_some_and(|salvage| salvage.join().is_err()) {
            tracing::error!("taking over from a damaged log ended with a panic");
        }
    }
}

/// Takes the directory for this process alone.
pub(super) fn lock(directory: &Path) -> Result<File, OpenError> {
    let failed = |why| OpenError::Directory { path: directory.to_owned(), why };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let file = File::options().create(true).write(true).truncate(false).open(directory.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse { path: directory.to_owned() }),
        Err(std::fs::TryLockError::Error(why)) => Err(failed(why)),
    }
}

/// What became of a commit.
enum Attempt {
    Done,
    Failed,
    /// It was the last.
    Ended,
}

/// Runs until the log is closed and everything is written, or writing fails then.
pub(super) fn run(shared: &Shared, mut disk: Disk) {
    let mut counted = Counted::default();
    loop {
        let closing = wait(shared);
        if shared.state.lock().damaged {
            return;
        }
        match attempt(shared, &mut disk, closing) {
            Attempt::Done => {}
            Attempt::Failed => {
                shared.due.wait_for(&mut shared.state.lock(), RETRY);
            }
            Attempt::Ended => return,
        }
        counted.update(shared);
    }
}

/// The writer of a log that has no threads: it works when it is told to, so that a
/// simulation decides what happens when. See [`super::Log::open_stepped`].
pub struct Stepper {
    shared: Arc<Shared>,
    disk: Disk,
    paused_until: Duration,
    _lock: File,
}

/// What a step of the writer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stepped {
    /// No commit is due before then on the monotonic clock, as things stand.
    Idle(Option<Duration>),
    /// A commit was tried; [`super::Log::health`] tells whether it failed.
    Tried,
    /// The log was closed.
    Closed,
}

impl Stepper {
    pub(super) fn new(shared: Arc<Shared>, disk: Disk, lock: File) -> Stepper {
        Stepper { shared, disk, paused_until: Duration::ZERO, _lock: lock }
    }

    /// Commits if that is due.
    pub fn step(&mut self) -> Stepped {
        let now = self.shared.clock.now().monotonic;
        let closing = {
            let mut state = self.shared.state.lock();
            state.last_progress = now;
            let due = state.due().map(|due| due.max(self.paused_until));
            if due.is_none_or(|due| due > now) && !state.close {
                return Stepped::Idle(due);
            }
            state.close
        };
        match attempt(&self.shared, &mut self.disk, closing) {
            Attempt::Done => Stepped::Tried,
            Attempt::Failed => {
                self.paused_until = now + RETRY;
                Stepped::Tried
            }
            Attempt::Ended => Stepped::Closed,
        }
    }
}

/// Writes all that is pending.
fn attempt(shared: &Shared, disk: &mut Disk, closing: bool) -> Attempt {
    let started = Instant::now();
    let now = shared.clock.now();
    let (mut commit, upto) = shared.state.lock().commit(&shared.names, now.wall);
    let readings: usize = commit.batches.iter().map(|b| b.batch.readings.len()).sum();
    let result = disk.commit(&mut commit);
    shared.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
    match result {
        Ok(outcome) => {
            shared.metrics.readings_stored.inc_by(readings as u64);
            commit.gaps.iter().for_each(|gap| shared.count_gap(gap));
            if commit.boot.is_some() {
                shared.state.lock().boots.saved();
            }
            let places = commit.sinks.iter().map(|(_, seq, event)| (*seq, *event)).collect();
            settle(shared, upto, commit.reserve, places, outcome);
            if closing {
                disk.close();
                return Attempt::Ended;
            }
            Attempt::Done
        }
        Err(why) => {
            if shared.examine(&why) {
                return Attempt::Ended;
            }
            let text = format!("{why:#}");
            let mut state = shared.state.lock();
            state.restored.put_back(commit.restored);
            state.restoring = false;
            if state.failure.as_ref() != Some(&text) {
                tracing::error!(error = %text, "the log cannot be written; devices are not acknowledged until it can");
            }
            state.failure = Some(text);
            state.tail.not_saved(commit.marks);
            let newer = std::mem::replace(&mut state.gaps, commit.gaps);
            state.gaps.extend(newer);
            shared.committed.notify_waiters();
            if closing { Attempt::Ended } else { Attempt::Failed }
        }
    }
}

/// Sleeps until a commit is due. True if it is the last.
fn wait(shared: &Shared) -> bool {
    let mut state = shared.state.lock();
    loop {
        let now = shared.clock.now().monotonic;
        state.last_progress = now;
        match state.due() {
            Some(due) if due <= now => {
                state.sleeping_until = Duration::ZERO;
                return state.close;
            }
            Some(due) => {
                state.sleeping_until = due;
                shared.due.wait_for(&mut state, due - now);
            }
            None => {
                state.sleeping_until = Duration::MAX;
                shared.due.wait(&mut state);
            }
        }
    }
}

fn settle(shared: &Shared, upto: Seq, reserve: Option<Seq>, places: Vec<(Seq, u64)>, outcome: Outcome) {
    let (advanced, visible) = {
        let mut state = shared.state.lock();
        if state.failure.take().is_some() {
            tracing::info!("the log can be written again");
        }
        if let Some(reserved) = reserve {
            state.tail.reserve(reserved);
        }
        state.persisted = places;
        if let Some(written) = outcome.written {
            state.written = written;
        }
        state.restoring = false;
        let mut advanced = state.tail.saved(upto);
        if let Some(plan) = &outcome.dropped {
            tracing::warn!(
                first = plan.first.0,
                last = plan.last.0,
                "the log is full: its oldest readings were dropped"
            );
            for sink in 0..shared.names.len() {
                advanced.extend(state.tail.confirm(sink, plan.last));
            }
        }
        if let Some(everywhere) = (0..shared.names.len()).map(|sink| state.tail.confirmed(sink)).min() {
            state.holes.retain(|(before, length)| before.0 + length > everywhere.0);
        }
        shared.metrics.store_pending_bytes.set(i64::try_from(state.tail.unsettled_bytes()).unwrap_or(i64::MAX));
        (advanced, state.tail.visible())
    };
    if let Some(plan) = outcome.dropped {
        shared.count_gap(&Gap {
            reason: "max_size",
            first: plan.first,
            last: plan.last,
            count: plan.undelivered.iter().copied().max().unwrap_or(0),
            undelivered: shared.names.iter().cloned().zip(plan.undelivered).collect(),
        });
    }
    shared.metrics.store_bytes.set(i64::try_from(outcome.size).unwrap_or(i64::MAX));
    shared.announce(&advanced);
    if let Some(event) = outcome.last_event {
        shared.last_event.fetch_max(event, std::sync::atomic::Ordering::Release);
        shared.news.notify_waiters();
    }
    shared.show(visible);
    shared.committed.notify_waiters();
}

/// Keeps the metric of bytes written, as the kernel accounts them to this process.
#[derive(Default)]
struct Counted {
    last: Option<Instant>,
    bytes: u64,
}

impl Counted {
    fn update(&mut self, shared: &Shared) {
        if self.last.is_some_and(|last| last.elapsed() < COUNT_EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        // Not every kernel keeps this account; the metric then stays where it is.
        let Ok(account) = std::fs::read_to_string("/proc/self/io") else { return };
        let written = account.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        if let Some(bytes) = written.and_then(|bytes| bytes.parse::<u64>().ok()) {
            shared.metrics.store_written_bytes.inc_by(bytes.saturating_sub(self.bytes));
            self.bytes = bytes;
        }
    }
}
