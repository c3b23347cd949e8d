//! The database file: opening it, its schema and migrations, and the rows that are
//! written with a guard.

use super::budget;
use super::log_clock::StoredClock;
use super::rows;
use super::wal::wal_path;
use crate::config::{self, Durability};
use crate::files::{self, plain};
use crate::model::{Seq, Timestamp};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Name of the database inside the store's directory.
pub const FILE_NAME: &str = "log.db";

/// Where the store's database is.
pub(in crate::store) fn database(config: &config::Store) -> PathBuf {
    config.directory.join(FILE_NAME)
}

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
    ADD_GUARDS,
    // `data` takes the place of `block`, which new rows leave empty: a large value is
    // best the last, since what stands behind it is far to reach. See [`rows::Info`].
    "ALTER TABLE segment ADD COLUMN last_seq INTEGER;
     ALTER TABLE segment ADD COLUMN committed INTEGER;
     ALTER TABLE segment ADD COLUMN lanes INTEGER;
     ALTER TABLE segment ADD COLUMN high INTEGER;
     ALTER TABLE segment ADD COLUMN thinned INTEGER;
     ALTER TABLE segment ADD COLUMN guard INTEGER;
     ALTER TABLE segment ADD COLUMN data BLOB;",
    // When each boot began, once that is known; the last seq that may count from it, once it is over.
    "CREATE TABLE boot (id BLOB PRIMARY KEY, began INTEGER, last INTEGER, guard INTEGER NOT NULL) WITHOUT ROWID;",
    // The last word on each device's presence, and what was told of all of them.
    "CREATE TABLE device (name TEXT PRIMARY KEY, body TEXT NOT NULL, guard INTEGER NOT NULL) WITHOUT ROWID;
     CREATE TABLE audit (
         id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, body TEXT NOT NULL, guard INTEGER NOT NULL);",
    // Commands in the order in which they came; when they ended, by the log's clock.
    "CREATE TABLE command (
         place INTEGER PRIMARY KEY,
         device TEXT NOT NULL,
         id TEXT NOT NULL,
         state TEXT NOT NULL,
         ended INTEGER,
         body TEXT NOT NULL,
         guard INTEGER NOT NULL,
         UNIQUE (device, id));
     CREATE INDEX command_ended ON command (ended) WHERE ended IS NOT NULL;",
    // See [`crate::store::retention::holes`].
    "CREATE TABLE hole (
         first INTEGER PRIMARY KEY, last INTEGER NOT NULL, missing INTEGER NOT NULL, guard INTEGER NOT NULL);",
    // See [`super::checkpoint`].
    "CREATE TABLE fold (id INTEGER PRIMARY KEY, pages BLOB NOT NULL, guard INTEGER NOT NULL);",
    // The last seq when a high-water mark was written: the device of the lowest was away for longest.
    "ALTER TABLE mark ADD COLUMN used INTEGER;",
    // What sinks have missed and were not told. Events for one sink alone, and kinds of
    // events, as in [`EventKind`]. When, by the log's clock, a sink was found to be
    // configured no more.
    "CREATE TABLE gap (
         id INTEGER PRIMARY KEY,
         sink TEXT NOT NULL,
         what TEXT NOT NULL,
         reason TEXT NOT NULL,
         first INTEGER NOT NULL,
         last INTEGER NOT NULL,
         count INTEGER NOT NULL,
         since INTEGER NOT NULL,
         guard INTEGER NOT NULL);
     ALTER TABLE event ADD COLUMN kind INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE event ADD COLUMN sink TEXT;
     UPDATE event SET kind = 1 WHERE body LIKE '%\"type\":\"presence\"}';
     UPDATE event SET kind = 2 WHERE body LIKE '%\"type\":\"gap\"%' AND kind = 0;
     ALTER TABLE sink ADD COLUMN retired INTEGER;",
    // Segments may have streams, see [`super::segment`]: a version that does not know them takes
    // them for damaged, and must not open such a log.
    "",
];

/// Rows that no checksum covered get one; see [`row`]. What stands there is sealed as
/// it is.
const ADD_GUARDS: &str = "ALTER TABLE meta ADD COLUMN guard INTEGER NOT NULL DEFAULT -1;
     ALTER TABLE sink ADD COLUMN guard INTEGER NOT NULL DEFAULT -1;
     ALTER TABLE mark ADD COLUMN guard INTEGER NOT NULL DEFAULT -1;
     ALTER TABLE event ADD COLUMN guard INTEGER NOT NULL DEFAULT -1;";

/// Databases up to this size have their structure checked whole at each start, which
/// takes a second or two on a slow card. Of larger ones that is left to
/// `tidegate queue verify`.
const CHECKED_WHOLE: u64 = 32 << 20;

