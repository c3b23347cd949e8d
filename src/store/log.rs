//! The handle that links, sinks and the writer share.

use super::disk::headroom::DiskState;
use super::disk::small_tables::MAX_HIGH_WATERS;
use super::inbox::{self, Change, Commands, Record};
use super::presence::{self, PresenceEntry};
use super::share::{self, Saturated, Share};
use super::shared::Shared;
use super::state::State;
use super::tail::high_water::HighWater;
use crate::clock::Now;
use crate::model::{Batch, Command, CommandKey, DeviceId, DeviceStatus, Epoch, Epochs, Target};
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The reading connections of those who are no sink; sinks count up from 0.
const PRESENCE_READER: usize = usize::MAX;
const COMMAND_READER: usize = usize::MAX - 1;

/// The store-and-forward log. Cheap to clone; its methods never wait for the disk
/// unless they say so.
#[derive(Clone)]
pub struct Log {
    pub(super) shared: Arc<Shared>,
}

/// How the log is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHealth {
    /// Why the last commit failed, if it did.
    pub failure: Option<String>,
    /// For how long a commit has been due without being done.
    pub overdue: Duration,
    /// What room there is on the disk.
    pub disk: DiskState,
    /// What an operator should look at, though the log works.
    pub notes: Vec<String>,
}

impl Log {
    /// The high-water mark of a device's session. A session that the log knows resumes where
    /// it stood, also after a restart; a new one starts at 0.
    pub fn high_water(&self, device: &DeviceId, session: u64) -> Arc<HighWater> {
        self.shared.state.lock().high_waters.of(device, session)
    }

    /// Numbers the readings and takes them over; those that the session of `high_water`
    /// had sent before are dropped. Without it nothing is known to be a
    /// duplicate. The batch's device may be a sub-device of the one that `high_water` is of.
    ///
    /// # Errors
    /// [`Saturated`] with the batch: nothing of it was taken over.
    pub fn append(&self, high_water: Option<&Arc<HighWater>>, batch: Batch) -> Result<(), Saturated> {
        let appended = share::append(&self.shared, &self.shared.unnamed, high_water, batch);
        appended.inspect_err(|Saturated(batch)| share::wait_for(&self.shared, &self.shared.unnamed, batch.memory()))
    }

    /// A share of the log for one source; for readings that come one after another from
    /// wherever, [`Log::append`] has one of its own.
    pub fn share(&self) -> Share {
        Share::new(self.shared.clone())
    }

    /// Whether somebody waits for room: what is read from devices now may have to wait
    /// too. Cheap.
    pub fn is_saturated(&self) -> bool {
        self.shared.saturated.load(Ordering::Relaxed)
    }

    /// The clock can be believed, and showed `now`: readings that came before get their
    /// times from it, once and for all of this boot.
    pub fn synchronised(&self, now: Now) {
        let mut state = self.shared.state.lock();
        if state.boots.synchronised(now.start()) && !state.sleeping_until.is_zero() {
            state.sleeping_until = Duration::ZERO;
            self.shared.due.notify_one();
        }
    }

    /// Whether that was so already in this boot of the machine, maybe before a restart.
    pub fn is_synchronised(&self) -> bool {
        self.shared.state.lock().boots.is_synchronised()
    }

    /// Waits until there is room for what [`Log::append`] refused last. Cancel-safe.
    pub async fn room(&self) {
        share::room(&self.shared, &self.shared.unnamed).await;
    }

    /// Remembers the sessions of so many devices; of those not connected, the ones that
    /// were away for longest are forgotten. What a forgotten device sends again is not
    /// known for a duplicate.
    pub fn remember_devices(&self, most: usize) {
        self.shared.state.lock().high_waters.remember(most.clamp(1, MAX_HIGH_WATERS));
    }

    /// Writes everything that is not on disk and waits until it is, or until the
    /// attempt fails.
    ///
    /// # Errors
    /// Why it could not be written; it is still in memory then, and tried again.
    pub async fn flush(&self) -> Result<(), String> {
        loop {
            let mut committed = std::pin::pin!(self.shared.committed.notified());
            committed.as_mut().enable();
            {
                let mut state = self.shared.state.lock();
                if let Some(failure) = &state.failure {
                    return Err(failure.clone());
                }
                if state.tail.saved_upto().next() == state.tail.next() {
                    return Ok(());
                }
                state.flush = true;
            }
            self.shared.due.notify_one();
            committed.await;
        }
    }

    /// Asks the writer to write everything, note the clean stop, and end. Nothing
    /// may be appended afterwards.
    pub fn close(&self) {
        self.shared.state.lock().close = true;
        self.shared.due.notify_one();
    }

    /// The epoch that new readings are of.
    pub fn epoch(&self) -> Epoch {
        self.shared.epochs.current()
    }

    /// Which epoch each seq is of.
    pub fn epochs(&self) -> &Epochs {
        &self.shared.epochs
    }

