//! When a device is sent an Ack.
//!
//! The first settled reading after a pause is acknowledged at once. While readings
//! stream, Acks keep a distance of [`MIN_DISTANCE`] from each other: an Ack costs
//! a packet and two system calls, and is cumulative. A device that has used up a
//! good part of its window does not wait.

use std::time::Duration;

/// Acks follow each other no closer than this, unless the window runs short.
const MIN_DISTANCE: Duration = Duration::from_millis(10);

/// What of one session was taken over and what of it was acknowledged.
#[derive(Debug)]
pub struct Acks {
    window: u64,
    /// The device's last seq that was handed to the log.
    received: u64,
    acked: u64,
    /// The device repeated something that is settled: it must have missed an Ack.
    owed: bool,
    next: Duration,
}

impl Acks {
    /// A session that was welcomed with `settled` and may have `window` samples
    /// outstanding.
    pub fn new(window: u32, settled: u64) -> Acks {
        Acks { window: u64::from(window), received: settled, acked: settled, owed: false, next: Duration::ZERO }
    }

    /// Everything up to the device's `seq` was handed to the log.
    pub fn received(&mut self, seq: u64) {
        self.received = self.received.max(seq);
    }

    /// The device sent only what it had sent before.
    pub fn repeated(&mut self) {
        self.owed = true;
    }

    /// The last seq that was acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Whether everything received has been acknowledged.
    pub fn is_complete(&self) -> bool {
        self.acked >= self.received
    }

    /// Whether the device has as much outstanding as it may: it is not read any
    /// further until something is settled.
    pub fn is_full(&self, settled: u64) -> bool {
        self.received.saturating_sub(settled) >= self.window
    }

    /// The Ack to send now that everything up to `settled` is settled, if one is due.
    pub fn due(&mut self, settled: u64, now: Duration) -> Option<u64> {
        let news = settled > self.acked;
        if !(news || self.owed) {
            return None;
        }
        let short = self.received.saturating_sub(self.acked) >= self.window / 4;
        if now < self.next && !(short && news) {
            return None;
        }
        self.acked = self.acked.max(settled);
        self.owed = false;
        self.next = now + MIN_DISTANCE;
        Some(self.acked)
    }

    /// Until when no Ack is due whatever is settled, if that lies ahead.
    pub fn held_until(&self, now: Duration) -> Option<Duration> {
        (now < self.next).then_some(self.next)
    }

    /// Whether an Ack waits for its distance from the last.
    pub fn is_waiting(&self, settled: u64) -> bool {
        settled > self.acked || self.owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_ack_goes_at_once_and_those_behind_keep_their_distance() {
        let mut acks = Acks::new(1000, 0);
        acks.received(3);
        assert_eq!(acks.due(1, 5 * MS), Some(1));
        assert_eq!(acks.due(2, 6 * MS), None);
        assert!(acks.is_waiting(2));
        assert_eq!(acks.held_until(6 * MS), Some(15 * MS));
        assert_eq!(acks.due(3, 15 * MS), Some(3));
        assert_eq!(acks.due(3, 30 * MS), None);
        assert!(acks.is_complete());
    }

    #[test]
    fn a_device_short_of_window_is_acked_at_once() {
        let mut acks = Acks::new(100, 0);
        acks.received(60);
        assert_eq!(acks.due(10, MS), Some(10));
        assert_eq!(acks.due(20, 2 * MS), Some(20), "50 of 100 are outstanding");
        assert_eq!(acks.due(50, 3 * MS), Some(50), "40 of 100 are outstanding");
        assert_eq!(acks.due(55, 4 * MS), None, "only 10 are");
    }

    #[test]
    fn a_full_window_stops_reading_until_something_settles() {
        let mut acks = Acks::new(10, 100);
        acks.received(109);
        assert!(!acks.is_full(100));
        acks.received(110);
        assert!(acks.is_full(100));
        assert!(!acks.is_full(101));
    }

    #[test]
    fn what_a_device_repeats_is_acked_again() {
        let mut acks = Acks::new(10, 7);
        assert_eq!(acks.due(7, MS), None);
        acks.repeated();
        assert_eq!(acks.due(7, MS), Some(7));
        assert_eq!(acks.due(7, 100 * MS), None);
    }
}
