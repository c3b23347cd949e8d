//! Small neighbouring segments become one.
//!
//! While a sink is away, each commit leaves a segment of a few readings, which
//! names its devices and channels anew: ten times the space of a large one. When
//! [`MERGE`] of them stand in a row, the next commit writes them again as one. What
//! is small is well below what a commit itself writes, so merging adds a small
//! part to that, and what it made is soon no longer small. Constant values compress to
//! next to nothing: what is small is also of few readings and short before compression,
//! so that a merge takes little memory whatever the values are.

use super::priority::PriorityRoutes;
use crate::model::Seq;
use crate::store::disk::rows::{self, INFO_COLUMNS, Info, LAST_SEQ};
use crate::store::segment::{self, Encoded, Encoder};
use rusqlite::Connection;

/// How many small segments in a row are merged.
const MERGE: usize = 64;
/// Bytes of block up to which a segment is small; before compression; and readings.
const SMALL: u64 = 1024;
const SMALL_RAW: u64 = 4096;
const SMALL_COUNT: u64 = 256;
/// Segments written further apart than this, in seconds, are not joined: the age of the
/// whole is that of the youngest.
pub(in crate::store) const JOIN_WITHIN: u64 = 3600;

/// A segment as it lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StoredSegment {
    first: Seq,
    last: Seq,
    bytes: u64,
    raw_length: u64,
    count: u64,
    /// `None` if it is not known: such a one is left alone.
    info: Option<Info>,
}

impl StoredSegment {
    fn is_small(&self) -> bool {
        self.bytes <= SMALL && self.raw_length <= SMALL_RAW && self.count <= SMALL_COUNT
    }
}

/// The first seq of the segments to merge, which are the newest, if there are
/// enough small ones in a row, each beginning where the one before it ends.
fn plan(newest_first: impl Iterator<Item = StoredSegment>) -> Option<Seq> {
    let (mut run, mut first) = (0, None);
    let mut youngest: Option<Info> = None;
    for segment in newest_first {
        let neighbours = first.is_none_or(|next| segment.last.next() == next);
        let info = segment.info?;
        let youngest = youngest.get_or_insert(info);
        let alike = info.thinned == youngest.thinned && youngest.committed.abs_diff(info.committed) <= JOIN_WITHIN;
        if !segment.is_small() || !neighbours || !alike {
            break;
        }
        run += 1;
        first = Some(segment.first);
        if run == MERGE {
            return first;
        }
    }
    None
}

/// Counts the segments that were added since they were last looked at.
#[derive(Debug, Default)]
pub(in crate::store) struct Merging {
    added: usize,
}

impl Merging {
    /// A commit added a segment.
    pub fn added(&mut self) {
        self.added += 1;
    }

    /// Whether there may be enough to merge.
    pub fn is_due(&self) -> bool {
        self.added >= MERGE
    }

    /// They were merged, or were not worth it.
    pub fn done(&mut self) {
        self.added = 0;
    }
}

