//! What a broker of MQTT 3.1.1 ends connections at, other than readings: it gives no reason, so
//! after a few connections that ended with nothing else new under way, some go without.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Connections in a row that end with something under way and none of it answered, until it
/// is left out.
const MOST_LOST: u32 = 3;
/// For how long at first; twice as long each time.
const REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(24 * 3600);
/// A connection that goes without and ends within this time shows that something else ends them.
const SOON: Duration = Duration::from_secs(10);

/// What is known of how one kind of thing is taken. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FeatureBreaker(Arc<Mutex<Losses>>);

#[derive(Debug, Default)]
struct Losses {
    /// Connections that ended in a row, perhaps by it.
    lost: u32,
    rests: u32,
    rests_until: Duration,
}

impl FeatureBreaker {
    /// A connection ended with some of it unanswered.
    pub fn lost(&self) {
        let mut losses = self.0.lock();
        losses.lost = losses.lost.saturating_add(1);
    }

    /// A connection that went without ended, too, after it `lasted` so long.
    pub fn lost_without(&self, lasted: Duration) {
        if lasted < SOON {
            *self.0.lock() = Losses::default();
        }
    }

    /// The broker answered, whatever it said.
    pub fn confirmed(&self) {
        *self.0.lock() = Losses::default();
    }

    /// How long from `now` on, by the monotonic clock, a new connection is to go without, if it is.
    pub fn rest(&self, now: Duration) -> Option<Duration> {
        let mut losses = self.0.lock();
        if losses.lost >= MOST_LOST {
            losses.lost = MOST_LOST - 1; // the next one that tries shows whether it was that
            losses.rests_until = now + REST.saturating_mul(1 << losses.rests.min(16)).min(LONGEST_REST);
            losses.rests = losses.rests.saturating_add(1);
        }
        losses.rests_until.checked_sub(now).filter(|rest| !rest.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_connections_is_left_out_for_ever_longer_times_until_it_is_answered() {
        let (feature_breaker, mut now) = (FeatureBreaker::default(), Duration::from_secs(5));
        for _ in 1..MOST_LOST {
            feature_breaker.lost();
            assert_eq!(feature_breaker.rest(now), None);
        }
        feature_breaker.lost();
        assert_eq!(feature_breaker.rest(now), Some(REST));
        assert_eq!(feature_breaker.rest(now + REST / 2), Some(REST / 2));
        now += REST;
        assert_eq!(feature_breaker.rest(now), None, "it is tried again");
        feature_breaker.lost();
        assert_eq!(feature_breaker.rest(now), Some(2 * REST));
        feature_breaker.confirmed();
        feature_breaker.lost();
        assert_eq!(feature_breaker.rest(now), None);
        for _ in 0..100 {
            feature_breaker.lost();
            feature_breaker.rest(now);
        }
        assert_eq!(feature_breaker.rest(now), Some(LONGEST_REST));
    }
    /// A broker or a link that ends every connection soon, whatever is under way.
    #[test]
    fn where_connections_without_end_too_the_first_that_stands_goes_without_for_a_minute_at_most() {
        for broken in 0..500 {
            let (feature_breaker, mut now) = (FeatureBreaker::default(), Duration::from_secs(5));
            for _ in 0..broken {
                match feature_breaker.rest(now) {
                    Some(_) => feature_breaker.lost_without(SOON / 2),
                    None => feature_breaker.lost(),
                }
                now += Duration::from_secs(1);
            }
            assert!(feature_breaker.rest(now).is_none_or(|rest| rest <= REST), "after {broken}");
        }
    }

    /// A broker that ends connections for this alone, over a link that holds for a minute.
    #[test]
    fn connections_that_end_later_do_not_prove_that_it_was_something_else() {
        let (feature_breaker, mut now, mut lost) = (FeatureBreaker::default(), Duration::ZERO, 0);
        while now < Duration::from_secs(24 * 3600) {
            match feature_breaker.rest(now) {
                Some(rest) => {
                    let lasted = rest.min(Duration::from_secs(60));
                    feature_breaker.lost_without(lasted);
                    now += lasted;
                }
                None => {
                    feature_breaker.lost();
                    lost += 1;
                }
            }
        }
        assert_eq!(lost, 3 + 10, "a day has ten rests, from a minute to 512");
    }
}
