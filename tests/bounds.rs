//! The log at its bounds: what goes first, what is said of it, and what the files take.

use crate::support::store::small as config;
use bytesize::ByteSize;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate::clock::{Clock, Now, SystemClock};
use tidegate::config::{Priority, Route, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, BootId, ChannelName, Channels, DeviceId, Reading, Seq, Timestamp, Value};
use tidegate::store::{Log, Opened};

fn alarms() -> Route {
    Route { channels: vec!["alarm*".into()], priority: Priority::High, ..Route::default() }
}

fn open(config: &Store, routes: &[Route]) -> (Opened, Metrics) {
    let metrics = Metrics::new();
    let clock = Arc::new(SystemClock::new());
    let opened = Log::open_with(config, routes, &["dead"], clock, metrics.clone()).expect("the log opens");
    (opened, metrics)
}

fn channels(name: &str) -> Channels {
    [ChannelName::new(name).expect("a valid name")].into()
}

/// A reading of `bytes` that do not compress.
fn noise(origin: u64, channel: &Channels, bytes: usize) -> Reading {
    let noise: Box<[u8]> = std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect();
    Reading::new(origin, Timestamp(origin as i64), channel.clone(), [Value::Bytes(noise)].into()).expect("it fits")
}

async fn append(opened: &Opened, device: &str, readings: Vec<Reading>) {
    let device = DeviceId::new(device).expect("a valid name");
    let mut wanted = Batch { device, session: Some(1), basis: Basis::Wall, readings };
    while let Err(saturated) = opened.log.append(None, wanted) {
        wanted = saturated.0;
        opened.log.room().await;
    }
}

/// Everything that is left for the sink: seq to (device, origin, channel).
async fn left(opened: &mut Opened) -> BTreeMap<u64, (String, u64, String)> {
    let cursor = &mut opened.cursors[0];
    let mut after = cursor.position();
    let mut all = BTreeMap::new();
    loop {
        let batches = cursor.fetch(after, 100_000).await.expect("the log reads");
        let Some(last) = batches.last().map(tidegate::model::SequencedBatch::last) else { return all };
        for batch in &batches {
            for (seq, _, reading) in batch.after(after) {
                let name = reading.channels()[0].to_string();
                let before = all.insert(seq.0, (batch.batch.device.to_string(), reading.origin_seq, name));
                assert!(before.is_none(), "seq {seq} stands for two readings");
            }
        }
        after = last;
    }
}

/// Of each reason: how many readings its gap events say were dropped.
async fn gaps(opened: &mut Opened) -> BTreeMap<String, u64> {
    let mut gaps = BTreeMap::new();
    let mut after = 0;
    loop {
        let events = opened.cursors[0].events(after).await.expect("events");
        let Some(last) = events.last() else { return gaps };
        after = last.id;
        for event in events.iter().filter(|event| event.body["type"] == "gap" && event.body["reason"] != "restart") {
            let body = &event.body;
            let count = body["count"].as_u64().expect("a count");
            assert_eq!(body["undelivered"]["dead"], count);
            assert!(body["first"].as_u64() <= body["last"].as_u64());
            *gaps.entry(body["reason"].as_str().expect("a reason").to_owned()).or_default() += count;
        }
    }
}

fn counted(metrics: &Metrics, reason: &str) -> u64 {
    let text = metrics.encode();
    let start = format!("tidegate_sink_dropped_total{{sink=\"dead\",reason=\"{reason}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test]
async fn alarms_outlive_telemetry_and_every_reading_is_kept_or_counted() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path());
    let (mut opened, metrics) = open(&config, &[alarms()]);
    let (telemetry, alarm) = (channels("temperature"), channels("alarm.hot"));
    let (mut total, mut raised) = (0u64, 0u64);
    // Four times as much as there is room for, with an alarm now and then.
    for n in 0..1000u64 {
        append(&opened, "pump", (0..20).map(|i| noise(n * 20 + i + 1, &telemetry, 200)).collect()).await;
        total += 20;
        if n % 10 == 0 {
            append(&opened, "guard", vec![noise(n / 10 + 1, &alarm, 50)]).await;
            (total, raised) = (total + 1, raised + 1);
        }
    }
    opened.log.flush().await.expect("it can be written");

    let kept = left(&mut opened).await;
    let kept_alarms: Vec<u64> =
        kept.values().filter(|(device, ..)| device == "guard").map(|(_, origin, _)| *origin).collect();
    assert_eq!(kept_alarms, (1..=raised).collect::<Vec<_>>(), "no alarm went while there was telemetry");
    assert!(kept.len() < total as usize / 2, "{} of {total} are left", kept.len());
    let dropped = gaps(&mut opened).await;
    assert_eq!(dropped.keys().collect::<Vec<_>>(), ["max_size"]);
    assert_eq!(dropped["max_size"] + kept.len() as u64, total, "kept or counted");
    assert_eq!(counted(&metrics, "max_size"), dropped["max_size"]);
    assert_eq!(opened.cursors[0].pending(), kept.len() as u64);

    // The readings keep their seqs, over a restart, too.
    opened.log.close();
    opened.writer.join();
    let (mut again, _) = open(&config, &[alarms()]);
    // At its bound it may have dropped some more of the oldest telemetry, for what a start writes.
    let (before, kept) = (kept, left(&mut again).await);
    assert!(kept.iter().all(|(seq, reading)| before.get(seq) == Some(reading)));
    assert!(before.len() - kept.len() < 500, "{} of {} are left", kept.len(), before.len());
    assert_eq!(again.cursors[0].pending(), kept.len() as u64);
    let middle = *kept.keys().nth(kept.len() / 2).expect("some are left");
    let tail = again.cursors[0].fetch(Seq(middle), 1).await.expect("the log reads");
    let next = tail[0].after(Seq(middle)).next().map(|(seq, ..)| seq.0);
    assert_eq!(next, kept.keys().nth(kept.len() / 2 + 1).copied());
}

