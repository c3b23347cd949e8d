//! What becomes of each command. Pure: no clock, disk or device in it.
//!
//! 1. [`Queue::receive`] takes a command over and asks for it to be written. If its device
//!    is there and has nothing else to do, that it was sent is written along.
//! 2. [`Queue::written`] says what is on disk: from then on the sender may be told.
//! 3. A device has one command at a time, in the order in which they came. Before it gets
//!    one it is on disk that it may have got it ([`Command::sent`]): a command is told to
//!    have expired only if no life of the gateway can have handed it over.
//! 4. It gets it again after a while, and when it connects again, until it answers
//!    ([`Queue::answered`]) or the command's time is over ([`Queue::look`]).
//! 5. How it ended is written together with the event that says so, and the next one's
//!    turn has come.
//!
//! A crash between any two steps is a restart from what was written. What the gateway itself
//! was to do is not done again then: it may be why there was a crash.

mod actions;
mod live;
mod start;

pub use actions::{Action, Dispatch, Receipt, Refusal, Rules};

use super::deadline;
use super::request::CommandRequest;
use super::result;
use crate::clock::Now;
use crate::model::{
    BootId, Command, CommandKey, CommandResult, CommandState, DeviceId, Ending, Moment, Source, Target, Timestamp, glob,
};
use crate::store::Change;
use live::{Live, Phase, size};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// The commands that have not ended, and how others did.
pub struct Queue {
    rules: Rules,
    enabled: bool,
    boot: BootId,
    started: Duration,
    live: BTreeMap<u64, Live>,
    keys: HashMap<CommandKey, u64>,
    /// The places of each device's commands, in order. Devices have an order, too: what
    /// is done for several at a time follows from what happened alone.
    lanes: BTreeMap<Target, VecDeque<u64>>,
    ended: HashMap<CommandKey, CommandState>,
    ended_order: VecDeque<CommandKey>,
    next_place: u64,
    bytes: usize,
    changes: Vec<Change>,
    /// Changes ever made; and for those that are not on disk yet, whose they are.
    count: u64,
    unwritten: VecDeque<(u64, u64)>,
    actions: Vec<Action>,
}

/// By which connection a target can be reached now.
pub type Reach<'a> = &'a dyn Fn(&Target) -> Option<u64>;

/// How often to see whether the wall clock can be believed while a command waits for that.
const CLOCK_EVERY: Duration = Duration::from_secs(1);

impl Queue {
    /// A command came.
    pub fn receive(&mut self, request: CommandRequest, source: Source, reach: Reach<'_>, now: Now) -> Receipt {
        let key = request.key();
        if let Some(state) = self.state(&key) {
            return Receipt::Known(state, self.count);
        }
        let deadline = match self.admissible(&request, now) {
            Ok(deadline) => deadline,
            Err(refusal) => return Receipt::Refused(refusal),
        };
        let CommandRequest { target, id, name, payload, .. } = request;
        let place = self.next_place;
        self.next_place += 1;
        let mut command =
            Command { place, target, id, name, payload, source, received: now.wall, deadline, sent: None, ended: None };
        let over = deadline.uptime.is_some_and(|deadline| deadline <= now.monotonic);
        let alone = !self.lanes.contains_key(&command.target);
        if !over && alone && deadline.uptime.is_some() && reach(&command.target).is_some() {
            command.sent = Some(Moment { boot: self.boot, uptime: now.monotonic });
        }
        self.admit(command, Phase::Receiving, Some(now.monotonic), now);
        match over {
            true => self.close(place, CommandState::Expired, None, now.wall),
            false => self.write(place, None),
        }
        Receipt::Taken(self.count)
    }

    /// Has a command on record that is not taken over, and told upstream how it ended.
    /// It counts once so many changes are on disk.
    pub fn reject(&mut self, request: CommandRequest, source: Source, why: &str, now: Now) -> u64 {
        let key = request.key();
        if self.state(&key).is_some() {
            return self.count;
        }
        let place = self.next_place;
        self.next_place += 1;
        let deadline = deadline::begin(request.expiry, self.boot, now);
        let CommandRequest { target, id, name, .. } = request;
        let command = Command {
            place,
            target,
            id,
            name,
            payload: None,
            source,
            received: now.wall,
            deadline,
            sent: None,
            ended: None,
        };
        self.admit(command, Phase::Receiving, None, now);
        self.close(place, CommandState::Rejected, Some(result::error(&why)), now.wall);
        self.count
    }

    /// Has an event told upstream about something that was no command at all.
    pub fn tell(&mut self, event: String) -> u64 {
        self.count += 1;
        self.changes.push(Change { command: None, event: Some(event) });
        self.count
    }

