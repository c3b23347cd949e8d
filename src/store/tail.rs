//! The log's decisions: what is in memory, what is settled, when a commit is due.
//!
//! Pure: time and disk are told to it. Readings stand in the order of their
//! seqs, and three frontiers move up along them:
//!
//! ```text
//!             settled = max(saved, least confirmed)
//!                |
//!   ---- saved --|------ next        saved: on disk, or in no need of it
//!   -- confirmed (a frontier a sink)
//! ```
//!
//! A reading leaves memory once it is saved and each sink confirmed it, or, when
//! memory is short, as soon as it is saved: slow sinks then read it from disk. When the
//! disk saves nothing, readings that each sink confirmed give way to new ones: what is
//! acknowledged through the sinks goes on, and only the local history has a hole.

pub(super) mod high_water;
pub(super) mod policy;
pub(super) mod room;

use crate::config::HistoryWithin;
use crate::model::{Batch, DeviceId, Seq, SequencedBatch};
use crate::store::tail::high_water::HighWater;
use policy::Policy;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How long a full memory waits for the disk before history gives way.
const HISTORY_WAITS: Duration = Duration::from_secs(5);
/// Requests for much fill one part in so many of the memory: those for little wait until what
/// came before them is settled. More is faster and lets them wait longer.
const FOR_MUCH: usize = 3;
/// They fill no less than this, in bytes, if there is as much.
const LEAST_FOR_MUCH: usize = 1 << 20;
/// One part in so many of the memory is kept for requests for little, however small it is.
const FOR_LITTLE: usize = 8;
/// Devices whose high-water marks wait for a commit that has nothing else to write.
const MAX_UNSAVED_HIGH_WATERS: usize = 10_000;

struct Entry {
    numbered: SequencedBatch,
    /// Monotonic time of arrival.
    arrived: Duration,
    bytes: usize,
    high_water: Option<Arc<HighWater>>,
    /// The device's own seq of the last reading; meaningful with a high-water mark.
    last_origin: u64,
}

pub(super) struct Tail {
    policy: Policy,
    entries: VecDeque<Entry>,
    next: Seq,
    /// The last seq that may be given out: those above are not reserved on disk.
    reserved: Seq,
    saved: Seq,
    /// How many entries at the front are saved, and settled.
    saved_entries: usize,
    settled_entries: usize,
    total_bytes: usize,
    unsettled_bytes: usize,
    unsaved_bytes: usize,
    /// When a batch was handed back for want of room first, if nothing was saved since.
    refused: Option<Duration>,
    /// A batch was handed back for want of seqs, and none were reserved since.
    short_of_seqs: bool,
    /// Readings that gave way since that was last asked.
    given_way: u64,
    confirmed: Vec<Seq>,
    /// Session and seq of devices whose readings were settled without ever being saved.
    unsaved_high_waters: HashMap<DeviceId, (u64, u64)>,
    /// The first and last of the readings that were settled without ever being saved, and
    /// how many there are between them.
    unwritten: Option<(Seq, Seq, u64)>,
}

/// What a commit has to write.
#[derive(Default)]
pub(super) struct Unsaved {
    /// Consecutive readings, or none.
    pub batches: Vec<SequencedBatch>,
    /// The last of them; `saved` if there is none.
    pub upto: Seq,
    /// Device, session, and the session's last seq, of readings that were settled
    /// without ever being saved and that no later ones of `batches` speak for.
    pub high_waters: Vec<(DeviceId, u64, u64)>,
    /// The same of the readings in `batches`.
    pub covered: Vec<(DeviceId, u64, u64)>,
    /// Some of `batches` have a session and no high-water mark: how far that came, they do not say.
    pub untracked: bool,
}

impl Tail {
    /// A tail whose first seq is `next`, everything before it being on disk, with
    /// one frontier for each of the sinks' `confirmed`.
    pub fn new(policy: Policy, next: Seq, reserved: Seq, confirmed: Vec<Seq>) -> Tail {
        Tail {
            policy,
            entries: VecDeque::new(),
            next,
            reserved,
            saved: next.prev(),
            saved_entries: 0,
            settled_entries: 0,
            total_bytes: 0,
            unsettled_bytes: 0,
            unsaved_bytes: 0,
            refused: None,
            short_of_seqs: false,
            given_way: 0,
            confirmed,
            unsaved_high_waters: HashMap::new(),
            unwritten: None,
        }
    }

