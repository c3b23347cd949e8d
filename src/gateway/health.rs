//! How the gateway is, put together from its parts.

use crate::clock::Clock;
use crate::http::{Condition, Health, Problem};
use crate::metrics::{Metrics, SinkLabel};
use crate::sink::Pulse;
use crate::store::Log;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A part that shows no progress for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// An eye on all parts.
pub struct Overview {
    log: Log,
    /// Each sink's name and pulse.
    sinks: Vec<(Arc<str>, Pulse)>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    stopping: AtomicBool,
}

impl Overview {
    pub fn new(log: Log, sinks: Vec<(Arc<str>, Pulse)>, metrics: Metrics, clock: Arc<dyn Clock>) -> Overview {
        Overview { log, sinks, metrics, clock, stopping: AtomicBool::new(false) }
    }

    /// From now on the gateway is not ready.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn problem(part: &str, reason: impl Into<String>) -> Problem {
    Problem { part: part.to_owned(), reason: reason.into() }
}

impl Health for Overview {
    fn live(&self) -> Condition {
        let mut condition = Condition::default();
        let overdue = self.log.health().overdue;
        if overdue >= HANGS_AFTER {
            condition.problems.push(problem("log", format!("a commit is overdue by {} s", overdue.as_secs())));
        }
        let now = self.clock.now().monotonic;
        for (name, pulse) in &self.sinks {
            let age = pulse.age(now);
            if age >= HANGS_AFTER {
                condition.problems.push(problem(name, format!("no progress for {} s", age.as_secs())));
            }
        }
        condition
    }

    fn ready(&self) -> Condition {
        let mut condition = self.live();
        if self.stopping.load(Ordering::Relaxed) {
            condition.problems.push(problem("gateway", "stopping"));
        }
        let log = self.log.health();
        if let Some(failure) = log.failure {
            condition.problems.push(problem("log", format!("the last commit failed: {failure}")));
        }
        condition.notes.extend(log.notes.into_iter().map(|note| problem("log", note)));
        if !self.clock.now().trusted {
            let reason = "not known to be set; readings of devices without a clock get no time yet";
            condition.notes.push(problem("clock", reason));
        }
        for (name, _) in &self.sinks {
            let label = SinkLabel { sink: name.clone() };
            if self.metrics.sink_connected.get_or_create(&label).get() == 0 {
                let pending = self.metrics.sink_pending.get_or_create(&label).get();
                condition.notes.push(problem(name, format!("not connected; {pending} readings are kept for it")));
            }
        }
        condition
    }
}
