//! The connections that read the log, one for each sink and one for each kind of
//! question from elsewhere.
//!
//! After a failed write every connection is closed before the database is opened
//! again. SQLite shares among the connections of a process the index of the
//! write-ahead log and, while one of them holds a lock, even the file handles of those
//! that were closed: only when the last is gone, the next one starts from what lies on
//! disk, checked by its checksums, on handles that have not seen the failure.

use super::schema;
use parking_lot::Mutex;
use rusqlite::Connection;
use std::path::Path;

#[derive(Debug, Default)]
pub(in crate::store) struct Readers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    idle: Vec<(usize, Connection)>,
    in_use: usize,
    closed: bool,
}

/// The database is not open, but soon will be.
#[derive(Debug, thiserror::Error)]
#[error("the log is about to be opened again after a failure")]
pub(in crate::store) struct Reopening;

impl Readers {
    /// The connection that is kept for `sink`, opened if need be.
    pub fn take(&self, sink: usize, path: &Path) -> anyhow::Result<Connection> {
        let idle = {
            let mut inner = self.inner.lock();
            if inner.closed {
                return Err(Reopening.into());
            }
            inner.in_use += 1;
            let found = inner.idle.iter().position(|(owner, _)| *owner == sink);
            found.map(|at| inner.idle.swap_remove(at).1)
        };
        let opened = idle.map_or_else(|| schema::open_reader(path), Ok);
        if opened.is_err() {
            self.inner.lock().in_use -= 1;
        }
        Ok(opened?)
    }

    /// Gives it back; `None` if it failed and was dropped. One is kept for each.
    pub fn give_back(&self, sink: usize, connection: Option<Connection>) {
        let mut inner = self.inner.lock();
        if !inner.closed && !inner.idle.iter().any(|(owner, _)| *owner == sink) {
            inner.idle.extend(connection.map(|connection| (sink, connection)));
        } else {
            drop(connection);
        }
        inner.in_use -= 1;
    }

    /// Closes all that are idle and lets none be opened. True once none is in use.
    pub fn close(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.idle.clear();
        inner.in_use == 0
    }

    /// They may be opened again.
    pub fn open(&self) {
        self.inner.lock().closed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durability;

    #[test]
    fn after_close_none_is_left_and_none_is_opened_until_open() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log.db");
        let _writer = schema::open(&path, Durability::Full).expect("a new database");
        let readers = Readers::default();
        let one = readers.take(0, &path).expect("it opens");
        let two = readers.take(1, &path).expect("it opens");
        readers.give_back(1, Some(two));
        assert!(!readers.close(), "one is in use");
        assert!(readers.take(1, &path).is_err());
        readers.give_back(0, Some(one));
        assert!(readers.close());
        readers.open();
        assert!(readers.take(0, &path).is_ok());
    }
}
