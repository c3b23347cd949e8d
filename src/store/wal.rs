//! Keeps the write-ahead log's file small.
//!
//! SQLite folds the write-ahead log into the database every [`CHECKPOINT_PAGES`] and
//! then begins it anew, in place, which costs the device least. It cannot while
//! somebody reads: a copy being taken, or a sink that drains without a pause. The file
//! then grows, and beyond [`MAX_BYTES`] the writer insists: it waits a moment for
//! readers to finish, now and then.

use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pages in the write-ahead log after which it is folded into the database.
pub(super) const CHECKPOINT_PAGES: u32 = 4096;
/// Bytes that its file may take.
pub(super) const MAX_BYTES: u64 = 16 << 20;
/// Commits between looks at the file.
const LOOK_EVERY: u32 = 256;
/// How long readers are waited for.
const PATIENCE: Duration = Duration::from_millis(50);

/// An eye on the file's size.
pub(super) struct Wal {
    path: PathBuf,
    commits: u32,
    told: bool,
}

impl Wal {
    /// Of the database at `database`.
    pub fn new(database: &Path) -> Wal {
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        Wal { path: path.into(), commits: 0, told: false }
    }

    /// After each commit.
    ///
    /// # Errors
    /// If the database fails; that somebody still reads is no error.
    pub fn committed(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.commits += 1;
        if self.commits < LOOK_EVERY {
            return Ok(());
        }
        self.commits = 0;
        let bytes = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        if bytes <= MAX_BYTES {
            self.told = false;
            return Ok(());
        }
        connection.busy_timeout(PATIENCE)?;
        let busy = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, bool>(0))?;
        if busy && !self.told {
            tracing::warn!(
                file = %self.path.display(), bytes,
                "a program reads the log without a pause and its write-ahead log grows; end that program"
            );
        }
        self.told = busy;
        Ok(())
    }
}
