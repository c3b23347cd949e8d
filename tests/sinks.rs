//! Sinks that are away, come, go, and come back: what each gets, and what it is told.

use crate::support::store::small as config;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate::backoff::{Backoff, Failure};
use tidegate::clock::{Clock, Now, SystemClock};
use tidegate::config::{Deliver, HistoryWithin, Start, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, Channels, DeviceId, Reading, Seq, SequencedBatch, Timestamp, Value};
use tidegate::sink::{Budget, Destination, Encoded, Liveness, Outcome, Part, Pump, SinkConnection, Unencodable};
use tidegate::store::{Change, ConfiguredSink, Log, LogEvent, Opened, forget_sink, rename_sink};

fn open(config: &Store, sinks: &[&str]) -> (Opened, Metrics) {
    let metrics = Metrics::new();
    let opened = Log::open(config, sinks, Arc::new(SystemClock::new()), metrics.clone()).expect("the log opens");
    (opened, metrics)
}

fn close(opened: Opened) {
    opened.log.close();
    opened.writer.join();
}

/// Appends `count` readings of `bytes` that do not compress, and has them written.
async fn write(opened: &Opened, count: u64, bytes: usize) {
    let channel: Channels = [ChannelName::new("noise").expect("a valid name")].into();
    let reading = |origin: u64| {
        let noise: Box<[u8]> = std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect();
        Reading::new(origin, Timestamp(origin as i64), channel.clone(), [Value::Bytes(noise)].into()).expect("it fits")
    };
    for first in (1..=count).step_by(20) {
        let readings = (first..=count.min(first + 19)).map(reading).collect();
        let device = DeviceId::new("pump").expect("a valid name");
        let mut wanted = Batch { device, session: Some(1), basis: Basis::Wall, readings };
        while let Err(saturated) = opened.log.append(None, wanted) {
            wanted = saturated.0;
            opened.log.room().await;
        }
    }
    opened.log.flush().await.expect("it can be written");
}

/// Has so many events written that tell of `kind`; `known` have been written before.
async fn tell(opened: &Opened, known: &mut u64, kind: &str, count: u64) {
    let event = |n| Change { command: None, event: Some(format!("{{\"type\":\"{kind}\",\"n\":{n}}}")) };
    opened.log.change_commands((0..count).map(event).collect());
    *known = opened.log.commands_written(*known).await;
}

/// All events that wait for sink number `sink`, but those that each start has.
async fn events(opened: &mut Opened, sink: usize) -> Vec<LogEvent> {
    let cursor = &mut opened.cursors[sink];
    let (mut after, mut all) = (cursor.event_position(), Vec::new());
    loop {
        let events = cursor.events(after).await.expect("events");
        let Some(last) = events.last() else { return all };
        after = last.id;
        all.extend(events.into_iter().filter(|event| event.body["type"] != "epoch"));
    }
}

/// Of each reason, the gaps among `events`: first, last and how many readings `sink` misses.
fn gaps(events: &[LogEvent], sink: &str) -> BTreeMap<String, Vec<(u64, u64, u64)>> {
    let mut gaps: BTreeMap<String, Vec<(u64, u64, u64)>> = BTreeMap::new();
    for LogEvent { body, .. } in events.iter().filter(|event| event.body["type"] == "gap") {
        let number = |key: &str| body[key].as_u64().expect("a number");
        let lost = body["undelivered"][sink].as_u64().expect("it is for this sink");
        let reason = body["reason"].as_str().expect("a reason").to_owned();
        gaps.entry(reason).or_default().push((number("first"), number("last"), lost));
    }
    gaps
}

fn lost(gaps: &BTreeMap<String, Vec<(u64, u64, u64)>>) -> u64 {
    gaps.values().flatten().map(|(_, _, lost)| lost).sum()
}

