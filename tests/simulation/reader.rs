//! Another program that reads the log, and does not let go.

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub struct Reader {
    connection: Connection,
    wal: PathBuf,
    inode: Option<u64>,
}

impl Reader {
    /// # Errors
    /// If the log cannot be read now.
    pub fn open(directory: &Path) -> rusqlite::Result<Reader> {
        let connection = Connection::open(directory.join(tidegate::store::FILE_NAME))?;
        connection.execute_batch("BEGIN; SELECT count(*) FROM segment")?;
        let wal = directory.join(format!("{}-wal", tidegate::store::FILE_NAME));
        let inode = inode(&wal);
        Ok(Reader { connection, wal, inode })
    }
}

impl Drop for Reader {
    /// The gateway leaves the write-ahead log in its place while other programs have it open.
    /// It goes by the locks of files, of which this file system has none.
    fn drop(&mut self) {
        if inode(&self.wal) != self.inode {
            let kept = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
            kept.expect("a setting");
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|found| found.ino())
}
