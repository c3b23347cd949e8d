//! Which message it is that ends connections, of a destination that gives no reason.
//!
//! An MQTT 3.1.1 broker closes the connection at a topic that is denied, at a message that it
//! does not like and at one that is too large, every time. [`Sizing`](super::sizing::Sizing)
//! halves what is sent until one message alone is under way as connections end. Whether it
//! is to blame shows a trial, repeated: the connection has stood for a while, another
//! message is confirmed on it, this one goes next, and the connection ends. A link that comes
//! and goes does not pass that; where nothing else waits there is nothing to try it against,
//! and nothing that it holds up.
//!
//! A lane, such as a device's topic, of which messages were given up and whose neighbours
//! pass is not tried again for a time.

use super::in_flight::{Head, Span};
use super::sizing::HARMLESS;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection stands before a trial.
pub const STEADY: Duration = Duration::from_secs(2);
/// Trials that a message fails until it is given up.
const TRIALS: u32 = 3;
/// Messages given up in a row until their lane counts as denied.
const DENIED_AFTER: u32 = 2;
/// How long a lane that is denied is not tried.
const REST: Duration = Duration::from_secs(3600);

/// What a message may be blamed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    TooLarge,
    Refused,
}

impl Verdict {
    /// As in the `gap` event.
    pub fn reason(self) -> &'static str {
        match self {
            Verdict::TooLarge => "too_large",
            Verdict::Refused => "refused",
        }
    }
}

/// The message that is suspected.
#[derive(Debug, Clone)]
pub struct Suspect {
    pub span: Span,
    pub lane: Arc<str>,
    pub bytes: usize,
    trials: u32,
}

/// What passed on the connection before the suspect was sent.
#[derive(Debug, Clone)]
pub struct Passed {
    pub lane: Arc<str>,
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct Lane {
    given_up: u32,
    denied_until: Option<Duration>,
}

/// Everything that is suspected at one destination.
#[derive(Debug, Default)]
pub struct PoisonSearch {
    suspect: Option<Suspect>,
    lanes: HashMap<Arc<str>, Lane>,
}

impl PoisonSearch {
    /// What the next connection is to try.
    pub fn suspect(&self) -> Option<&Suspect> {
        self.suspect.as_ref()
    }

    /// Whether a message to this lane is not worth a connection.
    pub fn denies(&self, lane: &str, now: Duration) -> bool {
        self.lanes.get(lane).and_then(|lane| lane.denied_until).is_some_and(|until| now < until)
    }

    /// The first of what is under way was confirmed.
    pub fn moved_on(&mut self) {
        self.suspect = None;
    }

    /// Something to this lane was confirmed.
    pub fn confirmed(&mut self, lane: &str) {
        if !self.lanes.is_empty() {
            self.lanes.remove(lane);
        }
    }

    /// A connection ended while nothing but `head` was under way to `lane`, after the trial if
    /// something `passed`. The verdict, if this was enough.
    pub fn lost(&mut self, head: Head, lane: Arc<str>, passed: Option<&Passed>, now: Duration) -> Option<Verdict> {
        if head.readings > 1 {
            self.suspect = None;
            return None;
        }
        let known = self.suspect.take().filter(|suspect| suspect.span == head.span);
        let (Some(mut suspect), Some(passed)) = (known, passed) else {
            self.suspect = Some(Suspect { span: head.span, lane, bytes: head.bytes, trials: 0 });
            return None;
        };
        suspect.trials += 1;
        let known_lane = self.lanes.get(&lane).is_some_and(|lane| lane.given_up > 0);
        if suspect.trials < TRIALS && !known_lane {
            self.suspect = Some(suspect);
            return None;
        }
        if passed.lane != lane {
            let lane = self.lanes.entry(lane).or_default();
            lane.given_up += 1;
            lane.denied_until = (lane.given_up >= DENIED_AFTER).then_some(now + REST);
        }
        let is_large = suspect.bytes > HARMLESS && passed.bytes < suspect.bytes;
        Some(if is_large { Verdict::TooLarge } else { Verdict::Refused })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Seq;

    fn head(seq: u64, bytes: usize, readings: u64) -> Head {
        Head { span: Span::Readings { first: Seq(seq), last: Seq(seq) }, bytes, readings }
    }

    fn passed(lane: &str) -> Option<Passed> {
        Some(Passed { lane: lane.into(), bytes: 100 })
    }

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn a_message_is_given_up_only_after_trials_in_which_another_passed() {
        let mut search = PoisonSearch::default();
        for _ in 0..100 {
            assert_eq!(search.lost(head(7, 9000, 1), "all".into(), None, NOW), None, "a link that comes and goes");
        }
        for _ in 1..TRIALS {
            assert_eq!(search.lost(head(7, 9000, 1), "all".into(), passed("all").as_ref(), NOW), None);
        }
        let verdict = search.lost(head(7, 9000, 1), "all".into(), passed("all").as_ref(), NOW);
        assert_eq!(verdict, Some(Verdict::TooLarge));
        assert!(!search.denies("all", NOW), "others of its lane pass");
    }

    #[test]
    fn what_passes_meanwhile_is_not_suspected_any_more() {
        let mut search = PoisonSearch::default();
        search.lost(head(7, 100, 1), "a".into(), None, NOW);
        for _ in 1..TRIALS {
            search.lost(head(7, 100, 1), "a".into(), passed("b").as_ref(), NOW);
        }
        search.moved_on();
        assert_eq!(search.lost(head(7, 100, 1), "a".into(), passed("b").as_ref(), NOW), None);
        assert_eq!(search.lost(head(8, 100, 2), "a".into(), passed("b").as_ref(), NOW), None, "there are two");
        assert!(search.suspect().is_none());
    }

    #[test]
    fn a_lane_whose_neighbours_pass_is_denied_for_a_while() {
        let mut search = PoisonSearch::default();
        let mut give_up = |seq, trials| {
            assert_eq!(search.lost(head(seq, 100, 1), "a".into(), None, NOW), None);
            for _ in 1..trials {
                assert_eq!(search.lost(head(seq, 100, 1), "a".into(), passed("b").as_ref(), NOW), None);
            }
            let verdict = search.lost(head(seq, 100, 1), "a".into(), passed("b").as_ref(), NOW);
            assert_eq!(verdict, Some(Verdict::Refused));
            search.denies("a", NOW)
        };
        assert!(!give_up(7, TRIALS));
        assert!(give_up(8, 1), "one trial is enough now");
        assert!(!search.denies("b", NOW) && !search.denies("a", NOW + REST));
        search.confirmed("a");
        assert!(!search.denies("a", NOW));
    }
}
