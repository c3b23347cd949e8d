//! What a destination confirms, and what it does not take: that is set aside, so that it
//! holds up nothing else. It is counted, told as a gap, logged, noted, and stays in the log.

use super::Pump;
use super::transfer::Transfer;
use crate::backoff::Failure;
use crate::model::Seq;
use crate::notes::Note;
use crate::sink::Destination;
use crate::sink::in_flight::{Aside, Piece, Span};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Payloads that may be held until something later is taken.
pub(super) const MOST_HELD: usize = 8192;
/// How long health tells of what was set aside last, and a lane is not named in the log again.
const TOLD_FOR: Duration = Duration::from_secs(3600);

/// What was set aside since the start, and who was told.
pub(super) struct Tally {
    readings: u64,
    last: Duration,
    named: HashSet<Arc<str>>,
    /// Why lanes were refused last.
    reasons: HashMap<Arc<str>, String>,
    note: Note,
}

impl Tally {
    pub fn new(note: Note) -> Tally {
        Tally { readings: 0, last: Duration::ZERO, named: HashSet::new(), reasons: HashMap::new(), note }
    }

    /// Ends what is told of long ago.
    pub fn look(&mut self, now: Duration) {
        if !self.named.is_empty() && now.saturating_sub(self.last) >= TOLD_FOR {
            self.named.clear();
            self.reasons.clear();
            self.note.works();
        }
    }

    /// Why messages to this lane are refused.
    pub fn because(&mut self, lane: &Arc<str>, why: &str) {
        if self.reasons.get(lane).is_none_or(|known| known != why) {
            self.reasons.insert(lane.clone(), why.to_owned());
        }
    }

    /// Tells of readings that were set aside.
    fn tell(&mut self, sink: &str, piece: &Piece, reason: &str, now: Duration) {
        self.readings += piece.readings;
        self.last = now;
        let why = self.reasons.get(&piece.lane).map_or("it ends connections", |why| why);
        let to = &piece.lane;
        self.note.is_down(
            format!(
                "{} readings were set aside since the start ({reason}), the last of them to {to}: {why}; they stay in \
                 the log (tidegate queue export)",
                self.readings
            ),
            now,
        );
        if self.named.insert(piece.lane.clone()) {
            let (first, last, readings) = (piece.first.0, piece.last.0, piece.readings);
            tracing::error!(
                sink, topic = %to, first, last, readings, reason, why,
                "the destination does not take readings: they are set aside, and so are others to this topic that it \
                 refuses; they stay in the log (tidegate queue export)"
            );
        }
    }
}

impl<D: Destination> Pump<D> {
    /// Queues what a span goes out in, except for what is not taken anyway.
    pub(super) fn queue(&mut self, transfer: &mut Transfer<D::Payload>, span: Span, parts: Vec<(Piece, D::Payload)>) {
        let now = self.clock.now().monotonic;
        let (pieces, payloads): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let lanes: Vec<_> = pieces.iter().map(|piece| piece.lane.clone()).collect();
        let first = transfer.flight.add(span, pieces.into_iter());
        for ((token, payload), lane) in (first..).zip(payloads).zip(lanes) {
            if self.search.denies(&lane, now) {
                transfer.flight.set_aside(token, "refused");
            } else if transfer.refusals.rests(&lane, now) && !transfer.flight.is_event(token) {
                transfer.flight.hold(token, "refused");
            } else {
                transfer.queue.push_back((token, payload));
            }
        }
        self.settle(transfer);
    }

    /// The reading alone is larger than what is taken.
    pub(super) fn too_large(&mut self, transfer: &mut Transfer<D::Payload>, seq: Seq, limit: usize) {
        let now = self.clock.now().monotonic;
        let (first, last, lane) = (seq, seq, Arc::from("any topic"));
        let what = format!("readings are larger than the {limit} bytes that the destination takes");
        self.aside.because(&lane, &what);
        let piece = Piece { lane, bytes: 0, readings: 1, first, last };
        let token = transfer.flight.add(Span::Readings { first, last }, [piece].into_iter());
        transfer.flight.hold(token, "too_large");
        transfer.refusals.wait(Failure::permanent(format!("{what}, and no smaller ones come")), now);
    }

