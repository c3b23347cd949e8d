//! Opens the log whatever its files look like.
//!
//! A database that cannot be gone on with is moved into quarantine, and a new one with
//! a new epoch takes its place at once. Small facts that are proven (positions of sinks,
//! high-water marks of devices, events not yet told) are taken over before anything else happens;
//! segments follow while the gateway runs, see [`crate::store::restore`]. The new epoch's seqs
//! begin behind all that the old one gave out.

use super::power_cut::{self, WalRemains};
use super::quarantine::{self, Entry, State};
use super::restore_job::{DONE, Job};
use super::salvage::{Facts, Found, Salvage, Scan};
use super::startup::{self, Recovered};
use crate::clock::{Clock, Now};
use crate::config::{self, Durability};
use crate::metrics::Metrics;
use crate::model::{BootId, DeviceId, Seq};
use crate::store::disk::boot_times::{self, BootTimes};
use crate::store::disk::damage::{self, Damage};
use crate::store::disk::pending_high_water;
use crate::store::disk::schema::{self, OpenError};
use crate::store::disk::ticket::Ticket;
use crate::store::disk::wal::{self, wal_path};
use crate::store::disk::{checkpoint, epochs};
use crate::store::inbox::{self, Commands};
use crate::store::retention::priority::PriorityRoutes;
use crate::store::sinks::positions::ConfiguredSink;
use rusqlite::{Connection, TransactionBehavior};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::ops::ControlFlow;
use std::path::Path;

/// The log, open.
pub(in crate::store) struct RecoveredLog {
    pub connection: Connection,
    pub found: Recovered,
    /// By which more seqs may be reserved.
    pub ticket: Ticket,
    pub boots: BootTimes,
    pub commands: Commands,
    /// Of commands, so many were not what was written.
    pub commands_lost: u64,
    /// Quarantined databases from which there is more to take.
    pub jobs: Vec<Job>,
    /// What the operator should know, for as long as it is so.
    pub notes: Vec<String>,
}

/// A database up to so many bytes is read through for devices' high-water marks before the gateway
/// starts; of a larger one only those count that its table has.
const LOOK_THROUGH: u64 = 128 << 20;
/// Where seqs begin if it cannot be told how far they had come: a multiple of this.
const FAR: u64 = 1 << 40;

