//! Whoever writes: sleeps until a commit is due, then writes all that is pending
//! in one transaction. A thread of its own, or a simulation step by step.

pub(super) mod disk_monitor;

use super::commit::committer::Committer;
use super::commit::{Commit, Outcome};
use super::disk::reserve_file::ReserveFile;
use super::retention::gap::{Gap, add_holes};
use super::shared::Shared;
use crate::model::Seq;
use crate::store::writer::disk_monitor::DiskMonitor;
use anyhow::Result;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the bytes written are read from the operating system.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How often it is logged that readings are dropped.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The thread that owns the write connection, and what goes with it.
pub struct Writer {
    thread: JoinHandle<()>,
    salvage: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn new(thread: JoinHandle<()>, salvage: Option<JoinHandle<()>>) -> Writer {
        Writer { thread, salvage }
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

/// What became of a commit.
enum Attempt {
    Done {
        /// Whether anything had to be written.
        wrote: bool,
        /// The log was closed before, and everything is written.
        last: bool,
    },
    /// How long to wait before the next one.
    Failed(Duration),
    /// The database is damaged.
    Damaged,
}

/// Runs until the log is closed and everything is written, or writing fails then.
pub(super) fn run(shared: &Shared, committer: Committer, reserve: ReserveFile) {
    let mut counted = Counted::default();
    let mut work = Work::new(shared, committer, reserve);
    loop {
        let closing = wait(shared);
        if shared.state.lock().damaged {
            return;
        }
        match work.attempt(shared) {
            Attempt::Done { last: true, .. } => {
                work.committer.close();
                return;
            }
            Attempt::Failed(pause) if closing && !pause.is_zero() => return,
            Attempt::Failed(pause) => rest(shared, pause),
            Attempt::Done { .. } => {}
            Attempt::Damaged => return,
        }
        counted.update(shared);
    }
}

/// Waits before the next attempt, but not when the log is closed.
fn rest(shared: &Shared, pause: Duration) {
    let until = Instant::now() + pause;
    let mut state = shared.state.lock();
    while !state.is_over() && !shared.due.wait_until(&mut state, until).timed_out() {}
}

/// The writer of a log that has no threads: it works when it is told to, so that a
/// simulation decides what happens when. See [`super::Log::open_stepped`].
pub struct Stepper {
    shared: Arc<Shared>,
    work: Work,
    paused_until: Duration,
}

/// What a step of the writer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stepped {
    /// No commit is due before then on the monotonic clock, as things stand.
    Idle(Option<Duration>),
    /// The disk's room and the age of readings were looked at; nothing was written.
    Looked,
    /// A commit was tried; [`super::Log::health`] tells whether it failed.
    Tried,
    /// The log was closed.
    Closed,
}

impl Stepper {
    pub(super) fn new(shared: Arc<Shared>, committer: Committer, reserve: ReserveFile) -> Stepper {
        let work = Work::new(&shared, committer, reserve);
        Stepper { shared, work, paused_until: Duration::ZERO }
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
        match self.work.attempt(&self.shared) {
            Attempt::Done { last: true, .. } => {
                self.work.committer.close();
                Stepped::Closed
            }
            Attempt::Failed(pause) if closing && !pause.is_zero() => Stepped::Closed,
            Attempt::Failed(pause) => {
                self.paused_until = now + pause;
                Stepped::Tried
            }
            Attempt::Done { wrote: true, .. } => Stepped::Tried,
            Attempt::Done { wrote: false, .. } => Stepped::Looked,
            Attempt::Damaged => Stepped::Closed,
        }
    }
}

/// A commit that failed, but for its readings, which are still in memory.
struct Failed {
    commit: Commit,
    upto: Seq,
    readings: usize,
}

/// What the writer works with.
struct Work {
    committer: Committer,
    disk_monitor: DiskMonitor,
    failed: Option<Failed>,
}

impl Work {
    fn new(shared: &Shared, committer: Committer, reserve: ReserveFile) -> Work {
        Work { committer, disk_monitor: DiskMonitor::new(shared, reserve), failed: None }
    }

    /// Commits everything that is pending, and says what came of it.
    fn attempt(&mut self, shared: &Shared) -> Attempt {
        let why = match self.commit(shared) {
            Ok((wrote, last)) => {
                self.disk_monitor.wrote(shared, &self.committer);
                return Attempt::Done { wrote, last };
            }
            Err(why) => why,
        };
        if shared.examine(&why) {
            shared.committed.notify_waiters();
            return Attempt::Damaged;
        }
        let pause = self.disk_monitor.failed(shared, &self.committer, &why);
        shared.state.lock().failure = Some(format!("{why:#}"));
        shared.committed.notify_waiters();
        Attempt::Failed(pause)
    }

