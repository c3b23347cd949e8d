//! Which segments must go so that the log stays within its bound. Pure.

use crate::model::Seq;

/// A segment as it lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub first: Seq,
    pub count: u32,
    pub bytes: u64,
}

/// What is dropped, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub first: Seq,
    /// The last reading dropped.
    pub last: Seq,
    pub segments: usize,
    pub readings: u64,
    /// For each sink, how many of the readings it had not confirmed.
    pub undelivered: Vec<u64>,
}

/// Drops from the front of `oldest` until `excess` bytes are free; `None` if
/// nothing needs to go or nothing is there.
pub(super) fn plan(oldest: impl Iterator<Item = Stored>, excess: u64, confirmed: &[Seq]) -> Option<Plan> {
    let mut freed = 0;
    let mut plan: Option<Plan> = None;
    for segment in oldest {
        if freed >= excess {
            break;
        }
        freed += segment.bytes;
        let last = segment.first.plus(u64::from(segment.count)).prev();
        let plan = plan.get_or_insert_with(|| Plan {
            first: segment.first,
            last,
            segments: 0,
            readings: 0,
            undelivered: vec![0; confirmed.len()],
        });
        plan.last = last;
        plan.segments += 1;
        plan.readings += u64::from(segment.count);
        for (lost, confirmed) in plan.undelivered.iter_mut().zip(confirmed) {
            *lost += last.0.saturating_sub(confirmed.0.max(segment.first.prev().0));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: [Stored; 3] = [
        Stored { first: Seq(1), count: 10, bytes: 100 },
        Stored { first: Seq(11), count: 10, bytes: 100 },
        Stored { first: Seq(1001), count: 10, bytes: 100 },
    ];

    #[test]
    fn nothing_is_dropped_while_there_is_room() {
        assert_eq!(plan(LOG.into_iter(), 0, &[]), None);
        assert_eq!(plan(std::iter::empty(), 5, &[]), None);
    }

    #[test]
    fn the_oldest_go_first_and_are_counted_for_each_sink() {
        let plan = plan(LOG.into_iter(), 101, &[Seq(0), Seq(15), Seq(500)]).expect("two segments must go");
        let expected = Plan { first: Seq(1), last: Seq(20), segments: 2, readings: 20, undelivered: vec![20, 5, 0] };
        assert_eq!(plan, expected);
    }

    #[test]
    fn seqs_that_were_never_given_out_are_not_counted_as_lost() {
        let plan = plan(LOG.into_iter(), 1000, &[Seq(20)]).expect("all must go");
        assert_eq!((plan.readings, plan.undelivered), (30, vec![10]));
    }
}
