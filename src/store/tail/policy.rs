//! What the log is configured to do.

use crate::config::HistoryWithin;
use std::time::Duration;

/// Readings that take longer than this to fill a segment come slowly: the disk keeps up with
/// them, whatever it is given at a time.
const SLOWLY: Duration = Duration::from_secs(1);

/// The rules by which the log commits and holds back.
#[derive(Debug, Clone)]
pub struct Policy {
    /// A reading that not every sink confirmed is on disk this soon.
    pub commit_within: Duration,
    /// A confirmed reading is on disk this soon, if at all.
    pub history_within: HistoryWithin,
    /// Sinks see a reading only once it is on disk.
    pub after_commit: bool,
    /// Bytes of readings, unsettled or unsaved, beyond which nothing is accepted.
    pub max_pending: usize,
    /// Bytes of unsaved readings that make a commit due at once.
    pub segment_bytes: usize,
    /// The same, but of readings that came slowly and are settled, or nearly all of them: the
    /// more readings of each device a segment has, the fewer bytes each takes.
    pub history_bytes: usize,
}

impl Policy {
    /// Whether readings of so many bytes that came within `span` come slowly.
    pub fn is_slow(&self, bytes: usize, span: Duration) -> bool {
        span.as_micros() * self.segment_bytes as u128 > SLOWLY.as_micros() * bytes as u128
    }
}
