//! Publishes from when they are first written until they are confirmed.
//!
//! One may be written several times, each time under a packet id of its own, as a new
//! message: MQTT allows a packet to be repeated over a new connection only (MQTT 5, 4.4).
//! So a PUBACK also says which of the writings it is of, and how long that took.

use super::super::message::Publish;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// In the order in which they were first written.
    order: VecDeque<Sent>,
    /// How many have left `order` at its front.
    taken: u64,
    /// What each packet id that was not confirmed stands for.
    writings: HashMap<u16, Writing>,
    /// Of these, such whose publish was confirmed under another id.
    superseded: usize,
    /// Publishes that are not confirmed, and their bytes.
    open: usize,
    bytes: usize,
    /// Such that are to be written again.
    due: usize,
    /// Counts writings, and the last of them that was confirmed.
    number: u64,
    newest: u64,
}

#[derive(Debug)]
struct Sent {
    token: u64,
    publish: Publish,
    size: usize,
    confirmed: bool,
    /// Is to be written again.
    due: bool,
    /// How often it was written, how many of these may yet be confirmed; the last.
    writings: u32,
    unconfirmed: usize,
    last: Writing,
}

#[derive(Debug, Clone, Copy)]
struct Writing {
    /// Of its publish, counted from the first of the connection.
    place: u64,
    number: u64,
    at: Duration,
}

/// What a PUBACK is for.
#[derive(Debug)]
pub(super) enum Answered {
    Publish {
        token: u64,
        topic: String,
        size: usize,
        written: Duration,
    },
    /// A publish that was confirmed before, under another id.
    Superseded {
        written: Duration,
    },
    Nothing,
}

impl Outgoing {
    /// Publishes that are not confirmed.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Packet ids that the broker has not confirmed.
    pub fn packets(&self) -> usize {
        self.writings.len()
    }

    /// Of these, such whose publish was confirmed under another id.
    pub fn superseded(&self) -> usize {
        self.superseded
    }

    pub fn has(&self, packet: u16) -> bool {
        self.writings.contains_key(&packet)
    }

    /// The size of the publish that has waited longest.
    pub fn first(&self) -> Option<usize> {
        self.order.front().map(|sent| sent.size)
    }

    /// A publish was written.
    pub fn add(&mut self, packet: u16, token: u64, publish: Publish, size: usize, now: Duration) {
        let place = self.taken + self.order.len() as u64;
        self.number += 1;
        let last = Writing { place, number: self.number, at: now };
        self.writings.insert(packet, last);
        self.order.push_back(Sent {
            token,
            publish,
            size,
            confirmed: false,
            due: false,
            writings: 1,
            unconfirmed: 1,
            last,
        });
        self.open += 1;
        self.bytes += size;
    }

    fn at(&mut self, place: u64) -> Option<&mut Sent> {
        let place = place.checked_sub(self.taken).and_then(|place| usize::try_from(place).ok())?;
        self.order.get_mut(place)
    }

    /// The broker has, or refuses for good, what this packet held. True with it if nothing is
    /// before the next publish that was before.
    pub fn answered(&mut self, packet: u16) -> (Answered, bool) {
        let Some(writing) = self.writings.remove(&packet) else { return (Answered::Nothing, false) };
        self.newest = self.newest.max(writing.number);
        let written = writing.at;
        let Some(sent) = self.at(writing.place).filter(|sent| !sent.confirmed) else {
            self.superseded = self.superseded.saturating_sub(1);
            return (Answered::Superseded { written }, false);
        };
        sent.confirmed = true;
        // It is not written again.
        let topic = std::mem::take(&mut sent.publish.topic);
        let answered = Answered::Publish { token: sent.token, topic, size: sent.size, written };
        let (others, size, due) = (sent.unconfirmed - 1, sent.size, sent.due);
        self.superseded += others;
        self.due -= usize::from(due);
        self.open -= 1;
        self.bytes -= size;
        let mut moved = false;
        while self.order.front().is_some_and(|sent| sent.confirmed) {
            self.order.pop_front();
            self.taken += 1;
            moved = true;
        }
        (answered, moved)
    }

    /// The broker refuses for now what this packet held; its publish is due again. Returns
    /// when it was written.
    pub fn put_off(&mut self, packet: u16) -> Option<Duration> {
        let writing = self.writings.remove(&packet)?;
        self.newest = self.newest.max(writing.number);
        match self.at(writing.place) {
            Some(sent) if !sent.confirmed => {
                sent.unconfirmed -= 1;
                let was_due = std::mem::replace(&mut sent.due, true);
                self.due += usize::from(!was_due);
            }
            _ => self.superseded = self.superseded.saturating_sub(1),
        }
        Some(writing.at)
    }

    /// Finds what should have been confirmed by `now`, where a publish that was written so
    /// many times in vain may take `after` that. It is what later ones were confirmed before; and,
    /// when nothing at all was confirmed for twice as long, the one that has waited longest.
    /// All these are due again. Returns when those of them were written that were so once
    /// only, and when to look again.
    pub fn overdue(&mut self, after: impl Fn(u32) -> Duration, now: Duration) -> (Vec<Duration>, Option<Duration>) {
        let (mut missing, mut due, mut next, newest) = (Vec::new(), 0, None::<Duration>, self.newest);
        let under_way = || self.order.iter().filter(|sent| !sent.confirmed && !sent.due);
        let latest = under_way().map(|sent| sent.last.at).max();
        let writings = under_way().map(|sent| sent.writings).max();
        // One that goes alone, so that what it is confirmed before is found out.
        let mut probe = latest.zip(writings).map(|(latest, writings)| latest + after(writings) * 2);
        for sent in self.order.iter_mut().filter(|sent| !sent.confirmed && !sent.due) {
            let probe = probe.take();
            // Where others pass, one that is lost again needs no more patience than before.
            let overtaken = newest > sent.last.number;
            let patience = after(if overtaken { 1 } else { sent.writings });
            let at = if overtaken { Some(sent.last.at + patience) } else { probe };
            if at.is_some_and(|at| at <= now) {
                sent.due = true;
                due += 1;
                // Of what is missing each time something else may be the cause.
                missing.extend((sent.writings == 1).then_some(sent.last.at));
                continue;
            }
            // It may have been overtaken by then.
            let look = at.into_iter().chain([(sent.last.at + patience).max(now + patience / 4)]).min();
            next = next.into_iter().chain(look).min();
        }
        self.due += due;
        (missing, next)
    }

    /// Whether anything is to be written again.
    pub fn is_due(&self) -> bool {
        self.due > 0
    }

    /// The place of the first publish that is to be written again, and a copy.
    pub fn due(&self) -> Option<(u64, Publish)> {
        let place = self.order.iter().position(|sent| sent.due && !sent.confirmed)?;
        self.order.get(place).map(|sent| (self.taken + place as u64, sent.publish.clone()))
    }

    /// The publish at this place was written again. Returns how often it was by now.
    pub fn again(&mut self, place: u64, packet: u16, now: Duration) -> u32 {
        self.number += 1;
        let writing = Writing { place, number: self.number, at: now };
        let Some(sent) = self.at(place) else { return 0 };
        sent.due = false;
        sent.writings += 1;
        sent.unconfirmed += 1;
        sent.last = writing;
        let writings = sent.writings;
        self.due -= 1;
        self.writings.insert(packet, writing);
        writings
    }
}
