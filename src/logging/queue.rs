//! A queue of lines with a bounded number of bytes. Adding a line never blocks.

use crate::metrics::LogLines;
use crate::model::Timestamp;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tracing::Level;

const MAX_BYTES: usize = 256 << 10;
/// The rest is reserved for warnings and errors.
const MAX_BYTES_OF_OTHERS: usize = MAX_BYTES / 4 * 3;
/// Memory of a line beside its bytes, estimated.
const OVERHEAD: usize = 64;

pub struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
    counts: LogLines,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    writing: Option<Writing>,
    missed: Option<Missed>,
    /// The last write failed.
    is_broken: bool,
}

/// What the writer thread is writing.
#[derive(Clone, Copy)]
enum Writing {
    Line,
    Notice(Missed),
}

/// Lines that found no room, or could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    pub count: u64,
    pub since: Timestamp,
}

/// The next task of the writer thread.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Write(Vec<u8>),
    /// Log that lines are missing.
    Tell(Missed),
    /// The time is up.
    Look,
}

impl Queue {
    pub fn new(counts: LogLines) -> Queue {
        Queue { state: Mutex::default(), filled: Condvar::new(), emptied: Condvar::new(), counts }
    }

    /// Adds a line if there is room.
    pub fn push(&self, level: Level, line: Vec<u8>, now: Timestamp) {
        let most = if level <= Level::WARN { MAX_BYTES } else { MAX_BYTES_OF_OTHERS };
        let mut state = self.state.lock();
        let bytes = state.bytes + line.len() + OVERHEAD;
        if bytes > most {
            self.miss(&mut state, now);
            return;
        }
        state.bytes = bytes;
        state.lines.push_back(line);
        self.filled.notify_one();
    }

    /// Waits for the next task, until `until` at most. Call [`Queue::wrote`] after every task except
    /// [`Next::Look`].
    pub fn next(&self, until: Option<Instant>) -> Next {
        let mut state = self.state.lock();
        loop {
            // Half of the queue is written by then.
            let may_tell = !state.is_broken && state.bytes <= MAX_BYTES / 2;
            if let Some(missed) = state.missed.take_if(|_| may_tell) {
                state.writing = Some(Writing::Notice(missed));
                return Next::Tell(missed);
            }
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len() + OVERHEAD;
                state.writing = Some(Writing::Line);
                return Next::Write(line);
            }
            match until {
                None => self.filled.wait(&mut state),
                Some(until) if self.filled.wait_until(&mut state, until).timed_out() => return Next::Look,
                Some(_) => {}
            }
        }
    }

    /// The task succeeded or failed. Missing lines are reported only after a successful write, as
    /// there may be no reader any more.
    pub fn wrote(&self, worked: bool, now: Timestamp) {
        let mut state = self.state.lock();
        state.is_broken = !worked;
        match state.writing.take() {
            Some(Writing::Line) if !worked => self.miss(&mut state, now),
            Some(Writing::Notice(missed)) if !worked => {
                let later = state.missed.map_or(0, |later| later.count);
                state.missed = Some(Missed { count: missed.count + later, since: missed.since });
            }
            _ => {}
        }
        self.emptied.notify_all();
    }

    fn miss(&self, state: &mut State, now: Timestamp) {
        self.counts.dropped.inc();
        state.missed.get_or_insert(Missed { count: 0, since: now }).count += 1;
    }

    /// Waits until everything is written, for `within` at most.
    pub fn flush(&self, within: Duration) {
        let until = Instant::now() + within;
        let mut state = self.state.lock();
        while !state.lines.is_empty() || state.writing.is_some() || (state.missed.is_some() && !state.is_broken) {
            if self.emptied.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

    fn queue() -> Queue {
        Queue::new(LogLines::default())
    }

    fn full(queue: &Queue, level: Level) -> u64 {
        let mut taken = 0;
        while queue.counts.dropped.get() == 0 {
            queue.push(level, vec![b'x'; 100], NOW);
            taken += 1;
        }
        taken - 1
    }

    fn next(queue: &Queue) -> Next {
        queue.next(Some(Instant::now()))
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_once_half_is_written() {
        let queue = queue();
        let taken = full(&queue, Level::DEBUG);
        queue.push(Level::INFO, vec![b'x'; 100], NOW);
        assert!((900..1300).contains(&taken), "{taken}");
        let mut before = 0;
        let told = loop {
            match next(&queue) {
                Next::Write(_) => before += 1,
                told => break told,
            }
            queue.wrote(true, NOW);
        };
        assert_eq!(told, Next::Tell(Missed { count: 2, since: NOW }));
        assert!((taken / 4..taken / 2).contains(&before), "{before} of {taken}");
        queue.wrote(true, NOW);
        while let Next::Write(_) = next(&queue) {
            before += 1;
            queue.wrote(true, NOW);
        }
        assert_eq!((before, next(&queue)), (taken, Next::Look));
        assert_eq!(queue.counts.dropped.get(), 2);
    }

    #[test]
    fn other_lines_leave_room_for_warnings() {
        let queue = queue();
        full(&queue, Level::INFO);
        queue.push(Level::WARN, vec![b'x'; 100], NOW);
        queue.push(Level::ERROR, vec![b'x'; 100], NOW);
        assert_eq!(queue.counts.dropped.get(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_missed_and_told_once_something_can() {
        let queue = queue();
        let write = |worked| {
            queue.push(Level::INFO, b"line".to_vec(), NOW);
            assert_eq!(next(&queue), Next::Write(b"line".to_vec()));
            queue.wrote(worked, NOW);
        };
        write(false);
        assert_eq!(next(&queue), Next::Look, "nobody would hear it");
        write(false);
        write(true);
        let missed = Missed { count: 2, since: NOW };
        assert_eq!(next(&queue), Next::Tell(missed));
        queue.wrote(false, NOW);
        assert_eq!(next(&queue), Next::Look);
        queue.flush(Duration::from_secs(60));
        write(true);
        assert_eq!(next(&queue), Next::Tell(missed), "that it could not be told is not forgotten");
    }

    #[test]
    fn flushing_waits_for_what_is_being_written_and_not_for_ever() {
        let queue = queue();
        queue.push(Level::INFO, b"line".to_vec(), NOW);
        let began = Instant::now();
        queue.flush(Duration::from_millis(20));
        assert!(began.elapsed() >= Duration::from_millis(20));
        assert!(matches!(next(&queue), Next::Write(_)));
        std::thread::scope(|scope| {
            let flushing = scope.spawn(|| queue.flush(Duration::from_secs(600)));
            queue.wrote(true, NOW);
            flushing.join().expect("it ends");
        });
    }
}
