//! What of a device's session the log has.

use crate::model::DeviceId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// How far one session of one device has come: what was accepted, and what of it
/// is settled and may be acknowledged.
#[derive(Debug)]
pub struct HighWater {
    device: DeviceId,
    session: u64,
    /// Written under the log's lock only.
    accepted: AtomicU64,
    settled: AtomicU64,
    moved: Notify,
}

impl HighWater {
    /// A session of which everything up to `settled` is settled.
    pub(in crate::store) fn new(device: DeviceId, session: u64, settled: u64) -> Arc<HighWater> {
        Arc::new(HighWater {
            device,
            session,
            accepted: AtomicU64::new(settled),
            settled: AtomicU64::new(settled),
            moved: Notify::new(),
        })
    }

    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    pub fn session(&self) -> u64 {
        self.session
    }

    /// The session's last seq that is settled, as are all before it; 0 if none.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// Waits until [`HighWater::settled`] is above `seen`, and returns it. Cancel-safe.
    pub async fn settled_after(&self, seen: u64) -> u64 {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            let settled = self.settled();
            if settled > seen {
                return settled;
            }
            moved.await;
        }
    }

    /// Wakes whoever waits in [`HighWater::settled_after`].
    pub(in crate::store) fn announce(&self) {
        self.moved.notify_waiters();
    }

    /// The session's last seq that the log took over.
    pub(in crate::store) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(in crate::store) fn accept(&self, seq: u64) {
        self.accepted.fetch_max(seq, Ordering::Relaxed);
    }

    /// Moves up to `seq`; false if it was there already.
    pub(in crate::store) fn settle(&self, seq: u64) -> bool {
        self.settled.fetch_max(seq, Ordering::AcqRel) < seq
    }
}

/// Each known device's newest session. The ones that were not used for longest are
/// forgotten first; one that somebody holds is in use.
#[derive(Debug)]
pub(in crate::store) struct HighWaters {
    known: HashMap<DeviceId, (u64, Arc<HighWater>)>,
    /// Devices by when their high-water marks were used.
    order: BTreeMap<u64, DeviceId>,
    uses: u64,
    most: usize,
}

/// High-water marks that are looked at to forget one: more than one, so that none is left over.
const LOOKED_AT: usize = 16;

impl HighWaters {
    /// Remembers so many, and those in use beyond.
    pub fn new(most: usize) -> HighWaters {
        HighWaters { known: HashMap::new(), order: BTreeMap::new(), uses: 0, most }
    }

    /// The high-water mark of a device's session; of a new one it begins at 0.
    pub fn of(&mut self, device: &DeviceId, session: u64) -> Arc<HighWater> {
        let known = self
            .known
            .get(device)
            .map(|(_, high_water)| high_water)
            .filter(|high_water| high_water.session() == session);
        let high_water = known.cloned().unwrap_or_else(|| HighWater::new(device.clone(), session, 0));
        self.used(high_water.clone());
        self.forget();
        high_water
    }

    /// A high-water mark is in use now, in the place of an older one of its device.
    pub fn used(&mut self, high_water: Arc<HighWater>) {
        self.uses += 1;
        self.order.insert(self.uses, high_water.device().clone());
        if let Some((before, _)) = self.known.insert(high_water.device().clone(), (self.uses, high_water)) {
            self.order.remove(&before);
        }
    }

    /// From now on so many are remembered.
    pub fn remember(&mut self, most: usize) {
        self.most = most;
        self.forget();
    }

    fn forget(&mut self) {
        for _ in 0..LOOKED_AT {
            if self.known.len() <= self.most {
                return;
            }
            let oldest = self.order.pop_first().and_then(|(_, device)| self.known.remove(&device));
            if let Some((_, high_water)) = oldest
                && Arc::strong_count(&high_water) > 1
            {
                self.used(high_water);
            }
        }
    }

    /// Devices whose high-water marks somebody holds.
    pub fn in_use(&self) -> HashSet<DeviceId> {
        let in_use = self.known.values().filter(|(_, high_water)| Arc::strong_count(high_water) > 1);
        in_use.map(|(_, high_water)| high_water.device().clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_that_was_away_for_longest_is_forgotten_and_no_session_that_is_alive() {
        let mut high_waters = HighWaters::new(3);
        let device = |n: u64| DeviceId::new(&format!("d{n}")).expect("a valid name");
        let alive = high_waters.of(&device(0), 7);
        alive.settle(5);
        for n in 1..=2 {
            high_waters.of(&device(n), 1).settle(n);
        }
        assert_eq!(high_waters.of(&device(1), 1).settled(), 1, "it came again");
        for n in 3..=100 {
            high_waters.of(&device(n), 1).settle(n);
            assert!(high_waters.known.len() <= 3 && high_waters.order.len() == high_waters.known.len());
            if n == 3 {
                assert!(!high_waters.known.contains_key(&device(2)) && high_waters.known.contains_key(&device(1)));
            }
        }
        assert_eq!(high_waters.in_use(), [device(0)].into());
        assert_eq!(high_waters.of(&device(0), 7).settled(), 5);
        let held: Vec<_> = (200..300).map(|n| high_waters.of(&device(n), 1)).collect();
        assert_eq!(high_waters.in_use().len(), 101, "what is in use is kept beyond");
        drop((alive, held));
        for n in 300..420 {
            high_waters.of(&device(n), 1);
        }
        assert_eq!((high_waters.known.len(), high_waters.order.len()), (3, 3));
    }
}