    /// So many changes are on disk.
    pub fn written(&mut self, count: u64, reach: Reach<'_>, now: Now) {
        while let Some((_, place)) = self.unwritten.front().copied().filter(|(change, _)| *change <= count) {
            self.unwritten.pop_front();
            let Some(live) = self.live.get_mut(&place) else { continue };
            live.phase = match live.phase {
                Phase::Receiving if live.command.sent.is_none() => Phase::Waiting,
                Phase::Ending => {
                    self.finish(place);
                    continue;
                }
                _ => Phase::Marked,
            };
            let target = live.command.target.clone();
            self.advance(&target, reach, now);
        }
    }

    /// Time has passed, or devices have come or gone.
    pub fn look(&mut self, reach: Reach<'_>, now: Now) {
        let boot = self.boot;
        let mut over = Vec::new();
        for (place, live) in &mut self.live {
            if live.deadline.is_none() {
                live.deadline = deadline::known(&live.command.deadline, boot, now).map(|at| at.min(live.latest));
            }
            if live.may_end() && live.over(self.rules.answer_within) <= now.monotonic {
                let state = if live.handed.is_some() { CommandState::Unreachable } else { CommandState::Expired };
                over.push((*place, state));
            }
        }
        for (place, state) in over {
            self.end(place, state, None, now.wall);
        }
        let targets: Vec<Target> = self.lanes.keys().cloned().collect();
        for target in targets {
            self.advance(&target, reach, now);
        }
    }

    /// Nobody listened to devices for a while: they may take so much longer to answer.
    pub fn excuse(&mut self, by: Duration, now: Now) {
        for handed in self.live.values_mut().filter_map(|live| live.handed.as_mut()) {
            *handed = (*handed + by).min(now.monotonic);
        }
    }

    /// A device answered; `from` is whose session it came in. False if nothing is known
    /// of such a command, or it has ended already.
    pub fn answered(&mut self, from: &Target, answer: CommandResult, reach: Reach<'_>, now: Now) -> bool {
        let Some(place) = self.asked(from, &answer.id) else { return false };
        let payload = answer.payload.map(|payload| result::bounded(payload, self.rules.max_result));
        let target = self.live.get(&place).map(|live| live.command.target.clone());
        self.end(place, answer.outcome.into(), payload, now.wall);
        if let Some(target) = target {
            self.advance(&target, reach, now);
        }
        true
    }

    /// Whether a command that was to be sent could be handed over.
    pub fn handed(&mut self, place: u64, worked: bool, now: Now) {
        if let Some(live) = self.live.get_mut(&place).filter(|_| worked) {
            live.handed.get_or_insert(now.monotonic);
        }
    }

    /// When to look next, on the monotonic clock.
    pub fn due(&self, now: Now) -> Option<Duration> {
        let ends = self.live.values().filter(|live| live.may_end()).map(|live| match live.deadline {
            None => live.over(self.rules.answer_within).min(now.monotonic + CLOCK_EVERY),
            Some(_) => live.over(self.rules.answer_within),
        });
        let heads = self.lanes.values().filter_map(|lane| self.live.get(lane.front()?));
        let wanted = |live: &&Live| live.deadline.is_some_and(|deadline| deadline > now.monotonic);
        let tries = heads.filter(|live| live.phase == Phase::Marked && live.tried.is_some()).filter(wanted);
        let tries = tries.map(|live| live.again);
        ends.chain(tries).min()
    }

    /// What is to be written, in this order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// What is to be done, in this order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// How many changes there were so far.
    pub fn changes(&self) -> u64 {
        self.count
    }

    /// Whether the command has not ended, or it is not on disk yet that it has.
    pub fn is_live(&self, key: &CommandKey) -> bool {
        self.keys.contains_key(key)
    }

    /// How many commands have not ended.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// How far a command has come; `None` if it is not known.
    pub fn state(&self, key: &CommandKey) -> Option<CommandState> {
        let live = self.keys.get(key).and_then(|place| self.live.get(place)).map(|live| live.command.state());
        live.or_else(|| self.ended.get(key).copied())
    }

    fn admissible(&self, request: &CommandRequest, now: Now) -> Result<crate::model::Deadline, Refusal> {
        if !self.enabled {
            return Err(Refusal::Disabled);
        }
        if let Target::Device(device) = &request.target {
            let allowed = |pattern: &String| glob(pattern, device.as_str());
            if !self.rules.devices.is_empty() && !self.rules.devices.iter().any(allowed) {
                return Err(Refusal::NotAllowed);
            }
        }
        let mut deadline = deadline::begin(request.expiry, self.boot, now);
        match deadline.uptime {
            Some(_) if deadline.lifetime > self.rules.max_expiry => return Err(Refusal::TooLong),
            Some(_) => {}
            None => deadline.lifetime = self.rules.max_expiry,
        }
        if self.lanes.get(&request.target).is_some_and(|lane| lane.len() >= self.rules.max_queued) {
            return Err(Refusal::QueueFull);
        }
        let size = size(request.payload.as_ref());
        if self.live.len() >= self.rules.max_live || self.bytes + size > self.rules.max_bytes {
            return Err(Refusal::Busy);
        }
        Ok(deadline)
    }

