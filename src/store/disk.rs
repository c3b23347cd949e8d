//! Commits: everything that changes together is written together.

use super::boots;
use super::merging::{self, Merging};
use super::restore::Restored;
use super::retention::{self, Stored};
use super::row;
use super::schema;
use super::segment::{Encoder, Header};
use super::unlisted::Unlisted;
use super::wal::Wal;
use crate::config::Durability;
use crate::model::{DeviceId, Numbered, Seq, Timestamp};
use anyhow::{Context, Result};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior, params};
use std::path::PathBuf;

/// What one commit writes.
#[derive(Default)]
pub(super) struct Commit {
    pub batches: Vec<Numbered>,
    /// Device, session and the session's last settled seq, of readings that were
    /// never written.
    pub marks: Vec<(DeviceId, u64, u64)>,
    /// The same of `batches`.
    pub covered: Vec<(DeviceId, u64, u64)>,
    /// Name, confirmed seq and confirmed event of each sink.
    pub sinks: Vec<(std::sync::Arc<str>, Seq, u64)>,
    /// Reserve seqs up to here.
    pub reserve: Option<Seq>,
    /// Readings that left the log undelivered for another reason than its size.
    pub gaps: Vec<Gap>,
    /// What is new about the machine's boot.
    pub boot: Option<boots::News>,
    /// The gateway stops: the next seq that will be given out.
    pub clean: Option<Seq>,
    pub now: Timestamp,
    /// The last event that a sink may have seen; later ones may still be changed.
    pub seen_event: u64,
    /// What comes from a database in quarantine.
    pub restored: Restored,
}

/// What a commit did beyond what it was told.
#[derive(Default)]
pub(super) struct Outcome {
    /// Dropped to stay within the size bound.
    pub dropped: Option<retention::Plan>,
    pub last_event: Option<u64>,
    /// The last reading of the segment that was written, if there was one.
    pub written: Option<Seq>,
    /// Size of the log's files in bytes.
    pub size: u64,
}

/// A range of readings that some sinks will never get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    pub reason: &'static str,
    pub first: Seq,
    pub last: Seq,
    pub count: u64,
    /// Sinks that had not confirmed them, and how many each.
    pub undelivered: Vec<(std::sync::Arc<str>, u64)>,
}

impl Gap {
    pub fn body(&self) -> String {
        let undelivered: serde_json::Map<_, _> =
            self.undelivered.iter().map(|(name, count)| (name.to_string(), (*count).into())).collect();
        serde_json::json!({
            "type": "gap", "reason": self.reason, "first": self.first, "last": self.last, "count": self.count,
            "undelivered": undelivered,
        })
        .to_string()
    }

    /// Takes in a gap that goes on where this one ends; false if it does not.
    fn extend(&mut self, next: &Gap) -> bool {
        let same_sinks = self.undelivered.iter().map(|(n, _)| n).eq(next.undelivered.iter().map(|(n, _)| n));
        if self.reason != next.reason || self.last >= next.first || !same_sinks {
            return false;
        }
        self.last = next.last;
        self.count += next.count;
        for ((_, total), (_, more)) in self.undelivered.iter_mut().zip(&next.undelivered) {
            *total += more;
        }
        true
    }
}

/// The write connection, opened again after each failure: what a failed fsync
/// left behind on a handle cannot be known.
pub(super) struct Disk {
    path: PathBuf,
    durability: Durability,
    max_size: u64,
    connection: Option<Connection>,
    encoder: Encoder,
    unlisted: Unlisted,
    merging: Merging,
    wal: Wal,
    /// The last gap event, while no sink has seen it and it may grow.
    open_gap: Option<(u64, Gap)>,
}

/// Events kept for sinks that do not take them; the oldest go first.
const MAX_EVENTS: u64 = 10_000;
/// Segments that one commit may drop.
const MAX_DROPPED_SEGMENTS: i64 = 4096;

impl Disk {
    pub fn new(
        path: PathBuf,
        durability: Durability,
        max_size: u64,
        written: Seq,
        connection: Connection,
    ) -> Result<Disk> {
        let encoder = Encoder::new().context("zstd cannot be set up")?;
        Ok(Disk {
            wal: Wal::new(&path),
            path,
            durability,
            max_size,
            connection: Some(connection),
            encoder,
            unlisted: Unlisted::new(written),
            merging: Merging::default(),
            open_gap: None,
        })
    }

