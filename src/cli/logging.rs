//! Where log lines go: to the journal under systemd, else to standard error.

use crate::config;
use crate::gateway::SetLogLevel;
use anyhow::Result;
use std::io::IsTerminal;
use std::sync::Arc;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Logs what `level` says, or `RUST_LOG` if that is set.
///
/// Returns what changes that later.
///
/// # Errors
/// If neither is a valid filter, or logging is set up already.
pub fn for_service(level: &str) -> Result<SetLogLevel> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter)?,
        _ => EnvFilter::try_new(level)?,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let set_level: SetLogLevel = Arc::new(move |level| {
        let filter = config::log_filter(level).map_err(|(what, fix)| format!("the level {what}; {fix}"))?;
        handle.reload(filter).map_err(|why| why.to_string())
    });
    if goes_to_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        tracing_subscriber::registry().with(filter).with(journal).try_init()?;
        return Ok(set_level);
    }
    to_stderr(filter)?;
    Ok(set_level)
}

/// For verbs whose output is for a person: only what goes wrong, unless `RUST_LOG`
/// asks for more. To the demo's broker every client that leaves is an error.
pub fn to_terminal() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,rumqttd=off"));
    // Fails only if logging is set up already, which is as well.
    let _ = to_stderr(filter);
}

fn to_stderr(filter: impl Layer<Registry> + Send + Sync) -> Result<(), TryInitError> {
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).try_init()
}

/// Whether systemd connected standard error to the journal: it says so in
/// `JOURNAL_STREAM`, as the device and inode of the stream (systemd.exec(5)).
fn goes_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}