#[tokio::test]
async fn when_only_alarms_are_left_the_oldest_go() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (mut opened, _) = open(&config(directory.path()), &[alarms()]);
    let alarm = channels("alarm");
    for n in 0..500u64 {
        append(&opened, "guard", (0..20).map(|i| noise(n * 20 + i + 1, &alarm, 200)).collect()).await;
    }
    opened.log.flush().await.expect("it can be written");
    let kept = left(&mut opened).await;
    let origins: Vec<u64> = kept.values().map(|(_, origin, _)| *origin).collect();
    assert_eq!(origins, (10_001 - kept.len() as u64..=10_000).collect::<Vec<_>>());
    assert_eq!(gaps(&mut opened).await["max_size"] + kept.len() as u64, 10_000);
}

#[tokio::test]
async fn lanes_that_were_configured_later_hold_for_what_was_there_before() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path());
    let (opened, _) = open(&config, &[]);
    append(&opened, "guard", (1..=50).map(|i| noise(i, &channels("alarm"), 50)).collect()).await;
    opened.log.close();
    opened.writer.join();
    let (mut opened, _) = open(&config, &[alarms()]);
    for n in 0..500u64 {
        append(&opened, "pump", (0..20).map(|i| noise(n * 20 + i + 1, &channels("t"), 200)).collect()).await;
    }
    opened.log.flush().await.expect("it can be written");
    let kept = left(&mut opened).await;
    assert_eq!(kept.values().filter(|(device, ..)| device == "guard").count(), 50);
}

#[tokio::test]
async fn the_oldest_readings_are_thinned_before_any_is_dropped_wholly() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { thin: Some(10), ..config(directory.path()) };
    let (mut opened, metrics) = open(&config, &[]);
    let telemetry = channels("temperature");
    // Twice as much as there is room for.
    for n in 0..500u64 {
        for device in ["a", "b"] {
            append(&opened, device, (0..10).map(|i| noise(n * 10 + i + 1, &telemetry, 180)).collect()).await;
        }
    }
    opened.log.flush().await.expect("it can be written");
    let kept = left(&mut opened).await;
    let dropped = gaps(&mut opened).await;
    assert_eq!(dropped.keys().collect::<Vec<_>>(), ["thinned"], "thinning is enough here");
    assert_eq!(dropped["thinned"] + kept.len() as u64, 10_000);
    assert_eq!(counted(&metrics, "thinned"), dropped["thinned"]);
    for device in ["a", "b"] {
        let origins: Vec<u64> = kept.values().filter(|(d, ..)| d == device).map(|(_, origin, _)| *origin).collect();
        assert_eq!(origins[..20], (0..20).map(|i| i * 10 + 1).collect::<Vec<_>>(), "every tenth of the oldest");
        assert_eq!(origins[origins.len() - 100..], (4901..=5000).collect::<Vec<_>>(), "all of the newest");
    }
}

