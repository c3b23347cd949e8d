//! Identities across old copies of the log: an image of the card, or files from a backup,
//! that is put back after the gateway ran on.

use crate::support::broker::Broker;
use crate::support::device::Talk;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use bytesize::ByteSize;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tidegate::clock::{Clock, Now, SystemClock};
use tidegate::config::{Deliver, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{
    Basis, Batch, BootId, ChannelName, DeviceId, Epoch, Epochs, Reading, Seq, SequencedBatch, Timestamp, Value,
};
use tidegate::store::{Log, LogEvent, Opened};

/// A machine's clock; tests have several boots.
struct Machine(SystemClock, BootId);

impl Clock for Machine {
    fn now(&self) -> Now {
        self.0.now()
    }

    fn boot(&self) -> BootId {
        self.1
    }
}

const BOOT: BootId = BootId([1; 16]);

fn config(directory: &Path, runtime: Option<&Path>) -> Store {
    Store {
        directory: directory.to_owned(),
        runtime_directory: runtime.map(Path::to_owned),
        commit_within: Duration::ZERO,
        deliver: Deliver::AfterCommit,
        max_size: ByteSize::mib(64),
        ..Store::default()
    }
}

fn open(config: &Store, boot: BootId) -> Opened {
    let clock = Arc::new(Machine(SystemClock::new(), boot));
    Log::open(config, &["cloud"], clock, Metrics::new()).expect("the log opens")
}

fn close(opened: Opened) {
    opened.log.close();
    opened.writer.join();
}

/// Readings without an identity of their device's: only the log's tells them apart.
async fn append(opened: &Opened, contents: std::ops::RangeInclusive<u64>) {
    let channels: tidegate::model::Channels = [ChannelName::new("n").expect("a valid name")].into();
    let reading = |n: u64| {
        let values = [Value::Integer(i64::try_from(n).expect("small"))].into();
        Reading::new(n, Timestamp(0), channels.clone(), values).expect("one each")
    };
    let device = DeviceId::new("pump").expect("a valid name");
    let batch = Batch { device, session: None, basis: Basis::Wall, readings: contents.map(reading).collect() };
    opened.log.append(None, batch).expect("there is room");
    opened.log.flush().await.expect("it can be written");
}

/// Delivers all that waits: the identity of each reading, and what it holds.
async fn deliver(opened: &mut Opened) -> Vec<((Epoch, u64), i64)> {
    let cursor = &mut opened.cursors[0];
    let mut delivered = Vec::new();
    loop {
        let after = cursor.position();
        let batches = cursor.fetch(after, 1000).await.expect("it reads");
        let Some(last) = batches.last().map(SequencedBatch::last) else { return delivered };
        for (seq, _, reading) in batches.iter().flat_map(|batch| batch.after(after)) {
            let Value::Integer(content) = reading.values()[0] else { panic!("it was one") };
            delivered.push(((opened.log.epochs().of(seq).0, seq.0), content));
        }
        cursor.confirm(last);
    }
}

async fn events(opened: &mut Opened) -> Vec<LogEvent> {
    let cursor = &mut opened.cursors[0];
    let (mut events, mut after) = (Vec::new(), cursor.event_position());
    loop {
        let more = cursor.events(after).await.expect("they can be read");
        let Some(last) = more.last() else { return events };
        after = last.id;
        events.extend(more);
    }
}

fn image(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for file in ["log.db-wal", "log.db"] {
        if directory.join(file).exists() {
            std::fs::copy(directory.join(file), copy.path().join(file)).expect("a file that can be copied");
        }
    }
    copy
}

fn put_back(image: &TempDir, directory: &Path) {
    for file in ["log.db", "log.db-wal", "log.db-shm"] {
        let _ = std::fs::remove_file(directory.join(file));
        if image.path().join(file).exists() {
            std::fs::copy(image.path().join(file), directory.join(file)).expect("a file that can be copied");
        }
    }
}

/// A log of 200 readings is copied, runs on to 500, and is put back; then others come. The
/// last event must say so. With `runs`, the copy is made while the log runs, after it has
/// told of something.
async fn restored(runtime: Option<&Path>, boots: bool, runs: bool) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path(), runtime);
    let mut known: HashMap<(Epoch, u64), i64> = HashMap::new();
    let mut note = |delivered: Vec<((Epoch, u64), i64)>| {
        for (identity, content) in delivered {
            let before = *known.entry(identity).or_insert(content);
            assert_eq!(before, content, "{identity:?} names two readings");
        }
    };
    let mut opened = open(&config, BOOT);
    append(&opened, 1..=200).await;
    note(deliver(&mut opened).await);
    let mut copy = image(directory.path());
    if !runs {
        close(opened);
        copy = image(directory.path());
        opened = open(&config, BOOT);
    }
    append(&opened, 201..=500).await;
    note(deliver(&mut opened).await);
    for seq in 1..=5 {
        opened.cursors[0].refuse(Seq(seq), "too_large");
        opened.log.flush().await.expect("it can be written");
        append(&opened, 500 + seq..=500 + seq).await;
    }
    let before: BTreeSet<(u32, u64)> =
        events(&mut opened).await.iter().map(|event| (opened.log.epoch().0, event.id)).collect();
    let (was, to) = (opened.log.epoch(), known_last(&opened));
    close(opened);

    put_back(&copy, directory.path());
    let mut opened = open(&config, if boots { BootId([2; 16]) } else { BOOT });
    append(&opened, 10_001..=10_900).await;
    note(deliver(&mut opened).await);
    let events = events(&mut opened).await;
    let after: BTreeSet<_> = events.iter().map(|event| (opened.log.epoch().0, event.id)).collect();
    assert!(before.is_disjoint(&after), "an event has the identity of another: {before:?} {after:?}");
    if runtime.is_some() && runs && !boots {
        // The copy is of the same start: what it gives out lies behind all that was.
        assert_eq!(opened.log.epoch(), was);
        assert!(known_last(&opened) > to + 900);
    } else {
        assert_ne!(opened.log.epoch(), was);
        let told = events.iter().rev().find(|event| event.body["type"] == "epoch").expect("it is told");
        let first = told.body["first"].as_u64().expect("a seq");
        assert_eq!(opened.log.epochs().of(Seq(first)).0, opened.log.epoch());
        assert_eq!(told.body["begins"], opened.log.epoch().0);
        assert_eq!(opened.log.epochs().of(Seq(first - 1)).0.0, told.body["was"].as_u64().expect("an epoch") as u32);
    }
    close(opened);
}

