//! How many readings each sink's destination did not take: they were passed over for it and
//! stay in the log as history. Counted for whoever looks at the log later.

use crate::store::disk::schema::set_meta;
use crate::store::retention::gap::Gap;
use anyhow::Result;
use rusqlite::{Connection, OptionalExtension};

/// Why a destination does not take a reading.
const REASONS: [&str; 2] = ["refused", "too_large"];

/// The entry of `meta` that counts those of the sink `name`.
pub(in crate::store) fn key(name: &str) -> String {
    format!("aside/{name}")
}

/// Counts what a gap tells of, if its readings were set aside.
pub(in crate::store) fn count(db: &Connection, gap: &Gap) -> Result<()> {
    if !REASONS.contains(&gap.reason) {
        return Ok(());
    }
    for (name, count) in gap.undelivered.iter().filter(|(_, count)| *count > 0) {
        set_meta(db, &key(name), of(db, name)?.saturating_add(*count))?;
    }
    Ok(())
}

fn of(db: &Connection, name: &str) -> rusqlite::Result<u64> {
    let mut statement = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key(name)], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// The sink `to` takes over what `from` has.
pub(in crate::store) fn rename(db: &Connection, from: &str, to: &str) -> rusqlite::Result<()> {
    let count = of(db, from)?;
    forget(db, from)?;
    forget(db, to)?;
    if count > 0 { set_meta(db, &key(to), count) } else { Ok(()) }
}

/// Forgets the sink `name`.
pub(in crate::store) fn forget(db: &Connection, name: &str) -> rusqlite::Result<()> {
    db.execute("DELETE FROM meta WHERE key = ?1", [key(name)]).map(drop)
}
