//! Logging of the gateway: to the journal under systemd, else to standard error.
//!
//! 1. An event becomes `facts`: a message, and names with values, all of bounded length.
//! 2. The `limiter` passes it on, or counts it for a sum.
//! 3. In the output's `form` it is added to a bounded `queue`. If the queue is full, the line is
//!    dropped and counted, and the count is logged once there is room.
//! 4. One thread writes the lines and waits for their reader (`lines`).
//!
//! So logging never blocks, and no outsider can fill the log.

mod facts;
mod form;
mod journal;
mod limiter;
mod lines;
mod panics;
mod queue;

use crate::config;
use crate::metrics::LogLines;
use anyhow::{Context, Result};
use facts::Facts;
use form::{Form, Origin};
use lines::{Lines, Write};
use std::fs::File;
use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::time::Duration;
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

/// Log levels, instead of the configuration's.
const VARIABLE: &str = "RUST_LOG";

/// Time at the end for the last lines to be read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Passes every level.
const OWN: Origin = Origin { level: Level::ERROR, target: module_path!(), file: Some(file!()), line: None };

/// The log's levels and lines. Cheap to clone.
#[derive(Clone)]
pub struct Logging {
    lines: Lines,
    levels: reload::Handle<Targets, Registry>,
}

impl Logging {
    /// Logs the gateway with `levels`, or with `RUST_LOG` if that is set.
    ///
    /// # Errors
    /// If `levels` are invalid, or logging is set up already.
    pub fn for_service(levels: &str) -> Result<Logging> {
        let (given, wrong) = match levels_of_environment() {
            Ok(given) => (given, None),
            Err(wrong) => (None, Some(wrong)),
        };
        let levels = match given {
            Some(levels) => levels,
            None => config::log_levels(levels).map_err(|(what, fix)| anyhow::anyhow!("log_level {what}; {fix}"))?,
        };
        let logging = match journal::connect() {
            Some((form, write)) => Logging::start(levels, form, write)?,
            None => Logging::to_stderr(levels)?,
        };
        panics::take_over(logging.lines.clone());
        if let Some(wrong) = wrong {
            tracing::warn!(why = wrong, "the environment variable {VARIABLE} is not used, but [gateway] log_level is");
        }
        Ok(logging)
    }

    /// For verbs whose output is for a person: only failures, unless `RUST_LOG` asks for more. The
    /// demo's broker logs every client that leaves as an error.
    ///
    /// # Errors
    /// If `RUST_LOG` is invalid, or logging is set up already.
    pub fn for_terminal() -> Result<Logging> {
        let usual = || Targets::new().with_default(Level::WARN).with_target("rumqttd", LevelFilter::OFF);
        let levels =
            levels_of_environment().map_err(|wrong| anyhow::anyhow!("the environment variable {VARIABLE}: {wrong}"))?;
        Logging::to_stderr(levels.unwrap_or_else(usual))
    }

    fn to_stderr(levels: Targets) -> Result<Logging> {
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        // Without the lock that others may hold while they write.
        let mut file = File::from(io::stderr().as_fd().try_clone_to_owned().context("standard error is closed")?);
        Logging::start(levels, Form::Text { colours }, Box::new(move |line| file.write_all(line)))
    }

    fn start(levels: Targets, form: Form, write: Write) -> Result<Logging> {
        let lines = Lines::start(form, write).context("cannot start the thread that writes the log")?;
        let (filter, levels) = reload::Layer::new(levels);
        tracing_subscriber::registry().with(filter).with(lines.clone()).try_init()?;
        Ok(Logging { lines, levels })
    }

    /// Changes the levels, by a command from outside.
    ///
    /// # Errors
    /// Why they are invalid, and what to do.
    pub fn set_levels(&self, levels: &str) -> Result<(), String> {
        let targets = config::remote_log_levels(levels).map_err(|(what, fix)| format!("the level: {what}; {fix}"))?;
        self.levels.reload(targets).map_err(|_| "the log levels cannot be changed any more".to_owned())?;
        // Logged even if the command turned the log off.
        let facts = Facts::saying("a command changed the log levels, until the next start").and("level", levels);
        self.lines.say(&Origin { level: Level::INFO, ..OWN }, &facts);
        Ok(())
    }

    /// Lines that were not written as they came.
    pub fn counts(&self) -> LogLines {
        self.lines.counts()
    }

    /// Logs why the program ends, at every level.
    pub fn fail(&self, why: &anyhow::Error) {
        self.lines.say(&OWN, &Facts::saying(&format!("cannot run: {why:#}")));
    }

    /// Writes the last lines, with a bounded wait for their reader.
    pub fn finish(&self) {
        self.lines.finish(FLUSH_TIMEOUT);
    }
}

/// The levels in `RUST_LOG`.
fn levels_of_environment() -> Result<Option<Targets>, String> {
    match std::env::var(VARIABLE) {
        Ok(levels) if !levels.is_empty() => {
            config::log_levels(&levels).map(Some).map_err(|(what, fix)| format!("{what}; {fix}"))
        }
        _ => Ok(None),
    }
}