/// The last seq that was given out and lies on the disk.
fn known_last(opened: &Opened) -> u64 {
    opened.cursors[0].position().0
}

#[tokio::test]
async fn no_identity_names_two_readings_when_an_old_copy_of_the_log_is_put_back() {
    let runtime = tempfile::tempdir().expect("a temporary directory");
    for (boots, runs) in [(true, false), (true, true), (false, false), (false, true)] {
        restored(Some(runtime.path()), boots, runs).await;
        restored(None, boots, runs).await;
    }
}

#[tokio::test]
async fn a_start_that_proves_that_its_log_is_the_latest_goes_on_in_its_epoch() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runtime = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path(), Some(runtime.path()));
    let opened = open(&config, BOOT);
    let epoch = opened.log.epoch();
    append(&opened, 1..=10).await;
    close(opened);
    // After a stop, and after a kill: the files as they lay there.
    let opened = open(&config, BOOT);
    append(&opened, 11..=20).await;
    let killed = image(directory.path());
    assert_eq!(opened.log.epoch(), epoch);
    close(opened);
    put_back(&killed, directory.path());
    let mut opened = open(&config, BOOT);
    assert_eq!(opened.log.epochs(), &Epochs::from(epoch));
    assert!(events(&mut opened).await.iter().all(|event| event.body["type"] != "epoch"));
    close(opened);
    // What lies in memory does not outlive a boot.
    let mut opened = open(&config, BootId([2; 16]));
    assert_ne!(opened.log.epoch(), epoch);
    let was = opened.log.epochs().former().to_vec();
    assert_eq!(was.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>(), [epoch]);
    assert_eq!(deliver(&mut opened).await.len(), 20);
    close(opened);
    let opened = open(&config, BootId([3; 16]));
    assert_eq!(opened.log.epochs().former(), was, "an epoch without a seq needs no range");
}

