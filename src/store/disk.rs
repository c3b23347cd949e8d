//! Commits: everything that changes together is written together.

use super::boots;
use super::retention::{self, Stored};
use super::schema;
use super::segment::Encoder;
use crate::config::Durability;
use crate::model::{DeviceId, Numbered, Seq, Timestamp};
use anyhow::{Context, Result};
use rusqlite::{Connection, TransactionBehavior, params};
use std::path::PathBuf;

/// What one commit writes.
#[derive(Default)]
pub(super) struct Commit {
    pub batches: Vec<Numbered>,
    /// Device, session and the session's last settled seq.
    pub marks: Vec<(DeviceId, u64, u64)>,
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
}

/// What a commit did beyond what it was told.
#[derive(Default)]
pub(super) struct Outcome {
    /// Dropped to stay within the size bound.
    pub dropped: Option<retention::Plan>,
    pub last_event: Option<u64>,
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
    fn body(&self) -> String {
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
    /// The last gap event, while no sink has seen it and it may grow.
    open_gap: Option<(u64, Gap)>,
}

/// Events kept for sinks that do not take them; the oldest go first.
const MAX_EVENTS: u64 = 10_000;
/// Segments that one commit may drop.
const MAX_DROPPED_SEGMENTS: i64 = 4096;

impl Disk {
    pub fn new(path: PathBuf, durability: Durability, max_size: u64, connection: Connection) -> Result<Disk> {
        let encoder = Encoder::new().context("zstd cannot be set up")?;
        Ok(Disk { path, durability, max_size, connection: Some(connection), encoder, open_gap: None })
    }

    /// Writes `commit` durably, all or nothing.
    ///
    /// # Errors
    /// Nothing of it may be counted as written then; the next call opens the
    /// database anew.
    pub fn commit(&mut self, commit: &Commit) -> Result<Outcome> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => schema::open(&self.path, self.durability)?,
        };
        let segment = self.encoder.encode(&commit.batches).context("a segment cannot be encoded")?;
        let open_gap = self.open_gap.clone();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let written = write(&transaction, commit, segment, self.max_size, open_gap);
        let (outcome, open_gap) = written.with_context(|| format!("writing to {} failed", self.path.display()))?;
        transaction.commit().with_context(|| format!("committing to {} failed", self.path.display()))?;
        self.open_gap = open_gap;
        self.connection = Some(connection);
        Ok(outcome)
    }

    /// Closes the database, folding the write-ahead log into it.
    pub fn close(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Err((_, why)) = connection.close()
        {
            tracing::warn!(%why, "the log could not be closed; it is complete all the same");
        }
    }
}

type OpenGap = Option<(u64, Gap)>;

fn write(
    db: &Connection,
    commit: &Commit,
    segment: Option<(super::segment::Header, Vec<u8>)>,
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
    if let Some((header, block)) = segment {
        // A commit whose failure was reported may be on disk all the same: the
        // one that repeats it starts at the same seq and replaces it.
        db.prepare_cached(
            "INSERT OR REPLACE INTO segment (first_seq, count, oldest, newest, raw_length, checksum, size, block)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            header.first.0,
            header.count,
            header.oldest.0,
            header.newest.0,
            header.raw_length,
            header.checksum,
            block.len() as u64,
            block
        ])?;
    }
    let mut mark = db.prepare_cached(
        "INSERT INTO mark (device, session, seq) VALUES (?1, ?2, ?3)
         ON CONFLICT (device) DO UPDATE SET session = excluded.session, seq = excluded.seq",
    )?;
    for (device, session, seq) in &commit.marks {
        mark.execute(params![device.as_str(), *session as i64, seq])?; // SQLite's integers are signed: the same bits
    }
    let mut sink = db.prepare_cached(
        "UPDATE sink SET confirmed = ?2, event = ?3 WHERE name = ?1 AND (confirmed <> ?2 OR event <> ?3)",
    )?;
    let dropped_upto = outcome.dropped.as_ref().map_or(Seq::ZERO, |plan| plan.last);
    for (name, confirmed, event) in &commit.sinks {
        sink.execute(params![&**name, confirmed.max(&dropped_upto).0, event])?;
    }
    for gap in gaps.into_iter().filter(|gap| gap.undelivered.iter().any(|(_, count)| *count > 0)) {
        outcome.last_event = Some(record_gap(db, commit, &mut open_gap, gap)?);
    }
    if let Some(body) = commit.boot.map(|news| boots::write(db, news)).transpose()?.flatten() {
        outcome.last_event = Some(schema::insert_event(db, commit.now, &body)?);
    }
    prune_events(db, commit)?;
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
        db.prepare_cached("UPDATE event SET body = ?2, time = ?3 WHERE id = ?1")?.execute(params![
            *id,
            before.body(),
            commit.now.0
        ])?;
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
