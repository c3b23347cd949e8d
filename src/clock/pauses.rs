//! Times in which the gateway stood still: it was stopped, the machine slept, or its
//! hypervisor paused it. What others said meanwhile waits to be read, or could not be sent
//! at all. Whoever judges the silence of others asks here, so that silence counts only
//! while the gateway listened.
//!
//! Somebody looks at the clock all the time ([`keep`]); a look that comes late shows a
//! pause. All deadlines for others are put off by its length, and by as much again, since
//! who could not be heard needs time to find that out.

use super::Clock;
use crate::stop;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How often the clock is looked at.
const EVERY: Duration = Duration::from_millis(250);
/// Less than this is no pause: a busy machine is late now and then.
const LEAST: Duration = Duration::from_secs(1);
/// Beyond a pause itself, deadlines are put off by no more than this: those who are gone
/// for good must be found out, however often the gateway is paused.
const ANEW: Duration = Duration::from_secs(60);
/// Timers may run out before what had come by then is seen. Whoever is about to give
/// somebody up looks for so long once more.
pub const LAST_LOOK: Duration = Duration::from_millis(10);
/// Timers do not see the time in which the machine sleeps. Whoever waits for a time on
/// the monotonic clock, which does, looks again after so long.
pub const LONGEST_NAP: Duration = Duration::from_secs(5);

/// The pauses so far. Pure.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pauses {
    looked: Option<Duration>,
    put_off: Duration,
}

impl Pauses {
    /// By how much deadlines have been put off by `now`, all in all. It never shrinks.
    pub fn put_off(&self, now: Duration) -> Duration {
        let late = self.looked.and_then(|looked| now.checked_sub(looked + EVERY));
        let pause = late.filter(|late| *late >= LEAST).unwrap_or_default();
        self.put_off + pause + pause.min(ANEW)
    }

    /// The gateway is running at `now`. Returns for how long it stood still before, if it
    /// did.
    pub fn look(&mut self, now: Duration) -> Option<Duration> {
        let (before, put_off) = (self.put_off, self.put_off(now));
        self.put_off = put_off;
        let pause = self.looked.map(|looked| now.saturating_sub(looked)).filter(|_| self.put_off > before);
        self.looked = self.looked.max(Some(now));
        pause
    }
}

/// What one who judges the silence of others knows of pauses. Pure.
#[derive(Debug, Clone, Copy, Default)]
pub struct Excuses {
    put_off: Duration,
    /// When the last pause was noticed, and by how much it put deadlines off.
    last: Option<(Duration, Duration)>,
}

impl Excuses {
    /// Those of one who begins at `now`, when deadlines were put off by so much.
    pub fn from(put_off: Duration) -> Excuses {
        Excuses { put_off, last: None }
    }

    /// By how much deadlines are to be put off at `now`, if [`Clock::put_off`] says so much
    /// by now.
    pub fn look(&mut self, put_off: Duration, now: Duration) -> Duration {
        let more = put_off.saturating_sub(self.put_off);
        if !more.is_zero() {
            self.put_off = put_off;
            self.last = Some((now, more));
        }
        more
    }

    /// For how long somebody is silent who was heard last at `heard`.
    pub fn silence(&self, heard: Duration, now: Duration) -> Duration {
        let excused = self.last.filter(|(noticed, _)| heard < *noticed).map(|(_, more)| more);
        now.saturating_sub(heard).saturating_sub(excused.unwrap_or_default())
    }
}

/// Looks at the clock until `stop` turns true.
pub async fn keep(clock: Arc<dyn Clock>, mut stop: watch::Receiver<bool>) {
    stop::every(EVERY, &mut stop, || {
        if let Some(pause) = clock.look() {
            let pause = humantime::format_duration(Duration::from_secs(pause.as_secs())).to_string();
            tracing::warn!(
                pause,
                "the gateway stood still (stopped, suspended, or the machine is overloaded): devices and connections get as \
                 much longer to be heard"
            );
        }
    })
    .await;
}

/// Waits for what comes from outside, for `limit` at most, which is put off by pauses;
/// `None` if it did not come.
pub async fn patiently<F: Future>(clock: &dyn Clock, limit: Duration, what: F) -> Option<F::Output> {
    let mut what = pin!(what);
    let (mut excuses, mut left) = (Excuses::from(clock.put_off()), limit);
    loop {
        if let Ok(came) = timeout(left, what.as_mut()).await {
            return Some(came);
        }
        left = excuses.look(clock.put_off(), Duration::ZERO).min(limit);
        if left.is_zero() {
            return timeout(LAST_LOOK, what.as_mut()).await.ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_look_that_comes_late_shows_a_pause_and_a_little_late_is_none() {
        let mut pauses = Pauses::default();
        assert_eq!((pauses.look(secs(7)), pauses.put_off(secs(7))), (None, Duration::ZERO));
        assert_eq!((pauses.look(ms(8_200)), pauses.put_off(ms(8_300))), (None, Duration::ZERO));
        // Also before somebody has looked.
        assert_eq!(pauses.put_off(ms(8_450) + secs(10)), secs(20));
        assert_eq!(pauses.look(ms(8_450) + secs(10)), Some(ms(10_250)));
        assert_eq!(pauses.put_off(ms(8_500) + secs(10)), secs(20));
        assert_eq!(pauses.look(ms(8_700) + secs(140)), Some(ms(130_250)));
        assert_eq!(pauses.put_off(ms(8_700) + secs(140)), secs(20) + secs(130) + ANEW);
    }

    #[test]
    fn who_is_gone_for_good_is_found_out_however_often_the_gateway_is_paused() {
        // Ten seconds of work, two of pause, again and again.
        let (mut pauses, mut excuses, mut now) = (Pauses::default(), Excuses::default(), secs(1));
        let mut heard = now;
        while now.saturating_sub(heard) < secs(90) {
            (0..40).for_each(|_| {
                now += ms(250);
                pauses.look(now);
            });
            now += secs(2);
            pauses.look(now);
            heard = (heard + excuses.look(pauses.put_off(now), now)).min(now);
            assert!(now < secs(200), "it is never given up");
        }
    }

    #[test]
    fn silence_does_not_count_what_was_before_the_end_of_a_pause() {
        let mut excuses = Excuses::from(secs(3));
        assert_eq!(excuses.look(secs(3), secs(100)), Duration::ZERO);
        assert_eq!(excuses.silence(secs(90), secs(100)), secs(10));
        assert_eq!(excuses.look(secs(23), secs(110)), secs(20));
        assert_eq!(excuses.silence(secs(85), secs(112)), secs(7));
        assert_eq!(excuses.silence(secs(111), secs(112)), secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_patiently_gets_the_time_that_a_pause_took() {
        #[derive(Default)]
        struct Paused(parking_lot::Mutex<Duration>);
        impl Clock for Paused {
            fn now(&self) -> super::super::Now {
                super::super::SystemClock::new().now()
            }
            fn put_off(&self) -> Duration {
                *self.0.lock()
            }
        }
        let clock = Paused::default();
        let began = tokio::time::Instant::now();
        assert_eq!(patiently(&clock, secs(5), std::future::pending::<()>()).await, None);
        assert_eq!(began.elapsed(), secs(5) + LAST_LOOK);
        let comes = async {
            tokio::time::sleep(secs(4)).await;
            *clock.0.lock() = secs(3);
            tokio::time::sleep(secs(3)).await;
            7
        };
        assert_eq!(patiently(&clock, secs(5), comes).await, Some(7));
    }
}
