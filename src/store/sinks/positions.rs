//! The positions of sinks, which outlive the configuration.
//!
//! A sink that is taken out of the configuration keeps its position, retired: what waits for
//! it counts as history from then on, and what goes of that is noted, so that it goes on
//! where it stood and is told what it missed should it come back. Retired positions are
//! forgotten after a while, or by command, or for newer ones where there are many.

use super::rejected;
use super::unreported_gaps::{self, GapUnit, UnreportedGap};
use crate::config::Start;
use crate::model::{Seq, Timestamp};
use crate::store::disk::rows;
use crate::store::disk::schema::{put_position, set_meta};
use crate::store::retention::gap::Hole;
use anyhow::{Result, bail};
use rusqlite::{Connection, OptionalExtension, Transaction};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A sink as the configuration has it.
#[derive(Debug, Clone, Copy)]
pub struct ConfiguredSink<'a> {
    pub name: &'a str,
    /// Where it begins if the log does not know it.
    pub start: Start,
}

impl<'a> From<&'a str> for ConfiguredSink<'a> {
    fn from(name: &'a str) -> ConfiguredSink<'a> {
        ConfiguredSink { name, start: Start::Oldest }
    }
}

/// Where a sink stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct CursorPosition {
    pub confirmed: u64,
    pub event: u64,
    /// When it was found to be configured no more, by the log's clock.
    pub retired: Option<u64>,
}

/// A sink that is not configured any more.
#[derive(Debug, Clone)]
pub(in crate::store) struct RetiredSink {
    pub name: Arc<str>,
    pub confirmed: Seq,
    pub event: u64,
    /// By the log's clock, in seconds.
    pub since: u64,
}

/// Retired positions that are kept, whatever their age.
pub(in crate::store) const MOST_RETIRED: usize = 32;

/// What a start makes of the positions that it finds.
#[derive(Debug, Default)]
pub(in crate::store) struct AdoptedSinks {
    /// Confirmed seq and event of each wanted sink, in their order.
    pub positions: Vec<(Seq, u64)>,
    pub retired: Vec<RetiredSink>,
    /// Wanted sinks that the log did not know.
    pub new: Vec<String>,
}

/// What a start knows of the log when it looks for positions.
pub(in crate::store) struct Extent<'h> {
    /// The next seq that is given out.
    pub next: u64,
    pub holes: &'h [Hole],
    pub last_event: u64,
    /// By the log's clock, and by the wall clock.
    pub clock: u64,
    pub now: Timestamp,
}

