//! What a start reads from the database, and how it decides whether to believe it.
//!
//! A start reads the small tables, the newest segments, and the whole structure of a small
//! database: how long it takes does not depend on how much the log holds. A sink whose place is damaged starts over, a damaged
//! mark is forgotten, a damaged event is taken out; anything else that cannot be right
//! is a [`Fault`], and the database goes into quarantine.

use super::power_cut::{self, Left, UNSYNCED};
use crate::clock::Now;
use crate::config::Durability;
use crate::model::{DeviceId, Epochs, Seq, Timestamp};
use crate::store::disk::boot_times;
use crate::store::disk::checkpoint::{self, Folding};
use crate::store::disk::damage::Fault;
use crate::store::disk::epochs;
use crate::store::disk::log_clock::{Kept, LogClock};
use crate::store::disk::pending_high_water;
use crate::store::disk::rows;
use crate::store::disk::schema::{SEQ_BLOCK, insert_event, put_mark, set_meta, small_structure_fault, synchronise};
use crate::store::disk::ticket::Ticket;
use crate::store::inbox;
use crate::store::retention::gap::Hole;
use crate::store::retention::holes::{self, Holes};
use crate::store::sinks::positions::{self, Adopted, Extent, Wanted};
use crate::store::sinks::unreported_gaps::{self, News};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

/// What the last life of the gateway left in the log.
#[derive(Debug)]
pub(in crate::store) struct Recovered {
    pub epochs: Epochs,
    /// The next seq to give out; all up to `reserved` may be.
    pub next: Seq,
    pub reserved: Seq,
    /// The last seq that lies on disk.
    pub written: Seq,
    /// The places of the sinks.
    pub sinks: Adopted,
    /// What each of the wanted ones is to be told.
    pub news: Vec<News>,
    pub marks: Vec<(DeviceId, u64, u64)>,
    /// Seqs that no reading has.
    pub holes: Holes,
    pub last_event: u64,
    /// The log's clock as it was kept, and what the newest segment has of it.
    pub clock: (Kept, u64),
    /// What the next commit says of the last checkpoint.
    pub folding: Folding,
    /// Stands in segments for the lanes by which they are counted from now on.
    pub generation: u64,
    /// How the last life ended, if it did not close the log.
    pub cut_short: Option<CutShort>,
}

/// How a life of the gateway ended that did not close the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum CutShort {
    /// The machine went on.
    Alone,
    /// The machine has been started since.
    WithMachine,
}

/// So many ids of events are passed over after an unclean stop, more than are given out
/// between two reservations of seqs.
const EVENT_BLOCK: u64 = 1 << 32;

/// The entry of `meta` for the last seq before those of the life that wrote it.
const BEGAN_BEHIND: &str = "began_behind";