    /// Takes over a batch of so many bytes and numbers it, or hands it back if there is no
    /// room, or no seqs are left for it.
    pub fn append(
        &mut self,
        batch: Batch,
        bytes: usize,
        high_water: Option<&Arc<HighWater>>,
        arrived: Duration,
    ) -> Result<(), Batch> {
        let count = batch.readings.len() as u64;
        self.short_of_seqs = self.next.plus(count) > self.reserved.next();
        if self.short_of_seqs || !self.make_room(0, bytes, 0, arrived) {
            return Err(batch);
        }
        let Some(last_origin) = batch.readings.last().map(|reading| reading.origin_seq) else { return Ok(()) };
        let first = self.next;
        self.next = first.plus(count);
        self.total_bytes += bytes;
        self.unsettled_bytes += bytes;
        self.unsaved_bytes += bytes;
        let numbered = SequencedBatch { first, batch: Arc::new(batch) };
        self.entries.push_back(Entry { numbered, arrived, bytes, high_water: high_water.cloned(), last_origin });
        self.trim();
        Ok(())
    }

    /// Whether there is room for so many bytes beside those that are `promised`. A part of
    /// it is kept for `little` requests.
    pub fn has_room(&mut self, promised: usize, bytes: usize, little: bool, now: Duration) -> bool {
        let most = self.policy.max_pending;
        let for_much = (most / FOR_MUCH).max(LEAST_FOR_MUCH).min(most - most / FOR_LITTLE);
        let spare = if little { 0 } else { most - for_much };
        !self.short_of_seqs && self.make_room(promised, bytes, spare, now)
    }

    /// Whether there is room, if need be in the place of history. If not, a commit is due.
    fn make_room(&mut self, promised: usize, bytes: usize, spare: usize, now: Duration) -> bool {
        let mut full = self.is_full(promised, bytes, spare);
        if full && self.refused.is_some_and(|since| now >= since.saturating_add(HISTORY_WAITS)) {
            self.give_way(promised, bytes, spare);
            full = self.is_full(promised, bytes, spare);
        }
        self.refused = self.refused.or(full.then_some(now));
        !full
    }

    /// Whether there is no room for so many bytes. What is settled and not saved cannot
    /// leave as a rule: with a disk that stands still and sinks that do not, it would grow
    /// without end.
    fn is_full(&self, promised: usize, bytes: usize, spare: usize) -> bool {
        let most = self.policy.max_pending;
        let exceeds = |held: usize, spare: usize| held > 0 && held + bytes + spare > most;
        // Nobody waits for history; it may fill more than what is asked for by those for much.
        let beside_history = if self.comes_slowly() { spare.min(most / FOR_LITTLE) } else { spare };
        exceeds(self.unsettled_bytes + promised, spare) || exceeds(self.unsaved_bytes + promised, beside_history)
    }

    /// Lets go of readings that every sink confirmed and that are not saved, until there is
    /// room.
    fn give_way(&mut self, promised: usize, bytes: usize, spare: usize) {
        let Some(everywhere) = self.confirmed.iter().copied().min() else { return };
        while self.is_full(promised, bytes, spare)
            && let Some(readings) = self.pass_unsaved(everywhere)
        {
            self.given_way += readings;
        }
        self.trim();
    }

    /// Has the first unsaved entry never saved, if it ends up to `upto`. Returns how many
    /// readings it has.
    fn pass_unsaved(&mut self, upto: Seq) -> Option<u64> {
        let entry = self.entries.get(self.saved_entries).filter(|entry| entry.numbered.last() <= upto)?;
        self.unsaved_bytes -= entry.bytes;
        self.saved_entries += 1;
        self.saved = entry.numbered.last();
        let readings = entry.numbered.batch.readings.len() as u64;
        let (first, _, count) = self.unwritten.unwrap_or((entry.numbered.first, self.saved, 0));
        self.unwritten = Some((first, self.saved, count + readings));
        if let Some(high_water) = &entry.high_water {
            let device = high_water.device();
            if self.unsaved_high_waters.len() < MAX_UNSAVED_HIGH_WATERS || self.unsaved_high_waters.contains_key(device)
            {
                self.unsaved_high_waters.insert(device.clone(), (high_water.session(), entry.last_origin));
            }
        }
        Some(readings)
    }

    /// When a batch that was handed back may come again because history gives way then, if
    /// nothing is saved before.
    pub fn gives_way_at(&self) -> Option<Duration> {
        let everywhere = self.confirmed.iter().copied().min()?;
        self.entries.get(self.saved_entries).filter(|entry| entry.numbered.last() <= everywhere)?;
        self.refused.map(|since| since.saturating_add(HISTORY_WAITS))
    }

