//! When a simulated device takes its readings. Times are on the monotonic clock.

use std::time::Duration;

/// The plan of one device: number, times and bursts of its readings.
#[derive(Debug, Clone)]
pub struct Pace {
    start: Duration,
    /// Nanoseconds between readings; `None`: as fast as Acks allow.
    interval_ns: Option<f64>,
    burst: u64,
    /// Total readings; `None`: as many as `until` allows.
    readings: Option<u64>,
    until: Option<Duration>,
}

/// What ends a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// This many readings of the device.
    Readings(u64),
    /// A time during which the device stays connected.
    For(Duration),
}

impl Pace {
    /// A plan that begins at `start`, with `interval` between readings (zero: as fast as Acks
    /// allow) and `burst` readings at a time.
    pub fn new(start: Duration, interval: Duration, burst: u64, length: Length) -> Pace {
        let interval_ns = (!interval.is_zero()).then_some(interval.as_nanos() as f64);
        let (readings, until) = match (length, interval_ns) {
            (Length::Readings(readings), _) => (Some(readings), None),
            // Those due before the end; a larger float saturates to u64::MAX.
            (Length::For(time), Some(ns)) => {
                (Some((time.as_nanos() as f64 / ns).ceil() as u64), Some(start.saturating_add(time)))
            }
            (Length::For(time), None) => (None, Some(start.saturating_add(time))),
        };
        Pace { start, interval_ns, burst: burst.max(1), readings, until }
    }

    /// The same plan with its readings `phase` later; its end, if it is a time, stays the same.
    pub fn delayed(mut self, phase: Duration) -> Pace {
        self.start = self.start.saturating_add(phase);
        if let (Some(until), Some(ns)) = (self.until, self.interval_ns) {
            let time = until.saturating_sub(self.start);
            self.readings = Some((time.as_nanos() as f64 / ns).ceil() as u64);
        }
        self
    }

    /// Whether readings are due at fixed times, taken or not.
    pub fn is_timed(&self) -> bool {
        self.interval_ns.is_some()
    }

    /// Most readings that are taken and sent together.
    pub fn most(&self) -> u64 {
        self.burst
    }

    /// Most readings to take together next; 0 after the last.
    pub fn burst(&self, taken: u64, now: Duration) -> u64 {
        match self.readings {
            Some(readings) => self.burst.min(readings.saturating_sub(taken)),
            None if self.until.is_some_and(|until| now >= until) => 0,
            None => self.burst,
        }
    }

    /// When the reading after the first `taken` ones is due.
    pub fn due(&self, taken: u64) -> Duration {
        let ns = self.interval_ns.unwrap_or(0.0) * taken as f64;
        self.start.saturating_add(Duration::from_nanos(ns as u64)) // saturates
    }

    /// Until when the device stays connected, even without readings.
    pub fn stay(&self) -> Duration {
        self.until.unwrap_or(Duration::ZERO)
    }

    /// From when no more readings are due, as far as that is known.
    pub fn end(&self) -> Duration {
        let last = self.readings.map_or(self.start, |readings| self.due(readings.saturating_sub(1)));
        last.max(self.stay())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn readings_are_due_one_interval_apart_from_the_start() {
        let pace = Pace::new(5 * MS, 10 * MS, 1, Length::Readings(3));
        assert_eq!([0, 1, 2].map(|taken| pace.due(taken)), [5 * MS, 15 * MS, 25 * MS]);
        assert_eq!((pace.burst(2, MS), pace.burst(3, MS), pace.end()), (1, 0, 25 * MS));
    }

    #[test]
    fn a_time_holds_the_readings_due_before_its_end() {
        let pace = Pace::new(Duration::ZERO, 10 * MS, 16, Length::For(95 * MS));
        assert_eq!((pace.burst(0, MS), pace.burst(10, MS)), (10, 0));
        let exact = Pace::new(Duration::ZERO, 10 * MS, 16, Length::For(90 * MS));
        assert_eq!((exact.burst(0, MS), exact.stay()), (9, 90 * MS));
    }

    #[test]
    fn a_delayed_plan_ends_when_it_would_have() {
        let pace = Pace::new(MS, 10 * MS, 1, Length::For(25 * MS));
        let delayed = pace.clone().delayed(8 * MS);
        assert_eq!((delayed.due(0), delayed.due(1), delayed.stay()), (9 * MS, 19 * MS, 26 * MS));
        assert_eq!((delayed.burst(1, MS), delayed.burst(2, MS)), (1, 0));
        assert_eq!(pace.delayed(100 * MS).burst(0, MS), 0, "its time never comes");
    }

    #[test]
    fn as_fast_as_acks_allow_everything_is_due_until_the_end() {
        let pace = Pace::new(MS, Duration::ZERO, 16, Length::For(9 * MS));
        assert_eq!((pace.burst(1_000, 9 * MS), pace.due(1_000)), (16, MS));
        assert_eq!(pace.burst(1_000, 10 * MS), 0);
    }

    #[test]
    fn a_plan_without_end_does_not_overflow() {
        let pace = Pace::new(Duration::MAX, Duration::MAX, 1, Length::Readings(u64::MAX));
        assert_eq!(pace.due(u64::MAX), Duration::MAX);
        assert_eq!(Pace::new(MS, Duration::from_nanos(1), 1, Length::For(Duration::MAX)).burst(0, MS), 1);
    }
}
