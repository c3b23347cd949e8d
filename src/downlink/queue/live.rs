//! A command that has not ended.

use crate::model::Command;
use std::time::Duration;

pub(super) struct Live {
    pub command: Command,
    pub phase: Phase,
    /// When it came, if it did in this life.
    pub came: Option<Duration>,
    /// When its time is over, if that can be told yet, and when it is at the latest.
    pub deadline: Option<Duration>,
    pub latest: Duration,
    /// When it was first handed over, or may have been by an earlier life.
    pub handed: Option<Duration>,
    /// The connection over which that was tried last, and when to try again.
    pub tried: Option<u64>,
    pub again: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is being written for the first time.
    Receiving,
    Waiting,
    /// That it was sent is being written.
    Marking,
    /// It may be handed over, or was.
    Marked,
    /// How it ended is being written.
    Ending,
}

/// What a command takes beside its payload, about.
const OVERHEAD: usize = 512;

/// What a command with this payload takes, in bytes.
pub(super) fn size(payload: Option<&String>) -> usize {
    payload.map_or(0, String::len) + OVERHEAD
}

impl Live {
    pub fn size(&self) -> usize {
        size(self.command.payload.as_ref())
    }

    /// Whether nothing of it is being written.
    pub fn may_end(&self) -> bool {
        matches!(self.phase, Phase::Waiting | Phase::Marked)
    }

    /// When it ends by itself, as far as can be told now.
    pub fn over(&self, answer_within: Duration) -> Duration {
        let deadline = self.deadline.unwrap_or(self.latest);
        match self.handed {
            Some(handed) => deadline.max(handed + answer_within),
            None => deadline,
        }
    }
}
