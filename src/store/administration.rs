//! What an operator does with readings and the positions of sinks while no gateway runs.

use super::disk::boot_times;
use super::disk::pending_high_water;
use super::disk::rows::{self, HEADER_COLUMNS, LAST_SEQ};
use super::disk::schema::{self, FILE_NAME};
use super::recovery::open;
use super::recovery::startup;
use super::retention::gap::Hole;
use super::retention::holes::Holes;
use super::sinks::positions::{self, CursorPosition, ForgottenSink};
use super::sinks::rejected;
use super::sinks::unreported_gaps::{self, GapUnit, UnreportedGap};
use crate::config::Durability;
use crate::model::{Seq, Timestamp};
use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use std::collections::BTreeMap;
use std::path::Path;

/// Which readings to purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Seq(Seq),
    Time(Timestamp),
    Everything,
}

/// What a purge removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    /// The range of seqs that went, if any did.
    pub range: Option<(Seq, Seq)>,
    /// Readings in it.
    pub readings: u64,
    /// Those of them that leave the log: whole segments do, if they are purged of all sinks.
    pub removed: u64,
    /// Sinks, and how many of these readings each had not confirmed.
    pub undelivered: Vec<(String, u64)>,
}

/// Forgets the position of a sink, which is told to the others. Returns how many readings were
/// kept for it; with `really` false they are only counted.
///
/// # Errors
/// If a gateway runs on this log, or it is damaged, or the sink is unknown.
pub fn forget_sink(directory: &Path, name: &str, now: Timestamp, really: bool) -> Result<u64> {
    change(directory, really, |db, positions| {
        let Some(position) = positions.get(name) else { bail!("{}", unknown(name, positions)) };
        let last: Option<u64> =
            db.query_row(&format!("SELECT max({LAST_SEQ}) FROM segment"), [], |row| row.get(0)).optional()?.flatten();
        let (first, last) = (Seq(position.confirmed).next(), Seq(last.unwrap_or(0)));
        let forgotten = ForgottenSink { name: name.into(), count: waiting(db, position)?, first, last };
        if really && let Some(body) = positions::forget(db, &forgotten)? {
            schema::insert_event(db, now, &body)?;
        }
        Ok(forgotten.count)
    })
}

/// Has the sink `to` take over the position of the sink `from`, and what that one has missed;
/// if it had a position of its own, that is forgotten. Returns how many readings wait there.
///
/// # Errors
/// If a gateway runs on this log, or it is damaged, or there is no sink `from`.
pub fn rename_sink(directory: &Path, from: &str, to: &str) -> Result<u64> {
    change(directory, true, |db, positions| {
        let Some(position) = positions.get(from).copied() else { bail!("{}", unknown(from, positions)) };
        if from == to {
            bail!("the old name and the new one are the same");
        }
        db.execute("DELETE FROM sink WHERE name = ?1", [from])?;
        schema::put_position(db, to, Seq(position.confirmed), position.event, position.retired)?;
        unreported_gaps::rename(db, from, to)?;
        rejected::rename(db, from, to)?;
        positions.remove(from);
        positions.insert(to.to_owned(), position);
        positions::write_names(db, positions, None)?;
        waiting(db, &position)
    })
}

/// Opens the log of a gateway that does not run, and changes it if `really`.
fn change<T>(
    directory: &Path,
    really: bool,
    work: impl FnOnce(&Transaction<'_>, &mut BTreeMap<String, CursorPosition>) -> Result<T>,
) -> Result<T> {
    let _lock = super::disk::lock::lock(directory).context("stop the gateway first")?;
    let path = directory.join(FILE_NAME);
    if !path.exists() {
        bail!("there is no log in {}; see [store] directory", directory.display());
    }
    // What a power cut left behind its place would be written over.
    if open::settle(&path, Durability::Full, true)?.cut_off.is_some() {
        bail!("start the gateway once, so that {} is whole after a power cut", path.display());
    }
    let mut db = schema::open(&path, Durability::Full).context("start the gateway once, so that its log recovers")?;
    // What goes is to be gone, also from pages that are free now.
    db.pragma_update(None, "secure_delete", true)?;
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = work(&transaction, &mut positions::all(&transaction)?)?;
    if really {
        transaction.commit()?;
    }
    Ok(done)
}

fn unknown(name: &str, positions: &BTreeMap<String, CursorPosition>) -> String {
    let known: Vec<_> = positions.keys().map(String::as_str).collect();
    format!("there is no sink {name:?} in the log; it has {}", known.join(", "))
}

/// Readings on disk behind the position.
fn waiting(db: &Connection, position: &CursorPosition) -> Result<u64> {
    let sql = format!("SELECT {HEADER_COLUMNS} FROM segment WHERE {LAST_SEQ} > ?1 ORDER BY first_seq");
    let mut statement = db.prepare(&sql)?;
    let mut rows = statement.query([position.confirmed])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let header = rows::header_of(row);
        count += header.map_or(0, |header| header.within(Seq(position.confirmed), header.last()));
    }
    Ok(count)
}

