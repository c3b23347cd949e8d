//! Who may wait at a listener, whose turn it is, and who may enter.
//!
//! A connection waits on the porch until its device is welcomed. Devices enter up to
//! the listener's limit; a device whose older connection is still there may enter all
//! the same, since that one goes. The porch has some room beyond the limit, so that
//! such a device can say who it is. When the porch is full, newcomers wait outside until
//! the connection that has waited longest had some time to speak; then it goes: in a
//! flood of silent connections a device still gets its turn.
//!
//! When thousands come or go at once, what each costs is little, but all of it together
//! would keep those inside waiting. So who comes, goes or has just come stands in line,
//! and a few are seen to at a time: between them all that is ready to run does.

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

/// How long a connection may stand on the porch without a word before it has to go for a
/// newcomer. A Hello follows its connection at once; one that got lost comes a little
/// later. Where there are few places it is less, so that 500 newcomers a second have one.
const GRACE: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(500);
const GRACE_A_PLACE: Duration = Duration::from_millis(2);
/// How often a connection gives way to others before it does no longer: for its Hello,
/// for what it has to get rid of, and for the Acks of that.
const COURTESIES: u8 = 16;
/// How many of those that give way are seen to at a time.
const AT_A_TIME: usize = 4;
/// How many of those inside that send much are read at a time.
const READ_AT_A_TIME: usize = 2;
/// How many connections may linger at a time, so that their last words arrive.
pub const LEAVING: usize = 64;

/// The places of one listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Porch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    room: usize,
    grace: Duration,
    places: Mutex<Places>,
    /// Somebody left a place.
    left: Notify,
    line: Semaphore,
    reading: Semaphore,
    seen_off: Semaphore,
    waiting: Gauge,
}

#[derive(Debug, Default)]
struct Places {
    entered: usize,
    /// Those that said something and wait for their turn to be heard.
    in_line: usize,
    /// Those of whom nothing was heard, by order of arrival.
    silent: BTreeMap<u64, Silent>,
    arrivals: u64,
}

#[derive(Debug)]
struct Silent {
    since: Duration,
    evicted: Arc<Notify>,
}

/// A connection's place, given up when dropped.
#[derive(Debug)]
pub struct Place {
    porch: Porch,
    arrival: u64,
    since: Duration,
    standing: Standing,
    /// How often it still gives way.
    courtesies: u8,
    evicted: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Silent,
    InLine,
    Entered,
    Left,
}

/// Room beyond a limit of `max`.
pub fn beyond(max: usize) -> usize {
    (max / 8).clamp(1, 1024)
}

/// Connections that may be there at one time where `max` devices are let in: those that go
/// still are for a while.
pub fn most(max: usize) -> usize {
    max + 2 * beyond(max) + LEAVING
}

impl Porch {
    /// Lets `max` devices in, and shows how many connections are waiting.
    pub fn new(max: usize, waiting: Gauge) -> Porch {
        let room = max.saturating_add(beyond(max));
        let grace = GRACE_A_PLACE.saturating_mul(u32::try_from(room).unwrap_or(u32::MAX));
        Porch(Arc::new(Inner {
            max,
            room,
            grace: grace.clamp(*GRACE.start(), *GRACE.end()),
            places: Mutex::default(),
            left: Notify::new(),
            line: Semaphore::new(AT_A_TIME),
            reading: Semaphore::new(READ_AT_A_TIME),
            seen_off: Semaphore::new(LEAVING),
            waiting,
        }))
    }

