//! What the log's parts share under its lock, and what the next commit takes of it.

use super::commit::Commit;
use super::disk::boot_times::BootTimes;
use super::disk::headroom::DiskState;
use super::disk::log_clock::LogClock;
use super::disk::schema;
use super::inbox::Inbox;
use super::presence::UnwrittenPresence;
use super::recovery::restore_job::Restored;
use super::retention::gap::{Gap, Hole, add_gap, add_holes};
use super::sinks::positions::{self, ForgottenSink, RetiredSink};
use super::sinks::unreported_gaps::Unreported;
use super::tail::high_water::HighWaters;
use super::tail::room::Room;
use super::tail::{Tail, Unsaved};
use crate::clock::Now;
use crate::model::Seq;
use parking_lot::Condvar;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct State {
    pub tail: Tail,
    pub room: Room,
    pub high_waters: HighWaters,
    /// Confirmed event of each sink.
    pub events: Vec<u64>,
    /// What each sink has missed, and is told.
    pub unreported: Vec<Unreported>,
    /// Sinks that are not configured any more.
    pub retired: Vec<RetiredSink>,
    /// These are forgotten after so many seconds.
    pub forget_after: u64,
    /// What the disk has of each sink's confirmed seq and event.
    pub persisted: Vec<(Seq, u64)>,
    /// The last seq that lies on disk.
    pub written: Seq,
    /// When positions that moved on without a commit are written all the same.
    pub positions_due: Option<Duration>,
    /// Seqs without readings, oldest first.
    pub holes: Vec<Hole>,
    pub gaps: Vec<Gap>,
    pub boots: BootTimes,
    /// Other events that are to be written.
    pub notices: Vec<String>,
    pub presence: UnwrittenPresence,
    /// How often something was to be written of it so far, and how much of that is on disk.
    pub presence_calls: (u64, u64),
    pub inbox: Inbox,
    pub disk: DiskState,
    pub log_clock: LogClock,
    /// When the disk and the age of readings are looked at next, also if nothing happens.
    pub check_due: Duration,
    /// When it was last logged that readings were dropped.
    pub warned: Option<Duration>,
    /// Until when the writer sleeps; zero while it works.
    pub sleeping_until: Duration,
    pub flush: bool,
    pub close: bool,
    pub failure: Option<String>,
    pub last_progress: Duration,
    /// The database is damaged: nothing more is written to it.
    pub damaged: bool,
    /// From quarantined databases, to be written; and whether some is being written.
    pub restored: Restored,
    pub restoring: bool,
}

/// Sinks' positions are written at the latest this long after they moved over
/// readings that are on disk; a crash redelivers at most what they moved over since.
const POSITIONS_WITHIN: Duration = Duration::from_secs(5);
/// How often the disk and the age of readings are looked at, at the least.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Events other than gaps that wait for being written; the oldest go first.
const MAX_NOTICES: usize = 256;
/// While so many wait, nothing is told that may be left out.
const TELLABLE: usize = 128;
/// So few redelivered readings are not worth a write.
const POSITIONS_SLACK: u64 = 256;

impl State {
    /// When the writer has something to do next.
    pub fn due(&self) -> Option<Duration> {
        let reserve = (self.tail.reserve_left() < schema::SEQ_BLOCK / 2).then_some(Duration::ZERO);
        let asked = (self.damaged || self.has_waiters()).then_some(Duration::ZERO);
        [reserve, asked, self.tail.due(), self.positions_due, Some(self.check_due)].into_iter().flatten().min()
    }

    /// Whether somebody waits for a commit.
    fn has_waiters(&self) -> bool {
        let events = !self.gaps.is_empty() || !self.notices.is_empty() || !self.presence.is_empty();
        let waited_for = self.flush || self.close || self.inbox.is_due();
        let untold = (0..self.unreported.len()).any(|sink| self.unreported[sink].untold && self.is_to_be_told(sink)); // below it
        waited_for || untold || events || self.restored.is_due() || self.boots.is_due()
    }

    /// Whether sink number `sink` is told what it misses: somebody listens, and it has
    /// confirmed what it was told before.
    fn is_to_be_told(&self, sink: usize) -> bool {
        let Unreported { listening, told, .. } = self.unreported[sink]; // one for each sink
        listening && told <= self.events[sink]
    }

    /// Whether sink number `sink`, of this name, would be told something if it listened.
    pub fn has_news(&self, sink: usize, name: &Arc<str>) -> bool {
        let Unreported { untold, told, .. } = self.unreported[sink]; // one for each sink
        let missing = untold || self.gaps.iter().any(|gap| gap.undelivered.iter().any(|(missing, _)| missing == name));
        missing && told <= self.events[sink] && self.failure.is_none() && !self.is_over()
    }

    /// Whether nothing more will be written.
    pub fn is_over(&self) -> bool {
        self.close || self.damaged
    }

    /// Wakes the writer if there is something to write that it does not know of.
    pub fn wake(&mut self, due: &Condvar) {
        if self.due().is_some_and(|due| due < self.sleeping_until) {
            self.sleeping_until = Duration::ZERO;
            due.notify_one();
        }
    }

    /// Has an event written with the next commit.
    pub fn notify(&mut self, body: String) {
        self.notices.push(body);
        let surplus = self.notices.len().saturating_sub(MAX_NOTICES);
        self.notices.drain(..surplus);
    }

    /// Whether more may be told than what must be.
    pub fn may_tell(&self) -> bool {
        self.notices.len() < TELLABLE
    }

