//! The cursor loop: from the log to a destination, again and again from the cursor
//! whenever a connection is lost.

mod aside;
mod refusals;
mod transfer;
mod trial;

use super::in_flight::{Piece, Span};
use super::linger::linger;
use super::poison::PoisonSearch;
use super::sizing::Sizing;
use super::{Destination, Liveness, Outcome, Part, SinkConnection, Unencodable};
use crate::backoff::{Backoff, Failure};
use crate::clock::Clock;
use crate::metrics::{Metrics, SinkLabel};
use crate::model::Seq;
use crate::notes::Note;
use crate::stop;
use crate::store::SinkCursor;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use transfer::Transfer;

/// Memory of readings taken from the log at a time, in bytes.
const FETCH: usize = 256 * 1024;
/// How often the figures that only time changes are brought up to date.
const FIGURES_EVERY: Duration = Duration::from_secs(1);
/// How long to leave the log alone when it could not be read.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// Moves readings from one cursor to one destination.
pub struct Pump<D> {
    destination: D,
    cursor: SinkCursor,
    backoff: Backoff,
    sizing: Sizing,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    liveness: Liveness,
    note: Note,
    search: PoisonSearch,
    searched: Option<trial::Searched>,
    /// What was set aside, and is told.
    aside: aside::Tally,
    label: SinkLabel,
    /// Bytes that a reading takes in a payload, lately.
    reading_bytes: usize,
    restart: Arc<Notify>,
}

/// How a connection's time ended.
enum ConnectionEnd {
    Stopped,
    Lost(Failure),
    /// Somebody asked for another connection.
    Restart,
}

/// What to wait for when nothing more can be sent now.
enum Wait {
    /// For room in the window.
    Room,
    /// For room, or for this long.
    Linger(Duration),
    /// For something to send.
    News,
}

impl<D: Destination> Pump<D> {
    /// Sends batches of up to `max_batch` bytes.
    pub fn new(
        destination: D,
        cursor: SinkCursor,
        backoff: Backoff,
        max_batch: usize,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        liveness: Liveness,
    ) -> Pump<D> {
        let label = SinkLabel { sink: cursor.name().clone() };
        let sizing = Sizing::new(max_batch);
        Pump {
            destination,
            cursor,
            backoff,
            sizing,
            clock,
            metrics,
            liveness,
            note: Note::new(label.sink.clone()),
            search: PoisonSearch::default(),
            searched: None,
            aside: aside::Tally::new(Note::new(label.sink.clone())),
            label,
            reading_bytes: 100,
            restart: Arc::default(),
        }
    }

    /// Has `note` tell of readings that the destination does not take.
    pub fn note_aside(&mut self, note: Note) {
        self.aside = aside::Tally::new(note);
    }

    /// Notified, the pump drops its connection, or waits no longer, and connects anew.
    pub fn restarter(&self) -> Arc<Notify> {
        self.restart.clone()
    }

    /// Tells why it is not connected, or that it loses its connection again and again.
    pub fn note(&self) -> Note {
        self.note.clone()
    }

