//! Commits: everything that changes together is written together.

use super::attendance::{self, Attendance};
use super::boots;
use super::events::{self, Lost};
use super::evict::{self, Evicted, Evictor};
use super::fault;
use super::gap::Gap;
use super::heal;
use super::inbox::{self, Taken};
use super::logclock::Kept;
use super::merging::{self, Merging};
use super::missed::{self, Missed};
use super::readers::Readers;
use super::recover;
use super::restore::Restored;
use super::row::{self, Info};
use super::schema::{self, OpenError};
use super::segment::{Encoder, Header};
use super::sinks::{self, Forgotten, Retired};
use super::space::{Gauge, Space};
use super::unlisted::Unlisted;
use super::wal::Wal;
use crate::config::{self, Durability};
use crate::model::{DeviceId, Numbered, Seq, Timestamp};
use anyhow::{Context, Result, anyhow, bail};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

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
    pub sinks: Vec<(Arc<str>, Seq, u64)>,
    /// Sinks that are not configured any more, and those of them that are forgotten.
    pub retired: Vec<Retired>,
    pub forget: Vec<Forgotten>,
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
    pub attendance: Attendance,
    /// What is new about commands.
    pub inbox: Taken,
    /// What is new about the machine's boot.
    pub boot: Option<boots::News>,
    /// The gateway stops: the next seq that will be given out.
    pub clean: Option<Seq>,
    pub now: Timestamp,
    /// The log's clock, and whether it is to be kept.
    pub clock: u64,
    pub keep_clock: Option<Kept>,
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
    /// The places of all sinks: first of those that are configured, then of those that
    /// were and are not forgotten.
    pub fn places(&self) -> Vec<(Arc<str>, Seq, u64)> {
        let is_kept = |sink: &&Retired| !self.forget.iter().any(|gone| gone.name == sink.name);
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
    /// Whether the sinks' places were not written.
    pub fn leaves_places(&self, commit: &Commit) -> bool {
        commit.check_only && self.evicted.holes.is_empty()
    }
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
    /// The table of marks was brought up to date.
    listed: bool,
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
    unlisted: Unlisted,
    merging: Merging,
    wal: Wal,
    doubtful: Option<Work>,
    /// An fsync failed, and what it was to write was not written anew since.
    unsynced: bool,
}

/// Of the filesystem, at most this share is left free, whatever `min_free` says.
const MIN_FREE_SHARE: u64 = 4;

impl Disk {
    /// The log at `path`, whose last reading there is `written`.
    pub fn new(
        path: PathBuf,
        config: &config::Store,
        gauge: Gauge,
        written: Seq,
        connection: Connection,
        readers: Arc<Readers>,
        evictor: Evictor,
    ) -> Result<Disk> {
        let encoder = Encoder::new().context("zstd cannot be set up")?;
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
            unlisted: Unlisted::new(written),
            merging: Merging::default(),
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
        let landed = match &self.doubtful {
            Some(doubtful) => landed(&connection, doubtful)?,
            None => false,
        };
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
        if let Err(why) = self.try_commit(&mut connection, commit, &mut work) {
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
            Ok(()) => self.connection = Some(connection),
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
        for body in attendance::write(&transaction, &commit.attendance, commit.now, self.audit).with_context(failed)? {
            work.outcome.last_event = Some(schema::insert_event(&transaction, commit.now, &body)?);
        }
        let few = self.looked_at_events + self.max_events / events::SHARE;
        work.looks_at_events = work.outcome.last_event.filter(|newest| *newest >= few);
        let most = work.looks_at_events.map(|_| self.max_events);
        work.round = tell(&transaction, commit, &mut work.outcome, most).with_context(failed)?;
        work.outcome.written = work.segment.map(|header| header.last());
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

    /// Remembers what a commit that is on disk leaves to later ones.
    fn done(&mut self, work: Work, commit: &Commit) -> Outcome {
        if work.listed {
            self.unlisted.listed();
        }
        if work.merged {
            self.merging.done();
        }
        if let Some(header) = work.segment {
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
        let folded = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
        if let Err(why) = folded.and_then(|_| connection.close().map_err(|(_, why)| why)) {
            tracing::warn!(%why, "the log could not be closed; it is complete all the same");
        }
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

/// Notes what sinks have missed, and tells those of it who listen; forgets what is to be
/// forgotten. Of more events than `most`, some go. Returns the number of the commit's round
/// if it changed any of that.
fn tell(db: &Connection, commit: &Commit, outcome: &mut Outcome, most: Option<u64>) -> Result<Option<u64>> {
    for forgotten in &commit.forget {
        if let Some(body) = sinks::forget(db, forgotten)? {
            outcome.last_event = Some(schema::insert_event(db, commit.now, &body)?);
        }
    }
    let places = commit.places();
    let events: Vec<_> = places.iter().map(|(name, _, event)| (name.clone(), *event)).collect();
    events::confirmed(db, &events, &commit.heard)?;
    let mut news: BTreeMap<Arc<str>, Vec<Missed>> = BTreeMap::new();
    let mut add = |(name, missed)| news.entry(name).or_default().push(missed);
    let confirmed = |name: &str| places.iter().find(|(known, ..)| **known == *name).map(|(_, confirmed, _)| *confirmed);
    for gap in commit.dropped(outcome) {
        missed::of_gap(&gap, commit.now, confirmed).for_each(&mut add);
    }
    // Over the others their sinks have moved already.
    for gap in &commit.gaps {
        missed::of_gap(gap, commit.now, |name| confirmed(name).map(|_| Seq::ZERO)).for_each(&mut add);
    }
    if let Some(most) = most {
        let pruned = events::prune(db, &events, most, commit.now)?;
        pruned.missed.into_iter().for_each(add);
        outcome.lost = pruned.lost;
    }
    let changed = !(news.is_empty() && commit.forget.is_empty());
    for (name, missed) in news {
        missed::record(db, &name, missed)?;
        outcome.missed.push(name);
    }
    for name in &commit.tell {
        let event = missed::tell(db, name, commit.now)?;
        outcome.last_event = event.or(outcome.last_event);
        outcome.told.push((name.clone(), event));
    }
    changed.then(|| missed::next_round(db)).transpose().map_err(Into::into)
}
