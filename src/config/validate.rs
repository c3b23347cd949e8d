//! What is well-formed but makes no sense. Pure, but for [`check_files`].

mod commands;
mod file_sink;
mod files;
mod http;
mod links;
mod mqtt;
mod places;
mod routes;
mod sinks;

use super::problem::Report;
use super::sinks::{SECTIONS, headers};
use super::{Config, Devices, Gateway, HistoryWithin, Silence, Store};
use crate::model::Timestamp;
use bytesize::ByteSize;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use mqtt::prefix_fault;
pub(super) use places::check_places;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// 2100-01-01: no device takes readings after that only.
const LATEST_EARLIEST: Timestamp = Timestamp(4_102_444_800_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Adds a problem for all in `config` that does not make sense.
pub(super) fn check(config: &Config, report: &mut Report) {
    gateway(&config.gateway, Section::new(report, "gateway"));
    memory(config, report);
    links::check(config, report);
    http::check(config, Section::new(report, "http"));
    devices(&config.devices, Section::new(report, "devices"));
    commands::check(&config.commands, report);
    store(&config.store, Section::new(report, "store"));
    routes::check(&config.route, report);
    sinks::check(config, report);
}

/// Adds a problem for each file that `config` names and that cannot be used, and says of
/// which that is not known.
pub(super) fn check_files(config: &Config, report: &mut Report) {
    files::of_listeners(config, report);
    sinks::check_files(config, report);
}

fn gateway(gateway: &Gateway, mut section: Section) {
    log_level(&gateway.log_level, &mut section);
    if let Some(threads) = gateway.worker_threads {
        section.number("worker_threads", threads, 1, 64);
    }
    section.duration("shutdown_timeout", gateway.shutdown_timeout, SECOND, 5 * MINUTE);
    if !gateway.clock_file.is_absolute() {
        let what = format!("{} is no absolute path", gateway.clock_file.display());
        section.reject(&["clock_file"], what, "give the path of the file, from / on");
    }
}

/// Of a limit that the machine gives, what the queues need is made part.
fn memory(config: &Config, report: &mut Report) {
    const KEY: &str = "gateway.memory_limit";
    let least = super::memory::least(config, 0);
    let refused = ["store.max_pending"].iter().chain(&SECTIONS).any(|key| report.is_refused(key));
    if let Some(limit) = config.gateway.memory_limit.filter(|limit| limit.as_u64() < least && !refused) {
        let (sinks, headers) = (config.sinks().len(), headers());
        let what = format!("{} is not enough for store.max_pending and {sinks} {headers}", size(limit));
        let fix = format!("give {} or more, or lower store.max_pending", size(ByteSize(least)));
        report.add(KEY, what, fix);
    }
}

fn log_level(levels: &str, section: &mut Section) {
    if let Err((what, fix)) = super::log_levels(levels) {
        section.reject(&["log_level"], what, fix);
    }
}

fn devices(devices: &Devices, mut section: Section) {
    silence(devices.silence(None, None), &mut section);
    section.duration("offline_delay", devices.offline_delay, Duration::ZERO, HOUR);
    section.duration("flap_damping", devices.flap_damping, SECOND, HOUR);
    section.number("max_known", devices.max_known, 1, 1_000_000);
    section.number("max_sub_devices", devices.max_sub_devices, 0, 65_535);
    section.number("window", devices.window, 1, 1_000_000);
    section.number("max_message_rate", devices.max_message_rate, 0, 1_000_000);
    section.number("message_burst", devices.message_burst, 1, 1_000_000);
    section.duration("max_clock_ahead", devices.max_clock_ahead, SECOND, 365 * DAY);
    routes::device_patterns("allow", &devices.allow, &mut section);
    routes::device_patterns("deny", &devices.deny, &mut section);
    section.number("lock_out_after", devices.lock_out_after, 0, 1000);
    let earliest = devices.earliest_time;
    if !(Timestamp(0)..=LATEST_EARLIEST).contains(&earliest) {
        let fix = format!("give a time from {} to {LATEST_EARLIEST}", Timestamp(0));
        section.reject(&["earliest_time"], format!("{earliest} is out of range"), fix);
    }
}

/// What a device's silence means, in `[devices]` or on a link.
fn silence(silence: Silence, section: &mut Section) {
    let Silence { heartbeat_interval, idle_timeout } = silence;
    section.duration("heartbeat_interval", heartbeat_interval, SECOND, DAY);
    section.duration("idle_timeout", idle_timeout, SECOND, 7 * DAY);
    if idle_timeout <= heartbeat_interval {
        let what = format!("{} of silence ends a session before a heartbeat is due", time(idle_timeout));
        let fix = format!("give more than heartbeat_interval, {}", time(heartbeat_interval));
        section.reject(&["idle_timeout", "heartbeat_interval"], what, fix);
    }
}

fn store(store: &Store, mut section: Section) {
    if store.directory.as_os_str().is_empty() {
        section.reject(&["directory"], "is empty", "give the directory for the log's files");
    }
    if let Some(runtime) = &store.runtime_directory {
        if !runtime.is_absolute() {
            let what = format!("{} is no absolute path", runtime.display());
            section.reject(&["runtime_directory"], what, "give the path of a directory in memory, from / on");
        } else if runtime.starts_with(&store.directory) {
            let what = format!("{} is copied along with the log", runtime.display());
            let fix = "give a directory in memory, such as /run/tidegate";
            section.reject(&["runtime_directory", "directory"], what, fix);
        }
    }
    section.duration("commit_within", store.commit_within, Duration::ZERO, HOUR);
    if let HistoryWithin::Within(history_within) = store.history_within {
        section.duration("history_within", history_within, Duration::ZERO, DAY);
        if history_within < store.commit_within {
            let what = format!("{} is less than commit_within", time(history_within));
            let fix = format!("give {} or more, or \"off\"", time(store.commit_within));
            section.reject(&["history_within", "commit_within"], what, fix);
        }
    }
    section.size("max_size", store.max_size, ByteSize::mib(8), ByteSize::tib(64));
    if let Some(max_age) = store.max_age {
        section.duration("max_age", max_age, MINUTE, 3650 * DAY);
    }
    section.size("min_free", store.min_free, ByteSize(0), ByteSize::tib(64));
    if let Some(thin) = store.thin {
        section.number("thin", thin, 2, 1000);
    }
    section.size("max_pending", store.max_pending, ByteSize::kib(64), ByteSize::gib(1));
    section.number("audit", store.audit, 0, 1_000_000);
    section.number("max_events", store.max_events, 100, 1_000_000);
    section.duration("forget_sinks_after", store.forget_sinks_after, HOUR, 3650 * DAY);
    section.size("segment_size", store.segment_size, ByteSize::kib(4), ByteSize::gib(1));
    if store.segment_size > store.max_pending {
        let what = format!("{} is more than max_pending", size(store.segment_size));
        section.reject(&["segment_size", "max_pending"], what, format!("give {} or less", size(store.max_pending)));
    }
    let half = ByteSize(store.max_size.as_u64() / 2);
    if store.segment_size > half {
        let what = format!("{} is more than half of max_size", size(store.segment_size));
        section.reject(&["segment_size", "max_size"], what, format!("give {} or less", size(half)));
    }
}

/// Whether two listeners cannot stand side by side.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || (any && a.is_ipv4() == b.is_ipv4()))
}