    /// How long one who waits for room may rest at `now`, should nothing be settled: then
    /// history may give way.
    pub fn look_again(&self, now: Duration) -> Duration {
        let left = self.gives_way_at().and_then(|at| at.checked_sub(now));
        left.filter(|left| !left.is_zero()).unwrap_or(HISTORY_WAITS)
    }

    /// How many readings gave way to new ones since this was last asked.
    pub fn take_given_way(&mut self) -> u64 {
        std::mem::take(&mut self.given_way)
    }

    /// Sink number `sink` confirmed everything up to `upto`.
    /// Returns the high-water marks that advanced with it.
    pub fn confirm(&mut self, sink: usize, upto: Seq) -> Vec<Arc<HighWater>> {
        let last = self.next.prev();
        if let Some(confirmed) = self.confirmed.get_mut(sink) {
            *confirmed = upto.min(last).max(*confirmed);
        }
        self.advance()
    }

    /// Everything up to `upto` is on disk. Returns the high-water marks that advanced with it.
    pub fn saved(&mut self, upto: Seq) -> Vec<Arc<HighWater>> {
        while let Some(entry) = self.entries.get(self.saved_entries).filter(|entry| entry.numbered.last() <= upto) {
            self.unsaved_bytes -= entry.bytes;
            self.saved_entries += 1;
        }
        self.saved = self.saved.max(upto);
        self.refused = None;
        self.advance()
    }

    /// Seqs up to `reserved` may be given out from now on.
    pub fn reserve(&mut self, reserved: Seq) {
        self.reserved = reserved.max(self.reserved);
        self.short_of_seqs = false;
    }

    fn advance(&mut self) -> Vec<Arc<HighWater>> {
        let everywhere = self.confirmed.iter().copied().min();
        if let (HistoryWithin::Off, Some(everywhere)) = (self.policy.history_within, everywhere) {
            while self.pass_unsaved(everywhere).is_some() {}
        }
        let settled = everywhere.unwrap_or(Seq::ZERO).max(self.saved);
        let mut advanced: Vec<Arc<HighWater>> = Vec::new();
        while let Some(entry) = self.entries.get(self.settled_entries).filter(|e| e.numbered.last() <= settled) {
            self.unsettled_bytes -= entry.bytes;
            self.settled_entries += 1;
            if let Some(high_water) = &entry.high_water
                && high_water.settle(entry.last_origin)
            {
                advanced.push(high_water.clone());
            }
        }
        self.trim();
        advanced
    }

    /// Lets go of what nobody waits for, and, if memory is short, of all that is on disk.
    fn trim(&mut self) {
        let nobody_waits = self.confirmed.iter().copied().min().unwrap_or(self.saved);
        while self.saved_entries > 0
            && self.settled_entries > 0
            && let Some(entry) = self.entries.front()
            && (entry.numbered.last() <= nobody_waits || self.total_bytes > self.policy.max_pending)
        {
            self.total_bytes -= entry.bytes;
            self.saved_entries -= 1;
            self.settled_entries -= 1;
            self.entries.pop_front();
        }
    }

    /// The monotonic time at which a commit is due; `None` while none is.
    pub fn due(&self) -> Option<Duration> {
        if self.unsaved_high_waters.len() >= MAX_UNSAVED_HIGH_WATERS {
            return Some(Duration::ZERO);
        }
        let oldest = self.entries.get(self.saved_entries)?;
        // What is confirmed and would wait for history must not keep devices waiting.
        if self.refused.is_some() || self.segment_is_full() {
            return Some(Duration::ZERO);
        }
        let unsettled = self.entries.get(self.saved_entries.max(self.settled_entries));
        let commit = unsettled.map(|entry| entry.arrived.saturating_add(self.policy.commit_within));
        let history = match self.policy.history_within {
            HistoryWithin::Off => None,
            HistoryWithin::Within(within) => Some(oldest.arrived.saturating_add(within)),
        };
        [commit, history].into_iter().flatten().min()
    }

