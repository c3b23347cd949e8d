//! Every figure that the gateway exposes, typed, in one place.
//!
//! Names follow Prometheus practice: prefix `tidegate_`, base units, no label
//! whose values an outsider chooses. Cloning a [`Metrics`] shares its figures.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Why something was dropped or refused; values are constants of the code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

/// A link by its configured name, and a reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LinkReasonLabel {
    pub link: Arc<str>,
    pub reason: &'static str,
}

/// A link by its configured name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LinkLabel {
    pub link: Arc<str>,
}

/// A sink by its configured name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SinkLabel {
    pub sink: Arc<str>,
}

/// A sink by its configured name, and a reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SinkReasonLabel {
    pub sink: Arc<str>,
    pub reason: &'static str,
}

/// The link or sink that a certificate is of, by its configured name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CertificateLabel {
    pub part: Arc<str>,
}

/// Where a command came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabel {
    pub source: &'static str,
}

/// One of the store's states, or a command's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    pub state: &'static str,
}

/// Lines of the log that were not written as they came. The log is there before the gateway,
/// and after it.
#[derive(Debug, Clone, Default)]
pub struct LogLines {
    pub dropped: Counter,
    pub summarised: Counter,
}

type Float = Gauge<f64, AtomicU64>;

/// The gateway's figures. The field docs are the metrics' help texts.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    pub readings_received: Counter,
    pub readings_stored: Counter,
    pub readings_duplicate: Counter,
    pub readings_refused: Family<ReasonLabel, Counter>,
    pub readings_unsynchronised: Counter,
    pub readings_device_clock: Counter,
    pub clock_trusted: Gauge,
    pub readings_dropped: Family<ReasonLabel, Counter>,
    pub frames_invalid: Family<LinkReasonLabel, Counter>,
    pub frames_valid: Family<LinkLabel, Counter>,
    pub link_skipped_bytes: Family<LinkLabel, Counter>,
    pub link_echoes: Family<LinkLabel, Counter>,
    pub link_resends: Family<LinkLabel, Counter>,
    pub serial_opened: Family<LinkLabel, Counter>,
    pub serial_open_failures: Family<LinkLabel, Counter>,
    pub serial_read_bytes: Family<LinkLabel, Counter>,
    pub serial_written_bytes: Family<LinkLabel, Counter>,
    pub link_up: Family<LinkLabel, Gauge>,
    pub link_losses: Family<LinkLabel, Counter>,
    pub connections_waiting: Family<LinkLabel, Gauge>,
    pub connections_refused: Family<LinkReasonLabel, Counter>,
    pub devices_throttled: Family<LinkLabel, Counter>,
    pub link_unauthenticated: Family<LinkLabel, Gauge>,
    pub authentication_failures: Family<LinkReasonLabel, Counter>,
    pub keys: Gauge,
    pub certificate_expires_seconds: Family<CertificateLabel, Gauge>,
    pub devices_connected: Gauge,
    pub http_denied: Family<ReasonLabel, Counter>,
    pub devices_known: Gauge,
    pub devices_rivals: Counter,
    pub devices_refused: Family<ReasonLabel, Counter>,
    pub memory_limit_bytes: Gauge,
    pub memory_links_bytes: Gauge,
    pub memory_links_limit_bytes: Gauge,
    pub memory_refused: Family<ReasonLabel, Counter>,
    pub sink_delivered: Family<SinkLabel, Counter>,
    pub sink_events_refused: Family<SinkLabel, Counter>,
    pub sink_unexpected_confirmations: Family<SinkLabel, Counter>,
    pub sink_events_dropped: Family<SinkReasonLabel, Counter>,
    pub sink_dropped: Family<SinkReasonLabel, Counter>,
    pub sink_pending: Family<SinkLabel, Gauge>,
    pub sink_oldest_pending_seconds: Family<SinkLabel, Float>,
    pub sink_connected: Family<SinkLabel, Gauge>,
    pub sink_connects: Family<SinkLabel, Counter>,
    pub sink_losses: Family<SinkLabel, Counter>,
    pub delivery_seconds: Family<SinkLabel, Histogram>,
    pub store_state: Family<StateLabel, Gauge>,
    pub store_bytes: Gauge,
    pub store_written_bytes: Counter,
    pub store_pending_bytes: Gauge,
    pub store_history_lost: Counter,
    pub commit_seconds: Histogram,
    pub store_quarantines: Counter,
    pub store_salvaged_readings: Counter,
    pub commands_received: Family<SourceLabel, Counter>,
    pub commands_ended: Family<StateLabel, Counter>,
    pub commands_live: Gauge,
    pub commands_repeated: Counter,
    pub commands_late_results: Counter,
    pub command_seconds: Histogram,
    pub log_lines: LogLines,
}