    /// What failed before is found written after all, or is pending again. Returns
    /// whether anything was written now, and whether that was the last.
    fn commit(&mut self, shared: &Shared) -> Result<(bool, bool)> {
        let started = Instant::now();
        let landed = self.committer.reopen(self.failed.as_ref().map(|failed| &failed.commit))?;
        if let Some(before) = self.failed.take() {
            match landed {
                Some(outcome) => done(shared, &before.commit, before.upto, before.readings, outcome),
                None => shared.state.lock().take_back(before.commit),
            }
        }
        let now = shared.clock.now();
        let (mut commit, upto) = shared.state.lock().commit(&shared.names, now);
        let readings: usize = commit.batches.iter().map(|b| b.batch.readings.len()).sum();
        let result = self.committer.commit(&commit, &|| shared.state.lock().high_waters.in_use());
        let wrote = result.as_ref().map_or(true, |outcome| !outcome.leaves_positions(&commit));
        if wrote {
            shared.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        }
        commit.batches.clear();
        match result {
            Ok(outcome) => {
                done(shared, &commit, upto, readings, outcome);
                Ok((wrote, commit.clean.is_some()))
            }
            Err(why) => {
                self.failed = Some(Failed { commit, upto, readings });
                Err(why)
            }
        }
    }
}

/// Draws the conclusions from a commit that is on disk.
fn done(shared: &Shared, commit: &Commit, upto: Seq, readings: usize, outcome: Outcome) {
    shared.metrics.readings_stored.inc_by(readings as u64);
    if commit.boot.is_some() {
        shared.state.lock().boots.saved();
    }
    {
        let mut state = shared.state.lock();
        state.inbox.saved(&commit.inbox);
        state.presence_calls.1 = state.presence_calls.1.max(commit.presence.upto);
    }
    let dropped = commit.dropped(&outcome);
    commit.gaps.iter().chain(&dropped).for_each(|gap| shared.count_gap(gap));
    shared.count_lost(&outcome.lost, &commit.forget);
    warn(shared, &dropped);
    let written = !outcome.leaves_positions(commit);
    let positions = written.then(|| commit.sinks.iter().map(|(_, seq, event)| (*seq, *event)).collect());
    settle(shared, upto, commit, positions, outcome);
}

/// Says now and then that readings are dropped that a sink should have had.
fn warn(shared: &Shared, dropped: &[Gap]) {
    let now = shared.clock.now().monotonic;
    let mut state = shared.state.lock();
    let mut matters = dropped.iter().filter(|gap| gap.count > 0).peekable();
    if matters.peek().is_none() || state.warned.is_some_and(|warned| now < warned + WARN_EVERY) {
        return;
    }
    state.warned = Some(now);
    for gap in matters {
        tracing::warn!(
            reason = gap.reason,
            first = gap.first.0,
            last = gap.last.0,
            readings = gap.count,
            "the log is at its bound: readings that not every sink confirmed were dropped"
        );
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

fn settle(shared: &Shared, upto: Seq, commit: &Commit, positions: Option<Vec<(Seq, u64)>>, outcome: Outcome) {
    let (advanced, visible) = {
        let mut state = shared.state.lock();
        if state.failure.take().is_some() {
            tracing::info!("the log can be written again");
        }
        if let Some(reserved) = commit.reserve {
            state.tail.reserve(reserved);
        }
        if let Some(positions) = positions {
            state.persisted = positions;
        }
        if let Some(written) = outcome.written {
            state.written = written;
        }
        state.restoring = false;
        let mut advanced = state.tail.saved(upto);
        let evicted = &outcome.evicted;
        add_holes(&mut state.holes, &evicted.holes);
        for sink in 0..shared.names.len() {
            advanced.extend(state.tail.confirm(sink, evicted.upto));
        }
        state.retired.retain(|sink| !commit.forget.iter().any(|gone| gone.name == sink.name));
        for sink in &mut state.retired {
            sink.confirmed = sink.confirmed.max(evicted.upto);
        }
        for (name, unreported) in shared.names.iter().zip(&mut state.unreported) {
            if commit.heard.contains(name) {
                unreported.told = 0;
            }
            unreported.untold |= outcome.missed.contains(name);
            for (_, event) in outcome.told.iter().filter(|(told, _)| told == name) {
                (unreported.untold, unreported.told) = (false, event.unwrap_or(unreported.told));
            }
        }
        let configured = (0..shared.names.len()).map(|sink| state.tail.confirmed(sink));
        if let Some(everywhere) = configured.chain(state.retired.iter().map(|sink| sink.confirmed)).min() {
            state.holes.retain(|hole| hole.last > everywhere);
        }
        shared.metrics.store_pending_bytes.set(i64::try_from(state.tail.unsettled_bytes()).unwrap_or(i64::MAX));
        (advanced, state.tail.visible())
    };
    shared.metrics.store_bytes.set(i64::try_from(outcome.size).unwrap_or(i64::MAX));
    shared.announce(&advanced);
    if let Some(event) = outcome.last_event {
        shared.last_event.fetch_max(event, std::sync::atomic::Ordering::Release);
        shared.advanced.notify_waiters();
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
