//! What the last checkpoint put into the database, page by page.
//!
//! The write-ahead log begins anew once all of it is in the database. Its first commit then
//! says which pages those were and what they hold, so that a later start can tell without
//! reading the database whether the two files belong together: in a copy that was taken
//! while the gateway ran, the database may be older than what its write-ahead log goes on
//! from. Each such list has a number, which stands in `meta`: a write-ahead log that a start
//! began has no list, and goes by it. See [`crate::store::recovery::salvage`], which checks both.
//!
//! The number is also noted in a file, after the commit that has it and before that counts:
//! another program that reads the log and is the last to let go, while the gateway is not
//! there, checkpoints the write-ahead log and deletes it. Nothing is missing then if the database
//! has the number that is noted.

use super::schema::set_meta;
use super::{reserve_file, rows};
use crate::files;
use rusqlite::{Connection, params};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// The entry of `meta` that numbers the lists.
pub(in crate::store) const NUMBER: &str = "folds";

/// The file beside the database that has the number of the last list.
const FILE_NAME: &str = "generation";

/// Of the write-ahead log and of each of its frames, in bytes.
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Pages of the database, and a CRC-32 of what each holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::store) struct CheckpointedPages(BTreeMap<u32, u32>);

impl CheckpointedPages {
    /// What the first `count` frames of the write-ahead log at `wal` make of its database's
    /// pages.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(wal: &Path, count: u64) -> io::Result<CheckpointedPages> {
        let mut file = BufReader::with_capacity(1 << 16, File::open(wal)?);
        let mut header = [0; WAL_HEADER];
        file.read_exact(&mut header)?;
        let page_size = number(&header, 8).unwrap_or(0).clamp(512, 65_536) as usize;
        let mut frame = vec![0; FRAME_HEADER + page_size];
        let mut listed = CheckpointedPages::default();
        for _ in 0..count {
            file.read_exact(&mut frame)?;
            let (head, content) = frame.split_at(FRAME_HEADER);
            listed.0.extend(number(head, 0).map(|page| (page, CheckpointedPages::sum(content))));
        }
        Ok(listed)
    }

    /// What stands for a page's content.
    pub fn sum(content: &[u8]) -> u32 {
        crc32fast::hash(content)
    }

    /// Writes it in the place of the one before, under the next number.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn write(&self, db: &Connection, number: u64) -> rusqlite::Result<()> {
        let pages: Vec<u8> =
            self.pages().flat_map(|(page, sum)| [page.to_be_bytes(), sum.to_be_bytes()]).flatten().collect();
        db.prepare_cached("INSERT OR REPLACE INTO fold (id, pages, guard) VALUES (1, ?1, ?2)")?
            .execute(params![pages, rows::checkpoint_guard(&pages)])?;
        set_meta(db, NUMBER, number)
    }

    /// What was written so, if its guard holds.
    pub fn read(pages: &[u8], guard: i64) -> Option<CheckpointedPages> {
        (rows::checkpoint_guard(pages) == guard).then_some(())?;
        let pair = |eight: &[u8]| number(eight, 0).zip(number(eight, 4));
        pages.chunks(8).map(pair).collect::<Option<BTreeMap<u32, u32>>>().map(CheckpointedPages)
    }

    /// Each page with the sum of its content.
    pub fn pages(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().map(|(page, sum)| (*page, *sum))
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

/// What the next commit is to say of the checkpoint before it.
#[derive(Debug, Default)]
pub(in crate::store) struct CheckpointRecord {
    /// Of the last list.
    number: u64,
    next: Option<CheckpointedPages>,
}

impl CheckpointRecord {
    /// After the list with this number. If the next commit `begins` a write-ahead log of which
    /// nothing else is known, its list is empty.
    pub fn after(number: u64, begins: bool) -> CheckpointRecord {
        CheckpointRecord { number, next: begins.then(CheckpointedPages::default) }
    }

    /// The next commit begins a write-ahead log of which nothing else is known.
    pub fn begin(&mut self) {
        self.next = Some(CheckpointedPages::default());
    }

    /// A checkpoint put the whole write-ahead log at `wal`, which has so many frames, into
    /// the database, and the next commit begins it anew.
    pub fn checkpointed(&mut self, wal: &Path, frames: u64) {
        self.next = CheckpointedPages::of(wal, frames)
            .inspect_err(|why| tracing::debug!(%why, "what the checkpoint wrote cannot be listed"))
            .ok();
    }

    /// Writes the list if there is one. Returns whether there was. It stays true until the
    /// next checkpoint, also if this fails.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn write(&self, db: &Connection) -> rusqlite::Result<bool> {
        match &self.next {
            Some(listed) => listed.write(db, self.number + 1).map(|()| true),
            None => Ok(false),
        }
    }

    /// It is on disk, in the database at `path` or its write-ahead log.
    pub fn written(&mut self, path: &Path) {
        self.number += 1;
        self.next = None;
        note(path, self.number);
    }
}

