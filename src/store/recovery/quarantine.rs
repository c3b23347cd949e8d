//! Where damaged databases go: `quarantine/NNNN-REASON/` below the store's directory,
//! with what was found in `report.json` and `report.txt`.
//!
//! A quarantined file is moved, never changed. The report says how far salvage has
//! come, so that it goes on after a crash.

use crate::files::{self, Replacement};
use crate::store::disk::schema::FILE_NAME;
use crate::store::disk::wal::wal_path;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Name of the directory of quarantined databases.
const DIRECTORY: &str = "quarantine";
/// Quarantined databases that are kept once all that is sound in them was salvaged.
const KEPT: usize = 3;
/// Ranges of missing seqs that a report names.
pub(in crate::store) const MAX_RANGES: usize = 100;

/// How far a quarantined database has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::store) enum State {
    /// Its files are being moved.
    Moving,
    /// What is sound in it is being taken over.
    Salvaging,
    /// Nothing more will be taken from it.
    Finished,
}

/// What is known about a quarantined database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct Report {
    pub state: State,
    /// One word, as in the directory's name.
    pub reason: String,
    /// What was found.
    pub found: String,
    /// By the gateway's clock, which may be wrong.
    pub time: String,
    /// The epoch of the readings in it, if that can still be told.
    pub epoch: Option<u32>,
    /// The epoch under which the gateway went on.
    pub new_epoch: Option<u32>,
    #[serde(default)]
    pub salvaged: Salvaged,
}

/// What was taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct Salvaged {
    /// Readings that some sink had not confirmed, which are sent under new seqs.
    pub sent_again: u64,
    /// Readings that every sink had confirmed, taken over as history.
    pub history: u64,
    /// Segments whose checksum does not hold.
    pub damaged_segments: u64,
    /// Positions of sinks, high-water marks of devices and events that were proven.
    pub sinks: u64,
    pub marks: u64,
    pub events: u64,
    /// Undelivered seqs that nothing sound holds: first and last. Some may never have
    /// been given out. At most 100; the last one then reaches to the end.
    pub missing: Vec<(u64, u64)>,
}

/// A quarantined database.
#[derive(Debug, Clone)]
pub(in crate::store) struct Entry {
    pub number: u32,
    pub directory: PathBuf,
    pub report: Report,
}

impl Entry {
    /// The database in it.
    pub fn database(&self) -> PathBuf {
        self.directory.join(FILE_NAME)
    }

    /// The key in the new database's `meta` under which salvage notes its progress.
    pub fn progress_key(&self) -> String {
        format!("salvage-{:04}", self.number)
    }

    /// Its name, as in `quarantine/0001-damaged`.
    pub fn name(&self) -> String {
        format!("{DIRECTORY}/{:04}-{}", self.number, self.report.reason)
    }

    /// Bytes of the files in it. What is not a file in the place of a database is not ours
    /// and does not count.
    pub fn size(&self) -> u64 {
        let Ok(files) = fs::read_dir(&self.directory) else { return 0 };
        let sizes = files.filter_map(|file| file.ok()?.metadata().ok().filter(fs::Metadata::is_file));
        sizes.map(|file| file.len()).sum()
    }

    /// Whether all that is sound in it was taken over.
    fn is_salvaged(&self) -> bool {
        let Salvaged { sent_again, history, .. } = self.report.salvaged;
        self.report.state == State::Finished && sent_again + history > 0
    }

    /// Whether it may be removed when space is needed. A directory, or whatever else stood
    /// in the place of a database, is somebody else's.
    fn may_go(&self) -> bool {
        let is_file = fs::symlink_metadata(self.database()).map_or(true, |found| found.is_file());
        self.report.state == State::Finished && is_file
    }

    /// Removes it, and says what for.
    fn remove(&self, reason: &str) -> bool {
        match fs::remove_dir_all(&self.directory) {
            Ok(()) => {
                tracing::warn!(quarantine = self.name(), reason, "an old quarantined log was removed to save space");
                true
            }
            Err(why) => {
                tracing::warn!(quarantine = self.name(), %why, "an old quarantined log cannot be removed");
                false
            }
        }
    }

    /// Writes both reports.
    pub fn write(&self) -> io::Result<()> {
        let json = serde_json::to_string_pretty(&self.report).map_err(io::Error::other)?;
        replace(&self.directory.join("report.txt"), &self.text())?;
        replace(&self.directory.join("report.json"), &(json + "\n"))
    }

