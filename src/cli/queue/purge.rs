//! `tidegate queue purge`: readings that shall not be delivered any more.

use super::{Bound, Failure, changed, json, load};
use crate::cli::DEFAULT_CONFIG;
use crate::clock::{Clock, SystemClock};
use crate::store::{self, Before};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Removes readings that shall not be delivered any more
///
/// Only while the gateway is stopped. What was removed before a sink got it is reported
/// to that sink as a gap with the reason "purged".
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file, whose [store] directory has the log
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Only what waits for this sink; the others still get it
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Only readings before this seq; or, by whole segments, before this time
    #[arg(long, value_name = "SEQ|TIME")]
    before: Option<Bound>,
    /// Do it; without this, only say what would be removed, and exit with 1
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
                "readings": purged.readings, "undelivered": undelivered,
            }),
        )?;
    } else {
        let verb = if args.yes { "removed" } else { "would remove" };
        match purged.range {
            None => writeln!(out, "{verb} nothing")?,
            Some((first, last)) => {
                writeln!(out, "{verb} {} readings, seqs {first} to {last}", purged.readings)?;
                for (sink, count) in &purged.undelivered {
                    writeln!(out, "  {count} of them were not delivered to {sink}")?;
                }
            }
        }
    }
    changed(args.yes, out)
}
