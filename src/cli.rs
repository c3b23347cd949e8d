//! The command line.
//!
//! Exit codes: 0 fine, 1 failed, 2 wrong usage or configuration.

mod api;
mod check;
#[cfg(feature = "demo")]
pub mod demo;
pub mod devices;
pub mod key;
mod link;
#[cfg(test)]
#[cfg(feature = "demo")]
mod printed;
pub mod queue;
mod run;
mod send;
pub mod simulate;
pub mod subscribe;

use crate::config::{self, Config};
use crate::logging::Logging;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Default path of the configuration.
const DEFAULT_CONFIG: &str = "/etc/tidegate/tidegate.toml";

/// An edge gateway that loses nothing it acknowledged.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, propagate_version = true, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, clap::Args)]
struct File {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the gateway
    Run(File),
    Check(check::Args),
    #[cfg(feature = "demo")]
    Demo(demo::Args),
    Link(link::Args),
    Devices(devices::Args),
    Key(key::Args),
    Queue(queue::Args),
    Send(send::Args),
    Simulate(simulate::Args),
    Subscribe(subscribe::Args),
}

/// Exit code for a wrong configuration or usage.
const USAGE: u8 = 2;

/// Runs the verb of the command line.
pub fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Run(file) => run::run(&file.config),
        Verb::Check(args) => check::run(&args),
        #[cfg(feature = "demo")]
        Verb::Demo(args) => run_tool(demo::run(args)),
        Verb::Link(args) => link::run(args),
        Verb::Devices(args) => devices::run(&args),
        Verb::Key(args) => key::run(args),
        Verb::Queue(args) => queue::run(args),
        Verb::Send(args) => send::run(&args),
        Verb::Simulate(args) => run_tool(simulate::run(args)),
        Verb::Subscribe(args) => run_tool(subscribe::run(args)),
    }
}

/// Keys that a verb needs to ask the running gateway.
const OF_API: [&str; 5] = ["http.enabled", "http.listen", "http.token_file", "http.cert_file", "http.key_file"];

/// Reads the configuration from a file. Only the `used` sections have to be valid; else the
/// problems are printed, and the exit code is returned.
fn load(path: &Path, used: &[&str]) -> Result<Config, ExitCode> {
    config::load_part(path, used).map_err(|problems| {
        say(&problems.to_string());
        USAGE.into()
    })
}

/// Runs a verb that needs no configuration; its result tells whether it succeeded.
fn run_tool(verb: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
    let logging = match Logging::for_terminal() {
        Ok(logging) => logging,
        Err(why) => {
            let _ = failed(&why);
            return USAGE.into();
        }
    };
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(verb));
    logging.finish();
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => failed(&why),
    }
}

fn failed(why: &anyhow::Error) -> ExitCode {
    say(&format!("tidegate: {why:#}"));
    ExitCode::FAILURE
}

/// Writes a line to standard error, which may be closed.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
