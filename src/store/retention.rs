//! What must go so that the log stays within its bounds. Pure.
//!
//! In this order, oldest first within each:
//!
//! 1. what is older than the age limit, whether delivered or not;
//! 2. history that every sink confirmed;
//! 3. if asked for, all but every n-th reading of low priority (once for a segment);
//! 4. the rest of low priority;
//! 5. high priority.
//!
//! Taking single readings out of a segment means writing what is left again. That is
//! done to each segment twice at most (3 and 4), in steps of a bounded size that free
//! more than is needed at the moment, so that a commit does not rewrite for a few bytes.

pub(super) mod eviction;
pub(super) mod gap;
pub(super) mod holes;
pub(super) mod merging;
pub(super) mod priority;
pub(super) mod rewriting;

use crate::model::Seq;

/// A segment as it lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub first: Seq,
    pub last: Seq,
    pub count: u32,
    pub bytes: u64,
    /// Seconds since it was written, by the log's clock.
    pub age: u64,
    /// How many of its readings are of high priority; `None` if that is not known.
    pub high: Option<u32>,
    pub thinned: bool,
}

/// Why readings leave the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    MaxSize,
    MaxAge,
    MinFree,
    Thinned,
    Corrupt,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::MaxSize => "max_size",
            Reason::MaxAge => "max_age",
            Reason::MinFree => "min_free",
            Reason::Thinned => "thinned",
            Reason::Corrupt => "corrupt",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Drop,
    /// All but high priority goes.
    KeepHigh,
    /// All but high priority and every n-th reading of a device goes.
    Thin,
}

/// What becomes of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// Its place among those given.
    pub at: usize,
    pub action: Action,
    pub reason: Reason,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    /// Bytes to free.
    pub excess: u64,
    /// Which bound they exceed.
    pub reason: Reason,
    /// In seconds.
    pub max_age: Option<u64>,
    /// Keep one in so many when thinning.
    pub thin: Option<u32>,
    /// Segments and their bytes that may be rewritten now; one may be in any case.
    pub rewrite_segments: usize,
    pub rewrite_bytes: u64,
    /// Bytes to free if anything is rewritten at all.
    pub chunk: u64,
    /// Whether the segments given are all that have readings of low priority.
    pub complete: bool,
}

/// The next steps, in the order of the segments, which are the log's oldest. If they
/// do not free enough, there may be more after they are done.
pub(super) fn plan(oldest: &[Stored], confirmed: &[Seq], demand: &Demand) -> Vec<Step> {
    let everywhere = confirmed.iter().copied().min().unwrap_or(Seq(u64::MAX));
    let mut steps = Vec::new();
    let mut rest = Vec::new();
    let mut freed = 0u64;
    for (at, segment) in oldest.iter().enumerate() {
        if demand.max_age.is_some_and(|max_age| segment.age > max_age) {
            freed += segment.bytes;
            steps.push(Step { at, action: Action::Drop, reason: Reason::MaxAge });
        } else {
            rest.push((at, segment));
        }
    }
    let mut undelivered = Vec::new();
    for (at, segment) in rest {
        if freed < demand.excess && segment.last <= everywhere {
            freed += segment.bytes;
            steps.push(Step { at, action: Action::Drop, reason: demand.reason });
        } else {
            undelivered.push((at, segment));
        }
    }
    if freed < demand.excess {
        let missing = demand.excess - freed;
        let low: Vec<_> = undelivered.iter().filter(|(_, s)| s.high != Some(s.count)).copied().collect();
        let mut more = thin(&low, missing, demand);
        if more.is_empty() {
            more = drop_low(&low, missing, demand);
        }
        if more.is_empty() && demand.complete {
            more = drop_all(&undelivered, missing, demand.reason);
        }
        steps.append(&mut more);
    }
    steps.sort_unstable_by_key(|step| step.at);
    steps
}

/// Bounds what is rewritten.
struct Rewriting {
    segments: usize,
    bytes: u64,
}

impl Rewriting {
    fn new(demand: &Demand) -> Rewriting {
        Rewriting { segments: demand.rewrite_segments, bytes: demand.rewrite_bytes }
    }

