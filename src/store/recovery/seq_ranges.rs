//! A set of seqs, held as ranges. Pure.

use std::collections::BTreeMap;

/// Disjoint ranges that do not touch, by their first seq.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::store) struct SeqRanges(BTreeMap<u64, u64>);

impl SeqRanges {
    /// Adds all from `first` to `last`.
    pub fn insert(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let (mut first, mut last) = (first, last);
        while let Some((&start, &end)) = self.0.range(..=last.saturating_add(1)).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            self.0.remove(&start);
            first = first.min(start);
            last = last.max(end);
        }
        self.0.insert(first, last);
    }

    /// What of `first` to `last` is not in the set.
    pub fn missing(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut next = first;
        let from = self.0.range(..=first).next_back().map_or(first, |(&start, _)| start);
        for (&start, &end) in self.0.range(from..=last.max(from)) {
            if end < next {
                continue;
            }
            if start > next {
                missing.push((next, last.min(start - 1)));
            }
            next = end.saturating_add(1);
            if next > last || end == u64::MAX {
                return missing;
            }
        }
        if next <= last {
            missing.push((next, last));
        }
        missing
    }

    pub fn contains(&self, seq: u64) -> bool {
        self.0.range(..=seq).next_back().is_some_and(|(_, &last)| seq <= last)
    }

    /// The largest seq in the set, 0 if it is empty.
    pub fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, &last)| last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_missing_is_what_was_never_inserted(
            inserted in proptest::collection::vec((1u64..60, 0u64..10), 0..12), first in 1u64..70, length in 0u64..70
        ) {
            let mut ranges = SeqRanges::default();
            let mut all = std::collections::BTreeSet::new();
            for (start, length) in inserted {
                ranges.insert(start, start + length);
                all.extend(start..=start + length);
            }
            let last = first + length;
            let missing: Vec<u64> = ranges.missing(first, last).into_iter().flat_map(|(a, b)| a..=b).collect();
            let expected: Vec<u64> = (first..=last).filter(|seq| !all.contains(seq)).collect();
            prop_assert_eq!(missing, expected);
            prop_assert_eq!(ranges.contains(first), all.contains(&first));
            prop_assert_eq!(ranges.end(), all.last().copied().unwrap_or(0));
            let disjoint: Vec<_> = ranges.0.iter().collect();
            prop_assert!(disjoint.windows(2).all(|pair| *pair[0].1 + 1 < *pair[1].0));
        }
    }
}
