//! What a power cut leaves in the write-ahead log, and how the log goes on from there.
//!
//! With `durability = "full"` each commit is on the medium before the next one begins: a
//! cut takes back the last one at most, in whole or in part, and what it left of earlier
//! ones that were cut off is overwritten piece by piece. With `"normal"` the commits since
//! the last checkpoint may survive in any selection. SQLite goes on from the last commit
//! before the first frame that is not what was written; the segments behind it that are
//! sound are put back here, in the same epoch. Seqs of which nothing is left are told
//! upstream as gaps.
//!
//! SQLite begins the write-ahead log anew by writing over its header, once all of it is in
//! the database. A header that a cut left half written therefore hides nothing, as long as
//! the database has what the frames behind it say.
//!
//! Everything else is damage, and for quarantine.

use super::quarantine::MAX_RANGES;
use super::salvage::{Orphan, Salvage, cut};
use crate::files::{self, Replacement};
use crate::model::{Seq, SequencedBatch};
use crate::store::disk::damage::Damage;
use crate::store::disk::rows::{self, Info};
use crate::store::disk::space::Space;
use crate::store::disk::wal::wal_path;
use crate::store::retention::gap::Hole;
use crate::store::segment::{Encoded, Encoder};
use rusqlite::Connection;
use rustix::process::{Flock, FlockType, fcntl_getlk};
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The entry of `meta` that says that commits are not synced one by one.
pub(in crate::store) const UNSYNCED: &str = "unsynced";

/// What the last life left beside the database.
#[derive(Debug, Default)]
pub(in crate::store) struct WalRemains {
    /// There is a write-ahead log.
    pub has_wal: bool,
    /// There is something in it.
    pub has_frames: bool,
    /// There are commits in it to which others will be added.
    pub goes_on: bool,
    /// Its header was cut off while it began anew.
    pub begins_anew: bool,
    /// Commits were cut off.
    pub cut_off: Option<CutOffCommits>,
}

/// What is left of commits that were cut off.
#[derive(Debug)]
pub(in crate::store) struct CutOffCommits {
    orphans: Vec<Orphan>,
    /// Seqs up to here may have been given out, as any of them says.
    pub reserved: u64,
}

/// Looks at the write-ahead log of the database at `path` before SQLite does; with
/// `unsynced` the configuration says that commits are not synced one by one.
///
/// # Errors
/// What was found if that is no power cut's doing.
pub(in crate::store) fn look(path: &Path, unsynced: bool) -> Result<WalRemains, String> {
    let salvage = Salvage::open(path);
    let wal = salvage.wal_state();
    if wal.header_damaged {
        return Err("the header of its write-ahead log is not what was written".to_owned());
    }
    if let Some(found) = salvage.torn() {
        return Err(found);
    }
    let (has_wal, has_frames) = (wal.length > 0, wal.frames > 0);
    let (goes_on, begins_anew) = (wal.valid_frames > 0, has_frames && !wal.header_right);
    let mut left = WalRemains { has_wal, has_frames, goes_on, begins_anew, cut_off: None };
    // Also of a commit that has no end, what is sound is readings under their seqs.
    if wal.orphaned_frames == 0 {
        return Ok(left);
    }
    let meta = salvage.facts().meta;
    if wal.orphaned_commits > 1 && !unsynced && !meta.contains_key(UNSYNCED) {
        let more = wal.orphaned_commits;
        return Err(format!("{more} commits stand behind a damaged one in its write-ahead log"));
    }
    if wal.overtaken {
        return Err("its write-ahead log is damaged before what a checkpoint took over".to_owned());
    }
    let reserved = meta.get("reserved").copied().unwrap_or(0);
    left.cut_off = Some(CutOffCommits { orphans: salvage.orphaned(), reserved });
    Ok(left)
}