/// Opens the log in the configured directory, which is locked.
///
/// # Errors
/// If the directory or the disk is at fault, or the log was written by a newer version.
pub(in crate::store) fn open(
    config: &config::Store,
    priority: &PriorityRoutes,
    sinks: &[ConfiguredSink<'_>],
    clock: &dyn Clock,
    metrics: &Metrics,
) -> Result<RecoveredLog, OpenError> {
    let (now, boot) = (clock.now(), clock.boot());
    let store = config.directory.as_path();
    let path = store.join(schema::FILE_NAME);
    power_cut::clear(&path);
    quarantine::clear(store);
    let moving = |why| OpenError::Directory { path: store.join("quarantine"), why };
    for mut entry in quarantine::list(store).into_iter().filter(|entry| entry.report.state == State::Moving) {
        quarantine::complete(store, &mut entry).map_err(moving)?;
    }
    let quarantine = |reason: &str, found: &str| {
        let entry = quarantine::take(store, reason, found, now.wall.to_string()).map_err(moving)?;
        tracing::error!(
            found,
            moved_to = %entry.directory.display(),
            "the log is damaged: it was moved aside, a new one is started, and what is sound is taken over"
        );
        metrics.store_quarantines.inc();
        Ok::<_, OpenError>(())
    };
    let marker = store.join(damage::MARKER);
    if let Ok(found) = std::fs::read_to_string(&marker) {
        if std::fs::symlink_metadata(&path).is_ok() {
            quarantine("damaged", found.trim())?;
        }
        std::fs::remove_file(&marker).map_err(moving)?;
    }
    let opened = match attempt(config, priority, &path, sinks, now, boot) {
        Err(why) => match damage::kind(&why) {
            Some(reason) => {
                quarantine(reason, &why.to_string())?;
                attempt(config, priority, &path, sinks, now, boot)?
            }
            None => return Err(why),
        },
        opened => opened?,
    };
    let Opening { connection, found, ticket, boots, commands, commands_lost, jobs } = opened;
    quarantine::prune(store);
    let notes = quarantine::list(store)
        .iter()
        .map(|entry| {
            let report = entry.directory.join("report.txt");
            format!("a damaged log was moved aside ({}); read {}", entry.report.found, report.display())
        })
        .collect();
    Ok(RecoveredLog { connection, found, ticket, boots, commands, commands_lost, jobs, notes })
}

struct Opening {
    connection: Connection,
    found: Recovered,
    ticket: Ticket,
    boots: BootTimes,
    commands: Commands,
    commands_lost: u64,
    jobs: Vec<Job>,
}

fn attempt(
    config: &config::Store,
    priority: &PriorityRoutes,
    path: &Path,
    sinks: &[ConfiguredSink<'_>],
    now: Now,
    boot: BootId,
) -> Result<Opening, OpenError> {
    let left = settle(path, config.durability, false)?;
    let mut connection = schema::open(path, config.durability)?;
    let mut ticket = Ticket::read(config.runtime_directory.as_deref(), boot);
    let mut opening = || {
        let jobs = take_over(&mut connection, &config.directory, sinks, now, &mut ticket)?;
        let (durability, priority) = (config.durability, priority.fingerprint());
        let mut found = startup::recover(&mut connection, sinks, now, &mut ticket, durability, &left, priority)?;
        let boots = boot_times::load(&mut connection, boot, found.next, !jobs.is_empty())?;
        let commands = inbox::load(&mut connection)?;
        // From here on the database alone says that it was not closed: a write-ahead
        // log that goes missing is noticed.
        if let Some(frames) = wal::checkpoint(&connection)? {
            found.checkpoint_record.checkpointed(&wal_path(path), frames);
        }
        Ok((found, boots, commands, jobs))
    };
    let (found, boots, (commands, commands_lost), jobs) = opening().map_err(|fault: Damage| fault.at(path))?;
    Ok(Opening { connection, found, ticket, boots, commands, commands_lost, jobs })
}

/// Looks at the files before SQLite touches anything, and puts on the medium what may
/// stand in the system's cache alone; see [`power_cut::renew`]. On a full disk that is left out
/// unless it `must` be.
///
/// # Errors
/// If the files are damaged, or cannot be read or written.
pub(in crate::store) fn settle(path: &Path, durability: Durability, must: bool) -> Result<WalRemains, OpenError> {
    let left = examine(path, durability)?;
    let in_place = left.has_frames && power_cut::is_open_elsewhere(path);
    let renew = || if in_place { power_cut::rewrite(path, &left) } else { power_cut::renew(path, &left) };
    let renewed = match left.has_frames.then(renew) {
        Some(Err(why)) if why.kind() == ErrorKind::StorageFull && !must => {
            tracing::debug!("the disk is too full to copy the write-ahead log; the log goes on without");
            Ok(())
        }
        Some(Err(why)) if why.kind() == ErrorKind::StorageFull => power_cut::rewrite(path, &left),
        renewed => renewed.unwrap_or(Ok(())),
    };
    renewed.map_err(|why| OpenError::Directory { path: path.to_owned(), why })?;
    Ok(left)
}

/// What can be told before SQLite touches anything.
fn examine(path: &Path, durability: Durability) -> Result<WalRemains, OpenError> {
    let damaged = |found: String| OpenError::Damaged { path: path.to_owned(), found };
    let unreadable = |why: io::Error| {
        use ErrorKind::{IsADirectory, NotADirectory, NotFound};
        // That this user may not read it says nothing about what is in it.
        let lasts = matches!(why.kind(), IsADirectory | NotADirectory | NotFound)
            || matches!(why.raw_os_error(), Some(EIO | ELOOP));
        match lasts {
            true => OpenError::Unreadable { path: path.to_owned(), why: why.to_string() },
            false => OpenError::Directory { path: path.to_owned(), why },
        }
    };
    let wal_length = std::fs::metadata(wal_path(path)).map_or(0, |meta| meta.len());
    match std::fs::symlink_metadata(path) {
        // A new log, which has nothing to miss.
        Err(why) if why.kind() == ErrorKind::NotFound && wal_length == 0 => {
            return Ok(WalRemains { has_wal: true, ..WalRemains::default() });
        }
        Err(why) if why.kind() == ErrorKind::NotFound => {
            return Err(damaged("it is missing, though its write-ahead log is there".to_owned()));
        }
        Err(why) => return Err(unreadable(why)),
        Ok(_) => {}
    }
    let meta = std::fs::metadata(path).map_err(unreadable)?;
    if !meta.is_file() {
        let why = if meta.is_dir() { "it is a directory" } else { "it is no regular file" };
        return Err(OpenError::Unreadable { path: path.to_owned(), why: why.to_owned() });
    }
    let mut head = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(100).read_to_end(&mut head)).map_err(unreadable)?;
    if head.is_empty() {
        // The very first start leaves that if it is cut off.
        return match checkpoint::was_opened(path) || wal_length > 0 {
            true => Err(damaged("it is empty".to_owned())),
            false => Ok(WalRemains { has_wal: true, ..WalRemains::default() }),
        };
    }
    if wal_length == 0 {
        return Ok(WalRemains::default());
    }
    power_cut::look(path, durability == Durability::Normal).map_err(damaged)
}

/// `EIO` and `ELOOP`, for which the standard library has no stable kinds.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
const ELOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();

/// Takes what small facts are proven over from quarantined databases that have not been
/// looked at, and says what else there is to take.
fn take_over(
    connection: &mut Connection,
    store: &Path,
    sinks: &[ConfiguredSink<'_>],
    now: Now,
    ticket: &mut Ticket,
) -> Result<Vec<Job>, Damage> {
    let mut jobs = Vec::new();
    for mut entry in quarantine::list(store).into_iter().filter(|entry| entry.report.state == State::Salvaging) {
        let key = entry.progress_key();
        let progress = startup::meta(connection, &key)?;
        if progress == Some(DONE) {
            entry.report.state = State::Finished;
            note(&entry);
            continue;
        }
        let salvage = Salvage::open(&entry.database());
        let mut facts = salvage.facts();
        if salvage.length() <= LOOK_THROUGH {
            hear_segments(&salvage, &mut facts);
        }
        let position =
            |name: &str| facts.sinks.get(name).map(|position| (position.confirmed, position.event)).unwrap_or_default();
        let wanted = || sinks.iter().map(|sink| position(sink.name));
        let behind = match sinks.is_empty() {
            true => facts.sinks.keys().map(|name| position(name)).min().unwrap_or_default(),
            false => (
                wanted().map(|(confirmed, _)| confirmed).min().unwrap_or(0),
                wanted().map(|(_, event)| event).min().unwrap_or(0),
            ),
        };
        let highest = facts.sinks.values().map(|position| position.confirmed).max().unwrap_or(0);
        let end = match facts.meta.get("reserved") {
            Some(reserved) => (*reserved).max(highest),
            None => (highest / FAR + 1) * FAR,
        };
        if progress.is_none() {
            if begin(connection, &mut entry, &facts, sinks, end, behind.1, now)? {
                ticket.epoch_is_unused();
            }
            note(&entry);
        }
        jobs.push(Job {
            epochs: epochs::read(&facts.meta),
            entry,
            confirmed: behind.0,
            end,
            done: progress.unwrap_or(0),
        });
    }
    Ok(jobs)
}

/// Adds the high-water marks that only segments tell of.
fn hear_segments(salvage: &Salvage, facts: &mut Facts) {
    let listed = Seq(facts.meta.get("listed").copied().unwrap_or(0));
    let mut said: BTreeMap<Seq, Vec<(DeviceId, u64, u64)>> = BTreeMap::new();
    let _whole = salvage.segments(Scan::Always, &mut |found| {
        if let Found::Sound { header, batches, .. } = found
            && header.last() > listed
        {
            said.entry(header.first).or_insert_with(|| batches.iter().filter_map(pending_high_water::says).collect());
        }
        ControlFlow::Continue(())
    });
    for (device, session, seq) in said.into_values().flatten() {
        let high_water = facts.high_waters.entry(device.to_string()).or_insert((session, seq));
        *high_water = if high_water.0 == session { (session, high_water.1.max(seq)) } else { (session, seq) };
    }
}

fn note(entry: &Entry) {
    if let Err(why) = entry.write() {
        tracing::warn!(%why, quarantine = entry.name(), "a report cannot be written");
    }
}

/// Takes the facts into the new database, in one transaction. True if its epoch begins
/// by that.
fn begin(
    connection: &mut Connection,
    entry: &mut Entry,
    facts: &Facts,
    sinks: &[ConfiguredSink<'_>],
    end: u64,
    told: u64,
    now: Now,
) -> Result<bool, Damage> {
    let before = epochs::read(&facts.meta);
    let old_epoch = before.as_ref().map(|before| before.current().0);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let known = startup::meta(&transaction, epochs::CURRENT)?;
    let epoch = match known {
        Some(epoch) => epoch,
        None => {
            let drawn = fastrand::u32(1..u32::MAX);
            let epoch = u64::from(if Some(drawn) == old_epoch { drawn + 1 } else { drawn });
            schema::set_meta(&transaction, epochs::CURRENT, epoch)?;
            // What comes back as history stays what it was.
            if let Some(before) = &before {
                epochs::adopt(&transaction, before, Seq(end))?;
            }
            schema::set_meta(&transaction, "reserved", end)?;
            schema::set_meta(&transaction, "clean", end + 1)?;
            for sink in sinks {
                schema::put_sink(&transaction, sink.name, Seq(end), 0)?;
            }
            // What the others have not had is history, and stands where it stood.
            for (name, position) in facts.sinks.iter().filter(|(name, _)| !sinks.iter().any(|sink| sink.name == **name))
            {
                let retired = position.retired.unwrap_or_else(|| facts.meta.get("log_clock").copied().unwrap_or(0));
                schema::put_position(&transaction, name, Seq(position.confirmed), 0, Some(retired))?;
            }
            epoch
        }
    };
    let report = &mut entry.report;
    report.epoch = old_epoch;
    report.new_epoch = u32::try_from(epoch).ok();
    report.salvaged.sinks = sinks.iter().filter(|sink| facts.sinks.contains_key(sink.name)).count() as u64;
    for (device, (session, seq)) in &facts.high_waters {
        if DeviceId::new(device).is_ok() {
            schema::put_high_water(&transaction, device, *session, *seq, Seq::ZERO)?;
            report.salvaged.marks += 1;
        }
    }
    for (boot, began) in &facts.boots {
        boot_times::adopt(&transaction, *boot, *began)?;
    }
    let body = serde_json::json!({
        "type": "quarantine", "state": "salvaging", "quarantine": entry.name(), "reason": entry.report.reason,
        "found": entry.report.found, "of_epoch": old_epoch,
    });
    schema::insert_event(&transaction, now.wall, &body.to_string())?;
    for (id, (time, body)) in facts.events.range(told + 1..) {
        let Ok(mut body) = serde_json::from_str::<serde_json::Map<_, _>>(body) else { continue };
        if let Some(before) = &before {
            epochs::name_former(&mut body, before);
        }
        body.entry("of_epoch").or_insert_with(|| old_epoch.into());
        body.entry("of_id").or_insert_with(|| (*id).into());
        let body = serde_json::Value::Object(body).to_string();
        schema::insert_event(&transaction, crate::model::Timestamp(*time), &body)?;
        entry.report.salvaged.events += 1;
    }
    for body in &facts.missed {
        let Ok(mut body) = serde_json::from_str::<serde_json::Map<_, _>>(body) else { continue };
        if let Some(before) = &before {
            epochs::name_former(&mut body, before);
        }
        body.entry("of_epoch").or_insert_with(|| old_epoch.into());
        schema::insert_event(&transaction, now.wall, &serde_json::Value::Object(body).to_string())?;
        entry.report.salvaged.events += 1;
    }
    schema::set_meta(&transaction, &entry.progress_key(), 0)?;
    transaction.commit()?;
    Ok(known.is_none())
}
