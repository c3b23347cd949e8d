//! What one commit writes, what came of it, and what it tells sinks.

pub(super) mod committer;
pub(super) mod reopening;

use super::disk::boot_times;
use super::disk::log_clock::StoredClock;
use super::disk::schema;
use super::inbox::PendingChanges;
use super::presence::UnwrittenPresence;
use super::recovery::restore_job::Restored;
use super::retention::eviction::Evicted;
use super::retention::gap::Gap;
use super::sinks::events::{self, Lost};
use super::sinks::positions::{self, ForgottenSink, RetiredSink};
use super::sinks::rejected;
use super::sinks::unreported_gaps::{self, UnreportedGap};
use crate::model::{DeviceId, Seq, SequencedBatch, Timestamp};
use anyhow::Result;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one commit writes.
#[derive(Default)]
pub(super) struct Commit {
    pub batches: Vec<SequencedBatch>,
    /// Device, session and the session's last settled seq, of readings that were
    /// never written.
    pub high_waters: Vec<(DeviceId, u64, u64)>,
    /// The same of `batches`.
    pub covered: Vec<(DeviceId, u64, u64)>,
    /// Some of `batches` do not say how far their sessions came.
    pub untracked: bool,
    /// Name, confirmed seq and confirmed event of each sink.
    pub sinks: Vec<(Arc<str>, Seq, u64)>,
    /// Sinks that are not configured any more, and those of them that are forgotten.
    pub retired: Vec<RetiredSink>,
    pub forget: Vec<ForgottenSink>,
    /// Sinks that are to be told what they have missed, and those that have confirmed
    /// what they were told.
    pub tell: Vec<Arc<str>>,
    pub heard: Vec<Arc<str>>,
    /// Reserve seqs up to here.
    pub reserve: Option<Seq>,
    /// Readings that left the log undelivered for another reason than its bounds.
    pub gaps: Vec<Gap>,
    /// Other events, as JSON objects.
    pub notices: Vec<String>,
    /// What is new about devices' presence.
    pub presence: UnwrittenPresence,
    /// What is new about commands.
    pub inbox: PendingChanges,
    /// What is new about the machine's boot.
    pub boot: Option<boot_times::BootUpdate>,
    /// The gateway stops: the next seq that will be given out.
    pub clean: Option<Seq>,
    pub now: Timestamp,
    /// The log's clock, and whether it is to be kept.
    pub clock: u64,
    pub keep_clock: Option<StoredClock>,
    /// Nothing is to be written but what the log's bounds demand.
    pub check_only: bool,
    /// What comes from a database in quarantine.
    pub restored: Restored,
}

/// What a commit did beyond what it was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// Dropped to stay within the bounds.
    pub evicted: Evicted,
    pub last_event: Option<u64>,
    /// Sinks that have missed something since, and those that were told all that they had
    /// missed, with the last event that tells of it if there is any.
    pub missed: Vec<Arc<str>>,
    pub told: Vec<(Arc<str>, Option<u64>)>,
    /// Events that went before sinks had them.
    pub lost: Vec<Lost>,
    /// The last reading of the segment that was written, if there was one.
    pub written: Option<Seq>,
    /// Size of the log's content in bytes.
    pub size: u64,
}

impl Commit {
    /// The positions of all sinks: first of those that are configured, then of those that
    /// were and are not forgotten.
    pub fn positions(&self) -> Vec<(Arc<str>, Seq, u64)> {
        let is_kept = |sink: &&RetiredSink| !self.forget.iter().any(|gone| gone.name == sink.name);
        let retired = self.retired.iter().filter(is_kept).map(|sink| (sink.name.clone(), sink.confirmed, sink.event));
        self.sinks.iter().cloned().chain(retired).collect()
    }

    /// What the commit dropped to stay within the bounds, by what sinks miss of it.
    pub fn dropped(&self, outcome: &Outcome) -> Vec<Gap> {
        let retired = self.retired.iter().map(|sink| sink.name.clone());
        let names: Vec<_> = self.sinks.iter().map(|(name, ..)| name.clone()).chain(retired).collect();
        outcome.evicted.dropped.iter().map(|dropped| dropped.gap(&names, self.sinks.len())).collect()
    }
}

impl Outcome {
    /// Whether the sinks' positions were not written.
    pub fn leaves_positions(&self, commit: &Commit) -> bool {
        commit.check_only && self.evicted.holes.is_empty()
    }
}

/// Notes what sinks have missed, and tells those of it who listen; forgets what is to be
/// forgotten. Of more events than `most`, some go. Returns the number of the commit's round
/// if it changed any of that.
pub(super) fn tell(db: &Connection, commit: &Commit, outcome: &mut Outcome, most: Option<u64>) -> Result<Option<u64>> {
    for forgotten in &commit.forget {
        if let Some(body) = positions::forget(db, forgotten)? {
            outcome.last_event = Some(schema::insert_event(db, commit.now, &body)?);
        }
    }
    let positions = commit.positions();
    let events: Vec<_> = positions.iter().map(|(name, _, event)| (name.clone(), *event)).collect();
    events::confirmed(db, &events, &commit.heard)?;
    let mut unreported: BTreeMap<Arc<str>, Vec<UnreportedGap>> = BTreeMap::new();
    let mut add = |(name, missed)| unreported.entry(name).or_default().push(missed);
    let confirmed =
        |name: &str| positions.iter().find(|(known, ..)| **known == *name).map(|(_, confirmed, _)| *confirmed);
    for gap in commit.dropped(outcome) {
        unreported_gaps::of_gap(&gap, commit.now, confirmed).for_each(&mut add);
    }
    // Over the others their sinks have moved already.
    for gap in &commit.gaps {
        rejected::count(db, gap)?;
        unreported_gaps::of_gap(gap, commit.now, |name| confirmed(name).map(|_| Seq::ZERO)).for_each(&mut add);
    }
    if let Some(most) = most {
        let pruned = events::prune(db, &events, most, commit.now)?;
        pruned.missed.into_iter().for_each(add);
        outcome.lost = pruned.lost;
    }
    let changed = !(unreported.is_empty() && commit.forget.is_empty());
    for (name, missed) in unreported {
        unreported_gaps::record(db, &name, missed)?;
        outcome.missed.push(name);
    }
    for name in &commit.tell {
        let event = unreported_gaps::tell(db, name, commit.now)?;
        outcome.last_event = event.or(outcome.last_event);
        outcome.told.push((name.clone(), event));
    }
    changed.then(|| unreported_gaps::next_round(db)).transpose().map_err(Into::into)
}
