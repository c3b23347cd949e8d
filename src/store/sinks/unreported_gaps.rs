//! What sinks have missed and were not told yet: state of the log, not events.
//!
//! Each sink has its own ranges, a bounded number of them: those that touch become one,
//! and where they are too many, those that are nearest to each other. While nobody
//! listens at a sink its ranges only grow. Once somebody does, and has confirmed what it
//! was told before, all of them become events for that sink alone, in the transaction
//! that takes them out of this state. So neither months without a sink nor months with
//! one that comes and goes make the log larger, and each reading is told of once.

use crate::model::{Seq, Timestamp};
use crate::store::disk::rows;
use crate::store::disk::schema;
use crate::store::retention::gap::Gap;
use anyhow::{Result, ensure};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};
use std::sync::Arc;

/// Ranges that a sink has at most.
const MOST: usize = 64;
/// The entry of `meta` that counts the commits that changed what sinks have missed.
const ROUND: &str = "missed";

/// What ranges are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum GapUnit {
    /// Seqs of readings that this sink had not confirmed.
    Readings,
    /// Seqs that no reading has.
    Seqs,
    /// Ids of events.
    Events,
}

impl GapUnit {
    const ALL: [(GapUnit, &'static str); 3] =
        [(GapUnit::Readings, "readings"), (GapUnit::Seqs, "seqs"), (GapUnit::Events, "events")];

    fn name(self) -> &'static str {
        GapUnit::ALL.iter().find(|(what, _)| *what == self).map_or("", |(_, name)| name)
    }
}

/// A range of what one sink has missed, for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct UnreportedGap {
    pub what: GapUnit,
    /// Of events: their kind.
    pub reason: String,
    pub first: u64,
    pub last: u64,
    /// Missed between the two, both included.
    pub count: u64,
    /// When the first of them was missed.
    pub since: Timestamp,
    /// Its row, if it has one.
    row: Option<i64>,
}

/// Stands in a reason for commits that were not synced one by one.
const UNSYNCED: &str = "/normal";

impl UnreportedGap {
    pub fn new(what: GapUnit, reason: &str, (first, last): (u64, u64), count: u64, since: Timestamp) -> UnreportedGap {
        UnreportedGap { what, reason: reason.to_owned(), first, last, count, since, row: None }
    }

    /// From what a row has: `first`, `last`, `count` and `since`.
    pub fn stored(what: &str, reason: &str, numbers: [i64; 4]) -> Option<UnreportedGap> {
        let what = GapUnit::ALL.iter().find(|(_, known)| *known == what).map(|(what, _)| *what)?;
        let [first, last, count, since] = numbers;
        let unsigned = |number: i64| u64::try_from(number).ok();
        let range = (unsigned(first)?, unsigned(last)?);
        Some(UnreportedGap::new(what, reason, range, unsigned(count)?, Timestamp(since)))
    }

    /// What an event of the type `gap` says to the sink `name`; `None` if that is nothing.
    pub fn of_event(body: &serde_json::Map<String, Value>, name: &str, since: Timestamp) -> Option<UnreportedGap> {
        let number = |key: &str| body.get(key).and_then(Value::as_u64);
        let (first, last) = (number("first")?, number("last")?);
        let reason = body.get("reason")?.as_str()?;
        if first > last {
            return None;
        }
        let Some(undelivered) = body.get("undelivered") else {
            let unsynced = if body.contains_key("durability") { UNSYNCED } else { "" };
            let seqs = last - first + 1;
            return Some(UnreportedGap::new(GapUnit::Seqs, &format!("{reason}{unsynced}"), (first, last), seqs, since));
        };
        let count = undelivered.get(name)?.as_u64().filter(|count| *count > 0)?;
        Some(UnreportedGap::new(GapUnit::Readings, reason, (first, last), count, since))
    }

    /// The event that tells the sink `name` of it.
    pub fn body(&self, name: &str) -> String {
        let UnreportedGap { what, first, last, count, since, .. } = self;
        let (reason, unsynced) = self.reason.strip_suffix(UNSYNCED).map_or((&*self.reason, false), |bare| (bare, true));
        let mut body = match what {
            GapUnit::Readings | GapUnit::Seqs => json!({"type": "gap", "reason": reason, "first": first, "last": last}),
            GapUnit::Events => {
                json!({"type": "events_lost", "reason": "max_events", "of": reason, "first": first, "last": last})
            }
        };
        body["since"] = since.to_string().into();
        if unsynced {
            body["durability"] = "normal".into();
        }
        if *what != GapUnit::Seqs {
            body["count"] = (*count).into();
        }
        if *what == GapUnit::Readings {
            body["undelivered"] = json!({ name: count });
        }
        body.to_string()
    }

