//! Estimates how much a broker, and the link to it, accept: a state machine without a clock.
//!
//! Confirmations and their round trips determine:
//!
//! - **Bytes in flight.** They begin small, double with each round trip while confirmations
//!   come in time, and shrink when these take much longer than with little in flight: more
//!   bytes then only wait in a queue on the way. So a link of 600 bytes a second holds a few
//!   seconds of data, and a lost connection costs no more than that.
//! - **Publishes a second.** Unlimited, until publishes stay unconfirmed while later ones are
//!   confirmed, or are refused for a quota: then a little less than what was confirmed in a
//!   second; this grows again, ever faster while nothing is missing.
//! - **When to send again**: after the round trip and four times its mean deviation, as in TCP
//!   (RFC 6298).

use std::time::Duration;

/// Bytes in flight: the initial and the least number.
const FIRST: usize = 4096;
const LEAST: usize = 1536;
/// A batch is this fraction of the bytes in flight.
const PARTS: usize = 3;
/// How long bytes may queue on a link, unless the confirm timeout requires less.
const QUEUE: Duration = Duration::from_secs(6);
/// Until the first confirmation.
const FIRST_RESEND: Duration = Duration::from_secs(3);
const SOONEST_RESEND: Duration = Duration::from_secs(1);
const LATEST_RESEND: Duration = Duration::from_secs(60);
/// Seconds over which confirmations are counted.
const SLOTS: usize = 4;
/// One missing confirmation in this time does not indicate a limit.
const ACCIDENT: Duration = Duration::from_secs(30);
const A_SECOND: Duration = Duration::from_secs(1);
/// The share of the confirmed rate that is sent.
const SHARE: f64 = 0.95;
/// Publishes a second: the least limit, and the one above which there is no limit.
const SLOWEST: f64 = 0.1;
const FASTEST: f64 = 5000.0;
/// Publishes that were not sent in this time may be sent at once.
const CREDIT: Duration = Duration::from_millis(10);

/// How long the next connection uses what the last one learnt.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What one connection learnt, for the next one to the same broker.
#[derive(Debug, Clone, Copy)]
pub struct Learnt {
    bytes: usize,
    round_trip: Option<(Duration, Duration)>,
    limit: Option<f64>,
}

/// Estimates of a connection's link and broker.
#[derive(Debug)]
pub(super) struct Pacing {
    /// Bytes that may be in flight.
    bytes: usize,
    /// When they were last reduced.
    reduced: Option<Duration>,
    queue: Duration,
    /// Round trip: the shortest one, the smoothed one, and its deviation.
    shortest: Duration,
    smoothed: Option<Duration>,
    deviation: Duration,
    soonest_resend: Duration,
    /// Confirmations in each of the last seconds; which second is the last.
    confirmed: [u32; SLOTS],
    second: u64,
    /// Publishes a second, and since when.
    limit: Option<(f64, Duration)>,
    /// When the next publish may be written.
    next: Duration,
    missed: Option<Duration>,
}

impl Pacing {
    /// For a connection that is given up when nothing is confirmed for `confirm_timeout`.
    pub fn new(confirm_timeout: Duration) -> Pacing {
        Pacing {
            bytes: FIRST,
            reduced: None,
            queue: QUEUE.min(confirm_timeout / 3),
            shortest: Duration::MAX,
            smoothed: None,
            deviation: Duration::ZERO,
            soonest_resend: SOONEST_RESEND.min(confirm_timeout / 4),
            confirmed: [0; SLOTS],
            second: 0,
            limit: None,
            next: Duration::ZERO,
            missed: None,
        }
    }

    /// Best size of a batch, in bytes.
    pub fn batch(&self) -> usize {
        self.bytes / PARTS
    }

    /// Whether another batch fits beside `in_flight` bytes.
    pub fn has_room(&self, in_flight: usize) -> bool {
        in_flight == 0 || in_flight + self.batch() <= self.bytes
    }

    /// When the next publish may be written.
    pub fn next(&self) -> Duration {
        self.next
    }

    /// Publishes a second, if they are limited.
    pub fn limit(&self, now: Duration) -> Option<f64> {
        let (limit, since) = self.limit?;
        grown(limit, now.saturating_sub(since))
    }

    /// What the next connection may start with.
    pub fn learnt(&self, now: Duration) -> Learnt {
        let round_trip = self.smoothed.map(|smoothed| (smoothed, self.deviation));
        Learnt { bytes: self.bytes, round_trip, limit: self.limit(now) }
    }