    /// Writes `commit` durably, all or nothing.
    ///
    /// # Errors
    /// Nothing of it may be counted as written then; the next call opens the
    /// database anew.
    pub fn commit(&mut self, commit: &mut Commit) -> Result<Outcome> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => schema::open(&self.path, self.durability)?,
        };
        if commit.reserve.is_some() {
            // No power cut may take a reservation back, whatever the durability.
            schema::synchronise(&connection, Durability::Full)?;
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if self.merging.is_due() {
            let before = commit.batches.first().map_or(Seq(i64::MAX as u64), |batch| batch.first);
            merging::merge(&transaction, &mut self.encoder, before)?;
        }
        let segment = self.encoder.encode(&commit.batches).context("a segment cannot be encoded")?;
        let written = segment.as_ref().map(|(header, _)| (header.last(), u64::from(header.count)));
        let open_gap = self.open_gap.clone();
        let result = write(&transaction, commit, segment, self.max_size, open_gap);
        let (mut outcome, open_gap) = result.with_context(|| format!("writing to {} failed", self.path.display()))?;
        let dropped = outcome.dropped.as_ref().map_or(Seq::ZERO, |plan| plan.last);
        let last = commit.clean.is_some();
        if last {
            // Nothing comes after it that could list what it says.
            self.note(written, commit);
        }
        let list = last || self.unlisted.is_due(dropped);
        if list {
            self.unlisted.list(&transaction)?;
        }
        transaction.commit().with_context(|| format!("committing to {} failed", self.path.display()))?;
        if list {
            self.unlisted.listed();
        }
        if self.merging.is_due() {
            self.merging.done();
        }
        if !last {
            self.note(written, commit);
        }
        outcome.written = written.map(|(last, _)| last);
        self.open_gap = open_gap;
        self.wal.committed(&connection)?;
        // A connection that does not go back to the configured durability is opened anew.
        let back = commit.reserve.is_none() || schema::synchronise(&connection, self.durability).is_ok();
        self.connection = back.then_some(connection);
        Ok(outcome)
    }

    /// Remembers what a commit that wrote a segment up to a seq with so many
    /// readings leaves to later ones.
    fn note(&mut self, written: Option<(Seq, u64)>, commit: &mut Commit) {
        if let Some((last, readings)) = written {
            self.merging.added();
            self.unlisted.segment(last, readings);
        }
        self.unlisted.add(std::mem::take(&mut commit.marks));
        self.unlisted.add(std::mem::take(&mut commit.covered));
    }

    /// Closes the database, folding the write-ahead log into it.
    pub fn close(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let folded = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
        if let Err(why) = folded.and_then(|_| connection.close().map_err(|(_, why)| why)) {
            tracing::warn!(%why, "the log could not be closed; it is complete all the same");
        }
    }
}

type OpenGap = Option<(u64, Gap)>;

fn write(
    db: &Connection,
    commit: &Commit,
    segment: Option<(Header, Vec<u8>)>,
    max_size: u64,
    mut open_gap: OpenGap,
) -> rusqlite::Result<(Outcome, OpenGap)> {
    let mut outcome = Outcome::default();
    let mut gaps = commit.gaps.clone();
    let incoming = segment.as_ref().map_or(0, |(_, block)| block.len() as u64 + SEGMENT_OVERHEAD);
    if let Some(plan) = make_room(db, incoming, max_size, commit)? {
        gaps.push(Gap {
            reason: "max_size",
            first: plan.first,
            last: plan.last,
            count: plan.readings,
            undelivered: commit.sinks.iter().map(|(name, ..)| name.clone()).zip(plan.undelivered.clone()).collect(),
        });
        outcome.dropped = Some(plan);
    }
    for (header, block) in &commit.restored.history {
        row::put(db, "IGNORE", header, block)?;
    }
    if let Some((header, block)) = segment {
        // A commit whose failure was reported may be on disk all the same: the
        // one that repeats it starts at the same seq and replaces it.
        row::put(db, "REPLACE", &header, &block)?;
    }
    let dropped_upto = outcome.dropped.as_ref().map_or(Seq::ZERO, |plan| plan.last);
    for (name, confirmed, event) in &commit.sinks {
        schema::put_sink(db, name, *confirmed.max(&dropped_upto), *event)?;
    }
    for gap in gaps.into_iter().filter(|gap| gap.undelivered.iter().any(|(_, count)| *count > 0)) {
        outcome.last_event = Some(record_gap(db, commit, &mut open_gap, gap)?);
    }
    for body in &commit.restored.events {
        outcome.last_event = Some(schema::insert_event(db, commit.now, body)?);
    }
    if let Some(body) = commit.boot.map(|news| boots::write(db, news)).transpose()?.flatten() {
        outcome.last_event = Some(schema::insert_event(db, commit.now, &body)?);
    }
    prune_events(db, commit)?;
    if let Some((key, progress)) = &commit.restored.progress {
        schema::set_meta(db, key, *progress)?;
    }
    if let Some(reserved) = commit.reserve {
        schema::set_meta(db, "reserved", reserved.0)?;
    }
    if let Some(next) = commit.clean {
        schema::set_meta(db, "clean", next.0)?;
    }
    outcome.size = used_bytes(db)?;
    Ok((outcome, open_gap))
}

