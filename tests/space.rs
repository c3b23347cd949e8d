//! What the store takes on disk stays within its bound, whoever reads and whatever was
//! damaged; and what is on a full disk goes again.

use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::mount::SmallDisk;
use bytesize::ByteSize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tidegate::clock::SystemClock;
use tidegate::config::{Deliver, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, Channels, DeviceId, Reading, Timestamp, Value};
use tidegate::store::{DiskState, Log, Offline, Opened, Space, Stepped};

const MIB: u64 = 1 << 20;

fn config(directory: &Path, max_size: u64) -> Store {
    Store {
        directory: directory.to_owned(),
        commit_within: Duration::from_millis(20),
        deliver: Deliver::AfterCommit,
        max_size: ByteSize(max_size),
        ..Store::default()
    }
}

fn open(config: &Store) -> (Opened, Metrics) {
    let metrics = Metrics::new();
    (Log::open(config, &["dead"], Arc::new(SystemClock::new()), metrics.clone()).expect("the log opens"), metrics)
}

/// Readings of a thousand bytes that do not compress.
fn noise(first: u64, count: u64) -> Batch {
    let channels: Channels = [ChannelName::new("noise").expect("a valid name")].into();
    let reading = |origin| {
        let noise: Box<[u8]> = std::iter::repeat_with(|| fastrand::u8(..)).take(1000).collect();
        let values = [Value::Bytes(noise)].into();
        Reading::new(origin, Timestamp(origin as i64), channels.clone(), values).expect("one each")
    };
    let device = DeviceId::new("pump").expect("a valid name");
    Batch { device, session: Some(1), basis: Basis::Wall, readings: (first..first + count).map(reading).collect() }
}

/// Bytes of all files below a directory.
fn on_disk(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => on_disk(&entry.path()),
        found => found.map_or(0, |found| found.len()),
    };
    entries.map(size).sum()
}

/// Appends so many readings, slowly enough for commits between them; returns what the
/// files took at most.
async fn fill(log: &Log, directory: &Path, first: u64, count: u64) -> u64 {
    let mut most = 0;
    for first in (first..first + count).step_by(32) {
        let mut batch = noise(first, 32);
        while let Err(saturated) = log.append(None, batch) {
            batch = saturated.0;
            let _ = tokio::time::timeout(Duration::from_millis(100), log.room()).await;
            most = most.max(on_disk(directory));
        }
        most = most.max(on_disk(directory));
    }
    log.flush().await.expect("it can be written");
    most.max(on_disk(directory))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_holds_while_tools_read_the_log_and_one_of_them_stalls() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let (file, store) = (gateway.config_file(), gateway.directory().join("log"));
    let (opened, _) = open(&config(&store, 8 * MIB));
    let mut most = fill(&opened.log, &store, 1, 9000).await;

    // One that is written into a pipe which nobody empties, and others without a pause.
    let mut stalled = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["queue", "export", "-c", file.to_str().expect("UTF-8")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|reader| {
            let (store, done) = (store.clone(), done.clone());
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let log = Offline::of_gateway(&store).expect("there is a log");
                    match reader {
                        0 => drop(log.contents().expect("it reads")),
                        _ => assert_eq!(log.verify().expect("it reads").problems, Vec::<String>::new()),
                    }
                }
            })
        })
        .collect();
    most = most.max(fill(&opened.log, &store, 9001, 18_000).await);
    assert!(stalled.try_wait().expect("a child").is_none(), "it has stalled");
    done.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().expect("no panic"));
    stalled.kill().expect("a child");
    stalled.wait().expect("a child");
    assert!(most <= 8 * MIB, "{most} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_is_read_slowly_has_every_reading_once_though_segments_are_merged_meanwhile() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (opened, _) = open(&Store { commit_within: Duration::ZERO, ..config(directory.path(), 64 * MIB) });
    fill(&opened.log, directory.path(), 1, 1600).await;
    let log = Offline::of_gateway(directory.path()).expect("there is a log");
    let (mut seqs, mut more) = (Vec::new(), 1601);
    let channels: Channels = [ChannelName::new("n").expect("a valid name")].into();
    log.each(&mut |piece| {
        let tidegate::store::Piece::Readings(batches) = piece else { panic!("nothing is damaged") };
        seqs.extend(batches.iter().flat_map(|batch| (batch.first.0..).take(batch.batch.readings.len())));
        // While it is written out, small commits follow and are merged.
        for _ in 0..if more < 1800 { 50 } else { 0 } {
            let reading = Reading::new(more, Timestamp(0), channels.clone(), [Value::Integer(1)].into());
            let device = DeviceId::new("pump").expect("a valid name");
            let readings = vec![reading.expect("one each")];
            let batch = Batch { device, session: Some(1), basis: Basis::Wall, readings };
            opened.log.append(None, batch).expect("there is room");
            more += 1;
            let flushed =
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(opened.log.flush()));
            flushed.expect("it can be written");
        }
        std::ops::ControlFlow::Continue(())
    })
    .expect("it reads");
    assert!(more > 1700, "nothing was merged");
    assert_eq!(seqs, (1..more).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_reader_that_does_not_let_go_holds_devices_back_at_the_bound() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (opened, _) = open(&config(directory.path(), 8 * MIB));
    fill(&opened.log, directory.path(), 1, 9000).await;
    let reader = rusqlite::Connection::open(directory.path().join("log.db")).expect("it opens");
    reader.execute_batch("BEGIN; SELECT count(*) FROM segment").expect("it reads");
    let (mut first, mut most) = (9001, 0);
    eventually("the log takes no more", async || {
        let _ = opened.log.append(None, noise(first, 32));
        first += 32;
        most = most.max(on_disk(directory.path()));
        opened.log.health().disk == DiskState::Failing
    })
    .await;
    let why = opened.log.health().failure.expect("a reason");
    assert!(why.contains("another program has been reading the log for long"), "{why}");
    drop(reader);
    eventually("it goes on", async || opened.log.flush().await.is_ok()).await;
    most = most.max(on_disk(directory.path()));
    assert!(most <= 8 * MIB, "{most} bytes");
}