    /// Whether a segment of so many bytes may be rewritten, too.
    fn takes(&mut self, bytes: u64, is_first: bool) -> bool {
        if !is_first && (self.segments == 0 || self.bytes < bytes) {
            return false;
        }
        self.segments = self.segments.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

fn thin(low: &[(usize, &Stored)], missing: u64, demand: &Demand) -> Vec<Step> {
    let Some(every) = demand.thin else { return Vec::new() };
    let mut rewriting = Rewriting::new(demand);
    let mut steps = Vec::new();
    let mut freed = 0;
    for (at, segment) in low.iter().filter(|(_, segment)| !segment.thinned) {
        if freed >= missing.max(demand.chunk) || !rewriting.takes(segment.bytes, steps.is_empty()) {
            break;
        }
        freed += low_bytes(segment) * u64::from(every.saturating_sub(1)) / u64::from(every.max(1));
        steps.push(Step { at: *at, action: Action::Thin, reason: Reason::Thinned });
    }
    steps
}

fn drop_low(low: &[(usize, &Stored)], missing: u64, demand: &Demand) -> Vec<Step> {
    let mut rewriting = Rewriting::new(demand);
    let mut rewrites = 0;
    let mut steps: Vec<Step> = Vec::new();
    let mut freed = 0;
    for (at, segment) in low {
        let wanted = if rewrites > 0 { missing.max(demand.chunk) } else { missing };
        if freed >= wanted {
            break;
        }
        let action = match segment.high {
            Some(0) => Action::Drop,
            _ => {
                if !rewriting.takes(segment.bytes, rewrites == 0) {
                    break;
                }
                rewrites += 1;
                Action::KeepHigh
            }
        };
        freed += low_bytes(segment);
        steps.push(Step { at: *at, action, reason: demand.reason });
    }
    steps
}

fn drop_all(segments: &[(usize, &Stored)], missing: u64, reason: Reason) -> Vec<Step> {
    let mut freed = 0;
    let enough = |segment: &Stored| {
        let needed = freed < missing;
        freed += segment.bytes;
        needed
    };
    let mut enough = enough;
    segments
        .iter()
        .take_while(|(_, segment)| enough(segment))
        .map(|(at, _)| Step { at: *at, action: Action::Drop, reason })
        .collect()
}

/// What the readings of low priority take, about.
fn low_bytes(segment: &Stored) -> u64 {
    let low = u64::from(segment.count - segment.high.unwrap_or(0).min(segment.count));
    segment.bytes * low / u64::from(segment.count.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOTHING: Demand = Demand {
        excess: 0,
        reason: Reason::MaxSize,
        max_age: None,
        thin: None,
        rewrite_segments: 64,
        rewrite_bytes: 1 << 20,
        chunk: 0,
        complete: true,
    };

    /// Ten segments of ten readings and 100 bytes each, with so many of them high.
    fn log(high: [u32; 10]) -> Vec<Stored> {
        let stored = |(i, high): (u64, u32)| Stored {
            first: Seq(i * 10 + 1),
            last: Seq(i * 10 + 10),
            count: 10,
            bytes: 100,
            age: 1000 - i * 100,
            high: Some(high),
            thinned: false,
        };
        (0..).zip(high).map(stored).collect()
    }

    fn steps(log: &[Stored], confirmed: &[u64], demand: Demand) -> Vec<(usize, Action, Reason)> {
        let confirmed: Vec<_> = confirmed.iter().map(|seq| Seq(*seq)).collect();
        plan(log, &confirmed, &demand).into_iter().map(|step| (step.at, step.action, step.reason)).collect()
    }

    #[test]
    fn nothing_is_dropped_while_there_is_room() {
        assert_eq!(steps(&log([0; 10]), &[0], NOTHING), []);
        assert_eq!(steps(&[], &[0], Demand { excess: 5, ..NOTHING }), []);
    }

    #[test]
    fn delivered_history_goes_first_and_no_more_of_it_than_needed() {
        let log = log([5; 10]);
        let got = steps(&log, &[35, 100], Demand { excess: 101, ..NOTHING });
        assert_eq!(got, [(0, Action::Drop, Reason::MaxSize), (1, Action::Drop, Reason::MaxSize)]);
        let got = steps(&log, &[35, 100], Demand { excess: 301, reason: Reason::MinFree, ..NOTHING });
        assert_eq!(got[2..], [(2, Action::Drop, Reason::MinFree), (3, Action::KeepHigh, Reason::MinFree)]);
    }

    #[test]
    fn alarms_outlive_all_telemetry() {
        let mut log = log([0, 10, 3, 0, 0, 0, 0, 0, 0, 0]);
        let got = steps(&log, &[0], Demand { excess: 160, ..NOTHING });
        assert_eq!(got, [(0, Action::Drop, Reason::MaxSize), (2, Action::KeepHigh, Reason::MaxSize)]);
        for segment in &mut log {
            segment.high = Some(segment.count);
        }
        assert_eq!(steps(&log, &[0], Demand { excess: 1, ..NOTHING }), [(0, Action::Drop, Reason::MaxSize)]);
        assert_eq!(steps(&log, &[0], Demand { excess: 1, complete: false, ..NOTHING }), []);
    }

    #[test]
    fn a_segment_of_unknown_lanes_is_looked_into() {
        let mut log = log([0; 10]);
        log[0].high = None;
        assert_eq!(steps(&log, &[0], Demand { excess: 1, ..NOTHING }), [(0, Action::KeepHigh, Reason::MaxSize)]);
    }

    #[test]
    fn thinning_goes_before_dropping_and_happens_once() {
        let mut log = log([0; 10]);
        let demand = Demand { excess: 150, thin: Some(2), ..NOTHING };
        let thin = |at| (at, Action::Thin, Reason::Thinned);
        assert_eq!(steps(&log, &[0], demand), [thin(0), thin(1), thin(2)]);
        log[0].thinned = true;
        log[1].thinned = true;
        assert_eq!(steps(&log, &[0], demand), [thin(2), thin(3), thin(4)]);
        log.iter_mut().for_each(|segment| segment.thinned = true);
        assert_eq!(steps(&log, &[0], demand)[0], (0, Action::Drop, Reason::MaxSize));
    }

    #[test]
    fn rewriting_is_done_in_steps_of_a_bounded_size() {
        let log = log([1; 10]);
        let few = Demand { excess: 1, chunk: 400, ..NOTHING };
        assert_eq!(steps(&log, &[0], few).len(), 5, "more than is needed at the moment");
        assert_eq!(steps(&log, &[0], Demand { rewrite_bytes: 250, ..few }).len(), 2);
        assert_eq!(steps(&log, &[0], Demand { rewrite_segments: 3, ..few }).len(), 3);
        assert_eq!(steps(&log, &[0], Demand { rewrite_bytes: 1, ..few }).len(), 1, "one in any case");
    }

    #[test]
    fn what_is_too_old_goes_whether_delivered_or_not() {
        let log = log([10; 10]);
        let got = steps(&log, &[15], Demand { max_age: Some(700), ..NOTHING });
        assert_eq!(got, [0, 1, 2].map(|at| (at, Action::Drop, Reason::MaxAge)));
        let got = steps(&log, &[100], Demand { max_age: Some(700), excess: 301, ..NOTHING });
        assert_eq!(got[3..], [(3, Action::Drop, Reason::MaxSize)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However the log looks: nothing undelivered goes while history is left, no
        /// alarm while telemetry is, and there is always a way to free something.
        #[test]
        fn the_order_is_kept(
            high in proptest::array::uniform10(0u32..=10),
            thinned in proptest::array::uniform10(any::<bool>()),
            confirmed in 0u64..110,
            excess in 1u64..2000,
            thin in proptest::option::of(2u32..20),
            chunk in 0u64..500,
        ) {
            let mut log = log(high);
            log.iter_mut().zip(thinned).for_each(|(segment, thinned)| segment.thinned = thinned);
            let demand = Demand { excess, thin, chunk, ..NOTHING };
            let steps = plan(&log, &[Seq(confirmed)], &demand);
            prop_assert!(!steps.is_empty());
            let delivered = |at: usize| log[at].last.0 <= confirmed;
            let touched = |at: usize| steps.iter().any(|step| step.at == at);
            if steps.iter().any(|step| !delivered(step.at)) {
                prop_assert!((0..10).filter(|at| delivered(*at)).all(touched));
            }
            let drops_alarms =
                |step: &&Step| !delivered(step.at) && step.action == Action::Drop && log[step.at].high != Some(0);
            if steps.iter().any(|step| drops_alarms(&step)) {
                prop_assert!((0..10).filter(|at| !delivered(*at)).all(|at| log[at].high == Some(10)));
            }
            let mut seen = std::collections::HashSet::new();
            prop_assert!(steps.iter().all(|step| seen.insert(step.at)), "one step a segment");
        }
    }
}
