//! What a start reads from the database, and how it decides whether to believe it.
//!
//! A start reads the small tables, the newest segments, and the whole structure of a small
//! database: how long it takes does not depend on how much the log holds. A sink whose position is damaged starts over, a damaged
//! high-water mark is forgotten, a damaged event is taken out; anything else that cannot be right
//! is a [`Damage`], and the database goes into quarantine.

use super::power_cut::{self, UNSYNCED, WalRemains};
use crate::clock::Now;
use crate::config::Durability;
use crate::model::{DeviceId, Epochs, Seq, Timestamp};
use crate::store::disk::boot_times;
use crate::store::disk::checkpoint::{self, CheckpointRecord};
use crate::store::disk::damage::Damage;
use crate::store::disk::epochs;
use crate::store::disk::log_clock::{LogClock, StoredClock};
use crate::store::disk::pending_high_water;
use crate::store::disk::rows;
use crate::store::disk::schema::{
    SEQ_BLOCK, insert_event, put_high_water, set_meta, small_structure_fault, synchronise,
};
use crate::store::disk::ticket::Ticket;
use crate::store::inbox;
use crate::store::retention::gap::Hole;
use crate::store::retention::holes::{self, Holes};
use crate::store::sinks::positions::{self, AdoptedSinks, ConfiguredSink, Extent};
use crate::store::sinks::unreported_gaps::{self, Unreported};
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
    /// The positions of the sinks.
    pub sinks: AdoptedSinks,
    /// What each of the wanted ones is to be told.
    pub unreported: Vec<Unreported>,
    pub high_waters: Vec<(DeviceId, u64, u64)>,
    /// Seqs that no reading has.
    pub holes: Holes,
    pub last_event: u64,
    /// The log's clock as it was kept, and what the newest segment has of it.
    pub clock: (StoredClock, u64),
    /// What the next commit says of the last checkpoint.
    pub checkpoint_record: CheckpointRecord,
    /// Stands in segments for the priority routes by which they are counted from now on.
    pub generation: u64,
    /// How the last life ended, if it did not close the log.
    pub unclean_end: Option<UncleanEnd>,
}

