//! How much room the disk leaves, as a named state. Pure.
//!
//! ```text
//!            free < min_free                 no space
//!   normal  ----------------->  low  ----------------->  full
//!     ^  <---------------------  ^  <---------------------
//!     |   free >= min_free + 1/8 |     a commit succeeds
//!     +--------- failing <-------+--- any other error, until a commit succeeds
//! ```

use super::failure::WriteFailure;
use crate::metrics::{Metrics, StateLabel};
use std::time::Duration;

/// What the store can do at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskState {
    /// There is room.
    Normal,
    /// Less than `min_free` is left: the log does not grow, its oldest readings make
    /// room for new ones.
    Low,
    /// Nothing can be written for want of space; devices are not acknowledged.
    Full,
    /// Nothing can be written for another reason; devices are not acknowledged.
    Failing,
}

impl DiskState {
    pub const ALL: [DiskState; 4] = [DiskState::Normal, DiskState::Low, DiskState::Full, DiskState::Failing];

    /// As it stands in events and metrics.
    pub fn name(self) -> &'static str {
        match self {
            DiskState::Normal => "normal",
            DiskState::Low => "low",
            DiskState::Full => "full",
            DiskState::Failing => "failing",
        }
    }

    /// Shows it in the metrics.
    pub(in crate::store) fn show(self, metrics: &Metrics) {
        for state in DiskState::ALL {
            let label = StateLabel { state: state.name() };
            metrics.store_state.get_or_create(&label).set(i64::from(state == self));
        }
    }

    /// Whether readings can be written.
    pub fn is_writable(self) -> bool {
        matches!(self, DiskState::Normal | DiskState::Low)
    }
}

/// The state, and how long to wait before the next attempt to write.
#[derive(Debug)]
pub(in crate::store) struct Headroom {
    state: DiskState,
    failures: u32,
}

/// Pause after the first commit that failed; it doubles with each further one.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

impl Headroom {
    pub fn new() -> Headroom {
        Headroom { state: DiskState::Normal, failures: 0 }
    }

    pub fn state(&self) -> DiskState {
        self.state
    }

    /// Something was written, or nothing had to be, with `free` bytes left if that is
    /// known. Returns the state left, if it changed.
    pub fn wrote(&mut self, free: Option<u64>, min_free: u64) -> Option<DiskState> {
        self.failures = 0;
        let enough = match self.state {
            DiskState::Normal => min_free,
            _ => min_free.saturating_add(min_free / 8),
        };
        let low = free.is_some_and(|free| free < enough);
        self.become_(if low { DiskState::Low } else { DiskState::Normal })
    }

    /// Writing failed. Returns the state left, if it changed.
    pub fn failed(&mut self, failure: WriteFailure) -> Option<DiskState> {
        self.failures = self.failures.saturating_add(1);
        self.become_(match failure {
            WriteFailure::NoSpace => DiskState::Full,
            WriteFailure::Other => DiskState::Failing,
        })
    }

    /// How long to wait before the next attempt, after a failure.
    pub fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(10);
        (RETRY_MIN * (1 << doublings)).min(RETRY_MAX)
    }

    fn become_(&mut self, state: DiskState) -> Option<DiskState> {
        let before = std::mem::replace(&mut self.state, state);
        (before != state).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_state_follows_free_space_with_some_inertia() {
        let mut headroom = Headroom::new();
        assert_eq!(headroom.wrote(Some(64 * MIB), 64 * MIB), None);
        assert_eq!(headroom.wrote(Some(64 * MIB - 1), 64 * MIB), Some(DiskState::Normal));
        assert_eq!(headroom.state(), DiskState::Low);
        assert_eq!(headroom.wrote(Some(70 * MIB), 64 * MIB), None, "not yet well above");
        assert_eq!(headroom.wrote(Some(72 * MIB), 64 * MIB), Some(DiskState::Low));
        assert_eq!(headroom.wrote(None, 64 * MIB), None, "unknown is no reason for a change");
    }

    #[test]
    fn failures_are_left_by_the_first_success_and_wait_longer_each_time() {
        let mut headroom = Headroom::new();
        assert_eq!(headroom.failed(WriteFailure::NoSpace), Some(DiskState::Normal));
        assert_eq!((headroom.state(), headroom.pause()), (DiskState::Full, RETRY_MIN));
        assert_eq!(headroom.failed(WriteFailure::NoSpace), None);
        assert_eq!(headroom.pause(), RETRY_MIN * 2);
        assert_eq!(headroom.failed(WriteFailure::Other), Some(DiskState::Full));
        for _ in 0..50 {
            headroom.failed(WriteFailure::Other);
        }
        assert_eq!((headroom.state(), headroom.pause()), (DiskState::Failing, RETRY_MAX));
        assert!(!headroom.state().is_writable());
        assert_eq!(headroom.wrote(Some(MIB), 0), Some(DiskState::Failing));
        assert_eq!(headroom.failed(WriteFailure::NoSpace), Some(DiskState::Normal));
        assert_eq!(headroom.pause(), RETRY_MIN);
    }
}
