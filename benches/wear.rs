//! What the log writes to its device in a day, by the kernel's account of this
//! process, under every mix of sinks:
//!
//! ```text
//! cargo bench --bench wear [-- MINUTES]
//! ```
//!
//! Time is virtual: MINUTES (default 20) of each case pass as fast as the disk
//! allows, and are scaled to a day. The files lie in cargo's target directory,
//! which must be on a real disk. A reading is a device, a time and four values.

#![allow(clippy::expect_used, reason = "a bench fails by panicking")]

use parking_lot::Mutex;
use rusqlite::Connection;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate::clock::{Clock, Now};
use tidegate::config::{Durability, HistoryWithin, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, Channels, DeviceId, Reading, Seq, Timestamp, Value};
use tidegate::store::{FILE_NAME, HighWater, Log, Opened, SinkCursor, Space, Stepped};

const MS: Duration = Duration::from_millis(1);
/// How finely time passes.
const TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Virtual(Mutex<Duration>);

impl Clock for Virtual {
    fn now(&self) -> Now {
        let monotonic = *self.0.lock();
        Now { wall: Timestamp(1_767_225_600_000_000).plus(monotonic), trusted: true, monotonic }
    }
}

/// How long a sink takes to confirm; `None` if it is dead.
type Latency = Option<Duration>;

struct Case {
    name: &'static str,
    sinks: &'static [Latency],
    history: HistoryWithin,
    commit_within: Duration,
    durability: Durability,
    /// Instead of the log's own choice.
    page_size: Option<u32>,
}

const HISTORY: HistoryWithin = HistoryWithin::Within(Duration::from_secs(300));

const CASES: [Case; 12] = [
    case("online", &[Some(Duration::from_millis(50))], HISTORY),
    case("online, no history", &[Some(Duration::from_millis(50))], HistoryWithin::Off),
    case("slow sink (400 ms)", &[Some(Duration::from_millis(400))], HISTORY),
    case("offline", &[None], HISTORY),
    case("one online, one dead", &[Some(Duration::from_millis(50)), None], HISTORY),
    case("no sink", &[], HISTORY),
    Case { commit_within: Duration::from_secs(1), ..case("offline, commit_within 1 s", &[None], HISTORY) },
    Case { commit_within: Duration::from_secs(5), ..case("offline, commit_within 5 s", &[None], HISTORY) },
    Case { durability: Durability::Normal, ..case("offline, durability normal", &[None], HISTORY) },
    Case { page_size: Some(4096), ..case("online, pages of 4096", &[Some(Duration::from_millis(50))], HISTORY) },
    Case { page_size: Some(512), ..case("offline, pages of 512", &[None], HISTORY) },
    Case { page_size: Some(4096), ..case("offline, pages of 4096", &[None], HISTORY) },
];

const fn case(name: &'static str, sinks: &'static [Latency], history: HistoryWithin) -> Case {
    let commit_within = Duration::from_millis(250);
    Case { name, sinks, history, commit_within, durability: Durability::Full, page_size: None }
}

fn main() {
    // Cargo adds `--bench`.
    let minutes = std::env::args().skip(1).find_map(|argument| argument.parse::<u32>().ok()).unwrap_or(20);
    let time = Duration::from_secs(60) * minutes;
    println!("written to the device, MB a day (bytes a reading); {minutes} minutes each, 100 devices\n");
    println!("| | 10 readings/s | 100/s | 1,000/s | file, MB a day at 100/s |\n|---|---|---|---|---|");
    for case in &CASES {
        let mut cells = Vec::new();
        let mut growth = 0.0;
        for rate in [10, 100, 1000] {
            let outcome = run(case, rate, time);
            let readings = f64::from(rate) * time.as_secs_f64();
            let days = time.as_secs_f64() / 86_400.0;
            cells.push(format!("{:.0} ({:.1})", outcome.written / 1e6 / days, outcome.written / readings));
            if rate == 100 {
                growth = outcome.size / 1e6 / days;
            }
        }
        println!("| {} | {} | {growth:.0} |", case.name, cells.join(" | "));
    }
}

struct Outcome {
    /// Bytes written to the device.
    written: f64,
    /// Bytes that the log's files take in the end.
    size: f64,
}

