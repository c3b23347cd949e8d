//! The log's own clock: seconds for which the log has existed, as far as that is proven.
//! Pure.
//!
//! The age of readings is measured by it, and how long ended commands are remembered. It
//! goes by the machine's uptime alone, over restarts of the gateway too: no step of the
//! wall clock, believed or not, ages anything. While the machine is off it stands still,
//! since only the wall clock could tell how long that was: readings then live longer,
//! never shorter.

use crate::clock::Now;
use crate::model::BootId;
use std::time::Duration;

/// How often the clock's state is written, at the least, while something else is.
const KEEP_EVERY: u64 = 60;

/// What is kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::store) struct StoredClock {
    /// What the log's clock showed, in seconds.
    pub seconds: u64,
    /// Stands for the boot of the machine, 0 if that is not known; its uptime then, in
    /// seconds that have begun: the clock must not run ahead of the time that passes.
    pub boot: u64,
    pub uptime: u64,
}

impl StoredClock {
    /// Whether it was kept in this boot of the machine.
    pub fn is_of(self, boot: BootId) -> bool {
        self.boot == boot_stamp(boot)
    }
}

#[derive(Debug)]
pub(in crate::store) struct LogClock {
    /// What it showed at the start, in seconds, and the monotonic time then.
    base: u64,
    started: Duration,
    boot: u64,
    written: u64,
}

impl LogClock {
    /// Goes on from what the last life kept, in this boot of the machine; at least from
    /// `newest`, what the newest segment says.
    pub fn new(kept: StoredClock, newest: u64, boot: BootId, now: Now) -> LogClock {
        let boot = boot_stamp(boot);
        let stop = match kept.boot == boot {
            true => now.monotonic.as_secs().saturating_sub(kept.uptime),
            false => 0,
        };
        LogClock { base: kept.seconds.saturating_add(stop).max(newest), started: now.monotonic, boot, written: 0 }
    }

    /// The seconds that it shows.
    pub fn read(&self, now: Now) -> u64 {
        self.base + now.monotonic.saturating_sub(self.started).as_secs()
    }

    /// What to keep with a commit that writes anyway (`always`: in any case); `None`
    /// if what was kept is recent enough.
    pub fn keep(&mut self, now: Now, always: bool) -> Option<StoredClock> {
        let seconds = self.read(now);
        if !always && self.written != 0 && seconds < self.written + KEEP_EVERY {
            return None;
        }
        self.written = seconds.max(1);
        Some(StoredClock { seconds, boot: self.boot, uptime: now.monotonic.as_nanos().div_ceil(1_000_000_000) as u64 })
    }
}

/// Stands for a boot in 63 bits, never 0.
fn boot_stamp(boot: BootId) -> u64 {
    let (high, low) = ((u128::from_be_bytes(boot.0) >> 64) as u64, u128::from_be_bytes(boot.0) as u64);
    ((high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low) >> 1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    const WALL: i64 = 1_800_000_000;
    const BOOT: BootId = BootId([1; 16]);
    const NEXT: BootId = BootId([2; 16]);

    fn at(wall: i64, trusted: bool, uptime: u64) -> Now {
        Now { wall: Timestamp(wall * 1_000_000), trusted, monotonic: Duration::from_secs(uptime) }
    }

    fn kept(seconds: u64, uptime: u64) -> StoredClock {
        StoredClock { seconds, boot: boot_stamp(BOOT), uptime }
    }

    #[test]
    fn steps_of_the_wall_clock_leave_it_alone() {
        let clock = LogClock::new(StoredClock::default(), 0, BOOT, at(WALL, true, 5));
        assert_eq!(clock.read(at(WALL + 10, true, 15)), 10);
        assert_eq!(clock.read(at(WALL + 1_000_000_000, true, 20)), 15);
        assert_eq!(clock.read(at(0, true, 25)), 20);
    }

    #[test]
    fn a_stop_within_one_boot_counts_as_the_uptime_has_it() {
        for wall in [WALL - 1000, WALL, WALL + 20 * 24 * 3600] {
            let clock = LogClock::new(kept(1000, 70), 0, BOOT, at(wall, true, 100));
            assert_eq!(clock.read(at(wall, true, 107)), 1037);
        }
    }

    #[test]
    fn restarts_do_not_make_it_run_ahead() {
        let at = |uptime: f64| Now { monotonic: Duration::from_secs_f64(uptime), ..at(WALL, true, 0) };
        let (mut kept, mut uptime) = (StoredClock::default(), 10.0);
        for _ in 0..20 {
            let mut clock = LogClock::new(kept, 0, BOOT, at(uptime));
            uptime += 1.95;
            kept = clock.keep(at(uptime), true).expect("always");
            uptime += 0.1;
            let shows = LogClock::new(kept, 0, BOOT, at(uptime)).read(at(uptime));
            assert!(shows as f64 <= uptime - 10.0, "{shows} at {uptime}");
        }
    }

    #[test]
    fn a_stop_over_a_boot_counts_nothing_whatever_the_wall_clock_says() {
        for (wall, trusted) in [(WALL + 60, true), (WALL + 20 * 24 * 3600, true), (5, false)] {
            let clock = LogClock::new(kept(1000, 70), 0, NEXT, at(wall, trusted, 100));
            assert_eq!(clock.read(at(wall + 3600, true, 130)), 1030);
        }
    }

    #[test]
    fn it_never_falls_behind_the_newest_segment() {
        let clock = LogClock::new(kept(1000, 0), 1030, NEXT, at(WALL, false, 0));
        assert_eq!(clock.read(at(WALL, false, 2)), 1032);
    }

    #[test]
    fn it_is_kept_once_a_minute_and_when_asked() {
        let mut clock = LogClock::new(StoredClock::default(), 0, BOOT, at(WALL, true, 0));
        assert!(clock.keep(at(WALL, true, 0), false).is_some());
        assert_eq!(clock.keep(at(WALL, true, 59), false), None);
        assert_eq!(clock.keep(at(WALL + 61, true, 61), false), Some(kept(61, 61)));
        assert_eq!(clock.keep(at(0, false, 62), true), Some(kept(62, 62)));
    }
}
