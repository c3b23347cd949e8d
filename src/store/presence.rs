//! Who is there and who was: the last word on each device, and the trail of what was
//! told.
//!
//! Both change in the transaction that writes the event that tells of them. The trail is
//! bounded; a row that is not what was written is left out.

use super::disk::rows;
use crate::model::{DeviceId, DeviceStatus, Timestamp};
use anyhow::Result;
use rusqlite::{Connection, params};
use serde_json::json;
use std::collections::BTreeMap;

/// Changes told in one event, and the bytes that they may take: brokers' packets are bounded.
const AN_EVENT: usize = 50;
const AN_EVENT_BYTES: usize = 8 * 1024;
/// Changes that may wait for being written; the oldest are left out of the trail.
const MAX_WAITING: usize = 10_000;

/// Devices that are known no more and that not every consumer may have heard of.
pub const MAX_FORGOTTEN: usize = 4096;

/// What the last life of the gateway had told of devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KnownDevices {
    /// The last word on each.
    pub statuses: Vec<DeviceStatus>,
    /// Those that were known once, the latest last.
    pub forgotten: Vec<DeviceId>,
}

/// What is to be written about devices.
#[derive(Debug, Clone, Default)]
pub(super) struct UnwrittenPresence {
    /// What was told by so many calls of [`super::Log::record_presence`].
    pub upto: u64,
    /// In the order in which it was told.
    changes: Vec<DeviceStatus>,
    /// Those that are known no more, each behind so many of the changes.
    forgotten: Vec<(usize, DeviceId)>,
}

/// An entry of the trail.
#[derive(Debug, Clone, PartialEq)]
pub struct PresenceEntry {
    /// Increasing; never used twice.
    pub id: u64,
    /// When it was written.
    pub time: Timestamp,
    pub status: DeviceStatus,
}

impl UnwrittenPresence {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.forgotten.is_empty()
    }

    /// Takes what is new: changes, and devices that are known no more, before those.
    pub fn came(&mut self, upto: u64, changes: Vec<DeviceStatus>, forgotten: Vec<DeviceId>) {
        let forgotten = forgotten.into_iter().map(|device| (0, device)).collect();
        self.add(UnwrittenPresence { upto, changes, forgotten });
    }

    fn add(&mut self, newer: UnwrittenPresence) {
        self.upto = self.upto.max(newer.upto);
        let before = self.changes.len();
        self.changes.extend(newer.changes);
        self.forgotten.extend(newer.forgotten.into_iter().map(|(behind, device)| (before + behind, device)));
        let surplus = self.changes.len().saturating_sub(MAX_WAITING);
        self.changes.drain(..surplus);
        self.forgotten.iter_mut().for_each(|(behind, _)| *behind = behind.saturating_sub(surplus));
        let surplus = self.forgotten.len().saturating_sub(MAX_WAITING);
        self.forgotten.drain(..surplus);
    }

    /// Takes back what was not written after all.
    pub fn put_back(&mut self, older: UnwrittenPresence) {
        let newer = std::mem::replace(self, older);
        self.add(newer);
    }

    /// The last word on each device; `None` if it is known no more.
    fn last_words(&self) -> BTreeMap<&DeviceId, Option<&DeviceStatus>> {
        let mut last = BTreeMap::new();
        let mut forgotten = self.forgotten.iter().peekable();
        for (before, status) in self.changes.iter().enumerate() {
            while let Some((_, device)) = forgotten.next_if(|(behind, _)| *behind <= before) {
                last.insert(device, None);
            }
            last.insert(&status.device, Some(status));
        }
        last.extend(forgotten.map(|(_, device)| (device, None)));
        last
    }
}

