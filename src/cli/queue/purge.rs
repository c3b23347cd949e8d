//! `tidegate queue purge`: removes readings that must not be delivered.

use super::{Bound, Failure, changed, json, load};
use crate::cli::DEFAULT_CONFIG;
use crate::clock::{Clock, SystemClock};
use crate::store::{self, Before, Purged};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Removes readings that must not be delivered
///
/// Only while the gateway is stopped. A sink gets a gap event with the reason "purged" for
/// readings that were removed before it had them.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file, whose [store] directory has the log
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Only readings that wait for this sink; the others still get them
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Only readings before this seq; or, by whole segments, before this time
    #[arg(long, value_name = "SEQ|TIME")]
    before: Option<Bound>,
    /// Do it; without this, only print what would be removed, and exit with 1
    #[arg(long)]
    yes: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<bool, Failure> {
    let config = load(&args.config, &[])?;
    let before = match args.before {
        None => Before::Everything,
        Some(Bound::Seq(seq)) => Before::Seq(seq),
        Some(Bound::Time(time)) => Before::Time(time),
    };
    let now = SystemClock::new().now().wall;
    let purged = store::purge(&config.store.directory, args.sink.as_deref(), before, now, args.yes)?;
    let undelivered: serde_json::Map<_, _> =
        purged.undelivered.iter().map(|(sink, count)| (sink.clone(), (*count).into())).collect();
    if args.json {
        json(
            out,
            &json!({
                "done": args.yes, "first": purged.range.map(|(first, _)| first), "last": purged.range.map(|(_, last)| last),
                "readings": purged.readings, "removed": purged.removed, "undelivered": undelivered,
            }),
        )?;
    } else {
        print(&purged, args, out)?;
    }
    changed(args.yes, out)
}

/// Prints the result. Only whole segments that are purged for every sink leave the log.
fn print(purged: &Purged, args: &Args, out: &mut dyn Write) -> std::io::Result<()> {
    let (removes, passes) = match args.yes {
        true => ("removed", "passed over"),
        false => ("would remove", "would pass over"),
    };
    let Some((first, last)) = purged.range else { return writeln!(out, "{removes} nothing") };
    if let Some(sink) = &args.sink {
        let count: u64 = purged.undelivered.iter().map(|(_, count)| count).sum();
        return writeln!(
            out,
            "{passes} {count} readings for {sink}, which does not get them, up to seq {last}; no reading leaves the log, \
             and other sinks still get theirs"
        );
    }
    writeln!(out, "{removes} {} readings, seqs {first} to {last}", purged.removed)?;
    let left = purged.readings - purged.removed;
    if left > 0 {
        writeln!(out, "  {left} more share a segment with later ones: they stay in the log, and no sink gets them")?;
    }
    let these = if left > 0 { "all these" } else { "them" };
    for (sink, count) in &purged.undelivered {
        writeln!(out, "  {count} of {these} were not delivered to {sink}")?;
    }
    Ok(())
}
