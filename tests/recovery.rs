//! A damaged log: it is told, moved aside, and all that is sound in it is delivered.
//!
//! `TIDEGATE_DAMAGES=5000` damages a log so many times instead of 100, and
//! `TIDEGATE_DAMAGES_FROM=N` begins with seed N: a failure names its seed.

use crate::support::broker::Broker;
use crate::support::device::Talk;
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use bytesize::ByteSize;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tidegate::clock::SystemClock;
use tidegate::config::{Deliver, Durability, HistoryWithin, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{
    Basis, Batch, ChannelName, Channels, DeviceId, Epoch, Reading, Seq, SequencedBatch, Timestamp, Value,
};
use tidegate::store::{Log, Opened, Space, Stepped, Stepper};

const PAGE: usize = 1024;
/// No step on a damaged log may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(directory: &Path) -> Store {
    Store {
        directory: directory.to_owned(),
        commit_within: Duration::ZERO,
        deliver: Deliver::AfterCommit,
        durability: Durability::Normal,
        max_size: ByteSize::mib(128),
        ..Store::default()
    }
}

fn open_with(directory: &Path, metrics: Metrics) -> Opened {
    let clock = Arc::new(SystemClock::new());
    Log::open(&config(directory), &["a", "b"], clock, metrics).expect("a damaged log opens")
}

fn open(directory: &Path) -> Opened {
    open_with(directory, Metrics::new())
}

fn close(opened: Opened) {
    opened.log.close();
    opened.writer.join();
}

fn pump() -> DeviceId {
    DeviceId::new("pump").expect("a valid name")
}

fn reading(origin: u64) -> Reading {
    let channels: Channels = [ChannelName::new("noise").expect("a valid name")].into();
    // Incompressible, so that each block can be found again in the files.
    let mut random = fastrand::Rng::with_seed(origin);
    let noise: Box<[u8]> = std::iter::repeat_with(|| random.u8(..)).take(24).collect();
    Reading::new(origin, Timestamp(origin as i64 * 1000), channels, [Value::Bytes(noise)].into()).expect("one each")
}

fn batch(origins: std::ops::RangeInclusive<u64>) -> Batch {
    Batch { device: pump(), session: Some(7), basis: Basis::Wall, readings: origins.map(reading).collect() }
}

/// Seq and origin of each reading that the sink has yet to get, having checked that
/// each is what was sent. Confirms them.
async fn drain(opened: &mut Opened, sink: usize) -> Vec<(u64, u64)> {
    let cursor = &mut opened.cursors[sink];
    let mut all = Vec::new();
    loop {
        let after = cursor.position();
        let batches = cursor.fetch(after, 100_000).await.expect("the log reads");
        let Some(last) = batches.last().map(SequencedBatch::last) else { return all };
        for numbered in &batches {
            assert_eq!((&numbered.batch.device, numbered.batch.session), (&pump(), Some(7)));
            for (seq, origin, got) in numbered.after(after) {
                let origin = origin.expect("it had one").seq;
                assert_eq!(*got, reading(origin), "a wrong value was delivered");
                all.push((seq.0, origin));
            }
        }
        cursor.confirm(last);
    }
}

/// A segment of the undamaged log: its readings and where in the files it stands.
struct Segment {
    first: u64,
    last: u64,
    /// Of the database and of its write-ahead log: first byte and the one behind.
    places: [Vec<(usize, usize)>; 2],
}

/// A log as a crash leaves it: half of it in the database, half in the write-ahead log.
struct Template {
    files: [Vec<u8>; 2],
    segments: Vec<Segment>,
    confirmed: u64,
    total: u64,
}

const FILES: [&str; 2] = ["log.db", "log.db-wal"];

/// The same one each time.
fn template() -> Template {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut random = fastrand::Rng::with_seed(1);
    fastrand::seed(1);
    let open = || {
        let clock = Arc::new(SystemClock::new());
        let gauge = Space::gauge(directory.path());
        let config = config(directory.path());
        Log::open_stepped(&config, &[], &["a", "b"], clock, Metrics::new(), gauge).expect("it opens")
    };
    let mut next = 1;
    let write = |opened: &mut Opened<Stepper>, commits: usize, next: &mut u64, random: &mut fastrand::Rng| {
        let mark = opened.log.high_water(&pump(), 7);
        for _ in 0..commits {
            let count = *[1, 3, 10, 40, 120].get(random.usize(..5)).expect("one of five");
            opened.log.append(Some(&mark), batch(*next..=*next + count - 1)).expect("there is room");
            assert_eq!(opened.writer.step(), Stepped::Tried);
            *next += count;
        }
    };
    let mut opened = open();
    write(&mut opened, 40, &mut next, &mut random);
    opened.cursors[0].confirm(Seq(next / 2));
    opened.log.close();
    while opened.writer.step() != Stepped::Closed {}
    drop(opened);
    let mut opened = open();
    write(&mut opened, 25, &mut next, &mut random);
    let files = FILES.map(|file| std::fs::read(directory.path().join(file)).expect("a file"));
    let copy = tempfile::tempdir().expect("a temporary directory");
    files.iter().zip(FILES).for_each(|(bytes, file)| std::fs::write(copy.path().join(file), bytes).expect("a copy"));
    let segments = segments(copy.path(), &files);
    Template { files, segments, confirmed: 0, total: next - 1 }
}

