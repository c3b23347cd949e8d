//! Whether the log's files still are where they were, and what they were.
//!
//! A file goes on working for those who have it open when it is removed, moved, replaced,
//! or its disk unmounted; what is written to it then is found by nobody. So after each
//! commit the writer looks at the names again before it believes it. While a file is away
//! nothing is acknowledged. The same file may come back; another one in its place is left
//! alone, since somebody may still be copying it.

use super::rows::LAST_SEQ;
use super::wal::wal_path;
use rusqlite::Connection;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The log is not where it was, or not what it was.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum FilesChanged {
    #[error(
        "{file} is gone ({why}): it was removed or moved, or its disk unmounted, while the gateway runs; put it back, \
         or restart the gateway to begin a new log", file = .file.display()
    )]
    Gone { file: PathBuf, why: std::io::Error },
    #[error(
        "{file} is not the file that the gateway has written to; put that one back, or restart the gateway to go on \
         from what is there", file = .file.display()
    )]
    Replaced { file: PathBuf },
    #[error("{file} lacks what was written to it last", file = .file.display())]
    Older { file: PathBuf },
}

/// Which file a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(file: &Path) -> Result<Identity, FilesChanged> {
        let found = std::fs::metadata(file).map_err(|why| FilesChanged::Gone { file: file.to_owned(), why })?;
        Ok(Identity { device: found.dev(), inode: found.ino() })
    }
}

/// The files of a database that is open.
#[derive(Debug)]
pub(in crate::store) struct LogFiles {
    database: PathBuf,
    wal: PathBuf,
    identities: [Identity; 2],
}

impl LogFiles {
    /// Of the database at `path`, which was just opened.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn of(path: &Path) -> Result<LogFiles, FilesChanged> {
        let wal = wal_path(path);
        let identities = [Identity::of(path)?, Identity::of(&wal)?];
        Ok(LogFiles { database: path.to_owned(), wal, identities })
    }

    /// Whether both names still stand for the same files.
    ///
    /// # Errors
    /// Which of them does not, and how.
    pub fn check(&self) -> Result<(), FilesChanged> {
        for (file, identity) in [&self.database, &self.wal].into_iter().zip(self.identities) {
            if Identity::of(file)? != identity {
                return Err(FilesChanged::Replaced { file: file.clone() });
            }
        }
        Ok(())
    }

    /// Whether the database may be the same one, before it is opened again. A disk that was
    /// mounted again may be another device by now.
    ///
    /// # Errors
    /// If there is none, or it is another file.
    pub fn is_back(&self) -> Result<(), FilesChanged> {
        match Identity::of(&self.database)?.inode == self.identities[0].inode {
            true => Ok(()),
            false => Err(FilesChanged::Replaced { file: self.database.clone() }),
        }
    }
}

/// What the newest commit left in the database: one that lacks it is older.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct LastCommit {
    epoch: Option<i64>,
    reserved: Option<i64>,
    /// The last seq on disk.
    newest: Option<i64>,
}

impl LastCommit {
    /// # Errors
    /// If the database cannot be read.
    pub fn of(db: &Connection) -> rusqlite::Result<LastCommit> {
        let sql = format!(
            "SELECT (SELECT value FROM meta WHERE key = 'epoch'), (SELECT value FROM meta WHERE key = 'reserved'),
                    (SELECT {LAST_SEQ} FROM segment ORDER BY first_seq DESC LIMIT 1)"
        );
        // What is damaged there is for others to find.
        let read = |row: &rusqlite::Row<'_>, column| row.get(column).ok();
        db.prepare_cached(&sql)?
            .query_row([], |row| Ok(LastCommit { epoch: read(row, 0), reserved: read(row, 1), newest: read(row, 2) }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::{self, FILE_NAME};
    use super::*;
    use crate::config::Durability;

    #[test]
    fn a_file_that_is_gone_or_replaced_is_noticed_and_known_again() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(FILE_NAME);
        let _open = schema::open(&path, Durability::Full).expect("a new database");
        let place = LogFiles::of(&path).expect("it is there");
        place.check().expect("nothing happened");

        let aside = directory.path().join("aside");
        std::fs::rename(&path, &aside).expect("it moves");
        assert!(matches!(place.check(), Err(FilesChanged::Gone { .. })));
        std::fs::copy(&aside, &path).expect("a copy");
        assert!(matches!(place.check(), Err(FilesChanged::Replaced { .. })));
        assert!(matches!(place.is_back(), Err(FilesChanged::Replaced { .. })));
        std::fs::rename(&aside, &path).expect("it moves back");
        place.is_back().expect("it is the same");
        place.check().expect("it is the same");
        std::fs::remove_file(wal_path(&path)).expect("a file");
        assert!(matches!(place.check(), Err(FilesChanged::Gone { .. })));
        place.is_back().expect("of the database nothing is missing");
    }
}