/// The seqs that are left for sink number `sink`.
async fn left(opened: &mut Opened, sink: usize) -> Vec<u64> {
    let cursor = &mut opened.cursors[sink];
    let (mut after, mut all) = (cursor.position(), Vec::new());
    loop {
        let batches = cursor.fetch(after, 100_000).await.expect("the log reads");
        let Some(last) = batches.last().map(SequencedBatch::last) else { return all };
        all.extend(batches.iter().flat_map(|batch| batch.after(after).map(|(seq, ..)| seq.0).collect::<Vec<_>>()));
        after = last;
    }
}

fn counted(metrics: &Metrics, name: &str, labels: &str) -> u64 {
    let start = format!("tidegate_{name}_total{{{labels}}} ");
    metrics.encode().lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |n| n.parse().expect("a number"))
}

fn rows(directory: &Path, table: &str) -> u64 {
    let database = rusqlite::Connection::open(directory.join("log.db")).expect("it opens");
    database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a table")
}

#[tokio::test]
async fn every_reading_dropped_in_an_outage_is_told_whatever_else_happened_meanwhile() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (mut opened, metrics) = open(&config(directory.path()), &["dead"]);
    let mut known = 0;
    write(&opened, 4000, 500).await;
    for _ in 0..101 {
        tell(&opened, &mut known, "presence", 100).await;
    }
    write(&opened, 4000, 500).await;
    let dropped = counted(&metrics, "sink_dropped", "sink=\"dead\",reason=\"max_size\"");
    assert!(dropped > 4000, "{dropped}");
    let events = events(&mut opened, 0).await;
    let gaps = gaps(&events, "dead");
    assert_eq!(lost(&gaps), dropped);
    assert_eq!(gaps["max_size"].len(), 1, "they are one range: {gaps:?}");
    assert_eq!(lost(&gaps) + left(&mut opened, 0).await.len() as u64, 8000);
    close(opened);
}

#[tokio::test]
async fn with_a_live_a_dead_and_a_flapping_sink_the_log_keeps_few_rows_and_tells_each_its_own() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (mut opened, metrics) = open(&config(directory.path()), &["live", "dead", "flapping"]);
    let mut most = 0;
    for round in 0..150u64 {
        write(&opened, 200, 500).await;
        let upto = left(&mut opened, 0).await.last().copied().expect("there are some");
        opened.cursors[0].confirm(Seq(upto));
        for event in events(&mut opened, 0).await {
            opened.cursors[0].confirm_events(event.id);
        }
        // It comes and goes, and confirms nothing.
        opened.cursors[2].listen(round % 2 == 0);
        most = most.max(rows(directory.path(), "event") + rows(directory.path(), "gap"));
    }
    assert!(most < 20, "{most} rows");
    let all = 150 * 200;
    for (sink, name) in [(1, "dead"), (2, "flapping")] {
        opened.cursors[sink].listen(false);
        let dropped = counted(&metrics, "sink_dropped", &format!("sink=\"{name}\",reason=\"max_size\""));
        let mut told = 0;
        loop {
            let events = events(&mut opened, sink).await;
            told += lost(&gaps(&events, name));
            let Some(last) = events.last() else { break };
            // What was told before is told first, and the rest once that is confirmed.
            opened.cursors[sink].confirm_events(last.id);
        }
        assert_eq!(told, dropped, "{name}");
        assert_eq!(told + left(&mut opened, sink).await.len() as u64, all, "{name}");
    }
    assert_eq!(counted(&metrics, "sink_dropped", "sink=\"live\",reason=\"max_size\""), 0);
    close(opened);
}

