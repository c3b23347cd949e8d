//! The log through its public door: what it promises across restarts, crashes
//! and a full disk budget.
//!
//! A crash is a copy of the files taken while the log runs, opened elsewhere:
//! what SIGKILL leaves behind.

use bytesize::ByteSize;
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tidegate::clock::SystemClock;
use tidegate::config::{Deliver, HistoryWithin, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, Channels, DeviceId, Reading, Seq, SequencedBatch, Timestamp, Value};
use tidegate::store::{Before, Log, LogEvent, OpenError, Opened, purge};

fn config(directory: &Path) -> Store {
    Store {
        directory: directory.to_owned(),
        commit_within: Duration::ZERO,
        deliver: Deliver::AfterCommit,
        max_size: ByteSize::mib(64),
        ..Store::default()
    }
}

fn open(config: &Store, sinks: &[&str]) -> Opened {
    Log::open(config, sinks, Arc::new(SystemClock::new()), Metrics::new()).expect("the log opens")
}

fn close(opened: Opened) {
    opened.log.close();
    opened.writer.join();
}

/// Copies the log's files as they lie there now.
fn crash(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    // The write-ahead log last would miss what a checkpoint moved meanwhile.
    for file in ["log.db-wal", "log.db"] {
        let from = directory.join(file);
        if from.exists() {
            std::fs::copy(from, copy.path().join(file)).expect("a file that can be copied");
        }
    }
    copy
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a valid name")
}

fn channels() -> Channels {
    ["n", "text"].map(|name| ChannelName::new(name).expect("a valid name")).into()
}

fn batch(name: &str, session: Option<u64>, origins: std::ops::RangeInclusive<u64>) -> Batch {
    let channels = channels();
    let reading = |origin: u64| {
        let values = [Value::Float(origin as f64 / 100.0), Value::Text(format!("{name} {origin}").into())];
        Reading::new(origin, Timestamp(origin as i64 * 1000), channels.clone(), values.into()).expect("it fits")
    };
    Batch { device: device(name), session, basis: Basis::Wall, readings: origins.map(reading).collect() }
}

/// Seq, device and origin of each reading, having checked its content.
fn content(batches: &[SequencedBatch], after: Seq) -> Vec<(u64, String, u64)> {
    let mut all = Vec::new();
    for numbered in batches {
        let name = numbered.batch.device.to_string();
        for (seq, origin, reading) in numbered.after(after) {
            let origin = origin.map_or(reading.origin_seq, |origin| origin.seq);
            let expected = batch(&name, None, origin..=origin).readings.remove(0);
            assert_eq!((reading.time, reading.values()), (expected.time, expected.values()));
            all.push((seq.0, name.clone(), origin));
        }
    }
    all
}

/// Everything that sink number `sink` has yet to get.
async fn drain(opened: &mut Opened, sink: usize) -> Vec<(u64, String, u64)> {
    let cursor = &mut opened.cursors[sink];
    let mut after = cursor.position();
    let mut all = Vec::new();
    loop {
        let batches = cursor.fetch(after, 1000).await.expect("the log reads");
        let Some(last) = batches.last().map(SequencedBatch::last) else { return all };
        all.extend(content(&batches, after));
        after = last;
    }
}

#[tokio::test]
async fn a_settled_reading_survives_a_crash_and_reaches_each_sink_in_order() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(&config(directory.path()), &["a", "b"]);
    let mark = opened.log.high_water(&device("pump"), 77);
    for first in (1..=100).step_by(5) {
        opened.log.append(Some(&mark), batch("pump", Some(77), first..=first + 4)).expect("there is room");
    }
    while mark.settled() < 100 {
        mark.settled_after(mark.settled()).await;
    }
    let copy = crash(directory.path());

    let mut again = open(&config(copy.path()), &["a", "b"]);
    let expected: Vec<_> = (1..=100).map(|n| (n, "pump".to_owned(), n)).collect();
    assert_eq!(drain(&mut again, 0).await, expected);
    assert_eq!(drain(&mut again, 1).await, expected);
    assert_eq!(again.log.epochs().of(Seq(1)).0, opened.log.epoch());
    assert_eq!(again.log.high_water(&device("pump"), 77).settled(), 100);
    assert_eq!(again.log.high_water(&device("pump"), 78).settled(), 0);
}

