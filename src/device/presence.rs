//! Who is there, who was, and what of it is worth telling. Pure.
//!
//! A device's state changes at once; the change is *told* (upstream, in the audit trail)
//! when it has lasted: arrivals at once, departures and silence after a short delay in which
//! the device may come back, changes of a device that flaps only when it has calmed down.
//! What changed and changed back is not told but counted, and shows nowhere afterwards.
//!
//! What a gateway that starts anew knows of its devices is what was told before. Those
//! that were there have some time to come back before they count as offline, so that a
//! restart looks like nothing at all. While the gateway stood still devices could not be
//! heard either: those that were lost over that have time to come back, too.

mod known;
mod moment;

use crate::clock::Now;
use crate::model::{Cause, DeviceId, DeviceStatus, Presence};
use crate::store::MAX_FORGOTTEN;
use known::{Announced, FLAPPING, Known};
use moment::Moment;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// When changes are told, and of how many devices.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// From a departure, or silence, until it is told.
    pub offline_delay: Duration,
    /// How long the state of a flapping device must last before it is told.
    pub flap_damping: Duration,
    /// How long after the gateway's start its devices may take to come back.
    pub return_within: Duration,
    /// Devices known, sub-devices included.
    pub max_known: usize,
}

/// After a pause of the gateway, devices have no longer than this to come back.
const MAX_GRACE: Duration = Duration::from_secs(60);

/// Every device seen, and what of it is to be told.
#[derive(Debug)]
pub struct PresenceTable {
    rules: Rules,
    /// In a table of pointers: of a table a part is empty.
    known: HashMap<DeviceId, Box<Known>>,
    /// When to look at whom.
    due: BTreeSet<(Duration, DeviceId)>,
    /// The order in which devices' states were told last.
    told: BTreeMap<u64, DeviceId>,
    version: u64,
    /// Versions of devices that are known no more.
    forgotten: BTreeSet<u64>,
    /// Of those, the ones since something was told.
    newly_forgotten: Vec<DeviceId>,
    /// Until then what devices do may be because the gateway stood still.
    grace_until: Duration,
    /// Whether the wall clock was believed when it was looked at last.
    trusted: bool,
}

/// As many devices are known as there may be, and all of them are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceFull;

/// What is to be told at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PresenceUpdates {
    pub changes: Vec<DeviceStatus>,
    /// Devices that are known no more.
    pub forgotten: Vec<DeviceId>,
}

/// Something of a device to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum PresenceUpdate {
    Status(Box<DeviceStatus>),
    /// The device is known no more.
    Forgotten(DeviceId),
}

/// A device comes.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub link: Arc<str>,
    pub firmware: Option<Arc<str>>,
    pub reason: Cause,
}

impl PresenceTable {
    pub fn new(rules: Rules) -> PresenceTable {
        PresenceTable {
            rules,
            known: HashMap::new(),
            due: BTreeSet::new(),
            told: BTreeMap::new(),
            version: 0,
            forgotten: BTreeSet::new(),
            newly_forgotten: Vec::new(),
            grace_until: Duration::ZERO,
            trusted: false,
        }
    }

    /// Takes over what an earlier life of the gateway had told: the last word on devices,
    /// and which of them are known no more.
    pub fn restore(&mut self, mut statuses: Vec<DeviceStatus>, forgotten: Vec<DeviceId>, now: Now) {
        let at = now.monotonic;
        // Where fewer may be known than before, those that are gone for longest are forgotten.
        statuses.sort_by_key(|status| (status.state == Presence::Offline, std::cmp::Reverse(status.since)));
        let surplus = statuses.split_off(self.rules.max_known.min(statuses.len()));
        for status in statuses {
            let was_there = status.state != Presence::Offline;
            let since = Moment::before(status.since, status.time_trusted);
            let told = Some(Announced {
                state: status.state,
                reason: status.reason,
                flapping: status.flapping,
                since,
                link: status.link.clone(),
                firmware: status.firmware.clone(),
            });
            let device = status.device;
            self.version += 1;
            self.told.insert(self.version, device.clone());
            let known = Known {
                state: if was_there { Presence::Offline } else { status.state },
                reason: if was_there { Cause::GatewayRestarted } else { status.reason },
                since: if was_there { Moment::here(now) } else { since },
                seen: Moment::before(status.last_seen, status.time_trusted),
                link: status.link,
                firmware: status.firmware,
                flaps: status.flaps,
                heat: 0.0,
                heated: at,
                told,
                version: self.version,
                due: None,
            };
            self.known.insert(device.clone(), Box::new(known));
            let calms = status.flapping.then_some(at + self.rules.flap_damping);
            self.look_at(&device, if was_there { Some(at + self.rules.return_within) } else { calms });
        }
        for device in forgotten {
            self.note_forgotten(device);
        }
        for status in surplus {
            self.newly_forgotten.push(status.device.clone());
            self.note_forgotten(status.device);
        }
    }

