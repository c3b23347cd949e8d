//! Commits: everything that changes together is written together.

use crate::config::{self, Durability};
use crate::model::{DeviceId, Seq};
use crate::store::commit::{self, Commit, Outcome};
use crate::store::disk::boot_times;
use crate::store::disk::budget::Budget;
use crate::store::disk::checkpoint::CheckpointRecord;
use crate::store::disk::epochs;
use crate::store::disk::file_identity::{LastCommit, LogFiles};
use crate::store::disk::lock::Lock;
use crate::store::disk::pending_high_water::PendingHighWater;
use crate::store::disk::readers::Readers;
use crate::store::disk::rows::{self, Info};
use crate::store::disk::schema;
use crate::store::disk::small_tables::Shares;
use crate::store::disk::space::Gauge;
use crate::store::disk::ticket::Ticket;
use crate::store::disk::wal::{Held, Wal};
use crate::store::inbox;
use crate::store::presence;
use crate::store::recovery::quarantine;
use crate::store::retention::eviction::{self, Confirmed, Evictor};
use crate::store::retention::holes::Holes;
use crate::store::retention::merging::{self, Merging};
use crate::store::segment::{Encoded, Encoder, Header};
use crate::store::sinks::events;
use crate::store::sinks::positions::RetiredSink;
use anyhow::{Context, Result, bail};
use rusqlite::{Connection, TransactionBehavior};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

/// What stands on disk.
pub(in crate::store) struct OnDisk {
    /// The last reading.
    pub written: Seq,
    pub holes: Holes,
    /// What the next commit says of the last checkpoint.
    pub checkpoint_record: CheckpointRecord,
}

/// What a transaction wrote, before it is known to be on disk. After a failure it may
/// be so all the same.
#[derive(Default)]
pub(in crate::store) struct Work {
    pub segments: Vec<Header>,
    pub outcome: Outcome,
    /// See [`crate::store::sinks::unreported_gaps::next_round`].
    pub round: Option<u64>,
    /// The newest event, if it was looked at whether they are too many.
    looks_at_events: Option<u64>,
    /// What is missing since, if that is more than before.
    holes: Option<Holes>,
    /// The table of high-water marks was brought up to date, and has so many rows at most.
    listed: Option<usize>,
    /// What the last checkpoint did was written.
    wrote_checkpoint_record: bool,
    merged: bool,
    pub last_commit: Option<LastCommit>,
}

/// The write connection, opened again after each failure: what a failed fsync
/// left behind on a handle cannot be known. Until then no file is open where the log lies,
/// so that its disk can be unmounted, checked and mounted again.
pub(in crate::store) struct Committer {
    pub path: PathBuf,
    pub lock: Option<Lock>,
    pub files: LogFiles,
    pub last_commit: LastCommit,
    pub budget: Budget,
    /// Bytes of quarantined databases, as of the last look.
    pub quarantined: u64,
    pub durability: Durability,
    pub min_free: u64,
    /// Entries of the trail of devices' presence that are kept.
    audit: u32,
    max_events: u64,
    /// The newest event when it was last looked at whether they are too many.
    looked_at_events: u64,
    pub gauge: Gauge,
    pub connection: Option<Connection>,
    pub readers: Arc<Readers>,
    encoder: Encoder,
    pub evictor: Evictor,
    pub holes: Holes,
    pub checkpoint_record: CheckpointRecord,
    pending_high_water: PendingHighWater,
    merging: Merging,
    pub wal: Wal,
    /// By which seqs are reserved.
    pub ticket: Ticket,
    pub doubtful: Option<Work>,
    /// An fsync failed, and what it was to write was not written anew since.
    pub unsynced: bool,
}

