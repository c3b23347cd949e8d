//! A sink's position in the log, and reading from there: from memory while the sink
//! keeps up, from disk when it fell behind.

use crate::model::{Seq, SequencedBatch};
use crate::store::disk::rows;
use crate::store::retention::gap::{Gap, add_gap};
use crate::store::retention::holes;
use crate::store::segment::{self, Header};
use crate::store::shared::Shared;
use crate::store::sinks::events::{self, LogEvent};
use anyhow::Result;
use rusqlite::Connection;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A sink's position in the log, with one owner. What it confirms is kept by the log.
pub struct SinkCursor {
    shared: Arc<Shared>,
    index: usize,
    /// No reading stands after the first of these up to the second.
    exhausted: (Seq, Seq),
    /// No event stands after the first of these up to the second.
    no_events: (u64, u64),
    /// First seqs of damaged segments, and of what was lost between others, that were reported.
    reported: HashSet<Seq>,
}

impl SinkCursor {
    pub(in crate::store) fn new(shared: Arc<Shared>, index: usize) -> SinkCursor {
        SinkCursor { shared, index, exhausted: (Seq::ZERO, Seq::ZERO), no_events: (0, 0), reported: HashSet::new() }
    }

    /// The sink's name.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.names[self.index] // cursors are made one for each name
    }

    /// Everything up to here is confirmed.
    pub fn position(&self) -> Seq {
        self.shared.state.lock().tail.confirmed(self.index)
    }

    /// The last event that is confirmed.
    pub fn event_position(&self) -> u64 {
        self.shared.state.lock().events[self.index] // one for each sink
    }

    /// Readings that the sink may see and has not confirmed.
    pub fn pending(&self) -> u64 {
        self.shared.state.lock().pending(self.index)
    }

    /// How many readings may stand after `after` for the sink to see; fewer if there
    /// are holes.
    pub fn waiting(&self, after: Seq) -> u64 {
        let (from, upto) = self.exhausted;
        // A sink that lost its connection goes back before what was exhausted.
        let after = if after >= from { after.max(upto) } else { after };
        self.shared.visible.load(Ordering::Acquire).saturating_sub(after.0)
    }

    /// Whether there is an event after `after`.
    pub fn has_event(&self, after: u64) -> bool {
        let (from, upto) = self.no_events;
        let after = if after >= from { after.max(upto) } else { after };
        self.shared.last_event.load(Ordering::Acquire) > after
    }

    /// When the reading arrived, on the gateway's monotonic clock, if it is still
    /// in memory.
    pub fn arrival(&self, seq: Seq) -> Option<Duration> {
        self.shared.state.lock().tail.arrival(seq)
    }

    /// How long ago, at `now` on the monotonic clock, the oldest reading arrived that
    /// the sink may see and has not confirmed; if that is not known any more, how
    /// long ago the log was opened.
    pub fn oldest_pending(&self, now: Duration) -> Duration {
        let arrival = self.arrival(self.position().next());
        now.saturating_sub(arrival.unwrap_or(self.shared.opened))
    }

    /// Readings after `after`, oldest first, as far as the sink may see them now:
    /// about `max_bytes` of memory, at least one batch if there is any. The first
    /// batch may begin before `after`, see [`SequencedBatch::after`].
    ///
    /// # Errors
    /// If the log cannot be read; worth another try later.
    pub async fn fetch(&mut self, after: Seq, max_bytes: usize) -> Result<Vec<SequencedBatch>> {
        let mut batches = self.fetch_as_stored(after, max_bytes).await?;
        self.give_times(&mut batches);
        Ok(batches)
    }

    /// Gives times to readings that came before the clock was believed, if it is by now.
    /// True if some still have none.
    pub fn give_times(&self, batches: &mut [SequencedBatch]) -> bool {
        let untimed = |numbered: &SequencedBatch| numbered.batch.basis.boot().is_some();
        if !batches.iter().any(untimed) {
            return false;
        }
        self.shared.state.lock().boots.give_times(batches);
        batches.iter().any(untimed)
    }

    async fn fetch_as_stored(&mut self, after: Seq, max_bytes: usize) -> Result<Vec<SequencedBatch>> {
        loop {
            let visible = self.shared.visible.load(Ordering::Acquire);
            let (in_memory, written) = {
                let state = self.shared.state.lock();
                (state.tail.read(after, max_bytes), state.written)
            };
            if let Some(batches) = in_memory {
                return Ok(self.moved_on(after, visible, batches));
            }
            let found = self.on_disk(move |reader| read(reader, after, max_bytes)).await?;
            let held = {
                let state = self.shared.state.lock();
                // A commit came meanwhile: where what was read ends is not where the log does.
                if state.written != written && found.reaches_the_end() {
                    continue;
                }
                state.tail.read_held(after, max_bytes)
            };
            found.lost.iter().filter(|lost| lost.last > after).for_each(|lost| self.pass_over(lost, written));
            if !found.batches.is_empty() {
                return Ok(found.batches);
            }
            // Between the last segment and the first reading in memory there may be a hole.
            return Ok(self.moved_on(after, visible, held));
        }
    }

    /// Reports readings that the sink will never get, and moves over them if they are next.
    fn pass_over(&mut self, lost: &Lost, written: Seq) {
        let Lost { first, count, .. } = *lost;
        let last = lost.last.min(written).max(first);
        let count = count.min(last.next().0 - first.0);
        if self.position().next() >= first {
            self.advance(last);
        }
        if self.reported.insert(lost.key) {
            tracing::error!(first = first.0, readings = count, why = lost.why, "readings of the log are lost");
            self.report(Gap { reason: "corrupt", first, last, count, undelivered: vec![(self.name().clone(), count)] });
        }
    }

    /// Where there was nothing to read after `after` up to `visible`, that is not asked
    /// for again: what reads in a loop would never rest.
    fn moved_on(&mut self, after: Seq, visible: u64, batches: Vec<SequencedBatch>) -> Vec<SequencedBatch> {
        if batches.is_empty() {
            self.exhausted = (after, Seq(visible));
        }
        batches
    }

    /// Waits until there is a reading after `after` or an event after `event`.
    /// Cancel-safe.
    pub async fn available(&mut self, after: Seq, event: u64) {
        loop {
            let mut advanced = std::pin::pin!(self.shared.advanced.notified());
            advanced.as_mut().enable();
            if self.waiting(after) > 0 || self.has_event(event) {
                return;
            }
            advanced.await;
        }
    }

    /// The destination confirmed everything up to `upto`.
    pub fn confirm(&self, upto: Seq) {
        self.confirm_but(upto, 0);
    }

    /// The destination confirmed everything up to `upto` but so many readings, which
    /// were [set aside](SinkCursor::set_aside).
    pub fn confirm_but(&self, upto: Seq, aside: u64) {
        let delivered = self.advance(upto).saturating_sub(aside);
        self.shared.metrics.sink_delivered.get_or_create(&self.shared.label(self.index)).inc_by(delivered);
    }

    /// Moves up to `upto` and returns how many readings that were.
    fn advance(&self, upto: Seq) -> u64 {
        let now = self.shared.clock.now().monotonic;
        let (passed, advanced) = {
            let mut state = self.shared.state.lock();
            let before = state.pending(self.index);
            let advanced = state.tail.confirm(self.index, upto);
            state.moved(self.index, now);
            let passed = before.saturating_sub(state.pending(self.index));
            state.wake(&self.shared.due);
            (passed, advanced)
        };
        self.shared.announce(&advanced);
        passed
    }

    /// From now on, or no longer, somebody takes the sink's events: what it misses is told
    /// by events as soon as it has confirmed those that told it before. Otherwise that is
    /// gathered, and told as one.
    pub fn listen(&self, listening: bool) {
        let mut state = self.shared.state.lock();
        state.unreported[self.index].listening = listening; // one for each sink
        state.wake(&self.shared.due);
    }

    /// Events after `after`, oldest first, at most 100. They never change. Where nobody
    /// listens, what the sink misses is told with them, if the log can be written.
    ///
    /// # Errors
    /// If the log cannot be read; worth another try later.
    pub async fn events(&mut self, after: u64) -> Result<Vec<LogEvent>> {
        self.hear().await;
        if !self.has_event(after) {
            return Ok(Vec::new());
        }
        let newest = self.shared.last_event.load(Ordering::Acquire);
        let name = self.name().clone();
        let events = self.on_disk(move |reader| events::read(reader, &name, after, newest)).await?;
        if events.is_empty() {
            self.no_events = (after, newest);
        }
        Ok(events)
    }

    /// Listens until there is nothing to hear, unless somebody does anyway.
    async fn hear(&self) {
        if self.shared.stepped || self.shared.state.lock().unreported[self.index].listening {
            return;
        }
        loop {
            let mut committed = std::pin::pin!(self.shared.committed.notified());
            committed.as_mut().enable();
            let waits = self.shared.state.lock().has_news(self.index, self.name());
            self.listen(waits);
            if !waits {
                return;
            }
            committed.await;
        }
    }

    /// The destination confirmed every event up to `upto`.
    pub fn confirm_events(&self, upto: u64) {
        let now = self.shared.clock.now().monotonic;
        let mut state = self.shared.state.lock();
        let confirmed = &mut state.events[self.index]; // one for each sink
        *confirmed = upto.max(*confirmed);
        state.moved(self.index, now);
        state.wake(&self.shared.due);
    }

    /// The destination can never take this reading, before which it confirmed
    /// everything: it is counted and reported as dropped for this sink, and passed
    /// over.
    pub fn refuse(&self, seq: Seq, reason: &'static str) {
        self.set_aside((seq, seq), 1, reason);
        self.advance(seq);
    }

    /// The destination does not take so many readings from `first` to `last`: they are
    /// counted and reported as dropped for this sink. They stay in the log.
    pub fn set_aside(&self, (first, last): (Seq, Seq), count: u64, reason: &'static str) {
        self.report(Gap { reason, first, last, count, undelivered: vec![(self.name().clone(), count)] });
    }

    fn report(&self, gap: Gap) {
        let mut state = self.shared.state.lock();
        add_gap(&mut state.gaps, gap);
        state.wake(&self.shared.due);
    }

    /// Runs `work` with the reading connection, on a thread that may block if there are
    /// threads.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.shared.on_disk(self.index, work).await
    }
}