/// Bytes that the database's content takes, and that its file has with the free pages
/// among them, which new content takes first.
pub(in crate::store) fn sizes(db: &Connection) -> rusqlite::Result<(u64, u64)> {
    let get = |pragma: &str| db.prepare_cached(pragma)?.query_row([], |row| row.get::<_, u64>(0));
    let (pages, free) = (get("PRAGMA page_count")?, get("PRAGMA freelist_count")?);
    let size = get("PRAGMA page_size")?;
    Ok((pages.saturating_sub(free) * size, pages * size))
}

/// SQLite's WAL-reset bug can corrupt a database up to this version (3.51.2).
const LAST_AFFECTED_SQLITE: i32 = 3_051_002;

/// Seqs are reserved on disk in blocks of this many: none is ever given out
/// twice, and an unclean stop skips at most this many.
pub(in crate::store) const SEQ_BLOCK: u64 = 1 << 20;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store's directory {path} cannot be used: {}; {}", plain(.why), remedy(.path, .why))]
    Directory { path: PathBuf, why: std::io::Error },
    #[error(
        "the store {path} is in use by another process; stop that one first, or give this one its own [store] directory"
    )]
    InUse { path: PathBuf },
    #[error("{path} is not a tidegate log ({found})")]
    Foreign { path: PathBuf, found: &'static str },
    #[error(
        "{path} was written by a newer tidegate (schema {found}, this one knows up to {known}); install that version again, \
         or point [store] directory elsewhere"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{path} cannot be read: {why}")]
    Unreadable { path: PathBuf, why: String },
    #[error("{path} is damaged: {found}")]
    Damaged { path: PathBuf, found: String },
    #[error("SQLite {0} can corrupt its log (the WAL-reset bug); build tidegate with its bundled SQLite")]
    Sqlite(&'static str),
    #[error("the store {path} cannot be opened: {why}{}", owner(.path, .why))]
    Database { path: PathBuf, why: rusqlite::Error },
}

/// What an operator does about a directory that cannot be used.
fn remedy(path: &Path, why: &std::io::Error) -> String {
    let directory = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let words = match why.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on its disk",
        ErrorKind::ReadOnlyFilesystem => "its disk can only be read: see `dmesg` for why, and mount it again",
        _ => match files::of_another(directory) {
            Some(remedy) if why.kind() == ErrorKind::PermissionDenied => return remedy,
            _ => "create it, and make it writable for this user",
        },
    };
    words.to_owned()
}

/// Whose the database is, if that may be why it cannot be opened.
fn owner(path: &Path, why: &rusqlite::Error) -> String {
    let denied = matches!(why.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen));
    let other = path.parent().filter(|_| denied).and_then(files::of_another);
    other.map_or(String::new(), |other| format!("; {other}"))
}

/// Opens or creates the database with the settings that its promises need.
pub(in crate::store) fn open(path: &Path, durability: Durability) -> Result<Connection, OpenError> {
    if rusqlite::version_number() <= LAST_AFFECTED_SQLITE {
        return Err(OpenError::Sqlite(rusqlite::version()));
    }
    let foreign = |found| OpenError::Foreign { path: path.to_owned(), found };
    let failed = |why| OpenError::Database { path: path.to_owned(), why };
    if !looks_like_sqlite(path).map_err(|why| OpenError::Directory { path: path.to_owned(), why })? {
        return Err(foreign("it is not an SQLite database"));
    }
    let mut connection = Connection::open(path).map_err(failed)?;
    // What may be damaged is left as it lies; only a proper end checkpoints it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    connection.pragma_update(None, "cell_size_check", true).map_err(failed)?;
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
    // From now on SQLite gives what it makes to whom the database belongs.
    let shm = || {
        let mut name = path.as_os_str().to_owned();
        name.push("-shm");
        PathBuf::from(name)
    };
    [path.to_owned(), wal_path(path), shm()].iter().for_each(|path| files::hand_over(path));
    Ok(connection)
}

/// True also for a file that does not exist or is empty.
pub(in crate::store) fn looks_like_sqlite(path: &Path) -> std::io::Result<bool> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let mut head = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(MAGIC.len() as u64).read_to_end(&mut head)?,
        Err(why) if why.kind() == ErrorKind::NotFound => 0,
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
    synchronise(connection, durability)?;
    // It would keep a failure to itself; see [`wal`].
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", budget::KEPT, |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -512)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// From the next transaction on, commits are as durable as this says.
pub(in crate::store) fn synchronise(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)
}