/// Puts the write-ahead log of the database at `path` on the medium, in a new file. What is
/// read of it may stand in the system's cache alone: after a sync that failed no later one
/// writes it, and commits that follow would stand behind frames that a power cut takes back.
/// One whose header was cut off loses its frames, too: SQLite would take over what it finds
/// in the header, and stale frames could be mistaken for those that follow.
///
/// # Errors
/// If the directory cannot be written to, or has no room for the new file: then nothing is
/// written.
pub(in crate::store) fn renew(path: &Path, left: &WalRemains) -> io::Result<()> {
    let wal = wal_path(path);
    let mut old = File::open(&wal)?;
    let needed = if left.begins_anew { 0 } else { old.metadata()?.len() };
    let directory = path.parent().unwrap_or(Path::new("."));
    if Space::of(directory).is_some_and(|space| space.free < needed + SPARE) {
        return Err(ErrorKind::StorageFull.into());
    }
    let mut new = Replacement::of(&wal, MODE)?;
    match left.begins_anew {
        // As long as a header, so that it is not taken for one that is missing.
        true => new.file().write_all(&NO_HEADER)?,
        false => drop(io::copy(&mut old, new.file())?),
    }
    new.put()
}

/// Does the same where there is no room for a new file, or another program has the one that
/// is there open: every byte is written once more where it stands.
///
/// # Errors
/// If it cannot be written.
pub(in crate::store) fn rewrite(path: &Path, left: &WalRemains) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(wal_path(path))?;
    if left.begins_anew {
        file.write_all_at(&NO_HEADER, 0)?;
        file.set_len(NO_HEADER.len() as u64)?;
    } else {
        let (mut block, mut at) = (vec![0; 1 << 16], 0);
        loop {
            let read = file.read_at(&mut block, at)?;
            if read == 0 {
                break;
            }
            file.write_all_at(block.get(..read).unwrap_or_default(), at)?;
            at += read as u64;
        }
    }
    file.sync_all()
}

/// Whether another program has the database at `path` open. Its write-ahead log must stay the
/// file that it is: whoever lets go last checkpoints that into the database, by the list of pages
/// that all of them share. In this process nobody may have it open.
pub(in crate::store) fn is_open_elsewhere(path: &Path) -> bool {
    // Every connection holds SQLite's shared lock. See <https://sqlite.org/fileformat2.html>,
    // section 1.6, and `SHARED_FIRST` in its source.
    let shared = Flock { start: 0x4000_0002, length: 510, ..Flock::from(FlockType::WriteLock) };
    let lock = File::options().read(true).write(true).open(path).and_then(|file| Ok(fcntl_getlk(&file, &shared)?));
    lock.is_ok_and(|held| held.is_some())
}

/// Removes what an earlier life could not finish of [`renew`].
pub(in crate::store) fn clear(path: &Path) {
    // Where earlier versions wrote it, too.
    for left in [Replacement::temporary(&wal_path(path)), path.with_extension("new")] {
        if let Err(why) = files::discard(&left) {
            tracing::warn!(file = %left.display(), %why, "a file that is of no use cannot be removed");
        }
    }
}

/// A header of a write-ahead log that says that there is nothing in it.
const NO_HEADER: [u8; 32] = [0; 32];
/// Free bytes that a new write-ahead log must leave.
const SPARE: u64 = 64 << 10;
/// As SQLite gives it to files that it makes.
const MODE: u32 = 0o644;

impl CutOffCommits {
    /// Puts back the readings that are sound and stand behind `end`, the last one that
    /// SQLite sees: what stood before it and is not there was dropped. The log's clock shows
    /// `clock`.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn put_back(&self, db: &Connection, end: Seq, clock: u64) -> Result<(), Damage> {
        let mut encoder = Encoder::new()?;
        for Orphan { header, block, batches } in &self.orphans {
            let behind = batches.iter().filter(|batch| batch.last() > end);
            let fresh: Vec<SequencedBatch> = behind.map(|batch| cut(batch, end.next(), batch.last())).collect();
            let readings: usize = fresh.iter().map(|batch| batch.batch.readings.len()).sum();
            if readings > 0 {
                tracing::warn!(
                    first = header.first.0,
                    readings,
                    "a segment was found behind a commit that was cut off"
                );
            }
            if readings as u64 == u64::from(header.count) {
                rows::put(db, "IGNORE", header, block, Info::uncounted(clock))?;
                continue;
            }
            for run in fresh.chunk_by(|one, next| one.last().next() == next.first) {
                for Encoded { header, block, .. } in encoder.encode(run)? {
                    rows::put(db, "IGNORE", &header, &block, Info::uncounted(clock))?;
                }
            }
        }
        Ok(())
    }
}