    /// A commit was not written: what it took along is to be written again.
    pub fn take_back(&mut self, commit: Commit) {
        self.tail.not_saved(commit.high_waters);
        self.restored.put_back(commit.restored);
        self.presence.put_back(commit.presence);
        self.inbox.put_back(commit.inbox);
        self.restoring = false;
        let newer = std::mem::replace(&mut self.gaps, commit.gaps);
        newer.into_iter().for_each(|gap| add_gap(&mut self.gaps, gap));
        for newer in std::mem::replace(&mut self.notices, commit.notices) {
            self.notify(newer);
        }
    }

    /// Collects what the next commit writes.
    pub fn commit(&mut self, names: &[Arc<str>], now: Now) -> (Commit, Seq) {
        // Looking at the disk is no reason to write what may wait.
        let other = [self.tail.due(), self.positions_due].into_iter().flatten().any(|due| due <= now.monotonic);
        let check_only = !(other || self.has_waiters() || self.tail.reserve_left() < schema::SEQ_BLOCK / 2);
        let unsaved = match check_only {
            true => Unsaved { upto: self.tail.saved_upto(), ..Unsaved::default() },
            false => self.tail.unsaved(),
        };
        let position = |(i, name): (usize, &Arc<str>)| (name.clone(), self.tail.confirmed(i), self.events[i]);
        let sinks = names.iter().enumerate().map(position).collect();
        let reserve =
            (self.tail.reserve_left() < schema::SEQ_BLOCK / 2).then(|| self.tail.next().plus(schema::SEQ_BLOCK));
        let clock = self.log_clock.read(now);
        let expired = positions::expired(&self.retired, clock, self.forget_after);
        let forget = expired.into_iter().map(|sink| self.forgotten(&sink)).collect();
        let numbered = || names.iter().enumerate();
        let tell = numbered().filter(|(sink, _)| self.is_to_be_told(*sink)).map(|(_, name)| name.clone()).collect();
        let heard = |sink: &usize| (1..=self.events[*sink]).contains(&self.unreported[*sink].told); // one for each sink
        let heard = numbered().filter(|(sink, _)| heard(sink)).map(|(_, name)| name.clone()).collect();
        self.miss_history();
        let gaps = std::mem::take(&mut self.gaps);
        let clean = Some(self.tail.next()).filter(|next| self.close && unsaved.upto.next() == *next);
        let writes = !unsaved.batches.is_empty() || clean.is_some();
        let commit = Commit {
            batches: unsaved.batches,
            high_waters: unsaved.high_waters,
            covered: unsaved.covered,
            untracked: unsaved.untracked,
            sinks,
            reserve,
            gaps,
            notices: std::mem::take(&mut self.notices),
            presence: std::mem::take(&mut self.presence),
            inbox: self.inbox.take(),
            boot: self.boots.update(),
            clean,
            now: now.wall,
            clock,
            keep_clock: if writes { self.log_clock.keep(now, clean.is_some()) } else { None },
            check_only,
            retired: self.retired.clone(),
            forget,
            tell,
            heard,
            restored: if check_only { Restored::default() } else { self.restored.take(unsaved.upto) },
        };
        self.restoring = !commit.restored.is_empty();
        if !check_only {
            self.positions_due = None;
        }
        self.flush = false;
        self.check_due = now.monotonic + CHECK_EVERY;
        (commit, unsaved.upto)
    }

    /// Notes that sink number `sink` moved on, and when that must be on disk.
    pub fn moved(&mut self, sink: usize, now: Duration) {
        let on_disk = self.tail.confirmed(sink).min(self.written);
        let (seq, event) = self.persisted[sink]; // one for each sink
        if on_disk.0 > seq.0 + POSITIONS_SLACK || self.events[sink] != event {
            self.positions_due.get_or_insert(now + POSITIONS_WITHIN);
        }
    }

    /// Readings that are kept nowhere, since every sink that is configured confirmed them,
    /// are missed by those that may come back.
    fn miss_history(&mut self) {
        let Some((first, last, missing)) = self.tail.take_unwritten().filter(|_| !self.retired.is_empty()) else {
            return;
        };
        add_holes(&mut self.holes, &[Hole { first, last, missing }]);
        let undelivered = self.retired.iter().map(|sink| (sink.name.clone(), missing)).collect();
        add_gap(&mut self.gaps, Gap { reason: "no_history", first, last, count: 0, undelivered });
    }

    /// What is lost if the position of a sink is forgotten.
    pub fn forgotten(&self, sink: &RetiredSink) -> ForgottenSink {
        let (first, last) = (sink.confirmed.next(), self.tail.visible());
        ForgottenSink { name: sink.name.clone(), count: self.pending_after(sink.confirmed), first, last }
    }

    /// What an operator should know of a sink that is not configured any more, if readings
    /// are kept for it.
    pub fn waits_for(&self, sink: &RetiredSink) -> Option<String> {
        let (name, readings) = (&sink.name, self.pending_after(sink.confirmed));
        (readings > 0).then(|| {
            format!(
                "the sink {name} is not configured any more, and {readings} readings are kept for it as history; if it was \
                 renamed, stop the gateway and say `tidegate queue rename-sink {name} NEW`; if it is not to come back, \
                 `tidegate queue forget-sink {name}`"
            )
        })
    }

    /// Readings between the sink's position and the newest that it may see.
    pub fn pending(&self, sink: usize) -> u64 {
        self.pending_after(self.tail.confirmed(sink))
    }

    fn pending_after(&self, confirmed: Seq) -> u64 {
        let (from, upto) = (confirmed.0, self.tail.visible().0);
        let missing: u64 = self.holes.iter().map(|hole| hole.missing_between(Seq(from), Seq(upto))).sum();
        upto.saturating_sub(from).saturating_sub(missing)
    }
}
