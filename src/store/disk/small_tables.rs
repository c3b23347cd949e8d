//! What the tables beside the segments' may take: a share of the log that readings are not
//! asked for, divided among what devices and consumers can make grow.

use rusqlite::{Connection, params};

/// The share, as a part of `max_size` and in bytes at most.
const PART: u64 = 8;
const MOST: u64 = 32 << 20;
/// Each of the high-water marks, the trail of presence and the ended commands has so much of the share.
const EACH: u64 = 4;
/// Bytes of a high-water mark's row, and of an entry of the trail, with what a page leaves unused.
const HIGH_WATER: u64 = 96;
const ENTRY: u64 = 512;
/// A log has so many bytes for each ended command of which nothing but the id and the end is
/// remembered, which takes 100 to 400, and remembers so many at least. A command that was
/// forgotten is done again if it is sent again: these come before readings, and are not held
/// to the share.
const ENDED: u64 = 1024;
const LEAST_ENDED: u64 = 1000;
/// No log remembers more devices.
pub(in crate::store) const MAX_HIGH_WATERS: usize = 100_000;

/// How far tables may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Shares {
    /// Bytes for all of them.
    pub all: u64,
    /// Rows of devices' high-water marks.
    pub high_waters: usize,
    /// Entries of the trail of presence.
    pub trail: u32,
    /// Bytes of ended commands that are remembered as a whole.
    pub commands: u64,
    /// Ended commands of which the end is remembered.
    pub ended: u64,
}

impl Shares {
    /// In a log of at most so many bytes.
    pub fn of(max_size: u64) -> Shares {
        let all = (max_size / PART).min(MOST);
        let each = all / EACH;
        Shares {
            all,
            high_waters: usize::try_from(each / HIGH_WATER).unwrap_or(usize::MAX).min(MAX_HIGH_WATERS),
            trail: u32::try_from(each / ENTRY).unwrap_or(u32::MAX),
            commands: each,
            ended: (max_size / ENDED).max(LEAST_ENDED),
        }
    }
}

/// What the small tables take of their share: known for a while, since it takes a look at
/// all of them.
#[derive(Debug)]
pub(in crate::store) struct TableSizes {
    share: u64,
    /// In bytes, and when that was looked at.
    known: Option<(u64, u64)>,
}

/// For so many seconds.
const KNOWN_FOR: u64 = 10;

impl TableSizes {
    pub fn new(max_size: u64) -> TableSizes {
        TableSizes { share: Shares::of(max_size).all, known: None }
    }

    /// It may be much else now.
    pub fn changed(&mut self) {
        self.known = None;
    }

    /// Bytes of the share, at `clock` in seconds.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn bytes(&mut self, db: &Connection, clock: u64) -> rusqlite::Result<u64> {
        if let Some((bytes, _)) = self.known.filter(|(_, at)| clock < at + KNOWN_FOR) {
            return Ok(bytes);
        }
        let bytes = size(db)?.min(self.share);
        self.known = Some((bytes, clock));
        Ok(bytes)
    }
}

/// Bytes that all tables but the segments' take.
fn size(db: &Connection) -> rusqlite::Result<u64> {
    let mut names = db.prepare_cached("SELECT name FROM sqlite_schema WHERE rootpage > 0 AND tbl_name <> 'segment'")?;
    let mut one = db.prepare_cached("SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE name = ?1 AND aggregate = 1")?;
    let names = names.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    names.iter().map(|name| one.query_row(params![name], |row| row.get::<_, u64>(0))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_with_the_log_up_to_what_any_gateway_needs() {
        let small = Shares::of(8 << 20);
        assert_eq!((small.all, small.commands), (1 << 20, 256 << 10));
        assert_eq!((small.high_waters, small.trail), (2730, 512));
        assert_eq!((small.ended, Shares::of(200 << 10).ended), (8192, 1000));
        let large = Shares::of(64 << 40);
        assert_eq!((large.all, large.high_waters, large.trail), (32 << 20, 87_381, 16_384));
    }

    #[test]
    fn what_devices_fill_is_measured_and_readings_are_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log.db");
        let db = super::super::schema::open(&path, crate::config::Durability::Full).expect("a new database");
        let mut taken = TableSizes::new(1 << 30);
        let empty = taken.bytes(&db, 0).expect("it reads");
        for n in 0..1000 {
            let device = format!("device-{n:08}");
            super::super::schema::put_high_water(&db, &device, 1, 1, crate::model::Seq(1)).expect("it is written");
        }
        db.execute("INSERT INTO segment VALUES (1, 1, 0, 0, 0, 0, 0, zeroblob(100000), 0, 0, 0, 0, 0, 0, x'')", [])
            .expect("a large row");
        assert_eq!(taken.bytes(&db, 5).expect("it reads"), empty, "it was known a moment ago");
        taken.changed();
        let full = taken.bytes(&db, 5).expect("it reads");
        assert!((30_000..96_000).contains(&(full - empty)), "{full} bytes after {empty}");
        assert_eq!(TableSizes::new(8 * 1000).bytes(&db, 0).expect("it reads"), 1000, "no more than the share counts");
    }
}
