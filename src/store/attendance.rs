//! Who is there and who was: the last word on each device, and the trail of what was
//! told.
//!
//! Both change in the transaction that writes the event that tells of them. The trail is
//! bounded; a row that is not what was written is left out.

use super::log::Log;
use super::row;
use crate::model::{DeviceId, DeviceStatus, Timestamp};
use anyhow::Result;
use rusqlite::{Connection, params};
use serde_json::json;
use std::collections::BTreeMap;

/// Changes told in one event.
const AN_EVENT: usize = 50;
/// Changes that may wait for being written; the oldest are left out of the trail.
const MAX_WAITING: usize = 10_000;

/// What is to be written about devices.
#[derive(Debug, Clone, Default)]
pub(super) struct Attendance {
    /// In the order in which it was told.
    changes: Vec<DeviceStatus>,
    forgotten: Vec<DeviceId>,
}

/// An entry of the trail.
#[derive(Debug, Clone, PartialEq)]
pub struct Attended {
    /// Increasing; never used twice.
    pub id: u64,
    /// When it was written.
    pub time: Timestamp,
    pub status: DeviceStatus,
}

impl Attendance {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.forgotten.is_empty()
    }

    fn add(&mut self, changes: Vec<DeviceStatus>, forgotten: Vec<DeviceId>) {
        self.changes.extend(changes);
        let surplus = self.changes.len().saturating_sub(MAX_WAITING);
        self.changes.drain(..surplus);
        self.forgotten.extend(forgotten);
        self.forgotten.truncate(MAX_WAITING);
    }

    /// Takes back what was not written after all.
    pub fn put_back(&mut self, older: Attendance) {
        let newer = std::mem::replace(self, older);
        self.add(newer.changes, newer.forgotten);
    }
}

impl Log {
    /// Has it written soon, and told as events, that these devices' presence changed, and
    /// that those are known no more.
    pub fn attend(&self, changes: Vec<DeviceStatus>, forgotten: Vec<DeviceId>) {
        let mut state = self.shared.state.lock();
        state.attendance.add(changes, forgotten);
        state.wake(&self.shared.due);
    }

    /// Changes of presence, the newest first, of one device or of all, before the entry
    /// with id `before`; at most `limit`.
    ///
    /// # Errors
    /// If the log cannot be read; worth another try later.
    pub async fn attended(&self, device: Option<DeviceId>, before: Option<u64>, limit: usize) -> Result<Vec<Attended>> {
        self.shared.on_disk(LOOKS, move |db| trail(db, device.as_ref(), before, limit)).await
    }
}

/// The reading connection of those who are no sink.
const LOOKS: usize = usize::MAX;

/// Writes what is new, and returns the bodies of the events that tell of it.
pub(super) fn write(db: &Connection, news: &Attendance, now: Timestamp, keep: u32) -> Result<Vec<String>> {
    let mut last: BTreeMap<&DeviceId, &DeviceStatus> = BTreeMap::new();
    for status in &news.changes {
        let body = serde_json::to_string(status)?;
        let row = "INSERT INTO audit (time, body, guard) VALUES (?1, ?2, ?3)";
        db.prepare_cached(row)?.execute(params![now.0, body, row::audit_guard(now.0, &body)])?;
        last.insert(&status.device, status);
    }
    for device in &news.forgotten {
        db.prepare_cached("DELETE FROM device WHERE name = ?1")?.execute([device.as_str()])?;
    }
    for (device, status) in last {
        let (name, body) = (device.as_str(), serde_json::to_string(status)?);
        db.prepare_cached("INSERT OR REPLACE INTO device (name, body, guard) VALUES (?1, ?2, ?3)")?
            .execute(params![name, body, row::device_guard(name, &body)])?;
    }
    if !news.changes.is_empty() {
        db.prepare_cached("DELETE FROM audit WHERE id <= (SELECT id FROM audit ORDER BY id DESC LIMIT 1 OFFSET ?1)")?
            .execute([keep])?;
    }
    let event = |changes: &[DeviceStatus]| json!({ "type": "presence", "changes": changes }).to_string();
    Ok(news.changes.chunks(AN_EVENT).map(event).collect())
}

/// The last word on each device.
pub(super) fn load(db: &Connection) -> rusqlite::Result<Vec<DeviceStatus>> {
    let mut statement = db.prepare("SELECT name, body, guard FROM device")?;
    let mut rows = statement.query([])?;
    let mut statuses = Vec::new();
    while let Some(row) = rows.next()? {
        let (Ok(name), Ok(body), Ok(guard)) = (row.get::<_, String>(0), row.get::<_, String>(1), row.get::<_, i64>(2))
        else {
            continue;
        };
        if guard == row::device_guard(&name, &body)
            && let Ok(status) = serde_json::from_str(&body)
        {
            statuses.push(status);
        }
    }
    Ok(statuses)
}

/// See [`Log::attended`].
pub(super) fn trail(
    db: &Connection,
    device: Option<&DeviceId>,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<Attended>> {
    let mut statement = db.prepare_cached("SELECT id, time, body, guard FROM audit WHERE id < ?1 ORDER BY id DESC")?;
    let before = before.and_then(|id| i64::try_from(id).ok()).unwrap_or(i64::MAX);
    let mut rows = statement.query([before])?;
    let mut entries = Vec::new();
    while entries.len() < limit
        && let Some(row) = rows.next()?
    {
        let (Ok(time), Ok(body), Ok(guard)) = (row.get(1), row.get::<_, String>(2), row.get::<_, i64>(3)) else {
            continue;
        };
        if guard != row::audit_guard(time, &body) {
            continue;
        }
        let Ok(status) = serde_json::from_str::<DeviceStatus>(&body) else { continue };
        if device.is_none_or(|device| *device == status.device) {
            entries.push(Attended { id: row.get(0)?, time: Timestamp(time), status });
        }
    }
    Ok(entries)
}