/// Merges the newest segments before `before` if they are small. What the running
/// transaction adds begins there: if it is repeated, it replaces that segment by its
/// first seq.
///
/// # Errors
/// If the database cannot be read or written.
pub(in crate::store) fn merge(
    db: &Connection,
    encoder: &mut Encoder,
    before: Seq,
    priority: &PriorityRoutes,
    generation: u64,
) -> rusqlite::Result<()> {
    let newest = {
        let mut newest = db.prepare_cached(&format!(
            "SELECT first_seq, {LAST_SEQ}, size, raw_length, count, {INFO_COLUMNS} FROM segment
             WHERE first_seq < ?1 ORDER BY first_seq DESC LIMIT ?2"
        ))?;
        let lying = |row: &rusqlite::Row<'_>| {
            Ok(StoredSegment {
                first: Seq(row.get(0)?),
                last: Seq(row.get(1)?),
                bytes: row.get(2)?,
                raw_length: row.get(3)?,
                count: row.get(4)?,
                info: rows::info(row, 5),
            })
        };
        newest.query_map([before.0, MERGE as u64], lying)?.collect::<rusqlite::Result<Vec<_>>>()?
    };
    let Some(first) = plan(newest.iter().copied()) else { return Ok(()) };
    let mut batches = Vec::new();
    let mut damaged = false;
    rows::each(db, first.prev(), &mut |header, block| {
        if header.first >= before {
            return false;
        }
        match segment::decode(header, block) {
            Ok(decoded) => batches.extend(decoded),
            Err(_) => damaged = true,
        }
        !damaged
    })?;
    // Whoever reads a damaged one reports it.
    if damaged {
        return Ok(());
    }
    let merged = match encoder.encode(&batches) {
        Ok(merged) => merged,
        Err(why) => {
            tracing::warn!(%why, "small segments cannot be merged and stay as they are");
            return Ok(());
        }
    };
    db.prepare_cached("DELETE FROM segment WHERE first_seq >= ?1 AND first_seq < ?2")?.execute([first.0, before.0])?;
    let infos = newest.iter().filter_map(|lying| lying.info);
    let committed = infos.clone().map(|info| info.committed).max().unwrap_or(0);
    let thinned = infos.clone().any(|info| info.thinned);
    merged.iter().try_for_each(|Encoded { header, block, batches }| {
        let info = Info { committed, generation, high: priority.count_high(batches), thinned };
        rows::put(db, "REPLACE", header, block, info)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(lying: &[(u64, u64, u64)]) -> impl Iterator<Item = StoredSegment> {
        lying.iter().rev().map(|(first, count, bytes)| StoredSegment {
            first: Seq(*first),
            last: Seq(first + count - 1),
            bytes: *bytes,
            raw_length: 2 * bytes,
            count: *count,
            info: Some(Info::uncounted(1000)),
        })
    }

    fn run(from: u64, length: u64, bytes: u64) -> Vec<(u64, u64, u64)> {
        (0..length).map(|n| (from + 2 * n, 2, bytes)).collect()
    }

    #[test]
    fn small_neighbours_are_merged_once_there_are_enough() {
        let enough = MERGE as u64;
        assert_eq!(plan(segments(&run(1, enough - 1, 100))), None);
        assert_eq!(plan(segments(&run(1, enough, SMALL))), Some(Seq(1)));
        assert_eq!(plan(segments(&run(1, enough + 5, 100))), Some(Seq(11)));
    }

    #[test]
    fn a_large_segment_or_a_hole_ends_the_run() {
        let enough = MERGE as u64;
        assert_eq!(plan(segments(&run(1, enough, SMALL + 1))), None);
        let mut with_large = run(1, enough, 100);
        with_large[10].2 = SMALL + 1;
        assert_eq!(plan(segments(&with_large)), None);
        let mut with_hole = run(1, 10, 100);
        with_hole.extend(run(50, enough - 1, 100));
        assert_eq!(plan(segments(&with_hole)), None);
    }

    #[test]
    fn what_is_long_before_compression_or_has_many_readings_is_not_small() {
        let all: Vec<StoredSegment> = segments(&run(1, MERGE as u64, 100)).collect();
        for long in [
            StoredSegment { raw_length: SMALL_RAW + 1, ..all[10] },
            StoredSegment { count: SMALL_COUNT + 1, ..all[10] },
        ] {
            let mut all = all.clone();
            all[10] = long;
            assert_eq!(plan(all.into_iter()), None);
        }
    }

    #[test]
    fn segments_of_another_hour_or_thinned_or_of_unknown_age_are_not_joined() {
        let all: Vec<StoredSegment> = segments(&run(1, MERGE as u64, 100)).collect();
        assert_eq!(plan(all.iter().copied()), Some(Seq(1)));
        for other in
            [Some(Info::uncounted(1001 + JOIN_WITHIN)), Some(Info { thinned: true, ..Info::uncounted(1000) }), None]
        {
            let mut all = all.clone();
            all[10].info = other;
            assert_eq!(plan(all.into_iter()), None);
        }
    }
}