impl Committer {
    /// The log in the configured directory, where `on_disk` is.
    pub fn new(
        config: &config::Store,
        (gauge, stepped): (Gauge, bool),
        on_disk: OnDisk,
        (connection, lock): (Connection, Lock),
        readers: Arc<Readers>,
        evictor: Evictor,
        ticket: Ticket,
    ) -> Result<Committer> {
        let encoder = Encoder::new().context("zstd cannot be set up")?;
        let shares = Shares::of(config.max_size.as_u64());
        let path = schema::database(config);
        let budget = Budget::new(config.max_size.as_u64());
        let wal = Wal::new(&path, &connection, budget, !stepped);
        wal.bound(&connection)?;
        Ok(Committer {
            wal,
            files: LogFiles::of(&path)?,
            last_commit: LastCommit::of(&connection)?,
            budget,
            quarantined: quarantine::size(&config.directory),
            lock: Some(lock),
            path,
            durability: config.durability,
            min_free: config.min_free.as_u64(),
            audit: config.audit.min(shares.trail),
            max_events: u64::from(config.max_events),
            looked_at_events: 0,
            gauge,
            connection: Some(connection),
            readers,
            encoder,
            evictor,
            holes: on_disk.holes,
            checkpoint_record: on_disk.checkpoint_record,
            pending_high_water: PendingHighWater::new(on_disk.written, shares.high_waters),
            merging: Merging::default(),
            ticket,
            doubtful: None,
            unsynced: false,
        })
    }