/// Reads what the last life left, puts back what was cut off, reserves the seqs of this
/// life, and records the holes that an unclean stop leaves. All of it is synced, whatever
/// the durability: a power cut may take readings back, but no seq is given out twice.
pub(in crate::store) fn recover(
    connection: &mut Connection,
    wanted: &[Wanted<'_>],
    now: Now,
    ticket: &mut Ticket,
    durability: Durability,
    left: &Left,
    lanes: u64,
) -> Result<Recovered, Fault> {
    synchronise(connection, Durability::Full)?;
    let path = connection.path().map(PathBuf::from);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(found) = small_structure_fault(&transaction)? {
        return Err(Fault::Damaged(format!("its structure is broken: {}", found.replace('\n', " "))));
    }
    let meta = read_meta(&transaction)?;
    let before = Holes::of(&transaction, meta.contains_key(holes::COMPLETE))?;
    let (seen_end, mut newest) = holes::newest(&transaction)?;
    let mut disk_end = seen_end;
    let mut holes = before.clone();
    holes.reach(Seq(seen_end));
    let known_end = holes.end();
    if let Some(cut) = &left.cut {
        // What an earlier life left was put back or told as a gap when this one began.
        let end = known_end.max(Seq(meta.get(BEGAN_BEHIND).copied().unwrap_or(0)));
        // When they were written is not known: their age counts from now.
        let clock = LogClock::new(kept_clock(&meta), newest, ticket.boot(), now).read(now);
        cut.put_back(&transaction, end, clock)?;
        holes.follow_all(&transaction)?;
        (disk_end, newest) = holes::newest(&transaction)?;
    }
    if epochs::read(&meta).is_none() && (disk_end > 0 || !meta.is_empty()) {
        return Err(Fault::Damaged("the epoch is missing or impossible".into()));
    }
    let reserved = meta.get("reserved").copied().unwrap_or(0).max(left.cut.as_ref().map_or(0, |cut| cut.reserved));
    // What was cut off may have undone it.
    let clean = meta.get("clean").copied().filter(|_| left.cut.is_none());
    if disk_end > reserved {
        return Err(Fault::Damaged(format!("seq {disk_end} is stored, though only those to {reserved} were reserved")));
    }
    if !left.has_wal && checkpoint::lacks_write_ahead_log(&meta, path.as_deref().and_then(checkpoint::noted)) {
        return Err(Fault::Damaged("the log was not closed, and its write-ahead log is missing".into()));
    }
    let next = match clean {
        Some(clean) => clean.max(disk_end + 1),
        None => reserved.max(disk_end) + 1,
    };
    holes.skip_to(Seq(next - 1));
    holes.write(&before, &transaction)?;
    let reserved = next - 1 + SEQ_BLOCK;
    set_meta(&transaction, "reserved", reserved)?;
    set_meta(&transaction, BEGAN_BEHIND, next - 1)?;
    transaction.execute("DELETE FROM meta WHERE key = 'clean'", [])?;
    match durability {
        Durability::Normal => set_meta(&transaction, UNSYNCED, 1)?,
        Durability::Full => drop(transaction.execute("DELETE FROM meta WHERE key = ?1", [UNSYNCED])?),
    }

    let kept = |key: &str| meta.get(key).copied().unwrap_or(0);
    let last = last_event(&transaction)?;
    let missing: Vec<Hole> = holes.behind(Seq::ZERO).collect();
    let extent = Extent { next, holes: &missing, last_event: last, clock: kept("log_clock"), now: now.wall };
    let sinks = positions::adopt(&transaction, wanted, meta.get("sinks").copied(), &extent).map_err(Fault::of)?;
    // Before there was such an entry, each commit wrote its marks to their table.
    let listed = meta.get("listed").copied().unwrap_or(disk_end);
    pending_high_water::replay(&transaction, Seq(listed), Seq(disk_end))?;
    let marks = read_marks(&transaction)?;
    let new: Vec<Hole> = holes.behind(known_end).filter_map(|hole| hole.rest(known_end)).collect();
    let told = new.iter().filter(|hole| clean.is_none() && hole.is_whole());
    let told = power_cut::gaps(told, meta.contains_key(UNSYNCED));
    // Of events that sinks have seen, too, a power cut or an old copy may have taken some back.
    let skipped = if clean.is_none() && !told.is_empty() { EVENT_BLOCK } else { 0 };
    let events = sinks.places.iter().map(|(_, event)| *event).chain(sinks.retired.iter().map(|sink| sink.event));
    let confirmed = events.max().unwrap_or(0);
    unreported_gaps::scrub(&transaction, now.wall)?;
    scrub_events(&transaction, now.wall, confirmed, skipped)?;
    let epochs = epochs::go_on(&transaction, &meta, ticket, Seq(next), now.wall)?;
    for body in told {
        insert_event(&transaction, now.wall, &body)?;
    }
    let last_event = last_event(&transaction)?;
    let news =
        wanted.iter().map(|sink| unreported_gaps::news(&transaction, sink.name)).collect::<rusqlite::Result<_>>()?;
    let clock = (kept_clock(&meta), newest);
    let cut_short = (clean.is_none() && !meta.is_empty()).then(|| match clock.0.is_of(ticket.boot()) {
        true => CutShort::Alone,
        false => CutShort::WithMachine,
    });
    let generation = generation(&transaction, &meta, lanes)?;
    let mut folding = Folding::after(kept(checkpoint::NUMBER), !left.goes_on);
    let lists = folding.write(&transaction)?;
    transaction.commit()?;
    if let Some(path) = path.filter(|_| lists) {
        folding.written(&path);
    }
    ticket.written()?;
    synchronise(connection, durability)?;
    Ok(Recovered {
        epochs,
        next: Seq(next),
        reserved: Seq(reserved),
        written: Seq(disk_end),
        sinks,
        news,
        marks,
        holes,
        last_event,
        clock,
        folding,
        generation,
        cut_short,
    })
}

/// Counts how often the lanes changed: segments counted by others are looked into anew.
fn generation(transaction: &Transaction<'_>, meta: &BTreeMap<String, u64>, lanes: u64) -> rusqlite::Result<u64> {
    let before = meta.get("lanes_generation").copied().unwrap_or(0);
    if before > 0 && meta.get("lanes") == Some(&lanes) {
        return Ok(before);
    }
    set_meta(transaction, "lanes", lanes)?;
    set_meta(transaction, "lanes_generation", before + 1)?;
    Ok(before + 1)
}

type Marks = Vec<(DeviceId, u64, u64)>;

/// The marks that are sound, and how many are not.
fn sound_marks(connection: &Connection) -> rusqlite::Result<(Marks, u64)> {
    let mut statement = connection.prepare("SELECT device, session, seq, guard FROM mark")?;
    let mut rows = statement.query([])?;
    let (mut marks, mut damaged) = (Vec::new(), 0u64);
    while let Some(row) = rows.next()? {
        let sound = match (row.get::<_, String>(0), row.get::<_, i64>(1), row.get::<_, i64>(2), row.get::<_, i64>(3)) {
            (Ok(device), Ok(session), Ok(seq), Ok(guard)) if guard == rows::mark_guard(&device, session, seq) => {
                let session = session as u64; // the same 64 bits as written
                DeviceId::new(&device).ok().zip(u64::try_from(seq).ok()).map(|(device, seq)| (device, session, seq))
            }
            _ => None,
        };
        match sound {
            Some(mark) => marks.push(mark),
            None => damaged += 1,
        }
    }
    Ok((marks, damaged))
}

fn read_marks(transaction: &Transaction<'_>) -> rusqlite::Result<Marks> {
    let (mut marks, damaged) = sound_marks(transaction)?;
    if damaged > 0 {
        tracing::error!(devices = damaged, "damaged marks are forgotten: what those devices send again is kept twice");
        transaction.execute("DELETE FROM mark", [])?;
        for (device, session, seq) in &marks {
            put_mark(transaction, device.as_str(), *session, *seq, Seq::ZERO)?;
        }
    }
    // The one that was used last stands at the end.
    let mut statement = transaction.prepare("SELECT device, coalesce(used, 0) FROM mark")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1).unwrap_or(0))))?;
    let used: HashMap<String, i64> = rows.collect::<rusqlite::Result<_>>()?;
    marks.sort_by_key(|(device, ..)| used.get(device.as_str()).copied().unwrap_or(0));
    Ok(marks)
}

