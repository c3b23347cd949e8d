//! The inbox: commands that came, how far each has come, and how those of late ended.
//!
//! What becomes of a command is decided elsewhere, as a [`Change`], and written with the
//! log's next commit: the command's row and the event that tells how it ended stand in
//! one transaction. Changes are written in the order in which they came, and counted;
//! [`super::Log::commands_written`] tells how many are on disk. One that was written by a commit
//! that seemed to fail may be written again, and means the same then.
//!
//! Of a command that ended, first its body goes, when bodies take more than their share of
//! the log. Its id and how it ended stay as long as they are asked for: a command whose id
//! was forgotten would be done again if it is sent again.

use super::disk::rows;
use super::disk::schema;
use super::disk::small_tables::Shares;
use crate::model::{Command, CommandId, CommandKey, CommandState, DeviceId, Target, Timestamp};
use anyhow::Result;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::time::Duration;

/// What is to be written about a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The command as it is from now on; `None` if it was none that could be kept.
    pub command: Option<Command>,
    /// A JSON object that is told upstream.
    pub event: Option<String>,
}

/// What the last life of the gateway left of commands.
#[derive(Debug, Default)]
pub struct Commands {
    /// Those that have not ended, in the order in which they came.
    pub live: Vec<Command>,
    /// How others ended, the latest last.
    pub ended: Vec<(CommandKey, CommandState)>,
    /// Where the next one is to stand in the order.
    pub next_place: u64,
}

/// What is known of a command that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Whole(Box<Command>),
    /// It ended long ago, and nothing but how is known.
    End(CommandState),
}

/// Changes on their way to the disk.
pub(super) struct Inbox {
    changes: Vec<Change>,
    /// Changes taken over so far, and those of them that are on disk.
    count: u64,
    written: u64,
    left: Option<Commands>,
    /// Commands that ended since surplus ones were forgotten, and about their bytes.
    ended: u64,
    ended_bytes: u64,
    keep: Keep,
}

/// How many ended commands are remembered, how many of them at most whatever is asked for,
/// for how long, and in how many bytes those that are remembered as a whole.
#[derive(Debug, Clone, Copy)]
struct Keep {
    count: u64,
    most: u64,
    bytes: u64,
    age: Duration,
}

/// The part of a commit that is about commands.
#[derive(Default)]
pub(super) struct PendingChanges {
    changes: Vec<Change>,
    upto: u64,
    forget: Option<Keep>,
}

/// Surplus ones are forgotten when so many more have ended.
const FORGET_EVERY: u64 = 256;
/// The same of the bytes that they may take.
const FORGET_PART: u64 = 4;
/// What a command's row takes beside its body, about.
const ROW: u64 = 256;

impl Inbox {
    /// What ended commands may take on disk is in `shares`.
    pub fn new(left: Commands, shares: Shares) -> Inbox {
        let (most, bytes) = (shares.ended, shares.commands);
        let keep = Keep { count: most.min(10_000), most, bytes, age: Duration::from_secs(7 * 24 * 3600) };
        let (changes, left) = (Vec::new(), Some(left));
        Inbox { changes, count: 0, written: 0, left, ended: FORGET_EVERY, ended_bytes: 0, keep }
    }

    /// What the last life left; for the first who asks.
    pub fn take_left(&mut self) -> Commands {
        self.left.take().unwrap_or_default()
    }

    /// Remembers so many ended commands, or as many as a log of its size may, and none for
    /// longer.
    pub fn remember(&mut self, count: usize, age: Duration) {
        self.keep = Keep { count: self.keep.most.min(count as u64), age, ..self.keep };
    }

    /// Takes changes for the next commit.
    pub fn came(&mut self, changes: Vec<Change>) {
        self.count += changes.len() as u64;
        self.changes.extend(changes);
    }

    /// How many changes are on disk, since the log was opened.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether somebody waits for a commit.
    pub fn is_due(&self) -> bool {
        !self.changes.is_empty()
    }

