//! Readings in the log whose time is not known yet, and clocks that step.

use crate::support::device::START;
use crate::support::eventually;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use tidegate::clock::{Clock, Now};
use tidegate::config::Store;
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, BootId, DeviceId, Reading, Seq, SequencedBatch, Timestamp};
use tidegate::store::{Before, FILE_NAME, Log, Offline, Opened, Piece, purge};

/// A clock under the test's hand; the wall steps, monotonic time does not.
struct Scripted {
    boot: BootId,
    wall: AtomicI64,
    trusted: AtomicBool,
    start: std::time::Instant,
}

const FORMER: BootId = BootId([4; 16]);
const BOOT: BootId = BootId([5; 16]);
const S: i64 = 1_000_000;

impl Scripted {
    fn new(wall: i64, trusted: bool) -> Arc<Scripted> {
        Scripted::of_boot(BOOT, wall, trusted)
    }

    fn of_boot(boot: BootId, wall: i64, trusted: bool) -> Arc<Scripted> {
        let (wall, trusted) = (AtomicI64::new(wall), AtomicBool::new(trusted));
        Arc::new(Scripted { boot, wall, trusted, start: std::time::Instant::now() })
    }

    fn step(&self, wall: i64) {
        self.wall.store(wall, Ordering::Relaxed);
    }

    /// It is set now: when its boot began, by it.
    fn set(&self, log: &Log) -> i64 {
        self.trusted.store(true, Ordering::Relaxed);
        let now = self.now();
        log.synchronised(now);
        now.start().0
    }
}

impl Clock for Scripted {
    fn now(&self) -> Now {
        let wall = Timestamp(self.wall.load(Ordering::Relaxed));
        let monotonic = Duration::from_secs(1000) + self.start.elapsed();
        Now { wall, trusted: self.trusted.load(Ordering::Relaxed), monotonic }
    }

    fn boot(&self) -> BootId {
        self.boot
    }
}

fn config(directory: &Path) -> Store {
    Store { directory: directory.to_owned(), commit_within: Duration::ZERO, ..Store::default() }
}

fn open(directory: &Path, clock: &Arc<Scripted>) -> Opened {
    Log::open(&config(directory), &["a"], clock.clone(), Metrics::new()).expect("the log opens")
}

fn close(opened: Opened) {
    opened.log.close();
    opened.writer.join();
}

fn append(opened: &Opened, time: i64, basis: Basis) {
    opened.log.append(None, batch(time, basis)).expect("there is room");
}

/// All that a new sink gets.
async fn all(opened: &mut Opened) -> Vec<(u64, i64, Basis)> {
    let (mut got, mut after) = (Vec::new(), Seq::ZERO);
    loop {
        let batches = opened.cursors[0].fetch(after, 1 << 20).await.expect("the log reads");
        let Some(last) = batches.last() else { return got };
        after = last.last();
        got.extend(times(&batches));
    }
}

fn batch(time: i64, basis: Basis) -> Batch {
    let reading = Reading::new(0, Timestamp(time), [].into(), Box::new([])).expect("none each");
    Batch { device: DeviceId::new("d").expect("a valid name"), session: None, basis, readings: vec![reading] }
}

fn times(batches: &[SequencedBatch]) -> Vec<(u64, i64, Basis)> {
    let all =
        |n: &SequencedBatch| n.after(Seq::ZERO).map(|(seq, _, r)| (seq.0, r.time.0, n.batch.basis)).collect::<Vec<_>>();
    batches.iter().flat_map(all).collect()
}