    /// What is not on disk, up to a segment's worth and at least one batch, and what is
    /// to be written with it. So no commit is larger than a log of its bound can take.
    pub fn unsaved(&mut self) -> Unsaved {
        let mut covered: HashMap<DeviceId, (u64, u64)> = HashMap::new();
        let mut batches = Vec::new();
        let mut upto = self.saved;
        let mut previous: Option<&Arc<HighWater>> = None;
        let mut pending = (0, 0);
        let mut untracked = false;
        let mut bytes = 0;
        let most = self.commit_bytes();
        let fits = |entry: &&Entry| {
            let fits = bytes < most;
            bytes += entry.bytes;
            fits
        };
        for entry in self.entries.iter().skip(self.saved_entries).take_while(fits) {
            batches.push(entry.numbered.clone());
            upto = entry.numbered.last();
            let Some(high_water) = &entry.high_water else {
                untracked |= entry.numbered.batch.session.is_some();
                continue;
            };
            if let Some(before) = previous.filter(|before| !Arc::ptr_eq(before, high_water)) {
                covered.insert(before.device().clone(), pending);
            }
            previous = Some(high_water);
            pending = (high_water.session(), entry.last_origin);
        }
        if let Some(before) = previous {
            covered.insert(before.device().clone(), pending);
        }
        let mut high_waters = std::mem::take(&mut self.unsaved_high_waters);
        high_waters.retain(|device, _| !covered.contains_key(device));
        let list = |high_waters: HashMap<DeviceId, (u64, u64)>| {
            high_waters.into_iter().map(|(device, (session, seq))| (device, session, seq)).collect()
        };
        Unsaved { batches, upto, high_waters: list(high_waters), covered: list(covered), untracked }
    }

    /// The first and last of the readings that were settled without ever being saved since
    /// this was asked last, and how many there are between them.
    pub fn take_unwritten(&mut self) -> Option<(Seq, Seq, u64)> {
        self.unwritten.take()
    }

    /// A commit that took `high_waters` along failed: they are still to be written.
    pub fn not_saved(&mut self, high_waters: Vec<(DeviceId, u64, u64)>) {
        for (device, session, seq) in high_waters {
            self.unsaved_high_waters.entry(device).or_insert((session, seq));
        }
    }

    /// The last reading that sinks may see.
    pub fn visible(&self) -> Seq {
        if self.policy.after_commit { self.saved } else { self.next.prev() }
    }

    /// Visible readings after `after`, about `max_bytes` of them and at least one
    /// batch; `None` if the next one is no longer in memory.
    pub fn read(&self, after: Seq, max_bytes: usize) -> Option<Vec<SequencedBatch>> {
        let visible = self.visible();
        if after >= visible {
            return Some(Vec::new());
        }
        let start = self.entries.partition_point(|entry| entry.numbered.last() <= after);
        let first_held = self.entries.get(start)?.numbered.first;
        let in_memory = start > 0 || first_held <= after.next() || after >= self.saved;
        if !in_memory {
            return None;
        }
        Some(self.read_held(after, max_bytes))
    }

    /// Visible readings after `after` that are in memory, whether or not others
    /// stand before them.
    pub fn read_held(&self, after: Seq, max_bytes: usize) -> Vec<SequencedBatch> {
        let start = self.entries.partition_point(|entry| entry.numbered.last() <= after);
        let visible = self.visible();
        let mut bytes = 0;
        let wanted = |entry: &&Entry| {
            let wanted = bytes < max_bytes && entry.numbered.last() <= visible;
            bytes += entry.bytes;
            wanted
        };
        self.entries.range(start..).take_while(wanted).map(|entry| entry.numbered.clone()).collect()
    }

    /// When the reading arrived, if it is in memory.
    pub fn arrival(&self, seq: Seq) -> Option<Duration> {
        let index = self.entries.partition_point(|entry| entry.numbered.last() < seq);
        self.entries.get(index).filter(|entry| entry.numbered.first <= seq).map(|entry| entry.arrived)
    }

    pub fn confirmed(&self, sink: usize) -> Seq {
        self.confirmed.get(sink).copied().unwrap_or_default()
    }

    /// The next seq that will be given out.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// The last seq that needs no more writing.
    pub fn saved_upto(&self) -> Seq {
        self.saved
    }

    /// How many seqs may still be given out.
    pub fn reserve_left(&self) -> u64 {
        self.reserved.next().0.saturating_sub(self.next.0)
    }

    /// Bytes of readings that are not settled.
    pub fn unsettled_bytes(&self) -> usize {
        self.unsettled_bytes
    }

    /// Whether the byte bound alone makes a commit due.
    pub fn segment_is_full(&self) -> bool {
        self.unsaved_bytes >= self.commit_bytes() || self.unsettled_bytes >= self.policy.segment_bytes
    }

    /// Bytes of unsaved readings that make a commit due at once, of which it takes no more.
    fn commit_bytes(&self) -> usize {
        if self.comes_slowly() { self.policy.history_bytes } else { self.policy.segment_bytes }
    }

