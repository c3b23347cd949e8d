//! Commits: everything that changes together is written together.

use super::evict::{self, Evicted, Evictor, Info};
use super::gap::{Gap, OpenGaps};
use super::headroom::Fault;
use super::logclock::Kept;
use super::readers::Readers;
use super::schema::{self, OpenError};
use super::segment::{Encoder, Header};
use crate::config::Durability;
use crate::model::{DeviceId, Numbered, Seq, Timestamp};
use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

/// What one commit writes.
#[derive(Default)]
pub(super) struct Commit {
    pub batches: Vec<Numbered>,
    /// Device, session and the session's last settled seq.
    pub marks: Vec<(DeviceId, u64, u64)>,
    /// Name, confirmed seq and confirmed event of each sink.
    pub sinks: Vec<(Arc<str>, Seq, u64)>,
    /// Reserve seqs up to here.
    pub reserve: Option<Seq>,
    /// Readings that left the log undelivered for another reason than its bounds.
    pub gaps: Vec<Gap>,
    /// Other events, as JSON objects.
    pub notices: Vec<String>,
    /// The gateway stops: the next seq that will be given out.
    pub clean: Option<Seq>,
    pub now: Timestamp,
    /// The log's clock, and whether it is to be kept.
    pub clock: u64,
    pub keep_clock: Option<Kept>,
    /// Nothing is to be written but what the log's bounds demand.
    pub check_only: bool,
    /// The last event that a sink may have seen; later ones may still be changed.
    pub seen_event: u64,
}

/// What a commit did beyond what it was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// Dropped to stay within the bounds.
    pub evicted: Evicted,
    pub last_event: Option<u64>,
    /// Size of the log's content in bytes.
    pub size: u64,
}

impl Outcome {
    /// Whether the sinks' places were not written.
    pub fn leaves_places(&self, commit: &Commit) -> bool {
        commit.check_only && self.evicted.holes.is_empty()
    }
}

/// A commit that was reported as failed, but may be on disk all the same.
struct Doubtful {
    segment: Option<Header>,
    outcome: Outcome,
}

/// The write connection, opened again after each failure: what a failed fsync
/// left behind on a handle cannot be known.
pub(super) struct Disk {
    path: PathBuf,
    durability: Durability,
    min_free: u64,
    checkpoint_pages: i64,
    connection: Option<Connection>,
    readers: Arc<Readers>,
    encoder: Encoder,
    evictor: Evictor,
    open_gaps: OpenGaps,
    doubtful: Option<Doubtful>,
}

/// Events kept for sinks that do not take them; the oldest go first.
const MAX_EVENTS: u64 = 10_000;
/// The write-ahead log is folded in when it has so many pages, or a share of the
/// log's bound if that is less.
const CHECKPOINT_PAGES: u64 = 4096;
const CHECKPOINT_SHARE: u64 = 32;
/// Of the filesystem, at most this share is left free, whatever `min_free` says.
const MIN_FREE_SHARE: u64 = 4;

impl Disk {
    pub fn new(
        path: PathBuf,
        durability: Durability,
        min_free: ByteSize,
        connection: Connection,
        readers: Arc<Readers>,
        evictor: Evictor,
    ) -> Result<Disk> {
        let encoder = Encoder::new().context("zstd cannot be set up")?;
        let page: u64 = connection.pragma_query_value(None, "page_size", |row| row.get(0)).unwrap_or(1024);
        let pages = (evictor.bounds().max_size / CHECKPOINT_SHARE / page.max(1)).clamp(64, CHECKPOINT_PAGES);
        Ok(Disk {
            path,
            durability,
            min_free: min_free.as_u64(),
            checkpoint_pages: pages as i64, // at most 4096
            connection: Some(connection),
            readers,
            encoder,
            evictor,
            open_gaps: OpenGaps::default(),
            doubtful: None,
        })
    }

    /// Bytes that are free where the log lies, and that are to be left so; `None` if
    /// the system does not tell.
    pub fn space(&self) -> Option<(u64, u64)> {
        let found = rustix::fs::statvfs(self.path.parent()?).ok()?;
        let total = found.f_blocks.saturating_mul(found.f_frsize);
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        Some((free, self.min_free.min(total / MIN_FREE_SHARE)))
    }

