//! What the log costs a reading: segments alone, and appends that are committed.
//!
//! `cargo bench --bench log`; figures are medians over batches of readings of
//! four values from 100 devices, as in `docs/figures.md`.

#![allow(clippy::expect_used, reason = "a bench fails by panicking")]

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use std::sync::Arc;
use std::time::Duration;
use tidegate::clock::SystemClock;
use tidegate::config::{Deliver, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, Channels, DeviceId, Reading, Seq, SequencedBatch, Timestamp, Value};
use tidegate::store::segment::{Encoder, decode};
use tidegate::store::{Log, Opened};

fn main() {
    divan::main();
}

/// One reading of one of 100 devices: two decimals, a counter and a state.
fn batch(n: u32, channels: &Channels, devices: &[DeviceId]) -> Batch {
    let noise = f64::from(n.wrapping_mul(2_654_435_761) >> 28);
    let values = [
        Value::Float((2150.0 + noise).round() / 100.0),
        Value::Float((455.0 - noise).round() / 10.0),
        Value::Integer(i64::from(n / 100)),
        Value::Boolean(n % 1000 < 500),
    ];
    let time = Timestamp(1_763_859_723_000_000 + i64::from(n) * 10_000);
    let reading = Reading::new(u64::from(n / 100), time, channels.clone(), values.into()).expect("four of each");
    let device = devices[n as usize % devices.len()].clone();
    Batch { device, session: Some(7), basis: Basis::Wall, readings: vec![reading] }
}

fn devices() -> Vec<DeviceId> {
    (0..100).map(|n| DeviceId::new(&format!("device-{n}")).expect("a valid name")).collect()
}

fn channels() -> Channels {
    ["temperature", "humidity", "count", "open"].map(|name| ChannelName::new(name).expect("a valid name")).into()
}

fn sequenced(count: u32) -> Vec<SequencedBatch> {
    let (channels, devices) = (channels(), devices());
    let number = |n| SequencedBatch { first: Seq(u64::from(n) + 1), batch: Arc::new(batch(n, &channels, &devices)) };
    (0..count).map(number).collect()
}

#[divan::bench(args = [64, 1000, 16_000])]
fn segment_encode(bencher: Bencher, count: u32) {
    let batches = sequenced(count);
    let mut encoder = Encoder::new().expect("zstd works");
    bencher.counter(ItemsCount::new(count)).bench_local(|| encoder.encode(black_box(&batches)).expect("it fits"));
}

#[divan::bench(args = [64, 1000, 16_000])]
fn segment_decode(bencher: Bencher, count: u32) {
    let encoded = Encoder::new().and_then(|mut encoder| encoder.encode(&sequenced(count)));
    let segment = encoded.expect("it fits").remove(0);
    let decoded = || decode(&segment.header, black_box(&segment.block)).expect("it is whole");
    bencher.counter(ItemsCount::new(count)).bench_local(decoded);
}

/// Appends of one reading each until a segment of `count` is committed and flushed to disk.
#[divan::bench(args = [64, 1000, 16_000], sample_count = 20)]
fn append_and_commit(bencher: Bencher, count: u32) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Store {
        directory: directory.path().to_owned(),
        commit_within: Duration::from_secs(3600),
        deliver: Deliver::AfterCommit,
        ..Store::default()
    };
    let opened = Log::open(&config, &[], Arc::new(SystemClock::new()), Metrics::new()).expect("the log opens");
    let Opened { log, writer, .. } = opened;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (channels, devices) = (channels(), devices());
    bencher
        .counter(ItemsCount::new(count))
        .with_inputs(|| (0..count).map(|n| batch(n, &channels, &devices)).collect::<Vec<_>>())
        .bench_local_values(|batches| {
            for batch in batches {
                log.append(None, batch).expect("there is room");
            }
            runtime.block_on(log.flush()).expect("it can be written");
        });
    log.close();
    writer.join();
}
