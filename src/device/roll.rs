//! Who is there, who was, and what of it is worth telling. Pure.
//!
//! A device's state changes at once; the change is *told* (upstream, in the audit trail)
//! when it has lasted: arrivals at once, departures and silence after a short delay in which
//! the device may come back, changes of a device that flaps only when it has calmed down.
//! What changed and changed back is not told but counted.
//!
//! What a gateway that starts anew knows of its devices is what was told before. Those
//! that were there have some time to come back before they count as offline, so that a
//! restart looks like nothing at all.

use crate::clock::Now;
use crate::model::{Cause, DeviceId, DeviceStatus, Presence, Timestamp};
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

/// Departures remembered halve in number in this time.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// So many departures remembered are flapping.
const FLAPPING: f32 = 3.0;
/// Devices that were forgotten and that not everybody may have heard of.
const MAX_FORGOTTEN: usize = 1024;

/// Every device seen, and what of it is to be told.
#[derive(Debug)]
pub struct Roll {
    rules: Rules,
    known: HashMap<DeviceId, Known>,
    /// When to look at whom.
    due: BTreeSet<(Duration, DeviceId)>,
    /// The order in which devices' states were told last.
    told: BTreeMap<u64, DeviceId>,
    version: u64,
    /// Versions of devices that are known no more.
    forgotten: BTreeSet<u64>,
    /// Of those, the ones since something was told.
    newly_forgotten: Vec<DeviceId>,
}

#[derive(Debug)]
struct Known {
    state: Presence,
    reason: Cause,
    since: Moment,
    seen: Moment,
    link: Arc<str>,
    firmware: Option<Arc<str>>,
    flaps: u64,
    /// Recent departures, decaying.
    heat: f32,
    heated: Duration,
    /// What was told of it, and as which version.
    told: Option<(Presence, Cause, bool)>,
    version: u64,
    due: Option<Duration>,
}

/// A time of this life, or one that an earlier life wrote down.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Here(Duration),
    Before(Timestamp),
}

/// As many devices are known as there may be, and all of them are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollFull;

/// What is to be told at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tellings {
    pub changes: Vec<DeviceStatus>,
    /// Devices that are known no more.
    pub forgotten: Vec<DeviceId>,
}

/// Something of a device to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
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

impl Roll {
    pub fn new(rules: Rules) -> Roll {
        Roll {
            rules,
            known: HashMap::new(),
            due: BTreeSet::new(),
            told: BTreeMap::new(),
            version: 0,
            forgotten: BTreeSet::new(),
            newly_forgotten: Vec::new(),
        }
    }

    /// Takes over what an earlier life of the gateway had told.
    pub fn restore(&mut self, statuses: Vec<DeviceStatus>, at: Duration) {
        for status in statuses.into_iter().take(self.rules.max_known) {
            let was_there = status.state != Presence::Offline;
            let told = Some((status.state, status.reason, status.flapping));
            let device = status.device;
            self.version += 1;
            self.told.insert(self.version, device.clone());
            let known = Known {
                state: if was_there { Presence::Offline } else { status.state },
                reason: if was_there { Cause::GatewayRestarted } else { status.reason },
                since: if was_there { Moment::Here(at) } else { Moment::Before(status.since) },
                seen: Moment::Before(status.last_seen),
                link: status.link,
                firmware: status.firmware,
                flaps: status.flaps,
                heat: 0.0,
                heated: at,
                told,
                version: self.version,
                due: None,
            };
            self.known.insert(device.clone(), known);
            let calms = status.flapping.then_some(at + self.rules.flap_damping);
            self.look_at(&device, if was_there { Some(at + self.rules.return_within) } else { calms });
        }
    }

    /// The device is there.
    ///
    /// # Errors
    /// If there is no room for another device.
    pub fn arrived(&mut self, device: &DeviceId, arrival: Arrival, at: Duration) -> Result<(), RollFull> {
        let Arrival { link, firmware, reason } = arrival;
        if !self.known.contains_key(device) {
            self.make_room()?;
            let known = Known {
                state: Presence::Offline,
                reason,
                since: Moment::Here(at),
                seen: Moment::Here(at),
                link: link.clone(),
                firmware: None,
                flaps: 0,
                heat: 0.0,
                heated: at,
                told: None,
                version: 0,
                due: None,
            };
            self.known.insert(device.clone(), known);
        }
        if let Some(known) = self.known.get_mut(device) {
            known.link = link;
            known.firmware = firmware.or(known.firmware.take());
            known.seen = Moment::Here(at);
            if known.state != Presence::Offline && reason == Cause::TakenOver {
                known.flap(at);
            }
        }
        self.change(device, Presence::Online, reason, at);
        Ok(())
    }

    /// The device is gone, and was heard last at `seen`, if that is news.
    pub fn left(&mut self, device: &DeviceId, reason: Cause, seen: Option<Duration>, at: Duration) {
        let Some(known) = self.known.get_mut(device) else { return };
        known.seen = seen.map_or(known.seen, Moment::Here);
        if known.state != Presence::Offline && reason != Cause::GatewayStopping {
            known.flap(at);
        }
        self.change(device, Presence::Offline, reason, at);
    }

    /// The device, whose session goes on, is silent, or is heard again.
    pub fn silent(&mut self, device: &DeviceId, silent: bool, at: Duration) {
        let (state, reason) = if silent { (Presence::Idle, Cause::Silent) } else { (Presence::Online, Cause::Heard) };
        if self.known.get(device).is_some_and(|known| known.state != Presence::Offline) {
            self.change(device, state, reason, at);
        }
    }

