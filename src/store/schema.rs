//! The database file: opening it, its schema and migrations, and what a fresh
//! start reads from it.

use crate::config::Durability;
use crate::model::{DeviceId, Epoch, Seq, Timestamp};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Name of the database inside the store's directory.
pub const FILE_NAME: &str = "log.db";

/// "tide" in ASCII: tells our databases from others (SQLite's application_id).
const APPLICATION_ID: i32 = 0x7469_6465;

/// Each script takes a database from the version that is its index to the next
/// (SQLite's user_version). Only ever append.
const MIGRATIONS: &[&str] = &[
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
     CREATE TABLE segment (
         first_seq INTEGER PRIMARY KEY,
         count INTEGER NOT NULL,
         oldest INTEGER NOT NULL,
         newest INTEGER NOT NULL,
         raw_length INTEGER NOT NULL,
         checksum INTEGER NOT NULL,
         size INTEGER NOT NULL,
         block BLOB NOT NULL);
     CREATE TABLE sink (name TEXT PRIMARY KEY, confirmed INTEGER NOT NULL) WITHOUT ROWID;
     CREATE TABLE mark (device TEXT PRIMARY KEY, session INTEGER NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID;",
    "CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, body TEXT NOT NULL);
     ALTER TABLE sink ADD COLUMN event INTEGER NOT NULL DEFAULT 0;",
    // When each boot began, once that is known; the last seq that may count from it, once it is over.
    "CREATE TABLE boot (id BLOB PRIMARY KEY, began INTEGER, untimed INTEGER NOT NULL, last INTEGER) WITHOUT ROWID;",
];

/// SQLite's WAL-reset bug can corrupt a database up to this version (3.51.2).
const LAST_AFFECTED_SQLITE: i32 = 3_051_002;

/// Seqs are reserved on disk in blocks of this many: none is ever given out
/// twice, and an unclean stop skips at most this many.
pub(super) const SEQ_BLOCK: u64 = 1 << 20;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store's directory {path} cannot be used: {why}; create it, and make it writable for this user")]
    Directory { path: PathBuf, why: std::io::Error },
    #[error(
        "the store {path} is in use by another process; stop that one first, or give this one its own [store] directory"
    )]
    InUse { path: PathBuf },
    #[error("{path} is not a tidegate log ({found}); move it away, or point [store] directory elsewhere")]
    Foreign { path: PathBuf, found: &'static str },
    #[error(
        "{path} was written by a newer tidegate (schema {found}, this one knows up to {known}); install that version again, \
         or point [store] directory elsewhere"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("SQLite {0} can corrupt its log (the WAL-reset bug); build tidegate with its bundled SQLite")]
    Sqlite(&'static str),
    #[error("the store {path} cannot be opened: {why}")]
    Database { path: PathBuf, why: rusqlite::Error },
}

/// What the last life of the gateway left in the log.
#[derive(Debug)]
pub(super) struct Recovered {
    pub epoch: Epoch,
    /// The next seq to give out; all up to `reserved` may be.
    pub next: Seq,
    pub reserved: Seq,
    /// Name, confirmed seq and confirmed event of each wanted sink, in their order.
    pub sinks: Vec<(Seq, u64)>,
    /// Sinks that stand in the log but are not wanted any more.
    pub forgotten: Vec<String>,
    pub marks: Vec<(DeviceId, u64, u64)>,
    /// Ranges of seqs that no reading has: last seq before the hole, and its length.
    pub holes: Vec<(Seq, u64)>,
    pub last_event: u64,
}

/// Opens or creates the database with the settings that its promises need.
pub(super) fn open(path: &Path, durability: Durability) -> Result<Connection, OpenError> {
    if rusqlite::version_number() <= LAST_AFFECTED_SQLITE {
        return Err(OpenError::Sqlite(rusqlite::version()));
    }
    let foreign = |found| OpenError::Foreign { path: path.to_owned(), found };
    let failed = |why| OpenError::Database { path: path.to_owned(), why };
    if !looks_like_sqlite(path).map_err(|why| OpenError::Directory { path: path.to_owned(), why })? {
        return Err(foreign("it is not an SQLite database"));
    }
    let mut connection = Connection::open(path).map_err(failed)?;
    let objects: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    let application: i32 = pragma(&connection, "application_id").map_err(failed)?;
    let version: i64 = pragma(&connection, "user_version").map_err(failed)?;
    if objects > 0 && application != APPLICATION_ID {
        return Err(foreign("an SQLite database of another program"));
    }
    let known = MIGRATIONS.len() as i64;
    if version > known {
        return Err(OpenError::Newer { path: path.to_owned(), found: version, known });
    }
    configure(&connection, durability).map_err(failed)?;
    migrate(&mut connection, version, MIGRATIONS).map_err(failed)?;
    Ok(connection)
}

