//! High-water marks that need no row of their own yet.
//!
//! A commit's segment says how far each of its devices came, so their high-water marks are
//! written to their table only now and then: with many devices the rows would
//! take several times the space of the readings themselves. A fresh start reads
//! the segments that follow the last time, see [`replay`].

use super::rows::{self, LAST_SEQ};
use super::schema;
use crate::model::{DeviceId, Seq, SequencedBatch};
use crate::store::segment;
use rusqlite::Connection;
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

/// Readings that a fresh start decodes at most, or nearly so.
const MAX_READINGS: u64 = 256 * 1024;
/// Segments that it reads at most.
const MAX_SEGMENTS: u32 = 256;

/// So many high-water marks are written to their table in any case.
const MAX_HIGH_WATERS: usize = 32 << 10;
/// Of a table that is full, this part is freed at once.
const FREED: usize = 8;

/// What the segments say about devices and the table of high-water marks does not.
#[derive(Debug)]
pub(in crate::store) struct PendingHighWater {
    high_waters: HighWaters,
    /// The table is true up to here.
    listed: Seq,
    /// The last seq on disk.
    last: Seq,
    readings: u64,
    segments: u32,
    /// Rows that the table may have, and has at most, if that is known.
    most: usize,
    rows: Option<usize>,
}

impl PendingHighWater {
    /// Everything on disk, up to `last`, is in the table, which may have `most` rows.
    pub fn new(last: Seq, most: usize) -> PendingHighWater {
        PendingHighWater {
            high_waters: BTreeMap::new(),
            listed: last,
            last,
            readings: 0,
            segments: 0,
            most,
            rows: None,
        }
    }

    /// A segment with so many readings up to `last` is on disk.
    pub fn segment(&mut self, last: Seq, readings: u64) {
        self.last = last;
        self.readings += readings;
        self.segments += 1;
    }

    /// Device, session and the session's last seq: what a segment says, or of
    /// readings that were settled without being written.
    pub fn add(&mut self, high_waters: &[(DeviceId, u64, u64)]) {
        add(&mut self.high_waters, high_waters);
    }

    /// Whether the table must be brought up to date when readings up to `dropped`
    /// go: they would take with them what they say, or a fresh start would have to
    /// read more than it should.
    pub fn is_due(&self, dropped: Seq) -> bool {
        dropped > self.listed
            || self.readings >= MAX_READINGS
            || self.segments >= MAX_SEGMENTS
            || self.high_waters.len() >= MAX_HIGH_WATERS.min(self.most)
    }

    /// Writes to the table what is not there yet, and what a commit adds that came to `last`.
    /// If the table is full, devices that were away for longest are forgotten, but none of
    /// those `in_use`. Returns how many rows the table has now at most.
    ///
    /// # Errors
    /// If the database cannot be read or written.
    pub fn list(
        &self,
        db: &Connection,
        more: [&[(DeviceId, u64, u64)]; 2],
        last: Seq,
        in_use: &dyn Fn() -> HashSet<DeviceId>,
    ) -> rusqlite::Result<usize> {
        let mut high_waters = self.high_waters.clone();
        more.into_iter().for_each(|more| add(&mut high_waters, more));
        let last = self.last.max(last);
        let mut rows = self.rows.map(|rows| rows + high_waters.len());
        if rows.is_none_or(|rows| rows > self.most) {
            rows = Some(self.make_room(db, &high_waters, in_use)?);
        }
        for (device, (session, seq)) in &high_waters {
            schema::put_high_water(db, device.as_str(), *session, *seq, last)?;
        }
        schema::set_meta(db, "listed", last.0)?;
        Ok(rows.unwrap_or(0))
    }

