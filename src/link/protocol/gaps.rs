//! What is done about Readings that stand behind lost ones.
//!
//! On a line that loses frames they are dropped, and the device is asked for what is missing
//! by an Ack that repeats the last one. What it sent before it heard that still arrives, each
//! message with a higher seq than the one before it; one that is not higher shows that the
//! device went back and that what it sent again was lost, too: it is asked again. A device
//! that does not go back is told Goodbye, as ever, and then says Hello.

use std::time::Duration;

/// How long a device may go on before it must have gone back.
const GO_BACK_WITHIN: Duration = Duration::from_secs(1);
/// The same for one that did before: it knows what is asked of it.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(5);
/// What was asked may have been lost; so it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The gaps of one session.
#[derive(Debug, Default)]
pub struct Gaps {
    open: Option<Open>,
    /// Whether the device goes back when it is asked to.
    heeds: bool,
}

/// A gap that is not closed.
#[derive(Debug, Clone, Copy)]
struct Open {
    /// When it showed, or the device last went back for it.
    since: Duration,
    asked: Duration,
    /// Where the last Readings behind it began.
    seq: u64,
}

/// What Readings behind a gap ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// To say what is missing.
    Ask,
    /// Nothing: that was said.
    Wait,
    /// To end the session.
    GiveUp,
}

impl Gaps {
    /// Readings came that begin with `seq`, behind a gap.
    pub fn behind(&mut self, seq: u64, now: Duration) -> Behind {
        let Some(open) = &mut self.open else {
            self.open = Some(Open { since: now, asked: now, seq });
            return Behind::Ask;
        };
        let went_back = seq <= open.seq;
        open.seq = seq;
        let within = if self.heeds { COMES_BACK_WITHIN } else { GO_BACK_WITHIN };
        if went_back {
            self.heeds = true;
            (open.since, open.asked) = (now, now);
            Behind::Ask
        } else if now >= open.since + within {
            Behind::GiveUp
        } else if now >= open.asked + ASK_AGAIN {
            open.asked = now;
            Behind::Ask
        } else {
            Behind::Wait
        }
    }

    /// Readings came that stand behind none.
    pub fn none(&mut self) {
        self.heeds |= self.open.take().is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_device_is_asked_once_for_what_is_missing_while_more_is_on_its_way() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.behind(17, ms(0)), Behind::Ask);
        for seq in 18..40 {
            assert_eq!(gaps.behind(seq, ms(10 * (seq - 17))), Behind::Wait);
        }
        gaps.none();
        assert_eq!(gaps.behind(50, ms(300)), Behind::Ask, "another gap");
    }

    #[test]
    fn a_device_that_went_back_and_lost_it_again_is_asked_again_at_once() {
        let mut gaps = Gaps::default();
        gaps.behind(17, ms(0));
        gaps.behind(18, ms(10));
        assert_eq!(gaps.behind(17, ms(20)), Behind::Ask);
        assert_eq!(gaps.behind(18, ms(30)), Behind::Wait);
        assert_eq!(gaps.behind(18, ms(40)), Behind::Ask);
        // That it goes back gives it more time.
        assert_eq!(gaps.behind(19, ms(4000)), Behind::Ask, "the question may have been lost");
        assert_eq!(gaps.behind(20, ms(5040)), Behind::GiveUp);
    }

    #[test]
    fn a_device_that_does_not_know_to_go_back_is_given_up_soon() {
        let mut gaps = Gaps::default();
        gaps.behind(17, ms(0));
        assert_eq!(gaps.behind(18, ms(999)), Behind::Wait);
        assert_eq!(gaps.behind(19, ms(1000)), Behind::GiveUp);
    }
}
