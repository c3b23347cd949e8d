//! When the machine's boots began: what turns times that count from a boot into real
//! ones.
//!
//! Readings that arrive before the gateway's clock can be believed are stored with the
//! boot that their times count from. Once the clock is believed the log notes when that
//! boot began, and from then on gives such readings their time as they are read, also
//! after a restart; segments stay as they are. Readings of a boot whose beginning never
//! became known keep their order and nothing else.
//!
//! Consumers that got such readings before are told by an event. That a run has begun is
//! written before it takes a reading, so that a later run in the same boot knows that
//! there may be such consumers.

use super::rows::{self, BLOCK_COLUMN};
use crate::model::{Basis, BootId, Seq, SequencedBatch, Timestamp};
use crate::store::segment::{self, Header};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Boots remembered at most, whatever else is in the log.
const MAX_BOOTS: usize = 1000;

/// When boots began, as far as that is known.
pub(in crate::store) type Beginnings = HashMap<BootId, Timestamp>;

/// The boots that readings in the log may count from.
pub(in crate::store) struct BootTimes {
    current: BootId,
    began: Beginnings,
    /// Consumers may have readings that count from the current boot.
    untimed: bool,
    /// It is not on disk yet when that began.
    unsaved: bool,
}

/// What a commit writes about the current boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct BootUpdate {
    boot: BootId,
    began: Timestamp,
    /// Consumers may have readings that only this gives a time.
    untimed: bool,
}

/// A boot's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Boot {
    id: BootId,
    began: Option<Timestamp>,
    /// The last seq that may count from it, once it is over.
    last: Option<i64>,
}

impl BootTimes {
    /// Readings of this basis were taken over.
    pub fn appended(&mut self, basis: Basis) {
        self.untimed |= basis.boot() == Some(self.current);
    }

    /// The current boot began at `began`. False if that was known.
    pub fn synchronised(&mut self, began: Timestamp) -> bool {
        let new = !self.is_synchronised();
        if new {
            self.began.insert(self.current, began);
            self.unsaved = true;
        }
        new
    }

    /// Whether it is known when the current boot began.
    pub fn is_synchronised(&self) -> bool {
        self.began.contains_key(&self.current)
    }

    /// Whether there is something that cannot wait.
    pub fn is_due(&self) -> bool {
        self.unsaved
    }

    /// What the next commit writes.
    pub fn update(&self) -> Option<BootUpdate> {
        let began = self.began.get(&self.current).copied().filter(|_| self.unsaved)?;
        Some(BootUpdate { boot: self.current, began, untimed: self.untimed })
    }

    /// A commit wrote what was new.
    pub fn saved(&mut self) {
        self.unsaved = false;
    }

    /// Gives the readings a time whose boot's beginning is known.
    pub fn give_times(&self, batches: &mut [SequencedBatch]) {
        give_times(&self.began, batches);
    }
}

/// Gives the readings a time whose boot's beginning is known.
pub(in crate::store) fn give_times(began: &Beginnings, batches: &mut [SequencedBatch]) {
    for numbered in batches {
        if let Some(boot) = numbered.batch.basis.boot()
            && let Some(began) = began.get(&boot)
        {
            let since = |uptime: Timestamp| Timestamp(uptime.0.saturating_add(began.0));
            let mut batch = (*numbered.batch).clone();
            batch.basis = match batch.basis {
                Basis::DeviceClockSince { received, .. } => Basis::DeviceClock { received: since(received) },
                _ => {
                    batch.readings.iter_mut().for_each(|reading| reading.time = since(reading.time));
                    Basis::Resynchronised
                }
            };
            numbered.batch = Arc::new(batch);
        }
    }
}

/// The smallest and largest time in these batches, of those that are known.
pub(in crate::store) fn range(mut batches: Vec<SequencedBatch>, began: &Beginnings) -> Option<(Timestamp, Timestamp)> {
    give_times(began, &mut batches);
    let times = |numbered: &SequencedBatch| match numbered.batch.basis {
        Basis::Boot(_) | Basis::DeviceClockSince { .. } => Vec::new(),
        Basis::DeviceClock { received } => vec![received],
        Basis::Wall | Basis::Resynchronised => numbered.batch.readings.iter().map(|reading| reading.time).collect(),
    };
    let times: Vec<Timestamp> = batches.iter().flat_map(times).collect();
    Some((*times.iter().min()?, *times.iter().max()?))
}

