//! What the log knows to be missing: the seqs between its first and its last reading that
//! no segment has, because retention or a purge took them, a restart passed over them, or
//! they were never to be written.
//!
//! Each transaction that takes readings away says so here, so that a start need not look
//! at every segment to know what waits for whom, and so that a hole which nothing explains
//! is seen for what it is: readings that were lost. A log of an earlier version is looked
//! through once, and what is missing then counts as explained.

use super::gap::Hole;
use crate::model::Seq;
use crate::store::disk::damage::Damage;
use crate::store::disk::rows::{self, HEADER_COLUMNS, INFO_COLUMNS};
use crate::store::disk::schema::set_meta;
use crate::store::segment::Header;
use rusqlite::{Connection, params};

/// The entry of `meta` that says that the table tells of every hole.
pub(in crate::store) const COMPLETE: &str = "holes";
/// Stretches kept; beyond, those that have the fewest readings between them become one.
const MAX_ROWS: usize = 4096;

/// Pages of a log that takes long to look through, which is told.
const MANY_PAGES: u64 = 64 << 10;
/// Segments that are asked for the time of the newest.
const LOOK_AT: u32 = 64;

/// Every known hole. The stretches are in order and none overlaps another; each is written
/// as a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::store) struct Holes {
    stretches: Vec<Hole>,
    /// Every seq up to here is in a segment or in a hole.
    end: Seq,
}

impl Holes {
    /// What the table tells, and how many of its rows are not what was written. A log of
    /// an earlier version has none.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn load(db: &Connection) -> rusqlite::Result<(Holes, u64)> {
        let (mut holes, mut damaged) = (Holes::default(), 0);
        if db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'hole'", [], |row| row.get::<_, u64>(0))? == 0
        {
            return Ok((holes, 0));
        }
        let mut statement = db.prepare("SELECT first, last, missing, guard FROM hole ORDER BY first")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            match stretch(row) {
                Some(hole) => holes.put(hole),
                None => damaged += 1,
            }
        }
        holes.end = holes.stretches.last().map_or(Seq::ZERO, |hole| hole.last);
        Ok((holes, damaged))
    }

    /// The holes that the log knows: if its table is not `complete`, what the heads of all
    /// segments tell, which is written there.
    ///
    /// # Errors
    /// If the database cannot be read or written, or has a segment where none can be.
    pub fn of(db: &Connection, complete: bool) -> Result<Holes, Damage> {
        if complete {
            let (known, damaged) = Holes::load(db)?;
            if damaged > 0 {
                tracing::error!(
                    rows = damaged,
                    "what the log knows to be missing is damaged: it is told again as lost"
                );
                known.write_all(db)?;
            }
            return Ok(known);
        }
        if db.query_row("PRAGMA page_count", [], |row| row.get::<_, u64>(0))? > MANY_PAGES {
            tracing::warn!("the log is of an earlier version: its segments are listed once, which may take minutes");
        }
        let mut known = Holes::default();
        known.follow_all(db)?;
        known.write_all(db)?;
        Ok(known)
    }

    /// Takes in every segment behind the end.
    ///
    /// # Errors
    /// If the database cannot be read, or has a segment where none can be.
    pub fn follow_all(&mut self, db: &Connection) -> Result<(), Damage> {
        let sql = format!("SELECT {HEADER_COLUMNS} FROM segment WHERE first_seq > ?1 ORDER BY first_seq");
        let mut statement = db.prepare(&sql)?;
        let mut rows = statement.query([signed(self.end)])?;
        let mut before = self.end;
        while let Some(row) = rows.next()? {
            let end = self.end;
            let header = rows::header_of(row)
                .ok_or_else(|| Damage::Damaged(format!("the segment after seq {end} has no header")))?;
            let first = header.first;
            if first <= before {
                return Err(Damage::Damaged(format!("the segment of seq {first} stands behind that of {before}")));
            }
            before = first;
            self.follow(&header);
        }
        Ok(())
    }

    /// Brings the table from what `before` has to what these are.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn write(&self, before: &Holes, db: &Connection) -> rusqlite::Result<()> {
        let held = |holes: &Holes, hole: &Hole| {
            holes
                .stretches
                .binary_search_by_key(&hole.first, |other| other.first)
                .map(|at| holes.stretches.get(at) == Some(hole))
        };
        for gone in before.stretches.iter().filter(|hole| held(self, hole).is_err()) {
            db.prepare_cached("DELETE FROM hole WHERE first = ?1")?.execute([signed(gone.first)])?;
        }
        for hole in self.stretches.iter().filter(|hole| held(before, hole) != Ok(true)) {
            put_row(db, hole)?;
        }
        Ok(())
    }

    /// Writes the table anew, and that it tells of every hole.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn write_all(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute("DELETE FROM hole", [])?;
        self.write(&Holes::default(), db)?;
        set_meta(db, COMPLETE, 1)
    }

    /// These once readings went and segments came, if that is more than before.
    pub fn after(&self, gone: &[Hole], came: &[Header]) -> Option<Holes> {
        let skipped = came.first().is_some_and(|header| header.first > self.end.next());
        (skipped || !gone.is_empty()).then(|| {
            let mut holes = self.clone();
            holes.add(gone);
            came.iter().for_each(|header| holes.follow(header));
            holes
        })
    }

    /// A segment stands behind all others: what is between was never to be written.
    pub fn follow(&mut self, header: &Header) {
        self.skip_to(header.first.prev());
        if let Some(hole) = Hole::inside(header) {
            self.put(hole);
        }
        self.reach(header.last());
    }

    /// No segment has the seqs behind the end up to `last`.
    pub fn skip_to(&mut self, last: Seq) {
        if last > self.end {
            self.put(Hole::whole(self.end.next(), last));
            self.end = last;
        }
    }

    /// Every seq up to `end` is in a segment where no hole is known.
    pub fn reach(&mut self, end: Seq) {
        self.end = self.end.max(end);
    }

    /// Readings were taken out; what they claim of seqs behind the end is damage.
    pub fn add(&mut self, more: &[Hole]) {
        for hole in more {
            let last = hole.last.min(self.end);
            if hole.first <= last {
                let length = last.0 - hole.first.prev().0;
                self.put(Hole { last, missing: hole.missing.min(length), ..*hole });
            }
        }
    }

    /// Every seq up to here is in a segment or in a hole.
    pub fn end(&self) -> Seq {
        self.end
    }

    /// Those that end behind `after`.
    pub fn behind(&self, after: Seq) -> impl Iterator<Item = Hole> + '_ {
        self.stretches.iter().filter(move |hole| hole.last > after).copied()
    }

    fn put(&mut self, mut hole: Hole) {
        let from = |holes: &[Hole], first: Seq| holes.partition_point(|held| held.last.next() < first);
        let mut at = from(&self.stretches, hole.first);
        while let Some(held) = self.stretches.get(at).filter(|held| held.first <= hole.last.next()).copied() {
            let apart = held.last < hole.first || hole.last < held.first;
            if !apart || (held.is_whole() && hole.is_whole()) {
                self.stretches.remove(at);
                hole = joined(&held, &hole);
                at = from(&self.stretches, hole.first);
            } else if held.last < hole.first {
                at += 1;
            } else {
                break;
            }
        }
        self.stretches.insert(at, hole);
        self.bound();
    }

    fn bound(&mut self) {
        while self.stretches.len() > MAX_ROWS {
            let between = |at: &usize| match self.stretches.get(*at..*at + 2) {
                Some([one, next]) => next.first.0.saturating_sub(one.last.0),
                _ => u64::MAX,
            };
            let Some(at) = (0..self.stretches.len() - 1).min_by_key(between) else { return };
            let next = self.stretches.remove(at + 1);
            if let Some(one) = self.stretches.get_mut(at) {
                *one = joined(one, &next);
            }
        }
    }
}