/// The newest sound event's id, 0 if there is none, and the ids of those that are damaged.
fn look_at_events(connection: &Connection) -> rusqlite::Result<(i64, Vec<i64>)> {
    let (mut newest, mut damaged) = (0, Vec::new());
    let mut statement = connection.prepare("SELECT id, time, body, guard, sink FROM event ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        match (row.get::<_, i64>(1), row.get::<_, String>(2), row.get::<_, i64>(3), row.get::<_, Option<String>>(4)) {
            (Ok(time), Ok(body), Ok(guard), Ok(sink))
                if guard == rows::event_guard(id, time, &body, sink.as_deref()) =>
            {
                newest = id;
            }
            _ => damaged.push(id),
        }
    }
    Ok((newest, damaged))
}

/// What the last life kept of the log's clock.
fn kept_clock(meta: &BTreeMap<String, u64>) -> Kept {
    let kept = |key: &str| meta.get(key).copied().unwrap_or(0);
    Kept { seconds: kept("log_clock"), boot: kept("log_clock_boot"), uptime: kept("log_clock_uptime") }
}

/// Takes out events that are damaged, and says so by one that is not. Sees to it that
/// no id is given out again that a sink has confirmed, and passes over `skipped` more.
fn scrub_events(transaction: &Transaction<'_>, now: Timestamp, confirmed: u64, skipped: u64) -> rusqlite::Result<()> {
    const FAR: i64 = 1 << 48;
    let (newest, damaged) = look_at_events(transaction)?;
    let last: Option<i64> = transaction
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'event'", [], |row| Ok(row.get(0).unwrap_or(-1)))
        .optional()?;
    let floor = newest.max(i64::try_from(confirmed).unwrap_or(0));
    let lost = damaged.len();
    if lost > 0 {
        tracing::error!(events = lost, "damaged events were taken out of the log");
    }
    for id in damaged {
        transaction.execute("DELETE FROM event WHERE id = ?1", [id])?;
    }
    let given_out = last.filter(|last| (floor..floor.saturating_add(FAR)).contains(last)).unwrap_or(floor);
    let wanted = given_out.saturating_add_unsigned(skipped);
    if last.unwrap_or(0) != wanted {
        transaction.execute("DELETE FROM sqlite_sequence WHERE name = 'event'", [])?;
        transaction.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('event', ?1)", [wanted])?;
    }
    if lost > 0 {
        let body = serde_json::json!({"type": "events_lost", "reason": "corrupt", "count": lost});
        insert_event(transaction, now, &body.to_string())?;
    }
    Ok(())
}