/// What a segment's row takes beside its block.
const SEGMENT_OVERHEAD: u64 = 64;

/// Bytes that the log's content takes in the file.
fn used_bytes(db: &Connection) -> rusqlite::Result<u64> {
    let get = |pragma: &str| db.prepare_cached(pragma)?.query_row([], |row| row.get::<_, u64>(0));
    let pages = get("PRAGMA page_count")?.saturating_sub(get("PRAGMA freelist_count")?);
    Ok(pages * get("PRAGMA page_size")?)
}

/// Share of the bound that is kept for the write-ahead log and for pages half full.
const RESERVE: u64 = 8;

fn make_room(
    db: &Connection,
    incoming: u64,
    max_size: u64,
    commit: &Commit,
) -> rusqlite::Result<Option<retention::Plan>> {
    let wanted = used_bytes(db)? + incoming;
    let allowed = max_size - max_size / RESERVE;
    if wanted <= allowed {
        return Ok(None);
    }
    let confirmed: Vec<Seq> = commit.sinks.iter().map(|(_, confirmed, _)| *confirmed).collect();
    let mut oldest = db.prepare_cached("SELECT first_seq, count, size FROM segment ORDER BY first_seq LIMIT ?1")?;
    let segments = oldest
        .query_map([MAX_DROPPED_SEGMENTS], |row| {
            let bytes = row.get::<_, u64>(2)? + SEGMENT_OVERHEAD;
            Ok(Stored { first: Seq(row.get(0)?), count: row.get(1)?, bytes })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let plan = retention::plan(segments.into_iter(), wanted - allowed, &confirmed);
    if let Some(plan) = &plan {
        db.prepare_cached("DELETE FROM segment WHERE first_seq <= ?1")?.execute([plan.last.0])?;
    }
    Ok(plan)
}

fn record_gap(db: &Connection, commit: &Commit, open: &mut OpenGap, gap: Gap) -> rusqlite::Result<u64> {
    if let Some((id, before)) = open.as_mut().filter(|(id, _)| *id > commit.seen_event)
        && before.extend(&gap)
    {
        schema::update_event(db, *id, commit.now, &before.body())?;
        return Ok(*id);
    }
    let id = schema::insert_event(db, commit.now, &gap.body())?;
    *open = Some((id, gap));
    Ok(id)
}

fn prune_events(db: &Connection, commit: &Commit) -> rusqlite::Result<()> {
    let confirmed = commit.sinks.iter().map(|(_, _, event)| *event).min().unwrap_or(0);
    db.prepare_cached("DELETE FROM event WHERE id <= ?1 OR id <= (SELECT max(id) FROM event) - ?2")?
        .execute(params![confirmed, MAX_EVENTS])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(first: u64, last: u64) -> Gap {
        let count = last - first + 1;
        Gap {
            reason: "max_size",
            first: Seq(first),
            last: Seq(last),
            count,
            undelivered: vec![("cloud".into(), count)],
        }
    }

    #[test]
    fn gaps_that_follow_each_other_become_one() {
        let mut all = gap(1, 10);
        assert!(all.extend(&gap(11, 20)));
        assert!(all.extend(&gap(31, 40)));
        assert_eq!((all.first, all.last, all.count), (Seq(1), Seq(40), 30));
        assert_eq!(all.undelivered, [("cloud".into(), 30)]);
        assert!(!all.extend(&gap(5, 6)));
        assert!(!all.extend(&Gap { reason: "too_large", ..gap(41, 41) }));
    }
}