fn joined(one: &Hole, other: &Hole) -> Hole {
    let (first, last) = (one.first.min(other.first), one.last.max(other.last));
    Hole { first, last, missing: one.missing.saturating_add(other.missing).min(last.0 - first.prev().0) }
}

fn signed(seq: Seq) -> i64 {
    rows::signed(seq.0)
}

fn put_row(db: &Connection, hole: &Hole) -> rusqlite::Result<()> {
    let fields = [signed(hole.first), signed(hole.last), rows::signed(hole.missing)];
    let [first, last, missing] = fields;
    db.prepare_cached("INSERT OR REPLACE INTO hole (first, last, missing, guard) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![first, last, missing, rows::hole_guard(fields)])?;
    Ok(())
}

/// The stretch of a row with the columns first, last, missing and guard, if it is what was
/// written.
fn stretch(row: &rusqlite::Row<'_>) -> Option<Hole> {
    let fields: [i64; 3] = [row.get(0).ok()?, row.get(1).ok()?, row.get(2).ok()?];
    known(fields, row.get(3).ok()?)
}

/// The stretch of these fields of a row, if their guard holds.
pub(in crate::store) fn known(fields: [i64; 3], guard: i64) -> Option<Hole> {
    (guard == rows::hole_guard(fields)).then_some(())?;
    let [first, last, missing] = fields.map(i64::unsigned_abs);
    (0 < first && first <= last).then_some(Hole { first: Seq(first), last: Seq(last), missing })
}

/// The seqs between `first` and `last`, of which no segment has any, that nothing explains:
/// readings that were lost. To be asked in the transaction that found none there.
///
/// # Errors
/// If the database cannot be read.
pub(in crate::store) fn unexplained(db: &Connection, first: Seq, last: Seq) -> rusqlite::Result<Vec<(Seq, Seq)>> {
    let mut statement = db.prepare_cached(
        "SELECT first, last, missing, guard FROM hole
         WHERE first >= coalesce((SELECT max(first) FROM hole WHERE first <= ?1), ?1) AND first <= ?2 ORDER BY first",
    )?;
    let mut rows = statement.query(params![signed(first), signed(last)])?;
    let (mut lost, mut next) = (Vec::new(), first);
    while let Some(row) = rows.next()? {
        let Some(hole) = stretch(row).filter(|hole| hole.last >= next) else { continue };
        if hole.first > next {
            lost.push((next, hole.first.prev().min(last)));
        }
        next = hole.last.next();
    }
    if next <= last {
        lost.push((next, last));
    }
    Ok(lost)
}

/// The last seq that a reading has, and when the newest segment was written by the log's
/// clock, as the newest one that still knows says.
///
/// # Errors
/// If the database cannot be read, or its newest segment cannot be one.
pub(in crate::store) fn newest(db: &Connection) -> Result<(u64, u64), Damage> {
    let mut statement = db.prepare(&format!(
        "SELECT {HEADER_COLUMNS}, {INFO_COLUMNS} FROM segment ORDER BY first_seq DESC LIMIT {LOOK_AT}"
    ))?;
    let mut rows = statement.query([])?;
    let mut end = None;
    while let Some(row) = rows.next()? {
        let found = rows::header_of(row).map(|header| header.last().0);
        end = end.or(found);
        let end = end.ok_or_else(|| Damage::Damaged("the newest segment has no header".into()))?;
        if let Some(info) = rows::info(row, rows::BLOCK) {
            return Ok((end, info.committed));
        }
    }
    Ok((end.unwrap_or(0), 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durability;
    use crate::store::disk::schema;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn some(first: u64, last: u64, missing: u64) -> Hole {
        Hole { first: Seq(first), last: Seq(last), missing }
    }

    fn with(end: u64, more: &[Hole]) -> Holes {
        let mut holes = Holes { end: Seq(end), ..Holes::default() };
        holes.add(more);
        holes
    }

    #[test]
    fn neighbours_without_any_reading_become_one_and_others_keep_their_places() {
        let holes = with(100, &[some(1, 10, 10), some(11, 20, 10), some(31, 40, 4), some(41, 50, 10)]);
        assert_eq!(holes.stretches, [some(1, 20, 20), some(31, 40, 4), some(41, 50, 10)]);
        // The rest of a stretch goes: all of it is missing then.
        let mut holes = holes;
        holes.add(&[some(32, 39, 6)]);
        assert_eq!(holes.stretches, [some(1, 20, 20), some(31, 50, 20)]);
    }

    #[test]
    fn a_claim_of_seqs_that_were_never_given_out_is_cut() {
        assert_eq!(with(15, &[some(11, 1 << 40, 900), some(16, 20, 5)]).stretches, [some(11, 15, 5)]);
    }

    #[test]
    fn stretches_stay_few_and_those_that_are_near_each_other_become_one() {
        let far = |n: u64| some(n * 1000, n * 1000 + 1, 2);
        let all: Vec<Hole> = (1..=MAX_ROWS as u64).map(far).chain([some(5010, 5011, 2)]).collect();
        let holes = with(u64::MAX >> 2, &all);
        assert_eq!(holes.stretches.len(), MAX_ROWS);
        assert!(holes.stretches.contains(&some(5000, 5011, 4)));
    }

    #[test]
    fn a_row_that_is_not_what_was_written_explains_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let db = schema::open(&directory.path().join("log.db"), Durability::Full).expect("a new database");
        let holes = with(100, &[some(1, 10, 10), some(31, 40, 4)]);
        holes.write_all(&db).expect("it writes");
        let lost = |first, last| unexplained(&db, Seq(first), Seq(last)).expect("it reads");
        assert_eq!(lost(1, 10), []);
        assert_eq!(lost(5, 35), [(Seq(11), Seq(30))]);
        assert_eq!(lost(35, 60), [(Seq(41), Seq(60))]);
        db.execute("UPDATE hole SET last = last | 64 WHERE first = 31", []).expect("a row");
        assert_eq!(lost(35, 60), [(Seq(35), Seq(60))]);
        let (read, damaged) = Holes::load(&db).expect("it reads");
        assert_eq!((read.stretches, damaged), (vec![some(1, 10, 10)], 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_table_has_exactly_the_seqs_that_went(
            steps in proptest::collection::vec(proptest::collection::vec((1u64..60, 0u64..6), 0..4), 0..6)
        ) {
            let db = Connection::open_in_memory().expect("a database");
            db.execute_batch("CREATE TABLE hole (first INTEGER PRIMARY KEY, last, missing, guard)").expect("a table");
            let (mut holes, mut gone) = (with(100, &[]), BTreeSet::new());
            for step in steps {
                let before = holes.clone();
                for (first, length) in step {
                    holes.add(&[Hole::whole(Seq(first), Seq(first + length))]);
                    gone.extend(first..=first + length);
                }
                holes.write(&before, &db).expect("it writes");
            }
            prop_assert_eq!(&Holes::load(&db).expect("it reads").0.stretches, &holes.stretches);
            let lost = unexplained(&db, Seq(1), Seq(70)).expect("it reads");
            let lost: BTreeSet<u64> = lost.into_iter().flat_map(|(first, last)| first.0..=last.0).collect();
            prop_assert_eq!(lost, (1..=70).filter(|seq| !gone.contains(seq)).collect::<BTreeSet<_>>());
        }
    }
}
