//! Which devices are connected, where, and what is known of all others.

mod connected;

pub use connected::{Call, Connected};

use super::duplicate_ids::{DuplicateId, Verdict};
use super::presence::{Arrival, PresenceFull, PresenceTable, PresenceUpdate, PresenceUpdates, Rules};
use crate::clock::{Clock, Excuses, Now};
use crate::config;
use crate::metrics::Metrics;
use crate::model::{Cause, CommandResult, DeviceCommand, DeviceId, DeviceStatus};
use crate::store::KnownDevices;
use connected::{Slot, Waiting};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

/// The devices and their sessions. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    table: Mutex<Table>,
    /// Somebody came or went.
    changes: watch::Sender<()>,
    /// Something is to be told earlier than expected.
    news: Notify,
    /// When that is expected, in milliseconds.
    expected: AtomicU64,
    /// The states that were told changed.
    told: watch::Sender<()>,
    answers: mpsc::Sender<Answer>,
    /// Until somebody wants them.
    answers_out: Mutex<Option<mpsc::Receiver<Answer>>>,
    max_subs: usize,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

struct Table {
    sessions: HashMap<DeviceId, Session>,
    duplicate_ids: HashMap<DeviceId, DuplicateId>,
    presence: PresenceTable,
    /// Up to this version everybody may hear what was told.
    published: u64,
    excuses: Excuses,
    /// Sessions so far.
    count: u64,
}

struct Session {
    slot: Arc<Slot>,
    number: u64,
    /// As the device names it.
    id: u64,
    link: Arc<str>,
    proven: bool,
    /// Devices behind it, and whether they are there.
    subs: BTreeMap<DeviceId, bool>,
}

/// A device introduces itself.
#[derive(Debug, Clone)]
pub struct Introduction<'a> {
    pub device: &'a DeviceId,
    pub session: u64,
    pub link: &'a Arc<str>,
    pub firmware: Option<Arc<str>>,
    /// Whether it proved to be the device.
    pub proven: bool,
    /// An older connection of the same device that was silent for longer may be dead.
    pub alive_within: Duration,
}

/// Why a device or a sub-device is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error("another device with this name is connected and alive; give each device a name of its own")]
    DuplicateId,
    #[error("a device with this name is connected and alive that proved to be it, which this link does not ask for")]
    Unproven,
    #[error("as many devices are known as this gateway allows; see [devices] max_known")]
    RegistryFull,
    #[error("more sub-devices are behind this hub than this gateway allows; see [devices] max_sub_devices")]
    TooManySubDevices,
}

/// What a device answered to a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The device whose session it came in: the command's, or its hub.
    pub from: DeviceId,
    pub result: CommandResult,
}

/// Answers that may wait to be taken; a device whose answer is lost is asked again.
const ANSWERS: usize = 256;
/// Names around which something happened that is remembered.
const MAX_DUPLICATE_IDS: usize = 1024;

impl Registry {
    pub fn new(config: &config::Devices, clock: Arc<dyn Clock>, metrics: Metrics) -> Registry {
        let rules = Rules {
            offline_delay: config.offline_delay,
            flap_damping: config.flap_damping,
            return_within: config.idle_timeout,
            max_known: config.max_known,
        };
        let table = Table {
            sessions: HashMap::new(),
            duplicate_ids: HashMap::new(),
            presence: PresenceTable::new(rules),
            published: 0,
            excuses: Excuses::from(clock.put_off()),
            count: 0,
        };
        let (answers, answers_out) = mpsc::channel(ANSWERS);
        Registry(Arc::new(Inner {
            table: Mutex::new(table),
            changes: watch::Sender::new(()),
            news: Notify::new(),
            expected: AtomicU64::new(0),
            told: watch::Sender::new(()),
            answers,
            answers_out: Mutex::new(Some(answers_out)),
            max_subs: config.max_sub_devices,
            clock,
            metrics,
        }))
    }

    /// Takes over what an earlier life of the gateway knew of devices.
    pub fn restore(&self, known: KnownDevices) {
        let (now, mut table) = self.look();
        table.presence.restore(known.statuses, known.forgotten, now);
        table.published = table.presence.version();
    }