/// Writes what is new, and returns the bodies of the events that tell of it.
pub(super) fn write(db: &Connection, news: &UnwrittenPresence, now: Timestamp, keep: u32) -> Result<Vec<String>> {
    let (mut events, mut first, mut size) = (Vec::new(), 0, 0);
    for (at, status) in news.changes.iter().enumerate() {
        let body = serde_json::to_string(status)?;
        if at - first >= AN_EVENT || size + body.len() > AN_EVENT_BYTES {
            events.push(event(&news.changes[first..at])); // it has come so far
            (first, size) = (at, 0);
        }
        size += body.len();
        let row = "INSERT INTO audit (time, body, guard) VALUES (?1, ?2, ?3)";
        db.prepare_cached(row)?.execute(params![now.0, body, rows::audit_guard(now.0, &body)])?;
    }
    for (device, status) in news.last_words() {
        let name = device.as_str();
        let body = match status {
            Some(status) => serde_json::to_string(status)?,
            None => forgotten(now),
        };
        db.prepare_cached("INSERT OR REPLACE INTO device (name, body, guard) VALUES (?1, ?2, ?3)")?
            .execute(params![name, body, rows::device_guard(name, &body)])?;
    }
    if !news.forgotten.is_empty() {
        db.prepare_cached(
            "DELETE FROM device WHERE name IN (SELECT name FROM device WHERE substr(body, 1, length(?1)) = ?1
             ORDER BY body DESC, name LIMIT -1 OFFSET ?2)",
        )?
        .execute(params![FORGOTTEN, MAX_FORGOTTEN as i64])?;
    }
    if !news.changes.is_empty() {
        events.push(event(&news.changes[first..])); // the last is never told before
        db.prepare_cached("DELETE FROM audit WHERE id <= (SELECT id FROM audit ORDER BY id DESC LIMIT 1 OFFSET ?1)")?
            .execute([keep])?;
    }
    Ok(events)
}

/// How the row of a device begins that is known no more. Whoever was told of it may still
/// show it, and is to hear of that.
const FORGOTTEN: &str = r#"{"forgotten":""#;

fn forgotten(now: Timestamp) -> String {
    format!("{FORGOTTEN}{now}\"}}")
}

fn event(changes: &[DeviceStatus]) -> String {
    json!({ "type": "presence", "changes": changes }).to_string()
}

/// The last word on each device.
pub(super) fn load(db: &Connection) -> rusqlite::Result<KnownDevices> {
    let mut statement = db.prepare("SELECT name, body, guard FROM device")?;
    let mut rows = statement.query([])?;
    let (mut statuses, mut forgotten) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        let (Ok(name), Ok(body), Ok(guard)) = (row.get::<_, String>(0), row.get::<_, String>(1), row.get::<_, i64>(2))
        else {
            continue;
        };
        if guard != rows::device_guard(&name, &body) {
            continue;
        }
        if let (true, Ok(device)) = (body.starts_with(FORGOTTEN), DeviceId::new(&name)) {
            forgotten.push((body, device));
        } else if let Ok(status) = serde_json::from_str(&body) {
            statuses.push(status);
        }
    }
    forgotten.sort_unstable();
    Ok(KnownDevices { statuses, forgotten: forgotten.into_iter().map(|(_, device)| device).collect() })
}