pub(in crate::store) fn read_meta(connection: &Connection) -> Result<BTreeMap<String, u64>, Fault> {
    let mut meta = BTreeMap::new();
    let mut statement = connection.prepare("SELECT key, value, guard FROM meta")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match (row.get::<_, String>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)) {
            (Ok(key), Ok(value), Ok(guard)) if guard == rows::meta_guard(&key, value) && value >= 0 => {
                meta.insert(key, value.unsigned_abs());
            }
            (key, ..) => {
                let key = key.unwrap_or_default();
                return Err(Fault::Damaged(format!("the entry {key:?} of its table `meta` is not what was written")));
            }
        }
    }
    Ok(meta)
}

/// One line for each small table in which a row is not what was written.
pub(in crate::store) fn unproven(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    if let Err(Fault::Damaged(why)) = read_meta(connection) {
        found.push(why);
    }
    if positions::sound(connection, u64::MAX)?.1 {
        found.push("table sink: a row is not what was written".to_owned());
    }
    let (_, marks) = sound_marks(connection)?;
    if marks > 0 {
        found.push(format!("table mark: {marks} rows are not what was written"));
    }
    let events = look_at_events(connection)?.1.len();
    if events > 0 {
        found.push(format!("table event: {events} rows are not what was written"));
    }
    let gaps = unreported_gaps::unproven(connection)?.len();
    if gaps > 0 {
        found.push(format!("table gap: {gaps} rows are not what was written"));
    }
    let (_, holes) = Holes::load(connection)?;
    if holes > 0 {
        found.push(format!("table hole: {holes} rows are not what was written"));
    }
    let boots = boot_times::unproven(connection)?;
    if boots > 0 {
        found.push(format!("table boot: {boots} rows are not what was written"));
    }
    let commands = inbox::unproven(connection)?;
    if commands > 0 {
        found.push(format!("table command: {commands} rows are not what was written"));
    }
    Ok(found)
}

/// A number that is kept across restarts, if it is there and right.
pub(in crate::store) fn meta(connection: &Connection, key: &str) -> Result<Option<u64>, Fault> {
    Ok(read_meta(connection)?.get(key).copied())
}

/// The newest event's id, 0 if there never was one.
pub(in crate::store) fn last_event(connection: &Connection) -> rusqlite::Result<u64> {
    let id = connection
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'event'", [], |row| row.get(0))
        .optional()?;
    Ok(id.unwrap_or(0))
}