#[tokio::test]
async fn device_names_cost_no_reading_and_no_session_that_is_alive() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path());
    let (mut opened, metrics) = open(&config, &[]);
    let alive = DeviceId::new("alive").expect("a valid name");
    let session = opened.log.high_water(&alive, 7);
    let one = |device: &DeviceId, session| Batch {
        device: device.clone(),
        session: Some(session),
        basis: Basis::Wall,
        readings: vec![noise(1, &channels("n"), 8)],
    };
    opened.log.append(Some(&session), one(&alive, 7)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    for name in 0..10_000 {
        let device = DeviceId::new(&format!("device-of-a-fleet-that-renames-{name:08}")).expect("a valid name");
        let mark = opened.log.high_water(&device, 1);
        let mut batch = one(&device, 1);
        while let Err(saturated) = opened.log.append(Some(&mark), batch) {
            batch = saturated.0;
            opened.log.room().await;
        }
    }
    opened.log.flush().await.expect("it can be written");
    assert_eq!(left(&mut opened).await.len(), 10_001);
    assert_eq!(counted(&metrics, "max_size"), 0, "names take nothing from readings");
    opened.log.close();
    opened.writer.join();

    let path = directory.path().join("log.db");
    assert!(std::fs::metadata(&path).expect("the log").len() <= config.max_size.as_u64());
    let database = rusqlite::Connection::open(&path).expect("it opens");
    let marks: u64 = database.query_row("SELECT count(*) FROM mark", [], |row| row.get(0)).expect("a count");
    // What the last commits brought is written in any case.
    assert!(marks < 2000, "{marks} marks");
    drop(database);
    let (again, _) = open(&config, &[]);
    assert_eq!(again.log.high_water(&alive, 7).settled(), 1, "its session was alive all the time");
    let last = DeviceId::new("device-of-a-fleet-that-renames-00009999").expect("a valid name");
    assert_eq!(again.log.high_water(&last, 1).settled(), 1, "the latest are known");
}

/// A clock that stands still until it is told, and the boot that it counts from.
struct Manual(Mutex<Now>, Mutex<BootId>);

impl Manual {
    fn at(now: Now) -> Arc<Manual> {
        Arc::new(Manual(Mutex::new(now), Mutex::default()))
    }
}

impl Clock for Manual {
    fn now(&self) -> Now {
        *self.0.lock()
    }

    fn boot(&self) -> BootId {
        *self.1.lock()
    }
}

#[tokio::test]
async fn readings_that_are_too_old_go_and_a_step_of_the_clock_ages_nothing() {
    const HOUR: Duration = Duration::from_secs(3600);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { max_age: Some(10 * HOUR), ..config(directory.path()) };
    let start = Now { wall: Timestamp(1_800_000_000_000_000), trusted: true, monotonic: Duration::ZERO };
    let clock = Manual::at(start);
    let metrics = Metrics::new();
    let mut opened = Log::open(&config, &["dead"], clock.clone(), metrics.clone()).expect("the log opens");
    let one = |origin| vec![noise(origin, &channels("t"), 10)];
    let write = async |opened: &Opened, origin| {
        append(opened, "d", one(origin)).await;
        opened.log.flush().await.expect("it can be written");
    };
    write(&opened, 1).await;
    clock.0.lock().monotonic = 6 * HOUR;
    // Ten years forwards.
    clock.0.lock().wall = Timestamp(start.wall.0 + 315_360_000_000_000);
    write(&opened, 2).await;
    assert_eq!(left(&mut opened).await.len(), 2);
    clock.0.lock().monotonic = 11 * HOUR;
    write(&opened, 3).await;
    let origins = |left: BTreeMap<u64, (String, u64, String)>| left.values().map(|l| l.1).collect::<Vec<_>>();
    assert_eq!(origins(left(&mut opened).await), [2, 3]);
    assert_eq!(gaps(&mut opened).await["max_age"], 1);
    assert_eq!(counted(&metrics, "max_age"), 1);

    // Over a restart within one boot the time counts that the machine was up.
    opened.log.close();
    opened.writer.join();
    *clock.0.lock() = Now { monotonic: 17 * HOUR, ..start };
    let mut opened = Log::open(&config, &["dead"], clock.clone(), metrics).expect("the log opens");
    write(&opened, 4).await;
    assert_eq!(origins(left(&mut opened).await), [3, 4]);
}

