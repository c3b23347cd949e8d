//! What a row says, and whether it can be believed.
//!
//! A segment's row is proven by the segment's checksum. All other rows that matter
//! carry a `guard`: a CRC-32 over the table's name and the row's fields. SQLite
//! notices only damage to its structure; a flipped bit in a sink's place would skip
//! readings, and one in a device's mark would acknowledge what never came.

use super::segment::Header;
use crate::model::{BootId, Seq, Timestamp};
use rusqlite::{Connection, params};

/// The columns of a segment's row from which [`header`] is made, in its order; the
/// block is selected behind them, as column [`BLOCK`].
pub(super) const HEADER_COLUMNS: &str = "first_seq, count, oldest, newest, raw_length, checksum";

/// The block's place behind [`HEADER_COLUMNS`].
pub(super) const BLOCK: usize = 6;

/// The header of a segment's row, whoever read the row: `column` gives the integers
/// of [`HEADER_COLUMNS`]. `None` if they cannot be what was written.
pub(super) fn header(column: impl Fn(usize) -> Option<i64>) -> Option<Header> {
    let header = Header {
        first: Seq(u64::try_from(column(0)?).ok()?),
        count: u32::try_from(column(1)?).ok()?,
        oldest: Timestamp(column(2)?),
        newest: Timestamp(column(3)?),
        raw_length: u32::try_from(column(4)?).ok()?,
        checksum: u32::try_from(column(5)?).ok()?,
    };
    let last = header.first.0.checked_add(u64::from(header.count))?;
    (header.first.0 > 0 && header.count > 0 && i64::try_from(last).is_ok()).then_some(header)
}

/// The header of a segment's row that was selected by [`HEADER_COLUMNS`].
pub(super) fn header_of(row: &rusqlite::Row<'_>) -> Option<Header> {
    header(|column| row.get(column).ok())
}

/// Adds a segment's row; `conflict` says what to do if its seq has one already.
pub(super) fn put(db: &Connection, conflict: &str, header: &Header, block: &[u8]) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT OR {conflict} INTO segment (first_seq, count, oldest, newest, raw_length, checksum, size, block)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
    );
    db.prepare_cached(&sql)?.execute(params![
        header.first.0,
        header.count,
        header.oldest.0,
        header.newest.0,
        header.raw_length,
        header.checksum,
        block.len() as u64,
        block
    ])?;
    Ok(())
}

/// Calls `each` with the segments that hold readings after `after`, oldest first,
/// until it returns false. A row whose head cannot be is passed over.
///
/// # Errors
/// If the database cannot be read.
pub(super) fn each(db: &Connection, after: Seq, each: &mut dyn FnMut(&Header, &[u8]) -> bool) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {HEADER_COLUMNS}, block FROM segment
         WHERE first_seq >= coalesce((SELECT max(first_seq) FROM segment WHERE first_seq <= ?1), 0)
         ORDER BY first_seq"
    ))?;
    let mut rows = statement.query([after.next().0])?;
    while let Some(row) = rows.next()? {
        let Some(header) = header_of(row) else {
            tracing::error!("the head of a segment cannot be read");
            continue;
        };
        if header.last() > after && !each(&header, row.get_ref(BLOCK)?.as_blob().unwrap_or_default()) {
            return Ok(());
        }
    }
    Ok(())
}

/// The guard of a row of `meta`.
pub(super) fn meta_guard(key: &str, value: i64) -> i64 {
    Guard::of("meta").text(key).number(value).finish()
}

/// The guard of a row of `sink`.
pub(super) fn sink_guard(name: &str, confirmed: i64, event: i64) -> i64 {
    Guard::of("sink").text(name).number(confirmed).number(event).finish()
}

/// The guard of a row of `mark`.
pub(super) fn mark_guard(device: &str, session: i64, seq: i64) -> i64 {
    Guard::of("mark").text(device).number(session).number(seq).finish()
}

/// The guard of a row of `event`.
pub(super) fn event_guard(id: i64, time: i64, body: &str) -> i64 {
    Guard::of("event").number(id).number(time).text(body).finish()
}

/// The guard of a row of `boot`.
pub(super) fn boot_guard(id: BootId, began: Option<i64>, last: Option<i64>) -> i64 {
    Guard::of("boot").bytes(&id.0).optional(began).optional(last).finish()
}

/// Stands for the set of sinks that have a row: tells when one was lost.
pub(super) fn names_guard<'a>(names: impl Iterator<Item = &'a str>) -> i64 {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.into_iter().fold(Guard::of("names"), Guard::text).finish()
}

struct Guard(crc32fast::Hasher);

impl Guard {
    fn of(table: &str) -> Guard {
        Guard(crc32fast::Hasher::new()).text(table)
    }

    fn text(self, text: &str) -> Guard {
        self.bytes(text.as_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Guard {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    fn number(mut self, number: i64) -> Guard {
        self.0.update(&number.to_le_bytes());
        self
    }

    fn optional(self, number: Option<i64>) -> Guard {
        self.number(i64::from(number.is_some())).number(number.unwrap_or(0))
    }

    fn finish(self) -> i64 {
        i64::from(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_tells_each_bit_of_each_field_and_each_table_apart() {
        let right = sink_guard("cloud", 1000, 7);
        for bit in 0..63 {
            assert_ne!(sink_guard("cloud", 1000 ^ (1 << bit), 7), right);
            assert_ne!(sink_guard("cloud", 1000, 7 ^ (1 << bit)), right);
        }
        assert_ne!(sink_guard("cloue", 1000, 7), right);
        assert_ne!(mark_guard("cloud", 1000, 7), right);
        assert_eq!(names_guard(["a", "b"].into_iter()), names_guard(["b", "a"].into_iter()));
        assert_ne!(names_guard(["a", "b"].into_iter()), names_guard(["ab"].into_iter()));
    }

    #[test]
    fn a_header_that_cannot_be_is_none() {
        let row = |first: i64, count: i64| header(|i| [first, count, 0, 0, 10, 5].get(i).copied());
        assert!(row(1, 1).is_some());
        for (first, count) in [(0, 1), (-5, 1), (1, 0), (1, -1), (1, 1 << 40), (i64::MAX, 1)] {
            assert!(row(first, count).is_none(), "{first} {count}");
        }
    }
}