    /// Whether at the pace of what is not saved, however much that is, a segment takes long.
    fn comes_slowly(&self) -> bool {
        let oldest = self.entries.get(self.saved_entries).map(|entry| entry.arrived);
        let newest = self.entries.back().map(|entry| entry.arrived);
        let span = oldest.zip(newest).map(|(oldest, newest)| newest.saturating_sub(oldest));
        span.is_some_and(|span| self.policy.is_slow(self.unsaved_bytes, span))
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Basis, Reading, Timestamp};
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> Policy {
        Policy {
            commit_within: SECOND,
            history_within: HistoryWithin::Within(300 * SECOND),
            after_commit: false,
            max_pending: 1 << 20,
            segment_bytes: 1 << 20,
            history_bytes: 1 << 20,
        }
    }

    impl Tail {
        fn add(&mut self, batch: Batch, high_water: Option<&Arc<HighWater>>, arrived: Duration) -> Result<(), Batch> {
            let bytes = batch.memory();
            self.append(batch, bytes, high_water, arrived)
        }
    }

    fn tail(policy: Policy, sinks: usize) -> Tail {
        Tail::new(policy, Seq(1), Seq(1000), vec![Seq::ZERO; sinks])
    }

    fn batch(origins: std::ops::RangeInclusive<u64>) -> Batch {
        let reading = |seq| Reading::new(seq, Timestamp(0), Arc::new([]), Box::new([])).expect("both lists are empty");
        let device = DeviceId::new("d").expect("a valid name");
        Batch { device, session: Some(1), basis: Basis::Wall, readings: origins.map(reading).collect() }
    }

    fn high_water() -> Arc<HighWater> {
        HighWater::new(DeviceId::new("d").expect("a valid name"), 1, 0)
    }

