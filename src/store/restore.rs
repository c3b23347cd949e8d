//! Takes segments over from quarantined databases while the gateway runs.
//!
//! Readings that some sink had not confirmed are appended like fresh ones: they get
//! seqs of the new epoch and keep the identity that their device gave them. Readings
//! that every sink had confirmed are put back as history under the seqs that they had,
//! which lie before all seqs of the new epoch. Fresh readings have precedence: only a
//! part of the memory for them is used. How far this has come is written with what it
//! brought or after it, never before, so that a crash repeats a few readings at most.

use super::disk::space::Space;
use super::log::Log;
use super::recovery::quarantine::{self, MAX_RANGES};
use super::recovery::restore_job::{DONE, Job, Progress, Restored};
use super::recovery::salvage::{Found, Salvage, Scan, Walk, cut};
use super::segment::Header;
use super::shared::Shared;
use crate::metrics::ReasonLabel;
use crate::model::{Epoch, Seq, SequencedBatch};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait before looking again whether there is room.
const PAUSE: Duration = Duration::from_millis(10);
/// Segments of history that may wait for a commit, in number and bytes.
const MAX_WAITING: usize = 64;
const MAX_WAITING_BYTES: usize = 1 << 20;
/// Free space on the disk that history must leave.
const SPARE: u64 = 64 << 20;

/// Runs until everything is taken over or the log is closed.
pub(super) fn run(log: &Log, store: &Path, jobs: Vec<Job>) {
    for job in jobs {
        let name = job.entry.name();
        let mut restore = Restore { log, shared: &log.shared, job, with_history: false, segments: 0, sent_again: 0 };
        if restore.all(store).is_break() {
            tracing::info!(quarantine = name, "taking over from a damaged log goes on after the next start");
            return;
        }
    }
    quarantine::prune(store);
}

struct Restore<'a> {
    log: &'a Log,
    shared: &'a Arc<Shared>,
    job: Job,
    /// There is room on the disk for it.
    with_history: bool,
    /// Sound segments seen.
    segments: u64,
    /// Readings appended since the last start.
    sent_again: u64,
}

