//! How the gateway is, put together from its parts.

use crate::clock::{Clock, Excuses};
use crate::http::{Condition, Health, Problem};
use crate::metrics::{Metrics, SinkLabel};
use crate::notes::{Note, Notes, Told};
use crate::sink::Pulse;
use crate::store::{DiskState, Log};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A part that shows no progress for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// An eye on all parts.
pub struct Overview {
    parts: OnceLock<Parts>,
    /// Why the log could not be opened yet.
    waiting: Mutex<Option<String>>,
    /// What there is to tell of links and sinks.
    notes: Notes,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    excuses: Mutex<Excuses>,
    stopping: AtomicBool,
}

/// What there is once the log is open.
struct Parts {
    log: Log,
    sinks: Vec<Watched>,
}

/// A sink, as it is seen from outside.
pub struct Watched {
    pub name: Arc<str>,
    pub pulse: Pulse,
    /// Of its connection.
    pub note: Note,
}

impl Overview {
    /// Before the log is open.
    pub fn new(notes: Notes, metrics: Metrics, clock: Arc<dyn Clock>) -> Overview {
        let (parts, waiting) = (OnceLock::new(), Mutex::new(None));
        let excuses = Mutex::new(Excuses::from(clock.put_off()));
        Overview { parts, waiting, notes, metrics, clock, excuses, stopping: AtomicBool::new(false) }
    }

    /// The log cannot be opened at present. True if that is news.
    pub fn waits(&self, why: &str) -> bool {
        let before = self.waiting.lock().replace(why.to_owned());
        before.as_deref() != Some(why)
    }

    /// The log is open, and these sinks read it.
    pub fn opened(&self, log: Log, sinks: Vec<Watched>) {
        // It is opened once.
        let _ = self.parts.set(Parts { log, sinks });
    }

    /// From now on the gateway is not ready.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn problem(part: &str, reason: impl Into<String>) -> Problem {
    Problem { part: part.to_owned(), reason: reason.into(), since: None }
}

impl From<Told> for Problem {
    fn from(told: Told) -> Problem {
        Problem { since: Some(told.since.to_string()), ..problem(&told.part, told.reason) }
    }
}

impl Health for Overview {
    fn live(&self) -> Condition {
        let mut condition = Condition::default();
        // Waiting for room is no lack of progress.
        let Some(Parts { log, sinks }) = self.parts.get() else { return condition };
        let now = self.clock.now().monotonic;
        let excuses = {
            let mut excuses = self.excuses.lock();
            excuses.look(self.clock.put_off(), now);
            *excuses
        };
        let overdue = excuses.silence(now.saturating_sub(log.health().overdue), now);
        if overdue >= HANGS_AFTER {
            condition.problems.push(problem("log", format!("a commit is overdue by {} s", overdue.as_secs())));
        }
        for Watched { name, pulse, .. } in sinks {
            let age = excuses.silence(now.saturating_sub(pulse.age(now)), now);
            if age >= HANGS_AFTER {
                condition.problems.push(problem(name, format!("no progress for {} s", age.as_secs())));
            }
        }
        condition
    }

    fn ready(&self) -> Condition {
        let mut condition = self.live();
        let now = self.clock.now();
        let notes = self.notes.told(now).into_iter().map(Problem::from);
        if self.stopping.load(Ordering::Relaxed) {
            condition.problems.push(problem("gateway", "stopping"));
        }
        let Some(Parts { log, sinks }) = self.parts.get() else {
            let why = self.waiting.lock().clone().unwrap_or_else(|| "it is being opened".to_owned());
            condition.problems.push(problem("log", why));
            condition.notes.extend(notes);
            return condition;
        };
        let health = log.health();
        let state = health.disk.name();
        if let Some(failure) = health.failure {
            condition.problems.push(problem("log", format!("the disk is {state}; the last commit failed: {failure}")));
        }
        if health.disk == DiskState::Low {
            let reason = "the disk is low: less than min_free is left, old readings make room for new ones";
            condition.notes.push(problem("log", reason));
        }
        condition.notes.extend(health.notes.into_iter().map(|note| problem("log", note)));
        if !now.trusted {
            let reason = "not known to be set; readings of devices without a clock get no time yet";
            condition.notes.push(problem("clock", reason));
        }
        condition.notes.extend(notes);
        for Watched { name, note, .. } in sinks {
            let Some(mut told) = note.told(now) else { continue };
            if !told.works {
                let pending = self.metrics.sink_pending.get_or_create(&SinkLabel { sink: name.clone() }).get();
                told.reason = format!("not connected; {pending} readings are kept for it: {}", told.reason);
            }
            condition.notes.push(told.into());
        }
        condition
    }
}