/// See [`super::Log::presence_entries`].
pub(super) fn entries(
    db: &Connection,
    device: Option<&DeviceId>,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<PresenceEntry>> {
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
        if guard != rows::audit_guard(time, &body) {
            continue;
        }
        let Ok(status) = serde_json::from_str::<DeviceStatus>(&body) else { continue };
        if device.is_none_or(|device| *device == status.device) {
            entries.push(PresenceEntry { id: row.get(0)?, time: Timestamp(time), status });
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cause, Presence};

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).expect("a valid name")
    }

    fn status(name: &str, state: Presence) -> DeviceStatus {
        DeviceStatus {
            device: device(name),
            state,
            reason: Cause::Connected,
            since: Timestamp(0),
            last_seen: Timestamp(0),
            time_trusted: true,
            link: "tcp".into(),
            flaps: 0,
            flapping: false,
            firmware: None,
        }
    }

    fn news(changes: &[(&str, Presence)], forgotten: &[&str]) -> UnwrittenPresence {
        let changes = changes.iter().map(|(name, state)| status(name, *state)).collect();
        UnwrittenPresence { changes, forgotten: forgotten.iter().map(|name| (0, device(name))).collect(), upto: 0 }
    }

    #[test]
    fn what_happened_last_to_a_device_is_the_last_word_on_it() {
        let mut waiting = news(&[("gone", Presence::Online), ("back", Presence::Offline)], &[]);
        waiting.add(news(&[("back", Presence::Online)], &["gone", "back"]));
        let mut newer = news(&[("again", Presence::Online)], &["never"]);
        newer.put_back(waiting);
        let state = |name: &str| newer.last_words()[&device(name)].map(|status| status.state);
        assert_eq!((state("gone"), state("never")), (None, None));
        assert_eq!((state("back"), state("again")), (Some(Presence::Online), Some(Presence::Online)));
        assert_eq!(newer.changes.len(), 4, "the trail has them all");
    }

    #[test]
    fn every_change_is_told_in_events_of_a_bounded_size() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(super::super::disk::schema::FILE_NAME);
        let db = super::super::disk::schema::open(&path, crate::config::Durability::Full).expect("a new database");
        let firmware = "\u{1}".repeat(64);
        let change = |n: usize| DeviceStatus {
            firmware: n.is_multiple_of(3).then(|| firmware.as_str().into()),
            ..status(&format!("pump-{n}"), Presence::Online)
        };
        for count in [0, 1, 20, 200] {
            let changes: Vec<_> = (0..count).map(change).collect();
            let news = UnwrittenPresence { changes: changes.clone(), ..UnwrittenPresence::default() };
            let events = write(&db, &news, Timestamp(0), 1000).expect("it is written");
            assert!(events.iter().all(|event| event.len() < AN_EVENT_BYTES + 100));
            assert!(events.len() <= count.div_ceil(15), "{} events of {count}", events.len());
            let told = events.iter().flat_map(|event| {
                let event: serde_json::Value = serde_json::from_str(event).expect("JSON");
                serde_json::from_value::<Vec<DeviceStatus>>(event["changes"].clone()).expect("changes")
            });
            assert!(told.map(|status| status.device).eq(changes.into_iter().map(|status| status.device)));
        }
    }

    #[test]
    fn devices_that_are_forgotten_are_kept_in_mind_as_such_and_in_bounds() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(super::super::disk::schema::FILE_NAME);
        let db = super::super::disk::schema::open(&path, crate::config::Durability::Full).expect("a new database");
        let write = |news: &UnwrittenPresence, seconds: i64| {
            write(&db, news, Timestamp(seconds * 1_000_000), 1000).expect("it is written");
        };
        write(&news(&[("a", Presence::Online), ("b", Presence::Online)], &[]), 1);
        write(&news(&[], &["b"]), 3);
        write(&news(&[], &["a"]), 2);
        let known = load(&db).expect("it is read");
        assert_eq!((known.statuses.len(), known.forgotten), (0, vec![device("a"), device("b")]));
        write(&news(&[("a", Presence::Online)], &[]), 4);
        let known = load(&db).expect("it is read");
        assert_eq!((known.statuses.len(), known.forgotten), (1, vec![device("b")]));
        let many: Vec<String> = (0..MAX_FORGOTTEN + 10).map(|n| format!("d{n:05}")).collect();
        for (second, names) in (5..).zip(many.chunks(100)) {
            write(&news(&[], &names.iter().map(String::as_str).collect::<Vec<_>>()), second);
        }
        let known = load(&db).expect("it is read");
        assert_eq!((known.statuses.len(), known.forgotten.len()), (1, MAX_FORGOTTEN));
        assert!(
            !known.forgotten.contains(&device("b")) && known.forgotten.last() == Some(&device(&many[many.len() - 1]))
        );
    }

    #[test]
    fn what_waits_is_bounded_and_keeps_its_order() {
        let mut waiting = UnwrittenPresence::default();
        for _ in 0..MAX_WAITING {
            waiting.add(news(&[("pump", Presence::Online)], &["other"]));
        }
        waiting.add(news(&[], &["pump"]));
        waiting.add(news(&[("other", Presence::Online)], &[]));
        assert_eq!((waiting.changes.len(), waiting.forgotten.len()), (MAX_WAITING, MAX_WAITING));
        assert!(waiting.last_words()[&device("pump")].is_none());
        assert!(waiting.last_words()[&device("other")].is_some());
    }
}