    fn seqs(batches: &[SequencedBatch]) -> Vec<u64> {
        batches.iter().flat_map(|b| b.after(Seq::ZERO).map(|(seq, _, _)| seq.0).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_reading_is_settled_by_its_commit() {
        let (mut tail, high_water) = (tail(policy(), 1), high_water());
        tail.add(batch(1..=3), Some(&high_water), SECOND).expect("there is room");
        assert_eq!((high_water.settled(), tail.due()), (0, Some(2 * SECOND)));
        let work = tail.unsaved();
        assert_eq!((seqs(&work.batches), work.upto), (vec![1, 2, 3], Seq(3)));
        assert_eq!((work.high_waters, work.covered), (vec![], vec![(high_water.device().clone(), 1, 3)]));
        assert_eq!(tail.saved(work.upto).len(), 1);
        assert_eq!((high_water.settled(), tail.due(), tail.unsettled_bytes()), (3, None, 0));
    }

    #[test]
    fn a_commit_takes_a_segments_worth_and_the_rest_is_due_at_once() {
        let bytes = batch(1..=1).memory();
        let mut tail = tail(Policy { segment_bytes: bytes + 1, history_bytes: bytes + 1, ..policy() }, 1);
        for origin in 1..=3 {
            tail.add(batch(origin..=origin), None, SECOND).expect("there is room");
        }
        let work = tail.unsaved();
        assert_eq!((seqs(&work.batches), work.upto), (vec![1, 2], Seq(2)));
        tail.saved(work.upto);
        assert_eq!(tail.due(), Some(2 * SECOND), "as soon as it was before");
        assert_eq!(seqs(&tail.unsaved().batches), [3]);
    }

    #[test]
    fn readings_that_come_slowly_and_are_confirmed_wait_until_there_are_more() {
        let bytes = batch(1..=1).memory();
        let sizes = Policy { segment_bytes: 2 * bytes, history_bytes: 4 * bytes, ..policy() };
        let filled = |apart: Duration, confirmed: u64| {
            let mut tail = tail(sizes.clone(), 1);
            for origin in 1..=3 {
                tail.add(batch(origin..=origin), None, SECOND + apart * origin as u32).expect("there is room");
                tail.confirm(0, Seq(confirmed.min(origin)));
            }
            tail
        };
        let at_once = Some(Duration::ZERO);
        assert_eq!(filled(SECOND / 10, 3).due(), at_once, "they come fast");
        assert_eq!(filled(SECOND, 1).due(), at_once, "a segment's worth is not confirmed");
        let mut slow = filled(SECOND, 3);
        assert_eq!((slow.due(), slow.segment_is_full()), (Some(302 * SECOND), false));
        slow.add(batch(4..=5), None, 5 * SECOND).expect("there is room");
        assert_eq!((slow.due(), slow.segment_is_full()), (at_once, true));
        assert_eq!(seqs(&slow.unsaved().batches), [1, 2, 3, 4, 5], "and are written at once");
    }

    #[test]
    fn history_that_came_slowly_keeps_nobody_waiting() {
        let mib = 1 << 20;
        let sizes = Policy { max_pending: 16 * mib, segment_bytes: 4 * mib, history_bytes: 8 * mib, ..policy() };
        let room_for_much = |apart: Duration, confirmed: Seq| {
            let mut tail = tail(sizes.clone(), 1);
            for n in 1..=7 {
                tail.append(batch(n..=n), mib, None, apart * n as u32).expect("there is room");
            }
            tail.confirm(0, confirmed);
            tail.has_room(0, mib, false, 8 * SECOND)
        };
        assert!(room_for_much(SECOND, Seq(7)));
        assert!(!room_for_much(SECOND, Seq(1)), "much is not settled");
        assert!(!room_for_much(SECOND / 10, Seq(7)), "it came fast: the disk is behind");
        assert!(!room_for_much(SECOND / 4, Seq(7)), "for longer, since the disk is slow, and no slower");
    }

    #[test]
    fn a_reading_that_every_sink_confirmed_is_settled_and_waits_for_history() {
        let (mut tail, high_water) = (tail(policy(), 2), high_water());
        tail.add(batch(1..=1), Some(&high_water), SECOND).expect("there is room");
        assert!(tail.confirm(0, Seq(1)).is_empty());
        assert_eq!(high_water.settled(), 0);
        assert_eq!(tail.confirm(1, Seq(1)).len(), 1);
        assert_eq!((high_water.settled(), tail.due()), (1, Some(301 * SECOND)));
        assert_eq!(seqs(&tail.unsaved().batches), [1]);
    }

    #[test]
    fn without_history_a_confirmed_reading_is_never_written_but_its_mark_is() {
        let mut tail = tail(Policy { history_within: HistoryWithin::Off, ..policy() }, 1);
        let high_water = high_water();
        tail.add(batch(1..=1), Some(&high_water), SECOND).expect("there is room");
        tail.add(batch(2..=2), Some(&high_water), 2 * SECOND).expect("there is room");
        tail.confirm(0, Seq(1));
        assert_eq!((high_water.settled(), tail.due()), (1, Some(3 * SECOND)));
        tail.confirm(0, Seq(2));
        assert_eq!(tail.due(), None);
        let work = tail.unsaved();
        assert!(work.batches.is_empty());
        assert_eq!(work.high_waters, [(high_water.device().clone(), 1, 2)]);
    }

    #[test]
    fn a_disk_that_stands_still_bounds_what_sinks_confirm_too() {
        let mut tail = tail(Policy { max_pending: 1000, ..policy() }, 1);
        let mut appended = 0;
        while tail.add(batch(1..=1), None, SECOND).is_ok() {
            appended += 1;
            assert!(appended < 100, "everything is confirmed and nothing is saved");
            tail.confirm(0, Seq(appended));
        }
        assert_eq!(tail.unsettled_bytes(), 0);
        let upto = tail.unsaved().upto;
        tail.saved(upto);
        assert!(tail.add(batch(1..=1), None, SECOND).is_ok());
    }

    #[test]
    fn what_every_sink_confirmed_gives_way_to_new_readings_when_the_disk_saves_nothing() {
        let mut tail = tail(Policy { max_pending: 1000, ..policy() }, 2);
        let high_water = high_water();
        let mut next = 1;
        while tail.add(batch(next..=next), Some(&high_water), SECOND).is_ok() {
            next += 1;
        }
        assert_eq!(tail.gives_way_at(), None, "a sink has not confirmed them");
        assert!(tail.add(batch(next..=next), Some(&high_water), 100 * SECOND).is_err());
        tail.confirm(0, Seq(next - 1));
        tail.confirm(1, Seq(next - 1));
        assert_eq!((high_water.settled(), tail.gives_way_at()), (next - 1, Some(6 * SECOND)));
        assert!(tail.add(batch(next..=next), Some(&high_water), 5 * SECOND).is_err(), "the disk may be slow");
        for _ in 0..50 {
            tail.add(batch(next..=next), Some(&high_water), 6 * SECOND).expect("history gives way");
            tail.confirm(0, Seq(next));
            tail.confirm(1, Seq(next));
            assert_eq!(high_water.settled(), next, "devices are acknowledged");
            assert!(tail.total_bytes <= 1000, "{}", tail.total_bytes);
            next += 1;
        }
        let given_way = tail.take_given_way();
        assert_eq!((given_way, tail.take_given_way()), (50, 0));
        // Once the disk is back, what is left of it is saved.
        let work = tail.unsaved();
        assert_eq!(seqs(&work.batches), (given_way + 1..next).collect::<Vec<_>>());
        tail.saved(work.upto);
        assert_eq!((tail.gives_way_at(), tail.due()), (None, None));
    }

    #[test]
    fn what_no_mark_speaks_for_is_said_with_the_commit() {
        let (mut tail, high_water) = (tail(policy(), 1), high_water());
        tail.add(batch(1..=1), Some(&high_water), SECOND).expect("there is room");
        assert!(!tail.unsaved().untracked);
        tail.add(batch(1..=1), None, SECOND).expect("there is room");
        assert!(tail.unsaved().untracked);
    }

    #[test]
    fn devices_that_are_settled_without_a_commit_are_remembered_in_bounded_memory() {
        let mut tail =
            Tail::new(Policy { history_within: HistoryWithin::Off, ..policy() }, Seq(1), Seq(1 << 20), vec![Seq::ZERO]);
        let last = MAX_UNSAVED_HIGH_WATERS as u64 + 100;
        for device in 1..=last {
            let device = DeviceId::new(&format!("d{device}")).expect("a valid name");
            tail.add(batch(1..=1), Some(&HighWater::new(device, 1, 0)), SECOND).expect("there is room");
            tail.confirm(0, tail.next().prev());
        }
        assert_eq!(tail.unsaved_high_waters.len(), MAX_UNSAVED_HIGH_WATERS);
        assert_eq!(tail.due(), Some(Duration::ZERO), "they are to be written");
        assert_eq!((tail.unsaved().high_waters.len(), tail.due()), (MAX_UNSAVED_HIGH_WATERS, None));
    }

    #[test]
    fn a_slow_sink_and_new_readings_together_stay_within_the_bound() {
        let mut tail = tail(Policy { max_pending: 1000, ..policy() }, 1);
        for _ in 0..10 {
            while tail.add(batch(1..=1), None, SECOND).is_ok() {
                assert!(tail.total_bytes <= 1000 + batch(1..=1).memory(), "{}", tail.total_bytes);
            }
            let upto = tail.unsaved().upto;
            tail.saved(upto);
        }
    }

    #[test]
    fn memory_that_is_used_up_hands_the_batch_back_until_something_settles() {
        let mut tail = tail(Policy { max_pending: 1000, ..policy() }, 1);
        let mut appended = 0;
        while tail.add(batch(1..=1), None, SECOND).is_ok() {
            appended += 1;
        }
        assert!((2..20).contains(&appended), "{appended}");
        let upto = tail.unsaved().upto;
        tail.saved(upto);
        assert!(tail.add(batch(1..=1), None, SECOND).is_ok());
    }

    #[test]
    fn a_batch_that_is_handed_back_makes_a_commit_due_at_once() {
        let mut tail = tail(Policy { max_pending: 1000, ..policy() }, 1);
        let mut next = 1;
        while tail.add(batch(next..=next), None, SECOND).is_ok() {
            tail.confirm(0, Seq(next));
            next += 1;
        }
        assert_eq!(tail.due(), Some(Duration::ZERO), "what is confirmed does not wait for history");
        let upto = tail.unsaved().upto;
        tail.saved(upto);
        assert!(tail.add(batch(next..=next), None, SECOND).is_ok());
        assert_eq!(tail.due(), Some(2 * SECOND));
    }

    #[test]
    fn no_seq_beyond_the_reserved_ones_is_given_out() {
        let mut tail = Tail::new(policy(), Seq(1), Seq(2), vec![]);
        assert!(tail.add(batch(1..=3), None, SECOND).is_err());
        assert!(tail.add(batch(1..=2), None, SECOND).is_ok());
        assert!(tail.add(batch(3..=3), None, SECOND).is_err());
        tail.reserve(Seq(3));
        assert!(tail.add(batch(3..=3), None, SECOND).is_ok());
    }

    #[test]
    fn those_who_ask_for_much_fill_a_part_of_the_memory() {
        let mut tail = Tail::new(Policy { max_pending: 6 << 20, ..policy() }, Seq(1), Seq(2), vec![]);
        tail.add(batch(1..=1), None, SECOND).expect("there is room");
        assert!(tail.has_room(0, 1 << 20, false, SECOND) && !tail.has_room(1 << 20, 1 << 20, false, SECOND));
        assert!(tail.has_room(1 << 20, 1 << 20, true, SECOND), "but not those who ask for little");
        assert_eq!(tail.due(), Some(Duration::ZERO), "whoever waits hastens a commit");
        assert!(
            tail.add(batch(2..=3), None, SECOND).is_err() && !tail.has_room(0, 1, true, SECOND),
            "no seqs are left"
        );
        tail.reserve(Seq(3));
        assert!(tail.has_room(0, 1, true, SECOND));
    }

    #[test]
    fn a_full_segment_is_due_at_once() {
        let mut tail = tail(Policy { segment_bytes: 1, history_bytes: 1, ..policy() }, 1);
        tail.add(batch(1..=1), None, SECOND).expect("there is room");
        assert_eq!(tail.due(), Some(Duration::ZERO));
    }

    #[test]
    fn a_slow_sink_is_sent_to_the_disk_when_memory_is_short() {
        let mut tail = tail(Policy { max_pending: 2000, ..policy() }, 1);
        for seq in 1..=40 {
            tail.add(batch(seq..=seq), None, SECOND).expect("there is room");
            tail.saved(Seq(seq));
        }
        assert_eq!(tail.read(Seq::ZERO, 1 << 20), None);
        assert_eq!(tail.read(Seq(39), 1 << 20).map(|b| seqs(&b)), Some(vec![40]));
        assert!(tail.total_bytes <= 2000);
    }

    #[test]
    fn after_commit_hides_what_is_not_on_disk() {
        let mut tail = tail(Policy { after_commit: true, ..policy() }, 1);
        tail.add(batch(1..=1), None, SECOND).expect("there is room");
        assert_eq!(tail.read(Seq::ZERO, 1 << 20), Some(vec![]));
        tail.saved(Seq(1));
        assert_eq!(tail.read(Seq::ZERO, 1 << 20).map(|b| seqs(&b)), Some(vec![1]));
    }

    #[test]
    fn a_confirmation_of_what_was_never_sent_reaches_no_further_than_the_log() {
        let mut tail = tail(policy(), 1);
        tail.confirm(0, Seq(u64::MAX));
        assert_eq!(tail.confirmed(0), Seq::ZERO);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(u8),
        Confirm(u8, u8),
        Commit,
    }

    proptest! {
        /// Whatever happens in whatever order, a high-water mark is settled exactly as far as the
        /// disk or every sink has its readings, and each reading stays in memory
        /// until it needs neither disk nor sink.
        #[test]
        fn settled_means_on_disk_or_confirmed_by_all(
            steps in proptest::collection::vec(prop_oneof![
                (1u8..5).prop_map(Step::Append),
                (0u8..2, 0u8..60).prop_map(|(sink, upto)| Step::Confirm(sink, upto)),
                Just(Step::Commit),
            ], 0..60),
            history in prop_oneof![Just(HistoryWithin::Off), Just(HistoryWithin::Within(SECOND))],
        ) {
            let mut tail = tail(Policy { history_within: history, ..policy() }, 2);
            let high_water = high_water();
            let (mut next, mut disk, mut confirmed) = (1u64, 0u64, [0u64; 2]);
            let mut ends = vec![0u64];
            for step in steps {
                match step {
                    Step::Append(n) => {
                        let last = next + u64::from(n) - 1;
                        tail.add(batch(next..=last), Some(&high_water), SECOND).expect("there is room");
                        next = last + 1;
                        ends.push(last);
                    }
                    Step::Confirm(sink, upto) => {
                        let upto = u64::from(upto).min(next - 1);
                        tail.confirm(usize::from(sink), Seq(upto));
                        confirmed[usize::from(sink)] = confirmed[usize::from(sink)].max(upto);
                    }
                    Step::Commit => {
                        let work = tail.unsaved();
                        let everywhere = confirmed[0].min(confirmed[1]);
                        let (from, upto) = (seqs(&work.batches).first().copied().unwrap_or(next), work.upto.0);
                        prop_assert!(from <= disk.max(everywhere) + 1, "{} after {}", from, disk);
                        prop_assert_eq!(upto, next - 1);
                        tail.saved(work.upto);
                        disk = upto;
                    }
                }
                let frontier = disk.max(confirmed[0].min(confirmed[1]));
                let settled = ends.iter().copied().filter(|end| *end <= frontier).max().unwrap_or(0);
                prop_assert_eq!(high_water.settled(), settled);
                for (sink, confirmed) in confirmed.iter().enumerate() {
                    prop_assert_eq!(tail.confirmed(sink).0, *confirmed);
                    let unseen = tail.read(Seq(*confirmed), usize::MAX).map(|b| seqs(&b)).unwrap_or_default();
                    prop_assert_eq!(unseen.last().copied().unwrap_or(*confirmed), next - 1);
                }
            }
        }
    }
}