#[tokio::test]
async fn readings_that_wait_keep_their_epoch_and_a_consumer_is_told_where_another_begins() {
    let mut broker = Broker::start().await.behind_a_proxy().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let summary = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["subscribe", &broker.url(), "--gateway", "gw", "--count", "30"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary runs");
    broker.stop().await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "");
    for first in [1, 11, 21] {
        gateway.start().await;
        let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 77).await;
        talk.readings(1, first, 10).await;
        talk.acked(first + 9).await;
        gateway.kill();
    }
    broker.resume().await;
    gateway.start().await;
    subscriber.heard(30).await;
    let deliveries = subscriber.look(|heard| heard.deliveries.clone());
    let mut epochs: Vec<(Epoch, BTreeSet<u64>)> = Vec::new();
    for (_, delivery) in deliveries {
        if epochs.last().is_none_or(|(epoch, _)| *epoch != delivery.epoch) {
            epochs.push((delivery.epoch, BTreeSet::new()));
        }
        let origins = delivery.readings.iter().filter_map(|reading| reading.origin);
        epochs.last_mut().expect("just made").1.extend(origins.map(|(_, seq)| seq));
    }
    let each: Vec<_> = epochs.iter().map(|(_, origins)| origins.clone()).collect();
    assert_eq!(each, [(1..=10).collect(), (11..=20).collect(), (21..=30).collect::<BTreeSet<u64>>()]);
    let told = || {
        let of = |event: &serde_json::Value| (event["was"].as_u64(), event["begins"].as_u64(), event["first"].as_u64());
        subscriber.look(|heard| heard.events.iter().filter(|e| e["type"] == "epoch").map(of).collect::<Vec<_>>())
    };
    eventually("each new epoch is told", async || told().len() >= 3).await;
    let was: Vec<_> = told().iter().filter_map(|(was, ..)| *was).collect();
    assert_eq!(was, epochs.iter().map(|(epoch, _)| u64::from(epoch.0)).collect::<Vec<_>>());
    // What a crash skipped is told of the epoch that it was of.
    let of_epochs: BTreeSet<_> = subscriber.look(|heard| {
        let gaps = heard.events.iter().filter(|event| event["type"] == "gap");
        gaps.filter_map(|event| event["of_epoch"].as_u64()).collect()
    });
    assert_eq!(of_epochs, was.iter().copied().collect());

    let output = tokio::task::spawn_blocking(|| summary.wait_with_output()).await.expect("no panic").expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("unexplained 0 (0 seqs)"), "{said}");

    let log = gateway.directory().join("log");
    gateway.terminate().await;
    let export = |arguments: &[&str]| {
        let file = log.join("log.db").display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("queue").args(arguments).args(["--file", &file]);
        String::from_utf8(command.output().expect("it runs").stdout).expect("text")
    };
    let exported = export(&["export"]);
    let exported: Vec<serde_json::Value> =
        exported.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    for (place, line) in exported.iter().enumerate() {
        assert_eq!(line["epoch"].as_u64(), Some(was[place / 10]), "{line}");
    }
    assert_eq!(exported.len(), 30);
    let stats: serde_json::Value = serde_json::from_str(&export(&["stats", "--json"])).expect("an object");
    assert_eq!(stats["former_epochs"].as_array().map(Vec::len), Some(3), "{stats}");
}