#[tokio::test]
async fn what_a_device_sends_again_is_dropped_also_after_a_restart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(&config(directory.path()), &["a"]);
    let mark = opened.log.high_water(&device("pump"), 77);
    opened.log.append(Some(&mark), batch("pump", Some(77), 1..=10)).expect("there is room");
    opened.log.append(Some(&mark), batch("pump", Some(77), 6..=12)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    close(opened);

    let mut opened = open(&config(directory.path()), &["a"]);
    let mark = opened.log.high_water(&device("pump"), 77);
    assert_eq!(mark.settled(), 12);
    opened.log.append(Some(&mark), batch("pump", Some(77), 11..=14)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    let origins: Vec<_> = drain(&mut opened, 0).await.into_iter().map(|(_, _, origin)| origin).collect();
    assert_eq!(origins, (1..=14).collect::<Vec<_>>());
}

/// The events but for those of new epochs, which tests/epochs.rs looks at.
async fn told(opened: &mut Opened) -> Vec<LogEvent> {
    let events = opened.cursors[0].events(0).await.expect("events");
    events.into_iter().filter(|event| event.body["type"] != "epoch").collect()
}

#[tokio::test]
async fn a_clean_stop_leaves_no_hole_and_an_unclean_one_is_reported() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(&config(directory.path()), &["a"]);
    opened.log.append(None, batch("d", None, 0..=0)).expect("there is room");
    close(opened);
    let mut opened = open(&config(directory.path()), &["a"]);
    opened.log.append(None, batch("d", None, 0..=0)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    assert_eq!(drain(&mut opened, 0).await.iter().map(|(seq, ..)| *seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(told(&mut opened).await, []);

    let copy = crash(directory.path());
    let mut again = open(&config(copy.path()), &["a"]);
    again.log.append(None, batch("d", None, 0..=0)).expect("there is room");
    again.log.flush().await.expect("it can be written");
    let seqs: Vec<_> = drain(&mut again, 0).await.iter().map(|(seq, ..)| *seq).collect();
    let events = told(&mut again).await;
    let body = &events[0].body;
    assert_eq!((&body["type"], &body["reason"], &body["first"]), (&"gap".into(), &"restart".into(), &3.into()));
    assert_eq!(seqs[2], body["last"].as_u64().expect("a number") + 1);
    assert_eq!(again.cursors[0].pending(), 3, "the hole is not counted as pending");
}

#[tokio::test]
async fn a_reading_before_a_hole_is_offered_again_when_its_confirmation_was_lost() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(&config(directory.path()), &["a"]);
    opened.log.append(None, batch("d", None, 0..=0)).expect("there is room");
    opened.log.flush().await.expect("it can be written");

    let copy = crash(directory.path());
    let mut again = open(&config(copy.path()), &["a"]);
    assert_eq!(drain(&mut again, 0).await.len(), 1);
    let cursor = &again.cursors[0];
    assert_eq!(cursor.waiting(Seq(1)), 0, "nothing but a hole stands after it");
    assert!(cursor.waiting(Seq::ZERO) > 0, "it was not confirmed");
}

#[tokio::test]
async fn confirmed_readings_are_not_sent_again_after_a_clean_stop() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(&config(directory.path()), &["a", "b"]);
    opened.log.append(None, batch("d", None, 1..=10)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    opened.cursors[0].confirm(Seq(4));
    close(opened);
    let mut opened = open(&config(directory.path()), &["a", "b"]);
    assert_eq!(drain(&mut opened, 0).await.len(), 6);
    assert_eq!(drain(&mut opened, 1).await.len(), 10);
    assert_eq!((opened.cursors[0].pending(), opened.cursors[1].pending()), (6, 10));
}

#[tokio::test]
async fn readings_that_all_sinks_confirm_in_time_are_never_written_without_history() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store {
        commit_within: Duration::from_secs(3600),
        history_within: HistoryWithin::Off,
        deliver: Deliver::AtOnce,
        ..config(directory.path())
    };
    let metrics = Metrics::new();
    let mut opened = Log::open(&config, &["a"], Arc::new(SystemClock::new()), metrics.clone()).expect("the log opens");
    let mark = opened.log.high_water(&device("d"), 5);
    for n in 1..=1000 {
        opened.log.append(Some(&mark), batch("d", Some(5), n..=n)).expect("there is room");
    }
    let sent = drain(&mut opened, 0).await;
    assert_eq!((sent.len(), mark.settled()), (1000, 0));
    opened.cursors[0].confirm(Seq(1000));
    assert_eq!(mark.settled(), 1000);
    close(opened);
    assert_eq!(metrics.readings_stored.get(), 0);
    let opened = open(&config, &["a"]);
    assert_eq!(opened.log.high_water(&device("d"), 5).settled(), 1000, "the device's mark is kept all the same");
}

#[tokio::test]
async fn the_log_stays_within_its_bound_and_reports_what_it_dropped() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { max_size: ByteSize::mib(1), segment_size: ByteSize::kib(64), ..config(directory.path()) };
    let metrics = Metrics::new();
    let mut opened = Log::open(&config, &["dead"], Arc::new(SystemClock::new()), metrics.clone()).expect("it opens");
    let mark = opened.log.high_water(&device("d"), 5);
    let total = 300_000;
    for first in (1..=total).step_by(100) {
        let mut wanted = batch("d", Some(5), first..=first + 99);
        for (i, reading) in wanted.readings.iter_mut().enumerate() {
            // Incompressible, so that the bound is reached soon.
            let noise: Box<[u8]> = std::iter::repeat_with(|| fastrand::u8(..)).take(16).collect();
            let time = Timestamp(i as i64);
            let list: Channels = [ChannelName::new("noise").expect("a valid name")].into();
            *reading = Reading::new(reading.origin_seq, time, list, [Value::Bytes(noise)].into()).expect("it fits");
        }
        while let Err(saturated) = opened.log.append(Some(&mark), wanted) {
            wanted = saturated.0;
            opened.log.room().await;
        }
    }
    opened.log.flush().await.expect("it can be written");
    assert_eq!(mark.settled(), total);
    let file = std::fs::metadata(directory.path().join("log.db")).expect("the database").len();
    assert!(file <= 1 << 20, "{file} bytes");

    let cursor = &mut opened.cursors[0];
    let first = cursor.fetch(Seq::ZERO, 1).await.expect("the log reads")[0].first;
    let kept = cursor.pending();
    let events = cursor.events(0).await.expect("events");
    let dropped: u64 = events.iter().map(|event| event.body["count"].as_u64().expect("a count")).sum();
    let body = &events.last().expect("a gap").body;
    assert_eq!(body["reason"], "max_size");
    assert_eq!(body["last"], first.prev().0);
    assert_eq!((dropped, dropped + kept), (first.0 - 1, total));
    let text = metrics.encode();
    let line = format!("tidegate_sink_dropped_total{{sink=\"dead\",reason=\"max_size\"}} {dropped}");
    assert!(text.contains(&line), "{line} is not in\n{text}");
}

