//! Keeps the write-ahead log's file small.
//!
//! It is folded into the database now and then, and begins anew, in place, which costs
//! the device least. SQLite would fold it by itself, but says nothing if that fails, and
//! would try an fsync that failed again on the same handle. While somebody reads (a copy
//! being taken, or a sink that drains without a pause) it cannot begin anew and the file
//! grows. Then the writer insists: it waits a moment for readers to finish, now and then.

use anyhow::{Context, Result};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pages in the write-ahead log after which it is folded into the database, or a share
/// of the log's bound if that is less.
const FOLD_PAGES: u64 = 4096;
const FOLD_SHARE: u64 = 32;
/// The file may take so many times as much.
const GROWTH: u64 = 4;
/// Bytes to which its file is cut when it begins anew after it grew.
pub(super) const MAX_BYTES: u64 = 16 << 20;
/// Commits between two times that the writer insists.
const INSIST_EVERY: u32 = 256;
/// How long readers are waited for then, and how long another writer at other times.
const PATIENCE: Duration = Duration::from_millis(50);
const PATIENCE_WITH_WRITERS: Duration = Duration::from_secs(5);

/// An eye on the file's size.
pub(super) struct Wal {
    path: PathBuf,
    fold_pages: u64,
    most_pages: u64,
    commits: u32,
    told: bool,
}

impl Wal {
    /// Of the database at `database`, whose log may take `max_size` bytes.
    pub fn new(database: &Path, connection: &Connection, max_size: u64) -> Wal {
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        let page: u64 = connection.pragma_query_value(None, "page_size", |row| row.get(0)).unwrap_or(1024);
        let fold_pages = (max_size / FOLD_SHARE / page.max(1)).clamp(64, FOLD_PAGES);
        Wal { path: path.into(), fold_pages, most_pages: fold_pages * GROWTH, commits: 0, told: false }
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
        if pages <= self.most_pages {
            self.told = false;
            return Ok(());
        }
        if self.commits < INSIST_EVERY {
            return Ok(());
        }
        self.commits = 0;
        connection.busy_timeout(PATIENCE)?;
        let (busy, _) = checkpoint(connection, "RESTART")?;
        connection.busy_timeout(PATIENCE_WITH_WRITERS)?;
        if busy && !self.told {
            tracing::warn!(
                file = %self.path.display(), pages,
                "a program reads the log without a pause and its write-ahead log grows; end that program"
            );
        }
        self.told = busy;
        Ok(())
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
