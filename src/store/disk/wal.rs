//! Keeps the write-ahead log's file small.
//!
//! It is checkpointed into the database now and then, and begins anew, in place, which costs
//! the device least. SQLite would checkpoint it by itself, but says nothing if that fails, and
//! would try an fsync that failed again on the same handle. While somebody reads (a copy
//! being taken, or a sink that drains without a pause) it cannot begin anew and the file
//! grows. Then the writer insists: it waits a moment for readers to finish, now and then,
//! and before each commit that would go beyond the log's bound. Nothing is written there
//! while a reader does not let go.

use super::budget::Budget;
use anyhow::{Context, Result};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of a database's write-ahead log.
pub(in crate::store) fn wal_path(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Pages in the write-ahead log after which it is checkpointed into the database, or a share
/// of the log's bound if that is less.
const CHECKPOINT_PAGES: u64 = 4096;
const CHECKPOINT_SHARE: u64 = 32;
/// The file may take so many times as much before the writer insists.
const GROWTH: u64 = 2;
/// What stands before each page in the file.
const FRAME_HEADER: u64 = 24;
/// Commits between two times that the writer insists.
const INSIST_EVERY: u32 = 16;
/// How long readers are waited for then, at the log's bound, and how long another writer
/// at other times.
const BUSY_TIMEOUT: Duration = Duration::from_millis(50);
const BUSY_TIMEOUT_AT_BOUND: Duration = Duration::from_secs(1);
pub(in crate::store) const BUSY_TIMEOUT_WITH_WRITERS: Duration = Duration::from_secs(5);

/// Somebody reads and does not let go, and the write-ahead log may not grow any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "another program has been reading the log for long, and {file} has grown to {bytes} bytes, which is all that \
     max_size leaves; end that program (`fuser {index}` names it)", file = .file.display(), index = .index.display()
)]
pub(in crate::store) struct Held {
    file: PathBuf,
    index: PathBuf,
    bytes: u64,
}

/// An eye on the file's size.
pub(in crate::store) struct Wal {
    path: PathBuf,
    /// What SQLite keeps beside it, which whoever reads has open.
    index: PathBuf,
    budget: Budget,
    page: u64,
    checkpoint_pages: u64,
    commits: u32,
    told: bool,
    /// Readers are on other threads, so that waiting for them is of use.
    waits: bool,
}

impl Wal {
    /// Of the database at `database`, whose log has this budget. With `waits` false readers
    /// are never waited for.
    pub fn new(database: &Path, connection: &Connection, budget: Budget, waits: bool) -> Wal {
        let page: u64 = connection.pragma_query_value(None, "page_size", |row| row.get(0)).unwrap_or(1024).max(512);
        let checkpoint_pages = (budget.whole() / CHECKPOINT_SHARE / page).clamp(64, CHECKPOINT_PAGES);
        let [path, index] = ["-wal", "-shm"].map(|suffix| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        });
        Wal { path, index, budget, page, checkpoint_pages, commits: 0, told: false, waits }
    }

    /// Has the file cut to its share whenever it begins anew; for each new connection.
    pub fn bound(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.pragma_update_and_check(None, "journal_size_limit", self.budget.kept(), |_| Ok(()))
    }

    /// Before each commit: sees to it that the file may grow, beside a database of `file`
    /// bytes. Returns what [`Wal::committed`] does.
    ///
    /// # Errors
    /// [`Held`] if somebody who reads does not let go, or if the checkpoint fails.
    pub fn admit(&mut self, connection: &Connection, file: u64) -> Result<Option<u64>> {
        let pages = run_checkpoint(connection, "NOOP").context("looking at the write-ahead log failed")?.pages;
        let bytes = pages.saturating_mul(self.page + FRAME_HEADER);
        if bytes <= self.budget.write_ahead(file) {
            return Ok(None);
        }
        let result = self
            .checkpoint(connection, BUSY_TIMEOUT_AT_BOUND)
            .context("the checkpoint of the write-ahead log failed")?;
        match result {
            None => Err(Held { file: self.path.clone(), index: self.index.clone(), bytes }.into()),
            result => Ok(result),
        }
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// After each commit. Returns how many frames there are if all of them are in the
    /// database and the next commit will begin anew. A commit that must be `kept` is checkpointed
    /// in at once: damage to the end of the write-ahead log, which cannot be told from a commit that was cut off, is then no
    /// damage to it.
    ///
    /// # Errors
    /// If the checkpoint fails; that somebody still reads is no error.
    pub fn committed(&mut self, connection: &Connection, kept: bool) -> Result<Option<u64>> {
        self.commits = self.commits.saturating_add(1);
        let pages = run_checkpoint(connection, "NOOP").context("looking at the write-ahead log failed")?.pages;
        if pages < self.checkpoint_pages && !kept {
            return Ok(None);
        }
        let insists = pages > self.checkpoint_pages * GROWTH && self.commits >= INSIST_EVERY;
        let busy_timeout = if insists && self.waits { BUSY_TIMEOUT } else { Duration::ZERO };
        let result =
            checkpoint_within(connection, busy_timeout).context("the checkpoint of the write-ahead log failed")?;
        if pages <= self.checkpoint_pages * GROWTH {
            self.told = false;
        }
        if !insists {
            return Ok(result);
        }
        self.commits = 0;
        let busy = result.is_none();
        if busy && !self.told {
            tracing::warn!(
                file = %self.path.display(), pages,
                "a program reads the log without a pause and its write-ahead log grows; end that program"
            );
        }
        self.told = busy;
        Ok(result)
    }

    /// Folds everything in, if nobody is in the way for longer than that.
    ///
    /// # Errors
    /// If the checkpoint fails.
    pub fn checkpoint(&self, connection: &Connection, busy_timeout: Duration) -> rusqlite::Result<Option<u64>> {
        // There is nothing to wait for where all work is done on one thread.
        checkpoint_within(connection, if self.waits { busy_timeout } else { Duration::ZERO })
    }
}

/// Folds as much of the write-ahead log into the database as nobody reads. Returns how many
/// frames that were if it is all, and no reader keeps the next commit from beginning anew.
///
/// # Errors
/// If the checkpoint fails.
pub(in crate::store) fn checkpoint(connection: &Connection) -> rusqlite::Result<Option<u64>> {
    checkpoint_within(connection, Duration::ZERO)
}

/// The same; readers are waited for so long.
fn checkpoint_within(connection: &Connection, busy_timeout: Duration) -> rusqlite::Result<Option<u64>> {
    let result = run_checkpoint(connection, "PASSIVE")?;
    if busy_timeout.is_zero() && result.done < result.pages {
        return Ok(None);
    }
    connection.busy_timeout(busy_timeout)?;
    let result = run_checkpoint(connection, "RESTART")?;
    connection.busy_timeout(BUSY_TIMEOUT_WITH_WRITERS)?;
    Ok(Some(result.pages).filter(|_| !result.busy && result.done == result.pages && result.pages > 0))
}

/// What a checkpoint came to.
struct CheckpointResult {
    /// Somebody held it up.
    busy: bool,
    /// Pages in the write-ahead log, and those of them that are in the database.
    pages: u64,
    done: u64,
}

/// Folds the write-ahead log into the database as `mode` says.
fn run_checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<CheckpointResult> {
    let pages = |pages: i64| pages.max(0).unsigned_abs();
    let result = |row: &rusqlite::Row<'_>| {
        Ok(CheckpointResult { busy: row.get::<_, i64>(0)? != 0, pages: pages(row.get(1)?), done: pages(row.get(2)?) })
    };
    connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))
        .and_then(|mut statement| statement.query_row([], result))
}