fn migrate(connection: &mut Connection, from: i64, scripts: &[&str]) -> rusqlite::Result<()> {
    for (script, version) in scripts.iter().zip(1i64..).filter(|(_, version)| *version > from) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(script)?;
        if *script == ADD_GUARDS {
            seal(&transaction)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Gives every row its guard.
fn seal(db: &Connection) -> rusqlite::Result<()> {
    type Integers = (String, i64, i64);
    let rows = |sql: &str| -> rusqlite::Result<Vec<Integers>> {
        let mut statement = db.prepare(sql)?;
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
    };
    for (key, value, _) in rows("SELECT key, value, 0 FROM meta")? {
        let guard = rows::meta_guard(&key, value);
        db.execute("UPDATE meta SET guard = ?2 WHERE key = ?1", params![key, guard])?;
    }
    for (name, confirmed, event) in rows("SELECT name, confirmed, event FROM sink")? {
        let guard = rows::sink_guard(&name, confirmed, event, None);
        db.execute("UPDATE sink SET guard = ?2 WHERE name = ?1", params![name, guard])?;
    }
    for (device, session, seq) in rows("SELECT device, session, seq FROM mark")? {
        let guard = rows::high_water_guard(&device, session, seq);
        db.execute("UPDATE mark SET guard = ?2 WHERE device = ?1", params![device, guard])?;
    }
    for (body, id, time) in rows("SELECT body, id, time FROM event")? {
        db.execute("UPDATE event SET guard = ?2 WHERE id = ?1", params![id, rows::event_guard(id, time, &body, None)])?;
    }
    Ok(())
}

/// Whether SQLite finds the structure of the database sound: what it reports first
/// otherwise. Reads all of it.
pub(in crate::store) fn structure_fault(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if is_read_failure(&found) {
        let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_READ);
        return Err(rusqlite::Error::SqliteFailure(error, Some(found)));
    }
    Ok((found != "ok").then_some(found))
}

/// Whether what `quick_check` found is that a page could not be read, of which nothing
/// can be told: it says so in these words, and is done as if nothing had failed.
fn is_read_failure(found: &str) -> bool {
    found.contains("failed to get page") || found.contains("unable to get the page")
}

/// As [`structure_fault`] for a small database; a large one is not read.
pub(in crate::store) fn small_structure_fault(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let pages: u64 = pragma(connection, "page_count")?;
    let size: u64 = pragma(connection, "page_size")?;
    if pages.saturating_mul(size) > CHECKED_WHOLE {
        return Ok(None);
    }
    structure_fault(connection)
}

/// A connection that only reads.
pub(in crate::store) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "cache_size", -256)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

/// Writes a number that is kept across restarts.
pub(in crate::store) fn set_meta(connection: &Connection, key: &str, value: u64) -> rusqlite::Result<()> {
    let stored = rows::signed(value);
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value, guard) VALUES (?1, ?2, ?3)")?
        .execute(params![key, stored, rows::meta_guard(key, stored)])?;
    Ok(())
}

/// Writes a device's high-water mark, which was used when the log came to `used`.
pub(in crate::store) fn put_high_water(
    connection: &Connection,
    device: &str,
    session: u64,
    seq: u64,
    used: Seq,
) -> rusqlite::Result<()> {
    // SQLite's integers are signed: the same bits.
    let (session, seq) = (session as i64, rows::signed(seq));
    connection
        .prepare_cached("INSERT OR REPLACE INTO mark (device, session, seq, guard, used) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![device, session, seq, rows::high_water_guard(device, session, seq), used.0])?;
    Ok(())
}

/// Writes the position of a sink that is configured, if it is another than what stands there.
pub(in crate::store) fn put_sink(
    connection: &Connection,
    name: &str,
    confirmed: Seq,
    event: u64,
) -> rusqlite::Result<()> {
    put_position(connection, name, confirmed, event, None)
}

/// Writes a sink's position, if it is another than what stands there, and when it was
/// `retired` if it is not configured any more.
pub(in crate::store) fn put_position(
    connection: &Connection,
    name: &str,
    confirmed: Seq,
    event: u64,
    retired: Option<u64>,
) -> rusqlite::Result<()> {
    let (confirmed, event, retired) = (rows::signed(confirmed.0), rows::signed(event), retired.map(rows::signed));
    connection
        .prepare_cached(
            "INSERT INTO sink (name, confirmed, event, guard, retired) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (name) DO UPDATE
             SET confirmed = excluded.confirmed, event = excluded.event, guard = excluded.guard,
                 retired = excluded.retired
             WHERE confirmed <> excluded.confirmed OR event <> excluded.event OR guard <> excluded.guard",
        )?
        .execute(params![name, confirmed, event, rows::sink_guard(name, confirmed, event, retired), retired])?;
    Ok(())
}

/// How much an event matters where they are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum EventKind {
    Other = 0,
    Presence = 1,
    Gap = 2,
}