#[tokio::test]
async fn readings_of_a_boot_that_never_got_the_time_keep_their_order_and_their_mark() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let clock = Scripted::new(START, false);
    let opened = open(directory.path(), &clock);
    append(&opened, 900 * S, Basis::Boot(FORMER));
    append(&opened, 10 * S, Basis::Boot(BOOT));
    append(&opened, 0, Basis::DeviceClockSince { boot: BOOT, received: Timestamp(10 * S) });
    close(opened);

    let mut opened = open(directory.path(), &clock);
    append(&opened, 11 * S, Basis::Boot(BOOT));
    let began = clock.set(&opened.log);
    append(&opened, START + S, Basis::Wall);
    opened.log.flush().await.expect("it can be written");
    let expected = [
        (1, 900 * S, Basis::Boot(FORMER)),
        (2, began + 10 * S, Basis::Resynchronised),
        (3, 0, Basis::DeviceClock { received: Timestamp(began + 10 * S) }),
        (4, began + 11 * S, Basis::Resynchronised),
        (5, START + S, Basis::Wall),
    ];
    assert_eq!(all(&mut opened).await, expected);
    close(opened);
    // Of a later boot as well.
    let mut opened = open(directory.path(), &Scripted::of_boot(BootId([6; 16]), START, false));
    assert_eq!(all(&mut opened).await, expected);
}

#[tokio::test]
async fn small_segments_that_are_merged_keep_what_their_times_are() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let clock = Scripted::new(START, false);
    let opened = open(directory.path(), &clock);
    let bases = |n: i64| match n % 5 {
        0 => Basis::Boot(BOOT),
        1 => Basis::DeviceClock { received: Timestamp(START + n) },
        2 => Basis::DeviceClockSince { boot: BOOT, received: Timestamp(n) },
        3 => Basis::Boot(FORMER),
        _ => Basis::Wall,
    };
    for n in 0..200 {
        append(&opened, n, bases(n));
        opened.log.flush().await.expect("it can be written");
    }
    close(opened);
    let segments = Offline::of_gateway(directory.path()).and_then(|log| log.contents()).expect("it reads").segments;
    assert!(segments < 100, "{segments} segments: nothing was merged");

    let mut opened = open(directory.path(), &clock);
    let began = clock.set(&opened.log);
    let expected = (0..200).map(|n| {
        let since = |uptime| Timestamp(began + uptime);
        let (time, basis) = match bases(n) {
            Basis::Boot(BOOT) => (began + n, Basis::Resynchronised),
            Basis::DeviceClockSince { .. } => (n, Basis::DeviceClock { received: since(n) }),
            other => (n, other),
        };
        (u64::try_from(n).expect("it counts up") + 1, time, basis)
    });
    assert_eq!(all(&mut opened).await, expected.collect::<Vec<_>>());
}

/// Ruins the beginning of the database, so that it goes into quarantine.
fn ruin(directory: &Path, bytes: usize) {
    let file = std::fs::File::options().write(true).open(directory.join(FILE_NAME)).expect("the database");
    file.write_all_at(&vec![0x55; bytes], 0).expect("damage");
}

#[tokio::test]
async fn readings_without_a_time_get_it_also_after_their_log_went_into_quarantine() {
    // The head of the file only, or all of its first page: nothing tells where tables begin.
    for ruined in [16, 1024] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let former = Scripted::of_boot(FORMER, START, false);
        let opened = open(directory.path(), &former);
        append(&opened, 10 * S, Basis::Boot(FORMER));
        let former_began = former.set(&opened.log);
        close(opened);
        let clock = Scripted::new(START, false);
        let opened = open(directory.path(), &clock);
        append(&opened, 20 * S, Basis::Boot(BOOT));
        close(opened);
        ruin(directory.path(), ruined);

        let mut opened = open(directory.path(), &clock);
        let epoch = opened.log.epoch();
        eventually("both are taken over", async || all(&mut opened).await.len() == 2).await;
        let got: Vec<_> = all(&mut opened).await.into_iter().map(|(_, time, basis)| (time, basis)).collect();
        let placed = (former_began + 10 * S, Basis::Resynchronised);
        assert_eq!(got, [placed, (20 * S, Basis::Boot(BOOT))]);
        let began = clock.set(&opened.log);
        opened.log.flush().await.expect("it can be written");
        let expected = [placed, (began + 20 * S, Basis::Resynchronised)];
        let told = async |opened: &mut Opened| {
            let events = opened.cursors[0].events(0).await.expect("the log reads");
            events.iter().any(|event| event.body["type"] == "clock" && event.body["boot"] == BOOT.to_string())
        };
        eventually("consumers that have the reading are told", async || told(&mut opened).await).await;
        close(opened);

        // Their boots are remembered although their seqs are new.
        for _ in 0..2 {
            let mut opened = open(directory.path(), &Scripted::of_boot(BootId([6; 16]), START, false));
            assert!(opened.log.epochs().former().iter().any(|(_, former)| *former == epoch));
            let got: Vec<_> = all(&mut opened).await.into_iter().map(|(_, time, basis)| (time, basis)).collect();
            assert_eq!(got, expected);
            close(opened);
        }
    }
}

