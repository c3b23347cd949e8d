//! `tidegate queue rename-sink`: a sink that got another name in the configuration.

use super::{Failure, json, load};
use crate::cli::{DEFAULT_CONFIG, say};
use crate::config;
use crate::store;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Gives the place of one sink to another name
///
/// Only while the gateway is stopped. The sink of the new name goes on where that of the
/// old name stood; what it got under the new name already is sent again.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The sink, as `queue stats` shows it
    #[arg(value_name = "OLD")]
    from: String,
    /// Its name in the configuration from now on
    #[arg(value_name = "NEW")]
    to: String,
    /// The configuration file, whose [store] directory has the log
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<bool, Failure> {
    let config = load(&args.config, &[])?;
    let Args { from, to, .. } = args;
    let readings = store::rename_sink(&config.store.directory, from, to)?;
    if args.json {
        json(out, &json!({ "from": from, "to": to, "readings": readings }))?;
    } else {
        writeln!(out, "{to} has the place of {from}, where {readings} readings wait")?;
    }
    if !config.sinks().iter().any(|sink| sink.name == *to) {
        out.flush()?;
        let (file, headers) = (args.config.display(), config::sink_headers());
        say(&format!("tidegate: note: {file} has no {headers} with name = {to:?} yet"));
    }
    Ok(true)
}
