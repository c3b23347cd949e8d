//! What is under way on one connection of a sink.

use super::refusals::Refusals;
use crate::model::{Seq, SequencedBatch};
use crate::sink::in_flight::InFlight;
use crate::sink::poison::Passed;
use std::collections::VecDeque;
use std::time::Duration;

/// What is under way on one connection.
pub(super) struct Transfer<P> {
    pub flight: InFlight,
    /// Encoded and not sent: token and payload.
    pub queue: VecDeque<(u64, P)>,
    pub outstanding: usize,
    /// Readings up to here are encoded, events up to there.
    pub next: Seq,
    pub next_event: u64,
    /// Taken from the log.
    pub chunk: Vec<SequencedBatch>,
    /// Some of it may have no time yet.
    pub untimed: bool,
    /// Since when readings wait for more to join them.
    pub waiting_since: Option<Duration>,
    /// Whether the cursor was moved.
    pub progress: bool,
    /// Whether it was logged that an event was refused.
    pub refusal_told: bool,
    /// What passed on this connection before what is suspected.
    pub passed: Option<Passed>,
    pub refusals: Refusals,
}

impl<P> Transfer<P> {
    /// A connection that sends the readings from `next` and the events from `next_event` on.
    pub fn begin(next: Seq, next_event: u64) -> Transfer<P> {
        Transfer {
            flight: InFlight::default(),
            queue: VecDeque::new(),
            outstanding: 0,
            next,
            next_event,
            chunk: Vec::new(),
            untimed: false,
            waiting_since: None,
            progress: false,
            refusal_told: false,
            passed: None,
            refusals: Refusals::default(),
        }
    }
}