    /// The table, and what time it is: what became of that since is taken note of.
    fn look(&self) -> (Now, MutexGuard<'_, Table>) {
        let mut table = self.0.table.lock();
        let now = self.0.clock.now();
        let excused = table.excuses.look(self.0.clock.put_off(), now.monotonic);
        if !excused.is_zero() {
            table.presence.excuse(excused, now.monotonic);
        }
        if table.presence.believe(now) {
            self.0.news.notify_one();
        }
        (now, table)
    }

    /// Whether the device has a connection.
    pub fn is_connected(&self, device: &DeviceId) -> bool {
        self.0.table.lock().sessions.contains_key(device)
    }

    /// The device connected. An older connection of the same device is told to go.
    ///
    /// # Errors
    /// If it cannot be let in.
    pub fn connect(&self, who: Introduction<'_>) -> Result<Connected, NotAdmitted> {
        let (now, mut table) = self.look();
        let slot = Arc::new(Slot::default());
        slot.hear(now.monotonic);
        self.admit(&mut table, &who, now.monotonic)?;
        let Introduction { device, session, link, firmware, proven, .. } = who;
        let older = table.sessions.get(device).map(|older| older.slot.clone());
        let reason = if older.is_some() { Cause::TakenOver } else { Cause::Connected };
        let arrival = Arrival { link: link.clone(), firmware, reason };
        table.presence.arrived(device, arrival, now).map_err(|PresenceFull| NotAdmitted::RegistryFull)?;
        table.count += 1;
        let new = Session {
            slot: slot.clone(),
            number: table.count,
            id: session,
            link: link.clone(),
            proven,
            subs: BTreeMap::new(),
        };
        let subs = table.sessions.insert(device.clone(), new).map(|older| older.subs).unwrap_or_default();
        table.subs_left(subs, Cause::HubOffline, now);
        self.show(&table);
        drop(table);
        if let Some(older) = older {
            older.replace();
        }
        self.0.changes.send_replace(());
        Ok(Connected::new(self.clone(), device.clone(), slot))
    }

    /// Whether a session may take the place of the one that is there.
    fn admit(&self, table: &mut Table, who: &Introduction<'_>, now: Duration) -> Result<(), NotAdmitted> {
        let (device, session) = (who.device, who.session);
        let Some(holder) = table.sessions.get(device) else { return Ok(()) };
        let heard = holder.slot.heard();
        let alive = table.excuses.silence(heard, now) <= who.alive_within;
        if alive && holder.proven && !who.proven {
            return Err(NotAdmitted::Unproven);
        }
        let holder = holder.id;
        if session == holder {
            return Ok(());
        }
        if table.duplicate_ids.len() >= MAX_DUPLICATE_IDS && !table.duplicate_ids.contains_key(device) {
            table.duplicate_ids.clear();
        }
        match table.duplicate_ids.entry(device.clone()).or_default().arrive(session, holder, alive, now) {
            Verdict::Admitted => Ok(()),
            Verdict::Refused(new) => {
                if new {
                    tracing::warn!(%device, "two devices use this name and throw each other out; one is kept out for a while: give one of them another name, \
                         the lines of both say their addresses");
                    self.0.metrics.devices_rivals.inc();
                }
                Err(NotAdmitted::DuplicateId)
            }
        }
    }

    /// The number of the session by which `device` can be reached, if it can: another
    /// one each time it connects. A sub-device is reached by its hub, unless that says
    /// that it cannot.
    pub fn connection(&self, device: &DeviceId) -> Option<u64> {
        self.0.table.lock().reachable(device).map(|session| session.number)
    }

    /// Sends a command to its device if that is reached by the session with this number. Returns
    /// whether it is.
    pub fn command(&self, connection: u64, command: DeviceCommand) -> bool {
        let table = self.0.table.lock();
        let Some(session) = table.reachable(&command.device).filter(|session| session.number == connection) else {
            return false;
        };
        let now = self.0.clock.now().monotonic;
        let until = command.expires_in.map(|left| now.saturating_add(left));
        session.slot.call(Waiting { command, until })
    }

    /// Changes whenever a device becomes reachable or unreachable.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }

    /// What devices answer to commands; for one receiver.
    pub fn answers(&self) -> Option<mpsc::Receiver<Answer>> {
        self.0.answers_out.lock().take()
    }

    /// How things are with one device.
    pub fn status(&self, device: &DeviceId) -> Option<DeviceStatus> {
        let (now, mut table) = self.look();
        table.hear(device, now);
        table.presence.status(device)
    }

    /// How things are with at most `limit` devices behind `after`, in the order of their
    /// names.
    pub fn statuses(&self, after: Option<&DeviceId>, limit: usize) -> Vec<DeviceStatus> {
        let (now, mut table) = self.look();
        let mut names: Vec<_> =
            table.presence.devices().filter(|device| after.is_none_or(|after| *device > after)).cloned().collect();
        if names.len() > limit {
            names.select_nth_unstable(limit);
            names.truncate(limit);
        }
        names.sort_unstable();
        names.iter().for_each(|device| table.hear(device, now));
        names.iter().filter_map(|device| table.presence.status(device)).collect()
    }

    /// Changes that are to be told now, at most `most`.
    pub fn tell(&self, most: usize) -> PresenceUpdates {
        let (now, mut table) = self.look();
        let due: Vec<_> = table.presence.due_at(now.monotonic).take(most).cloned().collect();
        due.iter().for_each(|device| table.hear(device, now));
        table.presence.tell(now, most)
    }

    /// The version of the last of all that was told so far.
    pub fn version(&self) -> u64 {
        self.0.table.lock().presence.version()
    }

    /// What was told up to this version is on disk: [`Registry::told_after`] passes it on.
    pub fn publish(&self, version: u64) {
        let mut table = self.0.table.lock();
        if version > table.published {
            table.published = version;
            drop(table);
            self.0.told.send_replace(());
        }
    }

    /// When something is to be told next, if anything is.
    pub fn due(&self) -> Option<Duration> {
        let table = self.0.table.lock();
        let due = table.presence.due();
        self.0.expected.store(due.map_or(u64::MAX, millis), Ordering::Relaxed);
        due
    }

    /// Waits until something may be to be told earlier than [`Registry::due`] said.
    /// Cancel-safe.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// The device whose state was told next after `version`, with its own version and what
    /// was told; what has changed since and is not told yet, or not on disk, does not show.
    pub fn told_after(&self, version: u64) -> Option<(u64, PresenceUpdate)> {
        let (now, mut table) = self.look();
        let (next, device) = table.presence.told_next(version)?;
        if next > table.published {
            return None;
        }
        let device = device.clone();
        table.hear(&device, now);
        table.presence.told_after(version)
    }

    /// Changes whenever something was told.
    pub fn told(&self) -> watch::Receiver<()> {
        self.0.told.subscribe()
    }

    /// Wakes whoever tells, if something is to be told earlier than that one expects.
    fn hurry(&self, table: &Table) {
        let due = table.presence.due().map_or(u64::MAX, millis);
        if due < self.0.expected.load(Ordering::Relaxed) {
            self.0.expected.store(due, Ordering::Relaxed);
            self.0.news.notify_one();
        }
    }

    fn show(&self, table: &Table) {
        self.hurry(table);
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.0.metrics.devices_connected.set(gauge(table.sessions.len()));
        self.0.metrics.devices_known.set(gauge(table.presence.len()));
    }
}

impl Table {
    fn reachable(&self, device: &DeviceId) -> Option<&Session> {
        match self.sessions.get(device) {
            Some(session) => Some(session),
            None => {
                let session = self.sessions.get(&device.hub())?;
                session.subs.get(device).copied().unwrap_or(true).then_some(session)
            }
        }
    }

    /// Brings up to date when a device was heard.
    fn hear(&mut self, device: &DeviceId, now: Now) {
        if let Some(session) = self.sessions.get(device) {
            let heard = session.slot.heard();
            self.presence.heard(device, heard, now);
        }
    }

    /// A hub is gone, and so are those behind it.
    fn subs_left(&mut self, subs: BTreeMap<DeviceId, bool>, cause: Cause, now: Now) {
        for (sub, there) in subs {
            if there {
                self.presence.left(&sub, cause, None, now);
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