#[tokio::test]
async fn a_dead_sink_delays_neither_the_devices_nor_the_other_sink() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { max_pending: ByteSize::kib(64), segment_size: ByteSize::kib(16), ..config(directory.path()) };
    let mut opened = open(&config, &["dead", "live"]);
    let mark = opened.log.high_water(&device("d"), 5);
    let mut got = Vec::new();
    for first in (1..=20_000).step_by(50) {
        let mut wanted = batch("d", Some(5), first..=first + 49);
        while let Err(saturated) = opened.log.append(Some(&mark), wanted) {
            wanted = saturated.0;
            opened.log.room().await;
        }
        let some = drain(&mut opened, 1).await;
        if let Some((seq, ..)) = some.last() {
            opened.cursors[1].confirm(Seq(*seq));
        }
        got.extend(some);
    }
    opened.log.flush().await.expect("it can be written");
    got.extend(drain(&mut opened, 1).await);
    assert_eq!(got.len(), 20_000);
    assert_eq!(drain(&mut opened, 0).await, got);
}

#[tokio::test]
async fn memory_that_is_used_up_pushes_back_until_a_commit_makes_room() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store {
        commit_within: Duration::from_secs(3600),
        max_pending: ByteSize::kib(16),
        segment_size: ByteSize::mib(1),
        ..config(directory.path())
    };
    let opened = open(&config, &["a"]);
    let mut taken = 0;
    let refused = loop {
        match opened.log.append(None, batch("d", None, taken..=taken)) {
            Ok(()) => taken += 1,
            Err(saturated) => break saturated.0,
        }
    };
    assert!((10..1000).contains(&taken), "{taken} were taken");
    let flush = opened.log.clone();
    tokio::join!(async { flush.flush().await.expect("it can be written") }, opened.log.room());
    assert!(opened.log.append(None, refused).is_ok());
}

#[test]
fn a_directory_in_use_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(&config(directory.path()), &[]);
    let second = Log::open(&config(directory.path()), &[], Arc::new(SystemClock::new()), Metrics::new());
    assert!(matches!(second, Err(OpenError::InUse { .. })));
    close(opened);
    close(open(&config(directory.path()), &[]));
}

#[derive(Debug, Clone)]
enum Step {
    Append { device: u8, count: u8 },
    Confirm { sink: usize, share: u8 },
    Flush,
    Crash,
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..3, 1u8..8).prop_map(|(device, count)| Step::Append { device, count }),
        3 => (0usize..2, 0u8..=100).prop_map(|(sink, share)| Step::Confirm { sink, share }),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
        1 => Just(Step::Restart),
    ]
}

