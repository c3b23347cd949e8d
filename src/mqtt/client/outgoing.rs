//! Publishes from their first write until they are confirmed.
//!
//! One may be written several times, each time with its own packet id, as a new message:
//! MQTT allows a packet to be repeated over a new connection only (MQTT 5, 4.4). So a PUBACK
//! identifies the write that it confirms, and its round trip.

use super::super::message::Publish;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// In the order of their first write.
    order: VecDeque<Sent>,
    /// Number of publishes removed from the front of `order`.
    taken: u64,
    /// The writes by packet id that are not confirmed.
    writings: HashMap<u16, Writing>,
    /// Of these, writes whose publish was confirmed by another packet id.
    superseded: usize,
    /// Unconfirmed publishes, and their bytes.
    open: usize,
    bytes: usize,
    /// Publishes that are to be written again.
    due: usize,
    /// Number of writes, and the latest one that was confirmed.
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
    /// Number of writes, how many of these may still be confirmed; the last.
    writings: u32,
    unconfirmed: usize,
    last: Writing,
}

#[derive(Debug, Clone, Copy)]
struct Writing {
    /// Position of its publish, counted from the first of the connection.
    place: u64,
    number: u64,
    at: Duration,
}

/// What a PUBACK confirms.
#[derive(Debug)]
pub(super) enum Answered {
    Publish {
        token: u64,
        topic: String,
        size: usize,
        written: Duration,
    },
    /// A publish that was confirmed before, by another packet id.
    Superseded {
        written: Duration,
    },
    Nothing,
}

impl Outgoing {
    /// Unconfirmed publishes.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Packet ids that are not confirmed.
    pub fn packets(&self) -> usize {
        self.writings.len()
    }

    /// Of these, those whose publish was confirmed by another packet id.
    pub fn superseded(&self) -> usize {
        self.superseded
    }

    pub fn has(&self, packet: u16) -> bool {
        self.writings.contains_key(&packet)
    }

    /// Size of the oldest unconfirmed publish.
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

    /// The broker confirmed, or permanently refused, this packet. Also returns whether a publish
    /// is now the oldest that was not before.
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

    /// The broker refused this packet temporarily; its publish is to be written again. Returns
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

    /// Finds publishes that should have been confirmed by `now`; `after` is the time that one may
    /// take after that many writes. Overdue are those that were overtaken by confirmed ones; and, if
    /// nothing was confirmed for twice that time, the oldest one. All of them are to be written
    /// again. Returns when those were written that were written once, and when to check
    /// again.
    pub fn overdue(&mut self, after: impl Fn(u32) -> Duration, now: Duration) -> (Vec<Duration>, Option<Duration>) {
        let (mut missing, mut due, mut next, newest) = (Vec::new(), 0, None::<Duration>, self.newest);
        let under_way = || self.order.iter().filter(|sent| !sent.confirmed && !sent.due);
        let latest = under_way().map(|sent| sent.last.at).max();
        let writings = under_way().map(|sent| sent.writings).max();
        // The oldest one alone, as a probe: its confirmation shows that others were lost.
        let mut probe = latest.zip(writings).map(|(latest, writings)| latest + after(writings) * 2);
        for sent in self.order.iter_mut().filter(|sent| !sent.confirmed && !sent.due) {
            let probe = probe.take();
            // Where others are confirmed, one that is lost again waits no longer than before.
            let overtaken = newest > sent.last.number;
            let patience = after(if overtaken { 1 } else { sent.writings });
            let at = if overtaken { Some(sent.last.at + patience) } else { probe };
            if at.is_some_and(|at| at <= now) {
                sent.due = true;
                due += 1;
                // A publish that was lost several times may have another cause than a limit.
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

    /// Whether a publish is to be written again.
    pub fn is_due(&self) -> bool {
        self.due > 0
    }

    /// Position and copy of the first publish that is to be written again.
    pub fn due(&self) -> Option<(u64, Publish)> {
        let place = self.order.iter().position(|sent| sent.due && !sent.confirmed)?;
        self.order.get(place).map(|sent| (self.taken + place as u64, sent.publish.clone()))
    }

    /// The publish at this position was written again. Returns its number of writes.
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
