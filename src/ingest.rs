//! The waist: how readings come in, whatever they come by.
//!
//! A source attaches a device ([`Ingest::attach`]) and has an [`Attachment`] for as long as the
//! device is there: it pushes batches of readings, learns which of them are settled, takes the
//! device's commands and answers them, and leaves. A source speaks [`crate::model`] only: it knows
//! neither the log nor the registry, and these know no source. Sessions of our own protocol are
//! one kind of source ([`crate::link`]); what polls, or subscribes to something, is another.

mod acks;
mod attachment;
mod rate;
mod refused_samples;

pub use attachment::Attachment;
pub use rate::Bucket;
pub use refused_samples::{Refused, RefusedLog, RefusedSamples};

use crate::clock::{Clock, Now};
use crate::device::{Introduction, NotAdmitted, Registry};
use crate::metrics::Metrics;
use crate::model::{Basis, DeviceId, Timestamp};
use crate::store::Log;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;

/// Where sources attach devices. Cheap to clone.
#[derive(Clone)]
pub struct Ingest(Arc<Inner>);

struct Inner {
    log: Log,
    registry: Registry,
    refused: RefusedLog,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

/// A source that a gateway runs beside the links of its configuration.
pub struct Source(Box<dyn FnOnce(Ingest, watch::Receiver<bool>) -> Task + Send>);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Source {
    /// What `run` makes of the gateway's [`Ingest`] and of the signal to stop.
    pub fn new<F: Future<Output = ()> + Send + 'static>(
        run: impl FnOnce(Ingest, watch::Receiver<bool>) -> F + Send + 'static,
    ) -> Source {
        Source(Box::new(move |ingest, stop| Box::pin(run(ingest, stop))))
    }

    /// Runs until `stop` turns true.
    pub async fn run(self, ingest: Ingest, stop: watch::Receiver<bool>) {
        (self.0)(ingest, stop).await;
    }
}

impl Ingest {
    pub fn new(log: Log, registry: Registry, clock: Arc<dyn Clock>, metrics: Metrics) -> Ingest {
        Ingest(Arc::new(Inner { log, registry, refused: RefusedLog::default(), clock, metrics }))
    }

    /// Attaches a device with its session. Another attachment of the same device is told to go.
    /// The device may have `window` readings outstanding, see [`Attachment::is_window_full`].
    ///
    /// A session numbers its readings from 1. A source whose device keeps readings goes on behind
    /// [`Attachment::settled`], or behind what the device has given up since that was told before:
    /// a crash may forget what only the sinks had confirmed, and these have it. A source without
    /// numbers begins a session of a random number whenever it attaches, and counts from 1.
    ///
    /// # Errors
    /// If the device cannot be let in.
    pub fn attach(&self, who: Introduction<'_>, window: u32) -> Result<Attachment, NotAdmitted> {
        let (device, session, link) = (who.device, who.session, who.link.clone());
        let connected = self.0.registry.connect(who)?;
        let high_water = self.0.log.high_water(device, session);
        Ok(Attachment::new(self.clone(), link, connected, high_water, window))
    }

    /// Whether the device is attached.
    pub fn is_attached(&self, device: &DeviceId) -> bool {
        self.0.registry.is_connected(device)
    }

    /// Whether room for readings is short: what is received now waits in memory.
    pub fn is_saturated(&self) -> bool {
        self.0.log.is_saturated()
    }

    /// The time.
    pub fn now(&self) -> Now {
        self.0.clock.now()
    }

    /// The time of a reading that was taken at `now`, and what kind of time it is: of a gateway that
    /// does not know the time, the one since it booted, from which the time follows once it does.
    pub fn time_of(&self, now: Now) -> (Timestamp, Basis) {
        match now.trusted {
            true => (now.wall, Basis::Wall),
            false => {
                let uptime = i64::try_from(now.monotonic.as_micros()).unwrap_or(i64::MAX);
                (Timestamp(uptime), Basis::Boot(self.0.clock.boot()))
            }
        }
    }

    /// The samples that were refused of late.
    pub fn refused(&self) -> &RefusedLog {
        &self.0.refused
    }
}
