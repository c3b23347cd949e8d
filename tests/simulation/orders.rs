//! What must hold of commands: what senders were told, what devices did, and what
//! consumers got to know.

use super::tally::add;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tidegate::wire::message::ResultState;

/// Whom a command is for (nothing: the gateway), and its id.
pub type Key = (String, String);

/// Every command that was given, and how each consumer was told it ended.
#[derive(Default)]
pub struct Orders {
    orders: BTreeMap<Key, Order>,
    /// By sink: since when it is configured, and the event that told of each command.
    sinks: BTreeMap<String, (Duration, BTreeMap<Key, u64>)>,
    /// What each target did, in that order.
    done: BTreeMap<String, Vec<String>>,
    /// How long a command may be under way to its device.
    pub slack: Duration,
    pub counts: Counts,
}

#[derive(Default)]
struct Order {
    /// For how long it is wanted from its arrival on.
    lifetime: Duration,
    /// When the gateway was given it first, and its sender was told that it is safe.
    first: Option<Duration>,
    confirmed: Option<Duration>,
    /// By which broker it came as the how manieth, if it came once only.
    way: Option<(u64, u64)>,
    sent: u32,
    executed: u32,
    /// The device may have done it and not know.
    forgetful: bool,
    answers: BTreeSet<&'static str>,
    /// The event that told how it ended, and what it said.
    ended: Option<(u64, String)>,
}

/// What came of commands, for the report.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub given: u64,
    pub again: u64,
    pub confirmed: u64,
    pub executed: u64,
    /// Done, failed, rejected, expired, unreachable.
    pub ended: [u64; 5],
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.given += other.given;
        self.again += other.again;
        self.confirmed += other.confirmed;
        self.executed += other.executed;
        add(&mut self.ended, other.ended);
    }
}

const STATES: [&str; 5] = ["done", "failed", "rejected", "expired", "unreachable"];

/// Until when a command may be begun that the gateway was given at one time, had taken over
/// at another, and that is wanted for so long.
pub type Limit<'a> = &'a dyn Fn(Duration, Duration, Duration) -> Duration;

type Verdict = Result<(), String>;

impl Orders {
    /// A sink is configured from now on.
    pub fn add_sink(&mut self, name: &str, now: Duration) {
        self.sinks.insert(name.to_owned(), (now, BTreeMap::new()));
    }

    pub fn rename_sink(&mut self, from: &str, to: &str) {
        if let Some(told) = self.sinks.remove(from) {
            self.sinks.insert(to.to_owned(), told);
        }
    }

    /// Somebody gives a command, or gives it again; `way` is the broker's number and the
    /// command's there.
    pub fn given(&mut self, key: &Key, lifetime: Duration, way: Option<(u64, u64)>) {
        let order = self.orders.entry(key.clone()).or_default();
        order.sent += 1;
        order.way = way.filter(|_| order.sent == 1);
        order.lifetime = lifetime;
        match order.sent {
            1 => self.counts.given += 1,
            _ => self.counts.again += 1,
        }
    }

    /// The gateway is given it now.
    pub fn handed(&mut self, key: &Key, now: Duration) {
        if let Some(order) = self.orders.get_mut(key) {
            order.first.get_or_insert(now);
        }
    }

    /// Its sender is told that it is safe.
    pub fn confirmed(&mut self, key: &Key, now: Duration) {
        if let Some(order) = self.orders.get_mut(key)
            && order.confirmed.is_none()
        {
            order.confirmed = Some(now);
            self.counts.confirmed += 1;
        }
    }

    /// A device does it.
    pub fn executed(&mut self, key: &Key, forgetful: bool, now: Duration, limit: Limit<'_>) -> Verdict {
        let Some(order) = self.orders.get_mut(key) else {
            return Err(format!("{key:?} is done, and nobody wanted it"));
        };
        order.executed += 1;
        order.forgetful |= forgetful;
        if order.executed > 1 {
            return match forgetful {
                true => Ok(()),
                false => Err(format!("{key:?} is done for the second time by a device that remembers")),
            };
        }
        self.counts.executed += 1;
        if let Some((event, state)) = &order.ended
            && !forgetful
            && matches!(state.as_str(), "expired" | "rejected")
        {
            return Err(format!("{key:?} is done, and event {event} told that it was {state}"));
        }
        let until = limit(order.first.unwrap_or(now), order.confirmed.unwrap_or(now), order.lifetime) + self.slack;
        if now > until {
            return Err(format!(
                "{key:?} is done for the first time at {now:?}, and was wanted until {until:?} at most"
            ));
        }
        self.in_order(key)
    }