    /// The gateway did not listen for a while: all that has to last has to last for `by`
    /// longer, and those that were lost meanwhile have time to come back.
    pub fn excuse(&mut self, by: Duration, at: Duration) {
        self.grace_until = at + by.min(MAX_GRACE);
        for (due, device) in std::mem::take(&mut self.due) {
            if let Some(known) = self.known.get_mut(&device) {
                known.due = Some(due + by);
            }
            self.due.insert((due + by, device));
        }
    }

    /// Times that were taken while the clock could not be believed are put right as soon as
    /// it can, and so is what was told with them.
    /// True if anything was told anew.
    pub fn believe(&mut self, now: Now) -> bool {
        if std::mem::replace(&mut self.trusted, now.trusted) || !now.trusted {
            return false;
        }
        let mut corrected = Vec::new();
        for (device, known) in &mut self.known {
            known.since.correct(now);
            known.seen.correct(now);
            if known.told.as_mut().is_some_and(|told| told.since.correct(now)) {
                corrected.push((known.version, device.clone()));
            }
        }
        corrected.sort_unstable();
        corrected.iter().for_each(|(_, device)| self.give_version(device));
        !corrected.is_empty()
    }

    /// The device is there.
    ///
    /// # Errors
    /// If there is no room for another device.
    pub fn arrived(&mut self, device: &DeviceId, arrival: Arrival, now: Now) -> Result<(), PresenceFull> {
        let Arrival { link, firmware, reason } = arrival;
        if !self.known.contains_key(device) {
            self.make_room()?;
            let known = Known {
                state: Presence::Offline,
                reason,
                since: Moment::here(now),
                seen: Moment::here(now),
                link: link.clone(),
                firmware: None,
                flaps: 0,
                heat: 0.0,
                heated: now.monotonic,
                told: None,
                version: 0,
                due: None,
            };
            self.known.insert(device.clone(), Box::new(known));
        }
        if let Some(known) = self.known.get_mut(device) {
            known.link = link;
            known.firmware = firmware.or(known.firmware.take());
            known.seen = Moment::here(now);
            if known.state != Presence::Offline && reason == Cause::TakenOver {
                known.flap(now.monotonic, self.grace_until);
            }
        }
        self.change(device, Presence::Online, reason, now);
        Ok(())
    }

    /// The device is gone, and was heard last at `seen`, if that is news.
    pub fn left(&mut self, device: &DeviceId, reason: Cause, seen: Option<Duration>, now: Now) {
        let Some(known) = self.known.get_mut(device) else { return };
        known.seen = seen.map_or(known.seen, |seen| known.seen.unless_at(seen, now));
        if known.state != Presence::Offline && reason != Cause::GatewayStopping {
            known.flap(now.monotonic, self.grace_until);
        }
        self.change(device, Presence::Offline, reason, now);
    }

    /// The device, whose session goes on, is silent, or is heard again.
    pub fn silent(&mut self, device: &DeviceId, silent: bool, now: Now) {
        let (state, reason) = if silent { (Presence::Idle, Cause::Silent) } else { (Presence::Online, Cause::Heard) };
        if self.known.get(device).is_some_and(|known| known.state != Presence::Offline) {
            self.change(device, state, reason, now);
        }
    }

    /// The device was heard at `at`.
    pub fn heard(&mut self, device: &DeviceId, at: Duration, now: Now) {
        if let Some(known) = self.known.get_mut(device) {
            known.seen = known.seen.unless_at(at, now);
        }
    }

    fn change(&mut self, device: &DeviceId, state: Presence, reason: Cause, now: Now) {
        let (rules, at) = (self.rules, now.monotonic);
        let Some(known) = self.known.get_mut(device) else { return };
        if known.state != state {
            known.since = Moment::here(now);
        }
        (known.state, known.reason) = (state, reason);
        let flapping = known.heat(at) >= FLAPPING;
        let due = match &known.told {
            // Nobody asks how things are with a gateway that stops.
            _ if reason == Cause::GatewayStopping => None,
            Some(told) if !told.flapping && flapping => Some(at),
            Some(told) if told.flapping => Some(at + rules.flap_damping),
            Some(told) if told.state == state => {
                // It was never anything else. Only where it is connected now may be news.
                known.since = told.since;
                let moved = told.link != known.link || told.firmware != known.firmware;
                if !moved {
                    known.reason = told.reason;
                }
                moved.then_some(at)
            }
            _ if state != Presence::Online && reason != Cause::Goodbye => {
                Some(at.max(self.grace_until) + rules.offline_delay)
            }
            _ => Some(at),
        };
        self.look_at(device, due);
    }

    /// Has the device looked at when it is `due`, and at no other time.
    fn look_at(&mut self, device: &DeviceId, due: Option<Duration>) {
        let Some(known) = self.known.get_mut(device) else { return };
        if let Some(before) = std::mem::replace(&mut known.due, due) {
            self.due.remove(&(before, device.clone()));
        }
        if let Some(due) = due {
            self.due.insert((due, device.clone()));
        }
    }

