//! Carries out what [`retention`] decides, inside a commit's transaction.

use super::gap::{Gap, Hole};
use super::merging::JOIN_WITHIN;
use super::priority::PriorityRoutes;
use super::rewriting::{self, SegmentRewriter, filtered};
use crate::model::{DeviceId, Seq, SequencedBatch};
use crate::store::disk::rows::{self, INFO_COLUMNS, Info, LAST_SEQ};
use crate::store::disk::schema;
use crate::store::disk::small_tables::{Shares, TableSizes};
use crate::store::retention::{self, Action, Demand, Reason, Step, Stored};
use crate::store::segment::{self, Encoder};
use anyhow::Result;
use rusqlite::{Connection, params};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What a segment's row takes beside its block.
pub(in crate::store) const SEGMENT_OVERHEAD: u64 = 96;
/// Segments looked at first; eight times as many at each further look of a commit.
const LOOK_AT: u64 = 64;
const LOOK_AT_MOST: u64 = 4096;
/// Looks in one commit: as many as it takes, but no more than this while there is
/// some room left for the next commit to go on.
const MAX_LOOKS: usize = 4;
const MAX_LOOKS_HARD: usize = 64;
/// Segments that are rewritten as one, and their bytes, but for one alone.
const REWRITE_SEGMENTS: usize = 64;
const REWRITE_BYTES: u64 = 512 << 10;
/// No segment was written then.
const UNKNOWN: u64 = u64::MAX;
/// Devices whose samples are counted while thinning.
const MAX_COUNTED: usize = 100_000;

/// The bounds within which the log is kept.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Bounds {
    /// Of everything on disk.
    pub max_size: u64,
    /// In seconds.
    pub max_age: Option<u64>,
    pub thin: Option<u32>,
}

/// The size that the content may have, and why not more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Allowed {
    pub bytes: u64,
    pub reason: Reason,
    /// Going a little above does no harm until the next commit.
    pub hard: u64,
}

/// Share of `max_size` that is kept for the write-ahead log, the reserve file, and
/// pages half full.
const SLACK: u64 = 8;
/// A log is allowed this much however full the disk is: below, it is no use.
const LEAST: u64 = 1 << 20;

impl Bounds {
    /// What readings may take, given the database's size with its free pages, how far the
    /// filesystem is from the bytes to leave free there, if that is known, and what the
    /// small tables take of their share.
    pub fn allowed(&self, file: u64, room: Option<u64>, small: u64) -> Allowed {
        let share = Shares::of(self.max_size).all;
        let bytes = self.max_size - self.max_size / SLACK - share;
        let hard = self.max_size - self.max_size / (2 * SLACK) - share;
        let floor = room.map(|room| file.saturating_add(room).max(LEAST).saturating_sub(small));
        match floor.filter(|floor| *floor < bytes) {
            Some(floor) => Allowed { bytes: floor, reason: Reason::MinFree, hard: floor },
            None => Allowed { bytes, reason: Reason::MaxSize, hard },
        }
    }
}

/// Readings dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Dropped {
    pub reason: Reason,
    pub first: Seq,
    pub last: Seq,
    /// For each sink, those that it had not confirmed.
    pub undelivered: Vec<u64>,
}

impl Dropped {
    /// The same for the sinks of these names, which stand in the order of what they
    /// confirmed; the first so many are `configured`.
    pub fn gap(&self, names: &[Arc<str>], configured: usize) -> Gap {
        let undelivered = names.iter().cloned().zip(self.undelivered.iter().copied());
        Gap {
            reason: self.reason.name(),
            first: self.first,
            last: self.last,
            // The one that is furthest behind misses all that any of them does.
            count: self.undelivered.iter().take(configured).copied().max().unwrap_or(0),
            undelivered: undelivered.collect(),
        }
    }
}

/// What was evicted.
#[derive(Debug, Clone, Default)]
pub(in crate::store) struct Evicted {
    /// One for each reason, of readings that some sink had not confirmed.
    pub dropped: Vec<Dropped>,
    pub holes: Vec<Hole>,
    /// Nothing up to here is on disk any more.
    pub upto: Seq,
}

impl Evicted {
    /// The last seq of which the reading went.
    pub fn last(&self) -> Seq {
        self.holes.iter().map(|hole| hole.last).max().unwrap_or_default()
    }