    /// Opens the database again after a failure, on handles that have not seen it.
    /// Gives the last commit's outcome if that is on disk after all.
    ///
    /// # Errors
    /// If it cannot be opened yet; nothing may be written then.
    pub fn reopen(&mut self) -> Result<Option<Outcome>> {
        if self.connection.is_some() {
            return Ok(None);
        }
        if !self.readers.close() {
            bail!("waiting for {} to be read to the end", self.path.display());
        }
        let connection = schema::open(&self.path, self.durability)?;
        let landed = match &self.doubtful {
            Some(doubtful) => landed(&connection, doubtful)?,
            None => false,
        };
        if landed {
            // It was found in the write-ahead log, whose pages an fsync that failed may
            // have left in memory only. In the database they are written anew.
            if let Err(why) = checkpoint(&connection, "FULL") {
                abandon(connection);
                return Err(why);
            }
        }
        self.readers.open();
        self.connection = Some(connection);
        // Events of a commit that was not reported cannot be made longer.
        self.open_gaps = OpenGaps::default();
        Ok(self.doubtful.take().filter(|_| landed).map(|doubtful| doubtful.outcome))
    }

    /// Writes `commit` durably, all or nothing. [`Disk::reopen`] goes before it.
    ///
    /// # Errors
    /// Nothing of it may be counted as written then.
    pub fn commit(&mut self, commit: &Commit) -> Result<Outcome> {
        let Some(mut connection) = self.connection.take() else { bail!("the log is not open") };
        let mut doubtful = Doubtful { segment: None, outcome: Outcome::default() };
        match self.try_commit(&mut connection, commit, &mut doubtful) {
            Ok(()) => {
                match self.checkpoint(&connection) {
                    Ok(()) => self.connection = Some(connection),
                    // What was committed stays so; the rest is as after any failure.
                    Err(why) => {
                        tracing::error!(error = format!("{why:#}"), "the log's checkpoint failed; it is opened again");
                        self.leave(connection);
                    }
                }
                Ok(doubtful.outcome)
            }
            Err(why) => {
                self.leave(connection);
                self.doubtful = Some(doubtful);
                Err(why)
            }
        }
    }

    fn try_commit(&mut self, connection: &mut Connection, commit: &Commit, doubtful: &mut Doubtful) -> Result<()> {
        let segment = self.encoder.encode(&commit.batches).context("a segment cannot be encoded")?;
        let mut open_gaps = self.open_gaps.clone();
        let room = self.space().map(|(free, min_free)| free.saturating_sub(min_free));
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let failed = || format!("writing to {} failed", self.path.display());
        doubtful.segment = segment.as_ref().map(|(header, _)| *header);
        let (encoder, evictor) = (&mut self.encoder, &mut self.evictor);
        doubtful.outcome =
            write(&transaction, commit, segment, room, encoder, evictor, &mut open_gaps).with_context(failed)?;
        transaction.commit().with_context(|| format!("committing to {} failed", self.path.display()))?;
        self.open_gaps = open_gaps;
        Ok(())
    }

    /// Folds the write-ahead log into the database once it is long. SQLite would do so
    /// by itself, but says nothing if it fails, and would try an fsync that failed
    /// again on the same handle.
    fn checkpoint(&self, connection: &Connection) -> Result<()> {
        let (_, pages) = wal(connection, "NOOP")?;
        if pages < self.checkpoint_pages {
            return Ok(());
        }
        checkpoint(connection, "PASSIVE")
    }

    /// Parts with a connection that failed, and with those that share its state.
    fn leave(&mut self, connection: Connection) {
        abandon(connection);
        self.readers.close();
        self.evictor.forget();
    }

    /// Closes the database, folding the write-ahead log into it.
    pub fn close(&mut self) {
        self.readers.close();
        if let Some(connection) = self.connection.take()
            && let Err((_, why)) = connection.close()
        {
            tracing::warn!(%why, "the log could not be closed; it is complete all the same");
        }
    }
}

/// Closes a connection without another attempt to write.
fn abandon(connection: Connection) {
    // If this fails, SQLite tries a checkpoint, on the same handle: no harm is done to
    // what was acknowledged, all of which was written without a failure.
    let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    drop(connection);
}

/// Whether the checkpoint was held up by a reader, and how many pages the write-ahead
/// log has.
fn wal(connection: &Connection, mode: &str) -> Result<(bool, i64)> {
    let found = connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
        .query_row([], |row| Ok((row.get::<_, i64>(0)? != 0, row.get(1)?)))?;
    Ok(found)
}

fn checkpoint(connection: &Connection, mode: &str) -> Result<()> {
    wal(connection, mode).map(drop).context("folding the write-ahead log in failed")
}

