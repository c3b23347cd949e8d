//! Every metric of the gateway, typed, in one place.
//!
//! Names follow Prometheus practice: prefix `tidegate_`, base units, no label whose values an
//! outsider chooses. Clones of a [`Metrics`] share its values.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};
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

/// The link or sink that uses a certificate, by its configured name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CertificateLabel {
    pub part: Arc<str>,
}

/// Where a command came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabel {
    pub source: &'static str,
}

/// A state of the store or of a command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    pub state: &'static str,
}

/// Lines of the log that were not written at once. The log exists before the gateway, and after
/// it.
#[derive(Debug, Clone, Default)]
pub struct LogLines {
    pub dropped: Counter,
    pub summarised: Counter,
}

type Float = Gauge<f64, AtomicU64>;

macro_rules! metrics {
    ($($field:ident: $type:ty $(= $new:expr)?, $help:literal;)*) => {
        /// The gateway's metrics.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            registry: Arc<Registry>,
            $(#[doc = $help] pub $field: $type,)*
            pub log_lines: LogLines,
        }

        impl Metrics {
            /// With the lines of an existing log.
            pub fn with(log_lines: LogLines) -> Metrics {
                let mut registry = Registry::with_prefix("tidegate");
                $(
                    let $field: $type = metrics!(@new $($new)?);
                    register(&mut registry, stringify!($field), $help, $field.clone());
                )*
                log_lines.register(&mut registry);
                let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)]);
                registry.register("build", "Version and architecture of the running gateway", build);
                Metrics { registry: Arc::new(registry), $($field,)* log_lines }
            }
        }
    };
    (@new) => { Default::default() };
    (@new $new:expr) => { $new };
}

