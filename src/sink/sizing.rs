//! How large payloads may be for a destination that does not say.
//!
//! An MQTT 3.1.1 broker that is sent a packet beyond its limit just closes the
//! connection, every time. So when connections end without anything confirmed on
//! them, the oldest span goes alone and ever smaller. Whether a single reading is to
//! blame, [`PoisonSearch`](super::poison::PoisonSearch) finds out.

use super::Budget;
use super::in_flight::Head;

/// Connections lost without progress before size is suspected: the first may have
/// any reason.
const SUSPECT_AFTER: u32 = 2;
/// Every broker takes readings of this size, in bytes: they are never too large.
pub const HARMLESS: usize = 4096;
/// Payloads confirmed before a larger size is tried again; doubles each time that fails.
const GROW_AFTER: u64 = 1000;

/// The size that seems to work.
#[derive(Debug)]
pub struct Sizing {
    max: usize,
    batch: usize,
    /// What `batch` was before size was suspected.
    before: usize,
    /// Connections lost in a row with nothing confirmed on them.
    fruitless: u32,
    confirmed: u64,
    grow_after: u64,
}

impl Sizing {
    /// Batches of up to `max` bytes.
    pub fn new(max: usize) -> Sizing {
        Sizing { max, batch: max, before: max, fruitless: 0, confirmed: 0, grow_after: GROW_AFTER }
    }

    /// How large payloads may be where no more than `limit` bytes are accepted.
    pub fn budget(&self, limit: usize) -> Budget {
        Budget { batch: self.batch.min(limit), limit }
    }

    /// How many payloads may be outstanding of a window of `window`.
    pub fn window(&self, window: usize) -> usize {
        if self.is_careful() { 1 } else { window.max(1) }
    }

    /// Whether what ends connections is looked for.
    pub fn is_careful(&self) -> bool {
        self.fruitless >= SUSPECT_AFTER
    }

    /// The oldest span was confirmed.
    pub fn confirmed(&mut self) {
        self.fruitless = 0;
        if self.batch == self.max {
            return;
        }
        self.confirmed += 1;
        if self.confirmed >= self.grow_after {
            self.confirmed = 0;
            self.batch = (self.batch * 2).min(self.max);
        }
    }

    /// What ended connections was found, and has so many bytes.
    pub fn found(&mut self, bytes: usize) {
        self.fruitless = 0;
        if bytes <= HARMLESS {
            self.batch = self.before;
        }
    }

    /// A connection ended with nothing confirmed on it while `head` was outstanding
    /// first.
    pub fn lost(&mut self, head: Head) {
        self.fruitless = self.fruitless.saturating_add(1);
        if self.fruitless == SUSPECT_AFTER {
            self.before = self.batch;
        }
        if self.is_careful() && head.readings > 1 {
            if self.batch == self.max {
                self.grow_after = self.grow_after.saturating_mul(2);
            }
            self.batch = (head.bytes / 2).max(1).min(self.batch);
            self.confirmed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::in_flight::Span;
    use super::*;
    use crate::model::Seq;

    fn head(bytes: usize, readings: u64) -> Head {
        Head { span: Span::Readings { first: Seq(7), last: Seq(6 + readings) }, bytes, readings }
    }

    #[test]
    fn one_lost_connection_changes_nothing() {
        let mut sizing = Sizing::new(1000);
        sizing.lost(head(900, 9));
        assert_eq!((sizing.budget(5000).batch, sizing.window(32)), (1000, 32));
        sizing.confirmed();
        sizing.lost(head(900, 9));
        assert_eq!(sizing.budget(5000).batch, 1000);
    }

    #[test]
    fn a_batch_that_ends_connections_is_halved_and_goes_alone_until_it_passes() {
        let mut sizing = Sizing::new(16_000);
        let mut bytes = 16_000;
        let mut lost = 0;
        while bytes > 1_500 {
            sizing.lost(head(bytes, 100));
            lost += 1;
            bytes = sizing.budget(100_000).batch;
        }
        assert!(lost <= 5, "{lost} connections were lost");
        assert_eq!(sizing.window(32), 1);
        sizing.confirmed();
        assert_eq!(sizing.window(32), 32);
    }

    #[test]
    fn the_size_grows_again_ever_more_slowly() {
        let mut sizing = Sizing::new(1000);
        for (round, grow_after) in [2000, 4000].into_iter().enumerate() {
            sizing.lost(head(1000, 9));
            sizing.lost(head(1000, 9));
            assert_eq!(sizing.budget(5000).batch, 500);
            for _ in 0..grow_after {
                assert_eq!(sizing.budget(5000).batch, 500, "in round {round}");
                sizing.confirmed();
            }
            assert_eq!(sizing.budget(5000).batch, 1000);
        }
    }

    #[test]
    fn once_something_small_was_found_to_blame_batches_are_what_they_were() {
        for (bytes, batch) in [(HARMLESS, 16_000), (HARMLESS + 1, 2_500)] {
            let mut sizing = Sizing::new(16_000);
            for _ in 0..SUSPECT_AFTER {
                sizing.lost(head(5_000, 2));
            }
            assert_eq!((sizing.window(32), sizing.budget(100_000).batch), (1, 2_500));
            sizing.found(bytes);
            assert_eq!((sizing.window(32), sizing.budget(100_000).batch), (32, batch));
        }
    }

    #[test]
    fn a_limit_that_is_known_is_kept() {
        assert_eq!(Sizing::new(16_000).budget(2000), Budget { batch: 2000, limit: 2000 });
        assert_eq!(Sizing::new(1000).budget(2000), Budget { batch: 1000, limit: 2000 });
    }
}
