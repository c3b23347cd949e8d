//! What the destination refuses on one connection, until something later is taken.

use crate::backoff::Failure;
use crate::sink::in_flight::InFlight;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long something may be held while nothing is taken.
const HOLD: Duration = Duration::from_secs(10);
/// Refusals in a row until a lane is sent nothing more for a while.
const MOST_REFUSALS: u32 = 4;
const REST: Duration = Duration::from_secs(60);

/// What one connection's destination refuses.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Refusals in a row of each lane, and until when it is sent nothing.
    lanes: HashMap<Arc<str>, (u32, Duration)>,
    /// Why and when the last one was that nothing has been taken since.
    last: Option<(Failure, Duration)>,
}

impl Refusals {
    /// Why the connection is to be given up: something is held and nothing was taken for long.
    pub fn overdue(&self, flight: &InFlight, now: Duration) -> Option<Failure> {
        let (failure, since) = self.last.as_ref().filter(|_| flight.held() > 0)?;
        (now.saturating_sub(*since) >= HOLD).then(|| failure.clone())
    }

    pub fn refused(&mut self, lane: Arc<str>, failure: Failure, now: Duration) {
        let (count, until) = self.lanes.entry(lane).or_default();
        *count += 1;
        if *count >= MOST_REFUSALS {
            *until = now + REST;
        }
        self.wait(failure, now);
    }

    pub fn wait(&mut self, failure: Failure, now: Duration) {
        let since = self.last.as_ref().map_or(now, |(_, since)| *since);
        self.last = Some((failure, since));
    }

    pub fn taken(&mut self, lane: &str) {
        self.last = None;
        if !self.lanes.is_empty() {
            self.lanes.remove(lane);
        }
    }

    pub fn rests(&self, lane: &str, now: Duration) -> bool {
        self.lanes.get(lane).is_some_and(|(_, until)| now < *until)
    }
}