    /// How long a newcomer has to wait at most, where memory for another connection may be
    /// `short`; not at all if there is a place, if somebody can be sent away for it, or if
    /// it can be told that there is none.
    pub fn full_for(&self, now: Duration, short: bool) -> Option<Duration> {
        let places = self.0.places.lock();
        let full = short || places.taken() >= self.0.room;
        let hopeless = places.entered >= self.0.room || places.taken() == places.entered;
        if !full || hopeless {
            return None;
        }
        let longest = places.silent.first_key_value().map_or(now, |(_, silent)| silent.since);
        (longest + self.0.grace).checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Waits until a newcomer need wait no longer, where memory may be `short`. Cancel-safe,
    /// for one who waits.
    pub async fn room(&self, clock: &dyn Clock, short: impl Fn() -> bool) {
        while let Some(patience) = self.full_for(clock.now().monotonic, short()) {
            let _ = timeout(patience, self.0.left.notified()).await;
        }
    }

    /// A place for a connection that has just come; `None` if every place is taken by
    /// others than silent ones. Of those, one may have to go for it.
    pub fn arrive(&self, now: Duration) -> Option<Place> {
        self.change(|places| {
            if places.taken() >= self.0.room && !places.evict_one() {
                return None;
            }
            places.arrivals += 1;
            let (arrival, evicted) = (places.arrivals, Arc::new(Notify::new()));
            places.silent.insert(arrival, Silent { since: now, evicted: evicted.clone() });
            let (porch, standing, courtesies) = (self.clone(), Standing::Silent, COURTESIES);
            Some(Place { porch, arrival, since: now, standing, courtesies, evicted })
        })
    }

    /// Sends the one away that is silent for longest; false if nobody is.
    pub fn evict_one(&self) -> bool {
        self.change(Places::evict_one)
    }

    /// Leave to linger, if not too many do.
    pub fn linger(&self) -> Option<SemaphorePermit<'_>> {
        self.0.seen_off.try_acquire().ok()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Places) -> T) -> T {
        let mut places = self.0.places.lock();
        let outcome = change(&mut places);
        self.0.waiting.set(i64::try_from(places.in_line + places.silent.len()).unwrap_or(i64::MAX));
        outcome
    }

    async fn turn(&self) {
        Porch::in_turn(&self.0.line).await;
    }

    async fn in_turn(line: &Semaphore) {
        // Never closed.
        let _turn = line.acquire().await;
        // All that is ready to run does so first; only then is it the next one's turn.
        tokio::task::yield_now().await;
    }
}

impl Places {
    fn taken(&self) -> usize {
        self.entered + self.in_line + self.silent.len()
    }

    fn evict_one(&mut self) -> bool {
        let oldest = self.silent.pop_first();
        if let Some((_, silent)) = &oldest {
            silent.evicted.notify_one();
        }
        oldest.is_some()
    }

    fn leave(&mut self, standing: Standing, arrival: u64) {
        match standing {
            Standing::Silent => drop(self.silent.remove(&arrival)),
            Standing::InLine => self.in_line -= 1,
            Standing::Entered => self.entered -= 1,
            Standing::Left => {}
        }
    }
}

impl Place {
    /// The place of a device that shares its line with nobody.
    pub fn granted() -> Place {
        let porch = Porch::new(1, Gauge::default());
        porch.0.places.lock().entered = 1;
        let (arrival, since) = (0, Duration::ZERO);
        Place { porch, arrival, since, standing: Standing::Entered, courtesies: 0, evicted: Arc::default() }
    }

    pub fn porch(&self) -> &Porch {
        &self.porch
    }

    /// When its connection came, on the monotonic clock.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Whether it was let in, and did not leave.
    pub fn is_inside(&self) -> bool {
        self.standing == Standing::Entered
    }

    /// Whether it waits for its turn with what it is about to do.
    pub fn gives_way(&self) -> bool {
        self.courtesies > 0
    }

    /// Waits for its turn.
    pub fn turn(&mut self) -> impl Future<Output = ()> + Send + use<> {
        if self.is_inside() {
            self.courtesies = self.courtesies.saturating_sub(1);
        }
        let porch = self.porch.clone();
        async move { porch.turn().await }
    }