impl EventKind {
    /// By what the event says of itself.
    fn of(body: &str) -> EventKind {
        #[derive(serde::Deserialize)]
        struct Typed<'b> {
            #[serde(rename = "type", borrow)]
            name: std::borrow::Cow<'b, str>,
        }
        match serde_json::from_str::<Typed<'_>>(body).as_ref().map(|typed| &*typed.name) {
            Ok("presence") => EventKind::Presence,
            Ok("gap") => EventKind::Gap,
            _ => EventKind::Other,
        }
    }
}

/// Adds an event for every sink and returns its id.
pub(in crate::store) fn insert_event(connection: &Connection, time: Timestamp, body: &str) -> rusqlite::Result<u64> {
    insert_event_for(connection, time, body, None)
}

/// Adds an event, for one sink alone if it is named, and returns its id.
pub(in crate::store) fn insert_event_for(
    connection: &Connection,
    time: Timestamp,
    body: &str,
    sink: Option<&str>,
) -> rusqlite::Result<u64> {
    let kind = EventKind::of(body) as i64;
    connection
        .prepare_cached("INSERT INTO event (time, body, kind, sink) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![time.0, body, kind, sink])?;
    let id = connection.last_insert_rowid();
    connection
        .prepare_cached("UPDATE event SET guard = ?2 WHERE id = ?1")?
        .execute(params![id, rows::event_guard(id, time.0, body, sink)])?;
    Ok(u64::try_from(id).unwrap_or(0))
}

/// Keeps the log's clock.
pub(in crate::store) fn keep_clock(connection: &Connection, kept: StoredClock) -> rusqlite::Result<()> {
    set_meta(connection, "log_clock", kept.seconds)?;
    set_meta(connection, "log_clock_boot", kept.boot)?;
    set_meta(connection, "log_clock_uptime", kept.uptime)
}

#[cfg(test)]
mod tests {
    use super::super::ticket::Ticket;
    use super::*;
    use crate::clock::Now;
    use crate::model::Epoch;
    use crate::store::recovery::power_cut::WalRemains;
    use crate::store::recovery::startup::{Recovered, recover};
    use crate::store::retention::gap::Hole;
    use std::time::Duration;

    const NOW: Now = Now { wall: Timestamp(0), trusted: false, monotonic: Duration::ZERO };

    fn recover_at(path: &Path, sinks: &[&str]) -> Recovered {
        let mut connection = open(path, Durability::Full).expect("the database opens");
        let left = WalRemains { has_wal: true, ..WalRemains::default() };
        let sinks: Vec<_> = sinks.iter().map(|sink| (*sink).into()).collect();
        recover(&mut connection, &sinks, NOW, &mut Ticket::none(Epoch(7)), Durability::Full, &left, 0)
            .expect("the database reads")
    }

    #[test]
    fn an_older_schema_is_migrated_and_keeps_its_content() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(FILE_NAME);
        let mut old = Connection::open(&path).expect("a new database");
        migrate(&mut old, 0, &MIGRATIONS[..1]).expect("the first version");
        old.execute("INSERT INTO sink VALUES ('cloud', 42)", []).expect("the first version's sink table");
        old.execute("INSERT INTO meta VALUES ('epoch', 3)", []).expect("the first version's meta table");
        old.execute("INSERT INTO meta VALUES ('reserved', 100)", []).expect("the first version's meta table");
        drop(old);

        let recovered = recover_at(&path, &["cloud"]);
        assert_eq!((recovered.epochs.of(Seq(42)).0, recovered.sinks.positions), (Epoch(3), vec![(Seq(42), 0)]));
        let version: i64 = pragma(&Connection::open(&path).expect("it opens"), "user_version").expect("a version");
        assert_eq!(version, MIGRATIONS.len() as i64);
    }

    #[test]
    fn a_page_that_cannot_be_read_says_nothing_about_the_structure() {
        assert!(is_read_failure("*** in database main ***\nTree 3 page 43 cell 0: failed to get page 47"));
        assert!(is_read_failure("*** in database main ***\nTree 6 page 6: unable to get the page. error code=266"));
        assert!(!is_read_failure("*** in database main ***\nTree 3 page 3: btreeInitPage() returns error code 11"));
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
        assert_eq!(second.next, Seq(SEQ_BLOCK + 1));
        assert!(second.last_event > 1 << 30, "ids of events are skipped as well: {}", second.last_event);
        assert_eq!(second.holes.behind(Seq::ZERO).collect::<Vec<_>>(), [Hole::whole(Seq(1), Seq(SEQ_BLOCK))]);
        assert_eq!(second.epochs.of(Seq(SEQ_BLOCK)).0, first.epochs.current());
    }
}
