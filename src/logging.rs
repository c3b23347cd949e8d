//! What the gateway logs: to the journal under systemd, else to standard error.
//!
//! 1. An event of the code becomes its `facts`: a message, and names with values, all of
//!    bounded length.
//! 2. The `limiter` lets it pass, or counts it to say it in a sum.
//! 3. In the `form` of where it goes it is added to a `queue` of bounded size. If that is
//!    full it is dropped, counted, and that is said once there is room.
//! 4. One thread writes, and it alone waits for whoever reads (`lines`).
//!
//! So nobody who logs ever waits, and no outsider can fill the log.

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

/// Names what is to be logged, instead of the configuration.
const VARIABLE: &str = "RUST_LOG";

/// How long the end waits for the last lines to be read.
const PATIENCE: Duration = Duration::from_secs(1);

/// What no level keeps back.
const OWN: Origin = Origin { level: Level::ERROR, target: module_path!(), file: Some(file!()), line: None };

/// What is logged, and how. Cheap to clone.
#[derive(Clone)]
pub struct Logging {
    lines: Lines,
    levels: reload::Handle<Targets, Registry>,
}

impl Logging {
    /// Logs for the gateway what `levels` says, or `RUST_LOG` if that is set.
    ///
    /// # Errors
    /// If `levels` are none, or logging is set up already.
    pub fn for_service(levels: &str) -> Result<Logging> {
        let (given, wrong) = match given() {
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

    /// For verbs whose output is for a person: only what goes wrong, unless `RUST_LOG`
    /// asks for more. To the demo's broker every client that leaves is an error.
    ///
    /// # Errors
    /// If `RUST_LOG` is wrong, or logging is set up already.
    pub fn for_terminal() -> Result<Logging> {
        let usual = || Targets::new().with_default(Level::WARN).with_target("rumqttd", LevelFilter::OFF);
        let levels = given().map_err(|wrong| anyhow::anyhow!("the environment variable {VARIABLE}: {wrong}"))?;
        Logging::to_stderr(levels.unwrap_or_else(usual))
    }

    fn to_stderr(levels: Targets) -> Result<Logging> {
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        // Not by what others may hold while they write.
        let mut file = File::from(io::stderr().as_fd().try_clone_to_owned().context("standard error is closed")?);
        Logging::start(levels, Form::Text { colours }, Box::new(move |line| file.write_all(line)))
    }

    fn start(levels: Targets, form: Form, write: Write) -> Result<Logging> {
        let lines = Lines::start(form, write).context("cannot start the thread that writes the log")?;
        let (filter, levels) = reload::Layer::new(levels);
        tracing_subscriber::registry().with(filter).with(lines.clone()).try_init()?;
        Ok(Logging { lines, levels })
    }

    /// Changes what is logged, as a command from outside says.
    ///
    /// # Errors
    /// What is wrong with it, and how to do better.
    pub fn set_levels(&self, levels: &str) -> Result<(), String> {
        let targets = config::remote_log_levels(levels).map_err(|(what, fix)| format!("the level: {what}; {fix}"))?;
        self.levels.reload(targets).map_err(|_| "the log cannot be changed any more".to_owned())?;
        // Also if that turned it off.
        let facts = Facts::saying("what is logged was changed by a command, until the next start").and("level", levels);
        self.lines.say(&Origin { level: Level::INFO, ..OWN }, &facts);
        Ok(())
    }

    /// How many lines were not written as they came.
    pub fn counts(&self) -> LogLines {
        self.lines.counts()
    }

    /// Says why the program ends, whatever else is logged.
    pub fn fail(&self, why: &anyhow::Error) {
        self.lines.say(&OWN, &Facts::saying(&format!("cannot run: {why:#}")));
    }

    /// Has the last lines written, without waiting long for whoever does not read them.
    pub fn finish(&self) {
        self.lines.finish(PATIENCE);
    }
}

/// What `RUST_LOG` names.
fn given() -> Result<Option<Targets>, String> {
    match std::env::var(VARIABLE) {
        Ok(levels) if !levels.is_empty() => {
            config::log_levels(&levels).map(Some).map_err(|(what, fix)| format!("{what}; {fix}"))
        }
        _ => Ok(None),
    }
}