    /// Waits for its turn to be read further, as one inside that sends much: those that send
    /// little are read meanwhile.
    pub fn reading_turn(&self) -> impl Future<Output = ()> + Send + use<> {
        let porch = self.porch.clone();
        async move { Porch::in_turn(&porch.0.reading).await }
    }

    /// Something was heard: it is not sent away until it had its turn.
    pub fn line_up(&mut self) {
        if self.standing != Standing::Silent {
            return;
        }
        self.standing = self.porch.change(|places| {
            // One that was sent away meanwhile has no place to keep.
            if places.silent.remove(&self.arrival).is_none() {
                return Standing::Left;
            }
            places.in_line += 1;
            Standing::InLine
        });
    }

    /// It had its turn. If it was not let in, it waits as long as if it had said nothing.
    pub fn step_back(&mut self) {
        if self.standing == Standing::InLine {
            self.porch.change(|places| {
                places.in_line -= 1;
                places.silent.insert(self.arrival, Silent { since: self.since, evicted: self.evicted.clone() });
            });
            self.standing = Standing::Silent;
        }
    }

    /// Lets the device in, in the place of its older connection if `takes_over`. False
    /// if the limit is reached.
    pub fn enter(&mut self, takes_over: bool) -> bool {
        if self.is_inside() {
            return true;
        }
        let max = self.porch.0.max;
        let (standing, arrival) = (self.standing, self.arrival);
        let entered = self.porch.change(|places| {
            let enters = places.entered < max || takes_over;
            if enters {
                places.leave(standing, arrival);
                places.entered += 1;
            }
            enters
        });
        if entered {
            self.standing = Standing::Entered;
        }
        entered
    }

    /// Gives the place up for others, though the connection is still there.
    pub fn leave(&mut self) {
        let standing = std::mem::replace(&mut self.standing, Standing::Left);
        self.porch.change(|places| places.leave(standing, self.arrival));
        self.porch.0.left.notify_one();
    }

