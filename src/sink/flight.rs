//! What was sent and is not confirmed.
//!
//! A cursor moves over a stretch of the log only when everything before it and all
//! of its payloads are confirmed, in whatever order the confirmations come.

use crate::model::Seq;
use std::collections::{HashMap, VecDeque};

/// What a stretch of payloads carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch {
    /// Readings of these seqs.
    Readings { first: Seq, last: Seq },
    /// One reading that is passed over because it can never be taken.
    TooLarge(Seq),
    /// The event with this id.
    Event(u64),
}

#[derive(Debug)]
struct Group {
    stretch: Stretch,
    /// Payloads that are not confirmed.
    open: usize,
    /// Size of the largest payload, and readings in all of them.
    bytes: usize,
    readings: u64,
}

/// What a lost connection had outstanding first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub stretch: Stretch,
    pub bytes: usize,
    pub readings: u64,
}

/// Everything outstanding on one connection.
#[derive(Debug, Default)]
pub struct Flight {
    groups: VecDeque<Group>,
    /// Number of the first group.
    base: u64,
    /// Each unconfirmed token's group.
    tokens: HashMap<u64, u64>,
    next_token: u64,
}

impl Flight {
    /// A stretch that goes out in `payloads` payloads, the largest of `bytes`, is
    /// about to be sent. Returns the first of as many consecutive tokens.
    pub fn add(&mut self, stretch: Stretch, payloads: usize, bytes: usize, readings: u64) -> u64 {
        let number = self.base + self.groups.len() as u64;
        let first = self.next_token;
        self.next_token += payloads as u64;
        self.tokens.extend((first..self.next_token).map(|token| (token, number)));
        self.groups.push_back(Group { stretch, open: payloads, bytes, readings });
        first
    }

    /// The payload with this token is confirmed. False if it was not outstanding.
    pub fn confirm(&mut self, token: u64) -> bool {
        let Some(number) = self.tokens.remove(&token) else { return false };
        let index = usize::try_from(number - self.base).unwrap_or(usize::MAX);
        match self.groups.get_mut(index) {
            Some(group) => {
                group.open -= 1;
                true
            }
            None => false,
        }
    }

    /// Whether the payload with this token, which is outstanding, is an event.
    pub fn is_event(&self, token: u64) -> bool {
        let group = self.tokens.get(&token).and_then(|number| usize::try_from(number - self.base).ok());
        group.and_then(|index| self.groups.get(index)).is_some_and(|group| matches!(group.stretch, Stretch::Event(_)))
    }

    /// The oldest stretch, once it and so everything before it is confirmed.
    pub fn done(&mut self) -> Option<Stretch> {
        let stretch = self.groups.front().filter(|group| group.open == 0)?.stretch;
        self.groups.pop_front();
        self.base += 1;
        Some(stretch)
    }

    /// The oldest stretch that is not confirmed.
    pub fn head(&self) -> Option<Head> {
        let Group { stretch, bytes, readings, .. } = *self.groups.front()?;
        Some(Head { stretch, bytes, readings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stretch_is_done_when_all_its_payloads_are() {
        let mut flight = Flight::default();
        let stretch = Stretch::Readings { first: Seq(1), last: Seq(9) };
        let token = flight.add(stretch, 2, 100, 9);
        assert!(flight.confirm(token + 1));
        assert!(!flight.confirm(token + 1), "twice");
        assert_eq!(flight.done(), None);
        let event = flight.add(Stretch::Event(7), 1, 10, 1);
        assert!(flight.is_event(event) && !flight.is_event(token) && !flight.is_event(99));
        assert_eq!(flight.head(), Some(Head { stretch, bytes: 100, readings: 9 }));
        assert!(flight.confirm(token));
        assert_eq!(flight.done(), Some(stretch));
        assert!(flight.confirm(event));
        assert_eq!((flight.done(), flight.head()), (Some(Stretch::Event(7)), None));
        flight.add(Stretch::TooLarge(Seq(10)), 0, 0, 1);
        assert_eq!(flight.done(), Some(Stretch::TooLarge(Seq(10))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the order of confirmations, stretches come out in order, and
        /// none before all that is in it and before it is confirmed.
        #[test]
        fn stretches_are_done_in_order(
            sizes in proptest::collection::vec(1..4usize, 1..20),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 100),
        ) {
            let mut flight = Flight::default();
            let mut tokens = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let first = flight.add(Stretch::Event(i as u64), *size, 1, 1);
                tokens.extend((first..).take(*size).map(|token| (token, i)));
            }
            let mut next = 0;
            for index in order {
                if tokens.is_empty() {
                    break;
                }
                let (token, _) = tokens.swap_remove(index.index(tokens.len()));
                prop_assert!(flight.confirm(token));
                while let Some(stretch) = flight.done() {
                    prop_assert_eq!(stretch, Stretch::Event(next));
                    prop_assert!(tokens.iter().all(|(_, group)| *group as u64 > next));
                    next += 1;
                }
                prop_assert_eq!(tokens.iter().map(|(_, group)| *group as u64).min().unwrap_or(sizes.len() as u64), next);
            }
        }
    }
}