    /// The device was heard at `at`.
    pub fn heard(&mut self, device: &DeviceId, at: Duration) {
        if let Some(known) = self.known.get_mut(device) {
            known.seen = Moment::Here(at);
        }
    }

    fn change(&mut self, device: &DeviceId, state: Presence, reason: Cause, at: Duration) {
        let rules = self.rules;
        let Some(known) = self.known.get_mut(device) else { return };
        if known.state != state {
            known.since = Moment::Here(at);
        }
        (known.state, known.reason) = (state, reason);
        let told = known.told;
        let flapping = known.heat(at) >= FLAPPING;
        let due = match told {
            // Nobody asks how things are with a gateway that stops.
            _ if reason == Cause::GatewayStopping => None,
            Some((_, _, false)) if flapping => Some(at),
            Some((_, _, true)) => Some(at + rules.flap_damping),
            Some((before, ..)) if before == state => None,
            _ if state != Presence::Online && reason != Cause::Goodbye => Some(at + rules.offline_delay),
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
    pub fn tell(&mut self, now: Now, most: usize) -> Tellings {
        let forgotten = std::mem::take(&mut self.newly_forgotten);
        let mut changes = Vec::new();
        while changes.len() < most
            && self.due.first().is_some_and(|(due, _)| *due <= now.monotonic)
            && let Some((_, device)) = self.due.pop_first()
        {
            let Some(known) = self.known.get_mut(&device) else { continue };
            known.due = None;
            let calm = known.told.is_some_and(|(_, _, flapping)| flapping);
            let flapping = !calm && known.heat(now.monotonic) >= FLAPPING;
            if calm {
                known.heat = 0.0;
            }
            if known.told.is_some_and(|(state, _, before)| (state, before) == (known.state, flapping)) {
                continue;
            }
            known.told = Some((known.state, known.reason, flapping));
            if flapping {
                // It is told again when it has calmed down.
                self.look_at(&device, Some(now.monotonic + self.rules.flap_damping));
            }
            self.give_version(&device);
            changes.extend(self.status(&device, now));
        }
        Tellings { changes, forgotten }
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
    pub fn told_after(&self, version: u64, now: Now) -> Option<(u64, Told)> {
        let (version, device) = self.told.range(version + 1..).next()?;
        let told = match self.status(device, now) {
            Some(mut status) => {
                if let Some((state, reason, flapping)) = self.known.get(device).and_then(|known| known.told)
                    && (status.state, status.flapping) != (state, flapping)
                {
                    (status.state, status.reason, status.flapping) = (state, reason, flapping);
                }
                Told::Status(Box::new(status))
            }
            None => Told::Forgotten(device.clone()),
        };
        Some((*version, told))
    }

    /// The device whose state was told next after `version`.
    pub fn told_next(&self, version: u64) -> Option<&DeviceId> {
        self.told.range(version + 1..).next().map(|(_, device)| device)
    }

    /// How things are with the device.
    pub fn status(&self, device: &DeviceId, now: Now) -> Option<DeviceStatus> {
        let known = self.known.get(device)?;
        Some(DeviceStatus {
            device: device.clone(),
            state: known.state,
            reason: known.reason,
            since: known.since.on_the_wall(now),
            last_seen: known.seen.on_the_wall(now),
            time_trusted: now.trusted,
            link: known.link.clone(),
            flaps: known.flaps,
            flapping: known.told.is_some_and(|(_, _, flapping)| flapping),
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
    fn make_room(&mut self) -> Result<(), RollFull> {
        if self.known.len() < self.rules.max_known {
            return Ok(());
        }
        let gone = self.known.iter().filter(|(_, known)| known.state == Presence::Offline);
        let mut gone: Vec<_> = gone.map(|(device, known)| (known.since.order(), device.clone())).collect();
        gone.sort_unstable();
        gone.truncate((self.rules.max_known / 64).max(1));
        if gone.is_empty() {
            return Err(RollFull);
        }
        for (_, device) in gone {
            self.forget(device);
        }
        while self.forgotten.len() > MAX_FORGOTTEN
            && let Some(version) = self.forgotten.pop_first()
        {
            self.told.remove(&version);
        }
        Ok(())
    }

    fn forget(&mut self, device: DeviceId) {
        self.look_at(&device, None);
        let Some(known) = self.known.remove(&device) else { return };
        self.told.remove(&known.version);
        if known.told.is_some() {
            self.version += 1;
            self.told.insert(self.version, device.clone());
            self.forgotten.insert(self.version);
            self.newly_forgotten.push(device);
        }
    }
}

impl Known {
    /// It left, or was taken over.
    fn flap(&mut self, at: Duration) {
        self.heat = self.heat(at) + 1.0;
        self.heated = at;
        self.flaps += 1;
    }

    fn heat(&self, at: Duration) -> f32 {
        let halvings = at.saturating_sub(self.heated).as_secs_f32() / HALF_LIFE.as_secs_f32();
        self.heat * 0.5_f32.powf(halvings)
    }
}

impl Moment {
    fn on_the_wall(self, now: Now) -> Timestamp {
        match self {
            Moment::Before(time) => time,
            Moment::Here(at) => Timestamp(now.start().plus(at).0),
        }
    }

    /// What an earlier life wrote down comes first.
    fn order(self) -> (bool, i64) {
        match self {
            Moment::Before(time) => (false, time.0),
            Moment::Here(at) => (true, i64::try_from(at.as_micros()).unwrap_or(i64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests;
