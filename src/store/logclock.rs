//! The log's own clock: seconds for which the log has existed, as far as that can be
//! known. Pure.
//!
//! The age of readings is measured by it and not by the wall clock, whose steps would
//! otherwise drop everything at once. It advances with the monotonic clock; over a
//! restart by the difference of the wall clock, if both ends can be believed and it is
//! neither negative nor absurd. Where that cannot be known it stands still: readings
//! then live longer, never shorter.

use crate::clock::Now;
use crate::model::Timestamp;
use std::time::Duration;

/// A box that was off for longer than this starts where it stopped.
const LONGEST_STOP: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often the clock's state is written, at the least, while something else is.
const KEEP_EVERY: u64 = 60;

/// What is kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Kept {
    /// What the log's clock showed, in seconds.
    pub seconds: u64,
    /// The wall clock then; 0 if it could not be believed.
    pub wall: Timestamp,
}

#[derive(Debug)]
pub(super) struct LogClock {
    /// What it showed at the start, in seconds, and the monotonic time then.
    base: u64,
    started: Duration,
    /// The wall clock at the last stop, until it is known how long that was.
    stopped: Option<Timestamp>,
    written: u64,
}

impl LogClock {
    /// Goes on from what the last life kept; at least from `newest`, what the newest
    /// segment says.
    pub fn new(kept: Kept, newest: u64, now: Now) -> LogClock {
        let base = kept.seconds.max(newest);
        let stopped = (kept.wall > Timestamp(0)).then_some(kept.wall);
        LogClock { base, started: now.monotonic, stopped, written: 0 }
    }

    /// The seconds that it shows.
    pub fn read(&mut self, now: Now) -> u64 {
        let running = now.monotonic.saturating_sub(self.started);
        if let Some(stopped) = self.stopped.filter(|_| now.trusted) {
            self.stopped = None;
            let since = u64::try_from(now.wall.0.saturating_sub(stopped.0)).unwrap_or(0);
            let stop = Duration::from_micros(since).saturating_sub(running);
            if stop <= LONGEST_STOP {
                self.base += stop.as_secs();
            }
        }
        self.base + running.as_secs()
    }

    /// What to keep with a commit that writes anyway (`always`: in any case); `None`
    /// if what was kept is recent enough.
    pub fn keep(&mut self, now: Now, always: bool) -> Option<Kept> {
        let seconds = self.read(now);
        if !always && self.written != 0 && seconds < self.written + KEEP_EVERY {
            return None;
        }
        self.written = seconds.max(1);
        Some(Kept { seconds, wall: if now.trusted { now.wall } else { Timestamp(0) } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;
    const WALL: i64 = 1_800_000_000;

    fn at(wall: i64, trusted: bool, running: u64) -> Now {
        Now { wall: Timestamp(wall * 1_000_000), trusted, monotonic: Duration::from_secs(running) }
    }

    fn kept(seconds: u64, wall: i64) -> Kept {
        Kept { seconds, wall: Timestamp(wall * 1_000_000) }
    }

    #[test]
    fn steps_of_the_wall_clock_leave_it_alone() {
        let mut clock = LogClock::new(Kept::default(), 0, at(WALL, true, 5));
        assert_eq!(clock.read(at(WALL + 10, true, 15)), 10);
        assert_eq!(clock.read(at(WALL + 1_000_000_000, true, 20)), 15);
        assert_eq!(clock.read(at(0, true, 25)), 20);
    }

    #[test]
    fn the_time_of_a_stop_counts_once_it_is_known() {
        let mut clock = LogClock::new(kept(1000, WALL), 0, at(3, false, 0));
        assert_eq!(clock.read(at(10, false, 7)), 1007, "not known yet");
        assert_eq!(clock.read(at(WALL + 3600, true, 100)), 1000 + 3600);
        assert_eq!(clock.read(at(WALL + 3610, true, 110)), 1000 + 3610, "only once");
    }

    #[test]
    fn a_stop_that_is_negative_absurd_or_unknown_counts_nothing() {
        let absurd = WALL + i64::try_from(31 * DAY).expect("small");
        for now in [WALL - 1000, absurd] {
            let mut clock = LogClock::new(kept(1000, WALL), 0, at(now, true, 0));
            assert_eq!(clock.read(at(now, true, 0)), 1000);
        }
        let mut clock = LogClock::new(kept(1000, 0), 0, at(WALL, true, 0));
        assert_eq!(clock.read(at(WALL, true, 0)), 1000);
    }

    #[test]
    fn it_never_falls_behind_the_newest_segment() {
        let mut clock = LogClock::new(kept(1000, WALL), 1030, at(WALL, false, 0));
        assert_eq!(clock.read(at(WALL, false, 2)), 1032);
    }

    #[test]
    fn it_is_kept_once_a_minute_and_when_asked() {
        let mut clock = LogClock::new(Kept::default(), 0, at(WALL, true, 0));
        assert!(clock.keep(at(WALL, true, 0), false).is_some());
        assert_eq!(clock.keep(at(WALL, true, 59), false), None);
        assert_eq!(clock.keep(at(WALL + 61, true, 61), false), Some(kept(61, WALL + 61)));
        assert_eq!(clock.keep(at(0, false, 62), true), Some(kept(62, 0)));
    }
}
