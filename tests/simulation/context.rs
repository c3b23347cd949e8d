//! What every part of the simulation shares: virtual time, the trace, the oracle.

use super::clock::{Machine, SimulatedClock};
use super::oracle::Oracle;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Arguments;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate::model::Timestamp;
use tidegate::sink::encode::Delivery;
use tokio::time::Instant;

/// 2026-06-01T00:00:00Z.
const BEGIN: i64 = 1_780_272_000_000_000;

#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    began: Instant,
    /// Where the log lies; its name differs from run to run and is not told.
    directory: String,
    trace: Mutex<Trace>,
    oracle: Mutex<Oracle>,
    machine: Arc<Mutex<Machine>>,
}

/// What happened, line by line. All of it goes into the digest; the end is kept.
struct Trace {
    lines: VecDeque<String>,
    digest: u64,
    count: u64,
    aloud: bool,
}

/// Lines kept for the report of a failure.
const KEPT: usize = 60;

impl Context {
    /// Call inside the runtime whose time is simulated.
    pub fn new(directory: &Path, aloud: bool) -> Context {
        let trace = Trace { lines: VecDeque::new(), digest: 0xcbf2_9ce4_8422_2325, count: 0, aloud };
        Context(Arc::new(Inner {
            began: Instant::now(),
            directory: directory.to_string_lossy().into_owned(),
            trace: Mutex::new(trace),
            oracle: Mutex::default(),
            machine: Arc::default(),
        }))
    }

    /// Since the simulation began.
    pub fn elapsed(&self) -> Duration {
        self.0.began.elapsed()
    }

    pub fn trace(&self, what: Arguments<'_>) {
        let line = format!("{:>12.6} {what}", self.elapsed().as_secs_f64());
        let line = line.replace(&self.0.directory, "DIR");
        let mut trace = self.0.trace.lock();
        if trace.aloud {
            println!("{line}");
        }
        for byte in line.bytes() {
            // FNV-1a.
            trace.digest = (trace.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        trace.count += 1;
        if trace.lines.len() == KEPT {
            trace.lines.pop_front();
        }
        trace.lines.push_back(line);
    }

    /// The gateway stands still from now on.
    pub fn pauses_for(&self, time: Duration) {
        let now = self.elapsed();
        self.machine(|machine| machine.pauses_for(now, time));
    }

    /// For how long the gateway stood still in the last `span`.
    pub fn paused(&self, span: Duration) -> Duration {
        let now = self.elapsed();
        self.machine(|machine| machine.paused(now.saturating_sub(span), now))
    }

    /// The number of lines, and a number that differs where any of them does.
    pub fn digest(&self) -> (u64, u64) {
        let trace = self.0.trace.lock();
        (trace.count, trace.digest)
    }

    pub fn tail(&self) -> Vec<String> {
        self.0.trace.lock().lines.iter().cloned().collect()
    }

    /// Looks at or tells the oracle something.
    pub fn oracle<T>(&self, with: impl FnOnce(&mut Oracle) -> T) -> T {
        with(&mut self.0.oracle.lock())
    }

    /// A payload reached a consumer; `last` is the seq that came before it on its
    /// connection.
    pub fn delivered(&self, sink: &str, delivery: &Delivery, last: &mut u64) {
        let (machine, begin, elapsed) = (self.0.machine.lock(), self.begin(), self.elapsed());
        self.oracle(|oracle| {
            oracle.delivered(sink, delivery, last, &|taken, reading, slack| {
                machine.judge(taken, reading, slack, begin, elapsed)
            });
        });
    }

    /// An event reached a consumer.
    pub fn event(&self, sink: &str, id: u64, body: &serde_json::Map<String, serde_json::Value>) {
        let machine = self.0.machine.lock();
        let now = self.elapsed();
        self.oracle(|oracle| oracle.event(sink, id, body, &|boot, began| machine.began(boot, began), now));
    }

    /// A device does what it was told to; one that is `forgetful` may do it again. It did
    /// not listen for a while before it was told: `late`.
    pub fn executed(&self, target: &str, id: &str, forgetful: bool, late: Duration) {
        let (machine, now) = (self.0.machine.lock(), self.elapsed());
        let key = (target.to_owned(), id.to_owned());
        self.oracle(|oracle| {
            let run = oracle.roll.last_run();
            let limit = |first, taken, lifetime| machine.wanted_until(first, taken, lifetime, run, now) + late;
            let verdict = oracle.orders.executed(&key, forgetful, now, &limit);
            oracle.judge(verdict);
        });
    }

    /// Everything has drained: a consumer waits for no time that is known.
    pub fn settle_boots(&self, sink: &str) {
        let machine = self.0.machine.lock();
        self.oracle(|oracle| oracle.settle_boots(sink, &|boot| machine.must_be_told(boot)));
    }

    /// What the gateway's machine is like as far as time goes.
    pub fn machine<T>(&self, with: impl FnOnce(&mut Machine) -> T) -> T {
        with(&mut self.0.machine.lock())
    }

    /// The machine's clock, for a run of the gateway.
    pub fn clock(&self) -> Arc<SimulatedClock> {
        Arc::new(SimulatedClock::new(self, &self.0.machine))
    }

    /// The true time when the simulation began.
    pub fn begin(&self) -> Timestamp {
        Timestamp(BEGIN)
    }

    /// The true time, as devices know it.
    pub fn wall(&self) -> Timestamp {
        self.begin().plus(self.elapsed())
    }
}