    fn text(&self) -> String {
        let Report { state, reason, found, time, new_epoch, salvaged, .. } = &self.report;
        let mut text = String::new();
        let epoch = |epoch: &Option<u32>| epoch.map_or("not known".to_owned(), |epoch| epoch.to_string());
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "tidegate moved this database aside, and went on with a new one.\n\n\
             reason          {reason}: {found}\n\
             time            {time}\n\
             epoch           {}, now {}\n\
             state           {}\n\
             sent again      {} readings\n\
             kept as history {} readings\n\
             damaged         {} segments\n\
             taken over      {} sinks' places, {} devices' marks, {} events\n",
            epoch(&self.report.epoch),
            epoch(new_epoch),
            match state {
                State::Moving | State::Salvaging => "what is sound is being taken over",
                State::Finished => "what was sound was taken over",
            },
            salvaged.sent_again,
            salvaged.history,
            salvaged.damaged_segments,
            salvaged.sinks,
            salvaged.marks,
            salvaged.events,
        );
        for (first, last) in &salvaged.missing {
            let _ = writeln!(text, "missing         seqs {first} to {last}");
        }
        text += "\nWhat to do: find out why (a failing card, a power supply, another program).\n\
                 Look into it with `tidegate queue verify --file log.db` and\n\
                 `tidegate queue export --file log.db`. Once it is of no more use, remove this directory.\n";
        text
    }
}

/// Writes a file in one step.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = Replacement::of(path, 0o644)?;
    new.file().write_all(text.as_bytes())?;
    new.put()
}

/// Removes what an earlier life could not finish writing.
pub(in crate::store) fn clear(store: &Path) {
    for entry in list(store) {
        let reports = ["report.txt", "report.json"].map(|report| Replacement::temporary(&entry.directory.join(report)));
        // Where earlier versions wrote both.
        for left in reports.iter().chain([&entry.directory.join("report.new")]) {
            // It takes little space, and the next start tries again.
            let _ = files::discard(left);
        }
    }
}

/// All quarantined databases of a store, oldest first.
pub(in crate::store) fn list(store: &Path) -> Vec<Entry> {
    let Ok(directories) = fs::read_dir(store.join(DIRECTORY)) else { return Vec::new() };
    let mut entries: Vec<Entry> = directories
        .filter_map(|entry| {
            let directory = entry.ok()?.path();
            let number = directory.file_name()?.to_str()?.split_once('-')?.0.parse().ok()?;
            let report = fs::read(directory.join("report.json")).ok()?;
            Some(Entry { number, directory, report: serde_json::from_slice(&report).ok()? })
        })
        .collect();
    entries.sort_by_key(|entry| entry.number);
    entries
}

/// Moves the store's database with all that belongs to it into quarantine.
pub(in crate::store) fn take(store: &Path, reason: &str, found: &str, time: String) -> io::Result<Entry> {
    let above = store.join(DIRECTORY);
    fs::create_dir_all(&above)?;
    files::hand_over(&above);
    let highest = |name: &std::ffi::OsStr| name.to_str()?.split_once('-')?.0.parse::<u32>().ok();
    let used = fs::read_dir(&above)?.filter_map(|entry| highest(&entry.ok()?.file_name())).max();
    let number = used.unwrap_or(0).saturating_add(1);
    let directory = above.join(format!("{number:04}-{reason}"));
    fs::create_dir(&directory)?;
    files::hand_over(&directory);
    let report = Report {
        state: State::Moving,
        reason: reason.to_owned(),
        found: found.to_owned(),
        time,
        epoch: None,
        new_epoch: None,
        salvaged: Salvaged::default(),
    };
    let mut entry = Entry { number, directory, report };
    entry.write()?;
    complete(store, &mut entry)?;
    Ok(entry)
}

