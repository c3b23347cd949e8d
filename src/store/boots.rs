//! When the machine's boots began: what turns times that count from a boot into real
//! ones.
//!
//! Readings that arrive before the gateway's clock can be believed are stored with the
//! boot that their times count from. Once the clock is believed the log notes when that
//! boot began, and from then on gives such readings their time as they are read, also
//! after a restart; segments stay as they are. Readings of a boot whose beginning never
//! became known keep their order and nothing else.

use crate::model::{Basis, BootId, Numbered, Reading, Seq, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::sync::Arc;

/// Boots remembered at most, whatever else is in the log.
const MAX_BOOTS: u32 = 1000;

/// The boots that readings in the log may count from.
pub(super) struct Boots {
    current: BootId,
    began: HashMap<BootId, Timestamp>,
    /// There are readings that count from the current boot.
    untimed: bool,
    /// The current boot stands on disk.
    noted: bool,
    /// When it began does not.
    unsaved: bool,
}

/// What a commit writes about the current boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct News {
    boot: BootId,
    began: Option<Timestamp>,
    /// Consumers may have readings that only this gives a time.
    untimed: bool,
}

impl Boots {
    /// Readings of this basis were taken over.
    pub fn appended(&mut self, basis: Basis) {
        self.untimed |= matches!(basis, Basis::Boot(_));
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
    pub fn news(&self) -> Option<News> {
        let wanted = self.unsaved || (self.untimed && !self.noted);
        let began = self.began.get(&self.current).copied();
        wanted.then_some(News { boot: self.current, began, untimed: self.untimed })
    }

    /// A commit wrote `news`.
    pub fn saved(&mut self, news: News) {
        self.noted = true;
        self.unsaved &= news.began.is_none();
    }

    /// Gives the readings a time whose boot's beginning is known.
    pub fn give_times(&self, batches: &mut [Numbered]) {
        for numbered in batches {
            if let Basis::Boot(boot) = numbered.batch.basis
                && let Some(began) = self.began.get(&boot)
            {
                let mut batch = (*numbered.batch).clone();
                batch.basis = Basis::Resynchronised;
                batch.readings.iter_mut().for_each(|reading| shift(reading, *began));
                numbered.batch = Arc::new(batch);
            }
        }
    }
}

fn shift(reading: &mut Reading, began: Timestamp) {
    reading.time = Timestamp(reading.time.0.saturating_add(began.0));
}

/// Reads the boots that segments may count from; forgets the others.
pub(super) fn load(db: &Connection, current: BootId, next: Seq) -> rusqlite::Result<Boots> {
    // What a former boot left was numbered before this start.
    db.execute("UPDATE boot SET last = ?2 WHERE last IS NULL AND id <> ?1", params![current.0, next.prev().0])?;
    db.execute(
        "DELETE FROM boot WHERE id <> ?1 AND (last < (SELECT coalesce(min(first_seq), ?2) FROM segment)
         OR id NOT IN (SELECT id FROM boot WHERE id <> ?1 ORDER BY last DESC LIMIT ?3))",
        params![current.0, next.0, MAX_BOOTS],
    )?;
    let mut statement = db.prepare("SELECT id, began FROM boot WHERE began IS NOT NULL")?;
    let rows = statement.query_map([], |row| Ok((BootId(row.get(0)?), Timestamp(row.get(1)?))))?;
    let began: HashMap<BootId, Timestamp> = rows.collect::<Result<_, _>>()?;
    let untimed: Option<bool> =
        db.query_row("SELECT untimed FROM boot WHERE id = ?1", [current.0], |row| row.get(0)).optional()?;
    Ok(Boots { current, began, untimed: untimed.unwrap_or(false), noted: untimed.is_some(), unsaved: false })
}

