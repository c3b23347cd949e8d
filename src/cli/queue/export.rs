//! `tidegate queue export`: writes readings of the log as text.

use super::{Bound, Failure, Which};
use crate::cli::say;
use crate::model::{Epoch, Epochs, SequencedBatch, Timestamp, Value};
use crate::sink::encode::{Delivered, Quality};
use crate::store::{Piece, damaged, missing};
use anyhow::{Context, Result};
use base64::Engine;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Writes readings of the log
///
/// Also works while the gateway runs. Damaged segments, and seqs that are missing without
/// a reason, are reported on standard error and left out; the exit code is 1 then.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// From this seq or time, such as 1042 or 2026-11-23T01:02:03Z
    #[arg(long, value_name = "SEQ|TIME")]
    from: Option<Bound>,
    /// Up to and including this seq or time; readings without a known time are in every range
    /// of times
    #[arg(long, value_name = "SEQ|TIME")]
    to: Option<Bound>,
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One JSON object for each reading
    Jsonl,
    /// One row for each value
    Csv,
}

#[derive(Serialize)]
struct Line {
    epoch: Option<Epoch>,
    #[serde(flatten)]
    reading: Delivered,
}

enum Writer<'a> {
    Jsonl(&'a mut dyn Write),
    Csv(Box<csv::Writer<&'a mut dyn Write>>),
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<bool, Failure> {
    let log = args.which.open()?;
    let epochs = log.epochs();
    let mut file = match &args.output {
        None => None,
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Some(BufWriter::new(file))
        }
    };
    let out: &mut dyn Write = match &mut file {
        Some(file) => file,
        None => out,
    };
    let mut writer = match args.format {
        Format::Jsonl => Writer::Jsonl(out),
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(out);
            csv.write_record([
                "epoch",
                "seq",
                "device",
                "session",
                "device_seq",
                "time",
                "channel",
                "type",
                "value",
                "quality",
                "boot",
                "received",
            ])?;
            Writer::Csv(Box::new(csv))
        }
    };
    let warnings = log.warnings();
    warnings.iter().for_each(|warning| say(&format!("tidegate: {warning}; readings may be missing")));
    let mut fine = warnings.is_empty();
    let mut written: Result<()> = Ok(());
    log.each(&mut |piece| {
        match piece {
            Piece::Damaged(claimed) => {
                fine = false;
                say(&format!("tidegate: {}; it is left out", damaged(claimed)));
            }
            Piece::Missing(first, last) => {
                fine = false;
                say(&format!("tidegate: {}", missing(first, last)));
            }
            Piece::Readings(batches) => {
                written = batches.iter().try_for_each(|batch| writer.put(epochs.as_ref(), batch, args));
            }
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    match writer {
        Writer::Jsonl(out) => out.flush()?,
        Writer::Csv(mut csv) => csv.flush()?,
    }
    Ok(fine)
}

impl Args {
    fn wants(&self, reading: &Delivered) -> bool {
        let from = self.from.is_none_or(|from| match from {
            Bound::Seq(seq) => reading.seq >= seq,
            Bound::Time(time) => when(reading).is_none_or(|when| when >= time),
        });
        from && self.to.is_none_or(|to| match to {
            Bound::Seq(seq) => reading.seq <= seq,
            Bound::Time(time) => when(reading).is_none_or(|when| when <= time),
        })
    }
}

/// The reading's time, exact enough for selection, if it is known.
fn when(reading: &Delivered) -> Option<Timestamp> {
    match reading.quality {
        Quality::Good | Quality::Resynchronised => Some(reading.time),
        Quality::DeviceClock { received } => Some(received),
        Quality::Unsynchronised { .. } | Quality::DeviceClockSince { .. } => None,
    }
}

impl Writer<'_> {
    fn put(&mut self, epochs: Option<&Epochs>, batch: &SequencedBatch, args: &Args) -> Result<()> {
        for (seq, origin, reading) in batch.after(batch.first.prev()) {
            let reading = Delivered {
                seq,
                device: batch.batch.device.clone(),
                origin: origin.map(|origin| (origin.session, origin.seq)),
                time: reading.time,
                quality: Quality::of(batch.batch.basis, reading.time),
                replay: false,
                values: reading.iter().map(|(channel, value)| (channel.to_string(), value.clone())).collect(),
            };
            if args.wants(&reading) {
                self.line(Line { epoch: epochs.map(|epochs| epochs.of(seq).0), reading })?;
            }
        }
        Ok(())
    }

    fn line(&mut self, line: Line) -> Result<()> {
        match self {
            Writer::Jsonl(out) => {
                let text = serde_json::to_string(&line)?;
                writeln!(out, "{text}")?;
            }
            Writer::Csv(csv) => {
                let Line { epoch, reading } = line;
                let epoch = epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
                let (session, seq) =
                    reading.origin.map(|(session, seq)| (session.to_string(), seq.to_string())).unwrap_or_default();
                let (boot, received) = match reading.quality {
                    Quality::Good | Quality::Resynchronised => (String::new(), String::new()),
                    Quality::Unsynchronised { boot, .. } => (boot.to_string(), String::new()),
                    Quality::DeviceClock { received } => (String::new(), received.to_string()),
                    Quality::DeviceClockSince { boot, uptime } => (boot.to_string(), uptime.to_string()),
                };
                for (channel, value) in &reading.values {
                    let (kind, value) = spelled(value);
                    csv.write_record([
                        &epoch,
                        &reading.seq.to_string(),
                        reading.device.as_str(),
                        &session,
                        &seq,
                        &reading.time.to_string(),
                        channel,
                        kind,
                        &value,
                        reading.quality.name(),
                        &boot,
                        &received,
                    ])?;
                }
            }
        }
        Ok(())
    }
}

/// A value's type, and its text, from which the same value can be parsed.
fn spelled(value: &Value) -> (&'static str, String) {
    match value {
        Value::Float(float) => ("float", float.to_string()),
        Value::Integer(integer) => ("integer", integer.to_string()),
        Value::Boolean(boolean) => ("boolean", boolean.to_string()),
        Value::Text(text) => ("text", text.to_string()),
        Value::Bytes(bytes) => ("base64", base64::engine::general_purpose::STANDARD.encode(bytes)),
    }
}
