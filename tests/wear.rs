//! What the log writes, and when: its two deadlines under every mix of sinks, its
//! small segments, and its write-ahead log. Time is virtual.

use parking_lot::Mutex;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tidegate::clock::{Clock, Now};
use tidegate::config::{HistoryWithin, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, DeviceId, Reading, Seq, SequencedBatch, Timestamp, Value};
use tidegate::store::{HighWater, Log, Opened, Space, Stepped, Stepper};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Virtual(Mutex<Duration>);

impl Clock for Virtual {
    fn now(&self) -> Now {
        let monotonic = *self.0.lock();
        Now { wall: Timestamp(1_767_225_600_000_000).plus(monotonic), trusted: true, monotonic }
    }
}

struct Bench {
    directory: TempDir,
    clock: Arc<Virtual>,
    opened: Opened<Stepper>,
    metrics: Metrics,
    mark: Arc<HighWater>,
    sent: u64,
    commits: u64,
}

impl Bench {
    fn new(sinks: &[&str], history_within: HistoryWithin) -> Bench {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let clock = Arc::new(Virtual::default());
        let (opened, metrics) = open(directory.path(), sinks, history_within, &clock);
        let mark = opened.log.high_water(&DeviceId::new("pump").expect("a valid name"), 7);
        let mut bench = Bench { directory, clock, opened, metrics, mark, sent: 0, commits: 0 };
        bench.step();
        bench.commits = 0;
        bench
    }

    fn append(&mut self, value: Value) {
        self.sent += 1;
        let channels = [ChannelName::new("x").expect("a valid name")].into();
        let time = Timestamp(i64::try_from(self.sent).expect("few"));
        let reading = Reading::new(self.sent, time, channels, [value].into()).expect("one of each");
        let batch =
            Batch { device: self.mark.device().clone(), session: Some(7), basis: Basis::Wall, readings: vec![reading] };
        self.opened.log.append(Some(&self.mark), batch).expect("there is room");
    }

    fn pass(&mut self, time: Duration) {
        *self.clock.0.lock() += time;
        self.step();
    }

    fn step(&mut self) {
        loop {
            match self.opened.writer.step() {
                Stepped::Tried => self.commits += 1,
                Stepped::Looked => {}
                Stepped::Idle(_) | Stepped::Closed => return,
            }
            assert_eq!(self.opened.log.health().failure, None);
        }
    }

    /// A reading a commit.
    fn commit_each(&mut self, count: u64) {
        for _ in 0..count {
            self.append(Value::Integer(5));
            self.pass(250 * MS);
        }
    }

    fn segments(&self) -> u64 {
        let database = Connection::open(self.directory.path().join("log.db")).expect("the database");
        database.query_row("SELECT count(*) FROM segment", [], |row| row.get(0)).expect("a count")
    }
}

