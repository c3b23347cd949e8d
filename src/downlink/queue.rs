//! The state machine of commands. Pure: without clock, disk or device.
//!
//! 1. [`Queue::receive`] accepts a command and emits it as a change to write. If its device
//!    is connected and idle, that change already marks it as sent.
//! 2. [`Queue::written`] says which changes are on disk: from then on the sender may be told.
//! 3. A device has one command at a time, in the order of arrival. Before the device gets
//!    it, it is on disk that it may have got it ([`Command::sent`]): a command is reported as
//!    expired only if no run of the gateway can have handed it over.
//! 4. It is sent again after a while, and when the device reconnects, until the device answers
//!    ([`Queue::answered`]) or the command expires ([`Queue::advance_all`]).
//! 5. Its end is written together with the event that reports it; then the next command
//!    follows.
//!
//! A crash between two steps is a restart from what was written. Commands to the gateway
//! itself are not repeated then: they may be the cause of the crash.

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

/// The commands that have not ended, and the states of those that have.
pub struct Queue {
    rules: Rules,
    enabled: bool,
    boot: BootId,
    started: Duration,
    live: BTreeMap<u64, Live>,
    keys: HashMap<CommandKey, u64>,
    /// The places of each device's commands, in order. Sorted by device, so that actions for
    /// several devices at once are deterministic.
    commands_of: BTreeMap<Target, VecDeque<u64>>,
    ended: HashMap<CommandKey, CommandState>,
    ended_order: VecDeque<CommandKey>,
    next_place: u64,
    bytes: usize,
    changes: Vec<Change>,
    /// The number of changes so far; and the places of those that are not on disk yet.
    count: u64,
    unwritten: VecDeque<(u64, u64)>,
    actions: Vec<Action>,
}

/// The connection by which a target can be reached now.
pub type Reach<'a> = &'a dyn Fn(&Target) -> Option<u64>;

/// Interval of checking the wall clock while a command waits until it is trusted.
const CLOCK_EVERY: Duration = Duration::from_secs(1);

impl Queue {
    /// A command arrived.
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
        let alone = !self.commands_of.contains_key(&command.target);
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

    /// Records a command that is not accepted, and reports its end upstream. It counts once
    /// this many changes are on disk.
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

    /// Reports upstream that a message is no valid command.
    pub fn publish_event(&mut self, event: String) -> u64 {
        self.count += 1;
        self.changes.push(Change { command: None, event: Some(event) });
        self.count
    }

    /// This many changes are on disk.
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

    /// Time has passed, or devices have connected or disconnected.
    pub fn advance_all(&mut self, reach: Reach<'_>, now: Now) {
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
        let targets: Vec<Target> = self.commands_of.keys().cloned().collect();
        for target in targets {
            self.advance(&target, reach, now);
        }
    }

    /// Devices were not listened to for a while: their time to answer is extended.
    pub fn extend_answer_time(&mut self, by: Duration, now: Now) {
        for handed in self.live.values_mut().filter_map(|live| live.handed.as_mut()) {
            *handed = (*handed + by).min(now.monotonic);
        }
    }

    /// A device answered; `from` is the device of the session. False if the command is unknown
    /// or has ended.
    pub fn answered(&mut self, from: &Target, answer: CommandResult, reach: Reach<'_>, now: Now) -> bool {
        let Some(place) = self.sent_command(from, &answer.id) else { return false };
        let payload = answer.payload.map(|payload| result::bounded(payload, self.rules.max_result));
        let target = self.live.get(&place).map(|live| live.command.target.clone());
        self.end(place, answer.outcome.into(), payload, now.wall);
        if let Some(target) = target {
            self.advance(&target, reach, now);
        }
        true
    }

    /// Whether an [`Action::Send`] succeeded.
    pub fn handed(&mut self, place: u64, worked: bool, now: Now) {
        if let Some(live) = self.live.get_mut(&place).filter(|_| worked) {
            live.handed.get_or_insert(now.monotonic);
        }
    }

    /// When to call [`Queue::advance_all`] next, on the monotonic clock.
    pub fn due(&self, now: Now) -> Option<Duration> {
        let ends = self.live.values().filter(|live| live.may_end()).map(|live| match live.deadline {
            None => live.over(self.rules.answer_within).min(now.monotonic + CLOCK_EVERY),
            Some(_) => live.over(self.rules.answer_within),
        });
        let heads = self.commands_of.values().filter_map(|lane| self.live.get(lane.front()?));
        let wanted = |live: &&Live| live.deadline.is_some_and(|deadline| deadline > now.monotonic);
        let tries = heads.filter(|live| live.phase == Phase::Marked && live.tried.is_some()).filter(wanted);
        let tries = tries.map(|live| live.again);
        ends.chain(tries).min()
    }

    /// Changes to write, in this order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Actions to carry out, in this order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The number of changes so far.
    pub fn changes(&self) -> u64 {
        self.count
    }

    /// Whether the command has not ended, or its end is not on disk yet.
    pub fn is_live(&self, key: &CommandKey) -> bool {
        self.keys.contains_key(key)
    }

    /// Commands that have not ended.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// The command's state; `None` if it is unknown.
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
        if self.commands_of.get(&request.target).is_some_and(|lane| lane.len() >= self.rules.max_queued) {
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
            // An earlier run may have handed it over.
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
        self.commands_of.entry(live.command.target.clone()).or_default().push_back(place);
        self.live.insert(place, live);
    }

    /// Emits a change with the command as it is, and an event.
    fn write(&mut self, place: u64, event: Option<String>) {
        let Some(live) = self.live.get(&place) else { return };
        self.count += 1;
        self.unwritten.push_back((self.count, place));
        self.changes.push(Change { command: Some(live.command.clone()), event });
    }

    /// Moves on with the first command of the target.
    fn advance(&mut self, target: &Target, reach: Reach<'_>, now: Now) {
        let Some(place) = self.commands_of.get(target).and_then(|lane| lane.front().copied()) else { return };
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

    /// The command with this id that `from` was sent, for itself or for a device behind it.
    fn sent_command(&self, from: &Target, id: &str) -> Option<u64> {
        let is_it = |place: &&u64| {
            let live = self.live.get(place).filter(|live| live.phase == Phase::Marked && live.handed.is_some());
            live.is_some_and(|live| live.command.id.as_str() == id)
        };
        let own = self.commands_of.get(from).and_then(|lane| lane.front()).filter(is_it);
        let behind = || {
            let hub = from.device()?.as_str();
            let is_behind =
                |device: &DeviceId| device.as_str().strip_prefix(hub).is_some_and(|sub| sub.starts_with('/'));
            let behind = self.commands_of.iter().filter(|(target, _)| target.device().is_some_and(is_behind));
            behind.filter_map(|(_, lane)| lane.front()).filter(is_it).min()
        };
        own.or_else(behind).copied()
    }

    /// Ends a command, unless a change of it is being written.
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
        if let Some(lane) = self.commands_of.get_mut(&target) {
            lane.retain(|other| *other != place);
            if lane.is_empty() {
                self.commands_of.remove(&target);
            }
        }
        self.write(place, event);
    }

    /// The command's end is on disk.
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