    /// When something is to be told next.
    pub fn due(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    /// What is to be told now; at most `most`, the rest next time.
    pub fn tell(&mut self, now: Now, most: usize) -> PresenceUpdates {
        let forgotten = std::mem::take(&mut self.newly_forgotten);
        let mut changes = Vec::new();
        while changes.len() < most
            && self.due.first().is_some_and(|(due, _)| *due <= now.monotonic)
            && let Some((_, device)) = self.due.pop_first()
        {
            let Some(known) = self.known.get_mut(&device) else { continue };
            known.due = None;
            let calm = known.told.as_ref().is_some_and(|told| told.flapping);
            let flapping = !calm && known.heat(now.monotonic) >= FLAPPING;
            if calm {
                known.heat = 0.0;
            }
            if let Some(told) = known.told.as_ref().filter(|told| told.says_the_same(known, flapping)) {
                // It flapped when it was to be looked at, and has calmed down since.
                (known.since, known.reason) = (told.since, told.reason);
                continue;
            }
            known.told = Some(Announced {
                state: known.state,
                reason: known.reason,
                flapping,
                since: known.since,
                link: known.link.clone(),
                firmware: known.firmware.clone(),
            });
            if flapping {
                // It is told again when it has calmed down.
                self.look_at(&device, Some(now.monotonic + self.rules.flap_damping));
            }
            self.give_version(&device);
            changes.extend(self.status(&device));
        }
        PresenceUpdates { changes, forgotten }
    }

    /// Of whom something is to be told at `at`.
    pub fn due_at(&self, at: Duration) -> impl Iterator<Item = &DeviceId> {
        self.due.iter().take_while(move |(due, _)| *due <= at).map(|(_, device)| device)
    }

    fn give_version(&mut self, device: &DeviceId) {
        let Some(known) = self.known.get_mut(device) else { return };
        self.told.remove(&known.version);
        self.version += 1;
        known.version = self.version;
        self.told.insert(self.version, device.clone());
    }

    /// The device whose state was told next after `version`, with its own version and
    /// what was told; what has changed since and is not told yet does not show.
    pub fn told_after(&self, version: u64) -> Option<(u64, PresenceUpdate)> {
        let (version, device) = self.told_next(version)?;
        let told = match (self.status(device), self.known.get(device).and_then(|known| known.told.clone())) {
            (Some(status), Some(Announced { state, reason, flapping, since, link, firmware })) => {
                let time_trusted = since.is_trusted() && status.time_trusted;
                let since = since.on_the_wall();
                let said = DeviceStatus { state, reason, flapping, since, link, firmware, time_trusted, ..status };
                PresenceUpdate::Status(Box::new(said))
            }
            _ => PresenceUpdate::Forgotten(device.clone()),
        };
        Some((version, told))
    }

    /// The device whose state was told next after `version`, and the version of that.
    pub fn told_next(&self, version: u64) -> Option<(u64, &DeviceId)> {
        self.told.range(version + 1..).next().map(|(version, device)| (*version, device))
    }

    /// The version of the last of all that was told so far.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How things are with the device.
    pub fn status(&self, device: &DeviceId) -> Option<DeviceStatus> {
        let known = self.known.get(device)?;
        Some(DeviceStatus {
            device: device.clone(),
            state: known.state,
            reason: known.reason,
            since: known.since.on_the_wall(),
            last_seen: known.seen.on_the_wall(),
            time_trusted: known.since.is_trusted() && known.seen.is_trusted(),
            link: known.link.clone(),
            flaps: known.flaps,
            flapping: known.told.as_ref().is_some_and(|told| told.flapping),
            firmware: known.firmware.clone(),
        })
    }

    /// Every device known, in no order.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.known.keys()
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Forgets some of the devices that are gone for longest, if as many are known as may
    /// be: several at once, since looking for them takes its time.
    fn make_room(&mut self) -> Result<(), PresenceFull> {
        if self.known.len() < self.rules.max_known {
            return Ok(());
        }
        let gone = self.known.iter().filter(|(_, known)| known.state == Presence::Offline);
        let mut gone: Vec<_> = gone.map(|(device, known)| (known.since.order(), device.clone())).collect();
        gone.sort_unstable();
        gone.truncate((self.rules.max_known / 64).max(1));
        if gone.is_empty() {
            return Err(PresenceFull);
        }
        for (_, device) in gone {
            self.forget(device);
        }
        Ok(())
    }

    fn forget(&mut self, device: DeviceId) {
        self.look_at(&device, None);
        let Some(known) = self.known.remove(&device) else { return };
        self.told.remove(&known.version);
        if known.told.is_some() {
            self.newly_forgotten.push(device.clone());
            self.note_forgotten(device);
        }
    }

    /// Has told that a device is known no more.
    fn note_forgotten(&mut self, device: DeviceId) {
        self.version += 1;
        self.told.insert(self.version, device);
        self.forgotten.insert(self.version);
        while self.forgotten.len() > MAX_FORGOTTEN
            && let Some(version) = self.forgotten.pop_first()
        {
            self.told.remove(&version);
        }
    }
}

#[cfg(test)]
mod tests;
