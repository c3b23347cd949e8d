//! Wall and monotonic time, with a flag that says whether the wall clock can be
//! believed. Boxes without a battery-backed clock boot in the past.

use crate::model::Timestamp;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One look at the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// UTC; may step in both directions.
    pub wall: Timestamp,
    /// Whether `wall` is plausible. False on a box that has not got the time yet.
    pub trusted: bool,
    /// Since an arbitrary start; never steps back.
    pub monotonic: Duration,
}

/// Where time comes from; passed in, so that tests and simulations bring their own.
pub trait Clock: Send + Sync {
    fn now(&self) -> Now;
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

/// 2026-01-01T00:00:00Z: no box can run this program before it was written.
const EARLIEST_PLAUSIBLE: Timestamp = Timestamp(1_767_225_600_000_000);

impl SystemClock {
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp(0).plus(since_1970);
        Now { wall, trusted: wall >= EARLIEST_PLAUSIBLE, monotonic: self.start.elapsed() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_trusts_only_a_plausible_time() {
        let now = SystemClock::new().now();
        assert_eq!(now.trusted, now.wall >= EARLIEST_PLAUSIBLE);
        assert_eq!(EARLIEST_PLAUSIBLE.to_string(), "2026-01-01T00:00:00.000000Z");
    }
}
