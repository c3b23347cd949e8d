//! The events that wait for sinks, and what becomes of them where they are too many.
//!
//! An event is written once and never changes. It goes when every sink has confirmed it,
//! one for a single sink when that has. Where more than are to be kept wait, the oldest
//! changes of presence go first and others only when no such change is left; each sink is
//! told of what it missed. Gaps do not go: the oldest become part of what each sink has
//! missed.

use super::unreported_gaps::{GapUnit, UnreportedGap};
use crate::model::Timestamp;
use crate::store::disk::rows;
use crate::store::disk::schema::EventKind;
use anyhow::Result;
use rusqlite::{Connection, params};
use std::sync::Arc;

/// Events handed out at a time.
const AT_A_TIME: u32 = 100;
/// Gaps for every sink that may wait as events.
const MOST_GAPS: u64 = 256;
/// The share of the events that may be too many, and that goes then at once: not each new
/// one makes one go.
pub(in crate::store) const SHARE: u64 = 16;

/// Something about the gateway itself that is told upstream, such as a gap; kept
/// until each sink confirmed it.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEvent {
    /// Increasing; never reused in an epoch.
    pub id: u64,
    pub time: Timestamp,
    /// A JSON object with at least `type`.
    pub body: serde_json::Map<String, serde_json::Value>,
}

impl LogEvent {
    /// Whether it tells how a command ended.
    pub fn is_command_result(&self) -> bool {
        self.body.get("type").is_some_and(|kind| kind == "command-result")
    }
}

/// Events that went before a sink had them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Lost {
    pub sink: Arc<str>,
    pub kind: &'static str,
    pub count: u64,
}

/// The name of a sink, and the last event that it confirmed.
pub(in crate::store) type EventPosition = (Arc<str>, u64);

/// Takes out what every one of `positions` has confirmed, and of `told`, whom something was
/// told alone, what each has.
pub(in crate::store) fn confirmed(
    db: &Connection,
    positions: &[EventPosition],
    told: &[Arc<str>],
) -> rusqlite::Result<()> {
    let everywhere = positions.iter().map(|(_, event)| *event).min().unwrap_or(0);
    db.prepare_cached("DELETE FROM event WHERE id <= ?1")?.execute([everywhere])?;
    for (name, event) in positions.iter().filter(|(name, event)| *event > everywhere && told.contains(name)) {
        db.prepare_cached("DELETE FROM event WHERE sink = ?1 AND id <= ?2")?.execute(params![&**name, event])?;
    }
    Ok(())
}

/// What went because too many events wait.
#[derive(Debug, Default)]
pub(in crate::store) struct Pruned {
    pub lost: Vec<Lost>,
    /// What each sink misses of it.
    pub missed: Vec<(Arc<str>, UnreportedGap)>,
}

/// Sees to it that not more than `most` events wait. Says what each of `positions` misses of
/// those that went.
pub(in crate::store) fn prune(
    db: &Connection,
    positions: &[EventPosition],
    most: u64,
    now: Timestamp,
) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    let mut surplus = surplus(db, "kind <> 2", most)?;
    for (kind, name) in [(EventKind::Presence, "presence"), (EventKind::Other, "other")] {
        if surplus == 0 {
            break;
        }
        let ids = oldest(db, kind, surplus)?;
        let Some(newest) = ids.last() else { continue };
        db.execute("DELETE FROM event WHERE kind = ?1 AND sink IS NULL AND id <= ?2", params![kind as i64, newest])?;
        surplus -= ids.len() as u64; // not more than asked for
        for (sink, event) in positions {
            let missed: Vec<u64> = ids.iter().copied().filter(|id| id > event).collect();
            if let (Some(first), Some(last)) = (missed.first(), missed.last()) {
                let count = missed.len() as u64;
                let missed = UnreportedGap::new(GapUnit::Events, name, (*first, *last), count, now);
                pruned.missed.push((sink.clone(), missed));
                pruned.lost.push(Lost { sink: sink.clone(), kind: name, count });
            }
        }
    }
    merge_gaps(db, positions, now, &mut pruned)?;
    Ok(pruned)
}

/// The oldest gaps that are for every sink become part of what each of them has missed.
fn merge_gaps(db: &Connection, positions: &[EventPosition], now: Timestamp, pruned: &mut Pruned) -> Result<()> {
    let surplus = surplus(db, "kind = 2 AND sink IS NULL", MOST_GAPS)?;
    for id in oldest(db, EventKind::Gap, surplus)? {
        let (body, time) = db
            .prepare_cached("SELECT body, time FROM event WHERE id = ?1")?
            .query_row([id], |row| Ok((row.get::<_, String>(0)?, Timestamp(row.get(1)?))))?;
        db.prepare_cached("DELETE FROM event WHERE id = ?1")?.execute([id])?;
        let body: serde_json::Map<_, _> = serde_json::from_str(&body).unwrap_or_default();
        for (sink, _) in positions.iter().filter(|(_, event)| id > *event) {
            // What is of another epoch cannot be counted with this one's.
            if body.contains_key("of_epoch") {
                pruned.missed.push((sink.clone(), UnreportedGap::new(GapUnit::Events, "gap", (id, id), 1, now)));
                pruned.lost.push(Lost { sink: sink.clone(), kind: "gap", count: 1 });
            } else if let Some(missed) = UnreportedGap::of_event(&body, sink, time) {
                pruned.missed.push((sink.clone(), missed));
            }
        }
    }
    Ok(())
}

/// How many of those of which `which` is true are to go, if `most` may stay.
fn surplus(db: &Connection, which: &str, most: u64) -> rusqlite::Result<u64> {
    let sql = format!("SELECT count(*) FROM event WHERE {which}");
    let count: u64 = db.prepare_cached(&sql)?.query_row([], |row| row.get(0))?;
    Ok(if count > most { count - (most - most / SHARE) } else { 0 })
}

fn oldest(db: &Connection, kind: EventKind, count: u64) -> rusqlite::Result<Vec<u64>> {
    let mut statement =
        db.prepare_cached("SELECT id FROM event WHERE kind = ?1 AND sink IS NULL ORDER BY id LIMIT ?2")?;
    statement.query_map(params![kind as i64, count], |row| row.get(0))?.collect()
}

/// Events after `after` and up to `newest` that are for the sink `name`, oldest first.
pub(in crate::store) fn read(db: &Connection, name: &str, after: u64, newest: u64) -> Result<Vec<LogEvent>> {
    let mut statement = db.prepare_cached(
        "SELECT id, time, body, guard, sink FROM event
         WHERE id > ?1 AND id <= ?2 AND (sink IS NULL OR sink = ?3) ORDER BY id LIMIT ?4",
    )?;
    let mut rows = statement.query(params![after, newest, name, AT_A_TIME])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let (time, text, guard) = (row.get(1), row.get::<_, String>(2), row.get::<_, i64>(3));
        let sound = match (time, text, guard, row.get::<_, Option<String>>(4)) {
            (Ok(time), Ok(text), Ok(guard), Ok(sink))
                if guard == rows::event_guard(id, time, &text, sink.as_deref()) =>
            {
                serde_json::from_str(&text).ok().map(|body| (Timestamp(time), body))
            }
            _ => None,
        };
        // One that is damaged is told of as such: what it said is not known.
        let (time, body) = sound.unwrap_or_else(|| {
            let lost = [("type", "events_lost".into()), ("reason", "corrupt".into()), ("count", 1.into())];
            (Timestamp(0), lost.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())
        });
        events.push(LogEvent { id: u64::try_from(id).unwrap_or(0), time, body });
    }
    Ok(events)
}
