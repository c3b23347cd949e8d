//! Commits: everything that changes together is written together.

use super::attendance;
use super::boots;
use super::commit::{self, Commit, Outcome};
use super::epochs;
use super::events;
use super::evict::{self, Evicted, Evictor};
use super::fault;
use super::fold::Folding;
use super::heal;
use super::holes::Holes;
use super::inbox;
use super::merging::{self, Merging};
use super::missed;
use super::readers::Readers;
use super::recover;
use super::row::{self, Info};
use super::schema::{self, OpenError};
use super::segment::{Encoder, Header};
use super::sinks::Retired;
use super::space::{Gauge, Space};
use super::ticket::Ticket;
use super::unlisted::Unlisted;
use super::wal::{self, Wal};
use crate::config::{self, Durability};
use crate::model::Seq;
use anyhow::{Context, Result, anyhow, bail};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use std::path::PathBuf;
use std::sync::Arc;

/// What stands on disk.
pub(super) struct OnDisk {
    /// The last reading.
    pub written: Seq,
    pub holes: Holes,
    /// What the next commit says of the last checkpoint.
    pub folding: Folding,
}

/// What a transaction wrote, before it is known to be on disk. After a failure it may
/// be so all the same.
#[derive(Default)]
struct Work {
    segment: Option<Header>,
    outcome: Outcome,
    /// See [`missed::next_round`].
    round: Option<u64>,
    /// The newest event, if it was looked at whether they are too many.
    looks_at_events: Option<u64>,
    /// What is missing since, if that is more than before.
    holes: Option<Holes>,
    /// The table of marks was brought up to date.
    listed: bool,
    /// What the last checkpoint did was written.
    told_fold: bool,
    merged: bool,
}

/// The write connection, opened again after each failure: what a failed fsync
/// left behind on a handle cannot be known.
pub(super) struct Disk {
    path: PathBuf,
    durability: Durability,
    min_free: u64,
    /// Entries of the trail of devices' presence that are kept.
    audit: u32,
    max_events: u64,
    /// The newest event when it was last looked at whether they are too many.
    looked_at_events: u64,
    gauge: Gauge,
    connection: Option<Connection>,
    readers: Arc<Readers>,
    encoder: Encoder,
    evictor: Evictor,
    holes: Holes,
    folding: Folding,
    unlisted: Unlisted,
    merging: Merging,
    wal: Wal,
    /// By which seqs are reserved.
    ticket: Ticket,
    doubtful: Option<Work>,
    /// An fsync failed, and what it was to write was not written anew since.
    unsynced: bool,
}

/// Of the filesystem, at most this share is left free, whatever `min_free` says.
const MIN_FREE_SHARE: u64 = 4;

impl Disk {
    /// The log in the configured directory, where `on_disk` is.
    pub fn new(
        config: &config::Store,
        gauge: Gauge,
        on_disk: OnDisk,
        connection: Connection,
        readers: Arc<Readers>,
        evictor: Evictor,
        ticket: Ticket,
    ) -> Result<Disk> {
        let encoder = Encoder::new().context("zstd cannot be set up")?;
        let path = heal::database(config);
        Ok(Disk {
            wal: Wal::new(&path, &connection, config.max_size.as_u64()),
            path,
            durability: config.durability,
            min_free: config.min_free.as_u64(),
            audit: config.audit,
            max_events: u64::from(config.max_events),
            looked_at_events: 0,
            gauge,
            connection: Some(connection),
            readers,
            encoder,
            evictor,
            holes: on_disk.holes,
            folding: on_disk.folding,
            unlisted: Unlisted::new(on_disk.written),
            merging: Merging::default(),
            ticket,
            doubtful: None,
            unsynced: false,
        })
    }

    /// Bytes that are free where the log lies, and that are to be left so; `None` if
    /// that is not known.
    pub fn space(&self) -> Option<(u64, u64)> {
        let Space { free, total } = (self.gauge)()?;
        Some((free, self.min_free.min(total / MIN_FREE_SHARE)))
    }

    /// Opens the database again after a failure, on handles that have not seen it.
    /// Gives the outcome of the commit that failed if that is on disk after all.
    ///
    /// # Errors
    /// If it cannot be opened yet; nothing may be written then.
    pub fn reopen(&mut self, failed: Option<&Commit>) -> Result<Option<Outcome>> {
        if self.connection.is_some() {
            return Ok(None);
        }
        if !self.readers.close() {
            bail!("waiting for {} to be read to the end", self.path.display());
        }
        // What an fsync that failed left in memory only is written anew: a commit that is
        // found there after all must be as safe as any other.
        heal::settle(&self.path, self.durability, self.unsynced).map_err(|why| match why {
            // A read may fail once; opening the log anew tells more.
            OpenError::Unreadable { .. } => anyhow!("{why}"),
            why => why.into(),
        })?;
        self.unsynced = false;
        let connection = schema::open(&self.path, self.durability)?;
        let landed = self.doubtful.as_ref().map_or(Ok(false), |doubtful| landed(&connection, doubtful))?;
        if landed {
            self.ticket.written()?;
        }
        let end = self.holes.end();
        self.holes = Holes::load(&connection)?.0;
        self.holes.reach(end);
        self.readers.open();
        self.connection = Some(connection);
        let work = self.doubtful.take().filter(|_| landed);
        Ok(work.zip(failed).map(|(work, commit)| self.done(work, commit)))
    }

