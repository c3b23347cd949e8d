//! `tidegate queue rename-sink`: moves a sink's place to its new name in the configuration.

use super::{Failure, json, load};
use crate::cli::{DEFAULT_CONFIG, say};
use crate::config;
use crate::store;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Moves the place of a sink to another name
///
/// Only while the gateway is stopped. The new name continues where the old one stopped;
/// readings that the new name already delivered are sent again.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The sink, as shown by `queue stats`
    #[arg(value_name = "OLD")]
    from: String,
    /// Its new name in the configuration
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