/// Runs the steps and keeps, as an oracle, what each device may believe.
async fn live_through(steps: Vec<Step>, deliver: Deliver, history_within: HistoryWithin) {
    const SINKS: [&str; 2] = ["a", "b"];
    let mut directory = tempfile::tempdir().expect("a temporary directory");
    let settings =
        |path: &Path| Store { deliver, history_within, commit_within: Duration::from_millis(5), ..config(path) };
    let mut opened = open(&settings(directory.path()), &SINKS);
    let names = ["d0", "d1", "d2"];
    let mut sent = [0u64; 3];
    let mut acked = [0u64; 3];
    // What each sink received, by seq; a seq must never stand for two readings.
    let mut received: [std::collections::BTreeMap<u64, (String, u64)>; 2] = Default::default();
    for step in steps {
        match step {
            Step::Append { device: d, count } => {
                let name = names[usize::from(d)];
                let mark = opened.log.high_water(&device(name), 1);
                let sent = &mut sent[usize::from(d)];
                let next = *sent + u64::from(count);
                opened.log.append(Some(&mark), batch(name, Some(1), *sent + 1..=next)).expect("there is room");
                *sent = next;
            }
            Step::Confirm { sink, share } => {
                let got = drain(&mut opened, sink).await;
                let upto = got.len() * usize::from(share) / 100;
                for (seq, name, origin) in got.into_iter().take(upto) {
                    let before = received[sink].insert(seq, (name.clone(), origin));
                    assert!(before.is_none_or(|before| before == (name, origin)), "seq {seq} was used twice");
                    opened.cursors[sink].confirm(Seq(seq));
                }
            }
            Step::Flush => opened.log.flush().await.expect("it can be written"),
            Step::Crash | Step::Restart => {
                for (acked, name) in acked.iter_mut().zip(names) {
                    *acked = opened.log.high_water(&device(name), 1).settled();
                }
                if matches!(step, Step::Crash) {
                    let copy = crash(directory.path());
                    close(opened);
                    directory = copy;
                } else {
                    close(opened);
                    acked = sent;
                }
                opened = open(&settings(directory.path()), &SINKS);
                for ((sent, acked), name) in sent.iter_mut().zip(acked).zip(names) {
                    // The device sends again what was not acknowledged.
                    *sent = opened.log.high_water(&device(name), 1).settled().max(acked);
                }
            }
        }
    }
    opened.log.flush().await.expect("it can be written");
    for (sink, received) in received.iter_mut().enumerate() {
        for (seq, name, origin) in drain(&mut opened, sink).await {
            let before = received.insert(seq, (name.clone(), origin));
            assert!(before.is_none_or(|before| before == (name, origin)), "seq {seq} was used twice");
        }
        for (sent, name) in sent.iter().zip(names) {
            let mut origins: Vec<u64> = received.values().filter(|(n, _)| n == name).map(|(_, o)| *o).collect();
            origins.sort_unstable();
            origins.dedup();
            // What was sent and lost before its acknowledgement may have arrived as well.
            let expected: Vec<u64> = (1..=*sent).collect();
            assert!(origins.starts_with(&expected), "{name} at sink {sink}: {origins:?}, not {sent}");
        }
    }
    close(opened);
}

#[tokio::test]
async fn what_comes_from_a_damaged_log_says_nothing_about_a_devices_newer_session() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(&config(directory.path()), &["dead"]);
    let mark = opened.log.high_water(&device("pump"), 8);
    opened.log.append(Some(&mark), batch("pump", Some(8), 1..=5)).expect("there is room");
    opened.log.flush().await.expect("it is written");
    // So salvage appends what it finds.
    opened.log.append(None, batch("pump", Some(7), 1..=100)).expect("there is room");
    opened.log.flush().await.expect("it is written");
    let copy = crash(directory.path());
    let again = open(&config(copy.path()), &["dead"]);
    assert_eq!(again.log.high_water(&device("pump"), 8).settled(), 5);
    close(again);
    close(opened);
}

#[tokio::test]
async fn a_purge_after_a_crash_leaves_devices_marks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(&config(directory.path()), &["dead"]);
    let mark = opened.log.high_water(&device("pump"), 7);
    opened.log.append(Some(&mark), batch("pump", Some(7), 1..=10)).expect("there is room");
    opened.log.flush().await.expect("it is written");
    let copy = crash(directory.path());
    close(opened);
    let purged = purge(copy.path(), None, Before::Everything, Timestamp(0), true).expect("nobody uses it");
    assert_eq!(purged.readings, 10);
    let again = open(&config(copy.path()), &["dead"]);
    assert_eq!(again.log.high_water(&device("pump"), 7).settled(), 10, "what it sends again is known");
    close(again);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    /// Promises 1 to 3 over any order of appends, confirmations, commits, crashes and restarts.
    #[test]
    fn whatever_happens_each_acknowledged_reading_reaches_each_sink(
        steps in proptest::collection::vec(any_step(), 1..40),
        deliver in prop_oneof![Just(Deliver::AtOnce), Just(Deliver::AfterCommit)],
        history in prop_oneof![Just(HistoryWithin::Off), Just(HistoryWithin::Within(Duration::from_millis(20)))],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("a runtime").block_on(live_through(steps, deliver, history));
    }
}