    /// Writes `commit` durably, all or nothing. [`Disk::reopen`] goes before it.
    ///
    /// # Errors
    /// Nothing of it may be counted as written then.
    pub fn commit(&mut self, commit: &Commit) -> Result<Outcome> {
        let Some(mut connection) = self.connection.take() else { bail!("the log is not open") };
        let mut work = Work::default();
        let tried = self.try_commit(&mut connection, commit, &mut work);
        if let Err(why) = tried.and_then(|()| Ok(self.ticket.written()?)) {
            self.leave(connection, &why);
            self.doubtful = Some(work);
            return Err(why);
        }
        let outcome = self.done(work, commit);
        let back = || match commit.reserve {
            Some(_) => schema::synchronise(&connection, self.durability).context("a setting was refused"),
            None => Ok(()),
        };
        match back().and_then(|()| self.wal.committed(&connection, commit.reserve.is_some())) {
            Ok(folded) => {
                if let Some(frames) = folded {
                    self.folding.folded(self.wal.path(), frames);
                }
                self.connection = Some(connection);
            }
            // What was committed stays so; the rest is as after any failure.
            Err(why) => {
                tracing::error!(error = format!("{why:#}"), "the log's checkpoint failed; it is opened again");
                self.leave(connection, &why);
            }
        }
        Ok(outcome)
    }

    fn try_commit(&mut self, connection: &mut Connection, commit: &Commit, work: &mut Work) -> Result<()> {
        if commit.reserve.is_some() {
            // No power cut may take a reservation back, whatever the durability.
            schema::synchronise(connection, Durability::Full)?;
        }
        let failed = || format!("writing to {} failed", self.path.display());
        let room = self.space().map(|(free, min_free)| free.saturating_sub(min_free));
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if self.merging.is_due() && !commit.check_only {
            let before = commit.batches.first().map_or(Seq(i64::MAX as u64), |batch| batch.first);
            let (lanes, generation) = (self.evictor.lanes(), self.evictor.generation());
            merging::merge(&transaction, &mut self.encoder, before, lanes, generation).with_context(failed)?;
            work.merged = true;
        }
        let segment = self.encoder.encode(&commit.batches).context("a segment cannot be encoded")?;
        work.segment = segment.as_ref().map(|(header, _)| *header);
        let (encoder, evictor) = (&mut self.encoder, &mut self.evictor);
        work.outcome = write(&transaction, commit, segment, room, encoder, evictor).with_context(failed)?;
        if !work.outcome.leaves_places(commit) {
            work.told_fold = self.folding.write(&transaction).with_context(failed)?;
        }
        work.holes = self.missing(&work.outcome.evicted, work.segment.as_ref());
        if let Some(holes) = &work.holes {
            holes.write(&self.holes, &transaction).with_context(failed)?;
        }
        for body in attendance::write(&transaction, &commit.attendance, commit.now, self.audit).with_context(failed)? {
            work.outcome.last_event = Some(schema::insert_event(&transaction, commit.now, &body)?);
        }
        let few = self.looked_at_events + self.max_events / events::SHARE;
        work.looks_at_events = work.outcome.last_event.filter(|newest| *newest >= few);
        let most = work.looks_at_events.map(|_| self.max_events);
        work.round = commit::tell(&transaction, commit, &mut work.outcome, most).with_context(failed)?;
        work.outcome.written = work.segment.map(|header| header.last());
        if let Some(reserved) = commit.reserve {
            epochs::reserve(&transaction, reserved, &mut self.ticket).with_context(failed)?;
        }
        if commit.clean.is_some() {
            // Nothing comes after it that could list what it says.
            let last = work.outcome.written.unwrap_or_default();
            self.unlisted.list_all(&transaction, [&commit.marks, &commit.covered], last)?;
        } else if !work.outcome.leaves_places(commit) && self.unlisted.is_due(work.outcome.evicted.last()) {
            self.unlisted.list(&transaction)?;
            work.listed = true;
        }
        transaction.commit().with_context(|| format!("committing to {} failed", self.path.display()))
    }

    /// What is missing once this went and that segment came, if that is more than before.
    fn missing(&self, evicted: &Evicted, segment: Option<&Header>) -> Option<Holes> {
        let skipped = segment.is_some_and(|header| header.first > self.holes.end().next());
        (skipped || !evicted.holes.is_empty()).then(|| {
            let mut holes = self.holes.clone();
            holes.add(&evicted.holes);
            if let Some(header) = segment {
                holes.follow(header);
            }
            holes
        })
    }