    /// What the next commit writes.
    pub fn take(&mut self) -> PendingChanges {
        let changes = std::mem::take(&mut self.changes);
        for command in changes.iter().filter_map(|change| change.command.as_ref()) {
            let Some(ending) = &command.ended else { continue };
            let payloads = [&command.payload, &ending.payload].into_iter().flatten();
            self.ended += 1;
            self.ended_bytes += ROW + payloads.map(|payload| payload.len() as u64).sum::<u64>();
        }
        let surplus = self.ended >= FORGET_EVERY || self.ended_bytes >= self.keep.bytes / FORGET_PART;
        let forget = (!changes.is_empty() && surplus).then_some(self.keep);
        if forget.is_some() {
            (self.ended, self.ended_bytes) = (0, 0);
        }
        PendingChanges { changes, upto: self.count, forget }
    }

    /// A commit was not written: what it took is to be written again.
    pub fn put_back(&mut self, taken: PendingChanges) {
        let newer = std::mem::replace(&mut self.changes, taken.changes);
        self.changes.extend(newer);
        if taken.forget.is_some() {
            self.ended = FORGET_EVERY;
        }
    }

    /// What a commit took is on disk.
    pub fn saved(&mut self, taken: &PendingChanges) {
        self.written = self.written.max(taken.upto);
    }
}

const COLUMNS: &str = "place, device, id, state, ended, body, guard";

/// How the gateway itself stands in the column for a device: no device has this name.
const GATEWAY: &str = "";

pub(super) fn column(target: &Target) -> &str {
    target.device().map_or(GATEWAY, DeviceId::as_str)
}

pub(super) fn find(db: &Connection, device: &str, id: &str) -> Result<Option<Record>> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM command WHERE device = ?1 AND id = ?2"))?;
    Ok(statement.query_row([device, id], |row| Ok(Row::of(row).and_then(|row| row.record()))).optional()?.flatten())
}

pub(super) fn list(db: &Connection, device: &str, most: u32) -> Result<Vec<Command>> {
    let sql = format!("SELECT {COLUMNS} FROM command WHERE device = ?1 ORDER BY place DESC LIMIT ?2");
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(params![device, most])?;
    let mut commands = Vec::new();
    while let Some(row) = rows.next()? {
        commands.extend(Row::of(row).and_then(|row| row.command()));
    }
    Ok(commands)
}

/// A row that is what was written.
struct Row {
    place: i64,
    device: String,
    id: String,
    state: String,
    ended: Option<i64>,
    /// Empty if nothing but its end is remembered.
    body: String,
}

impl Row {
    /// `None` if it is not what was written. Its columns are [`COLUMNS`].
    fn of(row: &rusqlite::Row<'_>) -> Option<Row> {
        let found = Row {
            place: row.get(0).ok()?,
            device: row.get(1).ok()?,
            id: row.get(2).ok()?,
            state: row.get(3).ok()?,
            ended: row.get(4).ok()?,
            body: row.get(5).ok()?,
        };
        (row.get::<_, i64>(6).ok()? == found.guard()).then_some(found)
    }

    fn guard(&self) -> i64 {
        rows::command_guard(self.place, [&self.device, &self.id, &self.state, &self.body], self.ended)
    }

    fn command(&self) -> Option<Command> {
        serde_json::from_str(&self.body).ok()
    }

    fn record(&self) -> Option<Record> {
        match self.body.as_str() {
            "" => self.final_state().map(Record::End),
            _ => self.command().map(|command| Record::Whole(Box::new(command))),
        }
    }

    fn key(&self) -> Option<CommandKey> {
        let target = match self.device.as_str() {
            GATEWAY => Target::Gateway,
            device => Target::Device(DeviceId::new(device).ok()?),
        };
        Some(CommandKey { target, id: CommandId::new(&self.id).ok()? })
    }

    fn final_state(&self) -> Option<CommandState> {
        use CommandState::{Done, Expired, Failed, Rejected, Unreachable};
        [Done, Failed, Rejected, Expired, Unreachable].into_iter().find(|state| state.name() == self.state)
    }
}

