//! The memory that connections may take together.
//!
//! Each connection has a [`Lease`]. What it holds beyond a small allowance of its own
//! (a large frame that is incomplete, readings that wait for the log, answers that are
//! not taken) is charged to the pool. While the pool is used up, a connection is read
//! only as far as its allowance goes: small frames go on, large ones wait.
//!
//! Memory that is given back is granted to those that wait in turn, see
//! [`crate::fair_queue`], and wakes nobody else. A frame that is larger than all that there is
//! for frames now does not keep others waiting: its connection looks again from time to time.

use crate::fair_queue::{Account, FairQueue};
use crate::metrics::{Metrics, ReasonLabel};
use parking_lot::Mutex;
use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    /// What connections are charged for themselves: no frame gives that back.
    own: AtomicUsize,
    /// Connections that are not read for want of memory.
    starved: AtomicUsize,
    queue: Mutex<FairQueue<Arc<Waiter>>>,
    /// Whether somebody is in the queue, or is about to be. Together with `used`, in one order for
    /// all threads: who gives memory back sees who waits, or who waits sees the memory.
    awaited: AtomicBool,
    metrics: Metrics,
}

/// One that waits for memory, or has been granted some. Changed under the queue's lock only.
#[derive(Default)]
struct Waiter {
    waiting: AtomicBool,
    /// Bytes that the pool charged for it.
    granted: AtomicUsize,
    woken: Notify,
}

/// A connection's part in the queue, from the first time that it asks while somebody waits.
#[derive(Default)]
struct Turn {
    account: Account,
    /// Bytes that it waits for, or was granted; 0 if neither.
    asked: usize,
    waiter: Arc<Waiter>,
}

impl Pool {
    pub fn new(limit: usize, metrics: Metrics) -> Pool {
        let for_frames = limit - limit / 8;
        metrics.memory_links_limit_bytes.set(i64::try_from(for_frames).unwrap_or(i64::MAX));
        Pool(Arc::new(Inner {
            limit,
            for_frames: AtomicUsize::new(for_frames),
            used: AtomicUsize::new(0),
            own: AtomicUsize::new(0),
            starved: AtomicUsize::new(0),
            queue: Mutex::default(),
            awaited: AtomicBool::new(false),
            metrics,
        }))
    }

    /// Grants `part` of `whole` of what there is for large frames, in bytes, which it returns.
    /// What is held already is not taken away.
    pub fn set_share(&self, part: usize, whole: usize) -> usize {
        let for_frames = (self.0.limit - self.0.limit / 8) / whole.max(1) * part;
        self.0.for_frames.store(for_frames, Ordering::Relaxed);
        self.0.metrics.memory_links_limit_bytes.set(i64::try_from(for_frames).unwrap_or(i64::MAX));
        self.serve(&mut self.0.queue.lock());
        for_frames
    }

    fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    fn for_frames(&self) -> usize {
        self.0.for_frames.load(Ordering::Relaxed)
    }

    /// Whether anything is left for what connections hold.
    pub fn has_room(&self) -> bool {
        self.used() < self.for_frames()
    }

    /// Whether anything is left for another connection.
    pub fn admits(&self) -> bool {
        self.used() + CONNECTION <= self.0.limit
    }

    /// Whether a connection waits for memory.
    pub fn is_wanted(&self) -> bool {
        self.0.starved.load(Ordering::Relaxed) > 0
    }

    /// A lease for a connection, whether or not there is room: see [`Pool::admits`].
    pub fn lease(&self) -> Lease {
        self.add(CONNECTION);
        self.0.own.fetch_add(CONNECTION, Ordering::Relaxed);
        Lease { pool: self.clone(), own: CONNECTION, charged: CONNECTION, starved: false, turn: None }
    }