    fn is_like(&self, other: &UnreportedGap) -> bool {
        (self.what, &self.reason) == (other.what, &other.reason)
    }

    fn touches(&self, other: &UnreportedGap) -> bool {
        self.first <= other.last.saturating_add(1) && other.first <= self.last.saturating_add(1)
    }

    fn take_in(&mut self, other: UnreportedGap) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.count = self.count.saturating_add(other.count);
        self.since = self.since.min(other.since);
        self.row = self.row.or(other.row);
    }
}

/// Adds `new` to the ranges of a sink, of which there are `most` at most afterwards if
/// there are not more reasons than that.
fn gather(ranges: &mut Vec<UnreportedGap>, mut new: UnreportedGap, most: usize) {
    while let Some(at) = ranges.iter().position(|range| range.is_like(&new) && range.touches(&new)) {
        let before = ranges.swap_remove(at);
        new.take_in(before);
    }
    ranges.push(new);
    ranges.sort_by(|a, b| (a.what.name(), &a.reason, a.first).cmp(&(b.what.name(), &b.reason, b.first)));
    while ranges.len() > most {
        let neighbours = ranges.windows(2).enumerate().filter(|(_, pair)| pair[0].is_like(&pair[1]));
        let nearest = neighbours.min_by_key(|(_, pair)| pair[1].first.saturating_sub(pair[0].last));
        let Some(at) = nearest.map(|(at, _)| at) else { return };
        let next = ranges.remove(at + 1);
        ranges[at].take_in(next); // the first of the two
    }
}

/// Adds what the sink `name` has missed to what the database has of it.
pub(in crate::store) fn record(db: &Connection, name: &str, unreported: Vec<UnreportedGap>) -> Result<()> {
    let before = load(db, name)?;
    let mut ranges = before.clone();
    for new in unreported {
        gather(&mut ranges, new, MOST);
    }
    for gone in before.iter().filter(|old| !ranges.iter().any(|range| range.row == old.row)) {
        change(db, "DELETE FROM gap WHERE id = ?1", params![gone.row])?;
    }
    for range in ranges.iter().filter(|range| !before.contains(range)) {
        put(db, name, range)?;
    }
    Ok(())
}

/// Makes events for the sink `name` of all that it has missed. Returns the id of the last
/// one, if there is any.
pub(in crate::store) fn tell(db: &Connection, name: &str, now: Timestamp) -> Result<Option<u64>> {
    let mut last = None;
    for missed in load(db, name)? {
        last = Some(schema::insert_event_for(db, now, &missed.body(name), Some(name))?);
        change(db, "DELETE FROM gap WHERE id = ?1", params![missed.row])?;
    }
    Ok(last)
}

/// The sink `to` takes over what `from` has missed and is told, and loses what it had
/// itself.
pub(in crate::store) fn rename(db: &Connection, from: &str, to: &str) -> Result<()> {
    forget(db, to)?;
    let ranges = load(db, from)?;
    let told: Vec<(i64, i64, String)> = db
        .prepare("SELECT id, time, body FROM event WHERE sink = ?1")?
        .query_map([from], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (id, time, body) in told {
        let guard = rows::event_guard(id, time, &body, Some(to));
        change(db, "UPDATE event SET sink = ?2, guard = ?3 WHERE id = ?1", params![id, to, guard])?;
    }
    forget(db, from)?;
    for range in ranges {
        put(db, to, &UnreportedGap { row: None, ..range })?;
    }
    Ok(())
}

/// Forgets what the sink `name` has missed and is told.
pub(in crate::store) fn forget(db: &Connection, name: &str) -> rusqlite::Result<()> {
    db.execute("DELETE FROM gap WHERE sink = ?1", [name])?;
    db.execute("DELETE FROM event WHERE sink = ?1", [name]).map(drop)
}

/// What is to be told to one sink alone.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::store) struct Unreported {
    /// Somebody takes its events.
    pub listening: bool,
    /// It has missed something, and was not told.
    pub untold: bool,
    /// The last event that tells it alone of something; 0 if there is none.
    pub told: u64,
}

/// What the database has for the sink `name`.
pub(in crate::store) fn unreported(db: &Connection, name: &str) -> rusqlite::Result<Unreported> {
    let ask = |sql: &str| db.query_row(sql, [name], |row| row.get::<_, u64>(0));
    Ok(Unreported {
        listening: false,
        untold: ask("SELECT count(*) FROM gap WHERE sink = ?1")? > 0,
        told: ask("SELECT coalesce(max(id), 0) FROM event WHERE sink = ?1")?,
    })
}

