//! Ranges of readings that sinks will never get, and stretches of seqs without readings.

use crate::model::Seq;
use crate::store::segment::Header;
use std::sync::Arc;

/// A range of readings that some sinks will never get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Gap {
    pub reason: &'static str,
    pub first: Seq,
    pub last: Seq,
    /// Those that some sink that is configured had not confirmed.
    pub count: u64,
    /// Sinks that had not confirmed them, and how many each.
    pub undelivered: Vec<(Arc<str>, u64)>,
}

/// So many gaps wait for a commit at most, if there are not more reasons and sinks than that.
const MAX_GAPS: usize = 256;

/// Adds `new` to the gaps that wait for a commit. Those that touch become one; where they
/// are too many, since the disk takes no commit, `new` widens the latest of its kind.
pub(in crate::store) fn add_gap(gaps: &mut Vec<Gap>, new: Gap) {
    let crowded = gaps.len() >= MAX_GAPS;
    let kindred = gaps.iter_mut().rev().find(|gap| gap.is_like(&new));
    match kindred {
        Some(gap) if crowded || gap.last.next() == new.first => gap.take_in(&new),
        _ => gaps.push(new),
    }
}

impl Gap {
    fn is_like(&self, other: &Gap) -> bool {
        let names = |gap: &Gap| gap.undelivered.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        self.reason == other.reason && names(self) == names(other)
    }

    /// Of the same sinks.
    fn take_in(&mut self, other: &Gap) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.count = self.count.saturating_add(other.count);
        for ((_, count), (_, more)) in self.undelivered.iter_mut().zip(&other.undelivered) {
            *count = count.saturating_add(*more);
        }
    }
}

/// A stretch of seqs of which some have no reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Hole {
    pub first: Seq,
    pub last: Seq,
    pub missing: u64,
}

impl Hole {
    /// A stretch without any reading.
    pub fn whole(first: Seq, last: Seq) -> Hole {
        Hole { first, last, missing: last.next().0.saturating_sub(first.0) }
    }

    /// Whether there is no reading in it.
    pub fn is_whole(&self) -> bool {
        self.missing == self.last.next().0.saturating_sub(self.first.0)
    }

    /// What is missing between the first and the last reading of a segment, if anything.
    pub fn inside(header: &Header) -> Option<Hole> {
        let (first, last) = (header.first, header.last());
        let missing = (last.0 + 1 - first.0).saturating_sub(u64::from(header.count));
        (missing > 0).then_some(Hole { first, last, missing })
    }

    /// What of it stands behind `after`; `None` if nothing does.
    pub fn rest(self, after: Seq) -> Option<Hole> {
        let missing = self.missing_between(after, self.last);
        (self.last > after).then_some(Hole { first: self.first.max(after.next()), missing, ..self })
    }

    /// How many readings are missing after `after` and up to `upto`; about, where
    /// that divides a stretch that has some.
    pub fn missing_between(&self, after: Seq, upto: Seq) -> u64 {
        let length = |first: u64, last: u64| (last + 1).saturating_sub(first);
        let whole = length(self.first.0, self.last.0);
        let part = length(self.first.0.max(after.0 + 1), self.last.0.min(upto.0));
        if part == whole {
            return self.missing;
        }
        // The product fits 128 bits, and the quotient is at most `missing`.
        u64::try_from(u128::from(self.missing) * u128::from(part) / u128::from(whole.max(1))).unwrap_or(self.missing)
    }
}

/// So many stretches are kept; beyond, neighbours are taken together.
const MAX_HOLES: usize = 4096;

/// Adds `more` to `holes`, which stay ordered and bounded.
pub(in crate::store) fn add_holes(holes: &mut Vec<Hole>, more: &[Hole]) {
    if more.is_empty() {
        return;
    }
    holes.extend_from_slice(more);
    condense(holes);
}

/// Orders `holes`, and takes neighbours together where they are too many.
fn condense(holes: &mut Vec<Hole>) {
    holes.sort_by_key(|hole| hole.first);
    while holes.len() > MAX_HOLES {
        *holes = holes
            .chunks(2)
            .map(|pair| {
                let last = pair.iter().map(|hole| hole.last).max().unwrap_or_default();
                Hole { first: pair[0].first, last, missing: pair.iter().map(|hole| hole.missing).sum() } // never empty
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_that_wait_stay_few_and_lose_no_count() {
        let gap = |seq: u64, reason, sink: &str| Gap {
            reason,
            first: Seq(seq),
            last: Seq(seq),
            count: 1,
            undelivered: vec![(sink.into(), 1)],
        };
        let mut gaps = Vec::new();
        for seq in 1..=10 {
            add_gap(&mut gaps, gap(seq, "too_large", "cloud"));
        }
        let whole =
            Gap { last: Seq(10), count: 10, undelivered: vec![("cloud".into(), 10)], ..gap(1, "too_large", "cloud") };
        assert_eq!(gaps, [whole], "those that touch are one");

        for seq in (11..20_000).step_by(3) {
            add_gap(&mut gaps, gap(seq + 1, "too_large", "cloud"));
            add_gap(&mut gaps, gap(seq, "too_large", "plant"));
            add_gap(&mut gaps, gap(seq, "no_history", "cloud"));
        }
        assert!(gaps.len() <= MAX_GAPS + 2, "{}", gaps.len());
        let count = |sink: &str| -> u64 {
            gaps.iter()
                .flat_map(|gap| &gap.undelivered)
                .filter(|(name, _)| &**name == sink)
                .map(|(_, count)| count)
                .sum()
        };
        assert_eq!((count("cloud"), count("plant")), (10 + 2 * 6663, 6663));
        assert!(gaps.iter().all(|gap| gap.count == gap.undelivered[0].1 && gap.first <= gap.last));
    }

    #[test]
    fn holes_are_counted_by_parts_and_stay_few() {
        let hole = Hole { first: Seq(11), last: Seq(20), missing: 5 };
        assert_eq!(hole.missing_between(Seq(0), Seq(100)), 5);
        assert_eq!(hole.missing_between(Seq(10), Seq(20)), 5);
        assert_eq!(hole.missing_between(Seq(15), Seq(100)), 2);
        assert_eq!(hole.missing_between(Seq(20), Seq(100)), 0);
        assert_eq!(hole.missing_between(Seq(0), Seq(10)), 0);
        assert_eq!(Hole::whole(Seq(3), Seq(7)).missing_between(Seq(4), Seq(6)), 2);

        let mut holes = Vec::new();
        let many: Vec<_> = (0..10_000).map(|i| Hole::whole(Seq(i * 10 + 1), Seq(i * 10 + 3))).collect();
        add_holes(&mut holes, &many);
        assert!(holes.len() <= MAX_HOLES);
        let all: u64 = holes.iter().map(|hole| hole.missing_between(Seq::ZERO, Seq(u64::MAX - 1))).sum();
        assert_eq!(all, 30_000);
    }
}
