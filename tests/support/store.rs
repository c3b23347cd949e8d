//! Logs that tests open in their own process.

use bytesize::ByteSize;
use std::path::Path;
use std::time::Duration;
use tidegate::config::{Deliver, Store};

/// A log of 1 MiB that commits at once, and delivers what is committed.
pub fn small(directory: &Path) -> Store {
    Store {
        directory: directory.to_owned(),
        commit_within: Duration::ZERO,
        deliver: Deliver::AfterCommit,
        max_size: ByteSize::mib(1),
        max_pending: ByteSize::kib(256),
        segment_size: ByteSize::kib(64),
        ..Store::default()
    }
}
