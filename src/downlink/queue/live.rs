//! A command that has not ended.

use crate::model::Command;
use std::time::Duration;

pub(super) struct Live {
    pub command: Command,
    pub phase: Phase,
    /// When it arrived, if it did in this run.
    pub came: Option<Duration>,
    /// When it expires, if that is known yet, and when at the latest.
    pub deadline: Option<Duration>,
    pub latest: Duration,
    /// When it was first handed over, or may have been by an earlier run.
    pub handed: Option<Duration>,
    /// The connection that it was last sent over, and when to send it again.
    pub tried: Option<u64>,
    pub again: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is being written for the first time.
    Receiving,
    Waiting,
    /// The mark that it was sent is being written.
    Marking,
    /// It may be handed over, or was.
    Marked,
    /// Its end is being written.
    Ending,
}

/// Memory of a command beside its payload, in bytes, estimated.
const OVERHEAD: usize = 512;

/// Memory of a command with this payload, in bytes.
pub(super) fn size(payload: Option<&String>) -> usize {
    payload.map_or(0, String::len) + OVERHEAD
}

impl Live {
    pub fn size(&self) -> usize {
        size(self.command.payload.as_ref())
    }

    /// Whether no change of it is being written.
    pub fn may_end(&self) -> bool {
        matches!(self.phase, Phase::Waiting | Phase::Marked)
    }

    /// When it ends by itself, as far as that is known now.
    pub fn over(&self, answer_within: Duration) -> Duration {
        let deadline = self.deadline.unwrap_or(self.latest);
        match self.handed {
            Some(handed) => deadline.max(handed + answer_within),
            None => deadline,
        }
    }
}
