//! Trials: whether another message passes on a connection that stands, right before the one
//! that is suspected to end connections.

use super::{FETCH, Pump};
use crate::backoff::Failure;
use crate::model::{DeviceId, Seq, SequencedBatch};
use crate::sink::in_flight::Span;
use crate::sink::poison::{Passed, STEADY, Suspect};
use crate::sink::sizing::HARMLESS;
use crate::sink::{Budget, Destination, Outcome, Part, SinkConnection};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The token of the other message; those of a flight count up from 0.
const TRIAL: u64 = (1 << 62) - 1;
/// How many chunks of the log are looked through for one that goes anywhere. Behind these the
/// suspect's device is passed over, however much it has.
const CHUNKS: usize = 8;

/// Behind a message to this lane, nothing up to here can stand for another.
pub(super) struct Searched {
    lane: Arc<str>,
    upto: Seq,
}

impl<D: Destination> Pump<D> {
    /// If something is suspected, waits until the connection has stood for a while, and has
    /// another message confirmed. That comes again behind the suspect, in its turn.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(super) async fn try_another(&mut self, connection: &mut D::Connection) -> Result<Option<Passed>, Failure> {
        let Some(suspect) = self.search.suspect().cloned() else { return Ok(None) };
        if let Ok(Outcome::Lost(why)) = timeout(STEADY, connection.outcome()).await {
            return Err(why);
        }
        let Some(Part { payload, size: bytes, .. }) = self.another(&suspect, connection).await? else {
            return Ok(None);
        };
        let lane = D::lane(&payload).into();
        connection.send(TRIAL, payload)?;
        loop {
            match connection.outcome().await {
                Outcome::Confirmed(TRIAL) => return Ok(Some(Passed { lane, bytes })),
                Outcome::Refused(TRIAL, _) => return Ok(None),
                Outcome::Lost(why) => return Err(why),
                Outcome::Room | Outcome::Confirmed(_) | Outcome::Refused(..) => {}
            }
        }
    }

    /// Readings other than the suspect: to another lane if there are any. They are small, or where
    /// the destination tells how large they may be, no smaller than the suspect: there size is
    /// nothing to suspect.
    ///
    /// # Errors
    /// If the connection is lost meanwhile.
    async fn another(
        &mut self,
        suspect: &Suspect,
        connection: &mut D::Connection,
    ) -> Result<Option<Part<D::Payload>>, Failure> {
        let (mut after, device) = match suspect.span {
            Span::Readings { first, last } => (last, self.device_of(first).await),
            Span::Event(_) => (self.cursor.position(), None),
        };
        let searched = self.searched.take().filter(|searched| searched.lane == suspect.lane && searched.upto > after);
        let mut chunks = 0;
        if let Some(searched) = searched {
            (after, chunks) = (searched.upto, CHUNKS);
        }
        let (least, batch) = match connection.tells_size() {
            true => (suspect.bytes, suspect.bytes.saturating_mul(2).max(HARMLESS / 2)),
            false => (0, HARMLESS / 2),
        };
        let limit = if connection.tells_size() { usize::MAX } else { HARMLESS.max(suspect.bytes / 2) };
        let limit = limit.min(connection.max_payload());
        let budget = Budget { batch: batch.min(limit), limit };
        let now = self.clock.now();
        let mut of_same_lane = None;
        loop {
            // The connection has to stand, and does its part of that, however long this takes.
            if let Ok(Outcome::Lost(why)) = timeout(Duration::ZERO, connection.outcome()).await {
                return Err(why);
            }
            let Ok(mut chunk) = self.cursor.fetch(after, FETCH).await else { return Ok(of_same_lane) };
            let Some(end) = chunk.last().map(SequencedBatch::last).filter(|last| *last > after) else {
                return Ok(of_same_lane);
            };
            let is_far = chunks >= CHUNKS;
            if is_far {
                // Where sizes are told, what is too small now may do for the next suspect.
                let searched = Searched { lane: suspect.lane.clone(), upto: after };
                self.searched = Some(searched).filter(|_| !connection.tells_size());
                let Some(device) = &device else { return Ok(of_same_lane) };
                chunk.retain(|numbered| numbered.batch.device != *device);
            }
            while after < end {
                let done = chunk.partition_point(|batch| batch.last() <= after);
                // at most its length
                let upto = match self.destination.encode(&chunk[done..], after, budget, now) {
                    Ok(encoded) => {
                        let may_pass = |part: &Part<D::Payload>| {
                            part.size >= least && !self.search.denies(D::lane(&part.payload), now.monotonic)
                        };
                        for part in encoded.payloads.into_iter().filter(may_pass) {
                            if *D::lane(&part.payload) != *suspect.lane {
                                return Ok(Some(part));
                            }
                            of_same_lane.get_or_insert(part);
                        }
                        // Another device's: they share one lane, and there is no other.
                        if is_far && of_same_lane.is_some() {
                            return Ok(of_same_lane);
                        }
                        encoded.upto
                    }
                    Err(super::Unencodable::TooLarge(seq)) => seq,
                    Err(super::Unencodable::Nothing) => end,
                };
                after = upto;
            }
            chunks += 1;
        }
    }

    /// Whose the reading is.
    async fn device_of(&mut self, seq: Seq) -> Option<DeviceId> {
        let chunk = self.cursor.fetch(seq.prev(), 1).await.ok()?;
        chunk.iter().find(|numbered| numbered.last() >= seq).map(|numbered| numbered.batch.device.clone())
    }
}