    fn count(&mut self, reason: Reason, first: Seq, last: Seq, undelivered: &[u64]) {
        if undelivered.iter().all(|count| *count == 0) {
            return;
        }
        match self.dropped.iter_mut().find(|dropped| dropped.reason == reason) {
            Some(dropped) => {
                dropped.first = dropped.first.min(first);
                dropped.last = dropped.last.max(last);
                dropped.undelivered.iter_mut().zip(undelivered).for_each(|(total, more)| *total += more);
            }
            None => self.dropped.push(Dropped { reason, first, last, undelivered: undelivered.to_vec() }),
        }
    }

    /// Counts one reading.
    fn count_one(&mut self, reason: Reason, seq: Seq, confirmed: &[Seq]) {
        let undelivered: Vec<u64> = confirmed.iter().map(|confirmed| u64::from(seq > *confirmed)).collect();
        self.count(reason, seq, seq, &undelivered);
    }
}

/// How far each sink has come.
pub(in crate::store) struct Confirmed {
    /// Those that are configured first.
    pub all: Vec<Seq>,
    pub configured: usize,
}

impl Confirmed {
    /// What these have confirmed is history.
    fn by_configured(&self) -> &[Seq] {
        self.all.get(..self.configured).unwrap_or(&self.all)
    }
}

/// Keeps what eviction needs to remember from commit to commit.
pub(in crate::store) struct Evictor {
    bounds: Bounds,
    priority: PriorityRoutes,
    /// Stands for the priority routes in rows that were counted by them.
    generation: u64,
    /// Nothing of low priority stands before this.
    low_from: Seq,
    /// How many samples of each device were looked at while thinning.
    counted: HashMap<DeviceId, u32>,
    /// What is not the readings'.
    small: TableSizes,
}

/// A segment as its row tells of it, but for its block.
#[derive(Debug, Clone, Copy)]
struct Row {
    stored: Stored,
    committed: u64,
}

impl Evictor {
    pub fn new(bounds: Bounds, priority: PriorityRoutes, generation: u64) -> Evictor {
        let (low_from, counted, small) = (Seq::ZERO, HashMap::new(), TableSizes::new(bounds.max_size));
        Evictor { bounds, priority, generation, low_from, counted, small }
    }

    /// What was done last was undone.
    pub fn forget(&mut self) {
        self.low_from = Seq::ZERO;
        self.small.changed();
    }

    /// Much was written to the small tables.
    pub fn tables_changed(&mut self) {
        self.small.changed();
    }