    /// A lease for more of what a connection holds, which has one of its own already.
    pub fn another_lease(&self) -> Lease {
        Lease { pool: self.clone(), own: 0, charged: 0, starved: false, turn: None }
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
        let used = self.0.used.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        self.show(used);
        if self.0.awaited.load(Ordering::SeqCst) {
            self.serve(&mut self.0.queue.lock());
        }
    }

    /// Takes `bytes` if there are so many.
    fn try_add(&self, bytes: usize) -> bool {
        let most = self.for_frames();
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= most);
        match self.0.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits) {
            Ok(before) => {
                self.show(before + bytes);
                true
            }
            Err(_) => false,
        }
    }

    /// Takes `bytes` if there are so many, and nobody's turn is before.
    fn try_add_in_turn(&self, turn: &mut Option<Box<Turn>>, bytes: usize) -> bool {
        let mut queue = self.0.queue.lock();
        if queue.is_empty() {
            return self.try_add(bytes);
        }
        let account = &mut turn.get_or_insert_default().account;
        let takes = queue.is_little(account, bytes) && queue.little_goes_next() && self.try_add(bytes);
        if takes {
            queue.charge(account, bytes);
        }
        takes
    }

    /// Has `turn` wait for `bytes`, if there can be so many.
    fn wait(&self, turn: &mut Turn, bytes: usize) {
        let mut queue = self.0.queue.lock();
        if bytes <= self.most() {
            queue.wait(&mut turn.account, bytes, turn.waiter.clone());
            turn.asked = bytes;
            turn.waiter.waiting.store(true, Ordering::Relaxed);
            self.0.awaited.store(true, Ordering::SeqCst);
            self.serve(&mut queue);
        }
    }

    /// `turn` waits no longer. Returns what it was granted in the meantime.
    fn leave(&self, turn: &mut Turn) -> usize {
        let mut queue = self.0.queue.lock();
        let granted = turn.waiter.granted.swap(0, Ordering::Relaxed);
        if queue.cancel(&mut turn.account) {
            turn.waiter.waiting.store(false, Ordering::Relaxed);
            self.serve(&mut queue);
        } else if granted == 0 {
            queue.refund(&mut turn.account, turn.asked);
        }
        turn.asked = 0;
        granted
    }

    /// Grants what memory there is, in turn, and wakes those that get it.
    fn serve(&self, queue: &mut FairQueue<Arc<Waiter>>) {
        while let Some(head) = queue.head() {
            let there_may_be = head.bytes <= self.most();
            if there_may_be && !self.try_add(head.bytes) {
                break;
            }
            if let Some((bytes, waiter)) = queue.grant() {
                waiter.waiting.store(false, Ordering::Relaxed);
                if there_may_be {
                    waiter.granted.store(bytes, Ordering::Relaxed);
                    waiter.woken.notify_waiters();
                }
            }
        }
        self.0.awaited.store(!queue.is_empty(), Ordering::SeqCst);
    }

    /// All that there can be for frames.
    fn most(&self) -> usize {
        self.for_frames().saturating_sub(self.0.own.load(Ordering::Relaxed))
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
    turn: Option<Box<Turn>>,
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
        self.leave_queue();
        self.recharge(self.charge(bytes));
    }

    /// The connection holds `bytes` now, and will hold `soon` bytes: what it has for those it keeps,
    /// and what it lacks it takes if nobody's turn is before.
    pub fn hold_for(&mut self, bytes: usize, soon: usize) {
        self.leave_queue();
        let (held, wanted) = (self.charge(bytes), self.charge(soon.max(bytes)));
        let more = wanted.saturating_sub(self.charged);
        match more > 0 && self.pool.try_add_in_turn(&mut self.turn, more) {
            true => self.charged = wanted,
            false => self.recharge(self.charged.clamp(held, wanted)),
        }
    }

    fn recharge(&mut self, charge: usize) {
        if charge > self.charged {
            self.pool.add(charge - self.charged);
        } else if charge < self.charged {
            self.pool.give_back(self.charged - charge);
        }
        self.charged = charge;
    }

    /// Makes sure that the connection may hold `bytes`; false if there is no room, for one that
    /// does not wait for it.
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

    /// Makes sure that the connection may hold `bytes`; false if it has to wait for its turn, see
    /// [`Lease::granted`].
    pub fn reserve_in_turn(&mut self, bytes: usize) -> bool {
        if self.is_queued() {
            return false;
        }
        self.leave_queue();
        let more = self.charge(bytes).saturating_sub(self.charged);
        let granted = more == 0 || self.pool.try_add_in_turn(&mut self.turn, more);
        if granted {
            self.charged += more;
        } else {
            self.pool.wait(self.turn.get_or_insert_default(), more);
        }
        granted
    }

    /// Whether it waits for its turn. One that is not read for want of memory and has no turn either
    /// asks again from time to time: there is not as much as it wants.
    pub fn is_queued(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.waiter.waiting.load(Ordering::Relaxed))
    }

    /// Waits until memory is granted that the lease waits for; for ever if that does not come.
    /// Cancel-safe: what is granted stays so until [`Lease::reserve_in_turn`].
    pub fn granted(&self) -> impl Future<Output = ()> + Send + use<> {
        let waiter = self.turn.as_ref().map(|turn| turn.waiter.clone());
        async move {
            let Some(waiter) = waiter else { return pending().await };
            loop {
                let woken = waiter.woken.notified();
                if waiter.granted.load(Ordering::Relaxed) > 0 {
                    return;
                }
                woken.await;
            }
        }
    }

    /// Waits no longer, and is charged for what it was granted.
    fn leave_queue(&mut self) {
        if let Some(turn) = self.turn.as_mut().filter(|turn| turn.asked > 0) {
            self.charged += self.pool.leave(turn);
        }
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
                self.leave_queue();
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
        self.leave_queue();
        self.pool.0.own.fetch_sub(self.own, Ordering::Relaxed);
        self.pool.give_back(self.charged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Waker};
    use std::time::Duration;

    fn used(pool: &Pool) -> usize {
        pool.used()
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

    /// What is left for frames beside `leases`, in grains.
    fn pool_of(grains: usize, leases: usize) -> Pool {
        Pool::new((CONNECTION * leases + grains * GRAIN).div_ceil(7) * 8, Metrics::new())
    }

    /// Whether it was woken, and by memory of its own.
    fn is_woken(lease: &Lease) -> bool {
        let mut granted = std::pin::pin!(lease.granted());
        granted.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test]
    async fn memory_that_is_given_back_wakes_who_gets_it_and_nobody_else() {
        let pool = pool_of(4, 5);
        let mut holder = pool.lease();
        assert!(holder.reserve_in_turn(4 * GRAIN));
        let mut waiting: Vec<Lease> = (0..4).map(|_| pool.lease()).collect();
        for lease in &mut waiting {
            assert!(!lease.reserve_in_turn(2 * GRAIN) && lease.is_queued());
        }
        let tasks: Vec<_> = waiting.iter().map(|lease| tokio::spawn(lease.granted())).collect();
        tokio::task::yield_now().await;
        holder.hold(2 * GRAIN);
        tokio::task::yield_now().await;
        assert_eq!(tasks.iter().map(|task| task.is_finished()).collect::<Vec<_>>(), [true, false, false, false]);
        assert!(waiting[0].reserve_in_turn(2 * GRAIN), "it was granted");
        holder.hold(0);
        tokio::task::yield_now().await;
        assert_eq!(tasks.iter().map(|task| task.is_finished()).collect::<Vec<_>>(), [true, true, false, false]);
        assert_eq!(used(&pool), 5 * CONNECTION + 4 * GRAIN, "a grant is charged at once");
        // One that leaves with its grant, and one that leaves while it waits.
        drop(waiting.drain(1..3));
        tokio::task::yield_now().await;
        assert!(tasks[3].is_finished() && !waiting[1].is_queued());
        drop((waiting, holder));
        assert_eq!(used(&pool), 0);
        assert!(!pool.0.awaited.load(Ordering::SeqCst));
    }

    #[test]
    fn nobody_takes_what_another_waits_for_but_one_that_wants_little() {
        let pool = pool_of(8, 4);
        let [mut holder, mut first, mut fast, mut little] = [(); 4].map(|()| pool.lease());
        assert!(holder.reserve_in_turn(6 * GRAIN));
        assert!(!first.reserve_in_turn(7 * GRAIN));
        assert!(!fast.reserve_in_turn(2 * GRAIN), "there is as much, and it is not its turn");
        assert!(little.reserve_in_turn(GRAIN));
        little.hold_for(0, 2 * GRAIN);
        assert_eq!(used(&pool), 4 * CONNECTION + 7 * GRAIN, "it keeps what it has, and more is not little any more");
        little.hold(2 * GRAIN);
        holder.hold(0);
        assert!(!is_woken(&first), "2 of 8 are taken");
        little.hold(0);
        assert!(is_woken(&first) && !is_woken(&fast));
        assert!(first.reserve_in_turn(7 * GRAIN) && fast.is_queued());
        first.hold(0);
        assert!(is_woken(&fast) && fast.reserve_in_turn(2 * GRAIN));
    }

    #[test]
    fn who_wants_more_than_there_can_be_keeps_nobody_waiting() {
        let pool = pool_of(8, 3);
        let [mut holder, mut large, mut other] = [(); 3].map(|()| pool.lease());
        assert!(holder.reserve_in_turn(7 * GRAIN));
        assert!(!large.reserve_in_turn(9 * GRAIN) && !large.is_queued());
        assert!(!large.reserve_in_turn(8 * GRAIN) && large.is_queued());
        assert!(!other.reserve_in_turn(2 * GRAIN));
        pool.set_share(3, 4);
        assert!(!large.is_queued() && !is_woken(&large), "there are no 8 any more");
        holder.hold(0);
        assert!(is_woken(&other) && other.reserve_in_turn(2 * GRAIN));
        pool.set_share(1, 1);
        assert!(!large.reserve_in_turn(8 * GRAIN), "it asks again");
        other.hold(0);
        assert!(is_woken(&large) && large.reserve_in_turn(8 * GRAIN));
    }

    #[test]
    fn those_that_wait_for_large_frames_have_equal_shares_whatever_their_size() {
        let pool = pool_of(100, 11);
        let mut leases: Vec<Lease> = (0..11).map(|_| pool.lease()).collect();
        let want = |one: usize| if one == 0 { 100 } else { 10 };
        for (one, lease) in leases.iter_mut().enumerate() {
            lease.reserve_in_turn(want(one) * GRAIN);
        }
        let mut granted = [0; 11];
        for _ in 0..1000 {
            for (one, lease) in leases.iter_mut().enumerate() {
                if !lease.is_queued() {
                    assert!(lease.reserve_in_turn(want(one) * GRAIN));
                    granted[one] += want(one);
                    lease.hold(0);
                    lease.reserve_in_turn(want(one) * GRAIN);
                }
            }
        }
        let [least, most] = [granted.iter().min(), granted.iter().max()].map(|shares| shares.copied().unwrap_or(0));
        assert!(least > 1000 && most <= least + 3 * 100, "{granted:?}");
    }

    #[test]
    fn leases_of_many_threads_miss_no_memory_that_is_given_back() {
        let pool = pool_of(3, 8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut lease = pool.lease();
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
                    for _ in 0..2000 {
                        while !lease.reserve_in_turn(2 * GRAIN) {
                            let granted =
                                async { tokio::time::timeout(Duration::from_secs(20), lease.granted()).await };
                            runtime.block_on(granted).expect("no grant is missed");
                        }
                        lease.hold(0);
                    }
                });
            }
        });
        assert_eq!(used(&pool), 0);
    }
}
