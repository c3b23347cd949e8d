//! The thread that writes: it sleeps until a commit is due, then writes all
//! that is pending in one transaction.

use super::disk::{self, Commit, Disk, Outcome};
use super::gap::add_holes;
use super::keeper::Keeper;
use super::log::Shared;
use super::reserve::Reserve;
use crate::model::Seq;
use anyhow::Result;
use std::time::{Duration, Instant};

/// How often the bytes written are read from the operating system.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How often it is logged that readings are dropped.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Runs until the log is closed and everything is written, or writing fails then.
pub(super) fn run(shared: &Shared, mut disk: Disk, reserve: Reserve) {
    let mut counted = Counted::default();
    let mut keeper = Keeper::new(shared, reserve);
    let mut failed = None;
    loop {
        let closing = wait(shared);
        match attempt(shared, &mut disk, &mut failed) {
            Ok(()) => {
                keeper.wrote(shared, &disk);
                if closing {
                    disk.close();
                    return;
                }
            }
            Err(why) => {
                let pause = keeper.failed(shared, &disk, &why);
                let mut state = shared.state.lock();
                state.failure = Some(format!("{why:#}"));
                shared.committed.notify_waiters();
                if !pause.is_zero() {
                    if closing {
                        return;
                    }
                    shared.due.wait_for(&mut state, pause);
                }
            }
        }
        counted.update(shared);
    }
}

/// A commit that failed, but for its readings, which are still in memory.
struct Failed {
    commit: Commit,
    upto: Seq,
    readings: usize,
}

/// Commits everything that is pending. What failed before is written after all, or
/// is pending again.
fn attempt(shared: &Shared, disk: &mut Disk, failed: &mut Option<Failed>) -> Result<()> {
    let started = Instant::now();
    let landed = disk.reopen()?;
    if let Some(before) = failed.take() {
        match landed {
            Some(outcome) => done(shared, &before.commit, before.upto, before.readings, outcome),
            None => shared.state.lock().take_back(before.commit),
        }
    }
    let now = shared.clock.now();
    let (mut commit, upto) = shared.state.lock().commit(&shared.names, now);
    let readings: usize = commit.batches.iter().map(|b| b.batch.readings.len()).sum();
    let result = disk.commit(&commit);
    shared.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
    commit.batches.clear();
    match result {
        Ok(outcome) => {
            done(shared, &commit, upto, readings, outcome);
            Ok(())
        }
        Err(why) => {
            *failed = Some(Failed { commit, upto, readings });
            Err(why)
        }
    }
}

/// Draws the conclusions from a commit that is on disk.
fn done(shared: &Shared, commit: &Commit, upto: Seq, readings: usize, outcome: Outcome) {
    shared.metrics.readings_stored.inc_by(readings as u64);
    commit.gaps.iter().for_each(|gap| shared.count_gap(gap));
    for dropped in &outcome.evicted.dropped {
        shared.count_gap(&disk::gap(dropped, &commit.sinks));
    }
    let written = !outcome.leaves_places(commit);
    let places = written.then(|| commit.sinks.iter().map(|(_, seq, event)| (*seq, *event)).collect());
    settle(shared, upto, commit.reserve, places, outcome);
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

fn settle(shared: &Shared, upto: Seq, reserve: Option<Seq>, places: Option<Vec<(Seq, u64)>>, outcome: Outcome) {
    let (advanced, visible) = {
        let mut state = shared.state.lock();
        if state.failure.take().is_some() {
            tracing::info!("the log can be written again");
        }
        if let Some(reserved) = reserve {
            state.tail.reserve(reserved);
        }
        if let Some(places) = places {
            state.persisted = places;
        }
        let mut advanced = state.tail.saved(upto);
        let evicted = &outcome.evicted;
        add_holes(&mut state.holes, &evicted.holes);
        for sink in 0..shared.names.len() {
            advanced.extend(state.tail.confirm(sink, evicted.upto));
        }
        let now = shared.clock.now().monotonic;
        if !evicted.dropped.is_empty() && state.warned.is_none_or(|warned| now >= warned + WARN_EVERY) {
            state.warned = Some(now);
            for dropped in &evicted.dropped {
                tracing::warn!(
                    reason = dropped.reason.name(),
                    first = dropped.first.0,
                    last = dropped.last.0,
                    readings = dropped.count,
                    "the log is at its bound: readings that not every sink confirmed were dropped"
                );
            }
        }
        if let Some(everywhere) = (0..shared.names.len()).map(|sink| state.tail.confirmed(sink)).min() {
            state.holes.retain(|hole| hole.last > everywhere);
        }
        shared.metrics.store_pending_bytes.set(i64::try_from(state.tail.unsettled_bytes()).unwrap_or(i64::MAX));
        (advanced, state.tail.visible())
    };
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
