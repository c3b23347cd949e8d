//! What a row says, and whether it can be believed.
//!
//! A segment's row is proven by the segment's checksum, but for what retention goes by,
//! which has a guard of its own. All other rows that matter carry a `guard`: a CRC-32 over the table's name and the row's fields. SQLite
//! notices only damage to its structure; a flipped bit in a sink's position would skip
//! readings, and one in a device's high-water mark would acknowledge what never came.

use crate::model::{BootId, Seq, Timestamp};
use crate::store::segment::Header;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};

/// The columns of a segment's row from which [`header`] is made, in its order; the
/// block is selected behind them, as column [`BLOCK`].
pub(in crate::store) const HEADER_COLUMNS: &str = "first_seq, last_seq, count, oldest, newest, raw_length, checksum";

/// Selects the block, as the column behind [`HEADER_COLUMNS`].
pub(in crate::store) const BLOCK_COLUMN: &str = "coalesce(data, block)";

/// The block's place behind [`HEADER_COLUMNS`].
pub(in crate::store) const BLOCK: usize = 7;

/// The last seq of a segment's row, which only has it if seqs are missing before.
pub(in crate::store) const LAST_SEQ: &str = "coalesce(last_seq, first_seq + count - 1)";

/// What a segment's row has for retention to go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Info {
    /// When it was written, in seconds by the log's clock.
    pub committed: u64,
    /// Stands for the routes by which `high` was counted; 0 if it was not.
    pub generation: u64,
    /// Readings of high priority.
    pub high: u64,
    /// Whether samples were taken out of it to make room.
    pub thinned: bool,
}

impl Info {
    /// Of a segment that was written at `committed`, and of which nothing else is known.
    pub fn uncounted(committed: u64) -> Info {
        Info { committed, generation: 0, high: 0, thinned: false }
    }
}

/// The columns from which [`info`] is made.
pub(in crate::store) const INFO_COLUMNS: &str = "first_seq, committed, lanes, high, thinned, guard";

/// What retention goes by, from a row that has [`INFO_COLUMNS`] from its column `at` on;
/// `None` if it is not what was written. A row from before there was any is older than
/// the log's clock.
pub(in crate::store) fn info(row: &rusqlite::Row<'_>, at: usize) -> Option<Info> {
    if matches!(row.get_ref(at + 1), Ok(ValueRef::Null)) && matches!(row.get_ref(at + 5), Ok(ValueRef::Null)) {
        return Some(Info::uncounted(0));
    }
    let column = |i: usize| row.get::<_, i64>(at + i).ok();
    let fields = [column(0)?, column(1)?, column(2)?, column(3)?, column(4)?];
    (column(5)? == info_guard(fields)).then_some(())?;
    let [_, committed, generation, high, thinned] = fields.map(i64::unsigned_abs);
    Some(Info { committed, generation, high, thinned: thinned != 0 })
}

fn info_guard(fields: [i64; 5]) -> i64 {
    fields.into_iter().fold(Guard::of("segment"), Guard::number).finish()
}

/// The header of a segment's row, whoever read the row: `column` gives the integers
/// of [`HEADER_COLUMNS`]. `None` if they cannot be what was written.
pub(in crate::store) fn header(column: impl Fn(usize) -> Option<i64>) -> Option<Header> {
    let first = u64::try_from(column(0)?).ok()?;
    let count = u32::try_from(column(2)?).ok().filter(|count| *count > 0)?;
    let dense = first.checked_add(u64::from(count))?.checked_sub(1)?;
    let last = match column(1) {
        Some(last) => u64::try_from(last).ok()?,
        None => dense,
    };
    let header = Header {
        first: Seq(first),
        last: Seq(last),
        count,
        oldest: Timestamp(column(3)?),
        newest: Timestamp(column(4)?),
        raw_length: u32::try_from(column(5)?).ok()?,
        checksum: u32::try_from(column(6)?).ok()?,
    };
    (first > 0 && last >= dense && last < i64::MAX.unsigned_abs()).then_some(header)
}

/// The header of a segment's row that was selected by [`HEADER_COLUMNS`].
pub(in crate::store) fn header_of(row: &rusqlite::Row<'_>) -> Option<Header> {
    header(|column| row.get(column).ok())
}

/// Adds a segment's row; `conflict` says what to do if its seq has one already.
pub(in crate::store) fn put(
    db: &Connection,
    conflict: &str,
    header: &Header,
    block: &[u8],
    info: Info,
) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT OR {conflict} INTO segment (first_seq, count, oldest, newest, raw_length, checksum, size, block,
                                            last_seq, committed, lanes, high, thinned, guard, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, x'', ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
    );
    let first = signed(header.first.0);
    let [committed, generation, high] = [info.committed, info.generation, info.high].map(signed);
    let thinned = i64::from(info.thinned);
    db.prepare_cached(&sql)?.execute(params![
        first,
        header.count,
        header.oldest.0,
        header.newest.0,
        header.raw_length,
        header.checksum,
        block.len() as u64,
        header.is_sparse().then_some(header.last.0),
        committed,
        generation,
        high,
        thinned,
        info_guard([first, committed, generation, high, thinned]),
        block
    ])?;
    Ok(())
}

