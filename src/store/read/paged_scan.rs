//! Goes through a log that a gateway may be writing to, in short looks.
//!
//! Whoever reads keeps the write-ahead log from beginning anew until he is done. So what
//! is handed out is copied first, some of it at a time: however slowly it is taken, nobody
//! waits for that. Between two looks segments may be merged, cut or dropped.

use crate::model::Seq;
use crate::store::disk::rows::{self, BLOCK_COLUMN, HEADER_COLUMNS};
use crate::store::disk::wal::wal_path;
use crate::store::segment::Header;
use rusqlite::{Connection, ErrorCode};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Bytes of blocks that are copied in one look, but for one block alone.
const BYTES: usize = 256 << 10;
/// Heads of segments that are copied in one look.
const HEADS: u32 = 4096;
/// How often a long look sees whether it is in somebody's way.
const LOOK_UP: Duration = Duration::from_millis(50);
/// The write-ahead log may grow by so much meanwhile, or by a share of the database.
const GROWTH: u64 = 4 << 20;
const GROWTH_SHARE: u64 = 32;

/// A segment's row.
struct Copied {
    key: i64,
    header: Option<Header>,
    block: Vec<u8>,
}

/// How far a walk has come.
struct Walk {
    /// Everything up to here was given.
    after: Seq,
    /// The row that was given last.
    key: i64,
    /// The last one that was not sound: what it says of its end is not to be believed.
    damaged: Option<i64>,
}

impl Walk {
    fn has_passed(&self, key: i64, header: Option<&Header>) -> bool {
        // One that was given may have grown since, by those behind it.
        let has_more = header.is_some_and(|header| header.last() > self.after) && self.damaged != Some(key);
        key <= self.key && !has_more
    }

    fn next(&self, db: &Connection) -> rusqlite::Result<Vec<Copied>> {
        let mut statement = db.prepare_cached(&format!(
            "SELECT {HEADER_COLUMNS}, {BLOCK_COLUMN} FROM segment
             WHERE first_seq >= coalesce((SELECT max(first_seq) FROM segment WHERE first_seq <= ?1), 0)
             ORDER BY first_seq"
        ))?;
        let mut rows = statement.query([self.after.next().0])?;
        let (mut copied, mut bytes) = (Vec::new(), 0);
        while bytes < BYTES
            && let Some(row) = rows.next()?
        {
            let (key, header) = (row.get(0)?, rows::header_of(row));
            if self.has_passed(key, header.as_ref()) {
                continue;
            }
            let block = row.get_ref(rows::BLOCK)?.as_blob().unwrap_or_default().to_vec();
            bytes += block.len();
            copied.push(Copied { key, header, block });
        }
        Ok(copied)
    }
}

/// Gives the head and the block of every segment, oldest first; no head where there can be
/// none. `take` says whether it was sound. One that was given may come again, with more
/// behind what it had.
///
/// # Errors
/// If the database cannot be read.
pub(in crate::store) fn each(
    db: &Connection,
    take: &mut dyn FnMut(Option<Header>, &[u8]) -> ControlFlow<(), bool>,
) -> rusqlite::Result<()> {
    let mut walk = Walk { after: Seq::ZERO, key: i64::MIN, damaged: None };
    loop {
        let some = walk.next(db)?;
        if some.is_empty() {
            return Ok(());
        }
        for Copied { key, header, block } in some {
            let sound = match take(header, &block) {
                ControlFlow::Continue(sound) => sound,
                ControlFlow::Break(()) => return Ok(()),
            };
            let last = match header.filter(|_| sound) {
                Some(header) => header.last(),
                None => Seq(u64::try_from(key).unwrap_or(0)),
            };
            walk = Walk { after: walk.after.max(last), key, damaged: if sound { walk.damaged } else { Some(key) } };
        }
    }
}

/// Gives the head of every segment's row and the bytes of its block, oldest first.
///
/// # Errors
/// If the database cannot be read, and what `take` gives.
pub(in crate::store) fn heads(
    db: &Connection,
    take: &mut dyn FnMut(Header, u64) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut after = i64::MIN;
    loop {
        let some = {
            let mut statement = db.prepare_cached(&format!(
                "SELECT {HEADER_COLUMNS}, size FROM segment WHERE first_seq > ?1 ORDER BY first_seq LIMIT {HEADS}"
            ))?;
            let head = |row: &rusqlite::Row<'_>| {
                Ok((row.get::<_, i64>(0)?, rows::header_of(row), row.get(rows::BLOCK).unwrap_or(0)))
            };
            statement.query_map([after], head)?.collect::<rusqlite::Result<Vec<_>>>()?
        };
        let Some((last, ..)) = some.last() else { return Ok(()) };
        after = *last;
        for (_, header, bytes) in some {
            if let Some(header) = header {
                take(header, bytes)?;
            }
        }
    }
}

/// What is said where [`structure`] broke off.
pub(in crate::store) const IN_THE_WAY: &str = "the structure was not checked as a whole: the gateway writes too much meanwhile. \
                                     Stop it for that, or check a copy";

/// What SQLite finds wrong with the structure of the database at `path`, `most` things at
/// most. That takes one long look, which is broken off when the write-ahead log grows behind
/// it: `None` then.
///
/// # Errors
/// If the database cannot be read.
pub(in crate::store) fn structure(db: &Connection, path: &Path, most: usize) -> rusqlite::Result<Option<Vec<String>>> {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
    let wal = wal_path(path);
    let bound = size(&wal) + GROWTH.min(size(path) / GROWTH_SHARE);
    let (handle, (done, is_done)) = (db.get_interrupt_handle(), channel::<()>());
    let found = std::thread::scope(|scope| {
        scope.spawn(move || {
            while is_done.recv_timeout(LOOK_UP) == Err(RecvTimeoutError::Timeout) {
                if size(&wal) > bound {
                    handle.interrupt();
                }
            }
        });
        let mut statement = db.prepare(&format!("PRAGMA integrity_check({most})"))?;
        let found = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>();
        drop(done);
        found
    });
    let faults = |found: Vec<String>| {
        let faults = found.into_iter().filter(|found| found != "ok");
        faults.map(|found| format!("structure: {}", found.replace('\n', " "))).collect()
    };
    match found {
        Err(why) if why.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(None),
        found => found.map(|found| Some(faults(found))),
    }
}