fn run(case: &Case, rate: u32, time: Duration) -> Outcome {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let config = Store {
        directory: directory.path().to_owned(),
        commit_within: case.commit_within,
        history_within: case.history,
        durability: case.durability,
        ..Store::default()
    };
    if let Some(size) = case.page_size {
        // A database keeps the size that it was made with.
        let database = Connection::open(directory.path().join(FILE_NAME)).expect("a new database");
        let made = database.execute_batch(&format!("PRAGMA page_size = {size}; PRAGMA journal_mode = WAL; VACUUM"));
        made.expect("an empty database");
    }
    let clock = Arc::new(Virtual::default());
    let names = ["a", "b"].get(..case.sinks.len()).expect("two sinks at most");
    let (metrics, gauge) = (Metrics::new(), Space::gauge(directory.path()));
    let opened = Log::open_stepped(&config, &[], names, clock.clone(), metrics, gauge).expect("the log opens");
    let Opened { log, cursors, mut writer, .. } = opened;
    let mut sinks: Vec<_> =
        cursors.into_iter().zip(case.sinks).map(|(cursor, latency)| Sink::new(cursor, *latency)).collect();
    let mut devices = Devices::new(&log);
    let before = written();
    let (mut sent, mut now) = (0u64, Duration::ZERO);
    while now < time {
        now += TICK;
        *clock.0.lock() = now;
        while sent < u64::try_from(now.as_millis()).expect("minutes") * u64::from(rate) / 1000 {
            sent += 1;
            let (mark, batch) = devices.reading(sent, now);
            log.append(Some(mark), batch).expect("memory is never short");
        }
        sinks.iter_mut().for_each(|sink| sink.tick(Seq(sent), now));
        while matches!(writer.step(), Stepped::Tried | Stepped::Looked) {
            assert_eq!(log.health().failure, None);
        }
    }
    Outcome { written: written() - before, size: size(directory.path()) }
}

struct Sink {
    cursor: SinkCursor,
    latency: Latency,
    /// What was sent, and when it will be confirmed.
    sent: VecDeque<(Duration, Seq)>,
}

impl Sink {
    fn new(cursor: SinkCursor, latency: Latency) -> Sink {
        Sink { cursor, latency, sent: VecDeque::new() }
    }

    fn tick(&mut self, newest: Seq, now: Duration) {
        let Some(latency) = self.latency else { return };
        self.sent.push_back((now + latency, newest));
        while let Some((_, upto)) = self.sent.front().copied().filter(|(due, _)| *due <= now) {
            self.cursor.confirm(upto);
            self.sent.pop_front();
        }
    }
}

struct Devices {
    marks: Vec<Arc<HighWater>>,
    channels: Channels,
}

impl Devices {
    fn new(log: &Log) -> Devices {
        let name = |n| DeviceId::new(&format!("device-{n}")).expect("a valid name");
        let channels = ["temperature", "humidity", "count", "open"];
        Devices {
            marks: (0..100).map(|n| log.high_water(&name(n), 7)).collect(),
            channels: channels.map(|name| ChannelName::new(name).expect("a valid name")).into(),
        }
    }

    /// The `n`th reading of all: two decimals, a counter and a state.
    fn reading(&mut self, n: u64, now: Duration) -> (&Arc<HighWater>, Batch) {
        let count = self.marks.len() as u64;
        let mark = &self.marks[usize::try_from(n % count).expect("under a hundred")];
        let origin = n / count + 1;
        let noise = (n.wrapping_mul(2_654_435_761) >> 12 & 15) as f64;
        let values = [
            Value::Float((2150.0 + noise).round() / 100.0),
            Value::Float((455.0 - noise).round() / 10.0),
            Value::Integer(i64::try_from(origin).expect("few")),
            Value::Boolean(origin % 1000 < 500),
        ];
        let time = Timestamp(1_767_225_600_000_000).plus(now.saturating_sub(3 * MS));
        let reading = Reading::new(origin, time, self.channels.clone(), values.into()).expect("four of each");
        (
            mark,
            Batch {
                device: mark.device().clone(),
                session: Some(mark.session()),
                basis: Basis::Wall,
                readings: vec![reading],
            },
        )
    }
}

/// Bytes that this process had the device write so far.
fn written() -> f64 {
    let account = std::fs::read_to_string("/proc/self/io").expect("the kernel accounts for I/O");
    let line = account.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("bytes written");
    line.parse().expect("a number")
}

fn size(directory: &Path) -> f64 {
    let files = std::fs::read_dir(directory).expect("the log's directory");
    files
        .map(|file| file.expect("a file"))
        .filter(|file| file.file_name().to_string_lossy().starts_with(FILE_NAME))
        .map(|file| file.metadata().expect("a file").len() as f64)
        .sum()
}