/// Damages what the log cannot be gone on with.
fn damage(store: &Path) {
    let file = std::fs::File::options().write(true).open(store.join("log.db")).expect("a file");
    file.write_all_at(&[7; 1024], 1024).expect("a write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quarantined_logs_count_against_the_bound_and_go_before_readings_do() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path(), 8 * MIB);
    let (mut opened, _) = open(&config);
    fill(&opened.log, directory.path(), 1, 3000).await;
    for _ in 0..2 {
        opened.log.close();
        opened.writer.join();
        damage(directory.path());
        let (again, metrics) = open(&config);
        opened = again;
        let count = |name: &str| {
            let text = metrics.encode();
            text.lines().filter_map(|l| l.strip_prefix(name)?.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
        };
        eventually("all of it is taken over", async || count("tidegate_store_salvaged_readings_total") >= 3000).await;
        fill(&opened.log, directory.path(), 1, 32).await;
        // The writer sees to it when it looks at the disk.
        eventually("the damaged log makes way", async || on_disk(directory.path()) <= 8 * MIB).await;
        let text = metrics.encode();
        let dropped: Vec<_> = text.lines().filter(|line| line.starts_with("tidegate_readings_dropped_total")).collect();
        assert_eq!(count("tidegate_readings_dropped_total"), 0, "{dropped:?}");
    }
    assert!(opened.cursors[0].pending() >= 3000);
}

/// A crash leaves a write-ahead log, which a start copies if there is room.
#[tokio::test]
async fn a_start_on_a_full_disk_leaves_no_copy_behind_that_takes_the_last_space() {
    let Some(disk) = SmallDisk::mount(6) else { return };
    let store = disk.path().join("log");
    let config = Store { commit_within: Duration::ZERO, min_free: ByteSize(0), ..config(&store, 64 * MIB) };
    let open = || {
        let (clock, gauge) = (Arc::new(SystemClock::new()), Space::gauge(&store));
        Log::open_stepped(&config, &[], &["dead"], clock, Metrics::new(), gauge)
    };
    let mut opened = open().expect("a new log");
    for first in 1..=1500 {
        opened.log.append(None, noise(first, 1)).expect("there is room");
    }
    assert_eq!(opened.writer.step(), Stepped::Tried);
    drop(opened);
    let wal = std::fs::metadata(store.join("log.db-wal")).expect("it is there").len();
    assert!(wal > MIB, "{wal}");
    // What an earlier life left took all the space there was.
    let spare = Space::of(&store).expect("it can be told").free.min(wal / 2);
    std::fs::write(store.join("log.new"), vec![7; spare as usize]).expect("a file");
    disk.fill();

    let mut opened = open().expect("it opens");
    opened.log.append(None, noise(5000, 1)).expect("there is room");
    assert_eq!(opened.writer.step(), Stepped::Tried);
    assert_eq!(opened.log.health().failure, None);
    let left: Vec<_> = std::fs::read_dir(&store).expect("it").map(|entry| entry.expect("one").file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".new")), "{left:?}");
}
