//! Segments as rows of their table.

use super::segment::Header;
use crate::model::{Seq, Timestamp};
use rusqlite::{Connection, Row, params};

/// What [`header`] reads, and then the block.
const COLUMNS: &str = "first_seq, count, oldest, newest, raw_length, checksum, block";
/// The block's place in [`COLUMNS`].
const BLOCK: usize = 6;

/// The header of a row of [`COLUMNS`].
fn header(row: &Row<'_>) -> rusqlite::Result<Header> {
    Ok(Header {
        first: Seq(row.get(0)?),
        count: row.get(1)?,
        oldest: Timestamp(row.get(2)?),
        newest: Timestamp(row.get(3)?),
        raw_length: row.get(4)?,
        checksum: row.get(5)?,
    })
}

/// Adds a segment, or replaces the one that begins at the same seq.
pub(super) fn put(db: &Connection, header: &Header, block: &[u8]) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO segment (first_seq, count, oldest, newest, raw_length, checksum, size, block)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
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
/// until it returns false.
///
/// # Errors
/// If the database cannot be read.
pub(super) fn each(db: &Connection, after: Seq, each: &mut dyn FnMut(&Header, &[u8]) -> bool) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM segment
         WHERE first_seq >= coalesce((SELECT max(first_seq) FROM segment WHERE first_seq <= ?1), 0)
         ORDER BY first_seq"
    ))?;
    let mut rows = statement.query([after.next().0])?;
    while let Some(row) = rows.next()? {
        let header = header(row)?;
        if header.last() > after && !each(&header, row.get_ref(BLOCK)?.as_blob()?) {
            return Ok(());
        }
    }
    Ok(())
}