/// Moves what is still in its old place. A crash may have come between the steps.
pub(in crate::store) fn complete(store: &Path, entry: &mut Entry) -> io::Result<()> {
    let (from, to) = (store.join(FILE_NAME), entry.database());
    if fs::symlink_metadata(&to).is_err() {
        rename_if_there(&from, &to)?;
    }
    if fs::symlink_metadata(wal_path(&to)).is_err() {
        rename_if_there(&wal_path(&from), &wal_path(&to))?;
    }
    // What these hold is made anew.
    for suffix in ["-shm", "-journal"] {
        let mut name = from.clone().into_os_string();
        name.push(suffix);
        rename_if_there(Path::new(&name), &entry.directory.join(format!("{FILE_NAME}{suffix}")))?;
    }
    for directory in [store, &entry.directory, &store.join(DIRECTORY)] {
        File::open(directory)?.sync_all()?;
    }
    entry.report.state = State::Salvaging;
    entry.write()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Bytes of all quarantined databases.
pub(in crate::store) fn size(store: &Path) -> u64 {
    list(store).iter().map(Entry::size).sum()
}

/// Removes the oldest databases from which everything was taken over but for the last few,
/// so that quarantine is not looked through for ever.
pub(in crate::store) fn prune(store: &Path) {
    let entries: Vec<Entry> = list(store).into_iter().filter(Entry::is_salvaged).collect();
    for entry in entries.iter().take(entries.len().saturating_sub(KEPT)) {
        entry.remove("the last three are kept");
    }
}

/// Removes databases of which nothing more can be had until `wanted` bytes are free:
/// first those from which everything was taken over, then those that held nothing of ours,
/// the oldest first. Returns the bytes that this freed.
pub(in crate::store) fn make_way(store: &Path, wanted: u64) -> u64 {
    let mut entries: Vec<Entry> = list(store).into_iter().filter(Entry::may_go).collect();
    entries.sort_by_key(|entry| (!entry.is_salvaged(), entry.number));
    let mut freed = 0;
    for entry in entries {
        if freed >= wanted {
            break;
        }
        let size = entry.size();
        if entry.remove("the log needs its space") {
            freed += size;
        }
    }
    freed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_that_a_crash_cut_off_is_completed() {
        let store = tempfile::tempdir().expect("a temporary directory");
        fs::write(store.path().join("log.db"), "db").expect("a file");
        let mut entry = take(store.path(), "damaged", "a test", "now".into()).expect("it moves");
        assert_eq!(entry.number, 1);
        // As if it had been cut off between the two files.
        fs::write(store.path().join("log.db-wal"), "wal").expect("a file");
        entry.report.state = State::Moving;
        entry.write().expect("a report");

        let mut found = list(store.path()).remove(0);
        assert_eq!(found.report.state, State::Moving);
        complete(store.path(), &mut found).expect("it moves");
        assert_eq!(fs::read(found.database()).expect("the database"), b"db");
        assert_eq!(fs::read(wal_path(&found.database())).expect("its log"), b"wal");
        assert!(!store.path().join("log.db-wal").exists());
        assert_eq!(list(store.path())[0].report.state, State::Salvaging);
    }

    #[test]
    fn the_oldest_salvaged_database_makes_way_first_and_what_is_not_a_file_never() {
        let store = tempfile::tempdir().expect("a temporary directory");
        let states = [(State::Finished, 0), (State::Finished, 9), (State::Salvaging, 9), (State::Finished, 9)];
        for (state, history) in states {
            fs::write(store.path().join(FILE_NAME), [7; 100_000]).expect("a file");
            let mut entry = take(store.path(), "damaged", "a test", "now".into()).expect("it moves");
            entry.report.state = state;
            entry.report.salvaged.history = history;
            entry.write().expect("a report");
        }
        fs::create_dir(store.path().join(FILE_NAME)).expect("a directory");
        let mut entry = take(store.path(), "unreadable", "a test", "now".into()).expect("it moves");
        entry.report.state = State::Finished;
        entry.write().expect("a report");

        let left = || list(store.path()).iter().map(|entry| entry.number).collect::<Vec<_>>();
        assert!(size(store.path()) > 400_000);
        assert!(make_way(store.path(), 1) > 100_000);
        assert_eq!(left(), [1, 3, 4, 5], "no more than is needed");
        make_way(store.path(), 150_000);
        assert_eq!(left(), [3, 5], "what held nothing of ours goes when nothing else is left");
        assert_eq!(make_way(store.path(), u64::MAX), 0);
        assert_eq!(left(), [3, 5]);
    }

    #[test]
    fn only_the_oldest_of_what_is_exhausted_is_removed() {
        let store = tempfile::tempdir().expect("a temporary directory");
        for number in 1..=6 {
            let mut entry = take(store.path(), "damaged", "a test", "now".into()).expect("it moves");
            assert_eq!(entry.number, number);
            entry.report.state = State::Finished;
            entry.report.salvaged.history = u64::from(number != 1);
            entry.write().expect("a report");
        }
        prune(store.path());
        let left: Vec<u32> = list(store.path()).iter().map(|entry| entry.number).collect();
        assert_eq!(left, [1, 4, 5, 6], "what held nothing of ours stays");
    }
}