/// The smallest and largest time in a segment, of those that are known.
///
/// # Errors
/// If the database cannot be read.
pub(in crate::store) fn known_range(
    db: &Connection,
    header: &Header,
    began: &Beginnings,
) -> rusqlite::Result<Option<(Timestamp, Timestamp)>> {
    if header.has_known_times() {
        return Ok(Some((header.oldest, header.newest)));
    }
    let block = db
        .prepare_cached(&format!("SELECT {BLOCK_COLUMN} FROM segment WHERE first_seq = ?1"))?
        .query_row([header.first.0], |row| row.get::<_, Vec<u8>>(0))?;
    let mut all: Option<(Timestamp, Timestamp)> = None;
    let decoded = segment::decode_pieces(header, &block, Seq::ZERO, &mut |batches| {
        let more = range(batches, began);
        all = match (all, more) {
            (Some(one), Some(other)) => Some((one.0.min(other.0), one.1.max(other.1))),
            (one, other) => one.or(other),
        };
        ControlFlow::Continue(())
    });
    Ok(all.filter(|_| decoded.is_ok()))
}

/// The rows that are what was written, and how many are not. A log of an earlier
/// version has none.
fn rows(db: &Connection) -> rusqlite::Result<(Vec<Boot>, u64)> {
    let there = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'boot'";
    if db.query_row(there, [], |_| Ok(())).optional()?.is_none() {
        return Ok((Vec::new(), 0));
    }
    let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM boot"))?;
    let mut found = statement.query([])?;
    let (mut sound, mut damaged) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        match boot(row) {
            Some(boot) => sound.push(boot),
            None => damaged += 1,
        }
    }
    Ok((sound, damaged))
}

const COLUMNS: &str = "id, began, last, guard";

/// The row, if it is what was written.
fn boot(row: &rusqlite::Row<'_>) -> Option<Boot> {
    let id = BootId(row.get_ref(0).ok()?.as_blob().ok()?.try_into().ok()?);
    let (began, last, guard): (Option<i64>, _, i64) = (row.get(1).ok()?, row.get(2).ok()?, row.get(3).ok()?);
    (guard == rows::boot_guard(id, began, last)).then_some(Boot { id, began: began.map(Timestamp), last })
}

fn find(db: &Connection, id: BootId) -> rusqlite::Result<Option<Boot>> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM boot WHERE id = ?1"))?;
    Ok(statement.query_row([id.0], |row| Ok(boot(row))).optional()?.flatten())
}

/// How many rows are not what was written.
pub(in crate::store) fn unproven(db: &Connection) -> rusqlite::Result<u64> {
    Ok(rows(db)?.1)
}

/// When boots began, as far as the log at hand knows.
pub(in crate::store) fn beginnings(db: &Connection) -> rusqlite::Result<Beginnings> {
    Ok(rows(db)?.0.into_iter().filter_map(|boot| Some((boot.id, boot.began?))).collect())
}

fn put(db: &Connection, boot: &Boot) -> rusqlite::Result<()> {
    let Boot { id, last, .. } = *boot;
    let began = boot.began.map(|began| began.0);
    db.prepare_cached("INSERT OR REPLACE INTO boot (id, began, last, guard) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![id.0, began, last, rows::boot_guard(id, began, last)])?;
    Ok(())
}

/// Reads the boots that segments may count from; forgets the others, and notes that a
/// run begins in the current one. While readings that count from former boots are still taken over from elsewhere (`salvaging`), it is
/// not known which are their last.
pub(in crate::store) fn load(
    db: &mut Connection,
    current: BootId,
    next: Seq,
    salvaging: bool,
) -> rusqlite::Result<BootTimes> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (before, damaged) = rows(&transaction)?;
    if damaged > 0 {
        tracing::error!(boots = damaged, "damaged notes on when the machine started are forgotten");
    }
    // What a former boot left was numbered before this start.
    let last = i64::try_from(next.prev().0).ok().filter(|_| !salvaging);
    let close = |boot: &Boot| match boot.id == current {
        true => *boot,
        false => Boot { last: boot.last.or(last), ..*boot },
    };
    let mut kept: Vec<Boot> = before.iter().map(close).collect();
    let first: Option<i64> = transaction.query_row("SELECT min(first_seq) FROM segment", [], |row| row.get(0))?;
    let first = first.unwrap_or(i64::MAX);
    kept.retain(|boot| boot.id == current || boot.last.is_none_or(|last| last >= first));
    kept.sort_by_key(|boot| (boot.id != current, std::cmp::Reverse(boot.last.unwrap_or(i64::MAX))));
    kept.truncate(MAX_BOOTS);
    for boot in before.iter().filter(|boot| !kept.iter().any(|kept| kept.id == boot.id)) {
        transaction.execute("DELETE FROM boot WHERE id = ?1", [boot.id.0])?;
    }
    if damaged > 0 {
        transaction.execute("DELETE FROM boot", [])?;
    }
    // An earlier run in this boot, whose row may be among the damaged ones.
    let untimed = damaged > 0 || kept.iter().any(|boot| boot.id == current);
    if kept.iter().all(|boot| boot.id != current) {
        kept.push(Boot { id: current, began: None, last: None });
    }
    for boot in kept.iter().filter(|boot| damaged > 0 || !before.contains(boot)) {
        put(&transaction, boot)?;
    }
    transaction.commit()?;
    let began = kept.iter().filter_map(|boot| Some((boot.id, boot.began?))).collect();
    Ok(BootTimes { current, began, untimed, unsaved: false })
}

