//! Two devices of one name, which throw each other out in turn. Pure.
//!
//! A device that lost its connection comes back and takes its own place; its session
//! either goes on or is a new one. A session that comes back after another one had taken
//! its place is a second device. When that happens again and again, the one that is
//! there keeps its place for a while as long as it is alive, and the other is refused.

use std::time::Duration;

/// So many returns within [`WINDOW`] are no accident.
const RETURNS: u8 = 3;
const WINDOW: Duration = Duration::from_secs(60);
/// How long a device keeps its place against another; twice as long each time.
const HOLD: Duration = Duration::from_secs(60);
const HOLD_MAX: Duration = Duration::from_secs(600);

/// What happened around one device's name lately.
#[derive(Debug, Default)]
pub struct DuplicateId {
    /// The session that was thrown out last.
    displaced: Option<u64>,
    returns: u8,
    since: Duration,
    hold: Duration,
    hold_until: Duration,
}

/// What becomes of a session that would take another one's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    /// It has to stay outside; true if that was not so before.
    Refused(bool),
}

impl DuplicateId {
    /// `newcomer` would take the place of `holder`, which may be `alive`.
    pub fn arrive(&mut self, newcomer: u64, holder: u64, alive: bool, now: Duration) -> Verdict {
        if newcomer == holder || !alive {
            return Verdict::Admitted;
        }
        if now < self.hold_until {
            return Verdict::Refused(false);
        }
        if now.saturating_sub(self.since) > WINDOW {
            (self.returns, self.since) = (0, now);
        }
        if self.displaced == Some(newcomer) {
            self.returns += 1;
        }
        if self.returns >= RETURNS {
            self.returns = 0;
            self.hold = (self.hold * 2).clamp(HOLD, HOLD_MAX);
            self.hold_until = now + self.hold;
            return Verdict::Refused(true);
        }
        self.displaced = Some(holder);
        Verdict::Admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_device_that_loses_its_connection_always_gets_its_place_back() {
        let mut duplicate_ids = DuplicateId::default();
        for i in 0..100u32 {
            assert_eq!(duplicate_ids.arrive(7, 7, true, i * S), Verdict::Admitted, "its session goes on");
        }
        for i in 0..100u32 {
            assert_eq!(
                duplicate_ids.arrive(u64::from(i) + 1, u64::from(i), true, i * S),
                Verdict::Admitted,
                "it restarts"
            );
        }
    }

    #[test]
    fn of_two_devices_with_one_name_the_second_is_kept_out_for_a_while() {
        let mut duplicate_ids = DuplicateId::default();
        let (mut inside, mut outside) = (1, 2);
        let mut at = Duration::ZERO;
        while duplicate_ids.arrive(outside, inside, true, at) == Verdict::Admitted {
            std::mem::swap(&mut inside, &mut outside);
            at += S;
            assert!(at < 10 * S, "it is never noticed");
        }
        assert_eq!(duplicate_ids.arrive(outside, inside, true, at + 30 * S), Verdict::Refused(false));
        assert_eq!(
            duplicate_ids.arrive(outside, inside, false, at + 30 * S),
            Verdict::Admitted,
            "the other one is dead"
        );
    }

    #[test]
    fn the_hold_grows_each_time() {
        let mut duplicate_ids = DuplicateId::default();
        let (mut inside, mut outside) = (1, 2);
        let (mut at, mut held) = (Duration::ZERO, Vec::new());
        while held.len() < 6 {
            match duplicate_ids.arrive(outside, inside, true, at) {
                Verdict::Admitted => std::mem::swap(&mut inside, &mut outside),
                Verdict::Refused(true) => held.push(at),
                Verdict::Refused(false) => {}
            }
            at += S;
        }
        let holds: Vec<_> = held.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
        assert!(holds.windows(2).all(|pair| pair[1] >= pair[0]) && holds[0] < 70 && holds[4] >= 600, "{holds:?}");
    }
}