/// Removes readings that will not be delivered any more, of all sinks or of one, and
/// leaves a gap event that says so. With `really` false it only counts them.
///
/// Without a sink, the readings leave the log, as far as whole segments do. With one,
/// that sink's position moves over them, and others still get them.
///
/// # Errors
/// If a gateway runs on this log, or it is damaged, or the sink is unknown.
pub fn purge(directory: &Path, only: Option<&str>, before: Before, now: Timestamp, really: bool) -> Result<Purged> {
    change(directory, really, |transaction, positions| remove(transaction, positions, only, before, now, really))
}

fn remove(
    transaction: &Transaction<'_>,
    positions: &BTreeMap<String, CursorPosition>,
    only: Option<&str>,
    before: Before,
    now: Timestamp,
    really: bool,
) -> Result<Purged> {
    if let Some(name) = only.filter(|name| !positions.contains_key(*name)) {
        bail!("{}", unknown(name, positions));
    }
    let mut purged = Purged { range: None, readings: 0, removed: 0, undelivered: Vec::new() };
    let chosen = positions.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
    let mut lost: BTreeMap<&str, u64> = chosen.map(|(name, _)| (name.as_str(), 0)).collect();
    let upto = last_before(transaction, before)?;
    {
        let sql = format!("SELECT {HEADER_COLUMNS} FROM segment WHERE first_seq <= ?1 ORDER BY first_seq");
        let mut statement = transaction.prepare(&sql)?;
        let mut rows = statement.query([upto.0])?;
        while let Some(row) = rows.next()? {
            let Some(header) = rows::header_of(row) else { continue };
            let last = header.last().min(upto);
            purged.readings += header.within(Seq::ZERO, last);
            if only.is_none() && last == header.last() {
                purged.removed += header.within(Seq::ZERO, last);
            }
            purged.range = Some((purged.range.map_or(header.first, |(first, _)| first), last));
            for (name, count) in &mut lost {
                let confirmed = positions.get(*name).map_or(0, |position| position.confirmed);
                *count += header.within(Seq(confirmed), last);
            }
        }
    }
    purged.undelivered = lost.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let Some((first, last)) = purged.range.filter(|_| really) else { return Ok(purged) };
    for (name, count) in &lost {
        let CursorPosition { confirmed, event, retired } = positions.get(*name).copied().unwrap_or_default();
        schema::put_position(transaction, name, Seq(confirmed.max(last.0)), event, retired)?;
        if *count > 0 {
            let range = (first.0.max(confirmed + 1), last.0);
            unreported_gaps::record(
                transaction,
                name,
                vec![UnreportedGap::new(GapUnit::Readings, "purged", range, *count, now)],
            )?;
        }
    }
    if only.is_none() {
        // What devices' high-water marks follow from may go: after a crash they are not in their table.
        pending_high_water::catch_up(transaction, startup::meta(transaction, "listed")?)?;
        let gone = transaction.execute(&format!("DELETE FROM segment WHERE {LAST_SEQ} <= ?1"), [last.0])?;
        if gone > 0 {
            let left: Option<u64> =
                transaction.query_row("SELECT min(first_seq) FROM segment", [], |row| row.get(0))?;
            let kept = left.map_or(last, |left| Seq(left).prev().min(last));
            let (before, _) = Holes::load(transaction)?;
            let mut holes = before.clone();
            holes.reach(last);
            holes.add(&[Hole::whole(first, kept)]);
            holes.write(&before, transaction)?;
        }
    }
    Ok(purged)
}

/// The last seq that a purge takes.
fn last_before(db: &Connection, before: Before) -> Result<Seq> {
    let time = match before {
        Before::Everything => return Ok(Seq(i64::MAX as u64)),
        Before::Seq(seq) => return Ok(seq.prev()),
        Before::Time(time) => time,
    };
    let began = boot_times::beginnings(db)?;
    let mut upto = Seq::ZERO;
    let mut statement = db.prepare(&format!("SELECT {HEADER_COLUMNS} FROM segment ORDER BY first_seq"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let Some(header) = rows::header_of(row) else { continue };
        match boot_times::known_range(db, &header, &began)? {
            Some((_, newest)) if newest < time => upto = header.last(),
            Some(_) => break,
            // What has no time came before what follows it.
            None => {}
        }
    }
    Ok(upto)
}