    pub fn health(&self) -> LogHealth {
        let now = self.shared.clock.now().monotonic;
        let state = self.shared.state.lock();
        let overdue = match state.tail.due() {
            Some(due) => now.saturating_sub(due.max(state.last_progress)),
            None => Duration::ZERO,
        };
        let mut notes = self.shared.notes.clone();
        notes.extend(state.retired.iter().filter_map(|sink| state.waits_for(sink)));
        LogHealth { failure: state.failure.clone(), overdue, disk: state.disk, notes }
    }

    /// Whether there is room for [`Log::tell`]: while the disk cannot be written, that ends.
    pub fn may_tell(&self) -> bool {
        self.shared.state.lock().may_tell()
    }

    /// Has events, which are JSON objects, told upstream. They are written with the next
    /// commit, before the readings that are appended later.
    pub fn tell(&self, events: Vec<String>) {
        if events.is_empty() {
            return;
        }
        let mut state = self.shared.state.lock();
        events.into_iter().for_each(|event| state.notify(event));
        state.wake(&self.shared.due);
    }

    /// Has it written soon, and told as events, that these devices' presence changed, and
    /// before that, that those are known no more. Returns how many such calls there were,
    /// for [`Log::presence_written`].
    pub fn record_presence(&self, changes: Vec<DeviceStatus>, forgotten: Vec<DeviceId>) -> u64 {
        let mut state = self.shared.state.lock();
        state.presence_calls.0 += 1;
        let upto = state.presence_calls.0;
        state.presence.came(upto, changes, forgotten);
        state.wake(&self.shared.due);
        upto
    }

    /// Waits until what was told by so many calls of [`Log::record_presence`] is on disk. Cancel-safe.
    pub async fn presence_written(&self, count: u64) {
        self.once_committed(|state| (state.presence_calls.1 >= count).then_some(())).await;
    }

    /// Changes of presence, the newest first, of one device or of all, before the entry
    /// with id `before`; at most `limit`.
    ///
    /// # Errors
    /// If the log cannot be read; worth another try later.
    pub async fn presence_entries(
        &self,
        device: Option<DeviceId>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<PresenceEntry>> {
        self.shared.on_disk(PRESENCE_READER, move |db| presence::entries(db, device.as_ref(), before, limit)).await
    }

    /// What the last life left of commands; for the first who asks.
    pub fn take_commands(&self) -> Commands {
        self.shared.state.lock().inbox.take_left()
    }

    /// Remembers so many ended commands, or as many as a log of its size may, and none for
    /// longer.
    pub fn remember_commands(&self, count: usize, age: Duration) {
        self.shared.state.lock().inbox.remember(count, age);
    }

    /// Has changes written with the next commit, which is due at once. For one caller alone,
    /// which counts them: [`Log::commands_written`].
    pub fn change_commands(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.shared.state.lock();
        state.inbox.came(changes);
        state.wake(&self.shared.due);
    }

    /// Waits until more than `known` changes are on disk, counted since the log was
    /// opened, and says how many are. Cancel-safe.
    pub async fn commands_written(&self, known: u64) -> u64 {
        self.once_committed(|state| Some(state.inbox.written()).filter(|written| *written > known)).await
    }

    /// Waits until `find` finds something, now or after a commit. Cancel-safe.
    async fn once_committed<T>(&self, find: impl Fn(&State) -> Option<T>) -> T {
        loop {
            let mut committed = std::pin::pin!(self.shared.committed.notified());
            committed.as_mut().enable();
            let found = find(&self.shared.state.lock());
            if let Some(found) = found {
                return found;
            }
            committed.await;
        }
    }

    /// A command that has not ended, or is remembered.
    ///
    /// # Errors
    /// If the log cannot be read; worth another try later.
    pub async fn command(&self, key: &CommandKey) -> Result<Option<Record>> {
        let (device, id) = (inbox::column(&key.target).to_owned(), key.id.clone());
        self.shared.on_disk(COMMAND_READER, move |db| inbox::find(db, &device, id.as_str())).await
    }

    /// The commands of one device, or the gateway's own, that have not ended or are
    /// remembered as a whole: the newest first, at most `most`.
    ///
    /// # Errors
    /// If the log cannot be read; worth another try later.
    pub async fn commands(&self, target: &Target, most: u32) -> Result<Vec<Command>> {
        let device = inbox::column(target).to_owned();
        self.shared.on_disk(COMMAND_READER, move |db| inbox::list(db, &device, most)).await
    }

    /// Waits until the database turns out to be damaged. The log takes no more then,
    /// and recovers when it is opened again; what it did not settle, devices send again.
    /// Cancel-safe.
    pub async fn damaged(&self) {
        let mut damaged = std::pin::pin!(self.shared.damaged.notified());
        damaged.as_mut().enable();
        if !self.shared.state.lock().damaged {
            damaged.await;
        }
    }
}
