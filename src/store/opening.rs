//! From the files to a log that only lacks its writer.

use super::commit::committer::{Committer, OnDisk};
use super::disk::budget::Budget;
use super::disk::failure::WriteFailure;
use super::disk::headroom::DiskState;
use super::disk::lock::lock;
use super::disk::log_clock::LogClock;
use super::disk::readers::Readers;
use super::disk::reserve_file::ReserveFile;
use super::disk::schema::{self, OpenError};
use super::disk::small_tables::{MAX_HIGH_WATERS, Shares};
use super::disk::space::{Gauge, Space};
use super::inbox::Inbox;
use super::log::Log;
use super::presence::{self, KnownDevices, UnwrittenPresence};
use super::read::cursor::SinkCursor;
use super::recovery::open::{self, RecoveredLog};
use super::recovery::restore_job::{Job, Restored};
use super::recovery::startup::UncleanEnd;
use super::restore;
use super::retention::eviction::{Bounds, Evictor};
use super::retention::priority::PriorityRoutes;
use super::shared::Shared;
use super::sinks::positions::{AdoptedSinks, ConfiguredSink};
use super::state::State;
use super::tail::Tail;
use super::tail::high_water::{HighWater, HighWaters};
use super::tail::policy::Policy;
use super::tail::room::Room;
use super::writer::{self, Stepper, Writer};
use crate::clock::Clock;
use crate::config::{self, Deliver, Route};
use crate::metrics::Metrics;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;
use tokio::sync::Notify;

/// The log just opened, and what goes with it.
pub struct Opened<W = Writer> {
    pub log: Log,
    /// One for each of the sinks that were named, in their order.
    pub cursors: Vec<SinkCursor>,
    /// What was told of devices' presence.
    pub devices: KnownDevices,
    /// Ends when the log is closed; see [`Log::close`].
    pub writer: W,
}

impl Log {
    /// [`Log::open_with`], without routes.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        config: &config::Store,
        sinks: &[&str],
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Opened, OpenError> {
        Log::open_with(config, &[], sinks, clock, metrics)
    }

    /// Opens the log in the configured directory, creating both if need be, for
    /// the sinks named, and starts its writer. A damaged log is moved aside and what
    /// is sound in it taken over into a new one. Readings that a route of high priority
    /// matches outlive the others. If the disk is full, the reserve file is given up.
    ///
    /// # Errors
    /// See [`OpenError`]; some of them pass, see [`OpenError::may_pass`].
    pub fn open_with<'a, S: Into<ConfiguredSink<'a>> + Copy>(
        config: &config::Store,
        routes: &[Route],
        sinks: &[S],
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Opened, OpenError> {
        let Prepared { shared, committer, jobs, devices, reserve } =
            prepare(config, routes, &wanted(sinks), clock, metrics, None)?;
        let for_writer = shared.clone();
        let failed = |why| OpenError::Directory { path: config.directory.clone(), why };
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer::run(&for_writer, committer, reserve))
            .map_err(failed)?;
        let log = Log { shared: shared.clone() };
        let salvage = match jobs.is_empty() {
            true => None,
            false => Some(restore::start(log, config.directory.clone(), jobs).map_err(failed)?),
        };
        Ok(opened(shared, devices, Writer::new(thread, salvage)))
    }

    /// Opens the log as [`Log::open_with`] does, without any thread: the caller steps the
    /// writer, and sinks read on the thread that asks; `gauge` tells the disk's room.
    /// Segments of a quarantined log wait for an opening with threads. For simulations.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_stepped<'a, S: Into<ConfiguredSink<'a>> + Copy>(
        config: &config::Store,
        routes: &[Route],
        sinks: &[S],
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        gauge: Gauge,
    ) -> Result<Opened<Stepper>, OpenError> {
        let Prepared { shared, committer, devices, reserve, .. } =
            prepare(config, routes, &wanted(sinks), clock, metrics, Some(gauge))?;
        Ok(opened(shared.clone(), devices, Stepper::new(shared, committer, reserve)))
    }
}

fn wanted<'a, S: Into<ConfiguredSink<'a>> + Copy>(sinks: &[S]) -> Vec<ConfiguredSink<'a>> {
    sinks.iter().map(|sink| (*sink).into()).collect()
}

/// A log without a writer.
pub(super) struct Prepared {
    pub shared: Arc<Shared>,
    pub committer: Committer,
    pub jobs: Vec<Job>,
    pub devices: KnownDevices,
    pub reserve: ReserveFile,
}