    pub(super) fn confirmed(&mut self, transfer: &mut Transfer<D::Payload>, token: u64) {
        let is_event = transfer.flight.is_event(token);
        let Some(piece) = transfer.flight.confirm(token) else { return };
        transfer.outstanding = transfer.outstanding.saturating_sub(1);
        self.liveness.renew(self.clock.now().monotonic);
        self.search.confirmed(&piece.lane);
        if !is_event {
            transfer.refusals.taken(&piece.lane);
            transfer.flight.set_aside_before(token);
        }
        self.settle(transfer);
    }

    /// A destination that takes no events still gets the readings behind them: what it
    /// refuses of events is passed over. Readings are held until it takes others.
    pub(super) fn refused(
        &mut self,
        transfer: &mut Transfer<D::Payload>,
        token: u64,
        failure: Failure,
    ) -> Result<(), Failure> {
        if transfer.flight.is_event(token) {
            self.event_refused(transfer, &failure.what);
            self.confirmed(transfer, token);
            return Ok(());
        }
        if !failure.permanent {
            return Err(failure);
        }
        let now = self.clock.now().monotonic;
        if let Some(lane) = transfer.flight.lane_of(token)
            && transfer.flight.hold(token, "refused")
        {
            transfer.outstanding = transfer.outstanding.saturating_sub(1);
            self.aside.because(&lane, &failure.what);
            transfer.refusals.refused(lane, failure, now);
        }
        Ok(())
    }

    fn event_refused(&self, transfer: &mut Transfer<D::Payload>, why: &str) {
        if !std::mem::replace(&mut transfer.refusal_told, true) {
            let sink = &self.label.sink;
            tracing::error!(%sink, why, "the destination refuses events or commands' results; they are lost to it");
        }
        self.metrics.sink_events_refused.get_or_create(&self.label).inc();
    }

    /// Moves the cursor over what is done with, without a gap.
    fn settle(&mut self, transfer: &mut Transfer<D::Payload>) {
        while let Some((span, aside)) = transfer.flight.done() {
            // Events that come with each connection say nothing of the readings behind them.
            let counts = match span {
                Span::Readings { .. } => true,
                Span::Event(_) => {
                    let suspect = self.search.suspect();
                    suspect.is_some_and(|suspect| suspect.span == span) || self.cursor.pending() == 0
                }
            };
            if counts {
                transfer.progress = true;
                transfer.passed = None;
                self.sizing.confirmed();
                self.search.moved_on();
            }
            match span {
                Span::Readings { first, last } => {
                    if let Some(arrival) = self.cursor.arrival(first).filter(|_| aside.is_empty()) {
                        let took = self.clock.now().monotonic.saturating_sub(arrival);
                        self.metrics.delivery_seconds.get_or_create(&self.label).observe(took.as_secs_f64());
                    }
                    let count = aside.iter().map(|aside| aside.piece.readings).sum();
                    aside.iter().for_each(|aside| self.set_aside(aside));
                    self.cursor.confirm_but(last, count);
                }
                Span::Event(id) => {
                    if !aside.is_empty() {
                        self.event_refused(transfer, "they end connections");
                    }
                    self.cursor.confirm_events(id);
                }
            }
        }
    }

    fn set_aside(&mut self, aside: &Aside) {
        let Aside { piece, reason } = aside;
        self.aside.tell(&self.label.sink, piece, reason, self.clock.now().monotonic);
        self.cursor.set_aside((piece.first, piece.last), piece.readings, reason);
    }

    /// Draws conclusions from a lost connection.
    pub(super) fn lost(&mut self, transfer: &mut Transfer<D::Payload>) {
        if transfer.progress || transfer.outstanding == 0 || transfer.flight.held() > 0 {
            return;
        }
        let (Some(head), Some(lane)) = (transfer.flight.head(), transfer.flight.lane()) else { return };
        self.sizing.lost(head);
        if !self.sizing.is_careful() || transfer.outstanding > 1 {
            return;
        }
        let now = self.clock.now().monotonic;
        let Some(verdict) = self.search.lost(head, lane.clone(), transfer.passed.as_ref(), now) else { return };
        self.sizing.found(head.bytes);
        match head.span {
            Span::Readings { first, last } => {
                let piece = Piece { lane, bytes: head.bytes, readings: 1, first, last };
                self.set_aside(&Aside { piece, reason: verdict.reason() });
                self.cursor.confirm_but(last, 1);
            }
            Span::Event(id) => {
                self.event_refused(transfer, "they end connections");
                self.cursor.confirm_events(id);
            }
        }
    }
}
