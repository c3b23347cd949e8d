//! How many messages a device may send: a token bucket. Pure.

use std::time::Duration;

/// Lets so many messages a second through on average, and so many more at once after a
/// pause. What came at once beyond that is not refused but owed: nothing more is to be
/// read until it is paid off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// From one message to the next at the average rate; zero without a limit.
    interval: Duration,
    /// How far `paid_at` may lie ahead.
    tolerance: Duration,
    /// When all that came is paid for, on the monotonic clock.
    paid_at: Duration,
    /// For what may have come while nobody read.
    credit: Duration,
}

impl Bucket {
    /// A full bucket; no limit if `per_second` is 0.
    pub fn new(per_second: u32, burst: u32) -> Bucket {
        let interval = Duration::from_secs(1).checked_div(per_second).unwrap_or_default();
        Bucket { interval, tolerance: interval * burst, paid_at: Duration::ZERO, credit: Duration::ZERO }
    }

    /// A message came.
    pub fn take(&mut self, now: Duration) {
        if let Some(left) = self.credit.checked_sub(self.interval) {
            self.credit = left;
            return;
        }
        self.paid_at = self.paid_at.max(now) + self.interval;
    }

    /// Nobody read for so long: what came meanwhile did not come at once.
    pub fn excuse(&mut self, by: Duration) {
        self.credit = by;
    }

    /// When the next message may be read, if that is not now.
    pub fn closed_until(&self, now: Duration) -> Option<Duration> {
        let until = self.paid_at.saturating_sub(self.tolerance);
        (until > now).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How many messages get through in `seconds` to one who always sends some more.
    fn through(bucket: &mut Bucket, seconds: u64, at_once: u32) -> u32 {
        let (mut now, mut count) = (SECOND, 0);
        while now < SECOND * (1 + seconds as u32) {
            match bucket.closed_until(now) {
                Some(until) => now = until,
                None => {
                    (0..at_once).for_each(|_| bucket.take(now));
                    count += at_once;
                }
            }
        }
        count
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_average_rate() {
        for at_once in [1, 7, 500] {
            let mut bucket = Bucket::new(100, 20);
            let count = through(&mut bucket, 10, at_once);
            assert!((1020..=1020 + at_once).contains(&count), "{count} of {at_once} at once");
        }
    }

    #[test]
    fn what_came_at_once_is_paid_off_before_more_is_read() {
        let mut bucket = Bucket::new(100, 20);
        (0..20).for_each(|_| bucket.take(SECOND));
        assert_eq!(bucket.closed_until(SECOND), None);
        (0..100).for_each(|_| bucket.take(SECOND));
        assert_eq!(bucket.closed_until(SECOND), Some(2 * SECOND));
        assert_eq!(bucket.closed_until(2 * SECOND), None);
    }

    #[test]
    fn a_pause_fills_the_bucket_and_no_more() {
        let mut bucket = Bucket::new(100, 20);
        (0..20).for_each(|_| bucket.take(SECOND));
        let later = 3600 * SECOND;
        (0..21).for_each(|_| bucket.take(later));
        assert_eq!(bucket.closed_until(later), Some(later + SECOND / 100));
    }

    #[test]
    fn what_came_while_nobody_read_came_in_time() {
        let mut bucket = Bucket::new(100, 20);
        bucket.excuse(10 * SECOND);
        (0..1020).for_each(|_| bucket.take(SECOND));
        assert_eq!(bucket.closed_until(SECOND), None);
        (0..100).for_each(|_| bucket.take(SECOND));
        assert_eq!(bucket.closed_until(SECOND), Some(2 * SECOND));
    }

    #[test]
    fn without_a_limit_it_is_never_closed() {
        let mut bucket = Bucket::new(0, 1);
        (0..1_000_000).for_each(|_| bucket.take(SECOND));
        assert_eq!(bucket.closed_until(SECOND), None);
    }
}