/// Opens the database and reads from it what the last life left. If the disk is full,
/// the reserve file is given up. With a `gauge` of the disk's room, nothing but the
/// caller's thread is going to read or write.
pub(super) fn prepare(
    config: &config::Store,
    routes: &[Route],
    sinks: &[ConfiguredSink<'_>],
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    gauge: Option<Gauge>,
) -> Result<Prepared, OpenError> {
    let directory = config.directory.as_path();
    let failed = |why: &OpenError| match WriteFailure::of_opening(why) {
        WriteFailure::NoSpace => DiskState::Full.show(&metrics),
        WriteFailure::Other => DiskState::Failing.show(&metrics),
    };
    let lock = lock(directory).inspect_err(failed)?;
    let budget = Budget::new(config.max_size.as_u64());
    let mut reserve = ReserveFile::new(directory, budget.reserve());
    let priority = PriorityRoutes::new(routes);
    let now = clock.now();
    let mut recovered = open::open(config, &priority, sinks, &*clock, &metrics);
    if let Err(why) = &recovered
        && WriteFailure::of_opening(why) == WriteFailure::NoSpace
        && reserve.is_there()
        && reserve.release()
    {
        tracing::warn!(bytes = reserve.size(), "the disk is full; the reserve file was given up to make room");
        recovered = open::open(config, &priority, sinks, &*clock, &metrics);
    }
    let RecoveredLog { connection, found, ticket, boots, commands, commands_lost, jobs, notes } =
        recovered.inspect_err(failed)?;
    match found.unclean_end {
        None => {}
        Some(UncleanEnd::Alone) => tracing::warn!(
            "the last run of the gateway did not end by a stop: it was killed or crashed (journalctl -u tidegate has its \
             last words); what it acknowledged is in the log"
        ),
        Some(UncleanEnd::WithMachine) => tracing::warn!(
            "the last run of the gateway did not end by a stop: the power failed, or the machine ended before the gateway; \
             what it acknowledged is in the log"
        ),
    }
    let mut notices = Vec::new();
    if commands_lost > 0 {
        tracing::error!(commands = commands_lost, "damaged commands were taken out of the log");
        let body = serde_json::json!({"type": "commands_lost", "reason": "corrupt", "count": commands_lost});
        notices.push(body.to_string());
    }
    let devices = presence::load(&connection).unwrap_or_else(|why| {
        tracing::error!(%why, "what was known of devices' presence cannot be read");
        KnownDevices::default()
    });
    let bytes = |size: u64| usize::try_from(size.min(budget.commit())).unwrap_or(usize::MAX);
    let segment_size = config.segment_size.as_u64();
    let history_size = segment_size.saturating_mul(2).min(config.max_pending.as_u64() / 2).max(segment_size);
    let policy = Policy {
        commit_within: config.commit_within,
        history_within: config.history_within,
        after_commit: config.deliver == Deliver::AfterCommit,
        max_pending: usize::try_from(config.max_pending.as_u64()).unwrap_or(usize::MAX),
        segment_bytes: bytes(segment_size),
        history_bytes: bytes(history_size),
    };
    let AdoptedSinks { positions, retired, new } = found.sinks;
    let confirmed = positions.iter().map(|(confirmed, _)| *confirmed).collect();
    let tail = Tail::new(policy, found.next, found.reserved, confirmed);
    // They stand in the order in which they were used.
    let mut high_waters = HighWaters::new(MAX_HIGH_WATERS);
    found
        .high_waters
        .into_iter()
        .for_each(|(device, session, seq)| high_waters.used(HighWater::new(device, session, seq)));
    let bounds = Bounds {
        max_size: config.max_size.as_u64(),
        max_age: config.max_age.map(|max_age| max_age.as_secs()),
        thin: config.thin,
    };
    let evictor = Evictor::new(bounds, priority, found.generation);
    let readers = Arc::new(Readers::default());
    let path = schema::database(config);
    let stepped = gauge.is_some();
    let gauge = gauge.unwrap_or_else(|| Space::gauge(directory));
    let all = positions.iter().map(|(confirmed, _)| *confirmed).chain(retired.iter().map(|sink| sink.confirmed));
    let everywhere = all.min().unwrap_or_default();
    let holes = found.holes.behind(everywhere).collect();
    let on_disk = OnDisk { written: found.written, holes: found.holes, checkpoint_record: found.checkpoint_record };
    let committer =
        Committer::new(config, (gauge, stepped), on_disk, (connection, lock), readers.clone(), evictor, ticket)
            .map_err(|why| OpenError::Directory { path: path.clone(), why: std::io::Error::other(why) })?;
    let shared = Arc::new(Shared {
        visible: AtomicU64::new(tail.visible().0),
        last_event: AtomicU64::new(found.last_event),
        state: Mutex::new(State {
            tail,
            room: Room::default(),
            high_waters,
            events: positions.iter().map(|(_, event)| *event).collect(),
            unreported: found.unreported,
            retired,
            forget_after: config.forget_sinks_after.as_secs(),
            persisted: positions,
            written: found.written,
            positions_due: None,
            holes,
            gaps: Vec::new(),
            boots,
            notices,
            presence: UnwrittenPresence::default(),
            presence_calls: (0, 0),
            inbox: Inbox::new(commands, Shares::of(config.max_size.as_u64())),
            disk: DiskState::Normal,
            log_clock: LogClock::new(found.clock.0, found.clock.1, clock.boot(), now),
            check_due: now.monotonic,
            warned: None,
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
        saturated: AtomicBool::new(false),
        unnamed: Arc::default(),
        committed: Notify::new(),
        advanced: Notify::new(),
        names: sinks.iter().map(|sink| Arc::from(sink.name)).collect(),
        readers,
        path,
        epochs: found.epochs,
        opened: now.monotonic,
        clock,
        metrics,
        stepped,
    });
    say_who_waits(&shared, &new);
    Ok(Prepared { shared, committer, jobs, devices, reserve })
}

/// Says for whom readings are kept that is not configured any more: a sink that was
/// renamed is such a one, and a new one.
fn say_who_waits(shared: &Shared, new: &[String]) {
    let state = shared.state.lock();
    for sink in &state.retired {
        if let Some(note) = state.waits_for(sink) {
            tracing::warn!(new = new.join(", "), "{note}");
        }
    }
}

pub(super) fn opened<W>(shared: Arc<Shared>, devices: KnownDevices, writer: W) -> Opened<W> {
    let cursors = (0..shared.names.len()).map(|index| SinkCursor::new(shared.clone(), index)).collect();
    Opened { log: Log { shared }, cursors, devices, writer }
}