#[tokio::test]
async fn a_clock_that_is_wrong_after_a_boot_ages_no_reading_though_it_is_trusted() {
    const HOUR: Duration = Duration::from_secs(3600);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { max_age: Some(24 * HOUR), ..config(directory.path()) };
    let start = Now { wall: Timestamp(1_800_000_000_000_000), trusted: true, monotonic: 9 * HOUR };
    let clock = Manual::at(start);
    let metrics = Metrics::new();
    let open = || Log::open(&config, &["dead"], clock.clone(), metrics.clone()).expect("the log opens");
    let opened = open();
    append(&opened, "d", (1..=200).map(|origin| noise(origin, &channels("t"), 10)).collect()).await;
    opened.log.close();
    opened.writer.join();

    // The machine boots with a clock that is twenty days ahead.
    *clock.1.lock() = BootId([7; 16]);
    let ahead = Timestamp(start.wall.0 + 20 * 24 * 3_600_000_000);
    *clock.0.lock() = Now { wall: ahead, trusted: true, monotonic: Duration::ZERO };
    let mut opened = open();
    append(&opened, "d", vec![noise(201, &channels("t"), 10)]).await;
    opened.log.flush().await.expect("it can be written");
    assert_eq!(counted(&metrics, "max_age"), 0);
    assert_eq!(left(&mut opened).await.len(), 201);

    // From there on they age as the time passes.
    clock.0.lock().monotonic = 25 * HOUR;
    append(&opened, "d", vec![noise(202, &channels("t"), 10)]).await;
    opened.log.flush().await.expect("it can be written");
    assert_eq!(left(&mut opened).await.len(), 1);
}

#[tokio::test]
async fn a_damaged_age_or_lane_makes_no_reading_go_before_its_time() {
    const HOUR: Duration = Duration::from_secs(3600);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { max_age: Some(10 * HOUR), max_size: ByteSize::kib(512), ..config(directory.path()) };
    let start = Now { wall: Timestamp(1_800_000_000_000_000), trusted: true, monotonic: Duration::ZERO };
    let clock = Manual::at(start);
    let metrics = Metrics::new();
    let open =
        || Log::open_with(&config, &[alarms()], &["dead"], clock.clone(), metrics.clone()).expect("the log opens");
    let opened = open();
    for (origin, hours) in [(1, 0), (2, 6), (3, 7)] {
        clock.0.lock().monotonic = hours * HOUR;
        append(&opened, "d", vec![noise(origin, &channels("alarm"), 10)]).await;
        opened.log.flush().await.expect("it can be written");
    }
    opened.log.close();
    opened.writer.join();

    // When what retention goes by is damaged: the second reading seems as old as the
    // first, and no alarm.
    let database = rusqlite::Connection::open(directory.path().join("log.db")).expect("it opens");
    let changed = database.execute("UPDATE segment SET committed = 0, high = 0 WHERE first_seq = 2", []);
    assert_eq!(changed, Ok(1));
    drop(database);

    // Then at eleven hours only the first is too old, and when telemetry takes all the
    // room the alarm stays.
    *clock.0.lock() = Now { monotonic: 11 * HOUR, ..start };
    let mut opened = open();
    let telemetry = channels("temperature");
    for first in (4..1004).step_by(20) {
        append(&opened, "d", (first..first + 20).map(|origin| noise(origin, &telemetry, 1000)).collect()).await;
    }
    opened.log.flush().await.expect("it can be written");
    assert!(counted(&metrics, "max_size") > 0, "the log is full");
    let kept: Vec<u64> = left(&mut opened).await.values().map(|(_, origin, _)| *origin).collect();
    assert_eq!(kept[..2], [2, 3]);
    assert_eq!(gaps(&mut opened).await["max_age"], 1);
}

/// Bytes of all the log's files.
fn on_disk(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).expect("the directory");
    files.filter_map(|file| file.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Prints each cycle's figures; `TIDEGATE_TEST_CYCLE_MIB` makes the log larger.
#[tokio::test]
async fn ten_times_filled_and_drained_the_files_stay_within_their_bound() {
    let mib = std::env::var("TIDEGATE_TEST_CYCLE_MIB").map_or(8, |mib| mib.parse().expect("a number of MiB"));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { max_size: ByteSize::mib(mib), ..config(directory.path()) };
    let (mut opened, metrics) = open(&config, &[]);
    let telemetry = channels("temperature");
    let (mut origin, mut most) = (0, 0);
    for cycle in 1..=10 {
        // A tenth more than fits, while nobody takes it.
        let mut written = 0;
        while written < mib * (1 << 20) * 11 / 10 {
            append(&opened, "pump", (0..32).map(|i| noise(origin + i, &telemetry, 1000)).collect()).await;
            origin += 32;
            written += 32_000;
            most = most.max(on_disk(directory.path()));
        }
        opened.log.flush().await.expect("it can be written");
        let full = on_disk(directory.path());
        let last = *left(&mut opened).await.keys().last().expect("some are left");
        opened.cursors[0].confirm(Seq(last));
        let drained = on_disk(directory.path());
        println!("cycle {cycle}: {full} bytes full, {drained} drained, {most} at most, bound {}", mib << 20);
        assert_eq!(opened.cursors[0].pending(), 0);
    }
    assert!(most <= mib << 20, "{most} bytes");
    // Only the first fill drops what nobody took: history makes room for the others.
    let first = counted(&metrics, "max_size");
    assert!(first > 0);
}
