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

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// After each commit. Returns how many frames there are if all of them are in the
    /// database and the next commit will begin anew. A commit that must be `kept` is folded in at once: damage to the end of
    /// the write-ahead log, which cannot be told from a commit that was cut off, is then no
    /// damage to it.
    ///
    /// # Errors
    /// If folding it in fails; that somebody still reads is no error.
    pub fn committed(&mut self, connection: &Connection, kept: bool) -> Result<Option<u64>> {
        self.commits = self.commits.saturating_add(1);
        let pages = checkpoint(connection, "NOOP").context("looking at the write-ahead log failed")?.pages;
        if pages < self.fold_pages && !kept {
            return Ok(None);
        }
        let insists = pages > self.most_pages && self.commits >= INSIST_EVERY;
        let patience = if insists { PATIENCE } else { Duration::ZERO };
        let folded = fold_within(connection, patience).context("folding the write-ahead log in failed")?;
        if pages <= self.most_pages {
            self.told = false;
        }
        if !insists {
            return Ok(folded);
        }
        self.commits = 0;
        let busy = folded.is_none();
        if busy && !self.told {
            tracing::warn!(
                file = %self.path.display(), pages,
                "a program reads the log without a pause and its write-ahead log grows; end that program"
            );
        }
        self.told = busy;
        Ok(folded)
    }
}

/// Folds as much of the write-ahead log into the database as nobody reads. Returns how many
/// frames that were if it is all, and no reader keeps the next commit from beginning anew.
///
/// # Errors
/// If folding it in fails.
pub(super) fn fold(connection: &Connection) -> rusqlite::Result<Option<u64>> {
    fold_within(connection, Duration::ZERO)
}

/// The same; readers are waited for so long.
fn fold_within(connection: &Connection, patience: Duration) -> rusqlite::Result<Option<u64>> {
    let folded = checkpoint(connection, "PASSIVE")?;
    if patience.is_zero() && folded.done < folded.pages {
        return Ok(None);
    }
    connection.busy_timeout(patience)?;
    let folded = checkpoint(connection, "RESTART")?;
    connection.busy_timeout(PATIENCE_WITH_WRITERS)?;
    Ok(Some(folded.pages).filter(|_| !folded.busy && folded.done == folded.pages && folded.pages > 0))
}

/// What a checkpoint came to.
struct Folded {
    /// Somebody held it up.
    busy: bool,
    /// Pages in the write-ahead log, and those of them that are in the database.
    pages: u64,
    done: u64,
}

/// Folds the write-ahead log into the database as `mode` says.
fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<Folded> {
    let pages = |pages: i64| pages.max(0).unsigned_abs();
    let folded = |row: &rusqlite::Row<'_>| {
        Ok(Folded { busy: row.get::<_, i64>(0)? != 0, pages: pages(row.get(1)?), done: pages(row.get(2)?) })
    };
    connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})")).and_then(|mut fold| fold.query_row([], folded))
}