/// Events that tell of seqs of which nothing is on disk. With `unsynced`, readings among
/// them may have been acknowledged and be lost.
pub(in crate::store) fn gaps<'h>(holes: impl Iterator<Item = &'h Hole>, unsynced: bool) -> Vec<String> {
    let mut ranges: Vec<(u64, u64)> = holes.map(|hole| (hole.first.0, hole.last.0)).collect();
    if let Some((_, end)) = ranges.get(MAX_RANGES..).and_then(|rest| rest.last().copied()) {
        ranges.truncate(MAX_RANGES);
        ranges.iter_mut().rev().take(1).for_each(|(_, last)| *last = end);
    }
    let body = |(first, last): (u64, u64)| {
        let mut body = serde_json::json!({"type": "gap", "reason": "restart", "first": first, "last": last});
        if unsynced && let Some(body) = body.as_object_mut() {
            body.insert("durability".to_owned(), "normal".into());
        }
        body.to_string()
    };
    ranges.into_iter().map(body).collect()
}

#[cfg(test)]
mod tests {
    use super::super::startup::{self, Recovered};
    use super::*;
    use crate::clock::Now;
    use crate::config::Durability;
    use crate::model::{Basis, Batch, BootId, DeviceId, Epoch, Reading, Timestamp};
    use crate::store::disk::log_clock::{LogClock, StoredClock};
    use crate::store::disk::schema::{self, FILE_NAME, SEQ_BLOCK};
    use crate::store::disk::ticket::Ticket;
    use std::sync::Arc;
    use std::time::Duration;

    /// So long after the machine booted.
    fn at(seconds: u64) -> Now {
        Now { wall: Timestamp(0), trusted: false, monotonic: Duration::from_secs(seconds) }
    }

    fn orphan(first: u64) -> Orphan {
        let empty = |seq| Reading::new(seq, Timestamp(0), [].into(), [].into()).expect("none each");
        let device = DeviceId::new("pump").expect("a valid name");
        let batch = Batch { device, session: None, basis: Basis::default(), readings: vec![empty(1), empty(2)] };
        let batches = vec![SequencedBatch { first: Seq(first), batch: Arc::new(batch) }];
        let mut encoder = Encoder::new().expect("zstd");
        let Encoded { header, block, batches } = encoder.encode(&batches).expect("it encodes").remove(0);
        Orphan { header, block, batches }
    }

    /// A database whose page of `a` went from one content to another and back in two
    /// commits, the second of which fills further pages; checkpointed if so, and then with
    /// one byte damaged in the last frame of its write-ahead log.
    fn damaged(checkpointed: bool) -> Result<WalRemains, String> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (path, left) = (directory.path().join("live.db"), directory.path().join(FILE_NAME));
        let db = Connection::open(&path).expect("a new database");
        let run = |sql: &str| db.execute_batch(sql).expect("it runs");
        run("PRAGMA page_size = 1024; PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0;
             CREATE TABLE meta (key TEXT, value INTEGER); CREATE TABLE a (v TEXT); CREATE TABLE b (v BLOB);
             INSERT INTO a VALUES ('one'); INSERT INTO b VALUES (1); PRAGMA wal_checkpoint(TRUNCATE);");
        run("UPDATE a SET v = 'two'");
        run(
            "BEGIN; UPDATE a SET v = 'one'; UPDATE b SET v = 2; UPDATE meta SET value = 1; INSERT INTO b VALUES (zeroblob(1500)); COMMIT",
        );
        if checkpointed {
            run("PRAGMA wal_checkpoint(PASSIVE)");
        }
        std::fs::copy(&path, &left).expect("a copy");
        let mut wal = std::fs::read(wal_path(&path)).expect("its write-ahead log");
        let at = wal.len() - 500;
        wal[at] ^= 1;
        std::fs::write(wal_path(&left), wal).expect("a copy");
        look(&left, false)
    }