    /// How many rows the table will have with those for `high_waters`, once there is room.
    fn make_room(
        &self,
        db: &Connection,
        high_waters: &HighWaters,
        in_use: &dyn Fn() -> HashSet<DeviceId>,
    ) -> rusqlite::Result<usize> {
        let there: usize = db.query_row("SELECT count(*) FROM mark", [], |row| row.get(0))?;
        let mut known = db.prepare_cached("SELECT count(*) FROM mark WHERE device = ?1")?;
        let mut rows = there;
        for device in high_waters.keys() {
            rows += usize::from(known.query_row([device.as_str()], |row| row.get::<_, u32>(0))? == 0);
        }
        if rows <= self.most {
            return Ok(rows);
        }
        let surplus = rows - self.most + self.most / FREED;
        let in_use = in_use();
        let kept = |name: &str| DeviceId::new(name).is_ok_and(|d| in_use.contains(&d) || high_waters.contains_key(&d));
        let mut forgotten: Vec<String> = Vec::new();
        let mut oldest = db.prepare_cached("SELECT device FROM mark ORDER BY used")?;
        let mut found = oldest.query([])?;
        while forgotten.len() < surplus
            && let Some(row) = found.next()?
        {
            forgotten.extend(Some(row.get(0)?).filter(|name: &String| !kept(name)));
        }
        let mut forget = db.prepare_cached("DELETE FROM mark WHERE device = ?1")?;
        for device in &forgotten {
            forget.execute([device])?;
        }
        Ok(rows - forgotten.len())
    }

    /// What was listed is on disk now: so many rows at most.
    pub fn listed(&mut self, rows: usize) {
        *self = PendingHighWater { rows: Some(rows), ..PendingHighWater::new(self.last, self.most) };
    }
}

/// Session and the session's last seq of devices, in the table's order: fewer pages are
/// touched twice, and the same commits write the same pages each time.
type HighWaters = BTreeMap<DeviceId, (u64, u64)>;

fn add(high_waters: &mut HighWaters, more: &[(DeviceId, u64, u64)]) {
    for (device, session, seq) in more {
        let high_water = high_waters.entry(device.clone()).or_insert((*session, *seq));
        *high_water = if high_water.0 == *session { (*session, high_water.1.max(*seq)) } else { (*session, *seq) };
    }
}

/// Brings the table up to date from the segments after `listed`, of which `last` is
/// the last seq.
///
/// # Errors
/// If the database cannot be read or written. A damaged segment speaks for nobody:
/// its devices' repetitions are taken for news.
pub(in crate::store) fn replay(db: &Connection, listed: Seq, last: Seq) -> rusqlite::Result<()> {
    let mut pending_high_water = PendingHighWater::new(last, usize::MAX);
    rows::each(db, listed, &mut |header, block| {
        if header.last() <= listed {
            return true;
        }
        let decoded = segment::decode_pieces(header, block, listed, &mut |batches| {
            pending_high_water.add(&batches.iter().filter_map(says).collect::<Vec<_>>());
            ControlFlow::Continue(())
        });
        if let Err(why) = decoded {
            tracing::warn!(first = header.first.0, %why, "a damaged segment says nothing about its devices");
        }
        true
    })?;
    pending_high_water.list(db, [&[], &[]], last, &HashSet::new).map(drop)
}

/// Brings the table up to date from all segments after `listed`; before there was such an
/// entry, each commit wrote its high-water marks to their table.
///
/// # Errors
/// As [`replay`].
pub(in crate::store) fn catch_up(db: &Connection, listed: Option<u64>) -> rusqlite::Result<()> {
    let end: u64 = db.query_row(&format!("SELECT coalesce(max({LAST_SEQ}), 0) FROM segment"), [], |row| row.get(0))?;
    replay(db, Seq(listed.unwrap_or(end)), Seq(end))
}

/// Device, session and the session's last seq that a batch of a segment stands for.
pub(in crate::store) fn says(numbered: &SequencedBatch) -> Option<(DeviceId, u64, u64)> {
    let batch = &numbered.batch;
    Some((batch.device.hub(), batch.session?, batch.readings.last()?.origin_seq))
}