/// Reads what the last life left, and how many rows were not what was written: those are
/// taken out.
pub(super) fn load(db: &mut Connection) -> rusqlite::Result<(Commands, u64)> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (mut commands, mut damaged) = (Commands { next_place: 1, ..Commands::default() }, Vec::new());
    {
        let mut ended = Vec::new();
        let mut statement = transaction.prepare(&format!("SELECT {COLUMNS} FROM command ORDER BY place"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let place: i64 = row.get(0)?;
            commands.next_place = u64::try_from(place).unwrap_or(0).saturating_add(1);
            match Row::of(row) {
                Some(row) if row.ended.is_none() => match row.command() {
                    Some(command) => commands.live.push(command),
                    None => damaged.push(place),
                },
                Some(row) => match (row.ended, row.key(), row.final_state()) {
                    (Some(when), Some(key), Some(state)) => ended.push((when, key, state)),
                    _ => damaged.push(place),
                },
                None => damaged.push(place),
            }
        }
        ended.sort_by_key(|(when, ..)| *when);
        commands.ended = ended.into_iter().map(|(_, key, state)| (key, state)).collect();
    }
    for place in &damaged {
        transaction.execute("DELETE FROM command WHERE place = ?1", [place])?;
    }
    transaction.commit()?;
    Ok((commands, damaged.len() as u64))
}

/// How many rows are not what was written. A log of an earlier version has none.
pub(super) fn unproven(db: &Connection) -> rusqlite::Result<u64> {
    let there = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'command'";
    if db.query_row(there, [], |_| Ok(())).optional()?.is_none() {
        return Ok(0);
    }
    let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM command"))?;
    let mut rows = statement.query([])?;
    let mut damaged = 0;
    while let Some(row) = rows.next()? {
        damaged += u64::from(Row::of(row).is_none());
    }
    Ok(damaged)
}

/// Writes what was taken at `now`, `clock` by the log's own clock. Returns the id of the
/// last event, if there is one.
pub(super) fn write(db: &Connection, taken: &PendingChanges, now: Timestamp, clock: u64) -> Result<Option<u64>> {
    let mut last_event = None;
    for Change { command, event } in &taken.changes {
        if let Some(command) = command {
            put(db, command, clock)?;
        }
        if let Some(event) = event {
            last_event = Some(schema::insert_event(db, now, event)?);
        }
    }
    if let Some(keep) = taken.forget {
        forget(db, keep, clock)?;
    }
    Ok(last_event)
}

/// Forgets ended commands that are too many or too old, and of those that take too much
/// room all but how they ended.
fn forget(db: &Connection, keep: Keep, clock: u64) -> Result<()> {
    let oldest = clock.saturating_sub(keep.age.as_secs());
    // The index is walked over those that are kept.
    db.prepare_cached(
        "DELETE FROM command WHERE ended < ?1 OR place IN
         (SELECT place FROM command WHERE ended IS NOT NULL ORDER BY ended DESC, place DESC LIMIT -1 OFFSET ?2)",
    )?
    .execute(params![oldest, keep.count])?;
    let mut surplus = db.prepare_cached(
        "SELECT place FROM
         (SELECT place, octet_length(body) AS size,
                 sum(octet_length(body) + ?1) OVER (ORDER BY ended DESC, place DESC) AS total
          FROM command WHERE ended IS NOT NULL) WHERE total > ?2 AND size > 0",
    )?;
    let places = surplus.query_map(params![ROW, keep.bytes], |row| row.get(0))?;
    for place in places.collect::<rusqlite::Result<Vec<i64>>>()? {
        let row = db
            .prepare_cached(&format!("SELECT {COLUMNS} FROM command WHERE place = ?1"))?
            .query_row([place], |row| Ok(Row::of(row)))?;
        // What was damaged must not look right.
        let Some(row) = row else { continue };
        put_row(db, &Row { body: String::new(), ..row })?;
    }
    Ok(())
}

fn put(db: &Connection, command: &Command, clock: u64) -> Result<()> {
    let row = Row {
        place: rows::signed(command.place),
        device: column(&command.target).to_owned(),
        id: command.id.to_string(),
        state: command.state().name().to_owned(),
        ended: command.ended.as_ref().map(|_| rows::signed(clock)),
        body: serde_json::to_string(command)?,
    };
    put_row(db, &row)
}

