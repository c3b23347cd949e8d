//! A session's entry in the registry, and the calls between the two.

use super::{Answer, NotAdmitted, Registry, Table};
use crate::device::presence::{Arrival, PresenceFull};
use crate::metrics::ReasonLabel;
use crate::model::{Cause, CommandResult, DeviceCommand, DeviceId};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// What a session is asked to do.
#[derive(Debug, PartialEq)]
pub enum Call {
    /// The same device connected elsewhere.
    Replaced,
    Command(DeviceCommand),
}

/// A device's place in the registry, given up when dropped.
pub struct Connected {
    registry: Registry,
    device: DeviceId,
    slot: Arc<Slot>,
    cause: Cause,
    idle: bool,
}

/// Commands that may wait for one session.
pub(super) const CALLS: usize = 64;

/// What a session and the registry share.
#[derive(Default)]
pub(super) struct Slot {
    called: Notify,
    calls: Mutex<Calls>,
    /// When the device was heard last, in milliseconds.
    heard: AtomicU64,
}

#[derive(Default)]
struct Calls {
    replaced: bool,
    commands: VecDeque<Waiting>,
}

/// A command that waits until the device takes what it is sent.
#[derive(Debug)]
pub(super) struct Waiting {
    pub command: DeviceCommand,
    /// When it expires, on the monotonic clock.
    pub until: Option<Duration>,
}

impl Waiting {
    fn is_same(&self, other: &Waiting) -> bool {
        (&self.command.device, &self.command.id) == (&other.command.device, &other.command.id)
    }

    /// The command as it is at `now`, unless it is too late for it.
    fn still_wanted(self, now: Duration) -> Option<DeviceCommand> {
        let expires_in = self.until.map(|until| until.saturating_sub(now));
        let is_late = expires_in.is_some_and(|left| left.as_millis() == 0);
        (!is_late).then_some(DeviceCommand { expires_in, ..self.command })
    }
}

impl Slot {
    /// The device is heard.
    pub fn hear(&self, now: Duration) {
        self.heard.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When it was heard last.
    pub fn heard(&self) -> Duration {
        Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }

    /// Tells the session that the same device connected elsewhere.
    pub fn replace(&self) {
        self.calls.lock().replaced = true;
        self.called.notify_one();
    }

    /// Has the session hand a command over, if there is room. One that waits already is
    /// not put behind itself.
    pub fn call(&self, new: Waiting) -> bool {
        let mut calls = self.calls.lock();
        if calls.replaced {
            return false;
        }
        if calls.commands.iter().any(|waiting| waiting.is_same(&new)) {
            return true;
        }
        let room = calls.commands.len() < CALLS;
        if room {
            calls.commands.push_back(new);
            self.called.notify_one();
        }
        room
    }
}

impl Connected {
    pub(super) fn new(registry: Registry, device: DeviceId, slot: Arc<Slot>) -> Connected {
        Connected { registry, device, slot, cause: Cause::LinkLost, idle: false }
    }

    /// Waits until there is a call to take. Cancel-safe.
    pub fn called(&self) -> impl Future<Output = ()> + Send + use<> {
        let slot = self.slot.clone();
        async move { slot.called.notified().await }
    }

    /// What the session is asked to do next; no command unless there is `room`. A command that
    /// waited for room until it expired is dropped.
    pub fn take(&self, room: bool) -> Option<Call> {
        let mut calls = self.slot.calls.lock();
        if calls.replaced {
            return Some(Call::Replaced);
        }
        while room && let Some(waiting) = calls.commands.pop_front() {
            if calls.commands.is_empty() {
                calls.commands = VecDeque::new();
            }
            if let Some(command) = waiting.still_wanted(self.registry.0.clock.now().monotonic) {
                return Some(Call::Command(command));
            }
        }
        None
    }

    /// The device said something.
    pub fn heard(&self, now: Duration) {
        self.slot.hear(now);
    }

    /// The device is silent, or is heard again.
    pub fn silent(&mut self, silent: bool) {
        if std::mem::replace(&mut self.idle, silent) == silent {
            return;
        }
        let (now, mut table) = self.registry.look();
        if self.is_current(&table) {
            table.presence.silent(&self.device, silent, now);
        }
        self.registry.hurry(&table);
    }

    /// A device behind this one is there or not, or was heard.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn sub_device(&self, sub: &DeviceId, there: Option<bool>) -> Result<(), NotAdmitted> {
        let inner = &self.registry.0;
        let (now, mut table) = self.registry.look();
        let Table { sessions, presence, .. } = &mut *table;
        let Some(session) = sessions.get_mut(&self.device).filter(|session| Arc::ptr_eq(&session.slot, &self.slot))
        else {
            return Ok(());
        };
        let before = session.subs.get(sub).copied();
        if before.is_none() && session.subs.len() >= inner.max_subs {
            inner.metrics.devices_refused.get_or_create(&ReasonLabel { reason: "sub_devices" }).inc();
            return Err(NotAdmitted::TooManySubDevices);
        }
        let there = there.unwrap_or(true);
        if before == Some(there) {
            presence.heard(sub, now.monotonic, now);
            return Ok(());
        }
        if there {
            let reason = if before.is_some() { Cause::Hub } else { Cause::Connected };
            let arrival = Arrival { link: session.link.clone(), firmware: None, reason };
            presence.arrived(sub, arrival, now).map_err(|PresenceFull| NotAdmitted::RegistryFull)?;
        } else {
            presence.left(sub, Cause::Hub, None, now);
        }
        session.subs.insert(sub.clone(), there);
        self.registry.show(&table);
        drop(table);
        self.registry.0.changes.send_replace(());
        Ok(())
    }

    /// The device answered a command. An answer that finds no room is dropped: the device
    /// is asked again.
    pub fn answered(&self, result: CommandResult) {
        let answer = Answer { from: self.device.clone(), result };
        if self.registry.0.answers.try_send(answer).is_err() {
            tracing::debug!(device = %self.device, "a command's result found no room and was dropped");
        }
    }

    /// How it comes that the device is gone, once it is.
    pub fn because(&mut self, cause: Cause) {
        self.cause = cause;
    }

    fn is_current(&self, table: &Table) -> bool {
        table.sessions.get(&self.device).is_some_and(|session| Arc::ptr_eq(&session.slot, &self.slot))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let heard = self.slot.heard();
        let (now, mut table) = self.registry.look();
        if self.is_current(&table) {
            let subs = table.sessions.remove(&self.device).map(|session| session.subs).unwrap_or_default();
            table.presence.left(&self.device, self.cause, Some(heard), now);
            // A gateway that stops knows nothing of those behind it either.
            let cause = if self.cause == Cause::GatewayStopping { self.cause } else { Cause::HubOffline };
            table.subs_left(subs, cause, now);
        }
        self.registry.show(&table);
        drop(table);
        self.registry.0.changes.send_replace(());
    }
}
