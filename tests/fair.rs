//! Room in the log is shared out fairly: whoever asks for little gets it at once, and whoever
//! asks for much gets as much as others do.

use bytesize::ByteSize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate::clock::SystemClock;
use tidegate::config::Store;
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, ChannelName, DeviceId, Reading, Timestamp, Value};
use tidegate::store::{HighWater, Log, Opened, Saturated, Share, Space, Stepped, Stepper};
use tokio::task::JoinSet;

/// A log with little memory, all of which one commit can write.
fn open(path: &Path) -> Opened<Stepper> {
    let config = Store {
        directory: path.to_owned(),
        commit_within: Duration::from_secs(3600),
        max_pending: ByteSize::kib(64),
        ..Store::default()
    };
    let (clock, gauge) = (Arc::new(SystemClock::new()), Space::gauge(path));
    let mut opened = Log::open_stepped(&config, &[], &["dead"], clock, Metrics::new(), gauge).expect("the log opens");
    opened.writer.step();
    opened
}

/// A source that always has a batch of so many bytes.
struct Source {
    share: Share,
    mark: Arc<HighWater>,
    bytes: usize,
    waits: Option<Batch>,
    seq: u64,
    appended: u64,
}

impl Source {
    fn new(log: &Log, name: &str, bytes: usize) -> Source {
        let mark = log.high_water(&DeviceId::new(name).expect("a valid name"), 1);
        Source { share: log.share(), mark, bytes, waits: None, seq: 0, appended: 0 }
    }

    fn batch(&mut self) -> Batch {
        self.seq += 1;
        let channels = [ChannelName::new("x").expect("a valid name")].into();
        let value = Value::Bytes(vec![0; self.bytes].into());
        let reading = Reading::new(self.seq, Timestamp(0), channels, [value].into()).expect("one of each");
        Batch { device: self.mark.device().clone(), session: Some(1), basis: Basis::Wall, readings: vec![reading] }
    }

    /// Appends one batch, or waits for room; true if it was appended.
    fn append(&mut self) -> bool {
        let batch = self.waits.take().unwrap_or_else(|| self.batch());
        let bytes = batch.memory();
        match self.share.append(Some(&self.mark), batch) {
            Ok(()) => self.appended += 1,
            Err(Saturated(batch)) => {
                self.waits = Some(batch);
                self.share.wait_for(bytes);
            }
        }
        self.waits.is_none()
    }

    /// Appends as long as there is room.
    fn go_on(&mut self) {
        while !self.share.is_waiting() {
            self.append();
        }
    }
}

#[test]
fn no_source_waits_for_more_than_one_round_and_all_get_the_same() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut opened = open(directory.path());
    let log = opened.log.clone();
    let mut loud: Vec<_> = (0..20).map(|n| Source::new(&log, &format!("loud-{n}"), 8000)).collect();
    loud.iter_mut().for_each(Source::go_on);
    // Nobody waited for what the first took then.
    loud.iter_mut().for_each(|source| source.appended = 0);
    let mut calm = Source::new(&log, "calm", 10);
    for round in 0..200 {
        assert_eq!(opened.writer.step(), Stepped::Tried, "whoever waits hastens a commit");
        // The first is always the fastest.
        loud.iter_mut().for_each(Source::go_on);
        if round % 5 == 0 {
            assert!(calm.append(), "there is room for a little in round {round}");
        }
    }
    let shares = || loud.iter().map(|source| source.appended);
    let (least, most) = (shares().min().expect("some"), shares().max().expect("some"));
    assert!(least >= 40 && most <= least + 2, "{:?}", shares().collect::<Vec<_>>());
    assert_eq!(calm.mark.settled(), calm.appended, "it waits for no more than one commit");
}

#[test]
fn a_source_of_small_batches_gets_as_much_as_one_of_large_batches() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut opened = open(directory.path());
    let log = opened.log.clone();
    let mut sources: Vec<_> = (0..10).map(|n| Source::new(&log, &format!("large-{n}"), 20_000)).collect();
    sources.extend((0..10).map(|n| Source::new(&log, &format!("small-{n}"), 5000)));
    for _ in 0..400 {
        sources.iter_mut().for_each(Source::go_on);
        opened.writer.step();
    }
    let bytes = |sources: &[Source]| sources.iter().map(|source| source.appended * source.bytes as u64).sum::<u64>();
    let (large, small) = (bytes(&sources[..10]), bytes(&sources[10..]));
    // In turn, they would have a quarter.
    assert!(small * 3 >= large * 2 && large * 3 >= small * 2, "{large} and {small} bytes");
}

#[tokio::test]
async fn a_source_that_goes_gives_back_what_it_was_granted_and_its_place() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut opened = open(directory.path());
    let mut sources: Vec<_> = (0..3).map(|n| Source::new(&opened.log, &format!("d{n}"), 40_000)).collect();
    assert!(sources[0].append() && !sources[1].append() && !sources[2].append());
    opened.writer.step();
    let mut last = sources.pop().expect("three");
    assert!(!sources[1].share.is_waiting() && last.share.is_waiting(), "there is room for one");
    // Waiting can be given up, and taken up again.
    let early = tokio::time::timeout(Duration::from_millis(1), last.share.room()).await;
    assert!(early.is_err());
    drop(sources);
    last.share.room().await;
    assert!(last.append(), "what the other was granted is free");

    let mut first = Source::new(&opened.log, "first", 40_000);
    let mut second = Source::new(&opened.log, "second", 10_000);
    assert!(!first.append() && !second.append());
    drop(first);
    assert!(!second.share.is_waiting() && second.append(), "the one before has gone, and there is room");
    assert!(!opened.log.is_saturated());
}

#[tokio::test]
async fn a_waiter_is_woken_by_its_grant_alone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut opened = open(directory.path());
    let mut sources: Vec<_> = (0..5).map(|n| Source::new(&opened.log, &format!("d{n}"), 40_000)).collect();
    let woken = Arc::new(AtomicU64::new(0));
    let mut waiters = JoinSet::new();
    for source in &mut sources {
        source.append();
        let (room, woken) = (source.share.room(), woken.clone());
        waiters.spawn(async move {
            room.await;
            woken.fetch_add(1, Ordering::Relaxed)
        });
    }
    // The first has room at once, and of the others one a commit.
    for granted in 1..=5 {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(woken.load(Ordering::Relaxed), granted);
        opened.writer.step();
        let next = sources.iter_mut().find(|source| source.waits.is_some() && !source.share.is_waiting());
        assert_eq!(next.map(Source::append), (granted < 5).then_some(true));
    }
    waiters.join_all().await;
}
