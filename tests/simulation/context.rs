//! What every part of the simulation shares: virtual time, the trace, the oracle.

use super::oracle::Oracle;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Arguments;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use tidegate::clock::{Clock, Now};
use tidegate::model::Timestamp;
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
    wall_offset: AtomicI64,
    trusted: AtomicBool,
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
            wall_offset: AtomicI64::new(0),
            trusted: AtomicBool::new(true),
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

    /// The machine's clock; it counts from the beginning, whichever process asks.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SimulatedClock(self.clone()))
    }

    /// The gateway's wall clock steps by this many microseconds.
    pub fn step_clock(&self, micros: i64) {
        self.0.wall_offset.fetch_add(micros, Ordering::Relaxed);
    }

    pub fn trust_clock(&self, trusted: bool) {
        self.0.trusted.store(trusted, Ordering::Relaxed);
    }

    /// The true time, as devices know it.
    pub fn wall(&self) -> Timestamp {
        Timestamp(BEGIN).plus(self.elapsed())
    }
}

struct SimulatedClock(Context);

impl Clock for SimulatedClock {
    fn now(&self) -> Now {
        let Inner { wall_offset, trusted, .. } = &*self.0.0;
        Now {
            wall: Timestamp(self.0.wall().0 + wall_offset.load(Ordering::Relaxed)),
            trusted: trusted.load(Ordering::Relaxed),
            monotonic: self.0.elapsed(),
        }
    }
}
