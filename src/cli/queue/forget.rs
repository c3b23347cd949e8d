//! `tidegate queue forget-sink`: removes a sink that is no longer used.

use super::{Failure, changed, json, load};
use crate::cli::DEFAULT_CONFIG;
use crate::clock::{Clock, SystemClock};
use crate::store;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Removes the place of a sink that is no longer used
///
/// Only while the gateway is stopped. The other sinks get a gap event with the reason
/// "forgotten" for its readings. If the sink is configured again, it starts as a new one.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The sink, as shown by `queue stats`
    #[arg(value_name = "NAME")]
    sink: String,
    /// The configuration file, whose [store] directory has the log
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Do it; without this, only print what would be lost, and exit with 1
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