/// What one look at the disk found.
#[derive(Default)]
struct Read {
    batches: Vec<SequencedBatch>,
    lost: Vec<Lost>,
}

/// Readings that no sink will get any more.
struct Lost {
    /// By which this is told from others.
    key: Seq,
    first: Seq,
    /// The largest that there can be if nothing stands behind.
    last: Seq,
    /// Readings among these seqs, at most.
    count: u64,
    why: &'static str,
}

/// The last seq of what nothing stands behind.
const OPEN_END: Seq = Seq(u64::MAX);

impl Read {
    /// Whether what was found says something of where the log ends.
    fn reaches_the_end(&self) -> bool {
        self.batches.is_empty() || self.lost.iter().any(|lost| lost.last == OPEN_END)
    }
}

/// Segments that hold readings after `after`, and what is lost between and in them. A
/// damaged one reaches from the one before to the next one: what it says itself of its place
/// may be part of the damage. What is between two others and was not taken away on purpose
/// is lost as well.
fn read(reader: &Connection, after: Seq, max_bytes: usize) -> Result<Read> {
    let mut found = Read::default();
    let (mut bytes, mut upto) = (0, after);
    let mut open: Option<(Seq, Header)> = None;
    let mut failed = None;
    let damaged = |first: Seq, last: Seq, header: Header| {
        let (key, count) = (header.first, u64::from(header.count));
        Lost { key, first, last, count, why: "a segment is damaged" }
    };
    rows::each(reader, after, &mut |header, block| {
        if let Some((first, before)) = open.take() {
            upto = upto.max(header.first.prev());
            found.lost.push(damaged(first, header.first.prev(), before));
        }
        if bytes >= max_bytes {
            return false;
        }
        let between = (upto.next(), header.first.prev());
        let decoded = segment::decode_pieces(header, block, upto, &mut |decoded| {
            let start = found.batches.len();
            found.batches.extend(decoded.into_iter().filter(|batch| batch.last() > upto));
            bytes += found.batches[start..].iter().map(|b: &SequencedBatch| b.batch.memory()).sum::<usize>(); // start was its length
            if bytes >= max_bytes { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match decoded {
            Ok(()) => {
                if between.0 <= between.1 {
                    match holes::unexplained(reader, between.0, between.1) {
                        Ok(lost) => found.lost.extend(lost.into_iter().map(absent)),
                        Err(why) => failed = Some(why),
                    }
                }
                upto = upto.max(header.last());
            }
            Err(why) => {
                tracing::error!(first = header.first.0, %why, "a segment cannot be read");
                open = Some((header.first.min(upto.next()), *header));
            }
        }
        failed.is_none() && (bytes < max_bytes || open.is_some())
    })?;
    if let Some(why) = failed {
        return Err(why.into());
    }
    found.lost.extend(open.map(|(first, before)| damaged(first, OPEN_END, before)));
    Ok(found)
}

/// Seqs that should be in a segment and are in none.
fn absent((first, last): (Seq, Seq)) -> Lost {
    Lost { key: first, first, last, count: last.0 - first.prev().0, why: "no segment has them" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Store;
    use crate::metrics::Metrics;
    use crate::model::{Basis, Batch, ChannelName, DeviceId, Reading, Timestamp, Value};
    use crate::store::{Log, Opened};
    use bytesize::ByteSize;
    use std::future::Future;
    use std::task::{Context, Waker};

    /// Appends a reading of so many bytes.
    fn append(log: &Log, bytes: usize) {
        let channels = [ChannelName::new("noise").expect("a valid name")].into();
        let value = Value::Bytes(vec![0; bytes].into());
        let reading = Reading::new(0, Timestamp(0), channels, [value].into()).expect("it fits");
        let device = DeviceId::new("pump").expect("a valid name");
        let batch = Batch { device, session: None, basis: Basis::Wall, readings: vec![reading] };
        log.append(None, batch).expect("there is room");
    }

    #[test]
    fn a_reading_that_leaves_memory_while_the_disk_is_read_is_not_skipped() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let max_pending = ByteSize::kib(16);
        let config = Store { directory: directory.path().to_owned(), max_pending, ..Store::default() };
        let clock = Arc::new(SystemClock::new());
        // A crash, which leaves a hole between what is on disk and what is to come.
        drop(Log::open_stepped(&config, &[], &["cloud"], clock.clone(), Metrics::new(), Arc::new(|| None)));
        let one_thread = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        one_thread.expect("a runtime").block_on(async {
            let opened = Log::open(&config, &["cloud"], clock, Metrics::new());
            let Opened { log, mut cursors, writer, .. } = opened.expect("the log opens");
            {
                let mut fetch = std::pin::pin!(cursors[0].fetch(Seq::ZERO, 1 << 20));
                let mut context = Context::from_waker(Waker::noop());
                assert!(fetch.as_mut().poll(&mut context).is_pending(), "the disk is being read");
                tokio::task::spawn_blocking(|| ()).await.expect("the disk was read, and has nothing");
                append(&log, 10_000);
                log.flush().await.expect("it is written");
                append(&log, 10_001);
                let found = fetch.await.expect("it reads");
                let lengths = found.iter().map(|batch| match &batch.batch.readings[0].values()[0] {
                    Value::Bytes(bytes) => bytes.len(),
                    other => panic!("{other:?}"),
                });
                assert_eq!(lengths.collect::<Vec<_>>().first(), Some(&10_000));
            }
            log.close();
            writer.join();
        });
    }

    #[test]
    fn a_segment_that_an_earlier_version_made_too_large_is_read_piece_by_piece() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let db = crate::store::disk::schema::open(&directory.path().join("log.db"), crate::config::Durability::Full)
            .expect("a new database");
        let (header, block) = segment::too_large();
        rows::put(&db, "REPLACE", &header, &block, rows::Info::uncounted(0)).expect("it is written");
        let (mut after, mut readings) = (Seq::ZERO, 0);
        loop {
            let Read { batches, lost, .. } = read(&db, after, 1 << 20).expect("it reads");
            assert!(lost.is_empty());
            let Some(last) = batches.last().map(SequencedBatch::last) else { break };
            assert!(batches.iter().map(|batch| batch.batch.memory()).sum::<usize>() < 32 << 20);
            readings += batches.iter().map(|batch| batch.after(after).len() as u64).sum::<u64>();
            after = last;
        }
        assert_eq!((after, readings), (header.last(), u64::from(header.count)));
    }
}