/// Writes `news`; the body of the event that tells it upstream, if somebody may need it
/// and it was not told before.
pub(in crate::store) fn write(db: &Connection, update: BootUpdate) -> rusqlite::Result<Option<String>> {
    let BootUpdate { boot, began, untimed } = update;
    if find(db, boot)?.is_some_and(|boot| boot.began.is_some()) {
        return Ok(None);
    }
    put(db, &Boot { id: boot, began: Some(began), last: None })?;
    let body = serde_json::json!({"type": "clock", "boot": boot, "began": began.to_string()});
    Ok(untimed.then(|| body.to_string()))
}

/// Takes over what another log says about a boot.
pub(in crate::store) fn adopt(db: &Connection, id: BootId, began: Option<Timestamp>) -> rusqlite::Result<()> {
    let began = find(db, id)?.and_then(|boot| boot.began).or(began);
    put(db, &Boot { id, began, last: None })
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;
    use crate::config::Durability;

    const THIS: BootId = BootId([1; 16]);
    const NEXT: BootId = BootId([2; 16]);
    const BEGAN: Timestamp = Timestamp(1_795_395_723_000_000);

    fn database() -> (tempfile::TempDir, Connection) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let db = schema::open(&directory.path().join("log.db"), Durability::Full).expect("a new database");
        (directory, db)
    }

    fn load(db: &mut Connection, boot: BootId, next: u64) -> BootTimes {
        super::load(db, boot, Seq(next), false).expect("it reads")
    }

    fn segment(db: &Connection, first: u64) {
        let sql = "INSERT INTO segment (first_seq, count, oldest, newest, raw_length, checksum, size, block)
                   VALUES (?1, 1, 0, 0, 0, 0, 0, x'')";
        db.execute(sql, [first]).expect("a segment");
    }

    #[test]
    fn consumers_of_readings_without_a_time_are_told_when_their_boot_is_placed() {
        let (_directory, mut db) = database();
        let mut boots = load(&mut db, THIS, 1);
        assert_eq!((boots.update(), boots.is_due()), (None, false));
        boots.appended(Basis::Boot(NEXT));
        boots.appended(Basis::Boot(THIS));
        assert!(!boots.is_synchronised());
        assert!(boots.synchronised(BEGAN) && boots.is_due());
        assert!(!boots.synchronised(Timestamp(5)), "only once");
        let update = boots.update().expect("a beginning");
        let event = write(&db, update).expect("it writes").expect("consumers have untimed readings");
        assert!(event.contains(&THIS.to_string()) && event.contains("2026-11-23T01:02:03"), "{event}");
        boots.saved();
        assert_eq!(boots.update(), None);
        segment(&db, 1);
        let later = load(&mut db, NEXT, 3);
        assert_eq!(later.began.get(&THIS), Some(&BEGAN));
        assert!(!later.is_synchronised());
    }

    #[test]
    fn a_run_that_ended_before_the_clock_was_set_may_have_left_such_consumers() {
        let (_directory, mut db) = database();
        // It delivered readings from memory, and was killed before it wrote any.
        load(&mut db, THIS, 1).appended(Basis::Boot(THIS));
        let mut boots = load(&mut db, THIS, 1);
        boots.synchronised(BEGAN);
        assert!(write(&db, boots.update().expect("a beginning")).expect("it writes").is_some());
    }

    #[test]
    fn a_boot_that_had_the_time_from_the_start_makes_no_event() {
        let (_directory, mut db) = database();
        let mut boots = load(&mut db, THIS, 1);
        boots.appended(Basis::Boot(NEXT));
        assert!(boots.synchronised(BEGAN));
        assert_eq!(write(&db, boots.update().expect("a beginning")).expect("it writes"), None);
        assert!(load(&mut db, THIS, 1).is_synchronised(), "a restart in the same boot believes the clock");
    }

    #[test]
    fn boots_are_forgotten_with_the_last_segment_that_may_count_from_them() {
        let (_directory, mut db) = database();
        let mut boots = load(&mut db, THIS, 1);
        boots.synchronised(BEGAN);
        write(&db, boots.update().expect("a beginning")).expect("it writes");
        segment(&db, 9);
        assert!(load(&mut db, NEXT, 10).began.contains_key(&THIS));
        db.execute("DELETE FROM segment", []).expect("retention");
        segment(&db, 10);
        assert!(!load(&mut db, NEXT, 11).began.contains_key(&THIS));
        let left: Vec<_> = rows(&db).expect("it reads").0.iter().map(|boot| boot.id).collect();
        assert_eq!(left, [NEXT]);
        for boot in 0..MAX_BOOTS + 100 {
            let mut id = [9; 16];
            id[..8].copy_from_slice(&(boot as u64).to_be_bytes());
            let update = BootUpdate { boot: BootId(id), began: BEGAN, untimed: false };
            write(&db, update).expect("it writes");
        }
        load(&mut db, NEXT, 11);
        assert_eq!(rows(&db).expect("it reads").0.len(), MAX_BOOTS);
    }

    #[test]
    fn while_readings_are_taken_over_from_elsewhere_no_boot_is_over() {
        let (_directory, mut db) = database();
        adopt(&db, THIS, Some(BEGAN)).expect("it writes");
        adopt(&db, THIS, None).expect("it writes");
        segment(&db, 50);
        assert!(super::load(&mut db, NEXT, Seq(10), true).expect("it reads").began.contains_key(&THIS));
        // They were numbered up to 60 meanwhile.
        assert!(load(&mut db, NEXT, 61).began.contains_key(&THIS));
        db.execute("DELETE FROM segment", []).expect("retention");
        segment(&db, 60);
        assert!(load(&mut db, NEXT, 70).began.contains_key(&THIS));
        db.execute("DELETE FROM segment", []).expect("retention");
        assert!(!load(&mut db, NEXT, 70).began.contains_key(&THIS));
    }

    #[test]
    fn a_beginning_that_was_written_by_a_commit_thought_to_have_failed_is_told_once() {
        let (_directory, mut db) = database();
        let mut boots = load(&mut db, THIS, 1);
        boots.appended(Basis::Boot(THIS));
        boots.synchronised(BEGAN);
        let update = boots.update().expect("a beginning");
        assert!(write(&db, update).expect("it writes").is_some());
        assert_eq!(boots.update(), Some(update), "nobody said that it was saved");
        assert_eq!(write(&db, update).expect("it writes"), None);
    }

    #[test]
    fn a_damaged_row_is_forgotten_and_its_boot_placed_anew() {
        let (_directory, mut db) = database();
        let mut boots = load(&mut db, THIS, 1);
        boots.appended(Basis::Boot(THIS));
        boots.synchronised(BEGAN);
        write(&db, boots.update().expect("a beginning")).expect("it writes");
        adopt(&db, NEXT, Some(BEGAN)).expect("it writes");
        db.execute("UPDATE boot SET began = began + 1 WHERE id = ?1", [THIS.0]).expect("damage");
        assert_eq!(unproven(&db).expect("it reads"), 1);
        assert_eq!(beginnings(&db).expect("it reads"), [(NEXT, BEGAN)].into());
        segment(&db, 1);
        let mut boots = load(&mut db, THIS, 2);
        assert_eq!(unproven(&db).expect("it reads"), 0);
        assert!(!boots.is_synchronised() && boots.synchronised(BEGAN));
        assert!(write(&db, boots.update().expect("a beginning")).expect("it writes").is_some(), "consumers may wait");
    }
}