#[tokio::test]
async fn of_too_many_events_presence_goes_first_and_what_went_is_counted_and_told() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { max_events: 100, ..config(directory.path()) };
    let (mut opened, metrics) = open(&config, &["dead"]);
    let mut known = 0;
    tell(&opened, &mut known, "command-result", 50).await;
    for _ in 0..10 {
        tell(&opened, &mut known, "presence", 30).await;
    }
    let of = |events: &[LogEvent], kind: &str| events.iter().filter(|event| event.body["type"] == *kind).count() as u64;
    let lost = |events: &[LogEvent], of: &str| -> u64 {
        let lost = events.iter().filter(|event| event.body["type"] == "events_lost" && event.body["of"] == *of);
        lost.map(|event| event.body["count"].as_u64().expect("a count")).sum()
    };
    let metric = |kind: &str| counted(&metrics, "sink_events_dropped", &format!("sink=\"dead\",reason=\"{kind}\""));
    let first = events(&mut opened, 0).await;
    assert_eq!(of(&first, "command-result"), 50, "presence goes first");
    assert!(of(&first, "presence") <= 56);
    assert_eq!(of(&first, "presence") + lost(&first, "presence"), 300);
    assert_eq!((metric("presence"), metric("other")), (lost(&first, "presence"), 0));

    for _ in 0..10 {
        tell(&opened, &mut known, "command-result", 30).await;
    }
    // What told of presence was not confirmed: it is told again, and then the rest.
    let mut all = BTreeMap::new();
    loop {
        let events = events(&mut opened, 0).await;
        let Some(last) = events.last() else { break };
        opened.cursors[0].confirm_events(last.id);
        all.extend(events.into_iter().map(|event| (event.id, event)));
    }
    let all: Vec<_> = all.into_values().collect();
    assert_eq!(of(&all, "presence") + lost(&all, "presence"), 300);
    assert_eq!(of(&all, "command-result") + lost(&all, "other"), 350);
    assert_eq!(metric("other"), lost(&all, "other"));
    close(opened);
}

#[tokio::test]
async fn a_sink_that_comes_back_goes_on_where_it_stood_and_is_told_what_went_meanwhile() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path());
    let (opened, _) = open(&config, &["stays", "goes"]);
    write(&opened, 100, 500).await;
    opened.cursors[0].confirm(Seq(100));
    opened.cursors[1].confirm(Seq(40));
    close(opened);

    let (mut opened, metrics) = open(&config, &["stays"]);
    let notes = opened.log.health().notes.join("");
    assert!(notes.contains("goes is not configured any more, and 60 readings"), "{notes}");
    assert!(notes.contains("rename-sink goes NEW") && notes.contains("forget-sink goes"), "{notes}");
    // What waits for it is history: it goes before what the other one has not got.
    for _ in 0..40 {
        write(&opened, 100, 500).await;
        let upto = left(&mut opened, 0).await.last().copied().expect("there are some");
        opened.cursors[0].confirm(Seq(upto - 1));
    }
    assert_eq!(counted(&metrics, "readings_dropped", "reason=\"max_size\""), 0, "nobody that is configured misses any");
    let dropped = counted(&metrics, "sink_dropped", "sink=\"goes\",reason=\"max_size\"");
    assert!(dropped > 1000, "{dropped}");
    close(opened);

    let (mut opened, _) = open(&config, &["stays", "goes"]);
    assert_eq!(opened.log.health().notes, Vec::<String>::new());
    let left = left(&mut opened, 1).await;
    let told = gaps(&events(&mut opened, 1).await, "goes");
    assert_eq!(told["max_size"], [(41, left[0] - 1, dropped)]);
    assert_eq!(left.len() as u64 + dropped, 4100 - 40);
    assert_eq!(events(&mut opened, 0).await, [], "it concerns nobody else");
    close(opened);
}