/// Seq, time and basis of all that an export gives.
fn exported(log: &Offline) -> Vec<(u64, i64, Basis)> {
    let mut got = Vec::new();
    log.each(&mut |piece| {
        match piece {
            Piece::Readings(batches) => got.extend(times(&batches)),
            Piece::Damaged(claimed) => panic!("{claimed:?}"),
            Piece::Missing(first, last) => panic!("{first} to {last}"),
        }
        ControlFlow::Continue(())
    })
    .expect("the log reads");
    got
}

#[tokio::test]
async fn what_looks_into_the_log_tells_times_that_are_known_from_those_that_are_not() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let clock = Scripted::new(START, false);
    let opened = open(directory.path(), &clock);
    for (time, basis) in [(5, Basis::Boot(FORMER)), (10, Basis::Boot(BOOT)), (START, Basis::Wall)] {
        append(&opened, time, basis);
        opened.log.flush().await.expect("it can be written");
    }
    let file = directory.path().join(FILE_NAME);
    let oldest = |log: &Offline| log.contents().expect("it reads").sinks[0].oldest;
    for log in [Offline::of_gateway(directory.path()), Offline::of_file(&file)].map(|log| log.expect("a log")) {
        assert_eq!(exported(&log), [(1, 5, Basis::Boot(FORMER)), (2, 10, Basis::Boot(BOOT)), (3, START, Basis::Wall)]);
        assert_eq!(oldest(&log), Some(Timestamp(START)));
        assert!(log.verify().expect("it reads").problems.is_empty());
    }
    clock.step(START - S);
    let began = clock.set(&opened.log);
    close(opened);
    for log in [Offline::of_gateway(directory.path()), Offline::of_file(&file)].map(|log| log.expect("a log")) {
        let placed = (2, began + 10, Basis::Resynchronised);
        assert_eq!(exported(&log), [(1, 5, Basis::Boot(FORMER)), placed, (3, START, Basis::Wall)]);
        assert_eq!(oldest(&log), Some(Timestamp(began + 10)));
    }
    let purged = |before| purge(directory.path(), None, Before::Time(Timestamp(before)), Timestamp(0), false);
    let range = |before| purged(before).expect("it counts").range.map(|(first, last)| (first.0, last.0));
    assert_eq!(range(began + 10), None, "what follows is not that old");
    assert_eq!(range(began + 11), Some((1, 2)), "what has no time came before what follows it");
    assert_eq!(range(START + 1), Some((1, 3)));
}

#[tokio::test]
async fn steps_of_the_clock_and_a_restart_in_the_past_disturb_neither_order_nor_commits() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let day = 86_400 * S;
    let clock = Scripted::new(START, true);
    let mut opened = open(directory.path(), &clock);
    let mut expected = Vec::new();
    for (seq, wall) in (1..).zip([START, START + 3650 * day, START - day, 0, i64::MAX, i64::MIN, START]) {
        clock.step(wall);
        append(&opened, wall, Basis::Wall);
        opened.log.flush().await.expect("the commit does not wait for the wall");
        assert!(opened.cursors[0].oldest_pending(clock.now().monotonic) < Duration::from_secs(500));
        expected.push((seq, wall, Basis::Wall));
        if wall == START - day || wall == 0 {
            close(opened);
            opened = open(directory.path(), &clock);
        }
    }
    assert_eq!(all(&mut opened).await, expected);
    opened.cursors[0].confirm(Seq(7));
    assert_eq!(opened.cursors[0].pending(), 0);
    assert_eq!(opened.log.health().overdue, Duration::ZERO);
}
