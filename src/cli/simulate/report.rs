//! The summary of a run.

use anyhow::Context;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Times from taking a reading to its Ack, in microseconds. Devices share a few histograms:
/// one for each of 10,000 devices would take gigabytes.
#[derive(Debug)]
pub struct Latencies {
    shards: Vec<Mutex<Histogram<u64>>>,
}

const SHARDS: u64 = 16;
const LONGEST_US: u64 = 24 * 3_600 * 1_000_000;

impl Latencies {
    /// # Errors
    /// Never with the bounds given here.
    pub fn new() -> anyhow::Result<Latencies> {
        let shard = || Histogram::new_with_bounds(1, LONGEST_US, 3).map(Mutex::new);
        let shards = (0..SHARDS).map(|_| shard()).collect::<Result<_, _>>().context("cannot set up the histogram")?;
        Ok(Latencies { shards })
    }

    /// The histogram that device `number` writes to.
    pub fn of(&self, number: u64) -> &Mutex<Histogram<u64>> {
        &self.shards[(number % SHARDS) as usize] // below SHARDS
    }

    fn merged(&self) -> anyhow::Result<Histogram<u64>> {
        let mut all = Histogram::new_with_bounds(1, LONGEST_US, 3).context("cannot set up the histogram")?;
        for shard in &self.shards {
            all.add(&*shard.lock()).context("cannot merge the histograms")?;
        }
        Ok(all)
    }
}

/// The result of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Distinct readings that were sent at least once.
    pub sent: u64,
    pub acked: u64,
    /// Readings sent again after a disconnect, each time counted.
    pub resent: u64,
    /// Number of Welcomes.
    pub welcomed: u64,
    /// Attempts that ended before a Welcome.
    pub refused: u64,
    /// Sessions that ended before the device was done.
    pub disconnected: u64,
    /// The reason of the last refusal or disconnect.
    pub trouble: Option<String>,
    /// Whether every reading of its plan, or every one taken before an interruption, is
    /// acknowledged.
    pub complete: bool,
}

/// The summary of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub devices: u64,
    /// Devices that the gateway welcomed at least once.
    pub connected: u64,
    /// Attempts to connect that ended before a Welcome.
    pub refused: u64,
    /// Sessions that ended before the device was done.
    pub disconnected: u64,
    /// Distinct readings that were sent at least once.
    pub sent: u64,
    pub acked: u64,
    /// Readings sent again after a disconnect, each time counted.
    pub resent: u64,
    /// Whether every reading was acknowledged.
    pub complete: bool,
    /// From taking a reading to its Ack; none if nothing was acknowledged.
    pub ack_ms: Option<Quantiles>,
    pub elapsed_s: f64,
    /// Acknowledged readings over the elapsed time.
    pub readings_per_s: f64,
    /// The reason of the last refusal or disconnect, if any.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p999: f64,
    pub max: f64,
}

impl Report {
    /// # Errors
    /// Never with histograms of the same bounds.
    pub fn new(outcomes: &[Outcome], latencies: &Latencies, elapsed: Duration) -> anyhow::Result<Report> {
        let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
        let all = latencies.merged()?;
        let quantile = |quantile| all.value_at_quantile(quantile) as f64 / 1_000.0;
        let ack_ms = (!all.is_empty()).then(|| Quantiles {
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: quantile(1.0),
        });
        let acked = sum(|outcome| outcome.acked);
        let elapsed_s = elapsed.as_secs_f64();
        Ok(Report {
            devices: outcomes.len() as u64,
            connected: sum(|outcome| outcome.welcomed.min(1)),
            refused: sum(|outcome| outcome.refused),
            disconnected: sum(|outcome| outcome.disconnected),
            sent: sum(|outcome| outcome.sent),
            acked,
            resent: sum(|outcome| outcome.resent),
            complete: outcomes.iter().all(|outcome| outcome.complete),
            ack_ms,
            elapsed_s,
            readings_per_s: if elapsed_s > 0.0 { acked as f64 / elapsed_s } else { 0.0 },
            trouble: outcomes.iter().find_map(|outcome| outcome.trouble.clone()),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sent          {} readings", self.sent)?;
        let verdict = if self.complete { "all" } else { "NOT ALL" };
        writeln!(f, "acknowledged  {} ({verdict})", self.acked)?;
        writeln!(f, "connected     {} of {} devices", self.connected, self.devices)?;
        writeln!(f, "refused       {}", self.refused)?;
        writeln!(f, "disconnected  {}", self.disconnected)?;
        writeln!(f, "resent        {}", self.resent)?;
        if let Some(ms) = self.ack_ms {
            let Quantiles { p50, p99, p999, max } = ms;
            writeln!(f, "ack latency   p50 {p50:.2} ms, p99 {p99:.2} ms, p99.9 {p999:.2} ms, max {max:.2} ms")?;
        }
        writeln!(f, "elapsed       {:.2} s", self.elapsed_s)?;
        write!(f, "rate          {:.0} readings/s", self.readings_per_s)?;
        if let Some(trouble) = &self.trouble {
            write!(f, "\nlast trouble  {trouble}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_sums_up_all_devices() {
        let latencies = Latencies::new().expect("the bounds are valid");
        for number in 1..=100 {
            latencies.of(number).lock().saturating_record(number * 1_000);
        }
        let fine = Outcome { sent: 60, acked: 60, welcomed: 3, disconnected: 2, complete: true, ..Outcome::default() };
        let refused = Outcome { refused: 7, trouble: Some("busy".into()), ..Outcome::default() };
        let report = Report::new(&[fine, refused], &latencies, Duration::from_secs(2)).expect("equal bounds");
        assert_eq!((report.devices, report.connected, report.refused, report.disconnected), (2, 1, 7, 2));
        assert_eq!((report.sent, report.acked, report.complete, report.readings_per_s), (60, 60, false, 30.0));
        assert_eq!(report.trouble.as_deref(), Some("busy"));
        let ms = report.ack_ms.expect("there were acks");
        assert_eq!([ms.p50, ms.p99, ms.p999, ms.max].map(f64::round), [50.0, 99.0, 100.0, 100.0]);
        let json = serde_json::to_value(&report).expect("plain fields");
        assert_eq!((&json["acked"], &json["complete"]), (&serde_json::json!(60), &serde_json::json!(false)));
        assert!(report.to_string().contains("acknowledged  60 (NOT ALL)"));
    }

    #[test]
    fn a_run_without_acks_has_no_latency() {
        let latencies = Latencies::new().expect("the bounds are valid");
        let report = Report::new(&[Outcome::default()], &latencies, Duration::ZERO).expect("equal bounds");
        assert_eq!((report.ack_ms, report.readings_per_s), (None, 0.0));
    }
}
