//! The memory that connections may take together.
//!
//! Each connection has a [`Lease`]. What it holds beyond a small allowance of its own
//! (a large frame that is incomplete, readings that wait for the log, answers that are
//! not taken) is charged to the pool. While the pool is used up, a connection is read
//! only as far as its allowance goes: small frames go on, large ones wait.

use crate::metrics::{Metrics, ReasonLabel};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// What every connection is charged, for its task, its session and its place in the
/// tables, in bytes.
pub const CONNECTION: usize = 6 * 1024;
/// What a connection may hold without being charged for it, in bytes.
pub const ALLOWANCE: usize = 1024;
/// Charges are rounded up to this: small changes cost nothing.
const GRAIN: usize = 4 * 1024;

/// A number of bytes for all connections. Clones share it.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    /// Beyond this no connection is let in.
    limit: usize,
    /// Beyond this nothing but a connection's own charge is granted: claims of large
    /// frames must not shut out a device that sends small ones. Less while memory is short.
    for_frames: AtomicUsize,
    used: AtomicUsize,
    /// Connections that are not read for want of memory.
    starved: AtomicUsize,
    freed: Notify,
    metrics: Metrics,
}

impl Pool {
    pub fn new(limit: usize, metrics: Metrics) -> Pool {
        let for_frames = limit - limit / 8;
        metrics.memory_links_limit_bytes.set(i64::try_from(for_frames).unwrap_or(i64::MAX));
        Pool(Arc::new(Inner {
            limit,
            for_frames: AtomicUsize::new(for_frames),
            used: AtomicUsize::new(0),
            starved: AtomicUsize::new(0),
            freed: Notify::new(),
            metrics,
        }))
    }

    /// Grants `part` of `whole` of what there is for large frames, in bytes, which it returns.
    /// What is held already is not taken away.
    pub fn set_share(&self, part: usize, whole: usize) -> usize {
        let for_frames = (self.0.limit - self.0.limit / 8) / whole.max(1) * part;
        self.0.for_frames.store(for_frames, Ordering::Relaxed);
        self.0.metrics.memory_links_limit_bytes.set(i64::try_from(for_frames).unwrap_or(i64::MAX));
        self.0.freed.notify_waiters();
        for_frames
    }

    fn for_frames(&self) -> usize {
        self.0.for_frames.load(Ordering::Relaxed)
    }

    /// Whether anything is left for what connections hold.
    pub fn has_room(&self) -> bool {
        self.0.used.load(Ordering::Relaxed) < self.for_frames()
    }

    /// Whether anything is left for another connection.
    pub fn admits(&self) -> bool {
        self.0.used.load(Ordering::Relaxed) + CONNECTION <= self.0.limit
    }

    /// Whether a connection waits for memory.
    pub fn is_wanted(&self) -> bool {
        self.0.starved.load(Ordering::Relaxed) > 0
    }

    /// A lease for a connection, whether or not there is room: see [`Pool::admits`].
    pub fn lease(&self) -> Lease {
        self.add(CONNECTION);
        Lease { pool: self.clone(), own: CONNECTION, charged: CONNECTION, starved: false }
    }

    /// A lease for more of what a connection holds, which has one of its own already.
    pub fn another_lease(&self) -> Lease {
        Lease { pool: self.clone(), own: 0, charged: 0, starved: false }
    }

    /// Waits until memory was given back. Cancel-safe, but may miss what was given back
    /// before: look again from time to time.
    pub async fn freed(&self) {
        self.0.freed.notified().await;
    }

    /// Counts something that was not done for want of memory.
    pub fn refused(&self, reason: &'static str) {
        self.0.metrics.memory_refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    fn add(&self, bytes: usize) {
        let used = self.0.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.show(used);
    }

    fn give_back(&self, bytes: usize) {
        let used = self.0.used.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        self.show(used);
        if used < self.for_frames() && self.is_wanted() {
            self.0.freed.notify_waiters();
        }
    }

    /// Takes `bytes` if there are so many.
    fn try_add(&self, bytes: usize) -> bool {
        let most = self.for_frames();
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= most);
        match self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(before) => {
                self.show(before + bytes);
                true
            }
            Err(_) => false,
        }
    }

    fn show(&self, used: usize) {
        self.0.metrics.memory_links_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
    }
}

