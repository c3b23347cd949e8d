//! `tidegate queue export`: writes readings of the log as text.

use super::{Bound, Failure, Which};
use crate::cli::say;
use crate::config::TextFormat;
use crate::model::{Epochs, SequencedBatch, Timestamp};
use crate::sink::encode::text::{Line, Lines};
use crate::sink::encode::{Delivered, Quality};
use crate::store::{Piece, damaged, missing};
use anyhow::{Context, Result};
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
    #[arg(long, value_enum, default_value_t)]
    format: TextFormat,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
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
    let mut lines = Lines::new(args.format, out);
    lines.header()?;
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
                written = batches.iter().try_for_each(|batch| put(&mut lines, epochs.as_ref(), batch, args));
            }
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    lines.flush()?;
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

fn put(lines: &mut Lines<&mut dyn Write>, epochs: Option<&Epochs>, batch: &SequencedBatch, args: &Args) -> Result<()> {
    for (seq, origin, reading) in batch.after(batch.first.prev()) {
        let epoch = epochs.map(|epochs| epochs.of(seq).0);
        let line = Line { epoch, reading: Delivered::of(seq, &batch.batch, origin, reading) };
        if args.wants(&line.reading) {
            lines.line(&line)?;
        }
    }
    Ok(())
}