/// One section of the file, whose keys are checked.
struct Section<'a> {
    report: &'a mut Report,
    path: String,
}

impl Section<'_> {
    fn new(report: &mut Report, path: impl Into<String>) -> Section<'_> {
        Section { report, path: path.into() }
    }

    /// A problem with the first of `keys` that the others have part in; no problem
    /// if the file's value of one of them was refused and a default stands there.
    fn reject(&mut self, keys: &[&str], what: impl Display, fix: impl Display) {
        let mut paths = keys.iter().map(|key| format!("{}.{key}", self.path));
        if paths.any(|path| self.report.is_refused(&path)) {
            return;
        }
        let place = keys.first().map_or(self.path.clone(), |key| format!("{}.{key}", self.path));
        self.report.add(&place, what, fix);
    }

    /// The file that `key` names could not be looked at.
    fn unseen(&mut self, key: &str, what: impl Display, fix: impl Display) {
        self.report.add_unseen(&format!("{}.{key}", self.path), what, fix);
    }

    /// A certificate and its private key are of use together only.
    fn key_pair(&mut self, cert: Option<&PathBuf>, key: Option<&PathBuf>) {
        let missing = match (cert, key) {
            (Some(_), None) => ["cert_file", "key_file"],
            (None, Some(_)) => ["key_file", "cert_file"],
            _ => return,
        };
        self.reject(&missing, format!("is of no use without `{}`", missing[1]), "give both or neither");
    }

    fn number<N: PartialOrd + Display>(&mut self, key: &str, value: N, min: N, max: N) {
        self.range(key, value, min, max, |n| n.to_string());
    }

    fn duration(&mut self, key: &str, value: Duration, min: Duration, max: Duration) {
        self.range(key, value, min, max, |duration| time(*duration));
    }

    fn size(&mut self, key: &str, value: ByteSize, min: ByteSize, max: ByteSize) {
        self.range(key, value, min, max, |bytes| size(*bytes));
    }

    /// Also makes comparisons with other keys void: one complaint about a value is enough.
    fn range<V: PartialOrd>(&mut self, key: &str, value: V, min: V, max: V, shown: impl Fn(&V) -> String) {
        if value < min || value > max {
            let what = format!("{} is out of range", shown(&value));
            self.reject(&[key], what, format!("give {} to {}", shown(&min), shown(&max)));
            self.report.refuse(&format!("{}.{key}", self.path));
        }
    }
}

/// As it would be written in the file.
fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// As it would be written in the file, exactly.
fn size(bytes: ByteSize) -> String {
    let bytes = bytes.as_u64();
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}