/// What one connection is charged; given back when dropped.
pub struct Lease {
    pool: Pool,
    /// What it is charged at least.
    own: usize,
    charged: usize,
    starved: bool,
}

impl Lease {
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn charge(&self, held: usize) -> usize {
        if held <= ALLOWANCE { self.own } else { self.own + held.next_multiple_of(GRAIN) }
    }

    /// The connection holds so many bytes now. It is charged for them even if that is
    /// more than there is: they are there.
    pub fn hold(&mut self, bytes: usize) {
        let charge = self.charge(bytes);
        if charge > self.charged {
            self.pool.add(charge - self.charged);
        } else if charge < self.charged {
            self.pool.give_back(self.charged - charge);
        }
        self.charged = charge;
    }

    /// Makes sure that the connection may hold `bytes`; false if there is no room.
    pub fn reserve(&mut self, bytes: usize) -> bool {
        let charge = self.charge(bytes);
        if charge <= self.charged {
            return true;
        }
        let granted = self.pool.try_add(charge - self.charged);
        if granted {
            self.charged = charge;
        }
        granted
    }

    /// Whether the connection waits for memory.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// The connection waits for memory, or no longer.
    pub fn starve(&mut self, starved: bool) {
        match (self.starved, starved) {
            (false, true) => {
                self.pool.0.starved.fetch_add(1, Ordering::Relaxed);
                self.pool.refused("wait");
            }
            (true, false) => {
                self.pool.0.starved.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.starved = starved;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.starve(false);
        self.pool.give_back(self.charged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(pool: &Pool) -> usize {
        pool.0.used.load(Ordering::Relaxed)
    }

    #[test]
    fn small_holdings_cost_nothing_and_large_ones_are_given_back() {
        let pool = Pool::new((CONNECTION * 2 + 3 * GRAIN) * 8 / 7, Metrics::new());
        let (mut one, mut two) = (pool.lease(), pool.lease());
        one.hold(ALLOWANCE);
        assert_eq!(used(&pool), 2 * CONNECTION);
        assert!(one.reserve(2 * GRAIN));
        assert!(!two.reserve(2 * GRAIN), "only one grain is left");
        assert!(pool.has_room() && two.reserve(GRAIN) && !pool.has_room());
        two.hold(2 * GRAIN);
        assert_eq!(used(&pool), 2 * CONNECTION + 4 * GRAIN, "what is held is charged, come what may");
        one.hold(0);
        assert!(pool.has_room());
        drop((one, two));
        assert_eq!(used(&pool), 0);
    }

    #[test]
    fn large_frames_leave_room_for_connections() {
        let pool = Pool::new(32 * CONNECTION, Metrics::new());
        let mut large = pool.lease();
        assert!(large.reserve(24 * CONNECTION) && !large.reserve(28 * CONNECTION));
        large.hold(27 * CONNECTION);
        assert!(!pool.has_room() && pool.admits());
        let _small = pool.lease();
        assert!(pool.admits());
        large.hold(31 * CONNECTION);
        assert!(!pool.admits());
    }

    #[tokio::test]
    async fn who_waits_for_memory_is_woken_when_some_is_given_back() {
        let pool = Pool::new((CONNECTION * 2 + GRAIN) * 8 / 7, Metrics::new());
        let (mut one, mut two) = (pool.lease(), pool.lease());
        one.hold(GRAIN);
        assert!(!two.reserve(GRAIN));
        two.starve(true);
        let waiting = pool.clone();
        let freed = tokio::spawn(async move { waiting.freed().await });
        tokio::task::yield_now().await;
        drop(one);
        freed.await.expect("woken");
        assert!(two.reserve(GRAIN));
        two.starve(false);
        assert!(!pool.is_wanted());
    }
}