#[test]
fn constant_values_are_merged_into_segments_of_few_readings() {
    let mut bench = Bench::new(&["dead"], HistoryWithin::Within(HOUR));
    for _ in 0..150 {
        for _ in 0..300 {
            bench.append(Value::Integer(5));
        }
        bench.pass(250 * MS);
    }
    let database = Connection::open(bench.directory.path().join("log.db")).expect("the database");
    let (readings, count, raw): (u64, u64, u64) = database
        .query_row("SELECT sum(count), max(count), max(raw_length) FROM segment", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .expect("segments");
    assert_eq!(readings, 45_000);
    assert!(count <= 64 * 256 && raw <= 64 * 4096, "{count} readings, {raw} bytes before compression in a segment");
}

#[tokio::test]
async fn a_disk_that_stands_still_stops_no_device_whose_readings_brokers_confirm() {
    let mut bench = Bench::new(&["cloud"], HistoryWithin::Within(HOUR));
    let sink = bench.opened.cursors.remove(0);
    // The writer is not stepped any more.
    let send = |bench: &Bench, origin: u64| {
        let channels = [ChannelName::new("x").expect("a valid name")].into();
        let value = Value::Bytes(vec![0; 100_000].into());
        let reading = Reading::new(origin, Timestamp(0), channels, [value].into()).expect("one of each");
        let device = bench.mark.device().clone();
        let batch = Batch { device, session: Some(7), basis: Basis::Wall, readings: vec![reading] };
        let sent = bench.opened.log.append(Some(&bench.mark), batch);
        if sent.is_ok() {
            sink.confirm(Seq(origin));
            assert_eq!(bench.mark.settled(), origin, "it is acknowledged");
        }
        sent
    };
    let mut next = 1;
    while send(&bench, next).is_ok() {
        next += 1;
    }
    let room = bench.opened.log.room();
    *bench.clock.0.lock() += Duration::from_secs(5);
    room.await;
    for origin in next..next + 500 {
        send(&bench, origin).expect("history gives way");
    }
    let text = bench.metrics.encode();
    let lost = text.lines().find_map(|line| line.strip_prefix("tidegate_store_history_lost_total "));
    assert_eq!(lost.and_then(|lost| lost.parse().ok()), Some(500), "what history lost is counted");

    // Once the disk is back, what memory has is written.
    bench.pass(HOUR);
    let database = Connection::open(bench.directory.path().join("log.db")).expect("the database");
    let written: u64 = database.query_row("SELECT sum(count) FROM segment", [], |row| row.get(0)).expect("a sum");
    assert_eq!(written, next - 1);
}

fn open(
    path: &Path,
    sinks: &[&str],
    history_within: HistoryWithin,
    clock: &Arc<Virtual>,
) -> (Opened<Stepper>, Metrics) {
    let config = Store { directory: path.to_owned(), history_within, ..Store::default() };
    let (clock, metrics) = (clock.clone(), Metrics::new());
    let opened = Log::open_stepped(&config, &[], sinks, clock, metrics.clone(), Space::gauge(path));
    (opened.expect("the log opens"), metrics)
}

/// Ten minutes at 10 readings a second, confirmed by each sink after its latency, or
/// never: the number of commits. Each reading is settled 250 ms after it came, or
/// earlier.
fn commits_in_ten_minutes(latencies: &[Option<Duration>], history_within: HistoryWithin) -> u64 {
    let names = ["a", "b"].get(..latencies.len()).expect("two sinks at most");
    let mut bench = Bench::new(names, history_within);
    for round in 1..=6_000u64 {
        bench.append(Value::Integer(5));
        for (sink, latency) in latencies.iter().enumerate() {
            let Some(latency) = latency else { continue };
            let behind = u64::try_from(latency.as_millis() / 50).expect("short") / 2;
            bench.opened.cursors[sink].confirm(Seq(round.saturating_sub(behind)));
        }
        bench.pass(50 * MS);
        bench.pass(50 * MS);
        let unsettled = bench.sent - bench.mark.settled();
        assert!(unsettled <= 3, "{unsettled} readings, the oldest from {unsettled}00 ms ago, are not settled");
    }
    bench.commits
}

#[test]
fn only_what_no_sink_confirms_in_time_is_committed_before_the_history_is_due() {
    const FAST: Option<Duration> = Some(Duration::from_millis(50));
    const SLOW: Option<Duration> = Some(Duration::from_millis(500));
    const DEAD: Option<Duration> = None;
    let history = HistoryWithin::Within(Duration::from_secs(300));
    for (latencies, history, expected) in [
        (&[FAST] as &[_], history, 1..=3),
        (&[FAST, FAST], history, 1..=3),
        (&[FAST], HistoryWithin::Off, 0..=0),
        (&[SLOW], history, 2_000..=2_400),
        (&[DEAD], history, 2_000..=2_400),
        (&[FAST, DEAD], history, 2_000..=2_400),
        (&[FAST, DEAD], HistoryWithin::Off, 2_000..=2_400),
        (&[], history, 2_000..=2_400),
    ] {
        let commits = commits_in_ten_minutes(latencies, history);
        assert!(expected.contains(&commits), "{latencies:?}, {history:?}: {commits} commits, expected {expected:?}");
    }
}

#[tokio::test]
async fn small_segments_are_merged_and_keep_every_reading() {
    let mut bench = Bench::new(&["dead"], HistoryWithin::Off);
    bench.commit_each(1000);
    assert!(bench.segments() <= 2 * 64, "{} segments for 1000 commits", bench.segments());
    let mut after = Seq::ZERO;
    let mut origins = Vec::new();
    while after < Seq(1000) {
        let batches = bench.opened.cursors[0].fetch(after, 1000).await.expect("the log reads");
        origins
            .extend(batches.iter().flat_map(|b| b.after(after)).map(|(seq, origin, _)| (seq.0, origin.map(|o| o.seq))));
        after = batches.last().map(SequencedBatch::last).expect("more readings");
    }
    assert_eq!(origins, (1..=1000).map(|n| (n, Some(n))).collect::<Vec<_>>());
}

#[test]
fn a_device_is_known_after_a_crash_by_the_segments_alone() {
    let mut bench = Bench::new(&["dead"], HistoryWithin::Off);
    bench.commit_each(100);
    let rows: u64 = Connection::open(bench.directory.path().join("log.db"))
        .and_then(|database| database.query_row("SELECT count(*) FROM mark", [], |row| row.get(0)))
        .expect("a count");
    assert_eq!(rows, 0, "the marks are not written with each commit");
    let Bench { directory, clock, opened, .. } = bench;
    // Dropped without being closed, as by a crash.
    drop(opened);
    for _ in 0..2 {
        let (again, _) = open(directory.path(), &["dead"], HistoryWithin::Off, &clock);
        assert_eq!(again.log.high_water(&DeviceId::new("pump").expect("a valid name"), 7).settled(), 100);
    }
}

#[test]
fn the_write_ahead_log_shrinks_again_after_a_long_read() {
    const CAP: u64 = 16 << 20;
    let mut bench = Bench::new(&["dead"], HistoryWithin::Off);
    let wal = bench.directory.path().join("log.db-wal");
    let size = || std::fs::metadata(&wal).expect("a write-ahead log").len();
    let noise = |bench: &mut Bench| {
        for _ in 0..300 {
            bench.append(Value::Bytes(std::iter::repeat_with(|| fastrand::u8(..)).take(64 << 10).collect()));
            bench.pass(250 * MS);
        }
    };
    bench.commit_each(1);
    let reader = Connection::open(bench.directory.path().join("log.db")).expect("the database");
    reader.execute_batch("BEGIN; SELECT count(*) FROM segment").expect("a read that lasts");
    noise(&mut bench);
    assert!(size() > CAP, "the write-ahead log grew to {} bytes only: nothing is tested", size());
    reader.execute_batch("COMMIT").expect("its end");
    noise(&mut bench);
    assert!(size() <= CAP, "{} bytes", size());
    assert!(bench.clock.now().monotonic < HOUR);
}