fn segments(directory: &Path, files: &[Vec<u8>; 2]) -> Vec<Segment> {
    let database = rusqlite::Connection::open(directory.join("log.db")).expect("it opens");
    let mut statement =
        database.prepare("SELECT first_seq, count, coalesce(data, block) FROM segment").expect("a segment table");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?)));
    rows.expect("rows")
        .map(|row| {
            let (first, count, block): (u64, u64, Vec<u8>) = row.expect("a row");
            let find = |file: &Vec<u8>| {
                let windows = block.chunks(16).filter(|window| window.len() == 16);
                let found = windows.flat_map(|window| {
                    memchr::memmem::find_iter(file, window)
                        .map(|at| (at.saturating_sub(80), at + 16 + 80))
                        .collect::<Vec<_>>()
                });
                found.collect()
            };
            Segment { first, last: first + count - 1, places: [find(&files[0]), find(&files[1])] }
        })
        .collect()
}

/// Damages the files, and tells which bytes of which are not what they were.
fn damage(files: &mut [Vec<u8>; 2], random: &mut fastrand::Rng) -> (String, [Vec<(usize, usize)>; 2]) {
    let before = files.clone();
    let file = usize::from(random.u8(..3) == 0);
    let flip = |bytes: &mut Vec<u8>, random: &mut fastrand::Rng, upto: usize| {
        let at = random.usize(..upto.min(bytes.len()));
        bytes[at] ^= 1 << random.u8(..8);
    };
    let pages = files[file].len() / PAGE;
    let page = random.usize(..pages) * PAGE;
    let what = match random.u8(..20) {
        0..8 => {
            flip(&mut files[file], random, usize::MAX);
            "one bit"
        }
        8..10 => {
            (0..random.usize(2..20)).for_each(|_| flip(&mut files[file], random, usize::MAX));
            "several bits"
        }
        10..13 => {
            flip(&mut files[file], random, 8 * PAGE);
            "one bit of the first pages"
        }
        13 => {
            files[file][page..page + PAGE].fill(0);
            "a page of zeros"
        }
        14 => {
            files[file][page..page + PAGE].iter_mut().for_each(|byte| *byte = random.u8(..));
            "a page of noise"
        }
        15 => {
            let other = random.usize(..pages) * PAGE;
            let half: Vec<u8> = files[file][other..other + PAGE / 2].to_vec();
            files[file][page..page + PAGE / 2].copy_from_slice(&half);
            "a torn page"
        }
        16 => {
            let length = random.usize(..files[file].len());
            files[file].truncate(length);
            "the end cut off"
        }
        17 => {
            let from = random.usize(..files[file].len());
            files[file][from..].fill(0);
            "the end zeroed"
        }
        18 => {
            files[1].clear();
            "no write-ahead log"
        }
        _ => {
            files[0] = b"somebody else's notes\n".repeat(100);
            "another file in its place"
        }
    };
    let touched = [0, 1].map(|file| {
        let changed = |at: &usize| files[file].get(*at) != before[file].get(*at);
        (0..before[file].len()).filter(changed).map(|at| (at, at + 1)).collect()
    });
    (format!("{what} in {}", FILES[file]), touched)
}

/// What one damaged log came to.
struct Recovered {
    quarantined: bool,
    lost: u64,
    took: Duration,
}