    /// Runs until `stop` turns true; what is in flight then has `drain` to be
    /// confirmed.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>, drain: Duration) {
        let mut told = String::new();
        self.connected(false);
        self.note.is_down("connecting", self.clock.now().monotonic);
        loop {
            let delay = self.backoff.delay();
            if self.pause(delay, &mut stop).await {
                return;
            }
            let Some(connecting) = self.connect(&mut stop).await else { return };
            let failure = match connecting {
                Err(failure) => failure,
                Ok(connection) => {
                    told.clear();
                    let since = self.clock.now().monotonic;
                    self.connected(true);
                    self.metrics.sink_connects.get_or_create(&self.label).inc();
                    self.note.works();
                    let end = self.serve(connection, &mut stop, drain).await;
                    self.cursor.listen(false);
                    self.connected(false);
                    let now = self.clock.now().monotonic;
                    self.backoff.worked_for(now.saturating_sub(since));
                    match end {
                        ConnectionEnd::Stopped => return,
                        ConnectionEnd::Lost(failure) => {
                            self.metrics.sink_losses.get_or_create(&self.label).inc();
                            self.note.failed(failure.what.as_str(), now);
                            failure
                        }
                        ConnectionEnd::Restart => {
                            tracing::info!(sink = %self.label.sink, "connecting anew, as was asked for");
                            self.note.is_down("connecting anew, as was asked for", now);
                            // It waits for nothing.
                            self.restart.notify_one();
                            continue;
                        }
                    }
                }
            };
            if failure.permanent {
                self.backoff.give_time();
            }
            self.note.is_down(failure.what.as_str(), self.clock.now().monotonic);
            if told != failure.what {
                tracing::warn!(sink = %self.label.sink, why = failure.what, "not connected; readings are kept, trying on");
                told = failure.what;
            }
        }
    }

    /// Waits; true if it is time to stop.
    async fn pause(&mut self, delay: Duration, stop: &mut watch::Receiver<bool>) -> bool {
        let mut rest = delay;
        while !rest.is_zero() {
            self.figures();
            let step = rest.min(FIGURES_EVERY);
            tokio::select! {
                biased;
                () = stop::requested(stop) => return true,
                () = self.restart.notified() => return false,
                () = sleep(step) => rest -= step,
            }
        }
        *stop.borrow()
    }

    /// Connects; `None` if it is time to stop.
    async fn connect(&mut self, stop: &mut watch::Receiver<bool>) -> Option<Result<D::Connection, Failure>> {
        let Pump { destination, cursor, clock, metrics, liveness, label, .. } = self;
        let mut connecting = std::pin::pin!(destination.connect());
        let mut every = interval(FIGURES_EVERY);
        loop {
            tokio::select! {
                biased;
                () = stop::requested(stop) => return None,
                connection = &mut connecting => return Some(connection),
                _ = every.tick() => figures(cursor, clock.now().monotonic, metrics, liveness, label),
            }
        }
    }

    fn connected(&self, connected: bool) {
        self.metrics.sink_connected.get_or_create(&self.label).set(i64::from(connected));
    }

    fn figures(&self) {
        figures(&self.cursor, self.clock.now().monotonic, &self.metrics, &self.liveness, &self.label);
    }

    async fn serve(
        &mut self,
        mut connection: D::Connection,
        stop: &mut watch::Receiver<bool>,
        drain: Duration,
    ) -> ConnectionEnd {
        let mut transfer = Transfer::begin(self.cursor.position(), self.cursor.event_position());
        self.cursor.listen(true);
        let restart = self.restart.clone();
        let passed = tokio::select! {
            biased;
            () = stop::requested(stop) => {
                connection.close(drain / 2).await;
                return ConnectionEnd::Stopped;
            }
            () = restart.notified() => return ConnectionEnd::Restart,
            passed = self.try_another(&mut connection) => passed,
        };
        match passed {
            Ok(passed) => transfer.passed = passed,
            Err(failure) => return ConnectionEnd::Lost(failure),
        }
        let mut figures = interval(FIGURES_EVERY);
        figures.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let failure = loop {
            let wait = match self.fill(&mut transfer, &mut connection).await {
                Ok(wait) => wait,
                Err(failure) => break failure,
            };
            let (news, linger) = match wait {
                Wait::Room => (false, None),
                Wait::Linger(linger) => (false, Some(linger)),
                Wait::News => (true, None),
            };
            tokio::select! {
                biased;
                () = stop::requested(stop) => {
                    self.drain(&mut transfer, &mut connection, drain).await;
                    connection.close(drain / 2).await;
                    return ConnectionEnd::Stopped;
                }
                () = self.restart.notified() => return ConnectionEnd::Restart,
                outcome = connection.outcome() => match outcome {
                    Outcome::Confirmed(token) => self.confirmed(&mut transfer, token),
                    Outcome::Refused(token, failure) => if let Err(failure) = self.refused(&mut transfer, token, failure) {
                        break failure;
                    },
                    Outcome::Lost(failure) => break failure,
                    Outcome::Room => {}
                },
                () = self.cursor.available(transfer.next, transfer.next_event), if news => {}
                () = sleep(linger.unwrap_or_default()), if linger.is_some() => {}
                _ = figures.tick() => {
                    self.figures();
                    self.metrics.sink_unexpected_confirmations.get_or_create(&self.label).inc_by(connection.take_unexpected());
                    let now = self.clock.now().monotonic;
                    self.aside.look(now);
                    if let Some(failure) = transfer.refusals.overdue(&transfer.flight, now) {
                        break failure;
                    }
                }
            }
        };
        if !connection.is_limited() {
            self.lost(&mut transfer);
        }
        ConnectionEnd::Lost(failure)
    }

    /// Sends as much as the window and good sense allow.
    async fn fill(
        &mut self,
        transfer: &mut Transfer<D::Payload>,
        connection: &mut D::Connection,
    ) -> Result<Wait, Failure> {
        let window = self.sizing.window(connection.window());
        while transfer.outstanding < window && transfer.flight.held() < aside::MOST_HELD {
            if let Some((token, payload)) = transfer.queue.pop_front() {
                connection.send(token, payload)?;
                transfer.outstanding += 1;
                continue;
            }
            if self.cursor.has_event(transfer.next_event) {
                if !self.queue_events(transfer).await {
                    return Ok(Wait::Linger(READ_PAUSE));
                }
                continue;
            }
            let waiting = self.cursor.waiting(transfer.next);
            if waiting == 0 {
                transfer.waiting_since = None;
                return Ok(Wait::News);
            }
            let now = self.clock.now();
            let since = *transfer.waiting_since.get_or_insert(now.monotonic);
            let bytes = usize::try_from(waiting).unwrap_or(usize::MAX).saturating_mul(self.reading_bytes);
            let budget = self.sizing.budget(connection.max_payload()).in_batches_of(connection.batch());
            let waited = now.monotonic.saturating_sub(since);
            if let Some(linger) = linger(transfer.outstanding, window, bytes, budget.batch, waited) {
                return Ok(Wait::Linger(linger));
            }
            transfer.waiting_since = None;
            if !self.queue_readings(transfer, budget, now).await {
                return Ok(Wait::Linger(READ_PAUSE));
            }
        }
        Ok(Wait::Room)
    }

    /// False if the log cannot be read now.
    async fn queue_events(&mut self, transfer: &mut Transfer<D::Payload>) -> bool {
        match self.cursor.events(transfer.next_event).await {
            Ok(events) => {
                for event in events {
                    let payload = self.destination.event(&event);
                    let piece = Piece {
                        lane: D::lane(&payload).into(),
                        bytes: 0,
                        readings: 1,
                        first: Seq::ZERO,
                        last: Seq::ZERO,
                    };
                    self.queue(transfer, Span::Event(event.id), vec![(piece, payload)]);
                    transfer.next_event = event.id;
                }
                true
            }
            Err(why) => self.unreadable(&why),
        }
    }

    /// False if the log cannot be read now.
    async fn queue_readings(
        &mut self,
        transfer: &mut Transfer<D::Payload>,
        budget: super::Budget,
        now: crate::clock::Now,
    ) -> bool {
        if transfer.chunk.last().is_none_or(|batch| batch.last() <= transfer.next) {
            match self.cursor.fetch(transfer.next, FETCH).await {
                Ok(chunk) => (transfer.chunk, transfer.untimed) = (chunk, true),
                Err(why) => return self.unreadable(&why),
            }
        }
        if transfer.untimed {
            transfer.untimed = self.cursor.give_times(&mut transfer.chunk);
        }
        let done = transfer.chunk.partition_point(|batch| batch.last() <= transfer.next);
        let encoded = self.destination.encode(&transfer.chunk[done..], transfer.next, budget, now); // at most its length
        match encoded {
            Ok(encoded) => {
                let first = transfer.next.next();
                let span = Span::Readings { first, last: encoded.upto };
                let total: usize = encoded.payloads.iter().map(|part| part.size).sum();
                let readings = usize::try_from(encoded.readings).unwrap_or(usize::MAX).max(1);
                self.reading_bytes = (self.reading_bytes * 7 + total / readings) / 8 + 1;
                let parts = encoded.payloads.into_iter().map(|part| {
                    let Part { payload, size: bytes, readings, first, last } = part;
                    (Piece { lane: D::lane(&payload).into(), bytes, readings, first, last }, payload)
                });
                self.queue(transfer, span, parts.collect());
                transfer.next = encoded.upto;
            }
            Err(Unencodable::TooLarge(seq)) => {
                self.too_large(transfer, seq, budget.limit);
                transfer.next = seq;
            }
            // Whatever was read and is not to be sent is passed: another read would find it again.
            Err(Unencodable::Nothing) => {
                transfer.next = transfer.chunk.last().map_or(transfer.next, |batch| batch.last().max(transfer.next));
                transfer.chunk.clear();
            }
        }
        true
    }

    fn unreadable(&self, why: &anyhow::Error) -> bool {
        tracing::error!(sink = %self.label.sink, why = format!("{why:#}"), "cannot read the log; trying again");
        false
    }

    /// Waits for what is in flight.
    async fn drain(&mut self, transfer: &mut Transfer<D::Payload>, connection: &mut D::Connection, within: Duration) {
        let confirmed = async {
            while transfer.outstanding > 0 {
                match connection.outcome().await {
                    Outcome::Confirmed(token) => self.confirmed(transfer, token),
                    Outcome::Refused(token, failure) => {
                        if self.refused(transfer, token, failure).is_err() {
                            return;
                        }
                    }
                    Outcome::Lost(_) => return,
                    Outcome::Room => {}
                }
            }
        };
        // What was not confirmed is in the log and goes out after the next start.
        let _ = timeout(within, confirmed).await;
    }
}

/// Brings the figures up to date that nothing but time changes.
fn figures(cursor: &SinkCursor, now: Duration, metrics: &Metrics, liveness: &Liveness, label: &SinkLabel) {
    liveness.renew(now);
    let pending = cursor.pending();
    let oldest = if pending == 0 { Duration::ZERO } else { cursor.oldest_pending(now) };
    metrics.sink_pending.get_or_create(label).set(i64::try_from(pending).unwrap_or(i64::MAX));
    metrics.sink_oldest_pending_seconds.get_or_create(label).set(oldest.as_secs_f64());
}
