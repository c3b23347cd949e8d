//! How many connections come from one address.
//!
//! As in [`admission`](super::admission), devices are admitted up to the limit, and there are some
//! slots beyond it: a device whose older connection is half open takes that one's slot.

use super::admission::headroom;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// The slots of one listener for each address. Clones share them.
#[derive(Debug, Clone)]
pub struct AddressSlots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    addresses: Mutex<HashMap<IpAddr, Count>>,
}

#[derive(Debug, Default)]
struct Count {
    connections: usize,
    admitted: usize,
}

/// The slot of one connection among those of its address, given back when dropped.
#[derive(Debug)]
pub struct AddressSlot {
    slots: AddressSlots,
    address: IpAddr,
    admitted: bool,
}

impl AddressSlots {
    /// Admits `max` devices of each address.
    pub fn new(max: usize) -> AddressSlots {
        AddressSlots(Arc::new(Inner { max, addresses: Mutex::default() }))
    }

    /// Takes a slot for a new connection; `None` if there are too many of its address.
    pub fn claim(&self, address: IpAddr) -> Option<AddressSlot> {
        let address = address.to_canonical();
        let mut addresses = self.0.addresses.lock();
        let count = addresses.entry(address).or_default();
        if count.connections >= self.0.max.saturating_add(headroom(self.0.max)) {
            return None;
        }
        count.connections += 1;
        Some(AddressSlot { slots: self.clone(), address, admitted: false })
    }
}

impl AddressSlot {
    /// Admits the device, in place of its older connection if `takes_over`. False if the limit
    /// is reached.
    pub fn admit(&mut self, takes_over: bool) -> bool {
        let mut addresses = self.slots.0.addresses.lock();
        let Some(count) = addresses.get_mut(&self.address).filter(|_| !self.admitted) else { return true };
        self.admitted = count.admitted < self.slots.0.max || takes_over;
        count.admitted += usize::from(self.admitted);
        self.admitted
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut addresses = self.slots.0.addresses.lock();
        if let Some(count) = addresses.get_mut(&self.address) {
            count.connections -= 1;
            count.admitted -= usize::from(self.admitted);
            if count.connections == 0 {
                addresses.remove(&self.address);
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
    fn each_address_has_its_own_slots_and_nothing_is_kept_of_closed_connections() {
        let slots = AddressSlots::new(2);
        let claim = |address| slots.claim(from(address));
        let mut all: Vec<_> = (0..3).map(|_| claim("192.0.2.1").expect("a slot")).collect();
        assert!(claim("192.0.2.1").is_none() && claim("::ffff:192.0.2.1").is_none());
        let _other = claim("192.0.2.2").expect("another address");
        assert_eq!(all.iter_mut().map(|slot| slot.admit(false)).collect::<Vec<_>>(), [true, true, false]);
        assert!(all[2].admit(true), "in place of its older connection");
        all.remove(0);
        all.remove(0);
        let mut next = claim("192.0.2.1").expect("a slot");
        assert!(next.admit(false) && next.admit(false));
        drop((all, next));
        assert_eq!(slots.0.addresses.lock().len(), 1);
    }
}
