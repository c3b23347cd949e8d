//! Delays before retries: exponential, with full jitter, so that a fleet that lost the same
//! broker does not reconnect at the same time.

use std::time::Duration;

/// Why an attempt failed, or an established connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    pub what: String,
    /// A retry is useless until somebody changes something.
    pub permanent: bool,
}

impl Failure {
    /// A retry may succeed.
    pub fn transient(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), permanent: false }
    }

    /// No retry succeeds until somebody changes something.
    pub fn permanent(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), permanent: true }
    }
}

/// The delays between the attempts at one thing. Pure: the caller waits.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    stable_after: Duration,
    /// Upper bound of the next delay.
    ceiling: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    /// Delays up to `min` at first, doubling up to `max`; an attempt that held for
    /// `stable_after` resets them. `seed` makes the delays differ between gateways.
    pub fn new(min: Duration, max: Duration, stable_after: Duration, seed: u64) -> Backoff {
        let max = max.max(min);
        Backoff { min, max, stable_after, ceiling: min, random: fastrand::Rng::with_seed(seed) }
    }

    /// The delay before the next attempt: anything from a tenth of the minimum to
    /// the current ceiling, which doubles.
    pub fn delay(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = (ceiling * 2).min(self.max);
        (ceiling.mul_f64(self.random.f64())).max(self.min / 10)
    }

    /// The last attempt succeeded and held for `lasted`: resets the delays if that was long enough.
    pub fn worked_for(&mut self, lasted: Duration) {
        if lasted >= self.stable_after {
            self.ceiling = self.min;
        }
    }

    /// The fault does not resolve itself soon: the bound of the next delay is the maximum.
    pub fn give_time(&mut self) {
        self.ceiling = self.max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_delay_stays_between_a_tenth_of_min_and_a_doubling_ceiling(
            min in 1..1000u32, factor in 1..1000u32, seed: u64, attempts in 1..100u32
        ) {
            let (min, max) = (min * MS, min * factor * MS);
            let mut backoff = Backoff::new(min, max, MS, seed);
            for attempt in 0..attempts {
                let ceiling = min.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(max);
                let delay = backoff.delay();
                prop_assert!(delay >= min / 10 && delay <= ceiling.max(min / 10), "{delay:?} over {ceiling:?}");
            }
        }
    }

    #[test]
    fn only_a_stable_attempt_starts_over() {
        let mut backoff = Backoff::new(100 * MS, 10_000 * MS, 1000 * MS, 1);
        for _ in 0..10 {
            backoff.delay();
        }
        backoff.worked_for(999 * MS);
        assert_eq!(backoff.ceiling, 10_000 * MS);
        backoff.worked_for(1000 * MS);
        assert_eq!(backoff.ceiling, 100 * MS);
        backoff.give_time();
        assert_eq!(backoff.ceiling, 10_000 * MS);
    }

    #[test]
    fn delays_are_spread_over_the_whole_range() {
        let mut backoff = Backoff::new(1000 * MS, 1000 * MS, MS, 7);
        let delays: Vec<_> = (0..1000).map(|_| backoff.delay()).collect();
        let below = |limit| delays.iter().filter(|delay| **delay < limit).count();
        assert!((400..600).contains(&below(500 * MS)), "{}", below(500 * MS));
        assert!((180..330).contains(&below(250 * MS)), "{}", below(250 * MS));
    }
}