impl Restore<'_> {
    fn all(&mut self, store: &Path) -> ControlFlow<()> {
        let salvage = Salvage::open(&self.job.entry.database());
        self.with_history = Space::of(store).is_none_or(|space| space.free >= salvage.length() + SPARE);
        if !self.with_history {
            tracing::warn!(quarantine = self.job.entry.name(), "too little space on the disk to take history over");
        }
        let walked = salvage.segments(Scan::Always, &mut |found| match found {
            Found::Sound { header, block, batches } => self.take(header, block, &batches),
            Found::Damaged { header } => {
                self.job.entry.report.salvaged.damaged_segments += 1;
                if let Some(header) = header {
                    let reason = ReasonLabel { reason: "corrupt" };
                    let lost = header.within(Seq(self.job.confirmed), header.last());
                    self.shared.metrics.readings_dropped.get_or_create(&reason).inc_by(lost);
                }
                ControlFlow::Continue(())
            }
        });
        let walk = match walked {
            ControlFlow::Continue(walk) => walk,
            ControlFlow::Break(_) => return ControlFlow::Break(()),
        };
        self.wait(|restored| restored.is_empty())?;
        self.finish(&walk)
    }

    fn take(&mut self, header: Header, block: Vec<u8>, batches: &[SequencedBatch]) -> ControlFlow<()> {
        self.segments += 1;
        if self.segments <= self.job.done || header.last().0 > self.job.end {
            return ControlFlow::Continue(());
        }
        let confirmed = Seq(self.job.confirmed);
        let mut sent_again = 0;
        for batch in batches.iter().filter(|batch| batch.last() > confirmed) {
            let rest = if batch.first > confirmed { batch.clone() } else { cut(batch, confirmed.next(), batch.last()) };
            let count = rest.batch.readings.len() as u64;
            self.append(&rest)?;
            sent_again += count;
            self.sent_again += count;
            self.job.entry.report.salvaged.sent_again += count;
            self.shared.metrics.store_salvaged_readings.inc_by(count);
        }
        let whole =
            batches.iter().map(|batch| batch.batch.readings.len() as u64).sum::<u64>() == u64::from(header.count);
        if header.first <= confirmed && whole && self.with_history {
            let kept = batches.iter().map(|batch| batch.batch.readings.len() as u64).sum::<u64>() - sent_again;
            self.job.entry.report.salvaged.history += kept;
            self.shared.metrics.store_salvaged_readings.inc_by(kept);
            self.wait(|restored| {
                restored.history.len() < MAX_WAITING
                    && restored.history.iter().map(|(_, block)| block.len()).sum::<usize>() < MAX_WAITING_BYTES
            })?;
            self.shared.state.lock().restored.history.push((header, block));
            self.shared.due.notify_one();
        }
        let mut state = self.shared.state.lock();
        // What was appended came no later than what is the last now.
        let (after, key) = (state.tail.next().prev(), self.job.entry.progress_key());
        state.restored.came(Progress { after, key, segments: self.segments });
        ControlFlow::Continue(())
    }

    /// Appends readings as soon as there is room to spare.
    fn append(&self, batch: &SequencedBatch) -> ControlFlow<()> {
        let mut batch = (*batch.batch).clone();
        loop {
            let has_room = {
                let state = self.shared.state.lock();
                if state.is_over() {
                    return ControlFlow::Break(());
                }
                state.tail.unsettled_bytes() <= state.tail.policy().max_pending / 4
            };
            if has_room {
                // It waits in no queue: whatever devices send goes before.
                match self.log.share().append(None, batch) {
                    Ok(()) => return ControlFlow::Continue(()),
                    Err(saturated) => batch = saturated.0,
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until what is to be written next is as wanted, and nothing is being written.
    fn wait(&self, wanted: impl Fn(&Restored) -> bool) -> ControlFlow<()> {
        loop {
            {
                let mut state = self.shared.state.lock();
                if wanted(&state.restored) && !state.restoring {
                    return ControlFlow::Continue(());
                }
                if state.is_over() {
                    return ControlFlow::Break(());
                }
                state.flush = true;
            }
            self.shared.due.notify_one();
            std::thread::sleep(PAUSE);
        }
    }

    /// Reports what came of it, on disk and upstream.
    fn finish(&mut self, walk: &Walk) -> ControlFlow<()> {
        let missing = missing(walk, self.job.confirmed, self.job.end);
        let entry = &mut self.job.entry;
        let parts = |(first, last): &(u64, u64)| match &self.job.epochs {
            Some(epochs) => {
                let parts = epochs.parts(Seq(*first), Seq(*last)).into_iter();
                parts.map(|part| (Some(part.epoch), part.first.0, part.last.0)).collect()
            }
            None => vec![(None, *first, *last)],
        };
        let body = |(of_epoch, first, last): (Option<Epoch>, u64, u64)| {
            let body = serde_json::json!({
                "type": "gap", "reason": "corrupt", "of_epoch": of_epoch, "first": first, "last": last,
                "count": last - first + 1,
            });
            body.to_string()
        };
        let events: Vec<String> = missing.iter().flat_map(parts).map(body).collect();
        entry.report.salvaged.missing = missing;
        let salvaged = &entry.report.salvaged;
        let body = serde_json::json!({
            "type": "quarantine", "state": "finished", "quarantine": entry.name(), "reason": entry.report.reason,
            "of_epoch": entry.report.epoch, "salvaged": salvaged.sent_again, "history": salvaged.history,
            "damaged_segments": salvaged.damaged_segments, "missing_ranges": salvaged.missing.len(),
            "last": walk.given.end(),
        });
        tracing::warn!(
            quarantine = entry.name(),
            sent_again = salvaged.sent_again,
            history = salvaged.history,
            damaged_segments = salvaged.damaged_segments,
            "what is sound in a damaged log was taken over"
        );
        {
            let mut state = self.shared.state.lock();
            state.restored.events.extend(events);
            state.restored.events.push(body.to_string());
            let (after, key) = (state.tail.saved_upto(), entry.progress_key());
            state.restored.came(Progress { after, key, segments: DONE });
        }
        entry.report.state = quarantine::State::Finished;
        self.wait(|restored| restored.is_empty())?;
        if let Err(why) = self.job.entry.write() {
            tracing::warn!(%why, "a report cannot be written");
        }
        ControlFlow::Continue(())
    }
}

/// Undelivered seqs that nothing sound holds, as far as anything tells of them.
fn missing(walk: &Walk, confirmed: u64, end: u64) -> Vec<(u64, u64)> {
    let told = walk.damaged.iter().map(|(_, last)| *last).filter(|last| *last <= end);
    let (from, upto) = (confirmed + 1, told.max().unwrap_or(0).max(walk.given.end()));
    let mut missing = if from <= upto { walk.missing(from, upto) } else { Vec::new() };
    if let Some((_, last)) = missing.last().copied()
        && missing.len() > MAX_RANGES
    {
        missing.truncate(MAX_RANGES);
        missing.iter_mut().rev().take(1).for_each(|range| range.1 = last);
    }
    missing
}

/// What the thread is given.
pub(super) fn start(log: Log, store: PathBuf, jobs: Vec<Job>) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("log-salvage".into()).spawn(move || run(&log, &store, jobs))
}
