//! Who may wait at a listener, and who may enter.
//!
//! A connection waits on the porch until its device is welcomed. Devices enter up to
//! the listener's limit; a device whose older connection is still there may enter all
//! the same, since that one goes. The porch has some room beyond the limit, so that
//! such a device can say who it is. When the porch is full, the connection that has
//! waited longest without a Hello goes: in a flood of silent connections a device
//! still gets its turn.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::Notify;

/// The places of one listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Porch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    room: usize,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    entered: usize,
    /// By order of arrival.
    waiting: BTreeMap<u64, Arc<Notify>>,
    arrivals: u64,
}

/// A connection's place, given up when dropped.
#[derive(Debug)]
pub struct Place {
    porch: Porch,
    arrival: u64,
    entered: bool,
    evicted: Arc<Notify>,
}

/// Room beyond a limit of `max`.
pub fn beyond(max: usize) -> usize {
    (max / 8).clamp(1, 1024)
}

impl Porch {
    /// Lets `max` devices in.
    pub fn new(max: usize) -> Porch {
        Porch(Arc::new(Inner { max, room: max.saturating_add(beyond(max)), places: Mutex::default() }))
    }

    /// A place for a connection that has just come; `None` if every place is taken by
    /// a device. Somebody else may have to go for it.
    pub fn arrive(&self) -> Option<Place> {
        let mut places = self.0.places.lock();
        if places.entered + places.waiting.len() >= self.0.room && !places.evict_one() {
            return None;
        }
        places.arrivals += 1;
        let (arrival, evicted) = (places.arrivals, Arc::new(Notify::new()));
        places.waiting.insert(arrival, evicted.clone());
        Some(Place { porch: self.clone(), arrival, entered: false, evicted })
    }

    /// Sends the one away that waits longest; false if nobody waits.
    pub fn evict_one(&self) -> bool {
        self.0.places.lock().evict_one()
    }
}

impl Places {
    fn evict_one(&mut self) -> bool {
        let oldest = self.waiting.pop_first();
        if let Some((_, place)) = &oldest {
            place.notify_one();
        }
        oldest.is_some()
    }
}

impl Place {
    /// Lets the device in, in the place of its older connection if `takes_over`. False
    /// if the limit is reached.
    pub fn enter(&mut self, takes_over: bool) -> bool {
        if self.entered {
            return true;
        }
        let mut places = self.porch.0.places.lock();
        if places.entered >= self.porch.0.max && !takes_over {
            return false;
        }
        places.waiting.remove(&self.arrival);
        places.entered += 1;
        self.entered = true;
        true
    }

    /// Waits until the place is needed for somebody else. Cancel-safe.
    pub fn evicted(&self) -> impl Future<Output = ()> + Send + use<> {
        let evicted = self.evicted.clone();
        async move { evicted.notified().await }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.porch.0.places.lock();
        if self.entered {
            places.entered -= 1;
        } else {
            places.waiting.remove(&self.arrival);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(place: &Place) -> bool {
        let mut evicted = std::pin::pin!(place.evicted());
        evicted.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn the_one_who_waits_longest_goes_when_the_porch_is_full() {
        let porch = Porch::new(2);
        let waiting: Vec<_> = (0..3).map(|_| porch.arrive().expect("a place")).collect();
        let newest = porch.arrive().expect("a place");
        assert_eq!(waiting.iter().map(is_evicted).collect::<Vec<_>>(), [true, false, false]);
        assert!(!is_evicted(&newest));
    }

    #[test]
    fn devices_that_entered_are_not_sent_away() {
        let porch = Porch::new(2);
        let mut inside: Vec<_> = (0..2).map(|_| porch.arrive().expect("a place")).collect();
        assert!(inside.iter_mut().all(|place| place.enter(false)));
        for _ in 0..5 {
            let mut late = porch.arrive().expect("room to say who it is");
            assert!(!late.enter(false), "both places are taken");
        }
        let waiting = porch.arrive().expect("a place");
        let _newer = porch.arrive().expect("a place");
        assert!(is_evicted(&waiting) && !inside.iter().any(is_evicted));
        inside.pop();
        assert!(porch.arrive().expect("a place").enter(false));
    }

    #[test]
    fn a_device_takes_the_place_of_its_older_connection_however_full_it_is() {
        let porch = Porch::new(1);
        let mut older = porch.arrive().expect("a place");
        assert!(older.enter(false));
        let mut newer = porch.arrive().expect("a place");
        assert!(newer.enter(true));
        drop(older);
        assert!(!porch.arrive().expect("a place").enter(false));
        drop(newer);
        assert!(porch.arrive().expect("a place").enter(false));
    }
}
