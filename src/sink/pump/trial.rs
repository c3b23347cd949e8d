//! Trials: whether another message passes on a connection that stands, right before the one
//! that is suspected to end connections.

use super::{FETCH, Pump};
use crate::backoff::Failure;
use crate::model::Numbered;
use crate::sink::flight::Stretch;
use crate::sink::sizing::HARMLESS;
use crate::sink::suspicion::{Passed, STEADY, Suspect};
use crate::sink::{Budget, Destination, Link, Outcome, Part};
use tokio::time::timeout;

/// The token of the other message; those of a flight count up from 0.
const TRIAL: u64 = (1 << 62) - 1;
/// How many chunks of the log are looked through for one.
const CHUNKS: usize = 8;

impl<D: Destination> Pump<D> {
    /// If something is suspected, waits until the connection has stood for a while, and has
    /// another message confirmed. That comes again behind the suspect, in its turn.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(super) async fn try_another(&mut self, link: &mut D::Link) -> Result<Option<Passed>, Failure> {
        let Some(suspect) = self.suspicion.suspect().cloned() else { return Ok(None) };
        if let Ok(Outcome::Lost(why)) = timeout(STEADY, link.outcome()).await {
            return Err(why);
        }
        let Some(Part { payload, size: bytes, .. }) =
            self.another(&suspect, link.tells_size(), link.max_payload()).await
        else {
            return Ok(None);
        };
        let lane = D::lane(&payload).into();
        link.send(TRIAL, payload)?;
        loop {
            match link.outcome().await {
                Outcome::Confirmed(TRIAL) => return Ok(Some(Passed { lane, bytes })),
                Outcome::Refused(TRIAL, _) => return Ok(None),
                Outcome::Lost(why) => return Err(why),
                Outcome::Room | Outcome::Confirmed(_) | Outcome::Refused(..) => {}
            }
        }
    }

    /// Readings other than the suspect, `most` bytes: to another lane if there are any. They are
    /// small, or where the destination tells how large they may be, no smaller than the suspect:
    /// there size is nothing to suspect.
    async fn another(&mut self, suspect: &Suspect, tells_size: bool, most: usize) -> Option<Part<D::Payload>> {
        let mut after = match suspect.stretch {
            Stretch::Readings { last, .. } => last,
            Stretch::Event(_) => self.cursor.position(),
        };
        let (least, batch) = match tells_size {
            true => (suspect.bytes, suspect.bytes.saturating_mul(2).max(HARMLESS / 2)),
            false => (0, HARMLESS / 2),
        };
        let limit = if tells_size { usize::MAX } else { HARMLESS.max(suspect.bytes / 2) };
        let limit = limit.min(most);
        let budget = Budget { batch: batch.min(limit), limit };
        let now = self.clock.now();
        let mut of_same_lane = None;
        for _ in 0..CHUNKS {
            let chunk = self.cursor.fetch(after, FETCH).await.ok()?;
            let end = chunk.last().map(Numbered::last).filter(|last| *last > after);
            let Some(end) = end else { break };
            while after < end {
                let done = chunk.partition_point(|batch| batch.last() <= after);
                match self.destination.encode(&chunk[done..], after, budget, now) {
                    // at most its length
                    Ok(encoded) => {
                        after = encoded.upto;
                        let may_pass = |part: &Part<D::Payload>| {
                            part.size >= least && !self.suspicion.denies(D::lane(&part.payload), now.monotonic)
                        };
                        for part in encoded.payloads.into_iter().filter(may_pass) {
                            if *D::lane(&part.payload) != *suspect.lane {
                                return Some(part);
                            }
                            of_same_lane.get_or_insert(part);
                        }
                    }
                    Err(super::Unencodable::TooLarge(seq)) => after = seq,
                    Err(super::Unencodable::Nothing) => after = end,
                }
            }
        }
        of_same_lane
    }
}
