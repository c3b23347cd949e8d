//! What must hold of what consumers are told about who is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tidegate::model::{Cause, DeviceStatus, Presence};

/// What was told of devices, and what could be known.
#[derive(Default)]
pub struct PresenceTable {
    sinks: BTreeMap<String, Told>,
    /// When each run of the gateway began, and ended.
    runs: Vec<(Duration, Option<Duration>)>,
    /// By device: the runs in which it came back within the time.
    back: BTreeMap<String, BTreeSet<usize>>,
    /// By device: the events by which it was told gone since a restart.
    restarted: BTreeMap<String, BTreeSet<u64>>,
    /// How long devices may take to come back.
    pub within: Duration,
    pub counts: Counts,
}

#[derive(Default)]
struct Told {
    /// It is configured from the beginning on.
    whole: bool,
    newest: u64,
    last: BTreeMap<String, DeviceStatus>,
}

/// What was told, for the report; the same at another sink counts again.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub changes: u64,
    pub idle: u64,
    pub flapping: u64,
    /// Told gone since a restart.
    pub restarted: u64,
    /// Restarts after which a device came back within the time.
    pub back: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.changes += other.changes;
        self.idle += other.idle;
        self.flapping += other.flapping;
        self.restarted += other.restarted;
        self.back += other.back;
    }
}

type Verdict = Result<(), String>;

impl PresenceTable {
    pub fn add_sink(&mut self, name: &str, now: Duration) {
        self.sinks.insert(name.to_owned(), Told { whole: now.is_zero(), ..Told::default() });
    }

    pub fn rename_sink(&mut self, from: &str, to: &str) {
        if let Some(told) = self.sinks.remove(from) {
            self.sinks.insert(to.to_owned(), told);
        }
    }

    /// A run of the gateway begins.
    pub fn began(&mut self, now: Duration) {
        self.runs.push((now, None));
    }

    /// When the run began that goes on, or was the last.
    pub fn last_run(&self) -> Duration {
        self.runs.last().map_or(Duration::ZERO, |(began, _)| *began)
    }

    /// It ends.
    pub fn ended(&mut self, now: Duration) {
        if let Some((_, end)) = self.runs.last_mut() {
            end.get_or_insert(now);
        }
    }

    /// A device is welcomed.
    pub fn welcomed(&mut self, device: &str, now: Duration) {
        let Some(run) = self.runs.len().checked_sub(1) else { return };
        let (began, ended) = self.runs[run];
        if ended.is_none() && now < began + self.within && self.back.entry(device.to_owned()).or_default().insert(run) {
            self.counts.back += u64::from(run > 0);
        }
    }

    /// A consumer is told by an event who came and went.
    pub fn told(
        &mut self,
        sink: &str,
        event: u64,
        body: &serde_json::Map<String, serde_json::Value>,
        now: Duration,
    ) -> Verdict {
        let changes = body.get("changes").cloned().unwrap_or_default();
        let changes: Vec<DeviceStatus> =
            serde_json::from_value(changes).map_err(|why| format!("{sink} got event {event}: {why}"))?;
        let Some(told) = self.sinks.get_mut(sink) else { return Ok(()) };
        if event <= told.newest {
            return Ok(());
        }
        told.newest = event;
        for status in changes {
            let name = status.device.to_string();
            let restarted = status.reason == Cause::GatewayRestarted;
            self.counts.changes += 1;
            self.counts.idle += u64::from(status.state == Presence::Idle);
            self.counts.flapping += u64::from(status.flapping);
            self.counts.restarted += u64::from(restarted);
            let before = told.last.insert(name.clone(), status.clone());
            if let Some(before) = before
                && (before.state, before.flapping, &before.link) == (status.state, status.flapping, &status.link)
            {
                let DeviceStatus { state, reason, .. } = status;
                return Err(format!(
                    "{sink} is told by event {event} that {name} is {state:?} ({reason:?}), as before"
                ));
            }
            if restarted && !name.contains('/') {
                let events = self.restarted.entry(name.clone()).or_default();
                events.insert(event);
                let (events, back) = (events.len(), self.back.get(&name));
                let missed = |run: &usize| back.is_none_or(|back| !back.contains(run));
                let long = |run: &usize| {
                    let (began, ended) = self.runs[*run];
                    ended.unwrap_or(now) >= began + self.within
                };
                let reasons = (0..self.runs.len()).filter(missed).filter(long).count();
                if events > reasons {
                    return Err(format!(
                        "{sink} is told by event {event} that {name} is gone since a restart; it was back within the time"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Everything has drained: how a device is that is known is what was told of it last.
    pub fn settle(&self, sink: &str, device: &str, state: Presence, known: bool) -> Verdict {
        let Some(told) = self.sinks.get(sink) else { return Ok(()) };
        match told.last.get(device) {
            None if told.whole && known => Err(format!("{sink} was never told of {device}, which is {state:?}")),
            Some(last) if last.state != state || last.flapping => {
                Err(format!("{device} is {state:?}, and {sink} was told last: {last:?}"))
            }
            _ => Ok(()),
        }
    }
}