#[tokio::test]
async fn readings_that_are_kept_nowhere_are_told_to_a_sink_that_comes_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store {
        history_within: HistoryWithin::Off,
        commit_within: Duration::from_secs(3600),
        deliver: Deliver::AtOnce,
        ..config(directory.path())
    };
    let (opened, _) = open(&config, &["stays", "goes"]);
    close(opened);
    let (opened, _) = open(&config, &["stays"]);
    let channel: Channels = [ChannelName::new("n").expect("a valid name")].into();
    let reading = |n| Reading::new(n, Timestamp(0), channel.clone(), [Value::Integer(1)].into()).expect("it fits");
    let device = DeviceId::new("pump").expect("a valid name");
    let batch = Batch { device, session: Some(1), basis: Basis::Wall, readings: (1..=30).map(reading).collect() };
    opened.log.append(None, batch).expect("there is room");
    opened.cursors[0].confirm(Seq(30));
    close(opened);
    let (mut opened, _) = open(&config, &["stays", "goes"]);
    assert_eq!(left(&mut opened, 1).await, Vec::<u64>::new());
    assert_eq!(gaps(&events(&mut opened, 1).await, "goes")["no_history"], [(1, 30, 30)]);
    close(opened);
}

/// A clock that stands still until it is told.
struct Manual(Mutex<Now>);

impl Clock for Manual {
    fn now(&self) -> Now {
        *self.0.lock()
    }
}

#[tokio::test]
async fn a_sink_that_stays_away_is_forgotten_and_the_others_are_told_what_was_kept_for_it() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store { forget_sinks_after: 10 * DAY, ..config(directory.path()) };
    let start = Now { wall: Timestamp(1_800_000_000_000_000), trusted: true, monotonic: Duration::ZERO };
    let clock = Arc::new(Manual(Mutex::new(start)));
    let metrics = Metrics::new();
    let open = |sinks: &[&str]| Log::open(&config, sinks, clock.clone(), metrics.clone()).expect("the log opens");
    let opened = open(&["stays", "goes"]);
    write(&opened, 100, 50).await;
    opened.cursors[0].confirm(Seq(100));
    opened.cursors[1].confirm(Seq(40));
    close(opened);
    let mut opened = open(&["stays"]);
    clock.0.lock().monotonic = 9 * DAY;
    write(&opened, 1, 50).await;
    assert_eq!(opened.log.health().notes.len(), 1);
    clock.0.lock().monotonic = 11 * DAY;
    write(&opened, 1, 50).await;
    assert_eq!(opened.log.health().notes, Vec::<String>::new());
    assert_eq!(counted(&metrics, "sink_dropped", "sink=\"goes\",reason=\"forgotten\""), 61);
    assert_eq!(gaps(&events(&mut opened, 0).await, "goes")["forgotten"], [(41, 101, 61)]);
    close(opened);

    // It is a new one now.
    let mut opened = open(&["stays", "goes"]);
    assert_eq!(left(&mut opened, 1).await, (1..=102).collect::<Vec<_>>());
    close(opened);
}

#[tokio::test]
async fn a_new_sink_begins_where_the_configuration_says() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path());
    let open = |sinks: &[(&str, Start)]| {
        let sinks: Vec<_> = sinks.iter().map(|(name, start)| ConfiguredSink { name, start: *start }).collect();
        let clock = Arc::new(SystemClock::new());
        Log::open_with(&config, &[], &sinks, clock, Metrics::new()).expect("the log opens")
    };
    let opened = open(&[("first", Start::Oldest)]);
    write(&opened, 4000, 500).await;
    opened.cursors[0].confirm(Seq(4000));
    close(opened);
    let mut opened = open(&[("first", Start::Oldest), ("all", Start::Oldest), ("fresh", Start::Now)]);
    assert_eq!(opened.cursors[1].pending(), left(&mut opened, 1).await.len() as u64);
    let kept = left(&mut opened, 1).await;
    assert!(kept.len() > 500 && kept.last() == Some(&4000), "{} of {:?}", kept.len(), kept.last());
    assert_eq!(events(&mut opened, 1).await, [], "what went before it was there is no loss");
    assert_eq!(left(&mut opened, 2).await, Vec::<u64>::new());
    write(&opened, 5, 500).await;
    assert_eq!(left(&mut opened, 2).await, (4001..=4005).collect::<Vec<_>>());
    assert_eq!(left(&mut opened, 0).await, (4001..=4005).collect::<Vec<_>>());
    close(opened);
}

