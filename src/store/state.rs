//! What the log's parts share under its lock, and what the next commit takes of it.

use super::attendance::Attendance;
use super::boots::Boots;
use super::disk::Commit;
use super::gap::{Gap, Hole};
use super::headroom::DiskState;
use super::inbox::Inbox;
use super::logclock::LogClock;
use super::mark::Marks;
use super::restore::Restored;
use super::schema;
use super::tail::{Tail, Unsaved};
use crate::clock::Now;
use crate::model::Seq;
use parking_lot::Condvar;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct State {
    pub tail: Tail,
    pub marks: Marks,
    /// Confirmed event of each sink.
    pub events: Vec<u64>,
    /// What the disk has of each sink's confirmed seq and event.
    pub persisted: Vec<(Seq, u64)>,
    /// The last seq that lies on disk.
    pub written: Seq,
    /// When places that moved on without a commit are written all the same.
    pub places_due: Option<Duration>,
    /// Seqs without readings, oldest first.
    pub holes: Vec<Hole>,
    pub gaps: Vec<Gap>,
    pub boots: Boots,
    /// Other events that are to be written.
    pub notices: Vec<String>,
    pub attendance: Attendance,
    /// How often something was to be written of it so far, and how much of that is on disk.
    pub attended: (u64, u64),
    pub inbox: Inbox,
    pub disk: DiskState,
    pub log_clock: LogClock,
    /// When the disk and the age of readings are looked at next, also if nothing happens.
    pub check_due: Duration,
    /// When it was last logged that readings were dropped.
    pub warned: Option<Duration>,
    /// The last event that was shown to a sink.
    pub seen_event: u64,
    /// A commit is being written: it may change events that were not shown before it began.
    pub committing: bool,
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

/// Sinks' places are written at the latest this long after they moved over
/// readings that are on disk; a crash redelivers at most what they moved over since.
const PLACES_WITHIN: Duration = Duration::from_secs(5);
/// How often the disk and the age of readings are looked at, at the least.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Events other than gaps that wait for being written; the oldest go first.
const MAX_NOTICES: usize = 16;
/// So few redelivered readings are not worth a write.
const PLACES_SLACK: u64 = 256;

impl State {
    /// When the writer has something to do next.
    pub fn due(&self) -> Option<Duration> {
        let reserve = (self.tail.reserve_left() < schema::SEQ_BLOCK / 2).then_some(Duration::ZERO);
        let asked = (self.damaged || self.is_asked()).then_some(Duration::ZERO);
        [reserve, asked, self.tail.due(), self.places_due, Some(self.check_due)].into_iter().flatten().min()
    }

    /// Whether somebody waits for a commit.
    fn is_asked(&self) -> bool {
        let events = !self.gaps.is_empty() || !self.notices.is_empty() || !self.attendance.is_empty();
        let waited_for = self.flush || self.close || self.inbox.is_due();
        waited_for || events || self.restored.is_due() || self.boots.is_due()
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

    /// A commit was not written: what it took along is to be written again.
    pub fn take_back(&mut self, commit: Commit) {
        self.tail.not_saved(commit.marks);
        self.restored.put_back(commit.restored);
        self.attendance.put_back(commit.attendance);
        self.inbox.put_back(commit.inbox);
        self.restoring = false;
        let newer = std::mem::replace(&mut self.gaps, commit.gaps);
        self.gaps.extend(newer);
        for newer in std::mem::replace(&mut self.notices, commit.notices) {
            self.notify(newer);
        }
    }

    /// Collects what the next commit writes.
    pub fn commit(&mut self, names: &[Arc<str>], now: Now) -> (Commit, Seq) {
        // Looking at the disk is no reason to write what may wait.
        let other = [self.tail.due(), self.places_due].into_iter().flatten().any(|due| due <= now.monotonic);
        let check_only = !(other || self.is_asked() || self.tail.reserve_left() < schema::SEQ_BLOCK / 2);
        let unsaved = match check_only {
            true => Unsaved { upto: self.tail.saved_upto(), ..Unsaved::default() },
            false => self.tail.unsaved(),
        };
        let sinks = names.iter().enumerate().map(|(i, name)| (name.clone(), self.tail.confirmed(i), self.events[i]));
        let reserve =
            (self.tail.reserve_left() < schema::SEQ_BLOCK / 2).then(|| self.tail.next().plus(schema::SEQ_BLOCK));
        let clean = Some(self.tail.next()).filter(|next| self.close && unsaved.upto.next() == *next);
        let writes = !unsaved.batches.is_empty() || clean.is_some();
        let commit = Commit {
            batches: unsaved.batches,
            marks: unsaved.marks,
            covered: unsaved.covered,
            unmarked: unsaved.unmarked,
            sinks: sinks.collect(),
            reserve,
            gaps: std::mem::take(&mut self.gaps),
            notices: std::mem::take(&mut self.notices),
            attendance: std::mem::take(&mut self.attendance),
            inbox: self.inbox.take(),
            boot: self.boots.news(),
            clean,
            now: now.wall,
            clock: self.log_clock.read(now),
            keep_clock: if writes { self.log_clock.keep(now, clean.is_some()) } else { None },
            check_only,
            seen_event: self.seen_event,
            restored: if check_only { Restored::default() } else { self.restored.take(unsaved.upto) },
        };
        self.committing = true;
        self.restoring = !commit.restored.is_empty();
        if !check_only {
            self.places_due = None;
        }
        self.flush = false;
        self.check_due = now.monotonic + CHECK_EVERY;
        (commit, unsaved.upto)
    }

    /// Notes that sink number `sink` moved on, and when that must be on disk.
    pub fn moved(&mut self, sink: usize, now: Duration) {
        let on_disk = self.tail.confirmed(sink).min(self.written);
        let (seq, event) = self.persisted[sink]; // one for each sink
        if on_disk.0 > seq.0 + PLACES_SLACK || self.events[sink] != event {
            self.places_due.get_or_insert(now + PLACES_WITHIN);
        }
    }

    /// Readings between the sink's place and the newest that it may see.
    pub fn pending(&self, sink: usize) -> u64 {
        let (from, upto) = (self.tail.confirmed(sink).0, self.tail.visible().0);
        let missing: u64 = self.holes.iter().map(|hole| hole.missing_between(Seq(from), Seq(upto))).sum();
        upto.saturating_sub(from).saturating_sub(missing)
    }
}
