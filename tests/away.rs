//! A store that is away: removed, moved, replaced or read-only under a gateway, or before
//! it starts. Nothing is acknowledged that would be lost, it is said, and it passes.

use crate::support::device::{Device, Talk};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::mount::{Ext4Disk, SmallDisk};
use crate::support::systemd::Systemd;
use bytesize::ByteSize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate::clock::SystemClock;
use tidegate::config::{Deliver, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, DeviceId, Reading, Timestamp, Value};
use tidegate::store::{DiskState, Log, Opened};

const FAILING: &str = "tidegate_store_state{state=\"failing\"}";
const NORMAL: &str = "tidegate_store_state{state=\"normal\"}";

fn open(directory: &Path) -> Opened {
    let config = Store {
        directory: directory.to_owned(),
        commit_within: Duration::ZERO,
        deliver: Deliver::AfterCommit,
        max_size: ByteSize::mib(8),
        ..Store::default()
    };
    Log::open(&config, &["cloud"], Arc::new(SystemClock::new()), Metrics::new()).expect("the log opens")
}

fn append(log: &Log, origins: std::ops::RangeInclusive<u64>) {
    let device = DeviceId::new("pump").expect("a valid name");
    let channels: tidegate::model::Channels = [ChannelName::new("n").expect("a valid name")].into();
    let reading = |origin| {
        let values = [Value::Integer(origin as i64)].into();
        Reading::new(origin, Timestamp(origin as i64), channels.clone(), values).expect("one each")
    };
    let mark = log.high_water(&device, 1);
    let batch = Batch { device, session: Some(1), basis: Basis::Wall, readings: origins.map(reading).collect() };
    log.append(Some(&mark), batch).expect("there is room");
}

fn settled(log: &Log) -> u64 {
    log.high_water(&DeviceId::new("pump").expect("a valid name"), 1).settled()
}

async fn failure(log: &Log) -> String {
    let mut failure = None;
    eventually("a commit fails", async || {
        failure = log.health().failure;
        failure.is_some()
    })
    .await;
    assert_eq!(log.health().disk, DiskState::Failing);
    failure.expect("one")
}

