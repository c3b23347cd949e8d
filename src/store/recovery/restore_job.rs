//! What is to be taken from a quarantined database, and what of it the next commit writes.

use super::quarantine::Entry;
use crate::model::{Epochs, Seq};
use crate::store::segment::Header;

/// The progress of one that is finished.
pub(in crate::store) const DONE: u64 = 1 << 62;

/// A quarantined database and what to take from it.
pub(in crate::store) struct Job {
    pub entry: Entry,
    /// Which its seqs are of, if that can be told.
    pub epochs: Option<Epochs>,
    /// Every sink confirmed its readings up to here.
    pub confirmed: u64,
    /// No seq in it is larger.
    pub end: u64,
    /// Segments that were taken over before a restart.
    pub done: u64,
}

/// What the next commit writes of it.
#[derive(Default)]
pub(in crate::store) struct Restored {
    pub history: Vec<(Header, Vec<u8>)>,
    /// Bodies of events.
    pub events: Vec<String>,
    /// How far it came, oldest first.
    pub progress: Vec<Progress>,
}

/// How far salvage of a database has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Progress {
    /// It came so far once readings up to here are on disk, or in no need of it.
    pub after: Seq,
    /// The key in `meta`.
    pub key: String,
    pub segments: u64,
}

impl Restored {
    pub fn is_empty(&self) -> bool {
        self.history.is_empty() && self.events.is_empty() && self.progress.is_empty()
    }

    /// Whether a commit should not be put off.
    pub fn is_due(&self) -> bool {
        !self.history.is_empty() || !self.events.is_empty()
    }

    /// What a commit writes, after which readings up to `saved` need no more writing.
    pub fn take(&mut self, saved: Seq) -> Restored {
        let due = self.progress.partition_point(|progress| progress.after <= saved);
        let rest = self.progress.split_off(due);
        std::mem::replace(self, Restored { progress: rest, ..Restored::default() })
    }

    /// It has come further.
    pub fn came(&mut self, progress: Progress) {
        match self.progress.last_mut().filter(|last| (last.after, &last.key) == (progress.after, &progress.key)) {
            Some(last) => *last = progress,
            None => self.progress.push(progress),
        }
    }

    /// Takes back what a failed commit did not write.
    pub fn put_back(&mut self, failed: Restored) {
        let newer = std::mem::replace(self, failed);
        self.history.extend(newer.history);
        self.events.extend(newer.events);
        self.progress.extend(newer.progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(after: u64, segments: u64) -> Progress {
        Progress { after: Seq(after), key: "salvage-0001".to_owned(), segments }
    }

    #[test]
    fn no_progress_is_written_before_the_readings_that_it_stands_for() {
        let mut restored = Restored::default();
        for (after, segments) in [(10, 1), (20, 2), (20, 3), (30, 4)] {
            restored.came(progress(after, segments));
        }
        // A commit takes a segment's worth of what was appended, not all of it.
        assert_eq!(restored.take(Seq(9)).progress, []);
        let taken = restored.take(Seq(25));
        assert_eq!(taken.progress, [progress(10, 1), progress(20, 3)]);
        assert_eq!(restored.progress, [progress(30, 4)]);
        restored.put_back(taken);
        let all = restored.take(Seq(30));
        assert_eq!(all.progress, [progress(10, 1), progress(20, 3), progress(30, 4)]);
        assert!(restored.is_empty());
    }
}
