//! From the files to a log that only lacks its writer.

use super::cursor::SinkCursor;
use super::disk::Disk;
use super::heal::{self, Healed};
use super::log::{Log, MAX_MARKS, Opened, Shared, State};
use super::mark::Mark;
use super::restore::{Job, Restored};
use super::schema::OpenError;
use super::tail::{Policy, Tail};
use super::writer::lock;
use crate::clock::Clock;
use crate::config::{self, Deliver};
use crate::metrics::Metrics;
use parking_lot::{Condvar, Mutex};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;
use tokio::sync::Notify;

/// A log without a writer.
pub(super) struct Prepared {
    pub shared: Arc<Shared>,
    pub disk: Disk,
    pub jobs: Vec<Job>,
    pub lock: File,
}

/// Opens the database and reads from it what the last life left.
pub(super) fn prepare(
    config: &config::Store,
    sinks: &[&str],
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    stepped: bool,
) -> Result<Prepared, OpenError> {
    let directory = config.directory.as_path();
    let lock = lock(directory)?;
    let path = heal::database(config);
    let now = clock.now();
    let Healed { connection, found, boots, jobs, notes } = heal::open(config, sinks, &*clock, &metrics)?;
    for name in &found.forgotten {
        tracing::warn!(sink = name, "a sink that is no longer configured is forgotten");
    }
    let policy = Policy {
        commit_within: config.commit_within,
        history_within: config.history_within,
        after_commit: config.deliver == Deliver::AfterCommit,
        max_pending: usize::try_from(config.max_pending.as_u64()).unwrap_or(usize::MAX),
        segment_bytes: usize::try_from(config.segment_size.as_u64()).unwrap_or(usize::MAX),
    };
    let confirmed = found.sinks.iter().map(|(confirmed, _)| *confirmed).collect();
    let tail = Tail::new(policy, found.next, found.reserved, confirmed);
    let marks = found
        .marks
        .into_iter()
        .map(|(device, session, seq)| (device.clone(), Mark::new(device, session, seq)))
        .collect();
    let disk = Disk::new(path.clone(), config.durability, config.max_size.as_u64(), found.written, connection)
        .map_err(|why| OpenError::Directory { path: path.clone(), why: std::io::Error::other(why) })?;
    let shared = Arc::new(Shared {
        visible: AtomicU64::new(tail.visible().0),
        last_event: AtomicU64::new(found.last_event),
        state: Mutex::new(State {
            tail,
            marks,
            max_marks: MAX_MARKS,
            events: found.sinks.iter().map(|(_, event)| *event).collect(),
            persisted: found.sinks,
            written: found.written,
            places_due: None,
            holes: found.holes,
            gaps: Vec::new(),
            boots,
            seen_event: found.last_event,
            sleeping_until: Duration::ZERO,
            flush: false,
            close: false,
            failure: None,
            last_progress: now.monotonic,
            damaged: false,
            restored: Restored::default(),
            restoring: false,
        }),
        damaged: Notify::new(),
        notes,
        due: Condvar::new(),
        room: Notify::new(),
        saturated: AtomicBool::new(false),
        committed: Notify::new(),
        news: Notify::new(),
        names: sinks.iter().map(|name| Arc::from(*name)).collect(),
        path,
        epoch: found.epoch,
        opened: now.monotonic,
        clock,
        metrics,
        stepped,
    });
    Ok(Prepared { shared, disk, jobs, lock })
}

pub(super) fn opened<W>(shared: Arc<Shared>, writer: W) -> Opened<W> {
    let cursors = (0..shared.names.len()).map(|index| SinkCursor::new(shared.clone(), index)).collect();
    Opened { log: Log { shared }, cursors, writer }
}