#[tokio::test]
async fn a_renamed_sink_takes_over_place_and_losses_by_command() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path());
    let (opened, metrics) = open(&config, &["old"]);
    write(&opened, 4000, 500).await;
    opened.cursors[0].confirm(Seq(10));
    let dropped = counted(&metrics, "sink_dropped", "sink=\"old\",reason=\"max_size\"");
    close(opened);
    // The new name is tried before the command is known.
    let (opened, _) = open(&config, &["new"]);
    opened.cursors[0].confirm(Seq(4000));
    let running = rename_sink(directory.path(), "old", "new").expect_err("it runs");
    assert!(format!("{running:#}").contains("stop the gateway first"), "{running:#}");
    close(opened);
    let unknown = rename_sink(directory.path(), "odl", "new").expect_err("there is none").to_string();
    assert!(unknown.contains("no sink \"odl\" in the log; it has new, old"), "{unknown}");
    let waiting = rename_sink(directory.path(), "old", "new").expect("it can be");

    let (mut opened, _) = open(&config, &["new"]);
    assert_eq!(opened.log.health().notes, Vec::<String>::new());
    let left = left(&mut opened, 0).await;
    assert_eq!(left.len() as u64, waiting);
    assert_eq!(lost(&gaps(&events(&mut opened, 0).await, "new")), dropped);
    assert_eq!(left.len() as u64 + dropped, 4000);
    close(opened);
}

#[tokio::test]
async fn a_sink_is_forgotten_by_command_and_only_with_a_yes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path());
    let (opened, _) = open(&config, &["stays", "goes"]);
    write(&opened, 100, 50).await;
    opened.cursors[1].confirm(Seq(40));
    close(opened);
    let forget = |really| forget_sink(directory.path(), "goes", Timestamp(0), really).expect("it can be");
    assert_eq!((forget(false), forget(true)), (60, 60));
    forget_sink(directory.path(), "goes", Timestamp(0), true).expect_err("there is none any more");
    let (mut opened, _) = open(&config, &["stays"]);
    assert_eq!(opened.log.health().notes, Vec::<String>::new());
    assert_eq!(gaps(&events(&mut opened, 0).await, "goes")["forgotten"], [(41, 100, 60)]);
    assert_eq!(left(&mut opened, 0).await.len(), 100);
    close(opened);
}

#[tokio::test]
async fn a_recovered_log_keeps_the_place_of_a_sink_that_is_away_and_what_it_missed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path());
    let (opened, _) = open(&config, &["stays", "goes"]);
    write(&opened, 100, 50).await;
    opened.cursors[0].confirm(Seq(100));
    opened.cursors[1].confirm(Seq(40));
    opened.cursors[1].refuse(Seq(41), "too_large");
    opened.log.flush().await.expect("it can be written");
    close(opened);
    let (opened, _) = open(&config, &["stays"]);
    close(opened);
    let mut bytes = std::fs::read(directory.path().join("log.db")).expect("the database");
    bytes[..100].fill(0xAA);
    std::fs::write(directory.path().join("log.db"), bytes).expect("a write");

    let (mut opened, _) = open(&config, &["stays"]);
    crate::support::eventually("it has recovered", async || {
        events(&mut opened, 0)
            .await
            .iter()
            .any(|event| event.body.get("state").is_some_and(|state| state == "finished"))
    })
    .await;
    close(opened);
    let (mut opened, _) = open(&config, &["stays", "goes"]);
    assert_eq!(left(&mut opened, 1).await, (42..=100).collect::<Vec<_>>());
    let events = events(&mut opened, 1).await;
    let told: Vec<_> = events.iter().filter(|event| event.body.get("undelivered").is_some()).collect();
    assert_eq!((told.len(), &told[0].body["undelivered"]), (1, &serde_json::json!({"goes": 1})));
    assert!(told[0].body.contains_key("of_epoch"), "{told:?}");
    close(opened);
}