/// Gives every wanted sink its position, and retires the others. One that is new begins where
/// the configuration says; one whose row is damaged or lost starts over with the oldest
/// reading: rather twice than not at all.
pub(in crate::store) fn adopt(
    transaction: &Transaction<'_>,
    wanted: &[ConfiguredSink<'_>],
    names: Option<u64>,
    extent: &Extent<'_>,
) -> Result<AdoptedSinks> {
    let (mut known, mut lost) = sound(transaction, extent.next)?;
    let present = rows::names_guard(known.keys().map(String::as_str));
    lost |= names.is_some_and(|names| i64::try_from(names) != Ok(present));
    if lost {
        tracing::error!("the place of a sink in the log is damaged; what is kept is sent to it again");
        transaction.execute("DELETE FROM sink", [])?;
    }
    for (name, position) in &mut known {
        let is_wanted = wanted.iter().any(|sink| sink.name == name);
        position.retired = if is_wanted { None } else { Some(position.retired.unwrap_or(extent.clock)) };
    }
    let mut new = Vec::new();
    for ConfiguredSink { name, start } in
        wanted.iter().filter(|sink| !known.contains_key(sink.name)).copied().collect::<Vec<_>>()
    {
        let from_oldest = lost || start == Start::Oldest;
        let position = match from_oldest {
            true => CursorPosition { confirmed: oldest(transaction, extent)?.prev().0, ..CursorPosition::default() },
            false => CursorPosition { confirmed: extent.next - 1, event: extent.last_event, retired: None },
        };
        if from_oldest {
            explain(transaction, name, position.confirmed, extent)?;
        }
        known.insert(name.to_owned(), position);
        new.push(name.to_owned());
    }
    for (name, position) in &known {
        put_position(transaction, name, Seq(position.confirmed), position.event, position.retired)?;
    }
    write_names(transaction, &known, names)?;
    let position =
        |sink: &ConfiguredSink<'_>| known.get(sink.name).map(|position| (Seq(position.confirmed), position.event));
    Ok(AdoptedSinks { positions: wanted.iter().filter_map(position).collect(), retired: retired(&known), new })
}

fn retired(known: &BTreeMap<String, CursorPosition>) -> Vec<RetiredSink> {
    let retired = known.iter().filter_map(|(name, position)| {
        let since = position.retired?;
        Some(RetiredSink {
            name: name.as_str().into(),
            confirmed: Seq(position.confirmed),
            event: position.event,
            since,
        })
    });
    retired.collect()
}

/// The first reading that the log still has, or will have.
fn oldest(db: &Connection, extent: &Extent<'_>) -> rusqlite::Result<Seq> {
    let first: Option<u64> = db.query_row("SELECT min(first_seq) FROM segment", [], |row| row.get(0))?;
    Ok(Seq(first.unwrap_or(extent.next).min(extent.next)))
}

/// A sink that begins with history is told of what is missing in it.
fn explain(db: &Connection, name: &str, after: u64, extent: &Extent<'_>) -> Result<()> {
    let missing = extent.holes.iter().filter(|hole| hole.first.0 > after);
    let missing = missing.map(|hole| {
        UnreportedGap::new(GapUnit::Seqs, "history", (hole.first.0, hole.last.0), hole.missing, extent.now)
    });
    unreported_gaps::record(db, name, missing.collect())
}

/// Confirmed seq and event of each sink.
///
/// # Errors
/// If one is not what was written.
pub(in crate::store) fn all(db: &Connection) -> Result<BTreeMap<String, CursorPosition>> {
    let (known, lost) = sound(db, u64::MAX)?;
    if lost {
        bail!("the place of a sink is not what was written");
    }
    Ok(known)
}

/// Each sink whose position is sound, and whether there are others.
pub(in crate::store) fn sound(
    db: &Connection,
    next: u64,
) -> rusqlite::Result<(BTreeMap<String, CursorPosition>, bool)> {
    let (mut known, mut lost) = (BTreeMap::new(), false);
    let mut statement = db.prepare("SELECT name, confirmed, event, guard, retired FROM sink")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match (
            row.get::<_, String>(0),
            row.get::<_, i64>(1),
            row.get::<_, i64>(2),
            row.get::<_, i64>(3),
            row.get::<_, Option<i64>>(4),
        ) {
            (Ok(name), Ok(confirmed), Ok(event), Ok(guard), Ok(retired))
                if guard == rows::sink_guard(&name, confirmed, event, retired) && confirmed.unsigned_abs() < next =>
            {
                let (confirmed, event) = (confirmed.unsigned_abs(), event.unsigned_abs());
                known.insert(name, CursorPosition { confirmed, event, retired: retired.map(i64::unsigned_abs) });
            }
            _ => lost = true,
        }
    }
    Ok((known, lost))
}

/// Keeps by which names there are positions, if those are others than before.
pub(in crate::store) fn write_names(
    db: &Connection,
    known: &BTreeMap<String, CursorPosition>,
    before: Option<u64>,
) -> rusqlite::Result<()> {
    let present = rows::names_guard(known.keys().map(String::as_str)).unsigned_abs();
    if before == Some(present) { Ok(()) } else { set_meta(db, "sinks", present) }
}

/// What is lost with a position that is forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct ForgottenSink {
    pub name: Arc<str>,
    /// Readings that were kept for it, and the seqs between which they stand.
    pub count: u64,
    pub first: Seq,
    pub last: Seq,
}

/// Those whose time is over at `clock`, or that are too many, the ones retired first.
pub(in crate::store) fn expired(retired: &[RetiredSink], clock: u64, after: u64) -> Vec<RetiredSink> {
    let mut oldest: Vec<&RetiredSink> = retired.iter().collect();
    oldest.sort_by_key(|sink| sink.since);
    let surplus = oldest.len().saturating_sub(MOST_RETIRED);
    let is_over = |(at, sink): &(usize, &RetiredSink)| *at < surplus || clock.saturating_sub(sink.since) > after;
    oldest.into_iter().enumerate().filter(is_over).map(|(_, sink)| sink.clone()).collect()
}

/// Forgets a position. Returns the body of the event that tells the others of it, if
/// readings were kept for it.
pub(in crate::store) fn forget(db: &Connection, forgotten: &ForgottenSink) -> Result<Option<String>> {
    let ForgottenSink { name, count, first, last } = forgotten;
    db.prepare_cached("DELETE FROM sink WHERE name = ?1")?.execute([&**name])?;
    unreported_gaps::forget(db, name)?;
    rejected::forget(db, name)?;
    let names = db.query_row("SELECT value FROM meta WHERE key = 'sinks'", [], |row| row.get(0)).optional()?;
    write_names(db, &sound(db, u64::MAX)?.0, names)?;
    tracing::warn!(sink = &**name, readings = count, "the place of a sink that is no longer configured is forgotten");
    let body = || {
        serde_json::json!({
            "type": "gap", "reason": "forgotten", "first": first, "last": last, "count": count,
            "undelivered": { &**name: count },
        })
    };
    Ok((*count > 0).then(|| body().to_string()))
}
