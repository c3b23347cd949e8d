//! What a connection says of how much may be published over it.

use super::Connection;
use crate::mqtt::pacing::Learnt;
use std::time::Duration;

impl Connection {
    /// Whether another batch would be written at once. If not, an [`Event`](super::Event)
    /// tells when there may be room: that a publish was confirmed, or [`Event::Room`].
    ///
    /// [`Event::Room`]: super::Event::Room
    pub fn has_room(&self) -> bool {
        self.client.has_room(self.now())
    }

    /// How large a batch should be for what the link is seen to carry, in bytes.
    pub fn batch(&self) -> usize {
        self.client.pacing.batch()
    }

    /// How many publishes the broker confirmed that are not in flight, since this was asked
    /// last.
    pub fn take_unexpected(&mut self) -> u64 {
        self.client.take_unexpected()
    }

    /// What is known of link and broker by now.
    pub fn learnt(&self) -> Learnt {
        self.client.pacing.learnt(self.now())
    }

    /// Begins with what an earlier connection to the same broker had learnt so long ago.
    pub fn begin_with(&mut self, learnt: Learnt, ago: Duration) {
        let now = self.now();
        self.client.pacing.begin_with(learnt, ago, now);
    }

    /// Whether the broker takes fewer publishes in a second than it was sent.
    pub fn is_limited(&self) -> bool {
        self.client.pacing.limit(self.now()).is_some()
    }
}
