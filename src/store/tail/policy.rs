//! What the log is configured to do.

use crate::config::HistoryWithin;
use std::time::Duration;

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