    /// Waits until the place is needed for somebody else: never for a device that was let
    /// in. Cancel-safe.
    pub fn evicted(&self) -> impl Future<Output = ()> + Send + use<> {
        let evicted = (!self.is_inside()).then(|| self.evicted.clone());
        async move {
            match evicted {
                Some(evicted) => evicted.notified().await,
                None => pending().await,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1);

    fn is_evicted(place: &Place) -> bool {
        let mut evicted = std::pin::pin!(place.evicted());
        evicted.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    fn arrive(porch: &Porch) -> Place {
        porch.arrive(START).expect("a place")
    }

    #[test]
    fn the_one_who_waits_longest_goes_when_the_porch_is_full() {
        let porch = Porch::new(2, Gauge::default());
        let waiting: Vec<_> = (0..3).map(|_| arrive(&porch)).collect();
        let newest = arrive(&porch);
        assert_eq!(waiting.iter().map(is_evicted).collect::<Vec<_>>(), [true, false, false]);
        assert!(!is_evicted(&newest));
    }

    #[test]
    fn newcomers_wait_outside_until_somebody_was_silent_for_too_long_or_left() {
        let porch = Porch::new(2, Gauge::default());
        assert_eq!(porch.full_for(START, false), None);
        let mut waiting: Vec<_> = (0..3).map(|_| arrive(&porch)).collect();
        let grace = *GRACE.start();
        assert_eq!(porch.full_for(START + grace / 5, false), Some(grace * 4 / 5));
        assert_eq!(porch.full_for(START + grace, false), None);
        waiting.iter_mut().for_each(Place::line_up);
        assert_eq!(porch.full_for(START + grace, false), Some(grace), "those in line will be seen to");
        waiting.pop();
        assert_eq!(porch.full_for(START + grace, false), None);
        assert_eq!(porch.full_for(START, true), Some(grace), "memory is short");
        waiting.clear();
        assert_eq!(porch.full_for(START, true), None, "nobody is there who could go");
        assert_eq!(Porch::new(10_000, Gauge::default()).0.grace, *GRACE.end());
    }

    #[test]
    fn devices_that_entered_are_not_sent_away() {
        let porch = Porch::new(2, Gauge::default());
        let mut inside: Vec<_> = (0..2).map(|_| arrive(&porch)).collect();
        assert!(inside.iter_mut().all(|place| place.enter(false)));
        for _ in 0..5 {
            let mut late = arrive(&porch);
            assert!(!late.enter(false), "both places are taken");
        }
        let waiting = arrive(&porch);
        let _newer = arrive(&porch);
        assert!(is_evicted(&waiting) && !inside.iter().any(is_evicted));
        inside.pop();
        assert!(arrive(&porch).enter(false));
    }

    #[test]
    fn who_said_something_is_not_sent_away_before_it_had_its_turn() {
        let porch = Porch::new(1, Gauge::default());
        let (mut first, second) = (arrive(&porch), arrive(&porch));
        first.line_up();
        let third = arrive(&porch);
        assert!(!is_evicted(&first) && is_evicted(&second));
        // Half a Hello is no more than none: it has waited for longest.
        first.step_back();
        let fourth = arrive(&porch);
        assert!(is_evicted(&first) && !is_evicted(&third));
        first.line_up();
        drop((first, second, third, fourth));
        assert_eq!(porch.0.places.lock().taken(), 0);
    }

    #[test]
    fn a_device_takes_the_place_of_its_older_connection_however_full_it_is() {
        let porch = Porch::new(1, Gauge::default());
        let mut older = arrive(&porch);
        assert!(older.enter(false));
        let mut newer = arrive(&porch);
        newer.line_up();
        assert!(newer.enter(true));
        drop(older);
        assert!(!arrive(&porch).enter(false));
        drop(newer);
        assert!(arrive(&porch).enter(false));
    }

    #[test]
    fn a_device_that_was_let_in_gives_way_for_a_while() {
        let porch = Porch::new(1, Gauge::default());
        let mut place = arrive(&porch);
        for _ in 0..1000 {
            drop(place.turn());
        }
        assert!(place.gives_way(), "as long as it is outside");
        assert!(place.enter(false));
        for _ in 0..COURTESIES {
            assert!(place.gives_way());
            drop(place.turn());
        }
        assert!(!place.gives_way());
    }

    #[test]
    fn who_left_is_counted_no_longer() {
        let waiting = Gauge::default();
        let porch = Porch::new(1, waiting.clone());
        let (mut older, mut newer) = (arrive(&porch), arrive(&porch));
        assert_eq!(waiting.get(), 2);
        assert!(older.enter(false) && !newer.enter(false));
        older.leave();
        assert!(newer.enter(false));
        assert_eq!(waiting.get(), 0);
        drop(older);
        drop(newer);
        assert_eq!(porch.0.places.lock().taken(), 0);
    }

    #[tokio::test]
    async fn those_inside_have_their_turn_between_any_few_of_those_in_line() {
        for reading in [false, true] {
            assert!(most_in_a_row(reading).await <= 4 * AT_A_TIME);
        }
    }

    /// How many of those that wait to come in, or to be read further, have their turn before
    /// those that are ready have theirs.
    async fn most_in_a_row(reading: bool) -> usize {
        const CROWD: usize = 400;
        let porch = Porch::new(CROWD, Gauge::default());
        let served = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (inside, mut crowd) = (served.clone(), tokio::task::JoinSet::new());
        for _ in 0..CROWD {
            let (porch, served) = (porch.clone(), served.clone());
            crowd.spawn(async move {
                if reading {
                    arrive(&porch).reading_turn().await;
                } else {
                    porch.turn().await;
                }
                served.load(std::sync::atomic::Ordering::Relaxed)
            });
        }
        let going_on = tokio::spawn(async move {
            loop {
                inside.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let mut at = crowd.join_all().await;
        going_on.abort();
        at.sort_unstable();
        at.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap_or_default()
    }
}
