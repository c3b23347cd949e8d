//! `tidegate queue forget-sink`: a sink that does not come back.

use super::{Failure, changed, json, load};
use crate::cli::DEFAULT_CONFIG;
use crate::clock::{Clock, SystemClock};
use crate::store;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Forgets the place of a sink that does not come back
///
/// Only while the gateway is stopped. That readings were kept for it is reported to the
/// other sinks as a gap with the reason "forgotten". A sink that is configured is a new one
/// at the next start.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The sink, as `queue stats` shows it
    #[arg(value_name = "NAME")]
    sink: String,
    /// The configuration file, whose [store] directory has the log
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Do it; without this, only say what would be lost, and exit with 1
    #[arg(long)]
    yes: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<bool, Failure> {
    let config = load(&args.config, &[])?;
    let now = SystemClock::new().now().wall;
    let readings = store::forget_sink(&config.store.directory, &args.sink, now, args.yes)?;
    if args.json {
        json(out, &json!({ "done": args.yes, "sink": args.sink, "readings": readings }))?;
    } else {
        let verb = if args.yes { "forgot" } else { "would forget" };
        writeln!(out, "{verb} {}, for which {readings} readings were kept", args.sink)?;
    }
    changed(args.yes, out)
}