fn landed(connection: &Connection, doubtful: &Doubtful) -> Result<bool> {
    if let Some(header) = &doubtful.segment {
        let found: Option<u32> = connection
            .query_row("SELECT checksum FROM segment WHERE first_seq = ?1", [header.first.0], |row| row.get(0))
            .optional()?;
        return Ok(found == Some(header.checksum));
    }
    match doubtful.outcome.last_event {
        // Ids are never used twice.
        Some(event) => Ok(schema::last_event(connection)? >= event),
        None => Ok(false),
    }
}

/// Which kind of failure this is.
pub(super) fn fault(why: &anyhow::Error) -> Fault {
    let no_space = why.chain().any(|cause| match cause.downcast_ref::<OpenError>() {
        Some(why) => open_fault(why) == Fault::NoSpace,
        None => cause.downcast_ref::<rusqlite::Error>().is_some_and(is_full),
    });
    if no_space { Fault::NoSpace } else { Fault::Other }
}

/// The same of a failure to open the log.
pub(super) fn open_fault(why: &OpenError) -> Fault {
    let no_space = match why {
        OpenError::Database { why, .. } => is_full(why),
        OpenError::Directory { why, .. } => {
            matches!(why.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        }
        _ => false,
    };
    if no_space { Fault::NoSpace } else { Fault::Other }
}

fn is_full(why: &rusqlite::Error) -> bool {
    // SQLite's index of the write-ahead log fails in its own way for want of space.
    why.sqlite_error().is_some_and(|error| {
        error.code == ErrorCode::DiskFull || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    })
}

fn write(
    db: &Connection,
    commit: &Commit,
    segment: Option<(Header, Vec<u8>)>,
    room: Option<u64>,
    encoder: &mut Encoder,
    evictor: &mut Evictor,
    open_gaps: &mut OpenGaps,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    if let Some((header, _)) = &segment {
        // A commit that failed may be on disk all the same, and this one repeat it.
        db.prepare_cached("DELETE FROM segment WHERE first_seq >= ?1")?.execute([header.first.0])?;
    }
    let confirmed: Vec<Seq> = commit.sinks.iter().map(|(_, confirmed, _)| *confirmed).collect();
    let incoming = segment.as_ref().map_or(0, |(_, block)| block.len() as u64 + evict::SEGMENT_OVERHEAD);
    outcome.evicted = evictor.make_room(db, encoder, incoming, room, commit.clock, &confirmed)?;
    if let Some((header, block)) = segment {
        let high = evictor.lanes().count_high(&commit.batches);
        let info = Info { committed: commit.clock, generation: evictor.generation(), high, thinned: false };
        evict::insert(db, &header, &block, info)?;
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
    let places = commit.sinks.iter().filter(|_| !outcome.leaves_places(commit));
    for (name, confirmed, event) in places {
        sink.execute(params![&**name, confirmed.max(&outcome.evicted.upto).0, event])?;
    }
    let evicted = outcome.evicted.dropped.iter().map(|dropped| gap(dropped, &commit.sinks));
    for gap in commit.gaps.iter().cloned().chain(evicted).filter(Gap::matters) {
        outcome.last_event = Some(open_gaps.record(db, gap, commit.now, commit.seen_event)?);
    }
    for notice in &commit.notices {
        outcome.last_event = Some(schema::insert_event(db, commit.now, notice)?);
    }
    prune_events(db, commit)?;
    if let Some(reserved) = commit.reserve {
        schema::set_meta(db, "reserved", reserved.0)?;
    }
    if let Some(next) = commit.clean {
        schema::set_meta(db, "clean", next.0)?;
    }
    if let Some(kept) = commit.keep_clock {
        schema::keep_clock(db, kept)?;
    }
    outcome.size = schema::sizes(db)?.0;
    Ok(outcome)
}

/// What was evicted, as a gap for the sinks.
pub(super) fn gap(dropped: &evict::Dropped, sinks: &[(Arc<str>, Seq, u64)]) -> Gap {
    Gap {
        reason: dropped.reason.name(),
        first: dropped.first,
        last: dropped.last,
        count: dropped.count,
        undelivered: sinks.iter().map(|(name, ..)| name.clone()).zip(dropped.undelivered.iter().copied()).collect(),
    }
}

fn prune_events(db: &Connection, commit: &Commit) -> rusqlite::Result<()> {
    let confirmed = commit.sinks.iter().map(|(_, _, event)| *event).min().unwrap_or(0);
    db.prepare_cached("DELETE FROM event WHERE id <= ?1 OR id <= (SELECT max(id) FROM event) - ?2")?
        .execute(params![confirmed, MAX_EVENTS])?;
    Ok(())
}
