//! Keeps the write-ahead log's file small.
//!
//! It is folded into the database now and then, and begins anew, in place, which costs
//! the device least. SQLite would fold it by itself, but says nothing if that fails, and
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

/// Pages in the write-ahead log after which it is folded into the database, or a share
/// of the log's bound if that is less.
const FOLD_PAGES: u64 = 4096;
const FOLD_SHARE: u64 = 32;
/// What stands before each page in the file.
const FRAME_HEADER: u64 = 24;
/// Commits between two times that the writer insists.
const INSIST_EVERY: u32 = 16;
/// How long readers are waited for then, at the log's bound, and how long another writer
/// at other times.
const PATIENCE: Duration = Duration::from_millis(50);
const PATIENCE_AT_BOUND: Duration = Duration::from_secs(1);
const PATIENCE_WITH_WRITERS: Duration = Duration::from_secs(5);

/// Somebody reads and does not let go, and the write-ahead log may not grow any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "another program has been reading the log for long, and {file} has grown to {bytes} bytes, which is all that \
     max_size leaves; end that program (`fuser {index}` names it)", file = .file.display(), index = .index.display()
)]
pub(super) struct Held {
    file: PathBuf,
    index: PathBuf,
    bytes: u64,
}

/// An eye on the file's size.
pub(super) struct Wal {
    path: PathBuf,
    /// What SQLite keeps beside it, which whoever reads has open.
    index: PathBuf,
    budget: Budget,
    page: u64,
    fold_pages: u64,
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
        let fold_pages = (budget.whole() / FOLD_SHARE / page).clamp(64, FOLD_PAGES);
        let [path, index] = ["-wal", "-shm"].map(|suffix| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        });
        Wal { path, index, budget, page, fold_pages, commits: 0, told: false, waits }
    }

    /// Has the file cut to its share whenever it begins anew; for each new connection.
    pub fn bound(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.pragma_update_and_check(None, "journal_size_limit", self.budget.kept(), |_| Ok(()))
    }

    /// Before each commit: sees to it that the file may grow, beside a database of `file`
    /// bytes.
    ///
    /// # Errors
    /// [`Held`] if somebody who reads does not let go, or if folding it in fails.
    pub fn admit(&mut self, connection: &Connection, file: u64) -> Result<()> {
        let (_, pages) = checkpoint(connection, "NOOP")?;
        let bytes = pages.saturating_mul(self.page + FRAME_HEADER);
        if bytes <= self.budget.write_ahead(file) || !self.insist(connection, PATIENCE_AT_BOUND)? {
            return Ok(());
        }
        Err(Held { file: self.path.clone(), index: self.index.clone(), bytes }.into())
    }

    /// After each commit. One that must be `kept` is folded in at once: damage to the end of
    /// the write-ahead log, which cannot be told from a commit that was cut off, is then no
    /// damage to it.
    ///
    /// # Errors
    /// If folding it in fails; that somebody still reads is no error.
    pub fn committed(&mut self, connection: &Connection, kept: bool) -> Result<()> {
        self.commits = self.commits.saturating_add(1);
        let (_, pages) = checkpoint(connection, "NOOP")?;
        if pages < self.fold_pages && !kept {
            return Ok(());
        }
        checkpoint(connection, "PASSIVE")?;
        if pages <= self.fold_pages * 2 {
            self.told = false;
            return Ok(());
        }
        if self.commits < INSIST_EVERY {
            return Ok(());
        }
        self.commits = 0;
        let busy = self.insist(connection, PATIENCE)?;
        if busy && !self.told {
            tracing::warn!(
                file = %self.path.display(), pages,
                "a program reads the log without a pause and its write-ahead log grows; end that program"
            );
        }
        self.told = busy;
        Ok(())
    }

    /// Folds everything in, as far as that can be done.
    pub fn fold(&self, connection: &Connection) {
        if !self.waits {
            // It goes without waiting if it goes at all.
            let _ = connection.busy_timeout(Duration::ZERO);
        }
        if let Err(why) = checkpoint(connection, "FULL") {
            tracing::debug!(%why, "the write-ahead log was not folded in");
        }
    }

    /// Has the file begin anew, waiting so long for readers. True if one is still in the way.
    fn insist(&self, connection: &Connection, patience: Duration) -> Result<bool> {
        connection.busy_timeout(if self.waits { patience } else { Duration::ZERO })?;
        let restarted = checkpoint(connection, "RESTART");
        connection.busy_timeout(PATIENCE_WITH_WRITERS)?;
        restarted.map(|(busy, _)| busy)
    }
}

/// Folds the write-ahead log into the database as `mode` says. Tells whether a reader
/// held it up, and how many pages it has.
fn checkpoint(connection: &Connection, mode: &str) -> Result<(bool, u64)> {
    connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))
        .and_then(|mut fold| fold.query_row([], |row| Ok((row.get::<_, i64>(0)? != 0, row.get::<_, i64>(1)?))))
        .map(|(busy, pages)| (busy, pages.max(0).unsigned_abs()))
        .context("folding the write-ahead log in failed")
}