fn put_row(db: &Connection, row: &Row) -> Result<()> {
    db.prepare_cached(&format!("INSERT OR REPLACE INTO command ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"))?
        .execute(params![row.place, row.device, row.id, row.state, row.ended, row.body, row.guard()])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Log, Opened, Stepper};
    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Store;
    use crate::metrics::Metrics;
    use crate::model::{BootId, CommandName, Deadline, Ending, Source};
    use std::path::Path;
    use std::sync::Arc;

    fn open(directory: &Path) -> (Log, Stepper) {
        let config = Store { directory: directory.to_owned(), ..Store::default() };
        let (clock, gauge) = (Arc::new(SystemClock::new()), Arc::new(|| None));
        let Opened { log, writer, .. } =
            Log::open_stepped(&config, &[], &["cloud"], clock, Metrics::new(), gauge).expect("a log");
        (log, writer)
    }

    fn command(place: u64, ended: Option<CommandState>) -> Command {
        let deadline = Deadline { boot: BootId([0; 16]), uptime: None, wall: None, lifetime: Duration::ZERO };
        Command {
            place,
            target: Target::Device(DeviceId::new("hub/pump").expect("a valid name")),
            id: CommandId::new(&format!("c{place}")).expect("a valid id"),
            name: CommandName::new("start").expect("a valid name"),
            payload: Some("{\"a\":1}".to_owned()),
            source: Source::Mqtt,
            received: Timestamp(0),
            deadline,
            sent: None,
            ended: ended.map(|state| Ending { state, payload: None, time: Timestamp(0) }),
        }
    }

    fn change(command: Command) -> Change {
        Change { command: Some(command), event: None }
    }

    #[tokio::test]
    async fn commands_and_how_they_ended_are_there_after_a_restart() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (log, mut writer) = open(directory.path());
        assert_eq!(log.take_commands().next_place, 1);
        let event = "{\"type\":\"command-result\"}".to_owned();
        let ended = Change { command: Some(command(2, Some(CommandState::Done))), event: Some(event) };
        log.change_commands(vec![change(command(1, None)), change(command(2, None)), ended]);
        writer.step();
        assert_eq!(log.commands_written(0).await, 3);
        let ended = command(2, Some(CommandState::Done));
        let found = log.command(&ended.key()).await.expect("it reads").expect("it is there");
        assert_eq!(found, Record::Whole(Box::new(ended.clone())));
        let listed = log.commands(&ended.target, 10).await.expect("it reads");
        assert_eq!(listed.iter().map(|command| command.place).collect::<Vec<_>>(), [2, 1]);
        drop((log, writer));

        let (log, _writer) = open(directory.path());
        let left = log.take_commands();
        assert_eq!(left.live, [command(1, None)]);
        assert_eq!(left.ended, [(command(2, None).key(), CommandState::Done)]);
        assert_eq!(left.next_place, 3);
        assert!(log.take_commands().live.is_empty(), "they are given out once");
    }

    #[test]
    fn of_ended_commands_the_latest_are_remembered() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (log, mut writer) = open(directory.path());
        log.remember_commands(10, Duration::from_secs(3600));
        for place in 1..=600 {
            log.change_commands(vec![change(command(place, Some(CommandState::Failed)))]);
            writer.step();
        }
        drop((log, writer));
        let (log, _writer) = open(directory.path());
        let left = log.take_commands();
        let first = left.ended.first().expect("some are remembered").0.id.to_string();
        assert!(left.ended.len() as u64 <= 10 + FORGET_EVERY, "{}", left.ended.len());
        assert_eq!(left.next_place, 601);
        assert_ne!(first, "c1");
    }

    #[tokio::test]
    async fn bodies_of_ended_commands_stay_within_their_share_of_the_log_and_their_ids_are_remembered() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (log, mut writer) = open(directory.path());
        let share = 100_000;
        log.shared.state.lock().inbox.keep.bytes = share;
        let large = |place| {
            let payload = Some("x".repeat(5000));
            Command { payload, ..command(place, Some(CommandState::Done)) }
        };
        for place in 1..=100 {
            log.change_commands(vec![change(large(place))]);
            writer.step();
        }
        log.change_commands(vec![change(command(101, None))]);
        writer.step();
        let db = schema::open_reader(&directory.path().join(schema::FILE_NAME)).expect("it opens");
        let bytes: u64 =
            db.query_row("SELECT sum(octet_length(body)) FROM command", [], |row| row.get(0)).expect("some are left");
        assert!((share / 2..share + share / FORGET_PART + 10_000).contains(&bytes), "{bytes} bytes are left");
        let found = async |key| log.command(&key).await.expect("it reads");
        assert_eq!(found(large(1).key()).await, Some(Record::End(CommandState::Done)));
        assert_eq!(found(large(100).key()).await, Some(Record::Whole(Box::new(large(100)))));
        let listed = log.commands(&large(1).target, 1000).await.expect("it reads");
        assert!((10..30).contains(&listed.len()), "{} are listed", listed.len());
        assert_eq!(unproven(&db).expect("it reads"), 0);
        drop((log, writer));

        let (log, _writer) = open(directory.path());
        let left = log.take_commands();
        let ended = (1..=100).map(|place| (large(place).key(), CommandState::Done)).collect::<Vec<_>>();
        assert_eq!((left.live, left.ended), (vec![command(101, None)], ended));
    }

    #[test]
    fn a_damaged_row_does_not_look_right_when_its_body_has_to_go() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let db = schema::open(&directory.path().join("log.db"), crate::config::Durability::Full).expect("it opens");
        for place in 1..=3 {
            put(&db, &command(place, Some(CommandState::Done)), 7).expect("it is written");
        }
        db.execute("UPDATE command SET state = 'failed' WHERE place = 1", []).expect("damage");
        let keep = Keep { count: 10, most: 10, bytes: 1000, age: Duration::from_secs(60) };
        forget(&db, keep, 8).expect("it is written");
        let bare = "SELECT group_concat(place) FROM command WHERE body = ''";
        assert_eq!(db.query_row(bare, [], |row| row.get::<_, String>(0)).expect("it reads"), "2");
        assert_eq!(unproven(&db).expect("it reads"), 1);
    }

    #[test]
    fn no_more_ended_commands_are_remembered_than_a_log_of_its_size_may() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (log, _writer) = open(directory.path());
        let keep = || log.shared.state.lock().inbox.keep.count;
        for (asked, kept) in [(50, 50), (usize::MAX, 1 << 20)] {
            log.remember_commands(asked, Duration::from_secs(1));
            assert_eq!(keep(), kept);
        }
    }

    #[test]
    fn a_damaged_row_is_taken_out_and_told() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (log, mut writer) = open(directory.path());
        log.change_commands(vec![change(command(1, None)), change(command(2, None))]);
        writer.step();
        drop((log, writer));
        let path = directory.path().join(schema::FILE_NAME);
        let mut db = schema::open(&path, crate::config::Durability::Full).expect("it opens");
        db.execute("UPDATE command SET body = replace(body, 'start', 'stopp') WHERE place = 1", []).expect("damage");
        assert_eq!(unproven(&db).expect("it reads"), 1);
        let (left, damaged) = load(&mut db).expect("it reads");
        assert_eq!((left.live, damaged), (vec![command(2, None)], 1));
        assert_eq!(unproven(&db).expect("it reads"), 0);
    }

    #[test]
    fn what_a_failed_commit_took_comes_before_what_came_since() {
        let mut inbox = Inbox::new(Commands::default(), Shares::of(1 << 30));
        inbox.changes = vec![change(command(1, None))];
        inbox.count = 1;
        let taken = inbox.take();
        assert!(!inbox.is_due() && taken.forget.is_some());
        inbox.changes = vec![change(command(2, None))];
        inbox.count = 2;
        inbox.put_back(taken);
        let again = inbox.take();
        assert!(again.forget.is_some(), "surplus ones are still there");
        assert_eq!(again.changes, [change(command(1, None)), change(command(2, None))]);
        inbox.saved(&again);
        assert_eq!(inbox.written, 2);
    }
}
