//! A device that is known, and what was told of it.

use super::moment::Moment;
use crate::model::{Cause, Presence};
use std::sync::Arc;
use std::time::Duration;

/// Departures remembered halve in number in this time.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// So many departures remembered are flapping.
pub const FLAPPING: f32 = 3.0;

/// How things are with a device.
#[derive(Debug)]
pub struct Known {
    pub state: Presence,
    pub reason: Cause,
    pub since: Moment,
    pub seen: Moment,
    pub link: Arc<str>,
    pub firmware: Option<Arc<str>>,
    pub flaps: u64,
    /// Recent departures, decaying.
    pub heat: f32,
    pub heated: Duration,
    /// What was told of it, and as which version.
    pub told: Option<Announced>,
    pub version: u64,
    pub due: Option<Duration>,
}

/// What was told of a device.
#[derive(Debug, Clone)]
pub struct Announced {
    pub state: Presence,
    pub reason: Cause,
    pub flapping: bool,
    pub since: Moment,
    pub link: Arc<str>,
    pub firmware: Option<Arc<str>>,
}

impl Announced {
    /// Whether nothing else is to be told of a device that is `flapping` now or is not.
    pub fn says_the_same(&self, known: &Known, flapping: bool) -> bool {
        (self.state, self.flapping) == (known.state, flapping)
            && (&self.link, &self.firmware) == (&known.link, &known.firmware)
    }
}

impl Known {
    /// It left, or was taken over. What it does in the time of grace after a pause is not
    /// its fault.
    pub fn flap(&mut self, at: Duration, grace_until: Duration) {
        if at >= grace_until {
            self.heat = self.heat(at) + 1.0;
            self.heated = at;
        }
        self.flaps += 1;
    }

    pub fn heat(&self, at: Duration) -> f32 {
        let halvings = at.saturating_sub(self.heated).as_secs_f32() / HALF_LIFE.as_secs_f32();
        self.heat * 0.5_f32.powf(halvings)
    }
}
