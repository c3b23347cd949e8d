//! `tidegate queue`: inspects and changes the log.

mod export;
mod forget;
mod purge;
mod rename;
mod stats;
mod verify;

use super::{DEFAULT_CONFIG, USAGE, say};
use crate::config::{self, Config};
use crate::model::{Seq, Timestamp};
use crate::store::Offline;
use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Inspects the log, and removes from it
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Verb {
    Stats(stats::Args),
    Export(export::Args),
    Purge(purge::Args),
    ForgetSink(forget::Args),
    RenameSink(rename::Args),
    Verify(verify::Args),
}

/// The log to inspect.
#[derive(Debug, Clone, clap::Args)]
struct Which {
    /// The configuration file, whose [store] directory has the log
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// A database by its path instead, such as a quarantined or copied log.db; it is only
    /// read, and may be damaged
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    file: Option<PathBuf>,
}

/// A place in the log: a seq or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Seq(Seq),
    Time(Timestamp),
}

impl std::str::FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Bound, String> {
        match text.parse() {
            Ok(seq) => Ok(Bound::Seq(Seq(seq))),
            Err(_) => text
                .parse()
                .map(Bound::Time)
                .map_err(|_| "expected a seq such as 1042, or a time such as 2026-11-23T01:02:03Z".to_owned()),
        }
    }
}

/// Why a verb failed.
enum Failure {
    /// The configuration is wrong.
    Configuration(String),
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(why: E) -> Failure {
        Failure::Other(why.into())
    }
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let done = match args.verb {
        Verb::Stats(args) => stats::run(&args, &mut out),
        Verb::Export(args) => export::run(&args, &mut out),
        Verb::Purge(args) => purge::run(&args, &mut out),
        Verb::ForgetSink(args) => forget::run(&args, &mut out),
        Verb::RenameSink(args) => rename::run(&args, &mut out),
        Verb::Verify(args) => verify::run(&args, &mut out),
    };
    let done = done.and_then(|fine| Ok(out.flush().map(|()| fine)?));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure::Configuration(problems)) => {
            say(&problems);
            USAGE.into()
        }
        Err(Failure::Other(why)) if is_closed_pipe(&why) => ExitCode::SUCCESS,
        Err(Failure::Other(why)) => super::failed(&why),
    }
}

/// Whether the reader of the output closed it, which is no fault.
fn is_closed_pipe(why: &anyhow::Error) -> bool {
    why.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|why| why.kind() == ErrorKind::BrokenPipe)
            || cause
                .downcast_ref::<csv::Error>()
                .is_some_and(|why| matches!(why.kind(), csv::ErrorKind::Io(why) if why.kind() == ErrorKind::BrokenPipe))
    })
}

/// The configuration; only its log directory and the `used` sections have to be valid.
fn load(path: &Path, used: &[&str]) -> Result<Config, Failure> {
    let used = [&["store.directory"], used].concat();
    config::load_part(path, &used).map_err(|problems| Failure::Configuration(problems.to_string()))
}

impl Which {
    fn open(&self) -> Result<Offline, Failure> {
        Ok(match &self.file {
            Some(file) => Offline::of_file(file)?,
            None => Offline::of_gateway(&load(&self.config, &[])?.store.directory)?,
        })
    }
}

/// The result of a command that changes the log only if that is confirmed.
fn changed(confirmed: bool, out: &mut dyn Write) -> Result<bool, Failure> {
    if !confirmed {
        out.flush()?;
        say("tidegate: nothing was changed; add --yes to do it");
    }
    Ok(confirmed)
}

/// Writes one JSON value as a line.
fn json(out: &mut dyn Write, value: &serde_json::Value) -> Result<()> {
    writeln!(out, "{value}").context("cannot write the output")
}
