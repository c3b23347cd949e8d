//! How much may be published over a connection.

use super::Connection;
use crate::mqtt::pacing::Learnt;
use std::time::Duration;

impl Connection {
    /// Whether another batch would be written at once. If not, an [`Event`](super::Event) reports
    /// when there may be room: [`Event::Acked`](super::Event::Acked) or [`Event::Room`].
    ///
    /// [`Event::Room`]: super::Event::Room
    pub fn has_room(&self) -> bool {
        self.client.has_room(self.now())
    }

    /// Best size of a batch for the measured throughput of the link, in bytes.
    pub fn batch(&self) -> usize {
        self.client.pacing.batch()
    }

    /// Number of PUBACKs for packet ids that are not in flight, since the last call.
    pub fn take_unexpected(&mut self) -> u64 {
        self.client.take_unexpected()
    }

    /// What this connection has learnt of link and broker.
    pub fn learnt(&self) -> Learnt {
        self.client.pacing.learnt(self.now())
    }

    /// Starts with what an earlier connection to the same broker had learnt `ago`.
    pub fn begin_with(&mut self, learnt: Learnt, ago: Duration) {
        let now = self.now();
        self.client.pacing.begin_with(learnt, ago, now);
    }

    /// Whether the broker accepts fewer publishes a second than it was sent.
    pub fn is_limited(&self) -> bool {
        self.client.pacing.limit(self.now()).is_some()
    }
}