/// True also for a file that does not exist or is empty.
fn looks_like_sqlite(path: &Path) -> std::io::Result<bool> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let mut head = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(MAGIC.len() as u64).read_to_end(&mut head)?,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => 0,
        Err(why) => return Err(why),
    };
    Ok(head.is_empty() || head == MAGIC)
}

fn pragma<T: rusqlite::types::FromSql>(connection: &Connection, name: &str) -> rusqlite::Result<T> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn configure(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    // Small pages write least for small commits; takes effect on a new file only.
    connection.pragma_update(None, "page_size", 1024)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 4096, |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -512)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

fn migrate(connection: &mut Connection, from: i64, scripts: &[&str]) -> rusqlite::Result<()> {
    for (script, version) in scripts.iter().zip(1i64..).filter(|(_, version)| *version > from) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(script)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

/// A connection that only reads.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "cache_size", -256)?;
    Ok(connection)
}

/// Reads what the last life left, reserves the seqs of this one, and records the
/// hole that an unclean stop leaves.
pub(super) fn recover(
    connection: &mut Connection,
    sinks: &[&str],
    now: Timestamp,
    new_epoch: Epoch,
) -> rusqlite::Result<Recovered> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let epoch = match meta(&transaction, "epoch")? {
        Some(epoch) => Epoch(epoch),
        None => {
            set_meta(&transaction, "epoch", u64::from(new_epoch.0))?;
            new_epoch
        }
    };
    let disk_end: u64 = transaction
        .query_row("SELECT first_seq + count - 1 FROM segment ORDER BY first_seq DESC LIMIT 1", [], |row| row.get(0))
        .optional()?
        .unwrap_or(0);
    let reserved: u64 = meta(&transaction, "reserved")?.unwrap_or(0);
    let next = match meta::<u64>(&transaction, "clean")? {
        Some(clean) => clean.max(disk_end + 1),
        None => reserved.max(disk_end) + 1,
    };
    if next > disk_end + 1 && meta::<u64>(&transaction, "clean")?.is_none() {
        let body = serde_json::json!({"type": "gap", "reason": "restart", "first": disk_end + 1, "last": next - 1});
        insert_event(&transaction, now, &body.to_string())?;
    }
    let reserved = next - 1 + SEQ_BLOCK;
    set_meta(&transaction, "reserved", reserved)?;
    transaction.execute("DELETE FROM meta WHERE key = 'clean'", [])?;

    let forgotten = adopt_sinks(&transaction, sinks)?;
    let positions = sinks
        .iter()
        .map(|name| {
            transaction.query_row("SELECT confirmed, event FROM sink WHERE name = ?1", [name], |row| {
                Ok((Seq(row.get(0)?), row.get(1)?))
            })
        })
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let marks = read_marks(&transaction)?;
    let holes = read_holes(&transaction, Seq(next))?;
    let last_event = last_event(&transaction)?;
    transaction.commit()?;
    Ok(Recovered {
        epoch,
        next: Seq(next),
        reserved: Seq(reserved),
        sinks: positions,
        forgotten,
        marks,
        holes,
        last_event,
    })
}

/// Gives each new sink the place of the one that is furthest behind, so that a
/// sink that was renamed misses nothing; removes those that are not wanted.
fn adopt_sinks(transaction: &Transaction<'_>, wanted: &[&str]) -> rusqlite::Result<Vec<String>> {
    let known: Vec<String> =
        transaction.prepare("SELECT name FROM sink")?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let (confirmed, event): (u64, u64) =
        transaction.query_row("SELECT coalesce(min(confirmed), 0), coalesce(min(event), 0) FROM sink", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    for name in wanted.iter().filter(|name| !known.iter().any(|k| k == *name)) {
        transaction.execute(
            "INSERT INTO sink (name, confirmed, event) VALUES (?1, ?2, ?3)",
            params![name, confirmed, event],
        )?;
    }
    let forgotten: Vec<String> = known.into_iter().filter(|name| !wanted.contains(&name.as_str())).collect();
    // With no sink left, the old places are kept: they say what was never delivered.
    if !wanted.is_empty() {
        for name in &forgotten {
            transaction.execute("DELETE FROM sink WHERE name = ?1", [name])?;
        }
    }
    Ok(forgotten)
}

fn read_marks(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<(DeviceId, u64, u64)>> {
    let mut statement = transaction.prepare("SELECT device, session, seq FROM mark")?;
    let rows = statement.query_map([], |row| {
        let session: i64 = row.get(1)?;
        Ok((row.get::<_, String>(0)?, session as u64, row.get(2)?)) // the same 64 bits as written
    })?;
    let mut marks = Vec::new();
    for row in rows {
        let (device, session, seq) = row?;
        if let Ok(device) = DeviceId::new(&device) {
            marks.push((device, session, seq));
        }
    }
    Ok(marks)
}

fn read_holes(transaction: &Transaction<'_>, next: Seq) -> rusqlite::Result<Vec<(Seq, u64)>> {
    let mut statement = transaction.prepare("SELECT first_seq, count FROM segment ORDER BY first_seq")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?)))?;
    let mut holes = Vec::new();
    let mut end = 0u64;
    for row in rows {
        let (first, count) = row?;
        if first > end + 1 {
            holes.push((Seq(end), first - end - 1));
        }
        end = end.max(first + count - 1);
    }
    if next.0 > end + 1 {
        holes.push((Seq(end), next.0 - end - 1));
    }
    Ok(holes)
}

