//! `tidegate run`: runs the gateway.

use super::{USAGE, failed, say};
use crate::config::{self, Config};
use crate::gateway;
use crate::logging::Logging;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::ExitCode;

/// More threads gain nothing: the log's own threads do the expensive work.
const MAX_DEFAULT_WORKERS: usize = 4;

/// Runs the gateway until SIGTERM or SIGINT.
pub fn run(path: &Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            say(&problems.to_string());
            return USAGE.into();
        }
    };
    let logging = match Logging::for_service(&config.gateway.log_level).context("cannot set up logging") {
        Ok(logging) => logging,
        Err(why) => return failed(&why),
    };
    let outcome = start(config, logging.clone());
    if let Err(why) = &outcome {
        logging.fail(why);
    }
    logging.finish();
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn start(config: Config, logging: Logging) -> Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = config.gateway.worker_threads.unwrap_or(processors.min(MAX_DEFAULT_WORKERS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("cannot start the threads")?;
    let outcome = runtime.block_on(gateway::run(config, logging));
    // Tasks that still run had their time to stop.
    runtime.shutdown_background();
    outcome
}