/// Notes the number of a list that was written to the database at `path`. If that fails,
/// nothing is noted: a write-ahead log that another program has checkpointed counts as missing.
fn note(path: &Path, number: u64) {
    let path = file(path);
    // Of one length always, so that it is written in place.
    let write = || {
        let mut file = File::options().create(true).write(true).truncate(false).open(&path)?;
        files::hand_over(&path);
        file.write_all(format!("{number:020}\n").as_bytes())?;
        file.sync_data()
    };
    if let Err(why) = write() {
        tracing::debug!(file = %path.display(), %why, "the number of a write-ahead log could not be noted");
        if let Err(why) = files::discard(&path) {
            tracing::debug!(file = %path.display(), %why, "what is noted of an earlier one could not be removed");
        }
    }
}

/// The number that is noted beside the database at `path`.
pub(in crate::store) fn noted(path: &Path) -> Option<u64> {
    std::fs::read_to_string(file(path)).ok()?.trim_end().parse().ok()
}

/// Whether the log at `path` was open once, and so had its first content.
pub(in crate::store) fn was_opened(path: &Path) -> bool {
    noted(path).is_some() || path.with_file_name(reserve_file::FILE_NAME).exists()
}

/// What is said of such a database.
pub(in crate::store) const LACKING: &str = "it was not closed, and its write-ahead log is missing: what came last is not in it; \
                                  copy log.db-wal along with log.db, while the gateway is stopped";

/// Whether a database that has these numbers in its `meta`, and no write-ahead log, lacks
/// what that had: it was not closed, and no other program put all of it there.
pub(in crate::store) fn lacks_write_ahead_log(meta: &BTreeMap<String, u64>, noted: Option<u64>) -> bool {
    let is_open = meta.get("reserved").is_some_and(|reserved| *reserved > 0) && !meta.contains_key("clean");
    let has_all = noted.is_some() && noted == meta.get(NUMBER).copied();
    is_open && !has_all
}

fn file(database: &Path) -> PathBuf {
    database.with_file_name(FILE_NAME)
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;
    use crate::config::Durability;

    #[test]
    fn a_list_has_each_page_as_the_last_frame_left_it_and_reads_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let wal = directory.path().join("wal");
        let mut bytes = vec![0; WAL_HEADER];
        bytes[8..12].copy_from_slice(&512u32.to_be_bytes());
        for (page, content) in [(7u32, 1u8), (3, 2), (7, 3), (9, 4)] {
            bytes.extend(page.to_be_bytes());
            bytes.extend([0; FRAME_HEADER - 4]);
            bytes.extend([content; 512]);
        }
        std::fs::write(&wal, bytes).expect("a file");
        let listed = CheckpointedPages::of(&wal, 3).expect("it reads");
        let expected = [(3, CheckpointedPages::sum(&[2; 512])), (7, CheckpointedPages::sum(&[3; 512]))];
        assert_eq!(listed.pages().collect::<Vec<_>>(), expected, "the fourth is none of its");
        assert!(CheckpointedPages::of(&wal, 5).is_err());

        let db = schema::open(&directory.path().join("log.db"), Durability::Full).expect("a new database");
        let mut checkpoint_record = CheckpointRecord { number: 3, next: Some(listed.clone()) };
        checkpoint_record.write(&db).expect("it writes");
        let noted = || noted(&directory.path().join("log.db"));
        assert_eq!(noted(), None);
        checkpoint_record.written(&directory.path().join("log.db"));
        assert_eq!(noted(), Some(4));
        let row = db.query_row("SELECT pages, guard FROM fold", [], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?))
        });
        let (mut pages, guard) = row.expect("a row");
        assert_eq!(CheckpointedPages::read(&pages, guard), Some(listed));
        pages[5] ^= 1;
        assert_eq!(CheckpointedPages::read(&pages, guard), None);
    }
}