fn meta<T: rusqlite::types::FromSql>(connection: &Connection, key: &str) -> rusqlite::Result<Option<T>> {
    connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?.query_row([key], |row| row.get(0)).optional()
}

/// Writes a number that is kept across restarts.
pub(super) fn set_meta(connection: &Connection, key: &str, value: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![key, value])?;
    Ok(())
}

/// Adds an event and returns its id.
pub(super) fn insert_event(connection: &Connection, time: Timestamp, body: &str) -> rusqlite::Result<u64> {
    connection.prepare_cached("INSERT INTO event (time, body) VALUES (?1, ?2)")?.execute(params![time.0, body])?;
    Ok(u64::try_from(connection.last_insert_rowid()).unwrap_or(0))
}

/// The newest event's id, 0 if there never was one.
fn last_event(connection: &Connection) -> rusqlite::Result<u64> {
    let id = connection
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'event'", [], |row| row.get(0))
        .optional()?;
    Ok(id.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(0);

    fn recover_at(path: &Path, sinks: &[&str]) -> Recovered {
        let mut connection = open(path, Durability::Full).expect("the database opens");
        recover(&mut connection, sinks, NOW, Epoch(7)).expect("the database reads")
    }

    #[test]
    fn an_older_schema_is_migrated_and_keeps_its_content() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(FILE_NAME);
        let mut old = Connection::open(&path).expect("a new database");
        migrate(&mut old, 0, &MIGRATIONS[..1]).expect("the first version");
        old.execute("INSERT INTO sink VALUES ('cloud', 42)", []).expect("the first version's sink table");
        set_meta(&old, "epoch", 3).expect("the first version's meta table");
        drop(old);

        let recovered = recover_at(&path, &["cloud"]);
        assert_eq!((recovered.epoch, recovered.sinks), (Epoch(3), vec![(Seq(42), 0)]));
        let version: i64 = pragma(&Connection::open(&path).expect("it opens"), "user_version").expect("a version");
        assert_eq!(version, MIGRATIONS.len() as i64);
    }

    #[test]
    fn a_newer_schema_is_refused_with_both_versions() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(FILE_NAME);
        let connection = open(&path, Durability::Full).expect("a new database");
        connection.pragma_update(None, "user_version", 99).expect("a pragma");
        drop(connection);
        let refused = open(&path, Durability::Full).expect_err("it is newer").to_string();
        assert!(refused.contains("schema 99") && refused.contains("newer"), "{refused}");
    }

    #[test]
    fn foreign_files_are_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(FILE_NAME);
        std::fs::write(&path, "some text").expect("a file");
        assert!(matches!(open(&path, Durability::Full), Err(OpenError::Foreign { .. })));
        assert_eq!(std::fs::read(&path).expect("still there"), b"some text");

        let other = directory.path().join("other.db");
        Connection::open(&other).and_then(|c| c.execute_batch("CREATE TABLE theirs (x)")).expect("their database");
        assert!(matches!(open(&other, Durability::Full), Err(OpenError::Foreign { .. })));
    }

    #[test]
    fn an_unclean_stop_skips_the_reserved_seqs_and_says_so() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(FILE_NAME);
        let first = recover_at(&path, &["cloud"]);
        assert_eq!((first.next, first.reserved, first.last_event), (Seq(1), Seq(SEQ_BLOCK), 0));
        let second = recover_at(&path, &["cloud"]);
        assert_eq!((second.next, second.last_event), (Seq(SEQ_BLOCK + 1), 1));
        assert_eq!(second.holes, [(Seq(0), SEQ_BLOCK)]);
        assert_eq!(second.epoch, first.epoch);
    }

    #[test]
    fn a_renamed_sink_takes_the_old_ones_place() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(FILE_NAME);
        recover_at(&path, &["old"]);
        Connection::open(&path).and_then(|c| c.execute("UPDATE sink SET confirmed = 17", [])).expect("an update");
        let renamed = recover_at(&path, &["new"]);
        assert_eq!((renamed.sinks, renamed.forgotten), (vec![(Seq(17), 0)], vec!["old".to_owned()]));
    }
}
