//! Pauses of the gateway: it was stopped, the machine slept, or its hypervisor paused it.
//! Messages of peers wait in the meantime, or could not be sent at all. Timeouts of peers
//! use this module, so that silence counts only while the gateway runs.
//!
//! [`keep`] looks at the clock all the time; a late look reveals a pause. All deadlines of
//! peers are extended by its length, and by the same again, since a peer that was not heard
//! needs time to notice.

use super::Clock;
use crate::stop;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Interval of looking at the clock.
const EVERY: Duration = Duration::from_millis(250);
/// A shorter delay is no pause: a busy machine is late now and then.
const LEAST: Duration = Duration::from_secs(1);
/// Most extension of deadlines beyond the pauses themselves: lost peers must be detected,
/// however often the gateway is paused.
const ANEW: Duration = Duration::from_secs(60);
/// Timers may fire before the input that arrived by then is seen. Code that is about to give a
/// peer up waits this long once more.
pub const LAST_LOOK: Duration = Duration::from_millis(10);
/// Timers do not count the machine's sleep; the monotonic clock does. Code that waits for a
/// time on that clock checks it again after this long.
pub const LONGEST_NAP: Duration = Duration::from_secs(5);

/// The pauses so far. Pure.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pauses {
    looked: Option<Duration>,
    put_off: Duration,
}

impl Pauses {
    /// Total extension of deadlines at `now`. It never decreases.
    pub fn put_off(&self, now: Duration) -> Duration {
        let late = self.looked.and_then(|looked| now.checked_sub(looked + EVERY));
        let pause = late.filter(|late| *late >= LEAST).unwrap_or_default();
        self.put_off + pause + pause.min(ANEW)
    }

    /// The gateway is running at `now`. Returns the length of the pause before, if there was
    /// one.
    pub fn look(&mut self, now: Duration) -> Option<Duration> {
        let (before, put_off) = (self.put_off, self.put_off(now));
        self.put_off = put_off;
        let pause = self.looked.map(|looked| now.saturating_sub(looked)).filter(|_| self.put_off > before);
        self.looked = self.looked.max(Some(now));
        pause
    }
}

/// The extensions of one timeout. Pure.
#[derive(Debug, Clone, Copy, Default)]
pub struct Excuses {
    put_off: Duration,
    /// When the last pause was noticed, and by how much it extended deadlines.
    last: Option<(Duration, Duration)>,
}

impl Excuses {
    /// For a timeout that begins when the total extension is `put_off`.
    pub fn from(put_off: Duration) -> Excuses {
        Excuses { put_off, last: None }
    }

    /// The extension of the deadline at `now`, when the total is [`Clock::put_off`].
    pub fn look(&mut self, put_off: Duration, now: Duration) -> Duration {
        let more = put_off.saturating_sub(self.put_off);
        if !more.is_zero() {
            self.put_off = put_off;
            self.last = Some((now, more));
        }
        more
    }

    /// Silence of a peer that was last heard at `heard`.
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
                "the gateway stood still (stopped, suspended, or the machine is overloaded): timeouts of devices and \
                 connections are extended by as much"
            );
        }
    })
    .await;
}

/// Awaits `what` for `limit` at most, extended by pauses; `None` if it did not complete in
/// time.
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
        // Also before the first look.
        assert_eq!(pauses.put_off(ms(8_450) + secs(10)), secs(20));
        assert_eq!(pauses.look(ms(8_450) + secs(10)), Some(ms(10_250)));
        assert_eq!(pauses.put_off(ms(8_500) + secs(10)), secs(20));
        assert_eq!(pauses.look(ms(8_700) + secs(140)), Some(ms(130_250)));
        assert_eq!(pauses.put_off(ms(8_700) + secs(140)), secs(20) + secs(130) + ANEW);
    }

    #[test]
    fn who_is_gone_for_good_is_found_out_however_often_the_gateway_is_paused() {
        // Ten seconds running, two paused, repeatedly.
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