async fn recover(template: &Template, seed: u64) -> Recovered {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut files = template.files.clone();
    let (what, touched) = damage(&mut files, &mut random);
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, bytes) in FILES.iter().zip(&files).filter(|(_, bytes)| !bytes.is_empty()) {
        std::fs::write(directory.path().join(name), bytes).expect("a file");
    }
    let started = Instant::now();
    let metrics = Metrics::new();
    let mut opened = open_with(directory.path(), metrics.clone());
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "seed {seed}: {what}: {took:?} to open");

    // Everything is delivered, also what is being taken over meanwhile.
    let quarantined = metrics.store_quarantines.get() > 0;
    let mut delivered = Vec::new();
    let mut events = BTreeMap::new();
    loop {
        assert!(started.elapsed() < PATIENCE, "seed {seed}: {what}: it does not end\n{events:?}");
        let more = drain(&mut opened, 1).await;
        opened.log.flush().await.expect("it can be written");
        let last = events.last_key_value().map_or(0, |(id, _)| *id);
        let news = opened.cursors[1].events(last).await.expect("events");
        events.extend(news.into_iter().map(|event| (event.id, event.body)));
        let finished = events.values().any(|body| body["type"] == "quarantine" && body["state"] == "finished");
        let idle = more.is_empty() && (finished || !quarantined);
        delivered.extend(more);
        if idle {
            // What came before it was told that salvage is finished, and after the look above.
            delivered.extend(drain(&mut opened, 1).await);
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What was found damaged while it was read is reported with the next commit.
    opened.log.append(None, batch(1_000_000..=1_000_000)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    opened.log.append(None, batch(1_000_001..=1_000_001)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    let fresh: Vec<u64> = drain(&mut opened, 1).await.into_iter().map(|(_, origin)| origin).collect();
    assert_eq!(fresh, [1_000_000, 1_000_001], "seed {seed}: {what}: it goes on working");
    let last = events.last_key_value().map_or(0, |(id, _)| *id);
    for event in opened.cursors[1].events(last).await.expect("events") {
        events.insert(event.id, event.body);
    }

    // No seq is used twice.
    let seqs: BTreeSet<u64> = delivered.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(seqs.len(), delivered.len(), "seed {seed}: {what}: a seq was used twice");
    // All that was not touched arrives; what does not is reported.
    let origins: BTreeSet<u64> = delivered.iter().map(|(_, origin)| *origin).collect();
    let is_touched = |segment: &Segment| {
        let overlaps = |(places, touched): (&Vec<(usize, usize)>, &Vec<(usize, usize)>)| {
            places.iter().any(|place| touched.iter().any(|damage| damage.0 < place.1 && place.0 < damage.1))
        };
        segment.places.iter().zip(&touched).any(overlaps)
    };
    let reported = |seq: u64| {
        events.values().any(|body| {
            let number = |key: &str| body.get(key).and_then(serde_json::Value::as_u64);
            body["type"] == "gap"
                && number("first").is_some_and(|first| first <= seq)
                && number("last").is_some_and(|last| seq <= last)
        })
    };
    let end = origins.last().copied().unwrap_or(0);
    let mut lost = 0;
    for segment in template.segments.iter().filter(|segment| segment.last > template.confirmed) {
        // In the undamaged log seqs and origins are the same numbers.
        let missing: Vec<u64> = (segment.first..=segment.last).filter(|origin| !origins.contains(origin)).collect();
        if missing.is_empty() {
            continue;
        }
        assert!(is_touched(segment), "seed {seed}: {what}: {}..={} is sound and lost", segment.first, segment.last);
        lost += missing.len() as u64;
        for seq in missing {
            let told = reported(seq) || (quarantined && seq > end);
            assert!(told, "seed {seed}: {what}: the loss of {seq} is not reported in {events:#?}");
        }
    }
    close(opened);
    Recovered { quarantined, lost, took }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_damage_hangs_the_log_delivers_a_wrong_value_or_costs_what_is_sound() {
    let template = template();
    assert!(template.segments.iter().any(|segment| !segment.places[1].is_empty()), "some are in the WAL");
    let (from, count) = (number("TIDEGATE_DAMAGES_FROM", 0), number("TIDEGATE_DAMAGES", 100));
    let (mut quarantined, mut lost, mut with_loss, mut longest) = (0, 0, 0, Duration::ZERO);
    for seed in from..from + count {
        let recovered = recover(&template, seed).await;
        quarantined += u64::from(recovered.quarantined);
        lost += recovered.lost;
        with_loss += u64::from(recovered.lost > 0);
        longest = longest.max(recovered.took);
    }
    println!(
        "{count} damages to a log of {} readings in {} segments: {quarantined} went into quarantine, \
         {with_loss} cost readings, {lost} in all; it opened within {longest:?}",
        template.total,
        template.segments.len()
    );
    assert!(quarantined > 0 || count < 20, "some damage is noticed");
}

/// One bit of its seq moves a segment that far: seed 377 of the damages above.
#[tokio::test]
async fn a_damaged_segment_is_missed_from_where_the_one_before_it_ends() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(directory.path());
    for first in [1, 11, 21, 31] {
        opened.log.append(None, batch(first..=first + 9)).expect("there is room");
        opened.log.flush().await.expect("it can be written");
    }
    close(opened);
    let database = rusqlite::Connection::open(directory.path().join("log.db")).expect("it opens");
    let moved = "UPDATE segment SET first_seq = first_seq + 2 WHERE first_seq IN (11, 21)";
    database.execute_batch(moved).expect("it can be written");
    drop(database);

    let mut opened = open(directory.path());
    let origins: Vec<u64> = drain(&mut opened, 1).await.into_iter().map(|(_, origin)| origin).collect();
    assert_eq!(origins, (1..=10).chain(31..=40).collect::<Vec<_>>());
    // It is told with the next commit.
    opened.log.append(None, batch(41..=41)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    let events = opened.cursors[1].events(0).await.expect("events").into_iter().map(|event| event.body);
    let gaps: Vec<_> = events.filter(|body| body["type"] == "gap").collect();
    let [gap] = &gaps[..] else { panic!("one gap: {gaps:?}") };
    assert_eq!((&gap["first"], &gap["last"]), (&11.into(), &30.into()));
}

#[tokio::test]
async fn a_quarantined_log_keeps_its_facts_and_its_history_under_a_new_epoch() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(directory.path());
    let mark = opened.log.high_water(&pump(), 7);
    for first in (1..=100).step_by(10) {
        opened.log.append(Some(&mark), batch(first..=first + 9)).expect("there is room");
        opened.log.flush().await.expect("it can be written");
    }
    let epoch = opened.log.epoch();
    opened.cursors[0].confirm(Seq(35));
    opened.cursors[1].confirm(Seq(55));
    close(opened);
    overwrite(&directory.path().join("log.db"), 0, &[0xAA; 100]);

    let metrics = Metrics::new();
    let mut opened = open_with(directory.path(), metrics.clone());
    assert_ne!(opened.log.epoch(), epoch);
    assert_eq!(opened.log.high_water(&pump(), 7).settled(), 100, "the device's mark is kept");
    assert!(opened.log.health().notes[0].contains("0001-foreign/report.txt"), "{:?}", opened.log.health().notes);
    finished(&mut opened).await;
    let sent = drain(&mut opened, 0).await;
    assert_eq!(sent.iter().map(|(_, origin)| *origin).collect::<Vec<_>>(), (36..=100).collect::<Vec<_>>());
    assert!(sent[0].0 > 100, "the new epoch's seqs lie behind the old one's: {}", sent[0].0);
    assert_eq!((metrics.store_quarantines.get(), metrics.store_salvaged_readings.get()), (1, 65 + 35));
    close(opened);

    let report = std::fs::read(directory.path().join("quarantine/0001-foreign/report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!((&report["state"], &report["epoch"]), (&"finished".into(), &epoch.0.into()));
    assert_eq!(report["salvaged"]["sent_again"], 65);
    let mut opened = open(directory.path());
    assert!(drain(&mut opened, 0).await.is_empty(), "nothing is taken over twice");
}

async fn finished(opened: &mut Opened) {
    let until = Instant::now() + PATIENCE;
    loop {
        let events = opened.cursors[0].events(0).await.expect("events");
        if events.iter().any(|event| event.body.get("state").is_some_and(|state| state == "finished")) {
            return;
        }
        assert!(Instant::now() < until, "salvage does not end: {events:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn overwrite(file: &Path, at: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(file).expect("a file");
    file.write_all_at(bytes, at).expect("it can be written");
}

fn quarantines(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory.join("quarantine")) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn whatever_stands_in_the_logs_place_is_moved_aside_and_never_deleted() {
    let stand = |place: fn(&Path)| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        place(&directory.path().join("log.db"));
        let opened = open(directory.path());
        opened.log.append(None, batch(1..=1)).expect("there is room");
        close(opened);
        let name = quarantines(directory.path()).remove(0);
        (directory, name)
    };
    let (directory, name) = stand(|path| std::fs::write(path, "some text").expect("a file"));
    assert_eq!(name, "0001-foreign");
    let kept = directory.path().join("quarantine/0001-foreign/log.db");
    assert_eq!(std::fs::read(kept).expect("it is kept"), b"some text");

    let (directory, name) = stand(|path| {
        let other = rusqlite::Connection::open(path).expect("a database");
        other.execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (42)").expect("their table");
    });
    assert_eq!(name, "0001-foreign");
    let theirs = rusqlite::Connection::open(directory.path().join("quarantine/0001-foreign/log.db")).expect("it opens");
    let kept: i64 = theirs.query_row("SELECT x FROM theirs", [], |row| row.get(0)).expect("their row");
    assert_eq!(kept, 42);

    let (_, name) = stand(|path| std::fs::create_dir(path).expect("a directory"));
    assert_eq!(name, "0001-unreadable");
    let (_, name) = stand(|path| std::os::unix::fs::symlink("/proc/self/mem", path).expect("a link"));
    assert_eq!(name, "0001-unreadable");
    let (_, name) = stand(|path| std::os::unix::fs::symlink(path, path).expect("a link"));
    assert_eq!(name, "0001-unreadable");
}

/// Otherwise consumers would miss all the seqs before those of the log that follows a damaged one.
#[tokio::test]
async fn what_the_very_first_start_leaves_when_it_is_cut_off_is_no_damage() {
    let started_on = |files: &[(&str, usize)]| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        files.iter().for_each(|(name, size)| {
            std::fs::write(directory.path().join(name), vec![0; *size]).expect("a file");
        });
        let opened = open(directory.path());
        opened.log.append(None, batch(1..=1)).expect("there is room");
        (directory, opened)
    };
    for files in [&[("log.db", 0)][..], &[("log.db", 0), ("log.db-journal", 512)]] {
        let (directory, opened) = started_on(files);
        close(opened);
        let mut opened = open(directory.path());
        assert_eq!(drain(&mut opened, 0).await, [(1, 1)]);
        close(opened);
        assert!(quarantines(directory.path()).is_empty());
    }
    let (directory, opened) = started_on(&[("log.db", 0), ("reserve", 1)]);
    close(opened);
    assert_eq!(quarantines(directory.path()), ["0001-damaged"], "it held something once");
}

#[tokio::test]
async fn a_newer_log_is_refused_and_left_where_it_is() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    close(open(directory.path()));
    let path = directory.path().join("log.db");
    let database = rusqlite::Connection::open(&path).expect("it opens");
    database.pragma_update(None, "user_version", 99).expect("a pragma");
    drop(database);
    let refused = Log::open(&config(directory.path()), &["a"], Arc::new(SystemClock::new()), Metrics::new());
    let why = refused.err().expect("it is refused").to_string();
    assert!(why.contains("newer tidegate (schema 99"), "{why}");
    assert!(path.exists() && quarantines(directory.path()).is_empty());
}

#[tokio::test]
async fn damaged_small_rows_redeliver_or_forget_and_never_skip_or_acknowledge() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(directory.path());
    let mark = opened.log.high_water(&pump(), 7);
    opened.log.append(Some(&mark), batch(1..=50)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    opened.cursors[0].confirm(Seq(20));
    close(opened);
    // One bit each, as SQLite would never notice: 20 becomes 52, 50 becomes 114.
    let database = rusqlite::Connection::open(directory.path().join("log.db")).expect("it opens");
    database.execute("UPDATE sink SET confirmed = confirmed | 32 WHERE name = 'a'", []).expect("a row");
    database.execute("UPDATE mark SET seq = seq | 64", []).expect("a row");
    drop(database);

    let mut opened = open(directory.path());
    assert!(quarantines(directory.path()).is_empty());
    assert_eq!(opened.log.high_water(&pump(), 7).settled(), 0);
    assert_eq!(drain(&mut opened, 0).await.len(), 50);
    assert_eq!(drain(&mut opened, 1).await.len(), 50);
    close(opened);

    let database = rusqlite::Connection::open(directory.path().join("log.db")).expect("it opens");
    database.execute("UPDATE meta SET value = value - 1048576 WHERE key = 'reserved'", []).expect("a row");
    drop(database);
    let opened = open(directory.path());
    assert_eq!(quarantines(directory.path()), ["0001-damaged"], "seqs could be used twice");
    close(opened);
}

#[tokio::test]
async fn a_damaged_head_hides_no_seq_between_its_neighbours() {
    for damage in ["first_seq = first_seq + 2", "count = -count", "count = count | 4096", "oldest = 'x'"] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let opened = open(directory.path());
        for first in (1..=30).step_by(10) {
            opened.log.append(None, batch(first..=first + 9)).expect("there is room");
            opened.log.flush().await.expect("it can be written");
        }
        close(opened);
        let mut opened = open(directory.path());
        // While the log is open: a start would look at all heads.
        let database = rusqlite::Connection::open(directory.path().join("log.db")).expect("it opens");
        let no_checkpoint = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        database.set_db_config(no_checkpoint, true).expect("a setting");
        database.execute(&format!("UPDATE segment SET {damage} WHERE first_seq = 11"), []).expect("a row");
        drop(database);
        let seqs: Vec<u64> = drain(&mut opened, 0).await.into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(seqs, (1..=10).chain(21..=30).collect::<Vec<_>>(), "{damage}");
        opened.log.flush().await.expect("it can be written");
        opened.log.append(None, batch(100..=100)).expect("there is room");
        opened.log.flush().await.expect("it can be written");
        let gaps = gaps(&mut opened).await;
        assert!(gaps.iter().any(|(first, last)| *first <= 11 && 20 <= *last), "{damage}: {gaps:?}");
        close(opened);
    }
}

#[tokio::test]
async fn damage_to_an_open_log_is_noticed_and_recovered_from_by_opening_it_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(directory.path());
    let mark = opened.log.high_water(&pump(), 7);
    for first in (1..=200).step_by(10) {
        opened.log.append(Some(&mark), batch(first..=first + 9)).expect("there is room");
        opened.log.flush().await.expect("it can be written");
    }
    close(opened);
    let mut opened = open(directory.path());
    // The root of the segments' table.
    overwrite(&directory.path().join("log.db"), 2 * PAGE as u64, &[0xFF; PAGE]);
    assert!(opened.cursors[0].fetch(Seq::ZERO, 1000).await.is_err());
    tokio::time::timeout(PATIENCE, opened.log.damaged()).await.expect("it is told");
    assert!(opened.log.health().failure.is_some());
    assert!(opened.log.flush().await.is_err() || mark.settled() == 200);
    close(opened);

    let mut opened = open(directory.path());
    finished(&mut opened).await;
    let origins: BTreeSet<u64> = drain(&mut opened, 0).await.into_iter().map(|(_, origin)| origin).collect();
    assert_eq!(origins, (1..=200).collect());
}

#[tokio::test]
async fn salvage_that_was_cut_off_goes_on_after_the_next_start() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(directory.path());
    for first in (1..=20_000).step_by(100) {
        opened.log.append(None, batch(first..=first + 99)).expect("there is room");
        opened.log.flush().await.expect("it can be written");
    }
    close(opened);
    overwrite(&directory.path().join("log.db"), 0, &[0; 100]);
    // Closed again and again as soon as it is open.
    for _ in 0..3 {
        close(open(directory.path()));
    }
    let mut opened = open(directory.path());
    finished(&mut opened).await;
    let sent = drain(&mut opened, 0).await;
    let origins: BTreeSet<u64> = sent.iter().map(|(_, origin)| *origin).collect();
    assert_eq!(origins, (1..=20_000).collect());
    assert_eq!(quarantines(directory.path()).len(), 1);
}

#[tokio::test]
async fn salvage_that_is_killed_again_and_again_loses_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(directory.path());
    for first in (1..=1000).step_by(10) {
        opened.log.append(None, batch(first..=first + 9)).expect("there is room");
        opened.log.flush().await.expect("it can be written");
    }
    close(opened);
    overwrite(&directory.path().join("log.db"), 0, &[0; 100]);
    // What is taken over needs many commits.
    let small = |directory: &Path| {
        let config = Store { max_pending: ByteSize::kib(64), segment_size: ByteSize::kib(2), ..config(directory) };
        Log::open(&config, &["a", "b"], Arc::new(SystemClock::new()), Metrics::new()).expect("a damaged log opens")
    };
    let opened = small(directory.path());
    let mut copies = Vec::new();
    let until = Instant::now() + PATIENCE;
    while copies.last().is_none_or(|copy: &tempfile::TempDir| !is_finished(copy.path())) && copies.len() < 10 {
        assert!(Instant::now() < until, "salvage does not end");
        copies.push(copied(directory.path()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    close(opened);
    for copy in &copies {
        let mut again = small(copy.path());
        finished(&mut again).await;
        let origins: BTreeSet<u64> = drain(&mut again, 0).await.into_iter().map(|(_, origin)| origin).collect();
        assert_eq!(origins.len(), 1000, "{} are missing", 1000 - origins.len());
        close(again);
    }
}

/// What a SIGKILL leaves now: the files, the write-ahead log before the database.
fn copied(directory: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    let quarantine = quarantines(directory).remove(0);
    let below = Path::new("quarantine").join(quarantine);
    std::fs::create_dir_all(copy.path().join(&below)).expect("a directory");
    for file in ["log.db-wal", "log.db", "report.json"] {
        let _ = std::fs::copy(directory.join(&below).join(file), copy.path().join(&below).join(file));
    }
    for file in ["log.db-wal", "log.db"] {
        std::fs::copy(directory.join(file), copy.path().join(file)).expect("a file that can be copied");
    }
    copy
}

fn is_finished(directory: &Path) -> bool {
    let below = directory.join("quarantine").join(quarantines(directory).remove(0));
    std::fs::read_to_string(below.join("report.json")).expect("a report").contains("finished")
}

/// What a power cut leaves of a log that was opened and then written to in commits of a
/// hundred readings, each of which takes several pages: a copy of its files while it is open, with the epoch.
async fn cut_off(durability: Durability, commits: u64) -> (tempfile::TempDir, Epoch) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { durability, ..config(directory.path()) };
    let opened = Log::open(&config, &["a", "b"], Arc::new(SystemClock::new()), Metrics::new()).expect("it opens");
    let mark = opened.log.high_water(&pump(), 7);
    for first in (1..=commits * 100).step_by(100) {
        opened.log.append(Some(&mark), batch(first..=first + 99)).expect("there is room");
        opened.log.flush().await.expect("it can be written");
    }
    let copy = tempfile::tempdir().expect("a temporary directory");
    for file in FILES {
        std::fs::copy(directory.path().join(file), copy.path().join(file)).expect("a file");
    }
    let epoch = opened.log.epoch();
    close(opened);
    (copy, epoch)
}

/// Overwrites a part of the segment in the write-ahead log that holds this reading.
fn tear(directory: &Path, origin: u64) {
    let wal = directory.join("log.db-wal");
    let Value::Bytes(noise) = reading(origin).values()[0].clone() else { unreachable!("it is made of bytes") };
    let at = memchr::memmem::rfind(&std::fs::read(&wal).expect("a file"), &noise).expect("it is there");
    overwrite(&wal, at as u64, &[0; 16]);
}

fn reopen(directory: &Path, durability: Durability) -> Opened {
    let config = Store { durability, ..config(directory) };
    Log::open(&config, &["a", "b"], Arc::new(SystemClock::new()), Metrics::new()).expect("it opens")
}

/// Ranges of seqs that events call missing.
async fn gaps(opened: &mut Opened) -> Vec<(u64, u64)> {
    let events = opened.cursors[0].events(0).await.expect("events");
    let number = |body: &serde_json::Map<_, _>, key| body.get(key).and_then(serde_json::Value::as_u64);
    events.iter().filter_map(|event| number(&event.body, "first").zip(number(&event.body, "last"))).collect()
}

#[tokio::test]
async fn commits_that_survive_a_power_cut_out_of_order_are_put_back_and_the_others_told_of() {
    let (directory, epoch) = cut_off(Durability::Normal, 8).await;
    tear(directory.path(), 350);
    let mut opened = reopen(directory.path(), Durability::Normal);
    assert!(quarantines(directory.path()).is_empty(), "{:?}", opened.log.health());
    assert_eq!(opened.log.epochs().of(Seq(1)).0, epoch);
    let sent = drain(&mut opened, 0).await;
    let expected: Vec<u64> = (1..=300).chain(401..=800).collect();
    assert_eq!(sent, expected.iter().map(|seq| (*seq, *seq)).collect::<Vec<_>>(), "each under the seq it had");
    let gaps = gaps(&mut opened).await;
    assert_eq!(gaps[0], (301, 400));
    assert_eq!((gaps.len(), gaps[1].0), (2, 801));
    assert_eq!(opened.log.high_water(&pump(), 7).settled(), 800);
    opened.log.append(None, batch(5000..=5000)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    assert_eq!(drain(&mut opened, 0).await, [(gaps[1].1 + 1, 5000)]);
}

#[tokio::test]
async fn under_full_durability_the_last_commit_alone_can_be_cut_off() {
    let (directory, epoch) = cut_off(Durability::Full, 8).await;
    tear(directory.path(), 750);
    let mut opened = reopen(directory.path(), Durability::Full);
    assert!(quarantines(directory.path()).is_empty(), "{:?}", opened.log.health());
    assert_eq!(opened.log.epochs().of(Seq(1)).0, epoch);
    assert_eq!(drain(&mut opened, 0).await.len(), 700);
    close(opened);

    let (directory, epoch) = cut_off(Durability::Full, 8).await;
    tear(directory.path(), 350);
    let mut opened = reopen(directory.path(), Durability::Full);
    assert_eq!(quarantines(directory.path()), ["0001-damaged"], "what is synced does not go");
    assert_ne!(opened.log.epoch(), epoch);
    finished(&mut opened).await;
    let origins: BTreeSet<u64> = drain(&mut opened, 0).await.into_iter().map(|(_, origin)| origin).collect();
    assert_eq!(origins, (1..=300).chain(401..=800).collect());
}

#[tokio::test]
async fn damage_to_the_end_of_the_write_ahead_log_gives_no_seq_out_twice() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Nothing but reservations is ever written.
    let config = Store {
        deliver: Deliver::AtOnce,
        commit_within: Duration::from_secs(3600),
        history_within: HistoryWithin::Off,
        ..config(directory.path())
    };
    let opened = Log::open(&config, &["a"], Arc::new(SystemClock::new()), Metrics::new()).expect("it opens");
    let empty = |origin| Reading::new(origin, Timestamp(0), [].into(), [].into()).expect("none each");
    let mut last = 0;
    while last < 1_100_000 {
        let readings = (1..=20_000).map(empty).collect();
        let mut batch = Batch { device: pump(), session: None, basis: Basis::default(), readings };
        while let Err(full) = opened.log.append(None, batch) {
            batch = full.0;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        last += 20_000;
        opened.cursors[0].confirm(Seq(last));
    }
    let copy = tempfile::tempdir().expect("a temporary directory");
    for file in FILES {
        std::fs::copy(directory.path().join(file), copy.path().join(file)).expect("a file");
    }
    close(opened);
    let wal = copy.path().join("log.db-wal");
    let length = std::fs::metadata(&wal).expect("a file").len();
    overwrite(&wal, 0, &vec![0; usize::try_from(length).expect("a small file")]);
    let mut opened = reopen(copy.path(), Durability::Full);
    assert!(quarantines(copy.path()).is_empty());
    opened.log.append(None, batch(1..=1)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    let sent = drain(&mut opened, 0).await;
    assert!(sent[0].0 > last, "{} was given out before", sent[0].0);
}

#[tokio::test]
async fn a_frame_cut_off_between_its_head_and_its_page_proves_no_damage() {
    let (directory, epoch) = cut_off(Durability::Full, 8).await;
    let wal = std::fs::read(directory.path().join("log.db-wal")).expect("a file");
    // The last frame with the root of the segments' table; where it goes, a generation
    // before may have left the same page, which by now stands in the database.
    let (root, frame) = (3u32, 24 + PAGE);
    let frames: Vec<&[u8]> = wal[32..].chunks_exact(frame).collect();
    let last = frames.iter().rposition(|frame| frame[..4] == root.to_be_bytes()).expect("each commit has one");
    let database = std::fs::read(directory.path().join("log.db")).expect("a file");
    let page = &database[2 * PAGE..3 * PAGE];
    overwrite(&directory.path().join("log.db-wal"), (32 + last * frame + 24) as u64, page);
    let mut opened = reopen(directory.path(), Durability::Full);
    assert!(quarantines(directory.path()).is_empty(), "{:?}", opened.log.health());
    assert_eq!(opened.log.epochs().of(Seq(1)).0, epoch);
    assert!(drain(&mut opened, 0).await.len() >= 700);
}

#[tokio::test]
async fn a_header_cut_off_while_the_write_ahead_log_began_anew_hides_nothing() {
    let (directory, epoch) = cut_off(Durability::Full, 8).await;
    let header = directory.path().join("log.db-wal");
    // Everything is in the database, and the next commit would begin the file anew.
    let database = rusqlite::Connection::open(directory.path().join("log.db")).expect("it opens");
    let no_checkpoint = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    database.set_db_config(no_checkpoint, true).expect("a setting");
    database.query_row("PRAGMA wal_checkpoint", [], |_| Ok(())).expect("a checkpoint");
    drop(database);
    overwrite(&header, 12, &[0, 0, 0, 9]);
    let mut opened = reopen(directory.path(), Durability::Full);
    assert!(quarantines(directory.path()).is_empty(), "{:?}", opened.log.health());
    assert_eq!(opened.log.epochs().of(Seq(1)).0, epoch);
    assert_eq!(drain(&mut opened, 0).await.len(), 800);
    close(opened);

    let (directory, epoch) = cut_off(Durability::Full, 8).await;
    overwrite(&directory.path().join("log.db-wal"), 12, &[0, 0, 0, 9]);
    let mut opened = reopen(directory.path(), Durability::Full);
    assert_eq!(quarantines(directory.path()), ["0001-damaged"], "the database lacks what it has");
    assert_ne!(opened.log.epoch(), epoch);
    finished(&mut opened).await;
    assert_eq!(drain(&mut opened, 0).await.len(), 800);
}

#[tokio::test]
async fn the_gateway_starts_within_seconds_on_a_ruined_log_and_delivers_what_it_held() {
    let mut broker = Broker::start().await.behind_a_proxy().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    broker.stop().await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    talk.readings(1, 1, 500).await;
    talk.acked(500).await;
    gateway.kill();
    overwrite(&gateway.directory().join("log/log.db"), 0, &[0x55; 3 * PAGE]);

    let started = Instant::now();
    gateway.start().await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(gateway.figure("tidegate_store_quarantines_total").await, 1.0);
    let (code, body) = gateway.get("/health/ready").await.expect("an answer");
    assert!(code == 200 && body.contains("report.txt"), "{code} {body}");
    let (_, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    assert_eq!(welcome.settled, 500);
    broker.resume().await;
    subscriber.heard(500).await;
}

#[tokio::test]
async fn a_running_gateway_recovers_without_being_started_again() {
    let mut broker = Broker::start().await.behind_a_proxy().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    broker.stop().await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "[store]\ncommit_within = \"0s\"\n").started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    // So many segments that the page overwritten below holds none of them.
    for first in (1..=2000).step_by(20) {
        talk.readings(1, first, 20).await;
        talk.acked(first + 19).await;
    }
    drop(talk);
    assert!(gateway.terminate().await.success());
    gateway.start().await;
    overwrite(&gateway.directory().join("log/log.db"), 2 * PAGE as u64, &[0xFF; PAGE]);
    broker.resume().await;
    gateway.figure_becomes("tidegate_store_quarantines_total", |count| count == 1.0).await;
    subscriber.heard(2000).await;
    assert!(gateway.process().is_running(), "{}", gateway.log());
}

/// It shares with the gateway a list of the pages in the write-ahead log, and folds that in
/// when it lets go last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_that_reads_over_two_lives_of_the_gateway_spoils_nothing() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "[store]\ncommit_within = \"20ms\"\n").started().await;
    let (mut settled, mut reader) = (0, None);
    for life in 0..3 {
        let mut talk = Talk::persistent(&gateway.tcp_address(), "pump", settled + 1, &AtomicU64::new(0)).await;
        for seq in settled + 1..=settled + 20 {
            talk.readings(1, seq, 1).await;
            talk.acked(seq).await;
        }
        settled += 20;
        let database = gateway.directory().join("log/log.db");
        if life == 0 {
            let other = rusqlite::Connection::open(&database).expect("it opens");
            other.query_row("SELECT count(*) FROM segment", [], |_| Ok(())).expect("it reads");
            reader = Some(other);
        }
        gateway.kill();
        if life == 1 {
            drop(reader.take());
            assert!(!database.with_file_name("log.db-wal").exists(), "it was the last");
        }
        gateway.start().await;
    }
    assert!(!gateway.directory().join("log/quarantine").exists(), "{}", gateway.log());
    gateway.figure_becomes("tidegate_sink_pending{sink=\"mqtt\"}", |pending| pending == 60.0).await;
}
