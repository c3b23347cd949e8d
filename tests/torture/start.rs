//! How long a log of a given size takes to open from a cold page cache, and what it reads.

use bytesize::ByteSize;
use rusqlite::{Connection, params};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate::clock::SystemClock;
use tidegate::config::{Deliver, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, Channels, DeviceId, Reading, Seq, SequencedBatch, Timestamp, Value};
use tidegate::store::segment::{Encoded, Encoder, Header};
use tidegate::store::{Log, Opened, Space, Stepper};

#[derive(clap::Args)]
pub struct Args {
    /// How many readings the logs hold.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000,10000000,100000000")]
    readings: Vec<u64>,
    /// How many of them a segment holds.
    #[arg(long, default_value_t = 1000)]
    segment: u64,
    /// Bytes of each that do not compress, beside a float.
    #[arg(long, default_value_t = 4)]
    noise: usize,
    /// A start that takes longer, other than the first after an upgrade, is a failure.
    #[arg(long, default_value = "1s")]
    within: humantime::Duration,
}

/// The log as its first versions made it, which had no word of what is missing.
const OLD_SCHEMA: &str = "PRAGMA page_size = 1024; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
     PRAGMA application_id = 0x74696465;
     CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
     CREATE TABLE segment (
         first_seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, oldest INTEGER NOT NULL, newest INTEGER NOT NULL,
         raw_length INTEGER NOT NULL, checksum INTEGER NOT NULL, size INTEGER NOT NULL, block BLOB NOT NULL);
     CREATE TABLE sink (name TEXT PRIMARY KEY, confirmed INTEGER NOT NULL) WITHOUT ROWID;
     CREATE TABLE mark (device TEXT PRIMARY KEY, session INTEGER NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID;
     CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, body TEXT NOT NULL);
     ALTER TABLE sink ADD COLUMN event INTEGER NOT NULL DEFAULT 0;
     PRAGMA user_version = 2;";

/// Measures each size; false if a start took too long, or did not find what it should.
pub fn run(args: &Args) -> bool {
    println!("readings     segments        MiB | first after an upgrade | after a crash          | after a clean stop");
    let mut good = true;
    for readings in &args.readings {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let readings = readings.next_multiple_of(args.segment);
        write(directory.path(), readings, args);
        let size = std::fs::metadata(directory.path().join("log.db")).expect("a file").len();
        let mut line = format!("{readings:<12} {:<12} {:>6}", readings / args.segment, size >> 20);
        let mut appended = 0;
        for kind in ["upgrade", "crash", "clean"] {
            cool(directory.path());
            let (before, began) = (account(), Instant::now());
            let mut opened = open(directory.path());
            let (took, after) = (began.elapsed(), account());
            let [device, all] = [0, 1].map(|at| (after[at] - before[at]) as f64 / 1024.0);
            line += &format!(" | {:>6.3} s {device:>8.0} KiB {all:>8.0}", took.as_secs_f64());
            good &= kind == "upgrade" || took <= *args.within;
            good &= opened.cursors[0].pending() == readings + appended;
            for _ in 0..if kind == "upgrade" { 1000 } else { 0 } {
                append(&mut opened, 10);
                appended += 10;
            }
            if kind == "crash" {
                opened.log.close();
                while opened.writer.step() != tidegate::store::Stepped::Closed {}
            }
        }
        println!("{line}");
    }
    println!("(each: seconds, KiB read from the device, KiB read from it and the cache)");
    good
}

/// Writes a log that was stopped cleanly, its segments straight into the table.
fn write(directory: &Path, readings: u64, args: &Args) {
    let db = Connection::open(directory.join("log.db")).expect("a new database");
    db.execute_batch(OLD_SCHEMA).expect("the first schema");
    let meta = "INSERT INTO meta (key, value) VALUES ('epoch', 7), ('reserved', ?1), ('clean', ?2), ('listed', ?3)";
    db.execute(meta, [readings + (1 << 20), readings + 1, readings]).expect("rows");
    db.execute("INSERT INTO sink (name, confirmed) VALUES ('cloud', 0)", []).expect("a row");
    let encoded = Encoder::new().and_then(|mut encoder| {
        encoder.encode(&[SequencedBatch { first: Seq(1), batch: Arc::new(batch(args.segment, args.noise)) }])
    });
    let [Encoded { header, block, .. }] =
        encoded.expect("it encodes").try_into().map_err(|_| "they take several segments").expect("one segment");
    for firsts in
        (1..=readings).step_by(usize::try_from(args.segment).expect("small")).collect::<Vec<_>>().chunks(10_000)
    {
        let transaction = db.unchecked_transaction().expect("a transaction");
        for first in firsts {
            let checksum = checksum(&Header { first: Seq(*first), ..header }, &block);
            transaction
                .prepare_cached("INSERT INTO segment VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")
                .and_then(|mut insert| {
                    let Header { count, oldest, newest, raw_length, .. } = header;
                    insert.execute(params![first, count, oldest.0, newest.0, raw_length, checksum, block.len(), block])
                })
                .expect("a row");
        }
        transaction.commit().expect("it commits");
    }
    db.close().expect("it closes");
}

/// That of a segment without holes; see docs of [`Header`].
fn checksum(header: &Header, block: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&header.first.0.to_le_bytes());
    hash.update(&header.count.to_le_bytes());
    hash.update(&header.oldest.0.to_le_bytes());
    hash.update(&header.newest.0.to_le_bytes());
    hash.update(&header.raw_length.to_le_bytes());
    hash.update(block);
    hash.finalize()
}

fn batch(readings: u64, noise: usize) -> Batch {
    let channels: Channels = ["temperature", "noise"].map(|name| ChannelName::new(name).expect("a valid name")).into();
    let reading = |n: u64| {
        let bytes: Box<[u8]> = std::iter::repeat_with(|| fastrand::u8(..)).take(noise).collect();
        let values = [Value::Float((20.0 + (n as f64 / 50.0).sin()).round()), Value::Bytes(bytes)];
        Reading::new(n, Timestamp(n as i64 * 1_000_000), channels.clone(), values.into()).expect("one each")
    };
    let device = DeviceId::new("pump").expect("a valid name");
    Batch { device, session: Some(7), basis: Basis::Wall, readings: (1..=readings).map(reading).collect() }
}

fn open(directory: &Path) -> Opened<Stepper> {
    let config = Store {
        directory: directory.to_owned(),
        commit_within: Duration::ZERO,
        deliver: Deliver::AfterCommit,
        max_size: ByteSize::gib(64),
        ..Store::default()
    };
    let (clock, gauge) = (Arc::new(SystemClock::new()), Space::gauge(directory));
    Log::open_stepped(&config, &[], &["cloud"], clock, Metrics::new(), gauge).expect("the log opens")
}

fn append(opened: &mut Opened<Stepper>, readings: u64) {
    opened.log.append(None, batch(readings, 100)).expect("there is room");
    opened.writer.step();
}

/// Lets the page cache forget the log's files.
fn cool(directory: &Path) {
    for file in
        std::fs::read_dir(directory).expect("a directory").filter_map(|entry| File::open(entry.ok()?.path()).ok())
    {
        file.sync_all().expect("it syncs");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("it is advice");
    }
}

/// Bytes that this process has read: from the device, and by calls.
fn account() -> [u64; 2] {
    let account = std::fs::read_to_string("/proc/self/io").expect("an account");
    let field = |name: &str| account.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).expect("a number");
    [field("read_bytes: "), field("rchar: ")]
}
