//! A set of numbers that mostly come in order, stored as ranges.

/// Disjoint inclusive ranges. Memory is bounded: of more than [`MAX_RANGES`] ranges the
/// lowest is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Ascending, at least one number apart.
    ranges: Vec<(u64, u64)>,
}

/// Numbers in order make one range, whatever their count.
pub const MAX_RANGES: usize = 1024;

impl Ranges {
    /// Adds a number. False if it was in the set.
    pub fn insert(&mut self, n: u64) -> bool {
        // The first range that ends at n or above.
        let at = self.ranges.partition_point(|(_, last)| *last < n);
        if self.ranges.get(at).is_some_and(|(first, _)| *first <= n) {
            return false;
        }
        let joins_next = self.ranges.get(at).is_some_and(|(first, _)| *first - 1 == n); // above n, so not 0
        let joins_previous = at.checked_sub(1).filter(|before| self.ranges[*before].1 + 1 == n); // below n
        match (joins_previous, joins_next) {
            (Some(before), true) => {
                self.ranges[before].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (Some(before), false) => self.ranges[before].1 = n,
            (None, true) => self.ranges[at].0 = n,
            (None, false) => {
                self.ranges.insert(at, (n, n));
                if self.ranges.len() > MAX_RANGES {
                    self.ranges.remove(0);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ranges(numbers: impl IntoIterator<Item = u64>) -> Ranges {
        let mut ranges = Ranges::default();
        for n in numbers {
            ranges.insert(n);
        }
        ranges
    }

    #[test]
    fn numbers_in_order_are_one_range() {
        assert_eq!(ranges(1..=100_000).ranges, [(1, 100_000)]);
    }

    #[test]
    fn the_ends_of_the_number_line_are_numbers_too() {
        let mut all = ranges([0, u64::MAX, 1, u64::MAX - 1]);
        assert_eq!(all.ranges, [(0, 1), (u64::MAX - 1, u64::MAX)]);
        assert!(!all.insert(0) && !all.insert(u64::MAX));
    }

    #[test]
    fn what_is_forgotten_is_the_lowest() {
        let mut many = ranges((0..MAX_RANGES as u64 + 1).map(|n| n * 2));
        assert_eq!(many.ranges.len(), MAX_RANGES);
        assert!(!many.insert(2), "it is remembered");
        assert!(many.insert(0), "it was forgotten");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn ranges_hold_what_a_set_holds(numbers in proptest::collection::vec(0..60u64, 0..100)) {
            let mut set = BTreeSet::new();
            let mut ranges = Ranges::default();
            for n in numbers {
                prop_assert_eq!(ranges.insert(n), set.insert(n));
                prop_assert!(ranges.ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", ranges);
            }
            let held: Vec<u64> = ranges.ranges.iter().flat_map(|(first, last)| *first..=*last).collect();
            prop_assert_eq!(held, set.into_iter().collect::<Vec<_>>());
        }
    }
}