    /// Remembers what a commit that is on disk leaves to later ones.
    fn done(&mut self, work: Work, commit: &Commit) -> Outcome {
        if work.listed {
            self.unlisted.listed();
        }
        if work.merged {
            self.merging.done();
        }
        if work.told_fold {
            self.folding.written();
        }
        if let Some(holes) = work.holes {
            self.holes = holes;
        }
        if let Some(header) = work.segment {
            self.holes.reach(header.last());
            self.merging.added();
            self.unlisted.segment(header.last(), u64::from(header.count));
        }
        self.unlisted.add(&commit.marks);
        self.unlisted.add(&commit.covered);
        self.looked_at_events = work.looks_at_events.unwrap_or(self.looked_at_events);
        work.outcome
    }

    /// Parts with a connection that failed, and with those that share its state.
    fn leave(&mut self, connection: Connection, why: &anyhow::Error) {
        self.unsynced |= fault::is_sync(why);
        // It is not folded together on the handle that failed; see `schema::open`.
        drop(connection);
        self.readers.close();
        self.evictor.forget();
    }

    /// Closes the database, folding the write-ahead log into it.
    pub fn close(&mut self) {
        self.readers.close();
        let Some(connection) = self.connection.take() else { return };
        let folded = self
            .list_fold(&connection)
            .and_then(|()| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false));
        if let Err(why) = folded.and_then(|_| connection.close().map_err(|(_, why)| why)) {
            tracing::warn!(%why, "the log could not be closed; it is complete all the same");
        }
    }

    /// Says what is folded in: the next life begins a new write-ahead log.
    fn list_fold(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if let Some(frames) = wal::fold(connection)? {
            self.folding.folded(self.wal.path(), frames);
        }
        let transaction = connection.unchecked_transaction()?;
        self.folding.write(&transaction)?;
        transaction.commit()
    }
}

/// Whether a commit that was reported as failed is on disk.
fn landed(connection: &Connection, work: &Work) -> Result<bool> {
    if let Some(header) = &work.segment {
        let found: Option<u32> = connection
            .query_row("SELECT checksum FROM segment WHERE first_seq = ?1", [header.first.0], |row| row.get(0))
            .optional()?;
        return Ok(found == Some(header.checksum));
    }
    if let Some(round) = work.round {
        return Ok(missed::round(connection)? >= round);
    }
    match work.outcome.last_event {
        // Ids are never used twice.
        Some(event) => Ok(recover::last_event(connection)? >= event),
        None => Ok(false),
    }
}

fn write(
    db: &Connection,
    commit: &Commit,
    segment: Option<(Header, Vec<u8>)>,
    room: Option<u64>,
    encoder: &mut Encoder,
    evictor: &mut Evictor,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    if let Some((header, _)) = &segment {
        // A commit that failed may be on disk all the same, and this one repeat it.
        db.prepare_cached("DELETE FROM segment WHERE first_seq >= ?1")?.execute([header.first.0])?;
    }
    let mut confirmed: Vec<Seq> = commit.sinks.iter().map(|(_, confirmed, _)| *confirmed).collect();
    let configured = confirmed.len();
    confirmed.extend(commit.retired.iter().map(|sink| sink.confirmed));
    let blocks = segment.iter().chain(&commit.restored.history).map(|(_, block)| block.len() as u64);
    let incoming = blocks.map(|bytes| bytes + evict::SEGMENT_OVERHEAD).sum();
    outcome.evicted = evictor.make_room(db, encoder, incoming, room, commit.clock, &confirmed, configured)?;
    for (header, block) in &commit.restored.history {
        row::put(db, "IGNORE", header, block, Info::uncounted(commit.clock))?;
    }
    if let Some((header, block)) = segment {
        let high = evictor.lanes().count_high(&commit.batches);
        let info = Info { committed: commit.clock, generation: evictor.generation(), high, thinned: false };
        row::put(db, "REPLACE", &header, &block, info)?;
    }
    for (name, confirmed, event) in commit.sinks.iter().filter(|_| !outcome.leaves_places(commit)) {
        schema::put_sink(db, name, *confirmed.max(&outcome.evicted.upto), *event)?;
    }
    for Retired { name, confirmed, event, since } in &commit.retired {
        if outcome.evicted.upto > *confirmed {
            schema::put_place(db, name, outcome.evicted.upto, *event, Some(*since))?;
        }
    }
    for body in commit.notices.iter().chain(&commit.restored.events) {
        outcome.last_event = Some(schema::insert_event(db, commit.now, body)?);
    }
    if let Some(body) = commit.boot.map(|news| boots::write(db, news)).transpose()?.flatten() {
        outcome.last_event = Some(schema::insert_event(db, commit.now, &body)?);
    }
    outcome.last_event = inbox::write(db, &commit.inbox, commit.now, commit.clock)?.or(outcome.last_event);
    if let Some((key, progress)) = &commit.restored.progress {
        schema::set_meta(db, key, *progress)?;
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