    /// Writes `commit` durably, all or nothing. [`Disk::reopen`] goes before it. The
    /// sessions of devices that are `in_use` are not forgotten.
    ///
    /// # Errors
    /// Nothing of it may be counted as written then.
    pub fn commit(&mut self, commit: &Commit, in_use: &dyn Fn() -> HashSet<DeviceId>) -> Result<Outcome> {
        let Some(mut connection) = self.connection.take() else { bail!("the log is not open") };
        let file = schema::sizes(&connection).map(|(_, file)| file).unwrap_or(0);
        self.make_way(file);
        match self.wal.admit(&connection, file) {
            Ok(frames) => self.checkpointed(frames),
            Err(why) => {
                match why.is::<Held>() {
                    true => self.connection = Some(connection),
                    false => self.leave(connection, &why),
                }
                return Err(why);
            }
        }
        let mut work = Work::default();
        let tried = self.try_commit(&mut connection, commit, in_use, &mut work).and_then(|()| self.check(&connection));
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
            Ok(frames) => {
                self.checkpointed(frames);
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

    fn try_commit(
        &mut self,
        connection: &mut Connection,
        commit: &Commit,
        in_use: &dyn Fn() -> HashSet<DeviceId>,
        work: &mut Work,
    ) -> Result<()> {
        if commit.reserve.is_some() {
            // No power cut may take a reservation back, whatever the durability.
            schema::synchronise(connection, Durability::Full)?;
        }
        let failed = || format!("writing to {} failed", self.path.display());
        let room = self.space().map(|(free, min_free)| free.saturating_sub(min_free));
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if self.merging.is_due() && !commit.check_only {
            let before = commit.batches.first().map_or(Seq(i64::MAX as u64), |batch| batch.first);
            let (priority, generation) = (self.evictor.priority(), self.evictor.generation());
            merging::merge(&transaction, &mut self.encoder, before, priority, generation).with_context(failed)?;
            work.merged = true;
        }
        let segments = self.encoder.encode(&commit.batches).context("a segment cannot be encoded")?;
        work.segments = segments.iter().map(|segment| segment.header).collect();
        let (encoder, evictor) = (&mut self.encoder, &mut self.evictor);
        work.outcome = write(&transaction, commit, &segments, room, encoder, evictor).with_context(failed)?;
        if !work.outcome.leaves_positions(commit) {
            work.wrote_checkpoint_record = self.checkpoint_record.write(&transaction).with_context(failed)?;
        }
        work.holes = self.holes.after(&work.outcome.evicted.holes, &work.segments);
        if let Some(holes) = &work.holes {
            holes.write(&self.holes, &transaction).with_context(failed)?;
        }
        for body in presence::write(&transaction, &commit.presence, commit.now, self.audit).with_context(failed)? {
            work.outcome.last_event = Some(schema::insert_event(&transaction, commit.now, &body)?);
        }
        let few = self.looked_at_events + self.max_events / events::SHARE;
        work.looks_at_events = work.outcome.last_event.filter(|newest| *newest >= few);
        let most = work.looks_at_events.map(|_| self.max_events);
        work.round = commit::tell(&transaction, commit, &mut work.outcome, most).with_context(failed)?;
        work.outcome.written = work.segments.last().map(Header::last);
        if let Some(reserved) = commit.reserve {
            epochs::reserve(&transaction, reserved, &mut self.ticket).with_context(failed)?;
        }
        if commit.clean.is_some() || commit.untracked {
            // Nothing comes after it that could list what it says, or its segment says what
            // is not so: a start must not hear it.
            let last = work.outcome.written.unwrap_or_default();
            work.listed = Some(self.pending_high_water.list(
                &transaction,
                [&commit.high_waters, &commit.covered],
                last,
                in_use,
            )?);
        } else if !work.outcome.leaves_positions(commit) && self.pending_high_water.is_due(work.outcome.evicted.last())
        {
            work.listed = Some(self.pending_high_water.list(&transaction, [&[], &[]], Seq::ZERO, in_use)?);
        }
        work.last_commit = Some(LastCommit::of(&transaction)?);
        transaction.commit().with_context(|| format!("committing to {} failed", self.path.display()))
    }

    /// Remembers what a commit that is on disk leaves to later ones.
    pub fn done(&mut self, work: Work, commit: &Commit) -> Outcome {
        self.last_commit = work.last_commit.unwrap_or(self.last_commit);
        if let Some(rows) = work.listed {
            self.pending_high_water.listed(rows);
            self.evictor.tables_changed();
        }
        if work.merged {
            self.merging.done();
        }
        if work.wrote_checkpoint_record {
            self.checkpoint_record.written(&self.path);
        }
        if let Some(holes) = work.holes {
            self.holes = holes;
        }
        for header in work.segments {
            self.holes.reach(header.last());
            self.merging.added();
            self.pending_high_water.segment(header.last(), u64::from(header.count));
        }
        [&commit.high_waters, &commit.covered]
            .into_iter()
            .for_each(|high_waters| self.pending_high_water.add(high_waters));
        self.looked_at_events = work.looks_at_events.unwrap_or(self.looked_at_events);
        work.outcome
    }
}

fn write(
    db: &Connection,
    commit: &Commit,
    segments: &[Encoded],
    room: Option<u64>,
    encoder: &mut Encoder,
    evictor: &mut Evictor,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    if let Some(Encoded { header, .. }) = segments.first() {
        // A commit that failed may be on disk all the same, and this one repeat it.
        db.prepare_cached("DELETE FROM segment WHERE first_seq >= ?1")?.execute([header.first.0])?;
    }
    let configured = commit.sinks.iter().map(|(_, confirmed, _)| *confirmed);
    let retired = commit.retired.iter().map(|sink| sink.confirmed);
    let confirmed = Confirmed { all: configured.chain(retired).collect(), configured: commit.sinks.len() };
    let history = commit.restored.history.iter().map(|(_, block)| block);
    let blocks = segments.iter().map(|segment| &segment.block).chain(history);
    let incoming = blocks.map(|block| block.len() as u64 + eviction::SEGMENT_OVERHEAD).sum();
    outcome.evicted = evictor.make_room(db, encoder, incoming, room, commit.clock, &confirmed)?;
    for (header, block) in &commit.restored.history {
        rows::put(db, "IGNORE", header, block, Info::uncounted(commit.clock))?;
    }
    for Encoded { header, block, batches } in segments {
        let high = evictor.priority().count_high(batches);
        let info = Info { committed: commit.clock, generation: evictor.generation(), high, thinned: false };
        rows::put(db, "REPLACE", header, block, info)?;
    }
    for (name, confirmed, event) in commit.sinks.iter().filter(|_| !outcome.leaves_positions(commit)) {
        schema::put_sink(db, name, *confirmed.max(&outcome.evicted.upto), *event)?;
    }
    for RetiredSink { name, confirmed, event, since } in &commit.retired {
        if outcome.evicted.upto > *confirmed {
            schema::put_position(db, name, outcome.evicted.upto, *event, Some(*since))?;
        }
    }
    for body in commit.notices.iter().chain(&commit.restored.events) {
        outcome.last_event = Some(schema::insert_event(db, commit.now, body)?);
    }
    if let Some(body) = commit.boot.map(|update| boot_times::write(db, update)).transpose()?.flatten() {
        outcome.last_event = Some(schema::insert_event(db, commit.now, &body)?);
    }
    outcome.last_event = inbox::write(db, &commit.inbox, commit.now, commit.clock)?.or(outcome.last_event);
    for progress in &commit.restored.progress {
        schema::set_meta(db, &progress.key, progress.segments)?;
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
