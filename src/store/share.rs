//! A source's share of the log: how it appends, and waits for room.

use super::shared::Shared;
use super::tail::high_water::HighWater;
use super::tail::room::Waiter;
use crate::model::Batch;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// There is no room for this batch now: wait for some, then try once more.
#[derive(Debug)]
pub struct Saturated(pub Batch);

/// A source's share of the log: a device with all its sub-devices, on whatever link. While
/// room is short, it is granted to shares in turn, see [`crate::fair_queue`]. What was granted
/// and is not used, or what is waited for, is given up with the share.
pub struct Share {
    shared: Arc<Shared>,
    waiter: Arc<Waiter>,
}

impl Share {
    pub(super) fn new(shared: Arc<Shared>) -> Share {
        Share { shared, waiter: Arc::default() }
    }

    /// As [`super::Log::append`], but for one that waits in its own place, by
    /// [`Share::wait_for`].
    ///
    /// # Errors
    /// [`Saturated`] with the batch: nothing of it was taken over.
    pub fn append(&self, high_water: Option<&Arc<HighWater>>, batch: Batch) -> Result<(), Saturated> {
        append(&self.shared, &self.waiter, high_water, batch)
    }

    /// Waits for room for so many bytes of batches from now on, see [`Share::room`].
    pub fn wait_for(&self, bytes: usize) {
        wait_for(&self.shared, &self.waiter, bytes);
    }

    /// Whether room is still waited for.
    pub fn is_waiting(&self) -> bool {
        self.waiter.is_waiting()
    }

    /// Whether it was granted room, and has not used all of it.
    pub fn has_grant(&self) -> bool {
        self.waiter.has_grant()
    }

    /// Waits until what was waited for is granted. Cancel-safe: what was granted is kept for
    /// [`Share::append`].
    pub fn room(&self) -> impl Future<Output = ()> + Send + use<> {
        let (shared, waiter) = (self.shared.clone(), self.waiter.clone());
        async move { room(&shared, &waiter).await }
    }

    /// Gives up what is waited for, and what is left of what was granted.
    pub fn release(&self) {
        if !self.waiter.is_idle() {
            let now = self.shared.clock.now().monotonic;
            let mut state = self.shared.state.lock();
            state.room.release(&self.waiter);
            self.shared.serve(&mut state, now);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

pub(super) fn append(
    shared: &Shared,
    waiter: &Waiter,
    high_water: Option<&Arc<HighWater>>,
    mut batch: Batch,
) -> Result<(), Saturated> {
    let now = shared.clock.now().monotonic;
    let mut guard = shared.state.lock();
    let state = &mut *guard;
    if state.close {
        return Err(Saturated(batch));
    }
    if let Some(high_water) = high_water {
        let accepted = high_water.accepted();
        let known = batch.readings.iter().take_while(|reading| reading.origin_seq <= accepted).count();
        if known > 0 {
            batch.readings.drain(..known);
            shared.metrics.readings_duplicate.inc_by(known as u64);
        }
    }
    let Some(last) = batch.readings.last().map(|reading| reading.origin_seq) else { return Ok(()) };
    let basis = batch.basis;
    let (bytes, channels) = waiter.memory(&batch);
    let refused = match state.room.may_append(waiter, bytes, &mut state.tail, now) {
        true => state.tail.append(batch, bytes, high_water, now).err(),
        false => Some(batch),
    };
    if let Some(batch) = refused {
        state.wake(&shared.due);
        return Err(Saturated(batch));
    }
    state.room.appended(waiter, bytes);
    if let Some(channels) = channels {
        waiter.remember(channels);
    }
    state.boots.appended(basis);
    if let Some(high_water) = high_water {
        high_water.accept(last);
    }
    let wake = now + state.tail.policy().commit_within < state.sleeping_until || state.tail.segment_is_full();
    if wake && !state.sleeping_until.is_zero() {
        state.sleeping_until = Duration::ZERO;
        shared.due.notify_one();
    }
    shared.show(state.tail.visible());
    let given_way = state.tail.take_given_way();
    drop(guard);
    if given_way > 0 {
        shared.metrics.store_history_lost.inc_by(given_way);
        shared.announce(&[]);
    }
    Ok(())
}

pub(super) fn wait_for(shared: &Shared, waiter: &Arc<Waiter>, bytes: usize) {
    let now = shared.clock.now().monotonic;
    let mut state = shared.state.lock();
    state.room.wait(waiter, bytes);
    // Some may have been left meanwhile.
    shared.serve(&mut state, now);
}

pub(super) async fn room(shared: &Shared, waiter: &Waiter) {
    loop {
        let mut woken = std::pin::pin!(waiter.woken());
        woken.as_mut().enable();
        if !waiter.is_waiting() {
            return;
        }
        let look_again = {
            let now = shared.clock.now().monotonic;
            let mut state = shared.state.lock();
            // History may give way by now.
            shared.serve(&mut state, now);
            state.tail.look_again(now)
        };
        if !waiter.is_waiting() {
            return;
        }
        let _ = timeout(look_again, woken).await;
    }
}
