//! How the write connection is left after a failure and opened again, and what else the
//! writer sees to beside commits.
//!
//! In between no file is open where the log lies. What is opened has to be the log that
//! was left: see [`crate::store::disk::file_identity`].

use super::committer::{Committer, Work};
use crate::store::commit::{Commit, Outcome};
use crate::store::disk::failure;
use crate::store::disk::file_identity::{FilesChanged, LastCommit, LogFiles};
use crate::store::disk::lock::lock;
use crate::store::disk::schema::{self, OpenError};
use crate::store::disk::space::Space;
use crate::store::disk::wal;
use crate::store::recovery::open;
use crate::store::recovery::quarantine;
use crate::store::recovery::startup;
use crate::store::retention::holes::Holes;
use crate::store::sinks::unreported_gaps;
use anyhow::{Result, anyhow, bail};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension};
use std::path::Path;

/// Of the filesystem, at most this share is left free, whatever `min_free` says.
const MIN_FREE_SHARE: u64 = 4;

impl Committer {
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
        self.files.is_back()?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let lock = lock(directory)?;
        // What an fsync that failed left in memory only is written anew: a commit that is
        // found there after all must be as safe as any other.
        let left = open::settle(&self.path, self.durability, self.unsynced).map_err(|why| match why {
            // A read may fail once; opening the log anew tells more.
            OpenError::Unreadable { .. } => anyhow!("{why}"),
            why => why.into(),
        })?;
        self.unsynced = false;
        let connection = schema::open(&self.path, self.durability)?;
        let last_commit = LastCommit::of(&connection)?;
        let doubtful = self.doubtful.as_ref().and_then(|doubtful| doubtful.last_commit);
        if last_commit != self.last_commit && Some(last_commit) != doubtful {
            return Err(FilesChanged::Older { file: self.path.clone() }.into());
        }
        self.wal.bound(&connection)?;
        self.files = LogFiles::of(&self.path)?;
        let landed = match &self.doubtful {
            Some(doubtful) => landed(&connection, doubtful)?,
            None => false,
        };
        if landed {
            self.ticket.written()?;
        }
        let end = self.holes.end();
        self.holes = Holes::load(&connection)?.0;
        self.holes.reach(end);
        if !left.goes_on {
            self.checkpoint_record.begin();
        }
        self.readers.open();
        (self.lock, self.last_commit) = (Some(lock), last_commit);
        self.connection = Some(connection);
        let work = self.doubtful.take().filter(|_| landed);
        Ok(work.zip(failed).map(|(work, commit)| self.done(work, commit)))
    }

    /// Whether what was committed is where the log is looked for.
    pub fn check(&mut self, connection: &Connection) -> Result<()> {
        let Err(why) = self.files.check() else { return Ok(()) };
        // If only the write-ahead log is gone, what stands in it can still be taken over
        // into the database; if that fails, opening it again tells.
        if let Err(why) = self.wal.checkpoint(connection, wal::BUSY_TIMEOUT_WITH_WRITERS) {
            tracing::debug!(%why, "the write-ahead log was not checkpointed");
        }
        Err(why.into())
    }

    /// Has quarantined databases give way before the log gives up readings.
    pub fn make_way(&mut self, file: u64) {
        if self.quarantined == 0 {
            return;
        }
        let store = self.path.parent().unwrap_or(Path::new("."));
        let most = self.budget.whole();
        let excess = (file + self.quarantined + self.budget.outside()).saturating_sub(most);
        let short = self.space().map_or(0, |(free, min_free)| (min_free + self.budget.commit()).saturating_sub(free));
        let wanted = excess.max(short).min(self.quarantined);
        if wanted > 0 {
            quarantine::make_way(store, wanted);
            self.quarantined = quarantine::size(store);
        }
    }

    /// Parts with a connection that failed, and with those that share its state.
    pub fn leave(&mut self, connection: Connection, why: &anyhow::Error) {
        self.unsynced |= failure::is_sync(why);
        // It is not checkpointed on the handle that failed; see `schema::open`.
        drop(connection);
        self.readers.close();
        self.evictor.forget();
        self.lock = None;
    }

    /// Closes the database, checkpointing the write-ahead log.
    pub fn close(&mut self) {
        self.readers.close();
        let Some(connection) = self.connection.take() else { return };
        let frames = self
            .list_fold(&connection)
            .and_then(|()| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false));
        if let Err(why) = frames.and_then(|_| connection.close().map_err(|(_, why)| why)) {
            tracing::warn!(%why, "the log could not be closed; it is complete all the same");
        }
    }

    /// A checkpoint put the whole write-ahead log into the database, if it has `frames`.
    pub fn checkpointed(&mut self, frames: Option<u64>) {
        if let Some(frames) = frames {
            self.checkpoint_record.checkpointed(self.wal.path(), frames);
        }
    }

    /// Says what is checkpointed: the next life begins a new write-ahead log.
    fn list_fold(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let frames = wal::checkpoint(connection)?;
        self.checkpointed(frames);
        let transaction = connection.unchecked_transaction()?;
        let lists = self.checkpoint_record.write(&transaction)?;
        transaction.commit()?;
        if lists {
            self.checkpoint_record.written(&self.path);
        }
        Ok(())
    }
}

/// Whether a commit that was reported as failed is on disk.
fn landed(connection: &Connection, work: &Work) -> Result<bool> {
    if let Some(header) = work.segments.first() {
        let found: Option<u32> = connection
            .query_row("SELECT checksum FROM segment WHERE first_seq = ?1", [header.first.0], |row| row.get(0))
            .optional()?;
        return Ok(found == Some(header.checksum));
    }
    if let Some(round) = work.round {
        return Ok(unreported_gaps::round(connection)? >= round);
    }
    match work.outcome.last_event {
        // Ids are never used twice.
        Some(event) => Ok(startup::last_event(connection)? >= event),
        None => Ok(false),
    }
}
