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

macro_rules! metrics {
    ($($field:ident: $type:ty $(= $new:expr)?, $help:literal;)*) => {
        /// The gateway's figures.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            registry: Arc<Registry>,
            $(#[doc = $help] pub $field: $type,)*
            pub log_lines: LogLines,
        }

        impl Metrics {
            /// With the lines of a log that is there already.
            pub fn with(log_lines: LogLines) -> Metrics {
                let mut registry = Registry::with_prefix("tidegate");
                $(
                    let $field: $type = metrics!(@new $($new)?);
                    register(&mut registry, stringify!($field), $help, $field.clone());
                )*
                log_lines.register(&mut registry);
                let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)]);
                registry.register("build", "What is running", build);
                Metrics { registry: Arc::new(registry), $($field,)* log_lines }
            }
        }
    };
    (@new) => { Default::default() };
    (@new $new:expr) => { $new };
}

// A row each: the name, of which `_seconds` and `_bytes` are the unit, and the help text. The
// encoder adds `_total` to a counter's name.
metrics! {
    readings_received: Counter, "Readings that arrived from devices, duplicates included";
    readings_stored: Counter, "Readings committed to the log on disk";
    readings_duplicate: Counter, "Readings that a device sent again and that were dropped before the log";
    readings_refused: Family<ReasonLabel, Counter>,
        "Samples that can never be taken; readings without values stand in their places";
    readings_unsynchronised: Counter,
        "Readings that arrived before the gateway's clock could be believed, of devices without a clock";
    readings_device_clock: Counter, "Readings whose device's clock is absurd";
    clock_trusted: Gauge, "1 while the gateway's clock is believed";
    readings_dropped: Family<ReasonLabel, Counter>, "Readings that left the log undelivered to some sink";
    frames_invalid: Family<LinkReasonLabel, Counter>, "Frames that were refused";
    frames_valid: Family<LinkLabel, Counter>, "Frames that were whole";
    serial_opened: Family<LinkLabel, Counter>, "Times that the port was opened";
    serial_open_failures: Family<LinkLabel, Counter>, "Attempts to find and open the port that failed";
    serial_read_bytes: Family<LinkLabel, Counter>, "Bytes read from the port";
    serial_written_bytes: Family<LinkLabel, Counter>, "Bytes written to the port";
    link_skipped_bytes: Family<LinkLabel, Counter>, "Bytes skipped while looking for a frame";
    link_echoes: Family<LinkLabel, Counter>, "Frames of the gateway's own that came back to it";
    link_resends: Family<LinkLabel, Counter>, "Times that lost readings were asked for again";
    link_up: Family<LinkLabel, Gauge>, "1 while the listener or port is open";
    link_losses: Family<LinkLabel, Counter>, "Times that the port was lost after it was opened";
    connections_waiting: Family<LinkLabel, Gauge>, "Connections whose device is not welcomed yet";
    connections_refused: Family<LinkReasonLabel, Counter>, "Connections turned away";
    http_denied: Family<ReasonLabel, Counter>, "HTTP requests of those who may not ask";
    devices_throttled: Family<LinkLabel, Counter>,
        "Times that a device sent more messages than it may and was read no further for a while";
    link_unauthenticated: Family<LinkLabel, Gauge>, "1 if devices on the network need not prove who they are";
    authentication_failures: Family<LinkReasonLabel, Counter>,
        "Devices that were not let in for who they are, or could not prove it";
    keys: Gauge, "Keys of devices that are in force; 0 while their file cannot be used";
    certificate_expires_seconds: Family<CertificateLabel, Gauge>,
        "Time since 1970 at which the first certificate expires of those that the link or sink shows";
    devices_connected: Gauge, "Devices with a live session";
    devices_known: Gauge, "Devices known, sub-devices and those that are gone included";
    devices_rivals: Counter, "Times that two devices of one name were found to throw each other out";
    devices_refused: Family<ReasonLabel, Counter>, "Devices and sub-devices that were not let in";
    memory_limit_bytes: Gauge, "Memory that all queues and buffers may take together";
    memory_links_bytes: Gauge, "Memory that connections are charged for";
    memory_links_limit_bytes: Gauge,
        "Memory up to which connections may hold large frames; less than usual while memory is short";
    memory_refused: Family<ReasonLabel, Counter>, "Times that a connection had to wait or go for want of memory";
    sink_delivered: Family<SinkLabel, Counter>, "Readings that the sink confirmed";
    sink_events_refused: Family<SinkLabel, Counter>,
        "Events and commands' results that a broker refused, which are lost to it";
    sink_unexpected_confirmations: Family<SinkLabel, Counter>,
        "Confirmations from a broker of what was not sent, or was confirmed before";
    sink_events_dropped: Family<SinkReasonLabel, Counter>,
        "Events that made room for newer ones before the sink confirmed them";
    sink_dropped: Family<SinkReasonLabel, Counter>, "Readings that left the log before the sink confirmed them";
    sink_pending: Family<SinkLabel, Gauge>, "Readings that the sink has yet to confirm";
    sink_oldest_pending_seconds: Family<SinkLabel, Float>, "How long ago the oldest unconfirmed reading was taken";
    sink_connected: Family<SinkLabel, Gauge>, "1 while the sink's connection is up";
    sink_connects: Family<SinkLabel, Counter>, "Times that the sink connected";
    sink_losses: Family<SinkLabel, Counter>, "Times that the sink's connection was lost";
    delivery_seconds: Family<SinkLabel, Histogram> = Family::new_with_constructor(latency),
        "From a reading's arrival to the sink's confirmation";
    store_state: Family<StateLabel, Gauge>, "1 for the state that the log's disk is in";
    store_bytes: Gauge, "Size of the log's content";
    store_written_bytes: Counter, "Bytes that the log wrote to its files";
    store_pending_bytes: Gauge, "Memory that readings not yet settled take";
    store_history_lost: Counter,
        "Readings that every sink confirmed, and that gave way to new ones before they were on disk";
    commit_seconds: Histogram = latency(), "Time that a commit to the log took";
    store_quarantines: Counter, "Damaged logs that were moved aside";
    store_salvaged_readings: Counter, "Readings taken over from damaged logs, to be sent or as history";
    commands_received: Family<SourceLabel, Counter>, "Commands that were taken over";
    commands_ended: Family<StateLabel, Counter>, "Commands that came to this end";
    commands_live: Gauge, "Commands that have not ended";
    commands_repeated: Counter, "Times that a command was handed over again";
    commands_late_results: Counter, "Answers to commands that had ended, or were never given";
    command_seconds: Histogram = latency(), "From a command's arrival until its end is on disk, if the device answered";
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
            "Lines of the gateway's log that were lost because nobody read them in time",
            self.dropped.clone(),
        );
        registry.register(
            "log_lines_summarised",
            "Lines of the gateway's log that were not written, but counted and summed up in another",
            self.summarised.clone(),
        );
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        Metrics::with(LogLines::default())
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
