//! What of a device's session the log has.

use crate::model::DeviceId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// How far one session of one device has come: what was accepted, and what of it
/// is settled and may be acknowledged.
#[derive(Debug)]
pub struct Mark {
    device: DeviceId,
    session: u64,
    /// Written under the log's lock only.
    accepted: AtomicU64,
    settled: AtomicU64,
    moved: Notify,
}

impl Mark {
    /// A session of which everything up to `settled` is settled.
    pub(in crate::store) fn new(device: DeviceId, session: u64, settled: u64) -> Arc<Mark> {
        Arc::new(Mark {
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

    /// Waits until [`Mark::settled`] is above `seen`, and returns it. Cancel-safe.
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

    /// Wakes whoever waits in [`Mark::settled_after`].
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
pub(in crate::store) struct Marks {
    known: HashMap<DeviceId, (u64, Arc<Mark>)>,
    /// Devices by when their marks were used.
    order: BTreeMap<u64, DeviceId>,
    uses: u64,
    most: usize,
}

/// Marks that are looked at to forget one: more than one, so that none is left over.
const LOOKED_AT: usize = 16;

impl Marks {
    /// Remembers so many, and those in use beyond.
    pub fn new(most: usize) -> Marks {
        Marks { known: HashMap::new(), order: BTreeMap::new(), uses: 0, most }
    }

    /// The mark of a device's session; of a new one it begins at 0.
    pub fn of(&mut self, device: &DeviceId, session: u64) -> Arc<Mark> {
        let known = self.known.get(device).map(|(_, mark)| mark).filter(|mark| mark.session() == session);
        let mark = known.cloned().unwrap_or_else(|| Mark::new(device.clone(), session, 0));
        self.used(mark.clone());
        self.forget();
        mark
    }

    /// A mark is in use now, in the place of an older one of its device.
    pub fn used(&mut self, mark: Arc<Mark>) {
        self.uses += 1;
        self.order.insert(self.uses, mark.device().clone());
        if let Some((before, _)) = self.known.insert(mark.device().clone(), (self.uses, mark)) {
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
            if let Some((_, mark)) = oldest
                && Arc::strong_count(&mark) > 1
            {
                self.used(mark);
            }
        }
    }

    /// Devices whose marks somebody holds.
    pub fn in_use(&self) -> HashSet<DeviceId> {
        let in_use = self.known.values().filter(|(_, mark)| Arc::strong_count(mark) > 1);
        in_use.map(|(_, mark)| mark.device().clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_that_was_away_for_longest_is_forgotten_and_no_session_that_is_alive() {
        let mut marks = Marks::new(3);
        let device = |n: u64| DeviceId::new(&format!("d{n}")).expect("a valid name");
        let alive = marks.of(&device(0), 7);
        alive.settle(5);
        for n in 1..=2 {
            marks.of(&device(n), 1).settle(n);
        }
        assert_eq!(marks.of(&device(1), 1).settled(), 1, "it came again");
        for n in 3..=100 {
            marks.of(&device(n), 1).settle(n);
            assert!(marks.known.len() <= 3 && marks.order.len() == marks.known.len());
            if n == 3 {
                assert!(!marks.known.contains_key(&device(2)) && marks.known.contains_key(&device(1)));
            }
        }
        assert_eq!(marks.in_use(), [device(0)].into());
        assert_eq!(marks.of(&device(0), 7).settled(), 5);
        let held: Vec<_> = (200..300).map(|n| marks.of(&device(n), 1)).collect();
        assert_eq!(marks.in_use().len(), 101, "what is in use is kept beyond");
        drop((alive, held));
        for n in 300..420 {
            marks.of(&device(n), 1);
        }
        assert_eq!((marks.known.len(), marks.order.len()), (3, 3));
    }
}
