//! What an operator does with the places of sinks while no gateway runs.

use super::heal;
use super::missed;
use super::row::{self, HEADER_COLUMNS, LAST_SEQ};
use super::schema::{self, FILE_NAME};
use super::sinks::{self, Forgotten, Place};
use crate::config::Durability;
use crate::model::{Seq, Timestamp};
use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use std::collections::BTreeMap;
use std::path::Path;

/// Forgets the place of a sink, which is told to the others. Returns how many readings were
/// kept for it; with `really` false they are only counted.
///
/// # Errors
/// If a gateway runs on this log, or it is damaged, or the sink is unknown.
pub fn forget_sink(directory: &Path, name: &str, now: Timestamp, really: bool) -> Result<u64> {
    change(directory, really, |db, places| {
        let Some(place) = places.get(name) else { bail!("{}", unknown(name, places)) };
        let last: Option<u64> =
            db.query_row(&format!("SELECT max({LAST_SEQ}) FROM segment"), [], |row| row.get(0)).optional()?.flatten();
        let (first, last) = (Seq(place.confirmed).next(), Seq(last.unwrap_or(0)));
        let forgotten = Forgotten { name: name.into(), count: waiting(db, place)?, first, last };
        if really && let Some(body) = sinks::forget(db, &forgotten)? {
            schema::insert_event(db, now, &body)?;
        }
        Ok(forgotten.count)
    })
}

/// Has the sink `to` take over the place of the sink `from`, and what that one has missed;
/// if it had a place of its own, that is forgotten. Returns how many readings wait there.
///
/// # Errors
/// If a gateway runs on this log, or it is damaged, or there is no sink `from`.
pub fn rename_sink(directory: &Path, from: &str, to: &str) -> Result<u64> {
    change(directory, true, |db, places| {
        let Some(place) = places.get(from).copied() else { bail!("{}", unknown(from, places)) };
        if from == to {
            bail!("the old name and the new one are the same");
        }
        db.execute("DELETE FROM sink WHERE name = ?1", [from])?;
        schema::put_place(db, to, Seq(place.confirmed), place.event, place.retired)?;
        missed::rename(db, from, to)?;
        places.remove(from);
        places.insert(to.to_owned(), place);
        sinks::write_names(db, places, None)?;
        waiting(db, &place)
    })
}

/// Opens the log of a gateway that does not run, and changes it if `really`.
fn change<T>(
    directory: &Path,
    really: bool,
    work: impl FnOnce(&Transaction<'_>, &mut BTreeMap<String, Place>) -> Result<T>,
) -> Result<T> {
    let _lock = super::writer::lock(directory).context("stop the gateway first")?;
    let path = directory.join(FILE_NAME);
    if !path.exists() {
        bail!("there is no log in {}; see [store] directory", directory.display());
    }
    // What a power cut left behind its place would be written over.
    if heal::settle(&path, Durability::Full, true)?.cut.is_some() {
        bail!("start the gateway once, so that {} is whole after a power cut", path.display());
    }
    let mut db = schema::open(&path, Durability::Full).context("start the gateway once, so that its log heals")?;
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = work(&transaction, &mut sinks::places(&transaction)?)?;
    if really {
        transaction.commit()?;
    }
    Ok(done)
}

fn unknown(name: &str, places: &BTreeMap<String, Place>) -> String {
    let known: Vec<_> = places.keys().map(String::as_str).collect();
    format!("there is no sink {name:?} in the log; it has {}", known.join(", "))
}

/// Readings on disk behind the place.
fn waiting(db: &Connection, place: &Place) -> Result<u64> {
    let sql = format!("SELECT {HEADER_COLUMNS} FROM segment WHERE {LAST_SEQ} > ?1 ORDER BY first_seq");
    let mut statement = db.prepare(&sql)?;
    let mut rows = statement.query([place.confirmed])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let header = row::header_of(row);
        count += header.map_or(0, |header| header.within(Seq(place.confirmed), header.last()));
    }
    Ok(count)
}
