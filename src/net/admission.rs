//! Admission control of one listener: which connections hold a slot, and when each is served.
//!
//! A connection holds a slot from its accept to its end. Until its device is welcomed it waits.
//! Devices are admitted up to the listener's limit; a device whose older connection still exists is
//! admitted beyond it, because that connection ends. There are some slots beyond the limit, so that
//! such a device can send its Hello. When all slots are taken, new connections stay in the system's
//! backlog until the connection that is silent for longest had its grace period; then it is evicted
//! for a new one. In a flood of silent connections a device still gets its turn.
//!
//! When thousands of connections come or go at once, each costs little, but all together would
//! delay the devices that are connected. So each connection takes its first steps, and its last, in
//! turns: a few run at a time, and between them everything else that is ready to run does.

use crate::clock::Clock;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How long a connection may be silent before it is evicted for a new one. A Hello follows its
/// connection at once; one whose packet is lost comes a little later. Where there are few slots
/// the period is shorter, so that 500 new connections a second each get one.
const GRACE: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(500);
const GRACE_A_SLOT: Duration = Duration::from_millis(2);
/// Steps that an admitted connection takes in turns: its Hello, the backlog that it sends, and the
/// Acks of that.
const PACED_STEPS: u8 = 16;
/// Turns that run at a time.
const CONCURRENT_TURNS: usize = 4;
/// Admitted connections that send much and are read at a time.
const CONCURRENT_READS: usize = 2;
/// Connections that may linger at a time, so that the last bytes sent to them arrive.
pub const MAX_LINGERING: usize = 64;

/// The slots of one listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Devices that are admitted.
    max: usize,
    /// Slots, admitted or not.
    capacity: usize,
    grace: Duration,
    slots: Mutex<Slots>,
    /// A slot was vacated.
    vacated: Notify,
    turns: Semaphore,
    reads: Semaphore,
    lingering: Semaphore,
    waiting: Gauge,
}

#[derive(Debug, Default)]
struct Slots {
    admitted: usize,
    /// Connections that sent something and wait for their turn.
    ready: usize,
    /// Connections that sent nothing, by order of arrival.
    silent: BTreeMap<u64, Silent>,
    arrivals: u64,
}

#[derive(Debug)]
struct Silent {
    since: Duration,
    evicted: Arc<Notify>,
}

/// The slot of one connection, vacated when dropped.
#[derive(Debug)]
pub struct AdmissionSlot {
    admission: Admission,
    arrival: u64,
    since: Duration,
    state: SlotState,
    /// Steps that it still takes in turns.
    paced_steps: u8,
    evicted: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Silent,
    Ready,
    Admitted,
    Vacated,
}

/// Slots beyond a limit of `max`.
pub fn headroom(max: usize) -> usize {
    (max / 8).clamp(1, 1024)
}

/// Connections that may exist at one time where `max` devices are admitted, those that are
/// closing included.
pub fn max_open(max: usize) -> usize {
    max + 2 * headroom(max) + MAX_LINGERING
}

impl Admission {
    /// Admits `max` devices; `waiting` shows how many connections hold a slot and are not admitted.
    pub fn new(max: usize, waiting: Gauge) -> Admission {
        let capacity = max.saturating_add(headroom(max));
        let grace = GRACE_A_SLOT.saturating_mul(u32::try_from(capacity).unwrap_or(u32::MAX));
        Admission(Arc::new(Inner {
            max,
            capacity,
            grace: grace.clamp(*GRACE.start(), *GRACE.end()),
            slots: Mutex::default(),
            vacated: Notify::new(),
            turns: Semaphore::new(CONCURRENT_TURNS),
            reads: Semaphore::new(CONCURRENT_READS),
            lingering: Semaphore::new(MAX_LINGERING),
            waiting,
        }))
    }