    /// Whether what its device did before it came before it.
    fn in_order(&mut self, key: &Key) -> Verdict {
        let before = self.done.entry(key.0.clone()).or_default();
        let Some(order) = self.orders.get(key) else { return Ok(()) };
        for id in before.iter() {
            let Some(other) = self.orders.get(&(key.0.clone(), id.clone())) else { continue };
            let on_its_way = match (order.way, other.way) {
                (Some((here, number)), Some((there, after))) => here == there && number < after,
                _ => false,
            };
            let safe = order.confirmed.zip(other.first).is_some_and(|(confirmed, first)| confirmed < first);
            if on_its_way || safe {
                return Err(format!("{key:?} is done after {id}, which came later"));
            }
        }
        before.push(key.1.clone());
        Ok(())
    }

    /// A device says how it went.
    pub fn answered(&mut self, target: &str, id: &str, state: ResultState) {
        if let Some(order) = self.orders.get_mut(&(target.to_owned(), id.to_owned())) {
            order.answers.insert(match state {
                ResultState::Done => "done",
                ResultState::Failed => "failed",
                ResultState::Rejected => "rejected",
            });
        }
    }

    /// A consumer is told by an event how a command ended.
    pub fn ended(&mut self, sink: &str, event: u64, body: &serde_json::Map<String, serde_json::Value>) -> Verdict {
        let text = |key: &str| body.get(key).and_then(|text| text.as_str()).unwrap_or_default().to_owned();
        let (key, state) = ((text("device"), text("id")), text("state"));
        let Some(order) = self.orders.get_mut(&key) else {
            return Err(format!("{sink} is told of {key:?}, which nobody gave"));
        };
        if order.first.is_none() {
            return Err(format!("{sink} is told of {key:?}, which the gateway was not given"));
        }
        let told = order.ended.get_or_insert_with(|| (event, state.clone()));
        if *told != (event, state.clone()) {
            return Err(format!("{key:?} ended as {told:?}, and {sink} is told by event {event}: {state}"));
        }
        let Some((_, known)) = self.sinks.get_mut(sink) else { return Ok(()) };
        if known.insert(key.clone(), event).is_some() {
            return Ok(());
        }
        let by_gateway = body.get("payload").and_then(|payload| payload.get("error")).is_some();
        let said = order.answers.contains(state.as_str());
        match state.as_str() {
            // A gateway does what it is told without being simulated.
            "done" if key.0.is_empty() => Ok(()),
            "done" | "failed" if !said => Err(format!("{sink} is told that {key:?} is {state}, no device said so")),
            "rejected" if !said && !by_gateway => Err(format!("{sink} is told that {key:?} is {state} by nobody")),
            "expired" | "rejected" if order.executed > 0 && !order.forgetful => {
                Err(format!("{sink} is told that {key:?} is {state}, and it was done"))
            }
            "expired" if order.executed > 0 => Err(format!("{sink} is told that {key:?} expired, and it was done")),
            state if STATES.contains(&state) => Ok(()),
            state => Err(format!("{sink} is told that {key:?} ended as {state:?}")),
        }
    }

    /// Everything has drained: whoever was told that a command is safe is told how it ended.
    pub fn settle(&self, sink: &str) -> Verdict {
        let Some((since, known)) = self.sinks.get(sink) else { return Ok(()) };
        for (key, order) in &self.orders {
            let Some(confirmed) = order.confirmed else { continue };
            match &order.ended {
                None => return Err(format!("{key:?} was confirmed at {confirmed:?}, and nobody is told how it ended")),
                Some(_) if order.first.is_some_and(|first| first < *since) => {}
                Some(ended) if !known.contains_key(key) => {
                    return Err(format!("{key:?} was confirmed at {confirmed:?}, and {sink} is not told of {ended:?}"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// What came of all that.
    pub fn counted(&self) -> Counts {
        let mut counts = self.counts;
        for (_, state) in self.orders.values().filter_map(|order| order.ended.as_ref()) {
            if let Some(place) = STATES.iter().position(|name| name == state) {
                counts.ended[place] += 1;
            }
        }
        counts
    }
}
