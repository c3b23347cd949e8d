//! The gateway's health, from all its parts.

use crate::clock::{Clock, Excuses};
use crate::http::{Condition, Health, Problem};
use crate::metrics::{Metrics, SinkLabel};
use crate::notes::{Note, Notes, Told};
use crate::sink::Liveness;
use crate::store::{DiskState, Log};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A part without progress for this long hangs, and a restart may help. An SD card may stall for
/// 100 s in garbage collection, where a restart does not help.
const HANGS_AFTER: Duration = Duration::from_secs(180);

/// The health of all parts.
pub struct Overview {
    parts: OnceLock<Parts>,
    /// Why the log is not open yet.
    waiting: Mutex<Option<String>>,
    /// Notes of links and sinks.
    notes: Notes,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    excuses: Mutex<Excuses>,
    stopping: AtomicBool,
}

/// The parts that exist once the log is open.
struct Parts {
    log: Log,
    sinks: Vec<Watched>,
}

/// A sink's health.
pub struct Watched {
    pub name: Arc<str>,
    pub liveness: Liveness,
    /// On its connection.
    pub note: Note,
}

impl Overview {
    /// Before the log is open.
    pub fn new(notes: Notes, metrics: Metrics, clock: Arc<dyn Clock>) -> Overview {
        let (parts, waiting) = (OnceLock::new(), Mutex::new(None));
        let excuses = Mutex::new(Excuses::from(clock.put_off()));
        Overview { parts, waiting, notes, metrics, clock, excuses, stopping: AtomicBool::new(false) }
    }

    /// The log cannot be opened at present. True if the reason is new.
    pub fn set_waiting(&self, why: &str) -> bool {
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
        for Watched { name, liveness, .. } in sinks {
            let age = excuses.silence(now.saturating_sub(liveness.age(now)), now);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Now, SystemClock};
    use crate::config::Store;
    use crate::model::{Basis, Batch, ChannelName, DeviceId, Reading, Timestamp, Value};
    use std::sync::atomic::AtomicU64;

    /// A clock that shows the given seconds.
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Now {
            let monotonic = Duration::from_secs(self.0.load(Ordering::Relaxed));
            Now { monotonic, ..SystemClock::new().now() }
        }
    }

    #[test]
    fn a_disk_that_stalls_for_100_s_is_waited_for_and_one_that_never_answers_is_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store =
            Store { directory: directory.path().to_owned(), commit_within: Duration::from_secs(1), ..Store::default() };
        let hand = Arc::new(Hand(AtomicU64::new(1000)));
        let (clock, metrics): (Arc<dyn Clock>, _) = (hand.clone(), Metrics::new());
        let gauge = Arc::new(|| None);
        let opened = Log::open_stepped(&store, &[], &["cloud"], clock.clone(), metrics.clone(), gauge).expect("a log");
        let overview = Overview::new(Notes::default(), metrics, clock);
        let liveness = Liveness::new(Duration::from_secs(1000));
        let watched = Watched { name: "cloud".into(), liveness, note: Note::new("cloud") };
        overview.opened(opened.log.clone(), vec![watched]);
        let channels = [ChannelName::new("level").expect("a valid name")].into();
        let reading = Reading::new(1, Timestamp(1), channels, [Value::Float(1.0)].into()).expect("one each");
        let device = DeviceId::new("pump").expect("a valid name");
        let batch = Batch { device, session: Some(1), basis: Basis::Wall, readings: vec![reading] };
        opened.log.append(None, batch).expect("there is room");
        // From here on neither the writer nor the sink shows progress.
        for (after, hang) in [(0, vec![]), (60, vec![]), (110, vec![]), (200, vec!["log", "cloud"])] {
            hand.0.store(1000 + after, Ordering::Relaxed);
            let problems = overview.live().problems;
            let parts: Vec<_> = problems.iter().map(|problem| problem.part.as_str()).collect();
            assert_eq!(parts, hang, "after {after} s: {problems:?}");
        }
    }
}
