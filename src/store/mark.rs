//! What of a device's session the log has.

use crate::model::DeviceId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// How far one session of one device has come: what was accepted, and what of it
/// is settled and may be acknowledged.
#[derive(Debug)]
pub struct Mark {
    device: DeviceId,
    session: u64,
    /// Written under the log's lock only.
    accepted: AtomicU64,
    settled: AtomicU64,
    moved: Notify,
}

impl Mark {
    /// A session of which everything up to `settled` is settled.
    pub(super) fn new(device: DeviceId, session: u64, settled: u64) -> Arc<Mark> {
        Arc::new(Mark {
            device,
            session,
            accepted: AtomicU64::new(settled),
            settled: AtomicU64::new(settled),
            moved: Notify::new(),
        })
    }

    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    pub fn session(&self) -> u64 {
        self.session
    }

    /// The session's last seq that is settled, as are all before it; 0 if none.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// Waits until [`Mark::settled`] is above `seen`, and returns it. Cancel-safe.
    pub async fn settled_after(&self, seen: u64) -> u64 {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            let settled = self.settled();
            if settled > seen {
                return settled;
            }
            moved.await;
        }
    }

    /// Wakes whoever waits in [`Mark::settled_after`].
    pub(super) fn announce(&self) {
        self.moved.notify_waiters();
    }

    /// The session's last seq that the log took over.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(super) fn accept(&self, seq: u64) {
        self.accepted.fetch_max(seq, Ordering::Relaxed);
    }

    /// Moves up to `seq`; false if it was there already.
    pub(super) fn settle(&self, seq: u64) -> bool {
        self.settled.fetch_max(seq, Ordering::AcqRel) < seq
    }
}