    #[test]
    fn a_page_that_is_again_as_it_was_is_no_sign_of_a_checkpoint() {
        let left = damaged(false).expect("a commit that was cut off");
        assert!(left.cut_off.is_some());
        let why = damaged(true).expect_err("what a checkpoint took over cannot be cut off");
        assert!(why.contains("what a checkpoint took over"), "{why}");
    }

    #[test]
    fn a_page_of_which_the_latest_frame_was_cut_off_is_no_sign_of_a_checkpoint() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (path, left) = (directory.path().join("live.db"), directory.path().join(FILE_NAME));
        let open = || Connection::open(&path).expect("a database");
        let db = open();
        let run = |sql: &str| db.execute_batch(sql).expect("it runs");
        run("PRAGMA page_size = 1024; PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0;
             CREATE TABLE meta (key TEXT, value INTEGER); CREATE TABLE a (v TEXT); INSERT INTO a VALUES ('zero');
             PRAGMA wal_checkpoint(TRUNCATE); UPDATE a SET v = 'one'");
        // While somebody reads, the write-ahead log does not begin anew after a checkpoint.
        let reader = open();
        reader.execute_batch("BEGIN; SELECT * FROM a; PRAGMA query_only = 1").expect("it reads");
        run("PRAGMA wal_checkpoint(PASSIVE)");
        for value in ["two", "three", "four"] {
            run(&format!("UPDATE a SET v = '{value}'"));
        }
        std::fs::copy(&path, &left).expect("a copy");
        let mut wal = std::fs::read(wal_path(&path)).expect("its write-ahead log");
        assert_eq!(wal.len(), 32 + 4 * (24 + 1024), "four commits of one page");
        for cut_off in [1, 3] {
            wal[32 + (cut_off + 1) * (24 + 1024) - 500] ^= 1;
        }
        std::fs::write(wal_path(&left), wal).expect("a copy");
        assert!(look(&left, true).expect("commits that were cut off").cut_off.is_some());
    }

    #[test]
    fn what_was_told_as_a_gap_does_not_come_back_after_a_later_cut() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut db = schema::open(&directory.path().join(FILE_NAME), Durability::Normal).expect("a new database");
        let live = |db: &mut Connection, cut_off: Option<CutOffCommits>| -> Recovered {
            let left = WalRemains { has_wal: true, cut_off, ..WalRemains::default() };
            startup::recover(db, &["cloud".into()], at(100), &mut Ticket::none(Epoch(7)), Durability::Normal, &left, 0)
                .expect("it reads")
        };
        assert_eq!(live(&mut db, None).next, Seq(1));
        assert_eq!(live(&mut db, None).next, Seq(SEQ_BLOCK + 1), "a gap tells of all before");
        let mut clock = LogClock::new(StoredClock::default(), 0, BootId::default(), at(10));
        schema::keep_clock(&db, clock.keep(at(30), true).expect("always")).expect("it is written");
        let orphans = vec![orphan(11), orphan(SEQ_BLOCK + 5)];
        let found = live(&mut db, Some(CutOffCommits { orphans, reserved: 0 }));
        assert_eq!(found.written, Seq(SEQ_BLOCK + 6));
        let firsts: Vec<u64> = db
            .prepare("SELECT first_seq FROM segment")
            .and_then(|mut rows| rows.query_map([], |row| row.get(0))?.collect())
            .expect("a segment table");
        assert_eq!(firsts, [SEQ_BLOCK + 5]);
        let committed: u64 = db.query_row("SELECT committed FROM segment", [], |row| row.get(0)).expect("a row");
        assert_eq!(committed, 90, "they are no older than the start, by the log's clock");
    }
}
