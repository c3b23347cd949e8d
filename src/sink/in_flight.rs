//! What was sent and is not confirmed.
//!
//! A cursor moves over a span of the log only when everything before it and all
//! of its payloads are confirmed or set aside, in whatever order that happens.
//!
//! A payload that the destination refuses is held at first: only when something that was
//! sent later is confirmed is it known that this payload is what the destination does not
//! take, and not that it takes nothing at present.

use crate::model::Seq;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// What a span of payloads carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Readings of these seqs.
    Readings { first: Seq, last: Seq },
    /// The event with this id.
    Event(u64),
}

/// What is known of one payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it goes at the destination.
    pub lane: Arc<str>,
    pub bytes: usize,
    pub readings: u64,
    /// Seqs of the first and the last of them; between them others may stand.
    pub first: Seq,
    pub last: Seq,
}

/// Readings that the destination does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    pub piece: Piece,
    /// As in the `gap` event.
    pub reason: &'static str,
}

#[derive(Debug)]
struct Group {
    span: Span,
    /// Payloads that are neither confirmed nor set aside.
    open: usize,
    /// Size of the largest payload, and readings in all of them.
    bytes: usize,
    readings: u64,
    aside: Vec<Aside>,
}

/// What a lost connection had outstanding first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub span: Span,
    pub bytes: usize,
    pub readings: u64,
}

/// Everything outstanding on one connection.
#[derive(Debug, Default)]
pub struct InFlight {
    groups: VecDeque<Group>,
    /// Number of the first group.
    base: u64,
    /// Of each unconfirmed token its group's number.
    tokens: HashMap<u64, (u64, Piece)>,
    /// The same of those that are refused, and why.
    held: BTreeMap<u64, (u64, Aside)>,
    next_token: u64,
}

impl InFlight {
    /// A span that goes out in these payloads is about to be sent. Returns the first of
    /// as many consecutive tokens.
    pub fn add(&mut self, span: Span, pieces: impl ExactSizeIterator<Item = Piece>) -> u64 {
        let number = self.base + self.groups.len() as u64;
        let first = self.next_token;
        let mut group = Group { span, open: pieces.len(), bytes: 0, readings: 0, aside: Vec::new() };
        for piece in pieces {
            group.bytes = group.bytes.max(piece.bytes);
            group.readings += piece.readings;
            self.tokens.insert(self.next_token, (number, piece));
            self.next_token += 1;
        }
        self.groups.push_back(group);
        first
    }

    /// The payload with this token is confirmed. `None` if it was not outstanding.
    pub fn confirm(&mut self, token: u64) -> Option<Piece> {
        let (number, piece) = self.tokens.remove(&token)?;
        self.group(number)?.open -= 1;
        Some(piece)
    }

    /// The destination does not take the payload with this token. False if it was not
    /// outstanding.
    pub fn hold(&mut self, token: u64, reason: &'static str) -> bool {
        let Some((number, piece)) = self.tokens.remove(&token) else { return false };
        self.held.insert(token, (number, Aside { piece, reason }));
        true
    }

    /// The payload with this token is not sent.
    pub fn set_aside(&mut self, token: u64, reason: &'static str) {
        let Some((number, piece)) = self.tokens.remove(&token) else { return };
        if let Some(group) = self.group(number) {
            group.open -= 1;
            group.aside.push(Aside { piece, reason });
        }
    }