/// Origins of all that the log has for its sink.
async fn left(opened: &mut Opened) -> Vec<u64> {
    let cursor = &mut opened.cursors[0];
    let (mut after, mut origins) = (cursor.position(), Vec::new());
    loop {
        let batches = cursor.fetch(after, 100_000).await.expect("the log reads");
        let Some(last) = batches.last().map(tidegate::model::SequencedBatch::last) else { return origins };
        origins.extend(batches.iter().flat_map(|batch| batch.after(after)).map(|(_, _, reading)| reading.origin_seq));
        after = last;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_moved_away_holds_devices_back_and_goes_on_when_it_is_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (store, aside) = (directory.path().join("log"), directory.path().join("aside"));
    let mut opened = open(&store);
    append(&opened.log, 1..=10);
    opened.log.flush().await.expect("it can be written");
    assert_eq!(settled(&opened.log), 10);

    std::fs::rename(&store, &aside).expect("it moves");
    append(&opened.log, 11..=20);
    let why = failure(&opened.log).await;
    assert!(why.contains("log.db is gone") && why.contains("put it back"), "{why}");
    assert_eq!(settled(&opened.log), 10, "what went into a file that nobody finds is not acknowledged");
    assert!(!store.exists(), "no new log is begun in its place");

    std::fs::rename(&aside, &store).expect("it moves back");
    eventually("it is written", async || settled(&opened.log) == 20).await;
    eventually("all is well", async || opened.log.health().disk == DiskState::Normal).await;
    append(&opened.log, 21..=30);
    opened.log.flush().await.expect("it can be written");
    opened.log.close();
    opened.writer.join();
    opened = open(&store);
    assert_eq!(left(&mut opened).await, (1..=30).collect::<Vec<_>>(), "each of them once");
    assert!(!store.join("quarantine").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_file_in_the_logs_place_is_left_alone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(directory.path());
    append(&opened.log, 1..=10);
    opened.log.flush().await.expect("it can be written");
    let path = directory.path().join("log.db");
    std::fs::rename(&path, directory.path().join("mine")).expect("it moves");
    std::fs::write(&path, "theirs").expect("a file");
    append(&opened.log, 11..=20);
    let why = failure(&opened.log).await;
    assert!(why.contains("is not the file that the gateway has written to"), "{why}");
    std::fs::rename(directory.path().join("mine"), &path).expect("it moves back");
    eventually("it is written", async || settled(&opened.log) == 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_ahead_log_that_is_removed_costs_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut opened = open(directory.path());
    append(&opened.log, 1..=10);
    opened.log.flush().await.expect("it can be written");
    std::fs::remove_file(directory.path().join("log.db-wal")).expect("it is there");
    append(&opened.log, 11..=20);
    eventually("it is written", async || settled(&opened.log) == 20).await;
    opened.log.close();
    opened.writer.join();
    opened = open(directory.path());
    assert_eq!(left(&mut opened).await, (1..=20).collect::<Vec<_>>());
    assert!(!directory.path().join("quarantine").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_rm_rf_nothing_is_acknowledged_until_a_restart_begins_a_new_log() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let device = Arc::new(Device::new(1, 200));
    let (running, address) = (device.clone(), gateway.tcp_address());
    let sending = tokio::spawn(async move { running.run_tcp(&address).await });
    eventually("some readings are acknowledged", async || device.acked() >= 20).await;
    std::fs::remove_dir_all(gateway.directory().join("log")).expect("it is there");
    gateway.figure_becomes(FAILING, |failing| failing == 1.0).await;
    let acked = device.acked();
    assert!(acked < 200, "all was sent before the log was gone");
    let (code, ready) = gateway.get("/health/ready").await.expect("it answers");
    assert!(code == 503 && ready.contains("log.db is gone"), "{ready}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(device.acked(), acked);
    assert_eq!(gateway.log().matches("log.db is gone").count(), 1, "{}", gateway.log());
    assert!(gateway.terminate().await.success());
    assert!(gateway.log().contains("the log could not be written while stopping"), "{}", gateway.log());

    gateway.start().await;
    sending.await.expect("the device does not fail");
    assert_eq!(device.acked(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_started_on_a_read_only_disk_waits_and_serves_once_it_can_be_written() {
    let Some(disk) = SmallDisk::mount(16) else { return };
    let store = format!("[store]\ndirectory = \"{}/log\"\nmax_size = \"8MiB\"\n", disk.path().display());
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &store);
    disk.protect(true);
    let mut systemd = Systemd::listen();
    gateway.launch_with(&[("NOTIFY_SOCKET", &systemd.path().display().to_string()), ("WATCHDOG_USEC", "300000")]);
    let mut ready = String::new();
    eventually("it says why it waits", async || {
        assert!(gateway.process().is_running(), "{}", gateway.log());
        let answer = gateway.get("/health/ready").await;
        ready = answer.as_ref().map(|(_, body)| body.clone()).unwrap_or_default();
        answer.is_some_and(|(code, body)| code == 503 && body.contains("can only be read"))
    })
    .await;
    assert_eq!(gateway.figure(FAILING).await, 1.0, "{ready}");
    gateway.says("the log cannot be opened").await;
    assert_eq!(gateway.log().matches("the log cannot be opened").count(), 1, "{}", gateway.log());
    systemd.hear("EXTEND_TIMEOUT_USEC=60000000\nWATCHDOG=1\nSTATUS=opening the log");
    assert!(!systemd.told().contains("READY=1"), "{}", systemd.told());
    disk.protect(false);
    systemd.hear("READY=1");
    gateway.figure_becomes(NORMAL, |normal| normal == 1.0).await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    talk.readings(1, 1, 10).await;
    talk.acked(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_can_be_taken_out_mended_and_put_in_under_a_running_gateway() {
    let Some(disk) = Ext4Disk::mount() else { return };
    let store = format!("[store]\ndirectory = \"{}/log\"\nmax_size = \"8MiB\"\n", disk.path().display());
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &store).started().await;
    let device = Arc::new(Device::new(1, 300));
    let (running, address) = (device.clone(), gateway.tcp_address());
    let sending = tokio::spawn(async move { running.run_tcp(&address).await });
    eventually("some readings are acknowledged", async || device.acked() >= 20).await;
    disk.fail();
    gateway.figure_becomes(FAILING, |failing| failing == 1.0).await;
    eventually("nothing of the gateway is in the way", async || disk.take_out()).await;
    assert!(device.acked() < 300, "all was sent before the disk failed");
    assert!(disk.put_in());
    gateway.figure_becomes(NORMAL, |normal| normal == 1.0).await;
    sending.await.expect("the device does not fail");
    assert_eq!(device.acked(), 300);
    assert!(gateway.process().is_running());
    assert!(gateway.terminate().await.success());
    assert!(!disk.path().join("log/quarantine").exists(), "{}", gateway.log());
}