/// Calls `each` with the segments that may hold readings after `after`, oldest first,
/// until it returns false: the first one may end before it. Of a row whose head cannot be
/// there is what its key says; its checksum does not hold.
///
/// # Errors
/// If the database cannot be read.
pub(in crate::store) fn each(
    db: &Connection,
    after: Seq,
    each: &mut dyn FnMut(&Header, &[u8]) -> bool,
) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {HEADER_COLUMNS}, {BLOCK_COLUMN} FROM segment
         WHERE first_seq >= coalesce((SELECT max(first_seq) FROM segment WHERE first_seq <= ?1), 0)
         ORDER BY first_seq"
    ))?;
    let mut rows = statement.query([after.next().0])?;
    while let Some(row) = rows.next()? {
        let key = || row.get(0).ok().and_then(|key: i64| u64::try_from(key).ok()).filter(|key| *key > 0).map(Seq);
        let Some(header) = header_of(row).or_else(|| key().map(Header::unknown)) else {
            tracing::error!("the key of a segment cannot be");
            continue;
        };
        if !each(&header, row.get_ref(BLOCK)?.as_blob().unwrap_or_default()) {
            return Ok(());
        }
    }
    Ok(())
}

/// The guard of a row of `meta`.
pub(in crate::store) fn meta_guard(key: &str, value: i64) -> i64 {
    Guard::of("meta").text(key).number(value).finish()
}

/// A number as a column holds it.
pub(in crate::store) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The guard of a row of `sink`; `retired` stands in those of sinks that are not
/// configured any more.
pub(in crate::store) fn sink_guard(name: &str, confirmed: i64, event: i64, retired: Option<i64>) -> i64 {
    let guard = Guard::of("sink").text(name).number(confirmed).number(event);
    retired.into_iter().fold(guard, Guard::number).finish()
}

/// The guard of a row of `mark`.
pub(in crate::store) fn high_water_guard(device: &str, session: i64, seq: i64) -> i64 {
    Guard::of("mark").text(device).number(session).number(seq).finish()
}

/// The guard of a row of `event`; `sink` stands in those that are for one sink alone.
pub(in crate::store) fn event_guard(id: i64, time: i64, body: &str, sink: Option<&str>) -> i64 {
    let guard = Guard::of("event").number(id).number(time).text(body);
    sink.into_iter().fold(guard, Guard::text).finish()
}

/// The guard of a row of `gap`: its sink, what is missing and why, and its numbers.
pub(in crate::store) fn gap_guard(texts: [&str; 3], numbers: [i64; 4]) -> i64 {
    numbers.into_iter().fold(texts.into_iter().fold(Guard::of("gap"), Guard::text), Guard::number).finish()
}

/// The guard of a row of `device`.
pub(in crate::store) fn device_guard(name: &str, body: &str) -> i64 {
    Guard::of("device").text(name).text(body).finish()
}

/// The guard of a row of `hole`.
pub(in crate::store) fn hole_guard(fields: [i64; 3]) -> i64 {
    fields.into_iter().fold(Guard::of("hole"), Guard::number).finish()
}

/// The guard of the row of `fold`.
pub(in crate::store) fn checkpoint_guard(pages: &[u8]) -> i64 {
    Guard::of("fold").bytes(pages).finish()
}

/// The guard of a row of `audit`.
pub(in crate::store) fn audit_guard(time: i64, body: &str) -> i64 {
    Guard::of("audit").number(time).text(body).finish()
}

/// The guard of a row of `boot`.
pub(in crate::store) fn boot_guard(id: BootId, began: Option<i64>, last: Option<i64>) -> i64 {
    Guard::of("boot").bytes(&id.0).optional(began).optional(last).finish()
}

/// The guard of a row of `command`.
pub(in crate::store) fn command_guard(place: i64, texts: [&str; 4], ended: Option<i64>) -> i64 {
    texts.into_iter().fold(Guard::of("command").number(place), Guard::text).optional(ended).finish()
}

/// Stands for the set of sinks that have a row: tells when one was lost.
pub(in crate::store) fn names_guard<'a>(names: impl Iterator<Item = &'a str>) -> i64 {
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
        let right = sink_guard("cloud", 1000, 7, None);
        for bit in 0..63 {
            assert_ne!(sink_guard("cloud", 1000 ^ (1 << bit), 7, None), right);
            assert_ne!(sink_guard("cloud", 1000, 7 ^ (1 << bit), None), right);
        }
        assert_ne!(sink_guard("cloue", 1000, 7, None), right);
        assert_ne!(high_water_guard("cloud", 1000, 7), right);
        assert_eq!(names_guard(["a", "b"].into_iter()), names_guard(["b", "a"].into_iter()));
        assert_ne!(names_guard(["a", "b"].into_iter()), names_guard(["ab"].into_iter()));
    }

    #[test]
    fn a_header_that_cannot_be_is_none() {
        let row = |first: i64, last: Option<i64>, count: i64| {
            header(|i| [Some(first), last, Some(count), Some(0), Some(0), Some(10), Some(5)].get(i).copied().flatten())
        };
        assert_eq!(row(1, None, 3).map(|header| header.last), Some(Seq(3)));
        assert_eq!(row(1, Some(7), 3).map(|header| header.last), Some(Seq(7)));
        for (first, count) in [(0, 1), (-5, 1), (1, 0), (1, -1), (1, 1 << 40), (i64::MAX, 1)] {
            assert!(row(first, None, count).is_none(), "{first} {count}");
        }
        for last in [-1, 0, 2, i64::MAX] {
            assert!(row(1, Some(last), 3).is_none(), "{last}");
        }
    }
}
