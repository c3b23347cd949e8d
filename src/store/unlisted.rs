//! Marks that need no row of their own yet.
//!
//! A commit's segment says how far each of its devices came, so their marks are
//! written to their table only now and then: with many devices the rows would
//! take several times the space of the readings themselves. A fresh start reads
//! the segments that follow the last time, see [`replay`].

use super::row;
use super::schema;
use super::segment;
use crate::model::{DeviceId, Numbered, Seq};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Readings that a fresh start decodes at most, or nearly so.
const MAX_READINGS: u64 = 256 * 1024;
/// Segments that it reads at most.
const MAX_SEGMENTS: u32 = 256;

/// So many marks are written to their table in any case.
const MAX_MARKS: usize = 10_000;

/// What the segments say about devices and the table of marks does not.
#[derive(Debug)]
pub(super) struct Unlisted {
    /// In the table's order: fewer pages are touched twice, and the same commits
    /// write the same pages each time.
    marks: BTreeMap<DeviceId, (u64, u64)>,
    /// The table is true up to here.
    listed: Seq,
    /// The last seq on disk.
    last: Seq,
    readings: u64,
    segments: u32,
}

impl Unlisted {
    /// Everything on disk, up to `last`, is in the table.
    pub fn new(last: Seq) -> Unlisted {
        Unlisted { marks: BTreeMap::new(), listed: last, last, readings: 0, segments: 0 }
    }

    /// A segment with so many readings up to `last` is on disk.
    pub fn segment(&mut self, last: Seq, readings: u64) {
        self.last = last;
        self.readings += readings;
        self.segments += 1;
    }

    /// Device, session and the session's last seq: what a segment says, or of
    /// readings that were settled without being written.
    pub fn add(&mut self, marks: &[(DeviceId, u64, u64)]) {
        for (device, session, seq) in marks {
            let mark = self.marks.entry(device.clone()).or_insert((*session, *seq));
            *mark = if mark.0 == *session { (*session, mark.1.max(*seq)) } else { (*session, *seq) };
        }
    }

    /// Whether the table must be brought up to date when readings up to `dropped`
    /// go: they would take with them what they say, or a fresh start would have to
    /// read more than it should.
    pub fn is_due(&self, dropped: Seq) -> bool {
        dropped > self.listed
            || self.readings >= MAX_READINGS
            || self.segments >= MAX_SEGMENTS
            || self.marks.len() >= MAX_MARKS
    }

    /// Writes to the table what is not there yet.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn list(&self, db: &Connection) -> rusqlite::Result<()> {
        for (device, (session, seq)) in &self.marks {
            schema::put_mark(db, device.as_str(), *session, *seq)?;
        }
        schema::set_meta(db, "listed", self.last.0)
    }

    /// The same with what a commit adds that is the last, and up to where.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn list_all(&self, db: &Connection, more: [&[(DeviceId, u64, u64)]; 2], last: Seq) -> rusqlite::Result<()> {
        self.list(db)?;
        for (device, session, seq) in more.into_iter().flatten() {
            schema::put_mark(db, device.as_str(), *session, *seq)?;
        }
        schema::set_meta(db, "listed", self.last.max(last).0)
    }

    /// What was listed is on disk now.
    pub fn listed(&mut self) {
        *self = Unlisted::new(self.last);
    }
}

/// Brings the table up to date from the segments after `listed`, of which `last` is
/// the last seq.
///
/// # Errors
/// If the database cannot be read or written. A damaged segment speaks for nobody:
/// its devices' repetitions are taken for news.
pub(super) fn replay(db: &Connection, listed: Seq, last: Seq) -> rusqlite::Result<()> {
    let mut unlisted = Unlisted::new(last);
    row::each(db, listed, &mut |header, block| {
        if header.last() <= listed {
            return true;
        }
        let decoded = segment::decode_pieces(header, block, listed, &mut |batches| {
            unlisted.add(&batches.iter().filter_map(says).collect::<Vec<_>>());
            ControlFlow::Continue(())
        });
        if let Err(why) = decoded {
            tracing::warn!(first = header.first.0, %why, "a damaged segment says nothing about its devices");
        }
        true
    })?;
    unlisted.list(db)
}

/// Device, session and the session's last seq that a batch of a segment stands for.
pub(super) fn says(numbered: &Numbered) -> Option<(DeviceId, u64, u64)> {
    let batch = &numbered.batch;
    Some((batch.device.hub(), batch.session?, batch.readings.last()?.origin_seq))
}