    /// How long a new connection has to wait at most, where memory for another one may be
    /// `short`. `None` if it need not: there is a slot, a connection can be evicted for it, or
    /// it can be refused.
    pub fn full_for(&self, now: Duration, short: bool) -> Option<Duration> {
        let slots = self.0.slots.lock();
        let full = short || slots.taken() >= self.0.capacity;
        let hopeless = slots.admitted >= self.0.capacity || slots.taken() == slots.admitted;
        if !full || hopeless {
            return None;
        }
        let longest = slots.silent.first_key_value().map_or(now, |(_, silent)| silent.since);
        (longest + self.0.grace).checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Waits until a new connection need not wait, where memory may be `short`. Cancel-safe, for
    /// one that waits at a time.
    pub async fn room(&self, clock: &dyn Clock, short: impl Fn() -> bool) {
        while let Some(left) = self.full_for(clock.now().monotonic, short()) {
            let _ = timeout(left, self.0.vacated.notified()).await;
        }
    }

    /// Takes a slot for a new connection, for which the silent connection that is oldest may be
    /// evicted. `None` if all slots are taken by others than silent connections.
    pub fn claim(&self, now: Duration) -> Option<AdmissionSlot> {
        self.change(|slots| {
            if slots.taken() >= self.0.capacity && !slots.evict_oldest() {
                return None;
            }
            slots.arrivals += 1;
            let (arrival, evicted) = (slots.arrivals, Arc::new(Notify::new()));
            slots.silent.insert(arrival, Silent { since: now, evicted: evicted.clone() });
            let (admission, state, paced_steps) = (self.clone(), SlotState::Silent, PACED_STEPS);
            Some(AdmissionSlot { admission, arrival, since: now, state, paced_steps, evicted })
        })
    }

    /// Evicts the silent connection that is oldest; false if there is none.
    pub fn evict_oldest(&self) -> bool {
        self.change(Slots::evict_oldest)
    }

    /// A permit to linger, unless [`MAX_LINGERING`] connections do.
    pub fn try_linger(&self) -> Option<SemaphorePermit<'_>> {
        self.0.lingering.try_acquire().ok()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Slots) -> T) -> T {
        let mut slots = self.0.slots.lock();
        let outcome = change(&mut slots);
        self.0.waiting.set(i64::try_from(slots.ready + slots.silent.len()).unwrap_or(i64::MAX));
        outcome
    }

    async fn acquire_turn(&self) {
        Admission::in_turn(&self.0.turns).await;
    }

    async fn in_turn(turns: &Semaphore) {
        // Never closed.
        let _turn = turns.acquire().await;
        // Everything else that is ready to run does before the next turn begins.
        tokio::task::yield_now().await;
    }
}

impl Slots {
    fn taken(&self) -> usize {
        self.admitted + self.ready + self.silent.len()
    }

    fn evict_oldest(&mut self) -> bool {
        let oldest = self.silent.pop_first();
        if let Some((_, silent)) = &oldest {
            silent.evicted.notify_one();
        }
        oldest.is_some()
    }

    fn vacate(&mut self, state: SlotState, arrival: u64) {
        match state {
            SlotState::Silent => drop(self.silent.remove(&arrival)),
            SlotState::Ready => self.ready -= 1,
            SlotState::Admitted => self.admitted -= 1,
            SlotState::Vacated => {}
        }
    }
}

impl AdmissionSlot {
    /// The slot of a device that shares its line with no other: it is admitted, and takes no
    /// step in turns.
    pub fn exclusive() -> AdmissionSlot {
        let admission = Admission::new(1, Gauge::default());
        admission.0.slots.lock().admitted = 1;
        let (arrival, since, state) = (0, Duration::ZERO, SlotState::Admitted);
        AdmissionSlot { admission, arrival, since, state, paced_steps: 0, evicted: Arc::default() }
    }

    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// When its connection was accepted, on the monotonic clock.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Whether its device was admitted, and the slot not vacated.
    pub fn is_admitted(&self) -> bool {
        self.state == SlotState::Admitted
    }

    /// Whether the connection takes its next step in turns.
    pub fn is_paced(&self) -> bool {
        self.paced_steps > 0
    }

    /// Waits for the connection's turn.
    pub fn acquire_turn(&mut self) -> impl Future<Output = ()> + Send + use<> {
        if self.is_admitted() {
            self.paced_steps = self.paced_steps.saturating_sub(1);
        }
        let admission = self.admission.clone();
        async move { admission.acquire_turn().await }
    }