/// Writes `news`; the body of the event that tells it upstream, if somebody may need it.
pub(super) fn write(db: &Connection, news: News) -> rusqlite::Result<Option<String>> {
    db.prepare_cached(
        "INSERT INTO boot (id, began, untimed) VALUES (?1, ?2, ?3)
         ON CONFLICT (id) DO UPDATE SET began = coalesce(began, excluded.began), untimed = max(untimed, excluded.untimed)",
    )?
    .execute(params![news.boot.0, news.began.map(|began| began.0), news.untimed])?;
    let Some(began) = news.began.filter(|_| news.untimed) else { return Ok(None) };
    let body = serde_json::json!({"type": "clock", "boot": news.boot, "began": began.to_string()});
    Ok(Some(body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durability;
    use crate::store::schema;

    const THIS: BootId = BootId([1; 16]);
    const NEXT: BootId = BootId([2; 16]);
    const BEGAN: Timestamp = Timestamp(1_795_395_723_000_000);

    fn database() -> (tempfile::TempDir, Connection) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let db = schema::open(&directory.path().join("log.db"), Durability::Full).expect("a new database");
        (directory, db)
    }

    fn load(db: &Connection, boot: BootId, next: u64) -> Boots {
        super::load(db, boot, Seq(next)).expect("it reads")
    }

    fn segment(db: &Connection, first: u64) {
        db.execute("INSERT INTO segment VALUES (?1, 1, 0, 0, 0, 0, 0, x'')", [first]).expect("a segment");
    }

    #[test]
    fn a_boot_is_noted_with_its_first_readings_and_told_when_it_is_placed() {
        let (_directory, db) = database();
        let mut boots = load(&db, THIS, 1);
        boots.appended(Basis::Wall);
        assert_eq!(boots.news(), None, "nothing to place");
        boots.appended(Basis::Boot(THIS));
        let news = boots.news().expect("untimed readings");
        assert_eq!(write(&db, news).expect("it writes"), None);
        boots.saved(news);
        assert_eq!((boots.news(), boots.is_due()), (None, false));

        // The process starts again in the same boot, and the clock is set.
        segment(&db, 1);
        let mut boots = load(&db, THIS, 2);
        assert!(!boots.is_synchronised());
        assert!(boots.synchronised(BEGAN) && boots.is_due());
        assert!(!boots.synchronised(Timestamp(5)), "only once");
        let news = boots.news().expect("a beginning");
        let event = write(&db, news).expect("it writes").expect("consumers have untimed readings");
        assert!(event.contains(&THIS.to_string()) && event.contains("2026-11-23T01:02:03"), "{event}");
        boots.saved(news);
        assert_eq!(boots.news(), None);

        let later = load(&db, NEXT, 3);
        assert_eq!(later.began.get(&THIS), Some(&BEGAN));
        assert!(!later.is_synchronised());
    }

    #[test]
    fn a_boot_that_had_the_time_from_the_start_makes_no_event() {
        let (_directory, db) = database();
        let mut boots = load(&db, THIS, 1);
        assert!(boots.synchronised(BEGAN));
        assert_eq!(write(&db, boots.news().expect("a beginning")).expect("it writes"), None);
        assert!(load(&db, THIS, 1).is_synchronised(), "a restart in the same boot believes the clock");
    }

    #[test]
    fn boots_are_forgotten_with_the_last_segment_that_may_count_from_them() {
        let (_directory, db) = database();
        let count = || db.query_row("SELECT count(*) FROM boot", [], |row| row.get::<_, u32>(0)).expect("a count");
        let mut boots = load(&db, THIS, 1);
        boots.synchronised(BEGAN);
        write(&db, boots.news().expect("a beginning")).expect("it writes");
        segment(&db, 9);
        assert!(load(&db, NEXT, 10).began.contains_key(&THIS));
        db.execute("DELETE FROM segment", []).expect("retention");
        segment(&db, 10);
        assert!(!load(&db, NEXT, 11).began.contains_key(&THIS));
        assert_eq!(count(), 0);
        for boot in 0..MAX_BOOTS + 100 {
            let mut id = [9; 16];
            id[..4].copy_from_slice(&boot.to_be_bytes());
            let news = News { boot: BootId(id), began: Some(BEGAN), untimed: false };
            write(&db, news).expect("it writes");
        }
        load(&db, NEXT, 11);
        assert_eq!(count(), MAX_BOOTS);
    }
}