    pub fn priority(&self) -> &PriorityRoutes {
        &self.priority
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes room for `incoming` bytes, `room` being how far the filesystem is from
    /// its floor, and drops what is too old at `clock`.
    pub fn make_room(
        &mut self,
        db: &Connection,
        encoder: &mut Encoder,
        incoming: u64,
        room: Option<u64>,
        clock: u64,
        confirmed: &Confirmed,
    ) -> Result<Evicted> {
        let mut evicted = Evicted::default();
        let mut limit = LOOK_AT;
        for look in 0..MAX_LOOKS_HARD {
            let (used, file) = schema::sizes(db)?;
            let (mut allowed, mut wanted) = (self.bounds.allowed(file, room, 0), used + incoming);
            if wanted > allowed.bytes {
                let small = self.small.bytes(db, clock)?;
                (allowed, wanted) = (self.bounds.allowed(file, room, small), wanted.saturating_sub(small));
            }
            let excess = wanted.saturating_sub(allowed.bytes);
            let aged = match self.bounds.max_age {
                Some(max_age) => self.oldest_age(db, clock)?.is_some_and(|age| age > max_age),
                None => false,
            };
            if (excess == 0 && !aged) || (look >= MAX_LOOKS && wanted <= allowed.hard) {
                break;
            }
            let (rows, complete) = self.rows(db, limit, clock)?;
            let stored: Vec<Stored> = rows.iter().map(|row| row.stored).collect();
            let demand = Demand {
                excess,
                reason: allowed.reason,
                max_age: self.bounds.max_age,
                thin: self.bounds.thin,
                rewrite_segments: REWRITE_SEGMENTS,
                rewrite_bytes: REWRITE_BYTES.max(2 * incoming),
                chunk: (self.bounds.max_size / 64).min(REWRITE_BYTES / 2),
                complete,
            };
            let steps = retention::plan(&stored, confirmed.by_configured(), &demand);
            if steps.is_empty() && complete && limit >= LOOK_AT_MOST {
                break;
            }
            for run in runs(&rows, &steps) {
                self.carry_out(db, encoder, &rows, run, &confirmed.all, &mut evicted)?;
            }
            limit = (limit * 8).min(LOOK_AT_MOST);
        }
        if !evicted.holes.is_empty() {
            let left: Option<u64> =
                db.prepare_cached("SELECT min(first_seq) FROM segment")?.query_row([], |r| r.get(0))?;
            evicted.upto = left.map_or(evicted.last(), |left| Seq(left).prev());
        }
        Ok(evicted)
    }

    /// Of the first segment whose age is known.
    fn oldest_age(&self, db: &Connection, clock: u64) -> rusqlite::Result<Option<u64>> {
        let sql = format!("SELECT {INFO_COLUMNS} FROM segment ORDER BY first_seq LIMIT ?1");
        let mut oldest = db.prepare_cached(&sql)?;
        let mut rows = oldest.query([LOOK_AT])?;
        while let Some(row) = rows.next()? {
            if let Some(info) = rows::info(row, 0) {
                return Ok(Some(clock.saturating_sub(info.committed)));
            }
        }
        Ok(None)
    }

    /// The oldest segments, and whether there are no others with readings of low priority.
    fn rows(&mut self, db: &Connection, limit: u64, clock: u64) -> Result<(Vec<Row>, bool)> {
        let mut select = db.prepare_cached(&format!(
            "SELECT first_seq, {LAST_SEQ}, count, size, {INFO_COLUMNS}
             FROM segment WHERE first_seq >= ?1 AND first_seq < ?2 ORDER BY first_seq LIMIT ?3"
        ))?;
        let mut rows = Vec::new();
        let mut read = |from: u64, before: u64| -> Result<u64> {
            let mut found = select.query(params![from, before, limit])?;
            let mut count = 0;
            let start = rows.len();
            while let Some(row) = found.next()? {
                let info = rows::info(row, 4);
                let committed = info.map_or(UNKNOWN, |info| info.committed);
                let readings: u32 = row.get(2)?;
                let counted = info.filter(|info| info.generation == self.generation);
                let high = counted.map(|info| u32::try_from(info.high).unwrap_or(readings).min(readings));
                let stored = Stored {
                    first: Seq(row.get(0)?),
                    last: Seq(row.get(1)?),
                    count: readings,
                    bytes: row.get::<_, u64>(3)? + SEGMENT_OVERHEAD,
                    age: 0,
                    high: if self.priority.is_single() { Some(0) } else { high },
                    thinned: info.is_some_and(|info| info.thinned),
                };
                rows.push(Row { stored, committed });
                count += 1;
            }
            // One whose age is not known any more counts as young as the next one.
            let mut next = clock;
            for row in rows.iter_mut().skip(start).rev() {
                row.committed = if row.committed == UNKNOWN { next } else { row.committed };
                row.stored.age = clock.saturating_sub(row.committed);
                next = row.committed;
            }
            Ok(count)
        };
        let end = i64::MAX as u64; // SQLite's largest
        if self.low_from > Seq::ZERO {
            read(0, self.low_from.0)?;
        }
        let found = read(self.low_from.0, end)?;
        let only_high = |row: &&Row| row.stored.high == Some(row.stored.count);
        let passed = rows.iter().skip_while(|row| row.stored.first < self.low_from).take_while(only_high).last();
        self.low_from = passed.map_or(self.low_from, |row| row.stored.last.next());
        Ok((rows, found < limit))
    }

    /// Does one run of steps: segments that are dropped, or rewritten as one.
    fn carry_out(
        &mut self,
        db: &Connection,
        encoder: &mut Encoder,
        rows: &[Row],
        run: &[Step],
        confirmed: &[Seq],
        evicted: &mut Evicted,
    ) -> Result<()> {
        let of_run = || run.iter().map(|step| (step, &rows[step.at])); // steps are made from the rows
        let committed = of_run().map(|(_, row)| row.committed).max().unwrap_or(0);
        let thinned = of_run().any(|(step, row)| step.action == Action::Thin || row.stored.thinned);
        let mut left = SegmentRewriter::new(Info { committed, generation: self.generation, high: 0, thinned });
        for (step, Row { stored, .. }) in of_run() {
            let found = if step.action == Action::Drop { None } else { rewriting::find(db, stored.first)? };
            if found.is_none() {
                let reason = if step.action == Action::Drop { step.reason } else { Reason::Corrupt };
                drop_whole(db, stored, reason, confirmed, evicted)?;
            }
            // What is written anew may take its place.
            db.prepare_cached("DELETE FROM segment WHERE first_seq = ?1")?.execute([stored.first.0])?;
            if let Some((header, block)) = found {
                let mut written = Ok(());
                let decoded = segment::decode_pieces(&header, &block, Seq::ZERO, &mut |batches| {
                    let kept = self.take_out(&batches, step, confirmed, evicted);
                    written = left.add(kept, db, encoder, &self.priority);
                    if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                });
                written?;
                if decoded.is_err() {
                    drop_whole(db, stored, Reason::Corrupt, confirmed, evicted)?;
                }
            }
            if step.action != Action::Thin && stored.first >= self.low_from {
                self.low_from = stored.last.next();
            }
        }
        left.write(db, encoder, &self.priority)
    }

    /// What is left of the batches after the step; the rest is counted.
    fn take_out(
        &mut self,
        batches: &[SequencedBatch],
        step: &Step,
        confirmed: &[Seq],
        evicted: &mut Evicted,
    ) -> Vec<SequencedBatch> {
        let every = match step.action {
            Action::Thin => self.bounds.thin,
            _ => None,
        };
        let (priority, counted) = (&self.priority, &mut self.counted);
        let (mut first, mut last, mut missing) = (Seq(u64::MAX), Seq::ZERO, 0);
        if counted.len() > MAX_COUNTED {
            counted.clear();
        }
        let left = filtered(batches, &mut |seq, batch, reading| {
            let kept = priority.is_high(&batch.device, reading)
                || every.is_some_and(|every| {
                    let count = counted.entry(batch.device.clone()).or_default();
                    let kept = *count == 0;
                    *count = (*count + 1) % every.max(1);
                    kept
                });
            if !kept {
                evicted.count_one(step.reason, seq, confirmed);
                (first, last, missing) = (first.min(seq), last.max(seq), missing + 1);
            }
            kept
        });
        if missing > 0 {
            evicted.holes.push(Hole { first, last, missing });
        }
        left
    }
}

/// Steps that are done together: neighbours of the same action, if they are rewritten.
fn runs<'s>(rows: &'s [Row], steps: &'s [Step]) -> impl Iterator<Item = &'s [Step]> {
    steps.chunk_by(|a, b| {
        let apart = rows[b.at].committed.abs_diff(rows[a.at].committed); // steps are made from the rows
        a.action == b.action && (a.action == Action::Drop || (b.at == a.at + 1 && apart <= JOIN_WITHIN))
    })
}

fn drop_whole(
    db: &Connection,
    stored: &Stored,
    reason: Reason,
    confirmed: &[Seq],
    evicted: &mut Evicted,
) -> Result<()> {
    let Stored { first, last, count, .. } = *stored;
    evicted.holes.push(Hole { first, last, missing: u64::from(count) });
    let dense = last.0.saturating_add(1).saturating_sub(first.0) == u64::from(count);
    let divided = confirmed.iter().any(|confirmed| first <= *confirmed && *confirmed < last);
    if divided
        && !dense
        && let Some((header, block)) = rewriting::find(db, first)?
    {
        let counted = segment::decode_pieces(&header, &block, Seq::ZERO, &mut |batches| {
            for (seq, ..) in batches.iter().flat_map(|batch| batch.after(Seq::ZERO)) {
                evicted.count_one(reason, seq, confirmed);
            }
            ControlFlow::Continue(())
        });
        if counted.is_ok() {
            return Ok(());
        }
    }
    let undelivered: Vec<u64> = confirmed
        .iter()
        .map(|confirmed| match *confirmed < first {
            true => u64::from(count),
            false => last.0.saturating_sub(confirmed.0),
        })
        .collect();
    let everywhere = confirmed.iter().copied().min().unwrap_or_default();
    evicted.count(reason, first.max(everywhere.next()), last, &undelivered);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_narrowest_bound_counts() {
        let bounds = Bounds { max_size: 64 * MIB, max_age: None, thin: None };
        let allowed = bounds.allowed(10 * MIB, Some(1000 * MIB), MIB);
        assert_eq!((allowed.bytes, allowed.reason), (48 * MIB, Reason::MaxSize), "whatever small tables take");
        assert_eq!(bounds.allowed(10 * MIB, None, 0).bytes, 48 * MIB);
        let allowed = bounds.allowed(10 * MIB, Some(5 * MIB), MIB);
        assert_eq!((allowed.bytes, allowed.reason), (14 * MIB, Reason::MinFree));
        assert_eq!(bounds.allowed(10 * MIB, Some(0), MIB).bytes, 9 * MIB, "the log does not grow");
        assert_eq!(bounds.allowed(4096, Some(0), 0).bytes, MIB, "but has room for something");
    }
}
