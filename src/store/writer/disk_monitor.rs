//! Watches over the disk's room: carries out what [`Headroom`] concludes, and says so.

use crate::store::commit::committer::Committer;
use crate::store::disk::failure::WriteFailure;
use crate::store::disk::headroom::{DiskState, Headroom};
use crate::store::disk::reserve_file::ReserveFile;
use crate::store::shared::Shared;
use std::time::Duration;

/// Fewer free bytes than this are as good as none.
const NOTHING: u64 = 64 << 10;

pub(in crate::store) struct DiskMonitor {
    headroom: Headroom,
    reserve: ReserveFile,
}

impl DiskMonitor {
    pub fn new(shared: &Shared, reserve: ReserveFile) -> DiskMonitor {
        let headroom = Headroom::new();
        headroom.state().show(&shared.metrics);
        DiskMonitor { headroom, reserve }
    }

    /// Something was written, or nothing had to be.
    pub fn wrote(&mut self, shared: &Shared, committer: &Committer) {
        let space = committer.space();
        let (free, min_free) = space.map_or((None, 0), |(free, min_free)| (Some(free), min_free));
        let before = self.headroom.wrote(free, min_free);
        self.announce(shared, committer, before, free, None);
        let room = free.is_none_or(|free| free >= min_free.saturating_add(self.reserve.size()));
        if !self.reserve.is_there()
            && self.headroom.state() == DiskState::Normal
            && room
            && let Err(why) = self.reserve.take()
        {
            tracing::debug!(%why, "the reserve file cannot be written yet");
        }
    }

    /// Writing failed. Returns how long to wait before the next attempt.
    pub fn failed(&mut self, shared: &Shared, committer: &Committer, why: &anyhow::Error) -> Duration {
        let free = committer.space().map(|(free, _)| free);
        // For want of space files cannot be created either, which SQLite calls otherwise.
        let failure =
            if free.is_some_and(|free| free < NOTHING) { WriteFailure::NoSpace } else { WriteFailure::of(why) };
        let before = self.headroom.failed(failure);
        self.announce(shared, committer, before, free, Some(why));
        if self.headroom.state() == DiskState::Full && self.reserve.is_there() && self.reserve.release() {
            tracing::warn!(bytes = self.reserve.size(), "the reserve file was given up to make room");
            return Duration::ZERO;
        }
        self.headroom.pause()
    }

    fn announce(
        &self,
        shared: &Shared,
        committer: &Committer,
        before: Option<DiskState>,
        free: Option<u64>,
        why: Option<&anyhow::Error>,
    ) {
        let Some(before) = before else { return };
        let (was, state) = (before.name(), self.headroom.state());
        let free_bytes = free.unwrap_or_default();
        match (state, why) {
            (DiskState::Normal, _) => {
                tracing::info!(state = state.name(), was, free_bytes, "the log has room and can be written");
            }
            (DiskState::Low, _) => tracing::warn!(
                state = state.name(),
                was,
                free_bytes,
                "less than min_free is left: the log does not grow, its oldest readings make room for new ones"
            ),
            (DiskState::Full, _) => tracing::error!(
                path = %committer.path.display(),
                state = state.name(),
                was,
                free_bytes,
                "the log cannot be written: its disk is full; devices are not acknowledged until it can: free some \
                 space, or lower [store] max_size"
            ),
            (DiskState::Failing, why) => tracing::error!(
                state = state.name(),
                was,
                free_bytes,
                error = why.map(|why| format!("{why:#}")).unwrap_or_default(),
                "the log cannot be written: its disk fails; devices are not acknowledged until it can: look at the \
                 disk and its cable (dmesg), or replace it"
            ),
        }
        let mut notice = serde_json::json!({ "type": "store", "state": state.name(), "was": was });
        if let Some(free) = free {
            notice["free"] = free.into();
        }
        let mut held = shared.state.lock();
        held.disk = state;
        held.notify(notice.to_string());
        drop(held);
        state.show(&shared.metrics);
    }
}
