//! Notes on links and sinks that do not work, or fail repeatedly: the reason, and since when.
//! The driver of a part updates its note; `/health/ready` shows it.

use crate::clock::Now;
use crate::model::Timestamp;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Failures count for this time.
const WINDOW: Duration = Duration::from_secs(300);
/// Failures in the same slot are counted together.
const SLOT: Duration = Duration::from_secs(30);
/// This many failures within [`WINDOW`] are reported, even if the part works at present.
const OFTEN: u64 = 3;

/// The notes of all parts, in the order of creation. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<Vec<Note>>>);

/// The state of one part. Clones share it.
#[derive(Debug, Clone)]
pub struct Note {
    part: Arc<str>,
    state: Arc<Mutex<State>>,
}

/// A note to report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The link's or sink's name.
    pub part: Arc<str>,
    /// Whether it works at present.
    pub works: bool,
    pub reason: String,
    /// On the wall clock as it is now, in whole seconds.
    pub since: Timestamp,
}

#[derive(Debug, Default)]
struct State {
    /// Why it does not work, and since when on the monotonic clock.
    down: Option<(String, Duration)>,
    /// Failures by the start of their slot.
    failures: VecDeque<(Duration, u64)>,
    /// Time of the first failure, and reason of the last.
    first: Duration,
    last: String,
}

impl Notes {
    /// Adds a note for the part of this name.
    pub fn about(&self, part: impl Into<Arc<str>>) -> Note {
        let note = Note::new(part);
        self.0.lock().push(note.clone());
        note
    }

    /// The notes to report.
    pub fn told(&self, now: Now) -> Vec<Told> {
        self.0.lock().iter().filter_map(|note| note.told(now)).collect()
    }
}

impl Note {
    /// For a part without problems so far.
    pub fn new(part: impl Into<Arc<str>>) -> Note {
        Note { part: part.into(), state: Arc::default() }
    }

    /// The part works.
    pub fn works(&self) {
        self.state.lock().down = None;
    }

    /// The part does not work for this `reason`: since `now` on the monotonic clock if it worked
    /// before.
    pub fn is_down(&self, reason: impl Into<String>, now: Duration) {
        let mut state = self.state.lock();
        let since = state.down.as_ref().map_or(now, |(_, since)| *since);
        state.down = Some((reason.into(), since));
    }

    /// The part worked, and failed at `now`: it may work again at once.
    pub fn failed(&self, reason: impl Into<String>, now: Duration) {
        let mut state = self.state.lock();
        state.forget(now);
        match state.failures.back_mut().filter(|(start, _)| now.saturating_sub(*start) < SLOT) {
            Some((_, count)) => *count += 1,
            None => {
                if state.failures.is_empty() {
                    state.first = now;
                }
                state.failures.push_back((now, 1));
            }
        }
        state.last = reason.into();
    }

    /// The note, if there is something to report.
    pub fn told(&self, now: Now) -> Option<Told> {
        let mut state = self.state.lock();
        state.forget(now.monotonic);
        let count: u64 = state.failures.iter().map(|(_, count)| count).sum();
        let often = (count >= OFTEN).then(|| format!("it failed {count} times within the last 5 minutes"));
        let (reason, since) = match (&state.down, often) {
            (None, None) => return None,
            (Some((reason, since)), None) => (reason.clone(), *since),
            (Some((reason, since)), Some(often)) => (format!("{reason}; {often}"), *since),
            (None, Some(often)) => (format!("works now, but {often}, the last time: {}", state.last), state.first),
        };
        let works = state.down.is_none();
        // The two clocks are not read at the same microsecond.
        let since = now.start().plus(since);
        let since = Timestamp(since.0 - since.0.rem_euclid(1_000_000));
        Some(Told { part: self.part.clone(), works, reason, since })
    }
}

impl State {
    fn forget(&mut self, now: Duration) {
        while self.failures.front().is_some_and(|(start, _)| now.saturating_sub(*start) >= WINDOW) {
            self.failures.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: Timestamp = Timestamp(1_795_395_723_000_000);

    fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at(seconds: u64) -> Now {
        Now { wall: BOOT.plus(second(seconds)), trusted: true, monotonic: second(seconds) }
    }

    fn told(note: &Note, now: u64) -> Option<(String, Timestamp)> {
        note.told(at(now)).map(|told| (told.reason, told.since))
    }

    #[test]
    fn a_part_that_does_not_work_is_told_with_its_latest_reason_and_since_when() {
        let notes = Notes::default();
        let (fine, broken) = (notes.about("fine"), notes.about("broken"));
        assert_eq!(notes.told(at(5)), []);
        broken.is_down("no such file", second(10));
        broken.is_down("no permission", second(20));
        let since = BOOT.plus(second(10));
        let expected = Told { part: "broken".into(), works: false, reason: "no permission".into(), since };
        assert_eq!(notes.told(at(30)), [expected]);
        broken.works();
        assert_eq!((told(&broken, 30), told(&fine, 30)), (None, None));
        broken.is_down("no such file", second(40));
        assert_eq!(told(&broken, 50), Some(("no such file".into(), BOOT.plus(second(40)))));
        // The clock was set in the meantime.
        let set = Now { wall: Timestamp(BOOT.0 + 7_050_000_000), ..at(50) };
        assert_eq!(broken.told(set).map(|told| told.since), Some(Timestamp(BOOT.0 + 7_040_000_000)));
    }

    #[test]
    fn a_part_that_fails_again_and_again_is_told_though_it_works() {
        let note = Note::new("flapping");
        for now in [100, 101] {
            note.failed("reset", second(now));
        }
        assert_eq!(told(&note, 102), None, "that happens");
        note.failed("timed out", second(140));
        let reason = "works now, but it failed 3 times within the last 5 minutes, the last time: timed out";
        assert_eq!(told(&note, 141), Some((reason.into(), BOOT.plus(second(100)))));
        note.is_down("refused", second(150));
        let reason = "refused; it failed 3 times within the last 5 minutes";
        assert_eq!(told(&note, 151), Some((reason.into(), BOOT.plus(second(150)))));
        note.works();
        assert_eq!(told(&note, 400), None, "all is long past");
        for now in 1000..11_000 {
            note.failed("reset", second(now));
        }
        assert!(note.state.lock().failures.len() <= 11);
    }
}