/// How a life of the gateway ended that did not close the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum UncleanEnd {
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
    wanted: &[ConfiguredSink<'_>],
    now: Now,
    ticket: &mut Ticket,
    durability: Durability,
    left: &WalRemains,
    priority: u64,
) -> Result<Recovered, Damage> {
    synchronise(connection, Durability::Full)?;
    let path = connection.path().map(PathBuf::from);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(found) = small_structure_fault(&transaction)? {
        return Err(Damage::Damaged(format!("its structure is broken: {}", found.replace('\n', " "))));
    }
    let meta = read_meta(&transaction)?;
    let before = Holes::of(&transaction, meta.contains_key(holes::COMPLETE))?;
    let (seen_end, mut newest) = holes::newest(&transaction)?;
    let mut disk_end = seen_end;
    let mut holes = before.clone();
    holes.reach(Seq(seen_end));
    let known_end = holes.end();
    if let Some(cut) = &left.cut_off {
        // What an earlier life left was put back or told as a gap when this one began.
        let end = known_end.max(Seq(meta.get(BEGAN_BEHIND).copied().unwrap_or(0)));
        // When they were written is not known: their age counts from now.
        let clock = LogClock::new(kept_clock(&meta), newest, ticket.boot(), now).read(now);
        cut.put_back(&transaction, end, clock)?;
        holes.follow_all(&transaction)?;
        (disk_end, newest) = holes::newest(&transaction)?;
    }
    if epochs::read(&meta).is_none() && (disk_end > 0 || !meta.is_empty()) {
        return Err(Damage::Damaged("the epoch is missing or impossible".into()));
    }
    let reserved = meta.get("reserved").copied().unwrap_or(0).max(left.cut_off.as_ref().map_or(0, |cut| cut.reserved));
    // What was cut off may have undone it.
    let clean = meta.get("clean").copied().filter(|_| left.cut_off.is_none());
    if disk_end > reserved {
        return Err(Damage::Damaged(format!(
            "seq {disk_end} is stored, though only those to {reserved} were reserved"
        )));
    }
    if !left.has_wal && checkpoint::lacks_write_ahead_log(&meta, path.as_deref().and_then(checkpoint::noted)) {
        return Err(Damage::Damaged("the log was not closed, and its write-ahead log is missing".into()));
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
    let sinks = positions::adopt(&transaction, wanted, meta.get("sinks").copied(), &extent).map_err(Damage::of)?;
    // Before there was such an entry, each commit wrote its high-water marks to their table.
    let listed = meta.get("listed").copied().unwrap_or(disk_end);
    pending_high_water::replay(&transaction, Seq(listed), Seq(disk_end))?;
    let high_waters = read_high_waters(&transaction)?;
    let new: Vec<Hole> = holes.behind(known_end).filter_map(|hole| hole.rest(known_end)).collect();
    let told = new.iter().filter(|hole| clean.is_none() && hole.is_whole());
    let told = power_cut::gaps(told, meta.contains_key(UNSYNCED));
    // Of events that sinks have seen, too, a power cut or an old copy may have taken some back.
    let skipped = if clean.is_none() && !told.is_empty() { EVENT_BLOCK } else { 0 };
    let events = sinks.positions.iter().map(|(_, event)| *event).chain(sinks.retired.iter().map(|sink| sink.event));
    let confirmed = events.max().unwrap_or(0);
    unreported_gaps::scrub(&transaction, now.wall)?;
    scrub_events(&transaction, now.wall, confirmed, skipped)?;
    let epochs = epochs::go_on(&transaction, &meta, ticket, Seq(next), now.wall)?;
    for body in told {
        insert_event(&transaction, now.wall, &body)?;
    }
    let last_event = last_event(&transaction)?;
    let unreported = wanted
        .iter()
        .map(|sink| unreported_gaps::unreported(&transaction, sink.name))
        .collect::<rusqlite::Result<_>>()?;
    let clock = (kept_clock(&meta), newest);
    let unclean_end = (clean.is_none() && !meta.is_empty()).then(|| match clock.0.is_of(ticket.boot()) {
        true => UncleanEnd::Alone,
        false => UncleanEnd::WithMachine,
    });
    let generation = generation(&transaction, &meta, priority)?;
    let mut checkpoint_record = CheckpointRecord::after(kept(checkpoint::NUMBER), !left.goes_on);
    let lists = checkpoint_record.write(&transaction)?;
    transaction.commit()?;
    if let Some(path) = path.filter(|_| lists) {
        checkpoint_record.written(&path);
    }
    ticket.written()?;
    synchronise(connection, durability)?;
    Ok(Recovered {
        epochs,
        next: Seq(next),
        reserved: Seq(reserved),
        written: Seq(disk_end),
        sinks,
        unreported,
        high_waters,
        holes,
        last_event,
        clock,
        checkpoint_record,
        generation,
        unclean_end,
    })
}

/// Counts how often the priority routes changed: segments counted by others are looked into anew.
fn generation(transaction: &Transaction<'_>, meta: &BTreeMap<String, u64>, priority: u64) -> rusqlite::Result<u64> {
    let before = meta.get("lanes_generation").copied().unwrap_or(0);
    if before > 0 && meta.get("lanes") == Some(&priority) {
        return Ok(before);
    }
    set_meta(transaction, "lanes", priority)?;
    set_meta(transaction, "lanes_generation", before + 1)?;
    Ok(before + 1)
}

type HighWaters = Vec<(DeviceId, u64, u64)>;

/// The high-water marks that are sound, and how many are not.
fn sound_high_waters(connection: &Connection) -> rusqlite::Result<(HighWaters, u64)> {
    let mut statement = connection.prepare("SELECT device, session, seq, guard FROM mark")?;
    let mut rows = statement.query([])?;
    let (mut high_waters, mut damaged) = (Vec::new(), 0u64);
    while let Some(row) = rows.next()? {
        let sound = match (row.get::<_, String>(0), row.get::<_, i64>(1), row.get::<_, i64>(2), row.get::<_, i64>(3)) {
            (Ok(device), Ok(session), Ok(seq), Ok(guard)) if guard == rows::high_water_guard(&device, session, seq) => {
                let session = session as u64; // the same 64 bits as written
                DeviceId::new(&device).ok().zip(u64::try_from(seq).ok()).map(|(device, seq)| (device, session, seq))
            }
            _ => None,
        };
        match sound {
            Some(high_water) => high_waters.push(high_water),
            None => damaged += 1,
        }
    }
    Ok((high_waters, damaged))
}

fn read_high_waters(transaction: &Transaction<'_>) -> rusqlite::Result<HighWaters> {
    let (mut high_waters, damaged) = sound_high_waters(transaction)?;
    if damaged > 0 {
        tracing::error!(devices = damaged, "damaged marks are forgotten: what those devices send again is kept twice");
        transaction.execute("DELETE FROM mark", [])?;
        for (device, session, seq) in &high_waters {
            put_high_water(transaction, device.as_str(), *session, *seq, Seq::ZERO)?;
        }
    }
    // The one that was used last stands at the end.
    let mut statement = transaction.prepare("SELECT device, coalesce(used, 0) FROM mark")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1).unwrap_or(0))))?;
    let used: HashMap<String, i64> = rows.collect::<rusqlite::Result<_>>()?;
    high_waters.sort_by_key(|(device, ..)| used.get(device.as_str()).copied().unwrap_or(0));
    Ok(high_waters)
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
fn kept_clock(meta: &BTreeMap<String, u64>) -> StoredClock {
    let kept = |key: &str| meta.get(key).copied().unwrap_or(0);
    StoredClock { seconds: kept("log_clock"), boot: kept("log_clock_boot"), uptime: kept("log_clock_uptime") }
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

pub(in crate::store) fn read_meta(connection: &Connection) -> Result<BTreeMap<String, u64>, Damage> {
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
                return Err(Damage::Damaged(format!("the entry {key:?} of its table `meta` is not what was written")));
            }
        }
    }
    Ok(meta)
}

/// One line for each small table in which a row is not what was written.
pub(in crate::store) fn unproven(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    if let Err(Damage::Damaged(why)) = read_meta(connection) {
        found.push(why);
    }
    if positions::sound(connection, u64::MAX)?.1 {
        found.push("table sink: a row is not what was written".to_owned());
    }
    let (_, high_waters) = sound_high_waters(connection)?;
    if high_waters > 0 {
        found.push(format!("table mark: {high_waters} rows are not what was written"));
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
pub(in crate::store) fn meta(connection: &Connection, key: &str) -> Result<Option<u64>, Damage> {
    Ok(read_meta(connection)?.get(key).copied())
}

/// The newest event's id, 0 if there never was one.
pub(in crate::store) fn last_event(connection: &Connection) -> rusqlite::Result<u64> {
    let id = connection
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'event'", [], |row| row.get(0))
        .optional()?;
    Ok(id.unwrap_or(0))
}