/// Confirms whatever it gets.
#[derive(Default)]
struct Stub {
    delivered: Arc<Mutex<BTreeSet<u64>>>,
    /// How often something was to be put together.
    asked: Arc<AtomicU64>,
}

struct StubConnection(VecDeque<u64>);

impl Destination for Stub {
    type Payload = ();
    type Connection = StubConnection;

    async fn connect(&mut self) -> Result<StubConnection, Failure> {
        Ok(StubConnection(VecDeque::new()))
    }

    fn encode(&self, chunk: &[SequencedBatch], after: Seq, _: Budget, _: Now) -> Result<Encoded<()>, Unencodable> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let seqs: Vec<u64> =
            chunk.iter().flat_map(|batch| batch.after(after).map(|(seq, ..)| seq.0).collect::<Vec<_>>()).collect();
        let Some(last) = seqs.last() else { return Err(Unencodable::Nothing) };
        let (readings, last) = (seqs.len() as u64, Seq(*last));
        let part = Part { payload: (), size: 10, readings, first: after.next(), last };
        let encoded = Encoded { payloads: vec![part], upto: last, readings };
        self.delivered.lock().extend(seqs);
        Ok(encoded)
    }

    fn event(&self, _: &LogEvent) {}

    fn lane((): &()) -> &'static str {
        "readings"
    }
}

impl SinkConnection for StubConnection {
    type Payload = ();

    fn window(&self) -> usize {
        8
    }

    fn max_payload(&self) -> usize {
        10_000
    }

    fn tells_size(&self) -> bool {
        true
    }

    fn send(&mut self, token: u64, (): ()) -> Result<(), Failure> {
        self.0.push_back(token);
        Ok(())
    }

    async fn outcome(&mut self) -> Outcome {
        match self.0.pop_front() {
            Some(token) => Outcome::Confirmed(token),
            None => std::future::pending().await,
        }
    }

    async fn close(self, _: Duration) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_place_was_damaged_gets_everything_again_though_older_events_are_gone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path());
    let (mut opened, _) = open(&config, &["a", "b"]);
    let mut known = 0;
    write(&opened, 50, 20).await;
    tell(&opened, &mut known, "presence", 1).await;
    for sink in [0, 1] {
        let event = events(&mut opened, sink).await[0].id;
        opened.cursors[sink].confirm(Seq(20));
        opened.cursors[sink].confirm_events(event);
    }
    write(&opened, 1, 20).await;
    close(opened);
    assert_eq!(rows(directory.path(), "event"), 0, "every sink has confirmed them");
    let database = rusqlite::Connection::open(directory.path().join("log.db")).expect("it opens");
    database.execute("UPDATE sink SET confirmed = confirmed | 32 WHERE name = 'a'", []).expect("an update");
    drop(database);

    let (mut opened, metrics) = open(&config, &["a", "b"]);
    let cursor = opened.cursors.remove(0);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let stub = Stub::default();
    let (delivered, asked) = (stub.delivered.clone(), stub.asked.clone());
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(10), Duration::from_secs(1), 1);
    let liveness = Liveness::new(clock.now().monotonic);
    let pump = Pump::new(stub, cursor, backoff, 10_000, clock, metrics, liveness);
    let stop = tokio::sync::watch::Sender::new(false);
    let task = tokio::spawn(pump.run(stop.subscribe(), Duration::from_secs(1)));
    let all: BTreeSet<u64> = (1..=51).collect();
    crate::support::eventually("all are delivered", async || *delivered.lock() == all).await;
    stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(10), task).await.expect("it stops when told").expect("no panic");
    assert!(asked.load(Ordering::Relaxed) < 100, "it asked for nothing in vain");
    close(opened);
}