// One row each: the name, with `_seconds` or `_bytes` as the unit, and the help text. The
// encoder adds `_total` to a counter's name.
metrics! {
    readings_received: Counter, "Readings that arrived from devices, duplicates included";
    readings_stored: Counter, "Readings committed to the log on disk";
    readings_duplicate: Counter, "Readings that a device sent again, dropped before the log";
    readings_refused: Family<ReasonLabel, Counter>,
        "Samples that can never be stored; replaced by readings without values";
    readings_unsynchronised: Counter,
        "Readings of devices without a clock that arrived before the gateway's clock was trusted";
    readings_device_clock: Counter, "Readings whose device's clock is implausible";
    clock_trusted: Gauge, "1 while the gateway's clock is trusted";
    readings_dropped: Family<ReasonLabel, Counter>, "Readings that left the log before every sink confirmed them";
    frames_invalid: Family<LinkReasonLabel, Counter>, "Invalid frames";
    frames_valid: Family<LinkLabel, Counter>, "Valid frames";
    serial_opened: Family<LinkLabel, Counter>, "Number of times the port was opened";
    serial_open_failures: Family<LinkLabel, Counter>, "Failed attempts to find and open the port";
    serial_read_bytes: Family<LinkLabel, Counter>, "Bytes read from the port";
    serial_written_bytes: Family<LinkLabel, Counter>, "Bytes written to the port";
    link_skipped_bytes: Family<LinkLabel, Counter>, "Bytes skipped while searching for a frame";
    link_echoes: Family<LinkLabel, Counter>, "Echoes of the gateway's own frames";
    link_resends: Family<LinkLabel, Counter>, "Requests to send lost readings again";
    link_up: Family<LinkLabel, Gauge>, "1 while the listener or port is open";
    link_losses: Family<LinkLabel, Counter>, "Number of times the port was lost after it was opened";
    connections_waiting: Family<LinkLabel, Gauge>, "Connections without a session yet";
    connections_refused: Family<LinkReasonLabel, Counter>, "Refused connections";
    http_denied: Family<ReasonLabel, Counter>, "Denied HTTP requests";
    devices_throttled: Family<LinkLabel, Counter>,
        "Times a device exceeded its message rate and reading from it was paused";
    link_unauthenticated: Family<LinkLabel, Gauge>, "1 if devices on the network need no authentication";
    authentication_failures: Family<LinkReasonLabel, Counter>,
        "Devices refused for their identity or failed authentication";
    keys: Gauge, "Valid keys of devices; 0 while their file cannot be used";
    certificate_expires_seconds: Family<CertificateLabel, Gauge>,
        "Expiry of the link's or sink's certificate that expires first, since 1970";
    devices_connected: Gauge, "Devices with a live session";
    devices_known: Gauge, "Known devices, including sub-devices and offline ones";
    devices_rivals: Counter, "Times two devices with the same name were found to take over each other's session";
    devices_refused: Family<ReasonLabel, Counter>, "Refused devices and sub-devices";
    memory_limit_bytes: Gauge, "Limit of the memory of all queues and buffers";
    memory_links_bytes: Gauge, "Memory charged to connections";
    memory_links_limit_bytes: Gauge,
        "Limit of the memory of connections for large frames; lower while memory is short";
    memory_refused: Family<ReasonLabel, Counter>, "Times a connection had to wait or was closed for lack of memory";
    sink_delivered: Family<SinkLabel, Counter>, "Readings that the sink confirmed";
    sink_events_refused: Family<SinkLabel, Counter>,
        "Events and results of commands that a broker refused; they are lost";
    sink_unexpected_confirmations: Family<SinkLabel, Counter>,
        "Confirmations from a broker for publishes not sent or already confirmed";
    sink_events_dropped: Family<SinkReasonLabel, Counter>,
        "Events dropped for newer ones before the sink confirmed them";
    sink_dropped: Family<SinkReasonLabel, Counter>, "Readings that left the log before the sink confirmed them";
    sink_pending: Family<SinkLabel, Gauge>, "Readings that the sink has not confirmed";
    sink_oldest_pending_seconds: Family<SinkLabel, Float>, "Age of the oldest unconfirmed reading";
    sink_connected: Family<SinkLabel, Gauge>, "1 while the sink's connection is up";
    sink_connects: Family<SinkLabel, Counter>, "Number of times the sink connected";
    sink_losses: Family<SinkLabel, Counter>, "Number of times the sink's connection was lost";
    delivery_seconds: Family<SinkLabel, Histogram> = Family::new_with_constructor(latency),
        "From a reading's arrival to the sink's confirmation";
    store_state: Family<StateLabel, Gauge>, "1 for the current state of the log's disk";
    store_bytes: Gauge, "Size of the log's content";
    store_written_bytes: Counter, "Bytes written to the log's files";
    store_pending_bytes: Gauge, "Memory of readings that are not settled";
    store_history_lost: Counter,
        "Readings that every sink confirmed and that were dropped before they were on disk";
    commit_seconds: Histogram = latency(), "Duration of a commit to the log";
    store_quarantines: Counter, "Damaged logs that were moved aside";
    store_salvaged_readings: Counter, "Readings salvaged from damaged logs, to send or as history";
    commands_received: Family<SourceLabel, Counter>, "Accepted commands";
    commands_ended: Family<StateLabel, Counter>, "Ended commands by their final state";
    commands_live: Gauge, "Commands that have not ended";
    commands_repeated: Counter, "Number of times a command was sent again";
    commands_late_results: Counter, "Answers to commands that had ended or are unknown";
    command_seconds: Histogram = latency(), "From a command's arrival until its result is on disk, if the device answered";
}

/// Latencies from 0.25 ms to half a minute.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 18))
}

fn register(registry: &mut Registry, field: &str, help: &str, metric: impl Metric) {
    let units = [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)];
    let unit = units.into_iter().find_map(|(suffix, unit)| Some((field.strip_suffix(suffix)?, unit)));
    match unit {
        Some((name, unit)) => registry.register_with_unit(name, help, unit, metric),
        None => registry.register(field, help, metric),
    }
}

impl LogLines {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "log_lines_dropped",
            "Lines of the gateway's log that were lost because their reader was too slow",
            self.dropped.clone(),
        );
        registry.register(
            "log_lines_summarised",
            "Lines of the gateway's log that were counted and summed up instead of written",
            self.summarised.clone(),
        );
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        Metrics::with(LogLines::default())
    }

    /// All metrics in the OpenMetrics text format.
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
