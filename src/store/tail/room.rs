//! Room in the tail, granted in turn to those that wait for it. Pure, but that who was
//! granted some is woken.

use crate::fair_queue::{Account, FairQueue};
use crate::model::{Batch, Channels, Reading, channels_memory};
use crate::store::tail::Tail;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Larger lists of channels, in bytes, are not remembered: they would outlive their readings for as
/// long as their source is there, and no source has one in common from one batch to the next.
const MAX_REMEMBERED: usize = 32 << 10;

/// One that waits for room now and then. What it has is changed under the log's lock only.
#[derive(Debug, Default)]
pub(in crate::store) struct Waiter {
    account: Mutex<Account>,
    /// Bytes that it was granted, and has not used.
    granted: AtomicUsize,
    /// Whether it waits in the queue.
    waiting: AtomicBool,
    woken: Notify,
    /// The list of channels of its last reading that was appended, unless that is large. It stays
    /// in memory with this: no other list has its address.
    channels: Mutex<Option<Channels>>,
}

/// Who waits for room, and what was granted and is not used yet.
#[derive(Debug, Default)]
pub(in crate::store) struct Room {
    queue: FairQueue<Arc<Waiter>>,
    /// Bytes, over all.
    granted: usize,
}

impl Waiter {
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn has_grant(&self) -> bool {
        self.granted.load(Ordering::Relaxed) > 0
    }

    /// What a batch takes in memory, where a list of channels that its readings have in common
    /// with those before it counts with them; and its last list, if that is to be
    /// [remembered](Waiter::remember).
    pub fn memory(&self, batch: &Batch) -> (usize, Option<Channels>) {
        let known = self.channels.lock();
        let is_known = |list: &&Channels| known.as_ref().is_some_and(|known| Arc::ptr_eq(known, list));
        let first = batch.readings.first().map(Reading::channels).filter(is_known);
        let last = batch.readings.last().map(Reading::channels).filter(|last| !is_known(last));
        (batch.memory() - first.map_or(0, channels_memory), last.cloned())
    }

    /// A batch whose last list of channels this is was appended.
    pub fn remember(&self, channels: Channels) {
        *self.channels.lock() = Some(channels).filter(|list| channels_memory(list) <= MAX_REMEMBERED);
    }

    /// Whether it has nothing that is to be given back.
    pub fn is_idle(&self) -> bool {
        !self.is_waiting() && !self.has_grant()
    }

    /// Wakes it when it has been granted room.
    pub fn woken(&self) -> tokio::sync::futures::Notified<'_> {
        self.woken.notified()
    }
}

impl Room {
    /// Whether nobody waits.
    pub fn is_awaited(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether `waiter` may append so many bytes now. It may use what it was granted; without
    /// that it may take room that nobody waits for, or little of what is kept for such.
    pub fn may_append(&mut self, waiter: &Waiter, bytes: usize, tail: &mut Tail, now: Duration) -> bool {
        if waiter.granted.load(Ordering::Relaxed) >= bytes {
            return true;
        }
        let mut account = waiter.account.lock();
        let little = self.queue.is_little(&account, bytes);
        if self.queue.is_empty() {
            return tail.has_room(self.granted, bytes, little, now);
        }
        let takes = little && self.queue.little_goes_next() && tail.has_room(self.granted, bytes, true, now);
        if takes && !self.queue.is_waiting(&account) {
            self.queue.charge(&mut account, bytes);
        }
        takes
    }

    /// `waiter` appended so many bytes.
    pub fn appended(&mut self, waiter: &Waiter, bytes: usize) {
        let granted = waiter.granted.load(Ordering::Relaxed);
        if granted > 0 {
            let used = granted.min(bytes);
            waiter.granted.store(granted - used, Ordering::Relaxed);
            self.granted -= used;
        }
    }

    /// Has `waiter` wait for so many bytes; where it does so already, it keeps its place.
    pub fn wait(&mut self, waiter: &Arc<Waiter>, bytes: usize) {
        if !waiter.is_waiting() {
            self.give_back(waiter);
            self.queue.wait(&mut waiter.account.lock(), bytes, waiter.clone());
            waiter.waiting.store(true, Ordering::Relaxed);
        }
    }

    /// `waiter` needs nothing any more: neither what it waits for nor what it has left.
    pub fn release(&mut self, waiter: &Waiter) {
        if self.queue.cancel(&mut waiter.account.lock()) {
            waiter.waiting.store(false, Ordering::Relaxed);
        }
        self.give_back(waiter);
    }

    fn give_back(&mut self, waiter: &Waiter) {
        let left = waiter.granted.swap(0, Ordering::Relaxed);
        if left > 0 {
            self.granted -= left;
            self.queue.refund(&mut waiter.account.lock(), left);
        }
    }

    /// Grants what room there is, in turn, and wakes those that get it.
    pub fn serve(&mut self, tail: &mut Tail, now: Duration) {
        while let Some(head) = self.queue.head()
            && tail.has_room(self.granted, head.bytes, head.little, now)
            && let Some((bytes, waiter)) = self.queue.grant()
        {
            self.granted += bytes;
            waiter.granted.store(bytes, Ordering::Relaxed);
            waiter.waiting.store(false, Ordering::Relaxed);
            waiter.woken.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Basis, ChannelName, DeviceId, Timestamp, Value};

    #[test]
    fn a_list_of_channels_counts_once_for_the_readings_that_have_it_in_common() {
        let channels = |name: &str| -> Channels { [ChannelName::new(name).expect("a valid name")].as_slice().into() };
        let batch = |channels: &Channels| {
            let reading = Reading::new(1, Timestamp(0), channels.clone(), Box::new([Value::Boolean(true)]));
            let device = DeviceId::new("d").expect("a valid name");
            Batch { device, session: None, basis: Basis::Wall, readings: vec![reading.expect("one of each")] }
        };
        let (waiter, one, other) = (Waiter::default(), channels("one"), channels("other"));
        let whole = batch(&one).memory();
        assert_eq!(waiter.memory(&batch(&one)), (whole, Some(one.clone())), "none is known");
        waiter.remember(one.clone());
        assert_eq!(waiter.memory(&batch(&one)), (whole - channels_memory(&one), None));
        let (bytes, _) = waiter.memory(&batch(&channels("one")));
        assert_eq!(bytes, whole, "another one that says the same");
        assert_eq!(waiter.memory(&batch(&other)), (batch(&other).memory(), Some(other.clone())));
        waiter.remember(other.clone());
        assert_eq!(waiter.memory(&batch(&one)).0, whole, "only the last is known");
    }
}
