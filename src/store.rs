//! The store-and-forward log. (Signatures; the lead is writing the body.)

use crate::model::{Batch, DeviceId, Epoch, Numbered, Seq, Timestamp};
use std::sync::Arc;

/// The log, shared by links and sinks. All methods are cheap and never wait for the disk unless said so.
#[derive(Clone)]
pub struct Log {
    _private: (),
}

/// Memory for unsettled readings is used up: wait for [`Log::room`], then append the same batch again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saturated;

impl Log {
    /// The mark of `session` of `device`: what of it was accepted and what is settled.
    /// A new session id for a device starts at 0; the same id resumes (also after a restart of the gateway).
    pub fn mark(&self, _device: &DeviceId, _session: u64) -> Arc<Mark> {
        unimplemented!()
    }

    /// Numbers the readings and takes them over. Readings whose origin seq is not above what the mark has
    /// accepted are dropped as duplicates (counted). `mark` None: the device numbers nothing.
    /// The batch's device may be a sub-device of the mark's device. On Err nothing was taken: the batch is handed back.
    pub fn append(&self, _mark: Option<&Arc<Mark>>, _batch: Batch) -> Result<(), (Saturated, Batch)> {
        unimplemented!()
    }

    /// Waits until an append may succeed again. Cancel-safe.
    pub async fn room(&self) {
        unimplemented!()
    }

    pub fn epoch(&self) -> Epoch {
        unimplemented!()
    }
}

/// What of a device's session the log has.
pub struct Mark {
    _private: (),
}

impl Mark {
    /// The last origin seq that is settled (all before it too); 0 if none.
    pub fn settled(&self) -> u64 {
        unimplemented!()
    }

    /// Waits until [`Mark::settled`] is above `seen`; returns the new value. Cancel-safe.
    pub async fn settled_after(&self, _seen: u64) -> u64 {
        unimplemented!()
    }
}

/// A sink's place in the log. One owner; confirmed positions are kept by the log.
pub struct SinkCursor {
    _private: (),
}

/// Something about the gateway itself that is told upstream, e.g. a gap; kept until each sink confirmed it.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEvent {
    /// Increasing; never reused in an epoch.
    pub id: u64,
    pub time: Timestamp,
    /// A JSON object with at least "type".
    pub body: serde_json::Map<String, serde_json::Value>,
}

impl SinkCursor {
    /// The sink's name.
    pub fn name(&self) -> &Arc<str> {
        unimplemented!()
    }

    /// Everything up to here is confirmed.
    pub fn position(&self) -> Seq {
        unimplemented!()
    }

    /// Readings after `after`, oldest first, as far as the sink may see them now (at most about `max_bytes` of memory,
    /// at least one batch if there is any; empty when there is none). The first batch may begin before `after`: use
    /// [`Numbered::after`]. Reads from memory when it can, else from disk on a blocking thread.
    pub async fn fetch(&mut self, _after: Seq, _max_bytes: usize) -> anyhow::Result<Vec<Numbered>> {
        unimplemented!()
    }

    /// Waits until there is a reading after `after` or an event after `event`. Cancel-safe.
    pub async fn available(&self, _after: Seq, _event: u64) {
        unimplemented!()
    }

    /// Everything up to `upto` was confirmed by the destination.
    pub fn confirm(&self, _upto: Seq) {
        unimplemented!()
    }

    /// Readings of this sink between its position and the newest visible one (for sink_pending).
    pub fn pending(&self) -> u64 {
        unimplemented!()
    }

    /// Arrival time (monotonic, of the gateway's clock) of the reading, if the log still holds it in memory: for the delivery histogram.
    pub fn arrival(&self, _seq: Seq) -> Option<std::time::Duration> {
        unimplemented!()
    }

    /// The last event id that this sink confirmed.
    pub fn event_position(&self) -> u64 {
        unimplemented!()
    }

    /// Events after `after`, oldest first, at most 100.
    pub async fn events(&mut self, _after: u64) -> anyhow::Result<Vec<LogEvent>> {
        unimplemented!()
    }

    pub fn confirm_events(&self, _upto: u64) {
        unimplemented!()
    }

    /// The destination can never take this reading (e.g. larger than the broker's maximum): it is dropped for this sink,
    /// counted and reported as a gap event with `reason`. Call before confirming past it.
    pub fn refuse(&self, _seq: Seq, _reason: &'static str) {
        unimplemented!()
    }
}
