//! `tidegate queue stats`: what waits for each sink.

use super::super::OF_API;
use super::super::api::Api;
use super::{Failure, Which, json, load};
use crate::clock::{Clock, SystemClock};
use crate::model::Epochs;
use crate::store::Pending;
use bytesize::ByteSize;
use serde_json::json;
use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

/// Shows the contents of the log, and what waits for each sink
///
/// Counts what is on disk: a running gateway holds the latest readings in memory, and
/// writes its sinks' places every few seconds. If it runs with [http], each sink's rate is
/// measured for a second to estimate when it has caught up.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Deliveries are counted for this time to estimate their rate.
const LOOK: Duration = Duration::from_secs(1);

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<bool, Failure> {
    let contents = args.which.open()?.contents()?;
    let rates = match &args.which.file {
        Some(_) => HashMap::new(),
        None => load(&args.which.config, &OF_API)
            .ok()
            .filter(|_| contents.sinks.iter().any(|sink| sink.readings > 0))
            .and_then(|config| Api::of(&config).ok())
            .map(rates)
            .unwrap_or_default(),
    };
    let now = SystemClock::new().now().wall;
    let age = |sink: &Pending| sink.oldest.map(|oldest| now.since(oldest));
    let drained = |sink: &Pending| {
        let rate = rates.get(&sink.sink).copied().filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64((sink.readings as f64 / rate).ceil()).ok()
    };
    if args.json {
        let former = contents.epochs.iter().flat_map(Epochs::former);
        let former: Vec<_> = former.map(|(last, epoch)| json!({ "epoch": epoch, "last": last })).collect();
        let sinks: Vec<_> = contents
            .sinks
            .iter()
            .map(|sink| {
                json!({
                    "sink": sink.sink, "confirmed": sink.confirmed, "pending": sink.readings, "bytes": sink.bytes,
                    "set_aside": sink.aside,
                    "configured": sink.retired.is_none(),
                    "removed_seconds": sink.retired.map(|time| time.as_secs()),
                    "oldest_seconds": age(sink).map(|age| age.as_secs()),
                    "drained_in_seconds": drained(sink).map(|time| time.as_secs()),
                })
            })
            .collect();
        json(
            out,
            &json!({
                "epoch": contents.epochs.as_ref().map(Epochs::current), "former_epochs": former, "segments": contents.segments, "readings": contents.readings,
                "bytes": contents.bytes, "sinks": sinks,
            }),
        )?;
        return Ok(true);
    }
    let epoch = contents.epochs.as_ref().map_or("unknown".to_owned(), |epochs| epochs.current().to_string());
    let bytes = ByteSize(contents.bytes);
    writeln!(out, "epoch {epoch}: {} readings in {} segments, {bytes}", contents.readings, contents.segments)?;
    writeln!(out, "{:<20} {:>12} {:>10} {:>14} {:>14}", "SINK", "PENDING", "BYTES", "OLDEST", "DRAINED IN")?;
    let shown = |time: Option<Duration>| match time {
        Some(time) => humantime::format_duration(Duration::from_secs(time.as_secs())).to_string(),
        None => "-".to_owned(),
    };
    for sink in &contents.sinks {
        let estimate = if sink.readings == 0 { None } else { drained(sink) };
        let bytes = ByteSize(sink.bytes).to_string();
        let (age, estimate) = (shown(age(sink)), shown(estimate));
        writeln!(out, "{:<20} {:>12} {bytes:>10} {age:>14} {estimate:>14}", sink.sink, sink.readings)?;
    }
    for sink in contents.sinks.iter().filter(|sink| sink.aside > 0) {
        writeln!(
            out,
            "{}: {} readings were set aside because the destination rejected them; while there is room they stay in \
             the history (tidegate queue export)",
            sink.sink, sink.aside
        )?;
    }
    for sink in &contents.sinks {
        if let Some(time) = sink.retired {
            writeln!(
                out,
                "{} was taken out of the configuration {} ago; its place is kept",
                sink.sink,
                shown(Some(time))
            )?;
        }
    }
    Ok(true)
}

/// Readings a second that each sink delivers; none if no gateway answers.
fn rates(api: Api) -> HashMap<String, f64> {
    let Some(before) = delivered(&api) else { return HashMap::new() };
    std::thread::sleep(LOOK);
    let after = delivered(&api).unwrap_or_default();
    let rate = |(sink, count): (String, f64)| {
        let rate = (count - before.get(&sink).copied().unwrap_or(0.0)) / LOOK.as_secs_f64();
        (sink, rate)
    };
    after.into_iter().map(rate).collect()
}

fn delivered(api: &Api) -> Option<HashMap<String, f64>> {
    api.get("/metrics").ok().map(|answer| counts(&answer.body))
}

/// Sinks and their counts, parsed from the text of `/metrics`.
fn counts(text: &str) -> HashMap<String, f64> {
    let figure = |line: &str| {
        let (sink, count) = line.strip_prefix("tidegate_sink_delivered_total{sink=\"")?.split_once("\"} ")?;
        Some((sink.to_owned(), count.trim().parse().ok()?))
    };
    text.lines().filter_map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_read_from_metrics() {
        let text = "x 1\ntidegate_sink_delivered_total{sink=\"cloud\"} 42\ntidegate_sink_pending{sink=\"cloud\"} 7\n";
        assert_eq!(counts(text), HashMap::from([("cloud".to_owned(), 42.0)]));
    }
}