    /// Sets those aside that were held and have a token before this one.
    pub fn set_aside_before(&mut self, token: u64) {
        if self.held.first_key_value().is_none_or(|(first, _)| *first >= token) {
            return;
        }
        let later = self.held.split_off(&token);
        for (number, aside) in std::mem::replace(&mut self.held, later).into_values() {
            if let Some(group) = self.group(number) {
                group.open -= 1;
                group.aside.push(aside);
            }
        }
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.base)?).ok()
    }

    fn group(&mut self, number: u64) -> Option<&mut Group> {
        let index = self.index(number)?;
        self.groups.get_mut(index)
    }

    /// Whether the payload with this token, which is outstanding, is an event.
    pub fn is_event(&self, token: u64) -> bool {
        let index = self.tokens.get(&token).and_then(|(number, _)| self.index(*number));
        index.and_then(|index| self.groups.get(index)).is_some_and(|group| matches!(group.span, Span::Event(_)))
    }

    /// The oldest span, with what of it was set aside, once it and so everything before
    /// it is done with.
    pub fn done(&mut self) -> Option<(Span, Vec<Aside>)> {
        self.groups.front().filter(|group| group.open == 0)?;
        self.base += 1;
        self.groups.pop_front().map(|group| (group.span, group.aside))
    }

    /// The oldest span that is not confirmed.
    pub fn head(&self) -> Option<Head> {
        let Group { span, bytes, readings, .. } = *self.groups.front()?;
        Some(Head { span, bytes, readings })
    }

    /// Where the payload with this token goes, if it is outstanding.
    pub fn lane_of(&self, token: u64) -> Option<Arc<str>> {
        self.tokens.get(&token).map(|(_, piece)| piece.lane.clone())
    }

    /// Where the oldest of what is outstanding goes.
    pub fn lane(&self) -> Option<Arc<str>> {
        self.tokens.iter().min_by_key(|(token, _)| **token).map(|(_, (_, piece))| piece.lane.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(count: u64) -> impl ExactSizeIterator<Item = Piece> {
        (0..count as usize).map(|_| Piece {
            lane: "readings".into(),
            bytes: 100,
            readings: 1,
            first: Seq(1),
            last: Seq(9),
        })
    }

    #[test]
    fn a_stretch_is_done_when_all_its_payloads_are() {
        let mut flight = InFlight::default();
        let span = Span::Readings { first: Seq(1), last: Seq(9) };
        let token = flight.add(span, pieces(2));
        assert!(flight.confirm(token + 1).is_some());
        assert!(flight.confirm(token + 1).is_none(), "twice");
        assert_eq!(flight.done(), None);
        let event = flight.add(Span::Event(7), pieces(1));
        assert!(flight.is_event(event) && !flight.is_event(token) && !flight.is_event(99));
        assert_eq!(flight.head(), Some(Head { span, bytes: 100, readings: 2 }));
        assert!(flight.confirm(token).is_some());
        assert_eq!(flight.done(), Some((span, vec![])));
        assert!(flight.confirm(event).is_some());
        assert_eq!((flight.done(), flight.head()), (Some((Span::Event(7), vec![])), None));
    }

    #[test]
    fn what_is_refused_is_set_aside_once_something_later_is_taken() {
        let mut flight = InFlight::default();
        let span = Span::Readings { first: Seq(1), last: Seq(9) };
        let token = flight.add(span, pieces(3));
        assert!(flight.hold(token + 1, "refused"));
        assert!(!flight.hold(token + 1, "refused"), "twice");
        flight.confirm(token);
        flight.set_aside_before(token);
        assert_eq!((flight.held(), flight.done()), (1, None), "that was sent before");
        flight.confirm(token + 2);
        flight.set_aside_before(token + 2);
        let aside = Aside { piece: pieces(1).next().expect("one"), reason: "refused" };
        assert_eq!((flight.held(), flight.done()), (0, Some((span, vec![aside]))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the order of confirmations, spans come out in order, and
        /// none before all that is in it and before it is confirmed.
        #[test]
        fn stretches_are_done_in_order(
            sizes in proptest::collection::vec(1..4u64, 1..20),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 100),
        ) {
            let mut flight = InFlight::default();
            let mut tokens = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let first = flight.add(Span::Event(i as u64), pieces(*size));
                tokens.extend((first..first + size).map(|token| (token, i)));
            }
            let mut next = 0;
            for index in order {
                if tokens.is_empty() {
                    break;
                }
                let (token, _) = tokens.swap_remove(index.index(tokens.len()));
                prop_assert!(flight.confirm(token).is_some());
                while let Some((span, _)) = flight.done() {
                    prop_assert_eq!(span, Span::Event(next));
                    prop_assert!(tokens.iter().all(|(_, group)| *group as u64 > next));
                    next += 1;
                }
                prop_assert_eq!(tokens.iter().map(|(_, group)| *group as u64).min().unwrap_or(sizes.len() as u64), next);
            }
        }
    }
}
