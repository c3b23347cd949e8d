//! When something became so, as everybody is told it.

use crate::clock::Now;
use crate::model::Timestamp;
use std::time::Duration;

/// A time, taken from both clocks at once: whoever asks for it, and how often, gets the
/// same answer.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    wall: Timestamp,
    /// Whether the wall clock could be believed.
    trusted: bool,
    /// On the monotonic clock; not known of what an earlier life wrote down.
    at: Option<Duration>,
}

impl Moment {
    pub fn here(now: Now) -> Moment {
        Moment { wall: now.wall, trusted: now.trusted, at: Some(now.monotonic) }
    }

    pub fn before(wall: Timestamp, trusted: bool) -> Moment {
        Moment { wall, trusted, at: None }
    }

    /// The time that was `at` on the monotonic clock; this one, if it is the same.
    pub fn unless_at(self, at: Duration, now: Now) -> Moment {
        let is_same = self.at.is_some_and(|own| own.as_millis() == at.as_millis());
        if is_same { self } else { Moment { wall: now.start().plus(at), trusted: now.trusted, at: Some(at) } }
    }

    /// The clock is believed now. True if that changes something.
    pub fn correct(&mut self, now: Now) -> bool {
        let Some(at) = self.at.filter(|_| !self.trusted && now.trusted) else { return false };
        (self.wall, self.trusted) = (now.start().plus(at), true);
        true
    }

    pub fn is_trusted(self) -> bool {
        self.trusted
    }

    pub fn on_the_wall(self) -> Timestamp {
        self.wall
    }

    /// What an earlier life wrote down comes first.
    pub fn order(self) -> (bool, i64) {
        match self.at {
            None => (false, self.wall.0),
            Some(at) => (true, i64::try_from(at.as_micros()).unwrap_or(i64::MAX)),
        }
    }
}
