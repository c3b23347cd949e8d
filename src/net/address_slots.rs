//! How many connections come from one address.
//!
//! As on the porch, devices enter up to the limit, and some more may wait to say who they
//! are: one whose older connection is half open takes that one's place.

use super::admission::beyond;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// The connections of one listener by address. Clones share them.
#[derive(Debug, Clone)]
pub struct Addresses(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    visits: Mutex<HashMap<IpAddr, Count>>,
}

#[derive(Debug, Default)]
struct Count {
    there: usize,
    entered: usize,
}

/// One connection, given up when dropped.
#[derive(Debug)]
pub struct Visit {
    addresses: Addresses,
    address: IpAddr,
    entered: bool,
}

impl Addresses {
    /// Lets `max` devices of each address in.
    pub fn new(max: usize) -> Addresses {
        Addresses(Arc::new(Inner { max, visits: Mutex::default() }))
    }

    /// A connection came; `None` if too many of its address are there.
    pub fn arrive(&self, address: IpAddr) -> Option<Visit> {
        let address = address.to_canonical();
        let mut visits = self.0.visits.lock();
        let count = visits.entry(address).or_default();
        if count.there >= self.0.max.saturating_add(beyond(self.0.max)) {
            return None;
        }
        count.there += 1;
        Some(Visit { addresses: self.clone(), address, entered: false })
    }
}

impl Visit {
    /// Lets the device in, in the place of its older connection if `takes_over`. False if
    /// the limit is reached.
    pub fn enter(&mut self, takes_over: bool) -> bool {
        let mut visits = self.addresses.0.visits.lock();
        let Some(count) = visits.get_mut(&self.address).filter(|_| !self.entered) else { return true };
        self.entered = count.entered < self.addresses.0.max || takes_over;
        count.entered += usize::from(self.entered);
        self.entered
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut visits = self.addresses.0.visits.lock();
        if let Some(count) = visits.get_mut(&self.address) {
            count.there -= 1;
            count.entered -= usize::from(self.entered);
            if count.there == 0 {
                visits.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> IpAddr {
        address.parse().expect("an address")
    }

    #[test]
    fn each_address_has_its_own_places_and_nothing_is_kept_of_who_left() {
        let addresses = Addresses::new(2);
        let arrive = |address| addresses.arrive(from(address));
        let mut all: Vec<_> = (0..3).map(|_| arrive("192.0.2.1").expect("a place")).collect();
        assert!(arrive("192.0.2.1").is_none() && arrive("::ffff:192.0.2.1").is_none());
        let _other = arrive("192.0.2.2").expect("another address");
        assert_eq!(all.iter_mut().map(|visit| visit.enter(false)).collect::<Vec<_>>(), [true, true, false]);
        assert!(all[2].enter(true), "in its older connection's place");
        all.remove(0);
        all.remove(0);
        let mut next = arrive("192.0.2.1").expect("a place");
        assert!(next.enter(false) && next.enter(false));
        drop((all, next));
        assert_eq!(addresses.0.visits.lock().len(), 1);
    }
}
