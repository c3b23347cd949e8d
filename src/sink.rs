//! Where readings go. The [`Pump`] takes them from a cursor over the log to a
//! [`Destination`], once for all kinds of destination; each of those is a small
//! adapter.

// In dependency order: each refers only to those above it (`tests/architecture.rs`).

pub mod encode;

mod linger;

mod in_flight;

mod sizing;

mod poison;

mod pump;

mod lifecycle;

mod check;

pub mod mqtt;

pub mod file;

pub mod kinds;

pub use check::{Certificates, CheckAs, Report};
pub use lifecycle::{Build, CommandIntake, Context, PumpSettings, Running, Sink};
pub use pump::Pump;

use crate::backoff::Failure;
use crate::clock::Now;
use crate::model::{Epoch, GatewayId, Seq, SequencedBatch};
use crate::store::LogEvent;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What every uplinked payload says about where it comes from.
#[derive(Debug, Clone)]
pub struct Identity {
    pub gateway: GatewayId,
    /// Of readings, their own; else the log's current one.
    pub epoch: Epoch,
}

/// Shows that a sink makes progress, if only in trying. Clones share it.
#[derive(Debug, Clone)]
pub struct Liveness(Arc<AtomicU64>);

impl Liveness {
    /// As if felt at `now`, on the monotonic clock.
    pub fn new(now: Duration) -> Liveness {
        let liveness = Liveness(Arc::default());
        liveness.renew(now);
        liveness
    }

    fn renew(&self, now: Duration) {
        self.0.store(now.as_secs(), Ordering::Relaxed);
    }

    /// How long ago it was felt last, in whole seconds.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_secs(self.0.load(Ordering::Relaxed)))
    }
}

/// Readings put together for sending.
#[derive(Debug)]
pub struct Encoded<P> {
    /// What to send, in order.
    pub payloads: Vec<Part<P>>,
    /// The last reading that is in one of them.
    pub upto: Seq,
    /// How many readings are.
    pub readings: u64,
}

/// One payload, and what is in it.
#[derive(Debug)]
pub struct Part<P> {
    pub payload: P,
    /// In bytes.
    pub size: usize,
    pub readings: u64,
    /// Seqs of the first and the last of them; between them others may stand.
    pub first: Seq,
    pub last: Seq,
}

/// Why nothing could be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unencodable {
    /// Nothing stands there.
    Nothing,
    /// The first reading alone is larger than the limit.
    TooLarge(Seq),
}

/// How large payloads may be, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// A payload of several readings stays below this.
    pub batch: usize,
    /// No payload may be larger than this.
    pub limit: usize,
}

impl Budget {
    /// The same with batches of up to so many bytes.
    fn in_batches_of(self, bytes: usize) -> Budget {
        Budget { batch: self.batch.min(bytes), ..self }
    }
}

/// A kind of place that readings are sent to.
pub trait Destination: Send {
    /// Something to send.
    type Payload: Send;
    type Connection: SinkConnection<Payload = Self::Payload>;

    /// Connects, within a time of its own.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Connection, Failure>> + Send;

    /// Puts readings of `chunk` after `after` together, as many as fit.
    ///
    /// # Errors
    /// If there are none or the first does not fit at all.
    fn encode(
        &self,
        chunk: &[SequencedBatch],
        after: Seq,
        budget: Budget,
        now: Now,
    ) -> Result<Encoded<Self::Payload>, Unencodable>;

    /// Puts an event together.
    fn event(&self, event: &LogEvent) -> Self::Payload;

    /// Where it goes at the destination, such as a topic: some of that may be refused.
    fn lane(payload: &Self::Payload) -> &str;
}

/// What became of something sent.
#[derive(Debug)]
pub enum Outcome {
    /// The destination has taken what this token was given for.
    Confirmed(u64),
    /// There may be room for a payload that there was none for.
    Room,
    /// It refuses what this token was given for, and will again if the failure is permanent.
    Refused(u64, Failure),
    /// The connection is over, and nothing outstanding will be confirmed.
    Lost(Failure),
}

/// A live connection to a destination.
pub trait SinkConnection: Send {
    type Payload;

    /// How many payloads may be outstanding; 0 while no other one is to be sent.
    fn window(&self) -> usize;

    /// How large a payload of several readings should be, in bytes, for what the way to the
    /// destination is seen to carry.
    fn batch(&self) -> usize {
        usize::MAX
    }

    /// Whether the destination is seen to limit how much is sent in a time: a connection that
    /// ends then says nothing about the payloads.
    fn is_limited(&self) -> bool {
        false
    }

    /// Largest payload that the destination accepts, in bytes, as far as it said.
    fn max_payload(&self) -> usize;

    /// Whether it said how large a payload may be.
    fn tells_size(&self) -> bool;

    /// How many confirmations came of what is not outstanding, since this was asked last.
    fn take_unexpected(&mut self) -> u64 {
        0
    }

    /// Sends without waiting; [`Outcome::Confirmed`] will name `token`.
    ///
    /// # Errors
    /// If the connection is over.
    fn send(&mut self, token: u64, payload: Self::Payload) -> Result<(), Failure>;

    /// Waits for what becomes of what was sent. Cancel-safe.
    fn outcome(&mut self) -> impl Future<Output = Outcome> + Send;

    /// Takes leave, within the time given.
    fn close(self, within: Duration) -> impl Future<Output = ()> + Send;
}
