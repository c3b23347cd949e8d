//! Readings as text: JSON lines and CSV, as `tidegate queue export` and files have them.
//! `docs/files.md` describes both.

use super::{Delivered, Quality};
use crate::config::TextFormat;
use crate::model::{Epoch, Value};
use base64::Engine;
use serde::Serialize;
use std::io::{self, Write};

/// A reading with the epoch of its seq, if that is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    pub epoch: Option<Epoch>,
    #[serde(flatten)]
    pub reading: Delivered,
}

/// Writes readings in one of the formats.
pub enum Lines<W: Write> {
    /// One JSON object a reading.
    Jsonl(W),
    /// One row a value.
    Csv(Box<csv::Writer<W>>),
}

/// The first row of CSV.
pub const CSV_HEADER: [&str; 12] = [
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
];

impl<W: Write> Lines<W> {
    pub fn new(format: TextFormat, out: W) -> Lines<W> {
        match format {
            TextFormat::Jsonl => Lines::Jsonl(out),
            TextFormat::Csv => Lines::Csv(Box::new(csv::Writer::from_writer(out))),
        }
    }

    /// What stands first in a file.
    ///
    /// # Errors
    /// If it cannot be written, as with the others.
    pub fn header(&mut self) -> io::Result<()> {
        match self {
            Lines::Jsonl(_) => Ok(()),
            Lines::Csv(csv) => csv.write_record(CSV_HEADER).map_err(plain),
        }
    }

    pub fn line(&mut self, line: &Line) -> io::Result<()> {
        match self {
            Lines::Jsonl(out) => {
                serde_json::to_writer(&mut *out, line)?;
                out.write_all(b"\n")
            }
            Lines::Csv(csv) => rows(csv, line),
        }
    }

    /// What was written to, up to the last flush.
    pub fn get_ref(&self) -> &W {
        match self {
            Lines::Jsonl(out) => out,
            Lines::Csv(csv) => csv.get_ref(),
        }
    }

    /// What was written to, with all that was written.
    ///
    /// # Errors
    /// If it takes no more.
    pub fn into_inner(self) -> io::Result<W> {
        match self {
            Lines::Jsonl(out) => Ok(out),
            Lines::Csv(csv) => csv.into_inner().map_err(csv::IntoInnerError::into_error),
        }
    }

    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Lines::Jsonl(out) => out.flush(),
            Lines::Csv(csv) => csv.flush(),
        }
    }
}

/// A row for each value.
fn rows(csv: &mut csv::Writer<impl Write>, line: &Line) -> io::Result<()> {
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
        ])
        .map_err(plain)?;
    }
    Ok(())
}

/// What the operating system said, if it did: a closed pipe is recognised by it.
fn plain(why: csv::Error) -> io::Error {
    match why.into_kind() {
        csv::ErrorKind::Io(why) => why,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// A value's type and its text, which reads back as it was.
fn spelled(value: &Value) -> (&'static str, String) {
    match value {
        Value::Float(float) => ("float", float.to_string()),
        Value::Integer(integer) => ("integer", integer.to_string()),
        Value::Boolean(boolean) => ("boolean", boolean.to_string()),
        Value::Text(text) => ("text", text.to_string()),
        Value::Bytes(bytes) => ("base64", base64::engine::general_purpose::STANDARD.encode(bytes)),
    }
}