    fn admit(&mut self, command: Command, phase: Phase, came: Option<Duration>, now: Now) {
        let place = command.place;
        let handed = match phase {
            // An earlier life may have handed it over.
            Phase::Marked => command.sent.map(|sent| if sent.boot == self.boot { sent.uptime } else { self.started }),
            _ => None,
        };
        let latest = deadline::latest(&command.deadline, self.boot, now);
        let live = Live {
            latest,
            deadline: deadline::known(&command.deadline, self.boot, now).map(|at| at.min(latest)),
            phase,
            came,
            handed,
            tried: None,
            again: Duration::ZERO,
            command,
        };
        self.bytes += live.size();
        self.keys.insert(live.command.key(), place);
        self.lanes.entry(live.command.target.clone()).or_default().push_back(place);
        self.live.insert(place, live);
    }

    /// Has the command written as it is, with an event.
    fn write(&mut self, place: u64, event: Option<String>) {
        let Some(live) = self.live.get(&place) else { return };
        self.count += 1;
        self.unwritten.push_back((self.count, place));
        self.changes.push(Change { command: Some(live.command.clone()), event });
    }

    /// Sees to the command whose turn it is.
    fn advance(&mut self, target: &Target, reach: Reach<'_>, now: Now) {
        let Some(place) = self.lanes.get(target).and_then(|lane| lane.front().copied()) else { return };
        let (boot, answer_within, retry_after) = (self.boot, self.rules.answer_within, self.rules.retry_after);
        let Some(live) = self.live.get_mut(&place) else { return };
        let Some(deadline) = live.deadline.filter(|deadline| *deadline > now.monotonic) else { return };
        if live.over(answer_within) <= now.monotonic {
            return;
        }
        let Some(connection) = reach(target) else {
            live.tried = None;
            return;
        };
        match live.phase {
            Phase::Waiting => {
                live.command.sent = Some(Moment { boot, uptime: now.monotonic });
                live.phase = Phase::Marking;
                self.write(place, None);
            }
            Phase::Marked if live.tried != Some(connection) || live.again <= now.monotonic => {
                live.tried = Some(connection);
                live.again = now.monotonic + retry_after;
                self.actions.push(Action::Send(Dispatch {
                    place,
                    target: target.clone(),
                    connection,
                    id: live.command.id.to_string(),
                    name: live.command.name.to_string(),
                    payload: live.command.payload.clone(),
                    expires_in: deadline - now.monotonic,
                    again: live.handed.is_some(),
                }));
            }
            Phase::Receiving | Phase::Marking | Phase::Marked | Phase::Ending => {}
        }
    }

    /// The command with this id that `from` was asked to do, itself or for a device behind
    /// it.
    fn asked(&self, from: &Target, id: &str) -> Option<u64> {
        let is_it = |place: &&u64| {
            let live = self.live.get(place).filter(|live| live.phase == Phase::Marked && live.handed.is_some());
            live.is_some_and(|live| live.command.id.as_str() == id)
        };
        let own = self.lanes.get(from).and_then(|lane| lane.front()).filter(is_it);
        let behind = || {
            let hub = from.device()?.as_str();
            let is_behind =
                |device: &DeviceId| device.as_str().strip_prefix(hub).is_some_and(|sub| sub.starts_with('/'));
            let lanes = self.lanes.iter().filter(|(target, _)| target.device().is_some_and(is_behind));
            lanes.filter_map(|(_, lane)| lane.front()).filter(is_it).min()
        };
        own.or_else(behind).copied()
    }

    /// Ends a command, unless something of it is being written.
    fn end(&mut self, place: u64, state: CommandState, payload: Option<String>, time: Timestamp) {
        if self.live.get(&place).is_some_and(Live::may_end) {
            self.close(place, state, payload, time);
        }
    }

    fn close(&mut self, place: u64, state: CommandState, payload: Option<String>, time: Timestamp) {
        let Some(live) = self.live.get_mut(&place) else { return };
        live.phase = Phase::Ending;
        live.command.ended = Some(Ending { state, payload, time });
        let event = result::event(&live.command);
        let target = live.command.target.clone();
        if let Some(lane) = self.lanes.get_mut(&target) {
            lane.retain(|other| *other != place);
            if lane.is_empty() {
                self.lanes.remove(&target);
            }
        }
        self.write(place, event);
    }

    /// It is on disk how the command ended.
    fn finish(&mut self, place: u64) {
        let Some(live) = self.live.remove(&place) else { return };
        self.bytes = self.bytes.saturating_sub(live.size());
        let key = live.command.key();
        self.keys.remove(&key);
        let Some(ending) = live.command.ended else { return };
        self.remember(key.clone(), ending.state);
        self.actions.push(Action::Ended { key, took: live.came, ending });
    }

    fn remember(&mut self, key: CommandKey, state: CommandState) {
        if self.ended.insert(key.clone(), state).is_none() {
            self.ended_order.push_back(key);
        }
        while self.ended_order.len() > self.rules.remember {
            if let Some(oldest) = self.ended_order.pop_front() {
                self.ended.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