/// Notes that a commit changed what sinks have missed, and says which one it is: so a
/// commit that seemed to fail is known again.
pub(in crate::store) fn next_round(db: &Connection) -> rusqlite::Result<u64> {
    let round = round(db)? + 1;
    schema::set_meta(db, ROUND, round)?;
    Ok(round)
}

/// The last such commit.
pub(in crate::store) fn round(db: &Connection) -> rusqlite::Result<u64> {
    let mut statement = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([ROUND], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// The rows that are not what was written.
pub(in crate::store) fn unproven(db: &Connection) -> rusqlite::Result<Vec<i64>> {
    let mut statement = db.prepare("SELECT id, what, reason, first, last, count, since, guard, sink FROM gap")?;
    let mut rows = statement.query([])?;
    let mut damaged = Vec::new();
    while let Some(row) = rows.next()? {
        let name: rusqlite::Result<String> = row.get(8);
        if name.ok().and_then(|name| read(row, &name)).is_none() {
            damaged.push(row.get(0)?);
        }
    }
    Ok(damaged)
}

/// Takes out the rows that are not what was written, and says so by an event.
pub(in crate::store) fn scrub(db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    let damaged = unproven(db)?;
    if damaged.is_empty() {
        return Ok(());
    }
    let count = damaged.len();
    tracing::error!(gaps = count, "damaged notes of what sinks have missed were taken out of the log");
    for row in damaged {
        db.execute("DELETE FROM gap WHERE id = ?1", [row])?;
    }
    let body = json!({"type": "events_lost", "reason": "corrupt", "of": "gap", "count": count});
    schema::insert_event(db, now, &body.to_string()).map(drop)
}

/// Leaves out rows that are not what was written: what they said is not known.
fn load(db: &Connection, name: &str) -> Result<Vec<UnreportedGap>> {
    let mut statement = db.prepare_cached(
        "SELECT id, what, reason, first, last, count, since, guard FROM gap WHERE sink = ?1 ORDER BY first, id",
    )?;
    let mut rows = statement.query([name])?;
    let mut ranges = Vec::new();
    while let Some(row) = rows.next()? {
        ranges.extend(read(row, name));
    }
    Ok(ranges)
}

fn read(row: &rusqlite::Row<'_>, name: &str) -> Option<UnreportedGap> {
    let text = |column: usize| row.get::<_, String>(column).ok();
    let number = |column: usize| row.get::<_, i64>(column).ok();
    let (what, reason) = (text(1)?, text(2)?);
    let numbers = [number(3)?, number(4)?, number(5)?, number(6)?];
    (number(7)? == rows::gap_guard([name, &what, &reason], numbers)).then_some(())?;
    Some(UnreportedGap { row: Some(row.get(0).ok()?), ..UnreportedGap::stored(&what, &reason, numbers)? })
}

fn put(db: &Connection, name: &str, range: &UnreportedGap) -> Result<()> {
    let [first, last, count] = [range.first, range.last, range.count].map(rows::signed);
    let since = range.since.0;
    let numbers = [first, last, count, since];
    let (what, reason) = (range.what.name(), range.reason.as_str());
    let guard = rows::gap_guard([name, what, reason], numbers);
    let sql = match range.row {
        Some(_) => {
            "UPDATE gap SET sink = ?2, what = ?3, reason = ?4, first = ?5, last = ?6, count = ?7, since = ?8, guard = ?9
             WHERE id = ?1"
        }
        None => {
            "INSERT INTO gap (id, sink, what, reason, first, last, count, since, guard)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
        }
    };
    change(db, sql, params![range.row, name, what, reason, first, last, count, since, guard])
}

/// A change of one row: of none is an error, what it should say would be lost.
fn change(db: &Connection, sql: &str, parameters: impl rusqlite::Params) -> Result<()> {
    let changed = db.prepare_cached(sql)?.execute(parameters)?;
    ensure!(changed == 1, "what a sink has missed was to be written to 1 row, and met {changed}");
    Ok(())
}

/// What a gap means to each sink that misses something and is known: one that had
/// confirmed a part of it misses what stands behind that. `confirmed` tells of each how
/// far it had come, and of no other.
pub(in crate::store) fn of_gap(
    gap: &Gap,
    now: Timestamp,
    confirmed: impl Fn(&str) -> Option<Seq>,
) -> impl Iterator<Item = (Arc<str>, UnreportedGap)> {
    gap.undelivered.iter().filter(|(_, count)| *count > 0).filter_map(move |(name, count)| {
        let first = gap.first.max(confirmed(name)?.next()).min(gap.last);
        Some((name.clone(), UnreportedGap::new(GapUnit::Readings, gap.reason, (first.0, gap.last.0), *count, now)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durability;
    use proptest::prelude::*;

    fn missed(what: GapUnit, reason: &str, first: u64, last: u64) -> UnreportedGap {
        UnreportedGap::new(what, reason, (first, last), last - first + 1, Timestamp(0))
    }

    fn ranges(missed: &[UnreportedGap]) -> Vec<(u64, u64, u64)> {
        missed.iter().map(|range| (range.first, range.last, range.count)).collect()
    }

    fn database() -> (tempfile::TempDir, Connection) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let db = schema::open(&directory.path().join(schema::FILE_NAME), Durability::Full).expect("a new database");
        (directory, db)
    }

    #[test]
    fn ranges_that_touch_become_one_and_of_too_many_the_nearest() {
        let mut all = Vec::new();
        for (first, last) in [(1, 10), (11, 20), (31, 40), (21, 25), (100, 100)] {
            gather(&mut all, missed(GapUnit::Readings, "max_size", first, last), 3);
        }
        assert_eq!(ranges(&all), [(1, 25, 25), (31, 40, 10), (100, 100, 1)]);
        gather(&mut all, missed(GapUnit::Readings, "max_age", 26, 26), 3);
        assert_eq!(ranges(&all), [(26, 26, 1), (1, 40, 35), (100, 100, 1)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn however_many_ranges_come_few_are_kept_and_nothing_is_lost_of_them(
            lengths in proptest::collection::vec((1u64..20, 1u64..20, 0usize..3), 1..300)
        ) {
            const REASONS: [&str; 3] = ["max_size", "thinned", "purged"];
            let (mut all, mut next, mut total) = (Vec::new(), 1, 0);
            for (skip, length, reason) in lengths {
                let first = next + skip;
                gather(&mut all, missed(GapUnit::Readings, REASONS[reason], first, first + length - 1), 8);
                (next, total) = (first + length, total + length);
                prop_assert!(all.len() <= 8);
            }
            prop_assert_eq!(all.iter().map(|range| range.count).sum::<u64>(), total);
            prop_assert!(all.iter().all(|range| range.count <= range.last - range.first + 1));
        }
    }

    #[test]
    fn what_a_sink_missed_is_told_once_to_it_alone() {
        let (_directory, db) = database();
        record(&db, "cloud", vec![missed(GapUnit::Readings, "max_size", 1, 10)]).expect("it is written");
        record(&db, "cloud", vec![missed(GapUnit::Readings, "max_size", 11, 20)]).expect("it is written");
        record(&db, "other", vec![missed(GapUnit::Seqs, "restart/normal", 5, 9)]).expect("it is written");
        let id = tell(&db, "cloud", Timestamp(0)).expect("it is told").expect("there is something");
        assert_eq!(tell(&db, "cloud", Timestamp(0)).expect("it works"), None);
        let (body, sink): (String, String) = db
            .query_row("SELECT body, sink FROM event WHERE id = ?1", [id], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("an event");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((sink.as_str(), &body["undelivered"]), ("cloud", &json!({"cloud": 20})));
        assert_eq!((&body["first"], &body["last"], &body["count"]), (&1.into(), &20.into(), &20.into()));
        let rest = load(&db, "other").expect("it reads");
        assert_eq!(ranges(&rest), [(5, 9, 5)]);
        let body: Value = serde_json::from_str(&rest[0].body("other")).expect("JSON");
        assert_eq!((&body["reason"], &body["durability"]), (&"restart".into(), &"normal".into()));
    }

    #[test]
    fn a_range_that_is_no_longer_there_to_be_made_longer_is_an_error() {
        let (_directory, db) = database();
        let gone = UnreportedGap { row: Some(7), ..missed(GapUnit::Readings, "max_size", 1, 10) };
        put(&db, "cloud", &gone).expect_err("nothing is there");
    }

    #[test]
    fn a_gap_that_was_told_to_all_says_to_each_what_it_said_before() {
        let body = |text: &str| serde_json::from_str(text).expect("an object");
        let of = |text: &str, name: &str| UnreportedGap::of_event(&body(text), name, Timestamp(0));
        let restart = r#"{"type":"gap","reason":"restart","first":3,"last":9,"durability":"normal"}"#;
        assert_eq!(of(restart, "cloud"), Some(missed(GapUnit::Seqs, "restart/normal", 3, 9)));
        let old = r#"{"type":"gap","reason":"max_size","first":3,"last":9,"count":7,"undelivered":{"cloud":7,"b":0}}"#;
        assert_eq!(of(old, "cloud"), Some(missed(GapUnit::Readings, "max_size", 3, 9)));
        assert_eq!((of(old, "b"), of(old, "c")), (None, None));
    }
}
