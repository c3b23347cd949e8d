//! What a start of the log reads, and what it finds missing.

use bytesize::ByteSize;
use std::path::Path;
use std::sync::Arc;
use tidegate::clock::SystemClock;
use tidegate::config::{Deliver, Durability, Store};
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, Channels, DeviceId, Reading, SequencedBatch, Timestamp, Value};
use tidegate::store::{Log, Offline, Opened};

fn config(directory: &Path, max_size: ByteSize) -> Store {
    Store {
        directory: directory.to_owned(),
        commit_within: std::time::Duration::ZERO,
        deliver: Deliver::AfterCommit,
        durability: Durability::Normal,
        max_size,
        max_pending: ByteSize::kib(256),
        ..Store::default()
    }
}

fn open_with(config: &Store) -> Opened {
    Log::open(config, &["a", "b"], Arc::new(SystemClock::new()), Metrics::new()).expect("the log opens")
}

fn open(directory: &Path) -> Opened {
    open_with(&config(directory, ByteSize::mib(128)))
}

fn close(opened: Opened) {
    opened.log.close();
    opened.writer.join();
}

/// Readings of so many bytes that do not compress.
fn batch(origins: std::ops::RangeInclusive<u64>, bytes: usize) -> Batch {
    let channels: Channels = [ChannelName::new("noise").expect("a valid name")].into();
    let reading = |origin| {
        let noise: Box<[u8]> = std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect();
        Reading::new(origin, Timestamp(origin as i64), channels.clone(), [Value::Bytes(noise)].into())
            .expect("one each")
    };
    let device = DeviceId::new("pump").expect("a valid name");
    Batch { device, session: Some(7), basis: Basis::Wall, readings: origins.map(reading).collect() }
}

/// Commits ten readings at a time, one segment each.
async fn write(opened: &Opened, origins: std::ops::RangeInclusive<u64>, bytes: usize) {
    let (mut first, last) = origins.into_inner();
    while first <= last {
        let mut wanted = batch(first..=last.min(first + 9), bytes);
        while let Err(saturated) = opened.log.append(None, wanted) {
            wanted = saturated.0;
            opened.log.room().await;
        }
        opened.log.flush().await.expect("it can be written");
        first += 10;
    }
}

/// The origins that a sink has yet to get, which it confirms.
async fn drain(opened: &mut Opened, sink: usize) -> Vec<u64> {
    let cursor = &mut opened.cursors[sink];
    let mut all = Vec::new();
    loop {
        let after = cursor.position();
        let batches = cursor.fetch(after, 100_000).await.expect("the log reads");
        let Some(last) = batches.last().map(SequencedBatch::last) else { return all };
        let seqs = batches.iter().flat_map(|batch| batch.after(after));
        all.extend(seqs.filter_map(|(_, origin, _)| Some(origin?.seq)));
        cursor.confirm(last);
    }
}

/// Reason, first and last of each gap that the first sink was told, and which sink it names.
async fn gaps(opened: &mut Opened) -> Vec<(String, u64, u64, Vec<String>)> {
    gaps_of(opened, 0).await
}

/// The same of sink number `sink`.
async fn gaps_of(opened: &mut Opened, sink: usize) -> Vec<(String, u64, u64, Vec<String>)> {
    opened.log.flush().await.expect("it can be written");
    let mut after = 0;
    let mut gaps = Vec::new();
    loop {
        let events = opened.cursors[sink].events(after).await.expect("events");
        let Some(last) = events.last() else { return gaps };
        after = last.id;
        for event in events.iter().filter(|event| event.body["type"] == "gap") {
            let number = |key: &str| event.body[key].as_u64().expect("a number");
            let names = event.body.get("undelivered").and_then(|sinks| sinks.as_object());
            let names = names.map(|sinks| sinks.keys().cloned().collect()).unwrap_or_default();
            gaps.push((
                event.body["reason"].as_str().expect("a word").to_owned(),
                number("first"),
                number("last"),
                names,
            ));
        }
    }
}

fn database(directory: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(directory.join("log.db")).expect("it opens")
}