    /// Waits for the turn of an admitted connection that sends much to be read further; those that
    /// send little are read meanwhile.
    pub fn acquire_read(&self) -> impl Future<Output = ()> + Send + use<> {
        let admission = self.admission.clone();
        async move { Admission::in_turn(&admission.0.reads).await }
    }

    /// The connection sent something: it is not evicted before its turn.
    pub fn ready(&mut self) {
        if self.state != SlotState::Silent {
            return;
        }
        self.state = self.admission.change(|slots| {
            // One that was evicted meanwhile has no slot to keep.
            if slots.silent.remove(&self.arrival).is_none() {
                return SlotState::Vacated;
            }
            slots.ready += 1;
            SlotState::Ready
        });
    }

    /// Its turn is over. If its device was not admitted, it is silent as if it had sent nothing.
    pub fn release(&mut self) {
        if self.state == SlotState::Ready {
            self.admission.change(|slots| {
                slots.ready -= 1;
                slots.silent.insert(self.arrival, Silent { since: self.since, evicted: self.evicted.clone() });
            });
            self.state = SlotState::Silent;
        }
    }

    /// Admits the device, in place of its older connection if `takes_over`. False if the limit
    /// is reached.
    pub fn admit(&mut self, takes_over: bool) -> bool {
        if self.is_admitted() {
            return true;
        }
        let max = self.admission.0.max;
        let (state, arrival) = (self.state, self.arrival);
        let admitted = self.admission.change(|slots| {
            let admitted = slots.admitted < max || takes_over;
            if admitted {
                slots.vacate(state, arrival);
                slots.admitted += 1;
            }
            admitted
        });
        if admitted {
            self.state = SlotState::Admitted;
        }
        admitted
    }

    /// Gives the slot back before the connection ends.
    pub fn vacate(&mut self) {
        let state = std::mem::replace(&mut self.state, SlotState::Vacated);
        self.admission.change(|slots| slots.vacate(state, self.arrival));
        self.admission.0.vacated.notify_one();
    }

    /// Waits until the connection is evicted, which one that is admitted never is. Cancel-safe.
    pub fn evicted(&self) -> impl Future<Output = ()> + Send + use<> {
        let evicted = (!self.is_admitted()).then(|| self.evicted.clone());
        async move {
            match evicted {
                Some(evicted) => evicted.notified().await,
                None => pending().await,
            }
        }
    }
}

impl Drop for AdmissionSlot {
    fn drop(&mut self) {
        self.vacate();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1);