    /// Starts at `now` with what another connection had learnt `ago`. A limit has grown since then, as it
    /// grows in use; bytes in flight beyond the initial number are measured anew.
    pub fn begin_with(&mut self, learnt: Learnt, ago: Duration, now: Duration) {
        if ago > REMEMBERED {
            return;
        }
        self.bytes = learnt.bytes.min(FIRST);
        if let Some((smoothed, deviation)) = learnt.round_trip {
            (self.smoothed, self.deviation) = (Some(smoothed), deviation);
        }
        self.limit = learnt.limit.and_then(|limit| grown(limit, ago)).map(|limit| (limit, now));
    }

    /// Time until a publish that was written `writings` times and is not confirmed is written
    /// again.
    pub fn resend_after(&self, writings: u32) -> Duration {
        let after = self.smoothed.map_or(FIRST_RESEND, |smoothed| smoothed + self.deviation * 4);
        let after = after.clamp(self.soonest_resend, LATEST_RESEND);
        (after * (1 << writings.saturating_sub(1).min(6))).min(LATEST_RESEND)
    }

    /// A publish was written.
    pub fn wrote(&mut self, now: Duration) {
        match self.limit(now) {
            Some(limit) => {
                self.next = self.next.max(now.saturating_sub(CREDIT)) + Duration::from_secs_f64(1.0 / limit);
            }
            None => self.limit = None,
        }
    }

    /// A publish that was written at `written` is confirmed; with it, `in_flight` bytes were in flight.
    pub fn confirmed(&mut self, size: usize, in_flight: usize, written: Duration, now: Duration) {
        let took = now.saturating_sub(written);
        self.took(took);
        self.advance_slots(now);
        if let Some(last) = self.confirmed.last_mut() {
            *last += 1;
        }
        let enough = self.shortest + self.shortest.max(self.queue);
        let full = in_flight.saturating_add(2 * self.batch()) > self.bytes;
        if took > enough {
            // Once for each window.
            if self.reduced.is_none_or(|reduced| reduced <= written) {
                let share = enough.as_secs_f64() / took.as_secs_f64();
                self.bytes = ((self.bytes as f64 * share) as usize).max(LEAST); // less than before
                self.reduced = Some(now);
            }
        } else if full && took * 4 < enough * 3 {
            self.bytes = self.bytes.saturating_add(size);
        }
    }

    fn took(&mut self, took: Duration) {
        self.shortest = self.shortest.min(took);
        self.smoothed = Some(match self.smoothed {
            None => {
                self.deviation = took / 2;
                took
            }
            Some(smoothed) => {
                self.deviation = (self.deviation * 3 + smoothed.abs_diff(took)) / 4;
                (smoothed * 7 + took) / 8
            }
        });
    }

    /// Makes the last slot that of the current second.
    fn advance_slots(&mut self, now: Duration) {
        let passed = now.as_secs().saturating_sub(self.second);
        for _ in 0..passed.min(SLOTS as u64) {
            self.confirmed.rotate_left(1);
            if let Some(last) = self.confirmed.last_mut() {
                *last = 0;
            }
        }
        self.second = self.second.max(now.as_secs());
    }

    /// A publish that was written at `written` should be confirmed and is not. True if publishes
    /// are limited from now on, and were not before.
    pub fn missing(&mut self, written: Duration, now: Duration) -> bool {
        let accident = self.missed.is_none_or(|missed| now.saturating_sub(missed) > ACCIDENT);
        self.missed = Some(now);
        !accident && self.slow_down(written, now)
    }

    /// The broker temporarily refuses a publish that was written at `written`. True if publishes
    /// are limited from now on, and were not before.
    pub fn refused(&mut self, written: Duration, now: Duration) -> bool {
        self.missed = Some(now);
        self.slow_down(written, now)
    }

    fn slow_down(&mut self, written: Duration, now: Duration) -> bool {
        let before = self.limit(now);
        if let (Some(_), Some((_, since))) = (before, self.limit)
            && written < since + A_SECOND
        {
            // The limit already covers it, and is measured by it.
            return false;
        }
        self.advance_slots(now);
        let most = self.confirmed.iter().max().copied().unwrap_or_default();
        let limit = match (most, before) {
            (0, before) => before.unwrap_or(2.0) / 2.0,
            (most, None) => f64::from(most) * SHARE,
            (most, Some(before)) => f64::from(most).min(before) * SHARE,
        };
        let limit = limit.max(SLOWEST);
        self.limit = Some((limit, now));
        self.next = self.next.max(now + Duration::from_secs_f64(1.0 / limit));
        before.is_none()
    }
}

/// Publishes a second, if still limited, `after` the limit was `limit`.
fn grown(limit: f64, after: Duration) -> Option<f64> {
    let t = after.as_secs_f64();
    let faster = (t - 3.0).max(0.0);
    Some(limit * (0.01 * t + 0.0025 * faster * faster).min(50.0).exp()).filter(|limit| *limit < FASTEST)
}

#[cfg(test)]
mod tests;