/// What this thread has read from files until now, from the cache or not.
fn bytes_read() -> u64 {
    let account = std::fs::read_to_string("/proc/thread-self/io").expect("an account of this thread");
    account
        .lines()
        .find_map(|line| line.strip_prefix("rchar: "))
        .and_then(|bytes| bytes.parse().ok())
        .expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_reads_little_of_a_large_log_and_knows_what_waits() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(directory.path());
    write(&opened, 1..=40_000, 1000).await;
    opened.cursors[0].confirm(tidegate::model::Seq(30_000));
    close(opened);
    let size = std::fs::metadata(directory.path().join("log.db")).expect("a file").len();
    assert!(size > 34 << 20, "a smaller one is checked whole: {size}");

    let before = bytes_read();
    let mut opened = open(directory.path());
    let read = bytes_read() - before;
    assert!(read < 512 << 10, "{read} bytes of {size}");
    assert_eq!([opened.cursors[0].pending(), opened.cursors[1].pending()], [10_000, 40_000]);
    assert_eq!(drain(&mut opened, 0).await, (30_001..=40_000).collect::<Vec<_>>());
    close(opened);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_took_is_known_after_a_restart_and_what_else_is_missing_is_told_to_each_sink() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path(), ByteSize::mib(1));
    let opened = open_with(&config);
    write(&opened, 1..=2_000, 1000).await;
    close(opened);
    let db = database(directory.path());
    let kept: Vec<u64> = db
        .prepare("SELECT first_seq FROM segment ORDER BY first_seq")
        .and_then(|mut rows| rows.query_map([], |row| row.get(0))?.collect())
        .expect("a table");
    assert!(kept[0] > 500 && kept.len() > 20, "{kept:?}");
    // Without a trace of who did it.
    db.execute("DELETE FROM segment WHERE first_seq IN (?1, ?2)", [kept[5], kept[6]]).expect("two rows");
    drop(db);

    let mut opened = open_with(&config);
    let left = (2_000 - kept[0] + 1) - 20;
    assert_eq!(opened.cursors[0].pending(), left + 20, "a start does not look at every segment");
    for sink in [0, 1] {
        assert_eq!(drain(&mut opened, sink).await.len() as u64, left);
        assert_eq!(opened.cursors[sink].pending(), 0);
    }
    for (sink, name) in [(0, "a"), (1, "b")] {
        let told = gaps_of(&mut opened, sink).await;
        let corrupt: Vec<_> = told.iter().filter(|(reason, ..)| reason == "corrupt").collect();
        let lost = ("corrupt".to_owned(), kept[5], kept[6] + 9, vec![name.to_owned()]);
        assert_eq!(corrupt, [&lost], "{told:?}");
        assert!(told.iter().all(|(reason, ..)| reason == "corrupt" || reason == "max_size"), "{told:?}");
    }
    close(opened);
    let verdict = Offline::of_gateway(directory.path()).and_then(|log| log.verify()).expect("it reads");
    let (first, last) = (kept[5], kept[6] + 9);
    assert_eq!(verdict.problems, [format!("seqs {first} to {last}: no segment has them, and nothing says why")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_an_earlier_version_is_looked_through_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let opened = open(directory.path());
    write(&opened, 1..=1_000, 100).await;
    close(opened);
    let db = database(directory.path());
    db.execute("DELETE FROM segment WHERE first_seq < 501 OR first_seq = 701", []).expect("rows");
    db.execute_batch("DELETE FROM hole; DELETE FROM meta WHERE key = 'holes'").expect("as it was");
    drop(db);
    let mut opened = open(directory.path());
    let pending = opened.cursors[0].pending();
    let sent = drain(&mut opened, 0).await;
    assert_eq!((pending, opened.cursors[0].pending()), (sent.len() as u64, 0));
    assert_eq!(gaps(&mut opened).await, [], "what was missing then is nobody's news");
    close(opened);
    let verdict = Offline::of_gateway(directory.path()).and_then(|log| log.verify()).expect("it reads");
    assert_eq!(verdict.problems, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_newest_segment_hides_nothing_of_what_is_written_while_it_is_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut next = 1;
    for _ in 0..40 {
        let opened = open(directory.path());
        write(&opened, next..=next + 9, 100).await;
        close(opened);
        let sql = "UPDATE segment SET checksum = checksum + 1 WHERE first_seq = ?1";
        assert_eq!(database(directory.path()).execute(sql, [next]).expect("a row"), 1);
        // Nothing of it is in memory.
        let mut opened = open(directory.path());
        let log = opened.log.clone();
        let more = tokio::spawn(async move {
            for origin in next + 10..next + 20 {
                log.append(None, batch(origin..=origin, 10)).expect("there is room");
                log.flush().await.expect("it can be written");
            }
        });
        let mut got = Vec::new();
        while got.last().is_none_or(|last| *last < next + 19) {
            got.extend(drain(&mut opened, 0).await);
            tokio::task::yield_now().await;
        }
        more.await.expect("it ends");
        assert_eq!(got, (next + 10..next + 20).collect::<Vec<_>>());
        let told = gaps(&mut opened).await;
        assert_eq!(told.last().map(|(_, first, last, _)| (*first, *last)), Some((next, next + 9)));
        let newest = opened.cursors[0].events(0).await.expect("events").last().expect("the gap").id;
        opened.cursors[0].confirm_events(newest);
        opened.cursors[1].confirm(opened.cursors[0].position());
        close(opened);
        next += 20;
    }
}

/// The files of a log as a copy finds them that reads one after the other while the gateway
/// runs: between the two, `between` happens.
async fn torn_copy(opened: &Opened, directory: &Path, between: impl AsyncFnOnce(&Opened)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    let take = |name: &str| std::fs::copy(directory.join(name), copy.path().join(name)).expect("a file");
    take("log.db");
    between(opened).await;
    take("log.db-wal");
    copy
}

fn quarantines(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("quarantine")).map_or(0, Iterator::count)
}

/// Waits until what is sound in a log in quarantine was taken over.
async fn finished(opened: &mut Opened) {
    let mut after = 0;
    loop {
        let events = opened.cursors[0].events(after).await.expect("events");
        if events.iter().any(|event| event.body["type"] == "quarantine" && event.body["state"] == "finished") {
            return;
        }
        after = events.last().map_or(after, |event| event.id);
        opened.cursors[0].available(tidegate::model::Seq(u64::MAX >> 2), after).await;
    }
}

/// What `tidegate queue` says of a copy: problems, and the origins that it exports.
fn look(directory: &Path) -> (Vec<String>, Vec<u64>) {
    let log = Offline::of_file(&directory.join("log.db")).expect("a file");
    let problems = log.verify().expect("it reads").problems;
    let mut origins = Vec::new();
    log.each(&mut |piece| {
        if let tidegate::store::Piece::Readings(batches) = piece {
            let all = batches.iter().flat_map(|batch| batch.after(tidegate::model::Seq::ZERO));
            origins.extend(all.filter_map(|(_, origin, _)| Some(origin?.seq)));
        }
        std::ops::ControlFlow::Continue(())
    })
    .expect("it reads");
    origins.sort_unstable();
    (problems, origins)
}

/// Another program that reads the log lets go last, after the gateway was killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_ahead_log_that_another_program_folded_in_is_not_missed_and_one_that_is_gone_is() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path(), ByteSize::mib(16));
    let opened = open_with(&config);
    write(&opened, 1..=2_000, 1000).await;
    for (folded, notes) in [(true, 0), (false, 1)] {
        let left = tempfile::tempdir().expect("a temporary directory");
        for name in ["log.db", "log.db-wal", "generation"] {
            std::fs::copy(directory.path().join(name), left.path().join(name)).expect("a file");
        }
        if folded {
            let reader = rusqlite::Connection::open(left.path().join("log.db")).expect("it opens");
            reader.query_row("SELECT count(*) FROM segment", [], |_| Ok(())).expect("it reads");
            reader.close().expect("it closes");
            assert!(!left.path().join("log.db-wal").exists());
        } else {
            std::fs::remove_file(left.path().join("log.db-wal")).expect("it is there");
        }
        let mut left_over = open_with(&Store { directory: left.path().to_owned(), ..config.clone() });
        let told = left_over.log.health().notes;
        assert_eq!(told.len(), notes, "{told:?}");
        assert!(told.iter().all(|note| note.contains("write-ahead log is missing")), "{told:?}");
        if folded {
            assert_eq!(drain(&mut left_over, 0).await.len(), 2_000);
        }
        close(left_over);
    }
    close(opened);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_write_ahead_log_began_anew_meanwhile_is_found_torn_and_what_it_lacks_is_told() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path(), ByteSize::mib(16));
    let opened = open_with(&config);
    write(&opened, 1..=2_000, 1000).await;
    // Several times what the write-ahead log holds before it begins anew.
    let copy = torn_copy(&opened, directory.path(), async |opened| write(opened, 2_001..=4_000, 1000).await).await;
    close(opened);

    let (problems, exported) = look(copy.path());
    assert!(problems.iter().any(|problem| problem.contains("torn copy")), "{problems:?}");
    let mut opened = open_with(&Store { directory: copy.path().to_owned(), ..config });
    // A large log's structure is not looked at.
    let notes = opened.log.health().notes;
    assert!(notes.iter().any(|note| note.contains("torn copy")), "{notes:?}");
    finished(&mut opened).await;
    let mut sent = drain(&mut opened, 0).await;
    sent.sort_unstable();
    assert!(exported.len() > 2_000 && exported.len() < 4_000, "{}", exported.len());
    assert_eq!(sent, exported, "both look in one way");
    // Origins and seqs of the old epoch are the same numbers.
    let told = gaps(&mut opened).await;
    let mut known = sent.into_iter().peekable();
    for origin in 1..*exported.last().expect("some") {
        let is_there = known.next_if(|next| *next == origin).is_some();
        let is_told =
            told.iter().any(|(reason, first, last, _)| reason == "corrupt" && (*first..=*last).contains(&origin));
        assert!(is_there != is_told, "{origin}: {is_there} {is_told} {told:?}");
    }
    close(opened);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_running_log_are_whole_or_found_torn() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(directory.path(), ByteSize::mib(8));
    let opened = open_with(&config);
    let (mut last, mut whole, mut torn) = (1_000, 0, 0);
    write(&opened, 1..=last, 300).await;
    // From no commit at all to several generations of the write-ahead log.
    for commits in (0..=200).step_by(20) {
        let range = last + 1..=last + commits * 10;
        let at_first = last;
        last = *range.end();
        let copy = torn_copy(&opened, directory.path(), async |opened| {
            if !range.is_empty() {
                write(opened, range, 300).await;
            }
        })
        .await;
        let (problems, exported) = look(copy.path());
        let reopened = Log::open(
            &Store { directory: copy.path().to_owned(), ..config.clone() },
            &["a", "b"],
            Arc::new(SystemClock::new()),
            Metrics::new(),
        );
        let mut reopened = reopened.expect("it opens");
        let found = quarantines(copy.path()) == 1;
        assert_eq!(found, !problems.is_empty(), "{commits}: {problems:?}");
        if found {
            torn += 1;
            finished(&mut reopened).await;
            let mut sent = drain(&mut reopened, 0).await;
            sent.sort_unstable();
            assert_eq!(sent, exported, "{commits}");
        } else {
            whole += 1;
            assert_eq!(drain(&mut reopened, 0).await, exported, "{commits}");
            let newest = exported.last().copied().unwrap_or(0);
            assert!(newest >= at_first, "{commits}: {newest} of {at_first}");
            let oldest = exported[0];
            assert_eq!(exported.len() as u64, newest - oldest + 1, "{commits}: nothing is missing in it");
        }
        close(reopened);
    }
    close(opened);
    assert!(whole > 0 && torn > 0, "{whole} whole, {torn} torn");
}