    fn is_evicted(slot: &AdmissionSlot) -> bool {
        let mut evicted = std::pin::pin!(slot.evicted());
        evicted.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    fn claim(admission: &Admission) -> AdmissionSlot {
        admission.claim(START).expect("a slot")
    }

    #[test]
    fn the_oldest_silent_connection_is_evicted_when_all_slots_are_taken() {
        let admission = Admission::new(2, Gauge::default());
        let waiting: Vec<_> = (0..3).map(|_| claim(&admission)).collect();
        let newest = claim(&admission);
        assert_eq!(waiting.iter().map(is_evicted).collect::<Vec<_>>(), [true, false, false]);
        assert!(!is_evicted(&newest));
    }

    #[test]
    fn a_new_connection_waits_until_one_was_silent_for_too_long_or_left() {
        let admission = Admission::new(2, Gauge::default());
        assert_eq!(admission.full_for(START, false), None);
        let mut waiting: Vec<_> = (0..3).map(|_| claim(&admission)).collect();
        let grace = *GRACE.start();
        assert_eq!(admission.full_for(START + grace / 5, false), Some(grace * 4 / 5));
        assert_eq!(admission.full_for(START + grace, false), None);
        waiting.iter_mut().for_each(AdmissionSlot::ready);
        assert_eq!(admission.full_for(START + grace, false), Some(grace), "those that are ready will have their turn");
        waiting.pop();
        assert_eq!(admission.full_for(START + grace, false), None);
        assert_eq!(admission.full_for(START, true), Some(grace), "memory is short");
        waiting.clear();
        assert_eq!(admission.full_for(START, true), None, "nothing can be evicted");
        assert_eq!(Admission::new(10_000, Gauge::default()).0.grace, *GRACE.end());
    }

    #[test]
    fn devices_that_are_admitted_are_not_evicted() {
        let admission = Admission::new(2, Gauge::default());
        let mut admitted: Vec<_> = (0..2).map(|_| claim(&admission)).collect();
        assert!(admitted.iter_mut().all(|slot| slot.admit(false)));
        for _ in 0..5 {
            let mut late = claim(&admission);
            assert!(!late.admit(false), "the limit is reached");
        }
        let waiting = claim(&admission);
        let _newer = claim(&admission);
        assert!(is_evicted(&waiting) && !admitted.iter().any(is_evicted));
        admitted.pop();
        assert!(claim(&admission).admit(false));
    }

    #[test]
    fn a_connection_that_sent_something_is_not_evicted_before_its_turn() {
        let admission = Admission::new(1, Gauge::default());
        let (mut first, second) = (claim(&admission), claim(&admission));
        first.ready();
        let third = claim(&admission);
        assert!(!is_evicted(&first) && is_evicted(&second));
        // Half a Hello counts as none: this connection is the oldest.
        first.release();
        let fourth = claim(&admission);
        assert!(is_evicted(&first) && !is_evicted(&third));
        first.ready();
        drop((first, second, third, fourth));
        assert_eq!(admission.0.slots.lock().taken(), 0);
    }

    #[test]
    fn a_device_takes_the_slot_of_its_older_connection_also_at_the_limit() {
        let admission = Admission::new(1, Gauge::default());
        let mut older = claim(&admission);
        assert!(older.admit(false));
        let mut newer = claim(&admission);
        newer.ready();
        assert!(newer.admit(true));
        drop(older);
        assert!(!claim(&admission).admit(false));
        drop(newer);
        assert!(claim(&admission).admit(false));
    }

    #[test]
    fn a_device_that_was_admitted_is_paced_for_some_steps() {
        let admission = Admission::new(1, Gauge::default());
        let mut slot = claim(&admission);
        for _ in 0..1000 {
            drop(slot.acquire_turn());
        }
        assert!(slot.is_paced(), "as long as it is not admitted");
        assert!(slot.admit(false));
        for _ in 0..PACED_STEPS {
            assert!(slot.is_paced());
            drop(slot.acquire_turn());
        }
        assert!(!slot.is_paced());
    }

    #[test]
    fn a_vacated_slot_is_not_counted() {
        let waiting = Gauge::default();
        let admission = Admission::new(1, waiting.clone());
        let (mut older, mut newer) = (claim(&admission), claim(&admission));
        assert_eq!(waiting.get(), 2);
        assert!(older.admit(false) && !newer.admit(false));
        older.vacate();
        assert!(newer.admit(false));
        assert_eq!(waiting.get(), 0);
        drop(older);
        drop(newer);
        assert_eq!(admission.0.slots.lock().taken(), 0);
    }

    #[tokio::test]
    async fn other_tasks_run_between_any_few_turns() {
        for reads in [false, true] {
            assert!(most_in_a_row(reads).await <= 4 * CONCURRENT_TURNS);
        }
    }

    /// How many turns, of those to be admitted or to be read, follow each other while other tasks
    /// are ready to run.
    async fn most_in_a_row(reads: bool) -> usize {
        const CROWD: usize = 400;
        let admission = Admission::new(CROWD, Gauge::default());
        let served = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counter, mut crowd) = (served.clone(), tokio::task::JoinSet::new());
        for _ in 0..CROWD {
            let (admission, served) = (admission.clone(), served.clone());
            crowd.spawn(async move {
                if reads {
                    claim(&admission).acquire_read().await;
                } else {
                    admission.acquire_turn().await;
                }
                served.load(std::sync::atomic::Ordering::Relaxed)
            });
        }
        let others = tokio::spawn(async move {
            loop {
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let mut at = crowd.join_all().await;
        others.abort();
        at.sort_unstable();
        at.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap_or_default()
    }
}
