//! When to check whether the far end closed a connection that is not read. Only reading would show
//! it.

use std::time::Duration;

/// How long a connection is paused before a close of the far end counts: what the device sent
/// before it closed is taken if that is possible soon.
const AFTER: Duration = Duration::from_secs(10);
/// Time between two checks.
const AGAIN: Duration = Duration::from_secs(5);

/// The schedule of one connection's checks. Pure.
#[derive(Debug, Default)]
pub struct Hangup(Option<Duration>);

impl Hangup {
    /// Whether a check is due, if the connection is `paused`.
    pub fn is_due(&mut self, paused: bool, now: Duration) -> bool {
        if !paused {
            self.0 = None;
            return false;
        }
        let due = now >= *self.0.get_or_insert(now + AFTER);
        if due {
            self.0 = Some(now + AGAIN);
        }
        due
    }

    /// When the next check is due.
    pub fn due(&self) -> Option<Duration> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_looked_at_when_it_lasts_and_now_and_then_after_that() {
        let (mut hangup, second) = (Hangup::default(), Duration::from_secs);
        let looks =
            |hangup: &mut Hangup, paused| (100..130).filter(|now| hangup.is_due(paused, second(*now))).collect();
        let during: Vec<u64> = looks(&mut hangup, true);
        assert_eq!(during, [110, 115, 120, 125]);
        let open: Vec<u64> = looks(&mut hangup, false);
        assert!(open.is_empty() && hangup.due().is_none());
        assert!(!hangup.is_due(true, second(200)) && hangup.due() == Some(second(210)), "it begins anew");
    }
}
