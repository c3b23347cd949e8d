//! The gateway's memory under hostile devices, a dead sink and a disk that stands still:
//! base + memory_limit at most, and devices that behave go on.
//!
//! TIDEGATE_TEST_FIREHOSES sets how many devices misbehave; 300 if not given.

use crate::support::device::{POSTCARD, Talk, hello};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::watch::Watch;
use rusqlite::Connection;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate::model::Value;
use tidegate::wire::codec::encode_device;
use tidegate::wire::message::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

fn firehoses() -> u64 {
    std::env::var("TIDEGATE_TEST_FIREHOSES").map_or(300, |n| n.parse().expect("a number of devices"))
}

/// What 300 firehoses may take; more of them need more for their sessions.
fn limit() -> u64 {
    56 + firehoses().saturating_sub(300) * 8 / 1024
}

async fn gateway() -> Gateway {
    let store = "[store]\nmax_pending = \"4MiB\"\nsegment_size = \"1MiB\"\ncommit_within = \"20ms\"\n";
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", store);
    gateway.keys("[gateway]", &format!("memory_limit = \"{}MiB\"\n", limit()));
    gateway.keys("[[tcp]]", "max_frame = \"1MiB\"\nmax_connections = 15000\n");
    gateway.started().await
}

fn bounded(watch: &Watch, what: &str) {
    watch.bounded(limit(), &format!("{} firehoses, {what}", firehoses()));
}

fn frame(message: &DeviceMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_device(message, POSTCARD, &mut bytes);
    bytes
}

/// Is welcomed, then writes `pieces` of bytes as fast as they are taken, and comes again
/// when it is sent away.
async fn firehose(address: String, number: u64, pieces: impl Fn(u64) -> Option<Arc<[u8]>>) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(&address).await {
            let mut welcome = [0; 16];
            let greeting = frame(&hello(&format!("hose-{number}"), fastrand::u64(..), 1));
            if stream.write_all(&greeting).await.is_ok() && stream.read_exact(&mut welcome).await.is_ok() {
                let mut count = 0;
                while let Some(piece) = pieces(count) {
                    if stream.write_all(&piece).await.is_err() {
                        break;
                    }
                    count += 1;
                }
                // Nothing more is said; what is answered is read until the end.
                let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..200))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_frames_that_never_end_stay_within_the_limit_and_do_not_stop_small_ones() {
    let mut gateway = gateway().await;
    let watch = Watch::start(gateway.process().id());
    let mut hoses = JoinSet::new();
    // Each claims a megabyte and sends a quarter of it.
    let mut large = vec![0x12, 0x34, 0x56, 0x7f, 1, 3, 0, 0x0f, 0xff, 0xff];
    large.resize(256 * 1024, 7);
    let large: Arc<[u8]> = large.into();
    for number in 0..firehoses() {
        let (address, large) = (gateway.tcp_address(), large.clone());
        hoses.spawn(firehose(address, number, move |n| (n == 0).then(|| large.clone())));
    }
    gateway.figure_becomes("tidegate_memory_refused_total{reason=\"wait\"}", |n| n >= 1.0).await;
    let mut talk = Talk::persistent(&gateway.tcp_address(), "pump", 1, &AtomicU64::new(0)).await;
    for seq in 1..=50 {
        talk.readings(1, seq, 1).await;
        talk.acked(seq).await;
    }
    // With most of them there, those that hold on to memory that others wait for are sent
    // away.
    gateway.figure_becomes("tidegate_memory_refused_total{reason=\"wait\"}", |n| n >= firehoses() as f64 / 2.0).await;
    gateway.figure_becomes("tidegate_memory_refused_total{reason=\"frame\"}", |n| n >= 1.0).await;
    bounded(&watch, "large frames that never end");
    hoses.shutdown().await;
    eventually("the memory is given back", async || {
        gateway.figure("tidegate_memory_links_bytes").await < 64.0 * 1024.0
    })
    .await;
}

/// Readings whose channels have other names each time: what is held for them is many
/// times what they are on the wire. Every firehose writes the same, and each frame is encoded
/// once: it takes a hundred times as long as to write it, and those that write already would
/// keep the processors from those that have still to say Hello.
#[derive(Default)]
struct Bulk(Mutex<Vec<Arc<[u8]>>>);

impl Bulk {
    /// The frame behind `n` others.
    fn frame(&self, n: u64) -> Arc<[u8]> {
        let mut frames = self.0.lock().expect("no panic");
        for next in frames.len() as u64..=n {
            frames.push(bulky(next * 20 + 1).into());
        }
        frames[n as usize].clone()
    }
}

fn bulky(first: u64) -> Vec<u8> {
    let channel = |seq, i| ChannelRef::Name(format!("channel-{seq}-{i}-{}", "x".repeat(20)));
    let sample = |seq| Sample {
        time: 0,
        values: (0..20).map(|i| (channel(seq, i), Value::Text("some words".into()))).collect(),
    };
    frame(&DeviceMessage::Readings(Readings {
        seq: first,
        sub: None,
        samples: (first..first + 20).map(sample).collect(),
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_sink_and_a_disk_that_stands_still_stay_within_the_limit() {
    let mut gateway = gateway().await;
    let watch = Watch::start(gateway.process().id());
    let mut hoses = JoinSet::new();
    let bulk = Arc::new(Bulk::default());
    for number in 0..firehoses() {
        let bulk = bulk.clone();
        hoses.spawn(firehose(gateway.tcp_address(), number, move |n| Some(bulk.frame(n))));
    }
    // A few may be starved by their neighbours here, on the threads that they share.
    gateway.figure_becomes("tidegate_devices_connected", |devices| devices >= firehoses() as f64 * 0.9).await;
    gateway.figure_becomes("tidegate_readings_stored_total", |stored| stored > 1_000.0).await;
    bounded(&watch, "a dead sink");

    // When nothing can be written: another holds the database.
    let database = Connection::open(gateway.directory().join("log/log.db")).expect("the log");
    database.busy_timeout(Duration::from_secs(60)).expect("a setting");
    database.execute_batch("BEGIN IMMEDIATE").expect("the database to itself");
    let mut before = -1.0;
    eventually("nothing is taken any more", async || {
        let received = gateway.figure("tidegate_readings_received_total").await;
        let still = received == before;
        before = received;
        tokio::time::sleep(Duration::from_secs(1)).await;
        still
    })
    .await;
    bounded(&watch, "a disk that stands still");
    // A device that comes now is welcomed all the same.
    Talk::persistent(&gateway.tcp_address(), "late", 1, &AtomicU64::new(0)).await;

    // Then everything goes on when it can.
    database.execute_batch("ROLLBACK").expect("the end of a transaction");
    gateway.figure_becomes("tidegate_readings_received_total", |received| received > before + 1_000.0).await;
    bounded(&watch, "after the disk went on");
    hoses.shutdown().await;
}