impl Metrics {
    pub fn new() -> Metrics {
        Metrics::with(LogLines::default())
    }

    /// With the lines of a log that is there already.
    pub fn with(log_lines: LogLines) -> Metrics {
        let mut registry = Registry::with_prefix("tidegate");
        let latency = || Histogram::new(exponential_buckets(0.000_25, 2.0, 18));
        let metrics = Metrics {
            registry: Arc::default(),
            readings_received: Counter::default(),
            readings_stored: Counter::default(),
            readings_duplicate: Counter::default(),
            readings_refused: Family::default(),
            readings_unsynchronised: Counter::default(),
            readings_device_clock: Counter::default(),
            clock_trusted: Gauge::default(),
            readings_dropped: Family::default(),
            frames_invalid: Family::default(),
            frames_valid: Family::default(),
            link_skipped_bytes: Family::default(),
            link_echoes: Family::default(),
            link_resends: Family::default(),
            serial_opened: Family::default(),
            serial_open_failures: Family::default(),
            serial_read_bytes: Family::default(),
            serial_written_bytes: Family::default(),
            link_up: Family::default(),
            link_losses: Family::default(),
            connections_waiting: Family::default(),
            connections_refused: Family::default(),
            devices_throttled: Family::default(),
            link_unauthenticated: Family::default(),
            authentication_failures: Family::default(),
            keys: Gauge::default(),
            certificate_expires_seconds: Family::default(),
            devices_connected: Gauge::default(),
            http_denied: Family::default(),
            devices_known: Gauge::default(),
            devices_rivals: Counter::default(),
            devices_refused: Family::default(),
            memory_limit_bytes: Gauge::default(),
            memory_links_bytes: Gauge::default(),
            memory_links_limit_bytes: Gauge::default(),
            memory_refused: Family::default(),
            sink_delivered: Family::default(),
            sink_events_refused: Family::default(),
            sink_unexpected_confirmations: Family::default(),
            sink_events_dropped: Family::default(),
            sink_dropped: Family::default(),
            sink_pending: Family::default(),
            sink_oldest_pending_seconds: Family::default(),
            sink_connected: Family::default(),
            sink_connects: Family::default(),
            sink_losses: Family::default(),
            delivery_seconds: Family::new_with_constructor(latency),
            store_state: Family::default(),
            store_bytes: Gauge::default(),
            store_written_bytes: Counter::default(),
            store_pending_bytes: Gauge::default(),
            commit_seconds: latency(),
            store_quarantines: Counter::default(),
            store_salvaged_readings: Counter::default(),
            store_history_lost: Counter::default(),
            commands_received: Family::default(),
            commands_ended: Family::default(),
            commands_live: Gauge::default(),
            commands_repeated: Counter::default(),
            commands_late_results: Counter::default(),
            command_seconds: latency(),
            log_lines,
        };
        let m = metrics.clone();
        registry.register(
            "readings_received",
            "Readings that arrived from devices, duplicates included",
            m.readings_received,
        );
        registry.register("readings_stored", "Readings committed to the log on disk", m.readings_stored);
        registry.register(
            "readings_duplicate",
            "Readings that a device sent again and that were dropped before the log",
            m.readings_duplicate,
        );
        registry.register(
            "readings_refused",
            "Samples that can never be taken; readings without values stand in their places",
            m.readings_refused,
        );
        registry.register(
            "readings_unsynchronised",
            "Readings that arrived before the gateway's clock could be believed, of devices without a clock",
            m.readings_unsynchronised,
        );
        registry.register("readings_device_clock", "Readings whose device's clock is absurd", m.readings_device_clock);
        registry.register("clock_trusted", "1 while the gateway's clock is believed", m.clock_trusted);
        registry.register(
            "readings_dropped",
            "Readings that left the log undelivered to some sink",
            m.readings_dropped,
        );
        registry.register("frames_invalid", "Frames that were refused", m.frames_invalid);
        registry.register("frames_valid", "Frames that were whole", m.frames_valid);
        registry.register("serial_opened", "Times that the port was opened", m.serial_opened);
        registry.register(
            "serial_open_failures",
            "Attempts to find and open the port that failed",
            m.serial_open_failures,
        );
        let (read, written) = (m.serial_read_bytes, m.serial_written_bytes);
        registry.register_with_unit("serial_read", "Bytes read from the port", Unit::Bytes, read);
        registry.register_with_unit("serial_written", "Bytes written to the port", Unit::Bytes, written);
        registry.register_with_unit(
            "link_skipped",
            "Bytes skipped while looking for a frame",
            Unit::Bytes,
            m.link_skipped_bytes,
        );
        registry.register("link_echoes", "Frames of the gateway's own that came back to it", m.link_echoes);
        registry.register("link_resends", "Times that lost readings were asked for again", m.link_resends);
        registry.register("link_up", "1 while the listener or port is open", m.link_up);
        registry.register("link_losses", "Times that the port was lost after it was opened", m.link_losses);
        registry.register("connections_waiting", "Connections whose device is not welcomed yet", m.connections_waiting);
        registry.register("connections_refused", "Connections turned away", m.connections_refused);
        registry.register("http_denied", "HTTP requests of those who may not ask", m.http_denied);
        registry.register(
            "devices_throttled",
            "Times that a device sent more messages than it may and was read no further for a while",
            m.devices_throttled,
        );
        registry.register(
            "link_unauthenticated",
            "1 if devices on the network need not prove who they are",
            m.link_unauthenticated,
        );
        registry.register(
            "authentication_failures",
            "Devices that were not let in for who they are, or could not prove it",
            m.authentication_failures,
        );
        registry.register("keys", "Keys of devices that are in force; 0 while their file cannot be used", m.keys);
        registry.register_with_unit(
            "certificate_expires",
            "Time since 1970 at which the first certificate expires of those that the link or sink shows",
            Unit::Seconds,
            m.certificate_expires_seconds,
        );
        registry.register("devices_connected", "Devices with a live session", m.devices_connected);
        registry.register(
            "devices_known",
            "Devices known, sub-devices and those that are gone included",
            m.devices_known,
        );
        registry.register(
            "devices_rivals",
            "Times that two devices of one name were found to throw each other out",
            m.devices_rivals,
        );
        registry.register("devices_refused", "Devices and sub-devices that were not let in", m.devices_refused);
        registry.register_with_unit(
            "memory_limit",
            "Memory that all queues and buffers may take together",
            Unit::Bytes,
            m.memory_limit_bytes,
        );
        registry.register_with_unit(
            "memory_links",
            "Memory that connections are charged for",
            Unit::Bytes,
            m.memory_links_bytes,
        );
        registry.register_with_unit(
            "memory_links_limit",
            "Memory up to which connections may hold large frames; less than usual while memory is short",
            Unit::Bytes,
            m.memory_links_limit_bytes,
        );
        registry.register(
            "memory_refused",
            "Times that a connection had to wait or go for want of memory",
            m.memory_refused,
        );
        registry.register("sink_delivered", "Readings that the sink confirmed", m.sink_delivered);
        registry.register(
            "sink_events_refused",
            "Events and commands' results that a broker refused, which are lost to it",
            m.sink_events_refused,
        );
        registry.register(
            "sink_unexpected_confirmations",
            "Confirmations from a broker of what was not sent, or was confirmed before",
            m.sink_unexpected_confirmations,
        );
        registry.register(
            "sink_events_dropped",
            "Events that made room for newer ones before the sink confirmed them",
            m.sink_events_dropped,
        );
        registry.register("sink_dropped", "Readings that left the log before the sink confirmed them", m.sink_dropped);
        registry.register("sink_pending", "Readings that the sink has yet to confirm", m.sink_pending);
        registry.register_with_unit(
            "sink_oldest_pending",
            "How long ago the oldest unconfirmed reading was taken",
            Unit::Seconds,
            m.sink_oldest_pending_seconds,
        );
        registry.register("sink_connected", "1 while the sink's connection is up", m.sink_connected);
        registry.register("sink_connects", "Times that the sink connected", m.sink_connects);
        registry.register("sink_losses", "Times that the sink's connection was lost", m.sink_losses);
        registry.register_with_unit(
            "delivery",
            "From a reading's arrival to the sink's confirmation",
            Unit::Seconds,
            m.delivery_seconds,
        );
        registry.register("store_state", "1 for the state that the log's disk is in", m.store_state);
        registry.register_with_unit("store", "Size of the log's content", Unit::Bytes, m.store_bytes);
        registry.register_with_unit(
            "store_written",
            "Bytes that the log wrote to its files",
            Unit::Bytes,
            m.store_written_bytes,
        );
        registry.register_with_unit(
            "store_pending",
            "Memory that readings not yet settled take",
            Unit::Bytes,
            m.store_pending_bytes,
        );
        registry.register(
            "store_history_lost",
            "Readings that every sink confirmed, and that gave way to new ones before they were on disk",
            m.store_history_lost,
        );
        registry.register_with_unit("commit", "Time that a commit to the log took", Unit::Seconds, m.commit_seconds);
        registry.register("store_quarantines", "Damaged logs that were moved aside", m.store_quarantines);
        registry.register(
            "store_salvaged_readings",
            "Readings taken over from damaged logs, to be sent or as history",
            m.store_salvaged_readings,
        );
        registry.register("commands_received", "Commands that were taken over", m.commands_received);
        registry.register("commands_ended", "Commands that came to this end", m.commands_ended);
        registry.register("commands_live", "Commands that have not ended", m.commands_live);
        registry.register("commands_repeated", "Times that a command was handed over again", m.commands_repeated);
        registry.register(
            "commands_late_results",
            "Answers to commands that had ended, or were never given",
            m.commands_late_results,
        );
        registry.register_with_unit(
            "command",
            "From a command's arrival until its end is on disk, if the device answered",
            Unit::Seconds,
            m.command_seconds,
        );
        registry.register(
            "log_lines_dropped",
            "Lines of the gateway's log that were lost because nobody read them in time",
            m.log_lines.dropped,
        );
        registry.register(
            "log_lines_summarised",
            "Lines of the gateway's log that were not written, but counted and summed up in another",
            m.log_lines.summarised,
        );
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)]);
        registry.register("build", "What is running", build);
        Metrics { registry: Arc::new(registry), ..metrics }
    }

    /// All figures in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_names_are_exposed() {
        let metrics = Metrics::new();
        metrics.readings_received.inc();
        let sink = SinkLabel { sink: "cloud".into() };
        metrics.sink_connected.get_or_create(&sink).set(1);
        metrics.sink_oldest_pending_seconds.get_or_create(&sink).set(1.5);
        let text = metrics.encode();
        for line in [
            "tidegate_readings_received_total 1",
            "tidegate_sink_connected{sink=\"cloud\"} 1",
            "tidegate_sink_oldest_pending_seconds{sink=\"cloud\"} 1.5",
            "tidegate_store_bytes 0",
            "tidegate_store_written_bytes_total 0",
            "tidegate_commit_seconds_count 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
        assert!(text.contains(&format!("tidegate_build_info{{version=\"{}\"", env!("CARGO_PKG_VERSION"))), "{text}");
    }
}
